"""The `secateur` command as a user meets it: what it prints, its exit codes, and what it leaves behind."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from compiler.cli import main
from compiler.cli.shared import layers
from passes import Context, Prune
from tests.networks import network, network_proto

SMALL = """(float[N,3,8,8] x, float[8,3,3,3] w1, float[8] s, float[8] b, float[8] m, float[8] v, float[12,8,1,1] w2,
    float[5,12] h) => (float[N,5] y) { a = Conv<pads=[1,1,1,1]>(x, w1) n = BatchNormalization(a, s, b, m, v) r = Relu(n)
    z = Conv(r, w2) p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB=1>(f, h) }"""
SHAPE = "--shape", "x=1x3x8x8"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(network_proto(SMALL), path)
    return path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    onnx.save(network_proto(SMALL), folder / "model.onnx")
    run(["compile", str(folder / "model.onnx"), "-o", str(folder / "out"), *SHAPE, "--quiet"])
    return folder / "out"


def run(arguments: list[str]) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def run_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("compile", "prune", "groups", "criteria", "inspect", "verify", "run", "bench", "demo", "doctor"):
        assert name in text
        assert run([name, "--help"]) == 0


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "compiler", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("secateur 0.")


def test_compile_run_and_inspect(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    assert run(["run", str(artifact), "-i", str(tmp_path / "x.npz"), "-o", str(tmp_path / "y.npz")]) == 0
    with np.load(tmp_path / "y.npz") as results:
        assert results["y"].shape == (1, 5)
    capsys.readouterr()
    manifest = run_json(["inspect", str(artifact)], capsys)
    assert {"model.so", "weights.bin", "module.py", "model.onnx"} == set(manifest["files"])


def test_prune_writes_a_model_of_the_ratio_asked_for(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = model.with_name("smaller.onnx")
    result = run_json(["prune", str(model), "-o", str(output), "--ratio", "0.4", "--min-channels", "2"], capsys)
    assert abs(result["prune"][0]["reached"] - 0.4) <= 0.03
    assert result["checks"][0]["difference"] <= 1e-5
    inspected = run_json(["inspect", str(output)], capsys)
    assert inspected["macs"] == result["cost"]["macs"]
    assert inspected["inputs"] == [{"name": "x", "type": "float32[N,3,8,8]"}]


def test_prune_shows_before_and_after(model: Path, capsys: pytest.CaptureFixture[str], golden) -> None:
    assert run(["prune", str(model), "-o", str(model.with_name("smaller.onnx"))]) == 0
    lines = capsys.readouterr().out.replace(str(model.parent), "DIR").splitlines()
    varying = "verified", "file "  # what depends on rounding, and on how the test's own model was written
    golden("\n".join(line.rstrip() for line in lines if not line.startswith(varying)), "cli/prune")


def test_prune_writes_its_table_as_a_page(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, page = model.with_name("smaller.onnx"), model.with_name("smaller.html")
    result = run_json(["prune", str(model), "-o", str(output), "--report", str(page)], capsys)
    layers = result["prune"][0]["layers"]
    assert [layer["name"] for layer in layers] == ["a", "n", "z", "y"]
    assert sum(layer["macs"][1] for layer in layers) == result["cost"]["macs"]
    assert all(f">{layer['name']}</td>" in page.read_text(encoding="utf-8") for layer in layers)


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_table_fits_the_terminal(width: int) -> None:
    context = Context()
    Prune(criterion="obspa", calibration="none")(network(SMALL), context)
    console = Console(width=width, file=io.StringIO())
    console.print(layers(context.reports["prune"][0], width))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["Layers", "layer", *"anzy", "total"]
    titles = ["op", "output error", "lost units of"]
    assert [t for t in titles if t in lines[1]] == {60: [], 100: ["output error"], 160: titles}[width]
    assert all("404 → " in line for line in lines[-1:])


def test_progress_shows_on_a_terminal_only(model: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    command = [sys.executable, "-m", "compiler", "prune", str(model), "--criterion", "obspa", "--calibration", "none"]
    ours, theirs = pty.openpty()
    with subprocess.Popen([*command, "-o", str(tmp_path / "a.onnx")], stdout=subprocess.DEVNULL, stderr=theirs) as done:
        os.close(theirs)
        text = b"".join(iter(lambda: _read(ours), b"")).decode()
    os.close(ours)
    assert done.returncode == 0
    for stage in ("grouping", "scoring", "reconstructing", "checking"):
        assert stage in text
    plain = subprocess.run([*command, "-o", str(tmp_path / "b.onnx")], capture_output=True, text=True, check=True)
    assert plain.stderr == ""


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other side is closed
        return b""


NESTED = """(float[2,8] x, float[8,16] u, float[16,8] d, float[8,12] u1, float[12,8] d1, float[8,5] h)
    => (float[2,5] y) { n = Constant<value_int=2>() z0 = Constant<value_float=0.0>()
    b = Loop(n, , x) <body = l (int64 i, bool c1, float[2,8] s) => (bool c2, float[2,8] s2) {
        l1 = MatMul(s, u) l2 = Relu(l1) a = MatMul(l2, d) s0 = ReduceSum<keepdims=0>(a) go = Greater(s0, z0)
        s2 = If(go) <then_branch = t () => (tb) { t1 = MatMul(a, u1) t2 = Relu(t1) tb = MatMul(t2, d1) },
                     else_branch = e () => (eb) { eb = Neg(a) }>
        c2 = Identity(c1) }>
    y = MatMul(b, h) }"""


def test_groups_inside_bodies_are_shown_and_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "nested.onnx", tmp_path / "pruned.onnx"
    onnx.save(network_proto(NESTED), path)
    assert run(["groups", str(path), "--certify"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "u[1]: 16 hidden units; each carries 16 parameters, 32 MACs" in shown
    assert "u[1] (16 positions; MatMul in b.body)" in shown
    assert "u1[1] (12 positions; MatMul in b.body/s2.then_branch)" in shown
    kinds = {r["operators"][0]["op"]: r["params"] for r in [run_json(["inspect", str(path)], capsys)]}
    assert kinds == {"Loop": 2 * 8 * (16 + 12) + 8 * 5}
    result = run_json(["prune", str(path), "-o", str(out), "--ratio", "0.4", "--metric", "params"], capsys)
    assert [c["difference"] <= 1e-4 for c in result["checks"]] == [True]
    assert {i.name: list(i.dims) for i in onnx.load(out).graph.initializer}["u"][1] < 16


def test_groups_are_shown_and_certified(model: Path, capsys: pytest.CaptureFixture[str], golden) -> None:
    assert run(["groups", str(model), "--certify"]) == 0
    text = capsys.readouterr().out
    assert "certified" in text
    golden("\n".join(line.rstrip() for line in text.splitlines() if "certified" not in line), "cli/groups")
    result = run_json(["groups", str(model), "--certify"], capsys)
    assert [g["units"] for g in result["groups"]] == [8, 12]
    assert result["certificate"] <= 1e-5


def test_verify_tells_models_apart(model: Path, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(model), str(artifact), *SHAPE]) == 0
    pruned = model.with_name("smaller.onnx")
    assert run(["prune", str(model), "-o", str(pruned)]) == 0
    assert run(["verify", str(model), str(pruned)]) == 1


def test_bench_compares_in_one_run(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(artifact), "--against", "onnxruntime", "--seconds", "0.1"]
    assert run_json(arguments, capsys)["ratio"] > 0
    assert run(arguments) == 0
    assert "time over onnxruntime's" in capsys.readouterr().out


def test_recipe_is_the_textual_form(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = model.with_name("recipe.txt")
    recipe.write_text("simplify  # first\n\nprune(ratio=0.3,\nmetric=params)\n".replace("0.3,\n", "0.3,"))
    arguments = ["compile", str(model), "-o", str(model.with_name("out")), *SHAPE, "--recipe", str(recipe)]
    assert run_json(arguments, capsys)["prune"][0]["metric"] == "params"


def test_doctor_finds_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(["doctor"], capsys)["healthy"]


def test_demo_measures_the_bundled_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(["demo", "-o", str(tmp_path / "demo"), "--seconds", "0.2"], capsys)
    dense, pruned, tuned, sparse = result["models"]
    assert dense["accuracy"] >= 0.92
    assert tuned["accuracy"] >= dense["accuracy"] - 0.02
    assert min(pruned["accuracy"], sparse["accuracy"]) >= dense["accuracy"] - 0.03
    assert sparse["artifact_bytes"] <= 0.35 * dense["artifact_bytes"]
    assert abs(pruned["macs"] / dense["macs"] - 0.5) <= 0.01
    assert tuned["macs"] == pruned["macs"]
    assert max(r["difference"] for r in result["models"]) <= 1e-4


def test_demo_says_what_to_try_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "-o", str(tmp_path / "demo"), "--seconds", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "pruned: 50.0% of the multiply-accumulates" in text
    assert "sparse: 80 % of the weights" in text
    assert "Try next:" in text


def test_quiet_is_quiet(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", str(model), "-o", str(model.with_name("q.onnx")), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_print_after_and_timings(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(model.with_name("p.onnx"))
    assert run(["prune", str(model), "-o", output, "--print-after", "simplify", "--timings"]) == 0
    captured = capsys.readouterr()
    assert "// after simplify" in captured.err
    assert "Timings" in captured.out


def no_setup(model: Path) -> None:
    """Nothing to prepare."""


def without_model(model: Path) -> None:
    """An artifact without its model."""
    run(["compile", str(model), "-o", str(model.parent / "small"), *SHAPE, "--no-model", "--quiet"])


def occupy(model: Path) -> None:
    model.with_name("out.onnx").write_text("mine")
    model.with_name("out").mkdir()
    model.with_name("out").joinpath("thesis.txt").write_text("mine too")


def data(**changes: np.ndarray | None) -> Callable[[Path], None]:
    """Calibration data for the model, with other arrays in place of some, or without some."""

    def write(model: Path) -> None:
        right = {"x": np.zeros((6, 3, 8, 8), np.float32), "labels": np.arange(6) % 5}
        arrays = {name: array for name, array in (right | changes).items() if array is not None}
        np.savez(model.with_name("data.npz"), **arrays)

    return write


X = np.zeros((6, 3, 8, 8), np.float32)
SCORED = "prune M -o D/o.onnx --criterion wanda --calibration D/data.npz"
LEARNT = "prune M -o D/o.onnx --criterion taylor --calibration D/data.npz"


# name -> (arguments, what to prepare); M is the model, D its folder
ERRORS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "ratio_zero": ("prune M -o D/o.onnx --ratio 0", no_setup),
    "ratio_one": ("prune M -o D/o.onnx --ratio 1", no_setup),
    "ratio_negative": ("prune M -o D/o.onnx --ratio -0.5", no_setup),
    "ratio_nan": ("prune M -o D/o.onnx --ratio nan", no_setup),
    "ratio_impossible": ("prune M -o D/o.onnx --ratio 0.99 --min-channels 6", no_setup),
    "pattern": ("prune M -o D/o.onnx --ignore w11", no_setup),
    "criterion": ("prune M -o D/o.onnx --criterion l3", no_setup),
    "criterion_close": ("prune M -o D/o.onnx --criterion obspy", no_setup),
    "criterion_without_data": ("prune M -o D/o.onnx --criterion obspa", no_setup),
    "mend_without_data": ("prune M -o D/o.onnx --mend layers", no_setup),
    "calibration_missing": ("prune M -o D/o.onnx --criterion wanda --calibration D/none.npz", no_setup),
    "calibration_no_npz": ("prune M -o D/o.onnx --criterion wanda --calibration M", no_setup),
    "calibration_empty_folder": ("prune M -o D/o.onnx --criterion wanda --calibration D", no_setup),
    "calibration_name": (SCORED, data(x=None, image=X)),
    "calibration_name_extra": (SCORED, data(image=X)),
    "calibration_shape": (SCORED, data(x=X[..., :7])),
    "calibration_axes": (SCORED, data(x=X[0])),
    "calibration_dtype": (SCORED, data(x=X.astype(complex))),
    "calibration_nan": (SCORED, data(x=X * np.nan)),
    "calibration_empty": (SCORED, data(x=X[:0], labels=None)),
    "calibration_lengths": (SCORED, data(labels=np.arange(4))),
    "calibration_samples": (SCORED + " --samples 0", data()),
    "labels_missing": (LEARNT, data(labels=None)),
    "labels_of_noise": ("prune M -o D/o.onnx --criterion taylor --calibration none", no_setup),
    "labels_without_data": ("prune M -o D/o.onnx --criterion taylor", no_setup),
    "labels_name": (LEARNT + " --labels answers", data()),
    "labels_shape": (LEARNT, data(labels=np.zeros((6, 2), int))),
    "labels_dtype": (LEARNT, data(labels=np.zeros(6))),
    "labels_text": (LEARNT, data(labels=np.array(["cat"] * 6))),
    "labels_range": (LEARNT, data(labels=np.arange(6))),
    "labels_mse": (LEARNT + " --loss mse", data()),
    "loss": (LEARNT + " --loss hinge", data()),
    "loss_output": (LEARNT + " --loss-output z", data()),
    "report_folder_missing": ("prune M -o D/o.onnx --report D/no/such/page.html", no_setup),
    "report_is_output": ("prune M -o D/o.onnx --report D/o.onnx", no_setup),
    "metric": ("prune M -o D/o.onnx --metric latency", no_setup),
    "output_exists": ("prune M -o D/out.onnx", occupy),
    "output_directory_exists": ("compile M -o D/out --shape x=1x3x8x8", occupy),
    "output_is_no_artifact": ("compile M -o D/out --shape x=1x3x8x8 --force", occupy),
    "output_is_input": ("prune M -o M --force", no_setup),
    "output_folder_missing": ("compile M -o D/no/such/out --shape x=1x3x8x8", no_setup),
    "unbound_dimension": ("compile M -o D/o", no_setup),
    "shape_syntax": ("compile M -o D/o --shape x:1", no_setup),
    "shape_unknown_input": ("compile M -o D/o --shape y=1x2", no_setup),
    "pass_unknown": ("compile M -o D/o --passes simplfy", no_setup),
    "pass_option_unknown": ("compile M -o D/o --passes prune(ration=0.5)", no_setup),
    "pass_option_value": ("compile M -o D/o --passes prune(ratio=half)", no_setup),
    "pass_syntax": ("compile M -o D/o --passes prune(ratio=0.5", no_setup),
    "target_unknown": ("compile M -o D/o --shape x=1x3x8x8 --target gameboy", no_setup),
    "target_of_another_machine": (
        "compile M -o D/o --shape x=1x3x8x8 --target arm64-linux --package library",
        no_setup,
    ),
    "recipe_missing": ("compile M -o D/o --recipe D/none.txt", no_setup),
    "not_an_artifact": ("inspect D", no_setup),
    "bench_peer": ("bench D --against tensorrt", no_setup),
    "bench_no_model": ("bench D/small --against onnxruntime", without_model),
    "optimize": ("compile M -o D/o --shape x=1x3x8x8 --optimize memory", no_setup),
    "tune_another_machine": ("compile M -o D/o --shape x=1x3x8x8 --target x86-64-v3 --tune 5", no_setup),
    "run_no_artifact": ("run D -i M -o D/y.npz", no_setup),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, model: Path, capsys: pytest.CaptureFixture[str], golden) -> None:
    text, prepare = ERRORS[name]
    prepare(model)
    before = contents(model.parent)
    arguments = [a.replace("M", str(model)) if a == "M" else a.replace("D", str(model.parent)) for a in text.split()]
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    text = captured.err.replace(str(model.parent), "DIR").replace(platform.machine(), "HOST")
    golden(text, f"errors/cli_{name}")
    assert contents(model.parent) == before


def test_too_few_samples_are_warned_of(model: Path, capsys: pytest.CaptureFixture[str], golden) -> None:
    np.savez(model.with_name("data.npz"), x=np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32))
    arguments = ["prune", str(model), "--criterion", "obspa", "--calibration", str(model.with_name("data.npz"))]
    assert run([*arguments, "-o", str(model.with_name("a.onnx"))]) == 0
    golden(capsys.readouterr().err, "cli/too_few_samples")
    assert run([*arguments, "-o", str(model.with_name("b.onnx")), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_criteria_are_listed(capsys: pytest.CaptureFixture[str], golden) -> None:
    assert run(["criteria"]) == 0
    golden("\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()), "cli/criteria")
    assert {c["needs"] for c in run_json(["criteria"], capsys)["criteria"]} == {
        "nothing",
        "samples",
        "samples with labels",
    }


PACKAGE = """
import numpy as np
from passes.importance import Criterion
class Last(Criterion):
    \"\"\"Channels in reverse order.

    More of it.
    \"\"\"
    needs = "samples"
    def shares(self, evidence):
        assert len(evidence.samples) == 6
        for constant in evidence.constants():
            labels = evidence.groups.layouts[constant][0]
            if constant.rank == 4 and labels is not None:
                yield labels.ravel(), -np.arange(labels.size, dtype=float)
wrong = 7
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution of somebody else's, installed for one test."""
    home = tmp_path / "site"
    (home / "their_package-1.0.dist-info").mkdir(parents=True)
    (home / "their_package.py").write_text(PACKAGE)
    info = home / "their_package-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    entries = "their_last = their_package:Last\ntheir_wrong = their_package:wrong\ntheir_lost = their_package:lost\n"
    (info / "entry_points.txt").write_text(f"[secateur.criteria]\n{entries}")
    monkeypatch.syspath_prepend(str(home))
    registry = sys.modules["passes.importance.criterion"]
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.delitem(sys.modules, "their_package", raising=False)


@pytest.mark.usefixtures("package")
def test_a_criterion_of_another_package_prunes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {c["name"]: c for c in run_json(["criteria"], capsys)["criteria"]}
    assert listed["their_last"] == {
        "name": "their_last",
        "needs": "samples",
        "about": "Channels in reverse order.",
        "weights": False,
        "usable": True,
    }
    assert not listed["their_wrong"]["usable"] and not listed["their_lost"]["usable"]
    data()(model)
    arguments = [
        "prune",
        str(model),
        "-o",
        str(model.with_name("o.onnx")),
        "--calibration",
        str(model.with_name("data.npz")),
    ]
    assert run([*arguments, "--criterion", "their_last", "--normalize", "none", "--only", "w1", "--ratio", "0.3"]) == 0
    before, after = (onnx.load(p).graph.initializer for p in (model, model.with_name("o.onnx")))
    kept, whole = (next(onnx.numpy_helper.to_array(i) for i in g if i.name == "w1") for g in (after, before))
    assert 0 < len(kept) < len(whole)
    np.testing.assert_array_equal(kept, whole[: len(kept)])


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_wrong", "criterion 'their_wrong' is no Criterion"),
        ("their_lost", "cannot be loaded: AttributeError"),
        ("their_las", "did you mean 'their_last'"),
    ],
)
def test_what_is_wrong_with_another_package(
    name: str, message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prune", str(model), "-o", str(model.with_name("o.onnx")), "--criterion", name]) == 2
    error = capsys.readouterr().err
    assert "E_CRITERION" in error and message in error
    assert name == "their_las" or "repair or remove their-package" in error
    assert not model.with_name("o.onnx").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def test_errors_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", str(model), "-o", str(model), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E_OUTPUT_IS_INPUT"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = model.with_name("locked")
    locked.mkdir(mode=0o500)
    assert run(["prune", str(model), "-o", str(locked / "o.onnx")]) == 2
    assert "E_OUTPUT" in capsys.readouterr().err


def test_output_on_a_full_or_unwritable_device(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", str(model), "-o", "/proc/smaller.onnx"]) == 2
    assert "E_OUTPUT" in capsys.readouterr().err


def test_no_linker(model: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    hook = "import sys; sys.modules['ziglang'] = None\n"
    (hidden / "sitecustomize.py").write_text(hook)
    environment = {**os.environ, "PYTHONPATH": f"{hidden}{os.pathsep}{Path(__file__).parents[2]}", "PATH": ""}
    command = [sys.executable, "-m", "compiler", "compile", str(model), "-o", str(tmp_path / "out"), *SHAPE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "E_NO_LINKER" in done.stderr
    assert "pip install ziglang" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hidden", "model.onnx"]


def test_interrupted_compile_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compiler.driver

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compiler.driver, "verify_artifact", interrupt)
    before = contents(model.parent)
    assert run(["compile", str(model), "-o", str(model.with_name("out")), *SHAPE]) != 0
    assert contents(model.parent) == before


def test_a_failed_check_exits_with_1(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import compiler.driver

    monkeypatch.setattr(compiler.driver, "relative_difference", lambda a, b: 0.5)
    before = contents(model.parent)
    assert run(["compile", str(model), "-o", str(model.with_name("out")), *SHAPE]) == 1
    assert "E_VERIFY" in capsys.readouterr().err
    assert contents(model.parent) == before


def test_an_artifact_can_leave_its_model_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compile_ = ["compile", str(model), *SHAPE, "-o"]
    whole = run_json([*compile_, str(tmp_path / "whole")], capsys)
    small = run_json([*compile_, str(tmp_path / "small"), "--no-model"], capsys)
    assert not any((tmp_path / "small" / name).exists() for name in ("model.onnx", "module.py"))
    left_out = sum((tmp_path / "whole" / name).stat().st_size for name in ("model.onnx", "module.py"))
    assert small["artifact_bytes"] == whole["artifact_bytes"] - left_out
    assert small["checks"], "verified all the same"


def test_inspect_tells_how_weights_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wide.onnx"
    text = """(float[1,64,14,14] x, float[64,64,1,1] w, float[64,64,1,1] z) => (float[1,64,14,14] y)
        { a = Conv(x, w) y = Conv(a, z) }"""
    proto = network_proto(text)
    weights = proto.graph.initializer[1]
    array = onnx.numpy_helper.to_array(weights).copy()
    array[np.random.default_rng(0).random(array.shape) > 0.1] = 0
    weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
    onnx.save(proto, path)
    assert run(["compile", str(path), "-o", str(tmp_path / "out"), "--passes", "", "--quiet"]) == 0
    layers = run_json(["inspect", str(tmp_path / "out")], capsys)["layers"]
    assert [layer["format"] for layer in layers] == ["dense", "csr"]
    assert layers[1]["nonzeros"] == np.count_nonzero(array) and layers[1]["cycles"] < layers[1]["dense_cycles"]
    run(["inspect", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "csr" in shown and "over dense" in shown
