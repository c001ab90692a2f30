"""Every ONNX operator test as an nn.Module: it gives what ONNX Runtime gives. Run by `make conformance`.

A skipped case is one that ONNX Runtime cannot run, or whose operator has no rule for torch; which those are is a list.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compiler.exporters import to_module
from compiler.exporters.torch.differentiable.dtypes import as_array, as_tensor
from compiler.frontends import load
from compiler.ir import SecateurError
from compiler.ir.execute import execute, relative_difference
from tests.conformance.test_roundtrip import _RANDOM, CASES, Case, _is_readable

torch.set_num_threads(1)

DEVIATIONS = {
    # ONNX Runtime gives out the lowest number where a mask forbids; the standard's own reference has minus infinity.
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
    # Less than half a step above the largest number torch rounds to that number, and ONNX Runtime to no number.
    "test_cast_no_saturate_FLOAT_to_FLOAT8E4M3FN",
    "test_cast_no_saturate_FLOAT16_to_FLOAT8E4M3FN",
}


def comparable() -> list[Case]:
    return [
        case
        for case in CASES
        if _is_readable(case)
        and case.inputs
        and case.name not in DEVIATIONS
        and not _RANDOM & {n.op_type for n in case.model.graph.node}
    ]


@pytest.mark.parametrize("case", comparable(), ids=lambda case: case.name)
def test_module_equals_onnx_runtime(case: Case) -> None:
    arrays = [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x) for x in case.inputs]
    feeds = dict(zip(case.names, arrays, strict=False))
    try:
        expected = execute(case.model, feeds, optimize=False)
    except Exception:  # the runtime lacks this operator, or this type
        pytest.skip("ONNX Runtime cannot run the original")
    graph = load(case.model)
    try:
        module = to_module(graph, verify=False)
    except SecateurError as error:
        if error.code != "E_NO_TORCH_RULE":
            raise
        pytest.skip(error.message)
    with torch.no_grad():
        results = module(**{v.name: as_tensor(feeds[v.name]) for v in graph.inputs})
    results = results if isinstance(results, tuple) else (results,)
    for value, result in zip(graph.outputs, results, strict=True):
        reference, found = expected[value.name], as_array(result, np.dtype(value.dtype))
        assert found.shape == reference.shape
        if found.dtype != reference.dtype:  # the runtime gives types that numpy lacks out as bytes
            assert found.dtype.itemsize == reference.dtype.itemsize == 1
            reference = reference.view(found.dtype)
        half = reference.dtype.itemsize < 4 and reference.dtype.kind in "fV"
        assert relative_difference({"y": found}, {"y": reference}) <= (1e-2 if half else 1e-4)
