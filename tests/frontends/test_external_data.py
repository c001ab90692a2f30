"""External data: read lazily, only from inside the model's folder, and only when it is really there."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.exporters import save_onnx
from compiler.frontends import load
from compiler.ir import MappedConstant, SecateurError
from compiler.ir.execute import execute, relative_difference

Golden = Callable[[str, str], None]

WEIGHT = np.arange(2048, dtype=np.float32).reshape(4, 512) / 2048


def external_tensor(name: str, like: np.ndarray, **entries: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(like.dtype), dims=like.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


def model_with(tensor: TensorProto, folder: Path, data: bytes | None = None) -> Path:
    """A MatMul by `tensor`, saved in `folder`/model.onnx, with weights.bin beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes() if data is None else data)
    kind = tensor.data_type
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", tensor.name], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, tensor.dims[0]])],
        [helper.make_tensor_value_info("y", kind, [1, tensor.dims[1]])],
        [tensor],
    )
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString())
    return path


def test_mapped_and_not_read(tmp_path: Path) -> None:
    graph = load(model_with(external_tensor("w", WEIGHT, location="weights.bin"), tmp_path))
    constant = graph.value("w").data
    assert constant == MappedConstant(tmp_path / "weights.bin", 0, np.dtype(np.float32), (4, 512))
    assert isinstance(constant.numpy(), np.memmap)
    np.testing.assert_array_equal(constant.numpy(), WEIGHT)


def test_offset_and_length(tmp_path: Path) -> None:
    tensor = external_tensor("w", WEIGHT, location="./weights.bin", offset="5", length=str(WEIGHT.nbytes))
    graph = load(model_with(tensor, tmp_path, b"12345" + WEIGHT.tobytes()))
    np.testing.assert_array_equal(graph.value("w").numpy(), WEIGHT)


def test_file_in_a_folder_below(tmp_path: Path) -> None:
    path = model_with(external_tensor("w", WEIGHT, location="data/w.bin"), tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "data" / "w.bin")
    np.testing.assert_array_equal(load(path).value("w").numpy(), WEIGHT)


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.int8, np.float64])
def test_element_types(kind: type, tmp_path: Path) -> None:
    array = WEIGHT.astype(kind)
    path = model_with(external_tensor("w", array, location="weights.bin"), tmp_path, array.tobytes())
    if kind is np.int8:  # MatMul takes no int8
        model = onnx.load(path, load_external_data=False)
        model.graph.node[0].op_type = "MatMulInteger"
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
        path.write_bytes(model.SerializeToString())
    np.testing.assert_array_equal(load(path).value("w").numpy(), array)


def test_four_bit_elements_are_unpacked(tmp_path: Path) -> None:
    array = (np.arange(64).reshape(8, 8) % 16 - 8).astype(ml_dtypes.int4)
    packed = numpy_helper.from_array(array, "w")
    (tmp_path / "weights.bin").write_bytes(packed.raw_data)
    tensor = external_tensor("w", array, location="weights.bin", length="32")
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 8])],
        [tensor],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString())
    loaded = load(path)
    np.testing.assert_array_equal(loaded.value("w").numpy(), array)
    save_onnx(loaded, tmp_path / "again.onnx", external_data=True)
    np.testing.assert_array_equal(load(tmp_path / "again.onnx").value("w").numpy(), array)


HOSTILE: dict[str, dict[str, str]] = {
    "absolute": {"location": "/etc/passwd"},
    "windows_absolute": {"location": "C:\\weights.bin"},
    "escapes": {"location": "../outside.bin"},
    "escapes_from_below": {"location": "sub/../../outside.bin"},
    "missing": {"location": "nothing.bin"},
    "no_location": {},
    "null_byte": {"location": "a\0b"},
    "is_the_folder": {"location": "."},
    "offset_negative": {"location": "weights.bin", "offset": "-4"},
    "offset_garbage": {"location": "weights.bin", "offset": "many"},
    "offset_past_end": {"location": "weights.bin", "offset": "1000000"},
    "length_garbage": {"location": "weights.bin", "length": "1e3"},
    "length_differs": {"location": "weights.bin", "length": "4"},
    "length_enormous": {"location": "weights.bin", "length": str(2**70)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_location(name: str, tmp_path: Path, golden: Golden) -> None:
    (tmp_path / "outside.bin").write_bytes(WEIGHT.tobytes())
    path = model_with(external_tensor("w", WEIGHT, **HOSTILE[name]), tmp_path / "inner")
    with pytest.raises(SecateurError, match="external data of tensor 'w'") as caught:
        load(path)
    assert caught.value.code == "E_EXTERNAL_DATA"
    golden(str(caught.value).replace(str(tmp_path), "DIR"), f"errors/external_{name}")


def test_link_that_leaves_the_folder(tmp_path: Path, golden: Golden) -> None:
    (tmp_path / "outside.bin").write_bytes(WEIGHT.tobytes())
    path = model_with(external_tensor("w", WEIGHT, location="link.bin"), tmp_path / "inner")
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(SecateurError, match="symbolic link") as caught:
        load(path)
    golden(str(caught.value).replace(str(tmp_path), "DIR"), "errors/external_link")


def test_link_that_circles(tmp_path: Path) -> None:
    path = model_with(external_tensor("w", WEIGHT, location="link.bin"), tmp_path)
    (tmp_path / "link.bin").symlink_to("link.bin")
    with pytest.raises(SecateurError, match="E_EXTERNAL_DATA"):
        load(path)


def test_link_inside_the_folder_is_fine(tmp_path: Path) -> None:
    path = model_with(external_tensor("w", WEIGHT, location="link.bin"), tmp_path)
    (tmp_path / "link.bin").symlink_to("weights.bin")
    np.testing.assert_array_equal(load(path).value("w").numpy(), WEIGHT)


def test_model_in_a_linked_folder_is_fine(tmp_path: Path) -> None:
    model_with(external_tensor("w", WEIGHT, location="weights.bin"), tmp_path / "real")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    np.testing.assert_array_equal(load(tmp_path / "linked" / "model.onnx").value("w").numpy(), WEIGHT)


def test_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = model_with(external_tensor("w", WEIGHT, location="pipe"), tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SecateurError, match="not a regular file"):
        load(path)


def test_strings_cannot_be_external(tmp_path: Path) -> None:
    tensor = external_tensor("w", WEIGHT, location="weights.bin")
    tensor.data_type = TensorProto.STRING
    with pytest.raises(SecateurError, match="strings"):
        load(model_with(tensor, tmp_path))


def test_model_in_memory_has_no_folder(tmp_path: Path) -> None:
    path = model_with(external_tensor("w", WEIGHT, location="weights.bin"), tmp_path)
    with pytest.raises(SecateurError, match="given in memory"):
        load(onnx.load(path, load_external_data=False))


@pytest.mark.parametrize("where", ["constant_node", "attribute", "body"])
def test_external_data_outside_the_initializers(where: str, tmp_path: Path) -> None:
    """Constant nodes, other tensor attributes and bodies carry external data, too."""
    tensor = external_tensor("w", WEIGHT, location="weights.bin")
    boolean = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    if where == "constant_node":
        nodes = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Neg", ["w"], ["y"])]
        expected = -WEIGHT
    elif where == "attribute":
        one = external_tensor("v", np.zeros(1, np.float32), location="weights.bin", offset="2048")
        shape = helper.make_node("Constant", [], ["s"], value_ints=[3])
        nodes = [shape, helper.make_node("ConstantOfShape", ["s"], ["y"], value=one)]
        expected = np.full(3, 0.25, np.float32)
    else:
        out = [helper.make_tensor_value_info("r", TensorProto.FLOAT, [4, 512])]
        negate = helper.make_graph([helper.make_node("Neg", ["w"], ["r"])], "a", [], out, [tensor])
        plain = helper.make_graph([helper.make_node("Identity", ["w"], ["r"])], "b", [], out, [tensor])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=negate, else_branch=plain)]
        expected = -WEIGHT
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    graph = helper.make_graph(nodes, "g", [boolean], [y])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString())
    np.testing.assert_array_equal(execute(load(path), {"c": np.array(True)})["y"], expected)


def test_a_model_larger_than_memory_opens_at_once(tmp_path: Path) -> None:
    """14 GB of weights, as a sparse file: loading reads none of it."""
    count, size = 56, 8192 * 8192
    tensors = []
    for i in range(count):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[8192, 8192])
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "w.bin"), ("offset", str(4 * size * i)), ("length", str(4 * size))):
            tensor.external_data.add(key=key, value=text)
        tensors.append(tensor)
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * size * count)
    names = ["x", *(f"h{i}" for i in range(count))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(count)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8192])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["batch", 8192])],
        tensors,
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    loaded = load(path)
    assert time.perf_counter() - start < 20  # 0.1 s; reading would take minutes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert loaded.outputs[0].shape == ("batch", 8192)


def test_external_round_trip_agrees(tmp_path: Path) -> None:
    graph = load(model_with(external_tensor("w", WEIGHT, location="weights.bin"), tmp_path))
    written = save_onnx(graph, tmp_path / "out.onnx", external_data=True)
    assert [p.name for p in written] == ["out.onnx", "out.onnx.data"]
    x = {"x": np.ones((1, 4), np.float32)}
    assert relative_difference(execute(written[0], x), execute(graph, x)) == 0
