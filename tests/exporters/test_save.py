"""Writing ONNX files: whole or not at all, equal bytes for equal graphs, and never over what must stay."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import checker, parser

from compiler.exporters import check_output, export, save_onnx, to_model_proto
from compiler.exporters import onnx as onnx_exporter
from compiler.frontends import load
from compiler.ir import Constant, Graph, SecateurError, Value
from compiler.ir.execute import execute, random_inputs, relative_difference
from tests.models import light_model
from tests.strategies import networks

Golden = Callable[[str, str], None]


@pytest.fixture
def graph() -> Graph:
    return load(light_model("squeezenet"))


@pytest.mark.parametrize("external", [False, True])
def test_files_are_valid_and_run(graph: Graph, external: bool, tmp_path: Path) -> None:
    written = save_onnx(graph, tmp_path / "net.onnx", external_data=external)
    assert [p.name for p in written] == (["net.onnx", "net.onnx.data"] if external else ["net.onnx"])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in written)
    checker.check_model(written[0], full_check=True)
    inputs = random_inputs(graph)
    assert relative_difference(execute(written[0], inputs), execute(graph, inputs)) <= 1e-6
    assert str(load(written[0])) == str(graph)


@pytest.mark.parametrize("external", [False, True])
def test_equal_graphs_give_equal_bytes(graph: Graph, external: bool, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_onnx(load(light_model("squeezenet")), tmp_path / folder / "net.onnx", external_data=external)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_load_of_save_is_a_fixed_point(graph: Graph, tmp_path: Path) -> None:
    first = export(graph, tmp_path / "a.onnx")[0]
    second = export(load(first), tmp_path / "b.onnx")[0]
    assert first.read_bytes() == second.read_bytes()


@settings(max_examples=40)
@given(networks())
def test_random_networks_survive_the_round_trip(graph: Graph) -> None:
    again = load(to_model_proto(graph))
    inputs = random_inputs(graph)
    assert str(again) == str(graph)
    assert relative_difference(execute(again, inputs), execute(graph, inputs)) == 0


def test_external_tensors_start_at_pages(graph: Graph, tmp_path: Path) -> None:
    path, _ = save_onnx(graph, tmp_path / "net.onnx", external_data=True)
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {e.key: e.value for e in tensor.external_data}
        assert not entries or int(entries["offset"]) % 4096 == 0
        assert not entries or entries["location"] == "net.onnx.data"


def test_large_models_get_external_data_by_themselves(graph: Graph, tmp_path: Path, monkeypatch: object) -> None:
    monkeypatch.setattr(onnx_exporter, "EXTERNAL_BYTES", 2**20)  # type: ignore[attr-defined]
    assert len(save_onnx(graph, tmp_path / "net.onnx")) == 2
    with pytest.raises(SecateurError, match="do not fit into one ONNX message"):
        to_model_proto(graph)


class Failing(Constant):
    """Data that cannot be read."""

    dtype = np.dtype(np.float32)
    shape = (2048,)

    def numpy(self) -> np.ndarray:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("external", [False, True])
def test_nothing_half_written_is_left(external: bool, tmp_path: Path) -> None:
    model = load(
        parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        net (float[2048] x) => (float[2048] y) { y = Add(x, x) }""")
    )
    model.nodes[0].inputs[1] = Value("w", data=Failing())
    with pytest.raises(SecateurError, match="No space left") as caught:
        save_onnx(model, tmp_path / "net.onnx", external_data=external)
    assert caught.value.code == "E_OUTPUT"
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("old")
    broken = Graph("g", [], [Value("ghost", np.float32, (1,))], [])
    with pytest.raises(SecateurError, match="never defined"):
        save_onnx(broken, tmp_path / "net.onnx", overwrite=True)
    assert (tmp_path / "net.onnx").read_text() == "old"


@pytest.mark.parametrize("existing", ["net.onnx", "net.onnx.data"])
def test_existing_files_stay(existing: str, graph: Graph, tmp_path: Path) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(SecateurError, match="exists already") as caught:
        save_onnx(graph, tmp_path / "net.onnx", external_data=True)
    assert caught.value.code == "E_OUTPUT_EXISTS"
    assert [p.name for p in tmp_path.iterdir()] == [existing]
    save_onnx(graph, tmp_path / "net.onnx", external_data=True, overwrite=True)
    assert str(load(tmp_path / "net.onnx")) == str(graph)


def test_weights_that_the_graph_still_reads_are_not_overwritten(graph: Graph, tmp_path: Path) -> None:
    path, _ = save_onnx(graph, tmp_path / "net.onnx", external_data=True)
    mapped = load(path)
    with pytest.raises(SecateurError, match="replace its own input"):
        save_onnx(mapped, path, external_data=True, overwrite=True)
    assert str(load(path)) == str(graph)


def test_file_permissions_follow_the_umask(graph: Graph, tmp_path: Path) -> None:
    (path,) = save_onnx(graph, tmp_path / "net.onnx")
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_constant_and_an_input_can_be_outputs(tmp_path: Path) -> None:
    x = Value("x", np.float32, (2,))
    graph = Graph("g", [x], [Value("k", data=np.ones(2, np.float32))], [])
    (path,) = save_onnx(graph, tmp_path / "net.onnx")
    assert execute(path, {"x": np.zeros(2, np.float32)})["k"].tolist() == [1, 1]


class TestCheckOutput:
    @pytest.mark.parametrize(
        ("target", "code"),
        [
            ("missing/net.onnx", "E_OUTPUT"),
            ("folder", "E_OUTPUT"),
            ("taken.onnx", "E_OUTPUT_EXISTS"),
            ("source.onnx", "E_OUTPUT_IS_INPUT"),
            ("link.onnx", "E_OUTPUT_IS_INPUT"),
            ("pipe", "E_OUTPUT"),
        ],
    )
    def test_refused(self, target: str, code: str, tmp_path: Path, golden: Golden) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "taken.onnx").touch()
        (tmp_path / "source.onnx").touch()
        (tmp_path / "link.onnx").symlink_to("source.onnx")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(SecateurError) as caught:
            check_output(tmp_path / target, inputs=[tmp_path / "source.onnx"], overwrite=target != "taken.onnx")
        assert caught.value.code == code
        name = target.replace("/", "_").removesuffix(".onnx")
        golden(str(caught.value).replace(str(tmp_path), "DIR"), f"errors/output_{name}")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_folder_without_write_permission(self, tmp_path: Path) -> None:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(SecateurError, match="cannot be written"):
            check_output(tmp_path / "locked" / "net.onnx")

    def test_accepted(self, tmp_path: Path) -> None:
        assert check_output(str(tmp_path / "net.onnx")) == tmp_path / "net.onnx"
        (tmp_path / "net.onnx").touch()
        assert check_output(tmp_path / "net.onnx", overwrite=True) == tmp_path / "net.onnx"
