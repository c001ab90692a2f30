"""Calibration: sample data, and what the network's activations and gradients look like on it."""

from passes.calibration.evidence import Evidence
from passes.calibration.noise import noise_samples
from passes.calibration.samples import Samples, calibration_samples

__all__ = ["Evidence", "Samples", "calibration_samples", "noise_samples"]
