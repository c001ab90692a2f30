"""`secateur sparsify`, and the zeros that `inspect` shows, as a user meets them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compiler.ir import CheckFailed
from passes import Context, Pipeline, Sparsify
from passes.sparsity.check import sparsity_error
from tests.cli.test_commands import contents, run, run_json
from tests.networks import network, network_proto

NET = """(float[N,3,8,8] x, float[32,3,3,3] stem, float[32,1,3,3] dw, float[48,32,1,1] pw, float[48] s, float[48] b,
    float[48] m, float[48] v, float[40,48,3,3] w3, float[10,40] head) => (float[N,10] y) {
    a = Conv<pads=[1,1,1,1]>(x, stem) r = Relu(a) d = Conv<group=32, pads=[1,1,1,1]>(r, dw) p = Conv(d, pw)
    n = BatchNormalization(p, s, b, m, v) q = Relu(n) t = Conv(q, w3) g = GlobalAveragePool(t) f = Flatten(g)
    y = Gemm<transB=1>(f, head) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(network_proto(NET), path)
    return path


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_the_file_holds_the_zeros_asked_for(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = model.with_name("sparse.onnx")
    options = ["--sparsity", "0.9", "--pattern", "4x1", "--distribution", "erk"]
    result = run_json(["sparsify", str(model), "-o", str(output), *options], capsys)
    (report,) = result["sparsify"]
    assert (report["pattern"], report["requested"]) == ("4x1", 0.9)
    assert abs(report["reached"] - 0.9) <= 1e-3
    assert result["checks"][0]["difference"] == 0
    before, after = arrays(model), arrays(output)
    assert before.keys() == after.keys()
    for entry in report["weights"]:
        assert entry["zeros"] == [0, int((after[entry["name"]] == 0).sum())]
    for name, array in after.items():
        kept = array != 0
        np.testing.assert_array_equal(array[kept], before[name][kept])
    blocks = (after["w3"] != 0).reshape(10, 4, 48, 9)
    assert (blocks.any(1) == blocks.all(1)).all()
    found = run_json(["inspect", str(output), "--sparsity"], capsys)["weights"]
    assert {w["name"]: w["zeros"] for w in found} == {w["name"]: w["zeros"][1] for w in report["weights"]}
    assert {w["name"]: w["structure"] for w in found} == {
        "stem": [],
        "dw": [],
        "pw": ["4x1"],
        "w3": ["4x1"],
        "head": [],
    }


def test_tables(model: Path, capsys: pytest.CaptureFixture[str], golden) -> None:
    output = str(model.with_name("sparse.onnx"))
    assert run(["sparsify", str(model), "-o", output, "--pattern", "2:4", "--min-size", "400"]) == 0
    assert run(["inspect", output, "--sparsity"]) == 0
    lines = capsys.readouterr().out.replace(str(model.parent), "DIR").splitlines()
    golden("\n".join(line.rstrip() for line in lines), "cli/sparsify")


def test_mending_is_told(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sparsify", str(model), "-o", str(model.with_name("o.onnx")), "--calibration", "none"]
    assert run([*arguments, "--mend", "batchnorm"]) == 0
    assert "mended 0 layers and 1 normalisations" in capsys.readouterr().out


def test_compile_takes_the_pass(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compile", str(model), "-o", str(model.with_name("out")), "--shape", "x=1x3x8x8"]
    result = run_json([*arguments, "--passes", "simplify,sparsify(pattern=2:4,only=[w3,pw])"], capsys)
    assert [w["name"] for w in result["sparsify"][0]["weights"] if not w["spared"]] == ["pw", "w3"]
    assert len(result["checks"]) == 2


def test_every_option_of_the_pass_is_one_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sparsify", "--help"]) == 0
    text = capsys.readouterr().out
    for option in dataclasses.fields(Sparsify):
        assert f"--{option.name.replace('_', '-')} " in text


SPARSIFY = "sparsify M -o D/o.onnx"
ERRORS = {
    "pattern_keeps_all": f"{SPARSIFY} --pattern 3:2",
    "pattern_no_block": f"{SPARSIFY} --pattern 0x1",
    "pattern_unknown": f"{SPARSIFY} --pattern block4",
    "zero": f"{SPARSIFY} --sparsity 0",
    "one": f"{SPARSIFY} --sparsity 1",
    "conflict": f"{SPARSIFY} --sparsity 0.9 --pattern 2:4",
    "distribution": f"{SPARSIFY} --distribution layerwise",
    "distribution_conflict": f"{SPARSIFY} --distribution erk --pattern 2:4",
    "mend": f"{SPARSIFY} --mend weights",
    "mend_without_data": f"{SPARSIFY} --mend batchnorm",
    "criterion": f"{SPARSIFY} --criterion fpgm",
    "criterion_without_data": f"{SPARSIFY} --criterion wanda",
    "names": f"{SPARSIFY} --ignore headd",
    "nothing": f"{SPARSIFY} --min-size 100000",
    "option_value": "compile M -o D/o --passes sparsify(sparsity=most)",
    "output_is_input": "sparsify M -o M --force",
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, model: Path, capsys: pytest.CaptureFixture[str], golden) -> None:
    before = contents(model.parent)
    folder = str(model.parent)
    arguments = [str(model) if a == "M" else a.replace("D/", f"{folder}/") for a in ERRORS[name].split()]
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    golden(captured.err.replace(folder, "DIR"), f"errors/cli_sparsify_{name}")
    assert contents(model.parent) == before


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "2:4@out", "4x1"])
def test_the_check_finds_what_went_wrong(pattern: str) -> None:
    graph = network(NET)
    context = Context()
    Pipeline((Sparsify(pattern=pattern),))(graph, context)
    report = context.reports["sparsify"][0]
    assert sparsity_error(report) == 0
    weight = report.after.value("w3")
    right = weight.numpy()
    weight.data = type(weight.data)(np.where(right != 0, right * np.float32(1.01), right))
    assert sparsity_error(report) == pytest.approx(0.01, rel=1e-3)
    stray = right.copy()
    stray[right == 0] = 1.0
    weight.data = type(weight.data)(stray)
    if ":" in pattern:
        with pytest.raises(CheckFailed, match=r"E_VERIFY.*do not follow"):
            sparsity_error(report)
    else:
        assert sparsity_error(report) > 1
    weight.data = type(weight.data)(right)
    report.after.value("head").data = type(weight.data)(report.after.value("head").numpy() * np.float32(2))
    with pytest.raises(CheckFailed, match=r"E_VERIFY.*was to stay as it is"):
        sparsity_error(report)


def test_a_block_that_lost_a_part_is_found() -> None:
    graph = network(NET)
    context = Context()
    Sparsify(pattern="4x1")(graph, context)
    report = context.reports["sparsify"][0]
    weight = report.after.value("w3")
    broken = weight.numpy().copy()
    broken[tuple(np.argwhere(broken != 0)[0])] = 0
    weight.data = type(weight.data)(broken)
    with pytest.raises(CheckFailed, match="do not follow 4x1"):
        sparsity_error(report)
