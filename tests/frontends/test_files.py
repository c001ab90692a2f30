"""Files that are no ONNX model, or a broken one: one clear error each, its text kept as golden."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from compiler.frontends import load
from compiler.ir import SecateurError
from tests.models import light_path

Golden = Callable[[str, str], None]

RELU = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[1,4] x) => (float[1,4] y) {
  y = Relu(x)
}
"""


def refusal(source: Path | onnx.ModelProto, folder: Path | None = None) -> SecateurError:
    with pytest.raises(SecateurError) as caught:
        load(source)
    if folder is not None:
        caught.value.where = caught.value.where.replace(str(folder), "DIR")
        caught.value.hint = caught.value.hint.replace(str(folder), "DIR")
    return caught.value


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "E_NOT_ONNX"),
    "web_page": (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "E_NOT_ONNX"),
    "lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "E_LFS_POINTER"),
    "torch_zip": (b"PK\x03\x04\x00\x00archive/data.pkl", "E_NOT_ONNX"),
    "pickle": (b"\x80\x02}q\x00.", "E_NOT_ONNX"),
    "json": (b'{"model": []}', "E_NOT_ONNX"),
    "text": (b"just some words, no model\n", "E_NOT_ONNX"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\x00\x00\x00\x00", "E_NOT_ONNX"),
    "tflite": (b"\x1c\x00\x00\x00TFL3\x14\x00\x20\x00", "E_NOT_ONNX"),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "E_NOT_ONNX"),
    "safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00{}              ", "E_NOT_ONNX"),
    "random_bytes": (bytes(range(256)), "E_NOT_ONNX"),
    "other_protobuf": (
        helper.make_tensor("t", TensorProto.FLOAT, [2], [1, 2]).SerializeToString(),
        "E_NOT_ONNX",
    ),
    "no_graph": (onnx.ModelProto(ir_version=8, producer_name="p").SerializeToString(), "E_NOT_ONNX"),
}


@pytest.mark.parametrize("name", FILES)
def test_foreign_file_is_refused_by_what_it_is(name: str, tmp_path: Path, golden: Golden) -> None:
    data, code = FILES[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    error = refusal(path, tmp_path)
    assert error.code == code
    golden(str(error), f"errors/file_{name}")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_model_is_refused(share: float, tmp_path: Path) -> None:
    whole = light_path("squeezenet").read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    error = refusal(path)
    assert error.code in ("E_NOT_ONNX", "E_INVALID_MODEL")


def test_missing_file(tmp_path: Path, golden: Golden) -> None:
    golden(str(refusal(tmp_path / "nothing.onnx", tmp_path)), "errors/file_missing")


def test_directory_names_the_models_in_it(tmp_path: Path, golden: Golden) -> None:
    onnx.save(parser.parse_model(RELU), tmp_path / "net.onnx")
    golden(str(refusal(tmp_path, tmp_path)), "errors/file_directory")


def test_saved_model_directory(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    assert "tf2onnx" in refusal(tmp_path).hint


def test_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    assert refusal(tmp_path / "model.onnx").message == "not a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch(mode=0)
    assert refusal(path).code == "E_FILE"


def test_null_byte_in_path() -> None:
    assert refusal("a\0b.onnx").code == "E_FILE"  # type: ignore[arg-type]


def test_unknown_kind_of_source(golden: Golden) -> None:
    golden(str(refusal({"not": "a model"})), "errors/frontend")  # type: ignore[arg-type]


INVALID: dict[str, tuple[str, str]] = {
    "undefined_input": ("y = Add(x, ghost)", "E_INVALID_MODEL"),
    "defined_twice": ("y = Relu(x) y = Tanh(x)", "E_INVALID_MODEL"),
    "output_never_made": ("z = Relu(x)", "E_INVALID_MODEL"),
    "operand_count": ("y = Add(x)", "E_INVALID_MODEL"),
    "unknown_attribute": ("y = Relu<wings = 2>(x)", "E_INVALID_MODEL"),
    "cycle": ("a = Add(x, b) b = Relu(a) y = Tanh(b)", "E_CYCLE"),
    "self_loop": ("y = Add(x, y)", "E_CYCLE"),
    "shapes_contradict": ("c = Constant<value = float[3] {1, 2, 3}>() y = Add(x, c)", "E_SHAPE"),
    "unknown_standard_op": ("y = Frobnicate(x)", "E_UNKNOWN_OP"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_model_is_refused(name: str, golden: Golden) -> None:
    body, code = INVALID[name]
    error = refusal(parser.parse_model(RELU.replace("y = Relu(x)", body)))
    assert error.code == code
    golden(str(error), f"errors/invalid_{name}")


def test_unknown_domain_is_refused_and_named(golden: Golden) -> None:
    text = RELU.replace('"" : 21', '"" : 21, "com.example" : 1').replace("Relu(x)", "com.example.Magic(x)")
    error = refusal(parser.parse_model(text))
    golden(str(error), "errors/unknown_domain")


def test_unknown_domain_can_be_kept() -> None:
    text = RELU.replace('"" : 21', '"" : 21, "com.example" : 3').replace("Relu(x)", "com.example.Magic(x)")
    graph = load(parser.parse_model(text), allow_unknown=True)
    assert graph.nodes[0].qualified_op == "com.example::Magic"
    assert graph.domains == {"com.example": 3}


@pytest.mark.parametrize(("opset", "ir"), [(1, 3), (6, 3), (999, 8), (21, 999)])
def test_opsets_out_of_range(opset: int, ir: int, golden: Golden) -> None:
    model = parser.parse_model(RELU)
    model.opset_import[0].version, model.ir_version = opset, ir
    text = str(refusal(model)).replace(f"opset {onnx.defs.onnx_opset_version()} and", "opset CURRENT and")
    golden(text.replace(f"IR version {onnx.IR_VERSION}\n", "IR version CURRENT\n"), f"errors/opset_{opset}_{ir}")


def test_no_opset_at_all() -> None:
    model = parser.parse_model(RELU)
    del model.opset_import[:]
    assert refusal(model).code == "E_OPSET"


def test_sequence_at_the_boundary_is_refused(golden: Golden) -> None:
    text = RELU.replace("float[1,4] x", "seq(float[1,4]) x").replace("Relu(x)", "ConcatFromSequence<axis = 0>(x)")
    golden(str(refusal(parser.parse_model(text))), "errors/sequence_input")


def test_graph_without_outputs_is_refused() -> None:
    model = parser.parse_model(RELU)
    del model.graph.output[:]
    assert refusal(model).code == "E_INVALID_MODEL"


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t.dims.append(7),
        lambda t: t.dims.__setitem__(0, -3),
        lambda t: t.dims.__setitem__(0, 2**50),
        lambda t: setattr(t, "raw_data", b"\0" * 5),
        lambda t: setattr(t, "data_type", 250),
        lambda t: setattr(t, "data_type", 0),
    ],
    ids=["more_axes", "negative", "huge", "raw_too_short", "unknown_type", "no_type"],
)
def test_damaged_initializer_is_named(damage: Callable[[TensorProto], None]) -> None:
    model = parser.parse_model(RELU.replace("Relu(x)", "Add(x, w)"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    damage(model.graph.initializer[0])
    error = refusal(model)
    assert error.code == "E_INVALID_MODEL"
    assert error.where == "tensor 'w'"


def test_sparse_tensor_that_claims_terabytes_is_refused() -> None:
    model = parser.parse_model(RELU.replace("Relu(x)", "Add(x, w)"))
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**20, 2**20]))
    assert "too large" in refusal(model).message


def test_errors_name_the_file(tmp_path: Path) -> None:
    onnx.save(parser.parse_model(RELU.replace("Relu", "Frobnicate")), tmp_path / "bad.onnx")
    assert refusal(tmp_path / "bad.onnx").where.startswith(str(tmp_path / "bad.onnx"))


def test_names_that_are_no_text_are_refused(tmp_path: Path, golden: Golden) -> None:
    data = parser.parse_model(RELU.replace("x)", "name)").replace("] x", "] name")).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data.replace(b"name", b"\xff\xfe\xfd\xfc"))
    golden(str(refusal(tmp_path / "model.onnx", tmp_path)), "errors/not_utf8")


def test_unknown_element_type_is_refused() -> None:
    model = parser.parse_model(RELU)
    model.graph.input[0].type.tensor_type.elem_type = 1000
    assert refusal(model).message == "the model is damaged: element type 1000 does not exist"
