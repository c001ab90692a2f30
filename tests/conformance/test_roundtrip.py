"""Every ONNX operator test, from the standard's own generator: loaded, simplified and written again, the model gives
what ONNX Runtime gives for the original. Operators that the runtime lacks must still load and export.

Run by `make conformance`. A skipped case is one that loads, simplifies and exports, but that the installed ONNX
Runtime cannot run in its original form, so there is nothing to compare with.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import checker, numpy_helper

from compiler.exporters import to_model_proto
from compiler.frontends import load
from compiler.frontends.onnx.normalise import OLDEST_OPSET
from compiler.ir import SecateurError
from compiler.ir.execute import execute, relative_difference
from passes.simplify import Simplify

_RANDOM = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
_RANDOM |= {"RandomUniformLike"}


@dataclass
class Case:
    name: str
    model: onnx.ModelProto
    inputs: list[Any]

    @property
    def names(self) -> list[str]:
        initializers = {t.name for t in self.model.graph.initializer}
        return [i.name for i in self.model.graph.input if i.name not in initializers]

    @property
    def only_tensors(self) -> bool:
        infos = (*self.model.graph.input, *self.model.graph.output)
        return all(i.type.WhichOneof("value") == "tensor_type" for i in infos)


def _generated() -> Iterator[Case]:
    from onnx.backend.test.case.model import collect_testcases as collect_models
    from onnx.backend.test.case.node import collect_testcases as collect_nodes

    for case in (*collect_nodes(None), *collect_models()):
        if case.model is not None and case.data_sets:
            yield Case(case.name, case.model, list(case.data_sets[0][0]))


def _stored() -> Iterator[Case]:
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in sorted(data.glob("*/*/model.onnx")):
        case = Case(path.parent.name, onnx.load(path), [])
        tensors = sorted(path.parent.glob("test_data_set_0/input_*.pb"))
        if case.only_tensors and len(tensors) == len(case.names):
            case.inputs = [onnx.load_tensor(p) for p in tensors]
            yield case


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the generators divide by zero on purpose
    CASES = [*_generated(), *_stored()]


def _is_readable(case: Case) -> bool:
    """False for what the frontend refuses: sequences at the boundary, opsets below 7, Scan with a batch axis."""
    opset = next((e.version for e in case.model.opset_import if e.domain == ""), OLDEST_OPSET)
    return case.only_tensors and opset >= OLDEST_OPSET and case.name != "test_scan_sum"


@pytest.mark.parametrize("case", [c for c in CASES if not _is_readable(c)], ids=lambda case: case.name)
def test_the_rest_is_refused(case: Case) -> None:
    with pytest.raises(SecateurError, match="not a tensor" if not case.only_tensors else "opset"):
        load(case.model)


@pytest.mark.parametrize("case", [c for c in CASES if _is_readable(c)], ids=lambda case: case.name)
def test_operator_survives(case: Case) -> None:
    feeds = {
        n: numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x)
        for n, x in zip(case.names, case.inputs, strict=False)
    }
    graph = load(case.model)
    written = [to_model_proto(graph), to_model_proto(Simplify()(graph))]
    for model in written:
        checker.check_model(model)
    try:
        expected = execute(case.model, feeds, optimize=False)
    except Exception:  # the runtime lacks this operator, or this type
        pytest.skip("ONNX Runtime cannot run the original")
    for model in written:
        used = {i.name for i in model.graph.input}
        actual = execute(model, {n: x for n, x in feeds.items() if n in used}, optimize=False)
        assert list(actual) == list(expected)
        if not _RANDOM & {n.op_type for n in case.model.graph.node}:
            _compare(actual, expected)


def _compare(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, reference in expected.items():
        assert actual[name].dtype == reference.dtype
        assert actual[name].shape == reference.shape
        if reference.dtype.kind in "OUS":
            assert actual[name].tolist() == reference.tolist()
            continue
        tolerance = 1e-2 if reference.dtype.kind in "fV" and reference.dtype.itemsize < 4 else 1e-5
        assert relative_difference({name: actual[name]}, {name: reference}) <= tolerance
