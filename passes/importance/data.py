"""The calibration data that a criterion asks for."""

from __future__ import annotations

from typing import Any

from compiler.ir import Graph
from passes.calibration import Samples, calibration_samples
from passes.calibration.samples import LABELS, no_calibration, no_labels
from passes.importance.criterion import Criterion


def criterion_samples(
    graph: Graph, chosen: Criterion, source: Any, *, limit: int = 512, labels: str = LABELS, mend: str = "none"
) -> Samples | None:
    """Samples from a source; E_NO_CALIBRATION or E_NO_LABELS where what is needed is not there.

    source, limit, labels: as for `passes.calibration.calibration_samples`; source None where there are no data. mend:
    what is mended, which needs data too.
    """
    if source is None:
        if chosen.needs == "labels":
            raise no_labels(f"criterion {chosen.name!r} needs calibration data with labels")
        if chosen.needs or mend != "none":
            raise no_calibration(f"criterion {chosen.name!r}" if chosen.needs else f"mend={mend}")
        return None
    samples = calibration_samples(graph, source, limit=limit, labels=labels)
    if chosen.needs == "labels" and samples.labels is None:
        raise no_labels(f"criterion {chosen.name!r} needs labels, and the calibration data have none")
    return samples
