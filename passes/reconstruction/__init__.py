"""Mending a pruned network in closed form, layer by layer, from calibration data."""

from passes.reconstruction.mend import MENDS, Mended, mend

__all__ = ["MENDS", "Mended", "mend"]
