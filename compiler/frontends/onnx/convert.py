"""Lift a model of an older opset to MIN_OPSET with onnx's version converter.

The converter is silent about a few operators whose meaning changed; those are set right or refused here.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from compiler.frontends.onnx.protos import all_nodes, first_line, graphs, label
from compiler.ir import MIN_OPSET, SecateurError


def convert(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model, which is at `opset`, at MIN_OPSET; E_OPSET when that is impossible."""
    for node in all_nodes(model):
        reason = _obstacle(node, opset)
        if reason:
            raise _impossible(opset, reason, label(node))
    metadata = list(model.metadata_props)
    try:
        converted = version_converter.convert_version(model, MIN_OPSET)
    except (RuntimeError, ValueError) as error:
        raise _impossible(opset, first_line(error), "") from None
    del converted.metadata_props[:]
    converted.metadata_props.extend(metadata)
    if opset < 11:
        constants = _constants(converted)
        for node in all_nodes(converted):
            if node.op_type == "Resize" and not node.domain:
                _keep_sampling(node, constants.get(node.input[2]), opset)
    return converted


def _obstacle(node: onnx.NodeProto, opset: int) -> str:
    """Why the node cannot be lifted, "" when it can."""
    if node.domain:
        return ""
    if node.op_type == "Scan" and opset < 9:
        return "Scan had a batch axis before opset 9"
    if node.op_type == "Hardmax" and opset < 13 and not _attribute_is(node, "axis", -1):
        return "Hardmax flattened its input before opset 13"
    return ""


def _keep_sampling(node: onnx.NodeProto, scales: np.ndarray | None, opset: int) -> None:
    """State how Upsample and Resize sampled before opset 11: pixels not centred, nearest towards the source's edge."""
    shrinks = scales is not None and bool((scales < 1).any())
    if shrinks and scales is not None and (scales > 1).any():
        raise _impossible(opset, "a Resize both grows and shrinks", label(node))
    stated = {a.name for a in node.attribute}
    sampling = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if shrinks else "floor"}
    node.attribute.extend(helper.make_attribute(k, v) for k, v in sampling.items() if k not in stated)


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The initializers and Constant nodes by name."""
    found = {t.name: numpy_helper.to_array(t) for graph in graphs(model.graph) for t in graph.initializer}
    for node in all_nodes(model):
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _attribute_is(node: onnx.NodeProto, name: str, value: int) -> bool:
    return any(a.name == name and a.i == value for a in node.attribute)


def _impossible(opset: int, reason: str, node: str) -> SecateurError:
    return SecateurError(
        "E_OPSET",
        f"the model cannot be lifted from ONNX opset {opset} to {MIN_OPSET}: {reason}",
        where=f"node {node!r}" if node else "",
        hint=f"export the network again with opset {MIN_OPSET} or newer",
    )
