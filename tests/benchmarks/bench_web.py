"""`python -m tests.benchmarks.bench_web [--models …] [--variants …]`: WebAssembly beside ONNX Runtime Web.

Each case is compiled, run in Node and (where it is installed) in headless Chromium, compared with ONNX Runtime, and
timed in Node in turns with ONNX Runtime Web and TensorFlow.js. What was found is kept in build/bench-web; `--write`
puts all of it into docs/web.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from backends import build
from backends.runtime.node import node
from backends.wasm import WebPackage
from compiler import load
from compiler.exporters import export
from compiler.ir import Graph
from compiler.ir.execute import execute, random_inputs
from passes import Context, Pipeline
from tests.benchmarks import tensorflow_js
from tests.benchmarks.models import NETWORKS
from tests.benchmarks.page import machine
from tests.benchmarks.variants import VARIANTS
from tests.pages import WEB

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "bench-web"
SCRIPT = Path(__file__).parent / "web" / "bench.mjs"
BUNDLED = "bundled (Fashion-MNIST)"
MODELS = {BUNDLED: None, **{name: NETWORKS[name] for name in ("MobileNetV1", "MobileNetV2", "ResNet-18")}}
HEADS = {"0": "dense", "half": "half the MACs", "90": "90 %"}
GOALS = {("MobileNetV1", "0"): 1.5, ("MobileNetV2", "0"): 1.5, ("ResNet-18", "0"): 1.5}
GOALS |= {("MobileNetV1", "90"): 5.0, ("MobileNetV2", "90"): 3.5}


@dataclass(frozen=True)
class Case:
    """A network and what was done to it."""

    model: str
    variant: str

    @property
    def folder(self) -> Path:
        """Where its files are made."""
        return WORK / f"{self.model.split()[0].lower()}-{self.variant}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write."""
    options = _parser().parse_args(arguments)
    cases = [Case(model, variant) for model in options.models for variant in options.variants]
    for case in cases:
        if not options.write_only:
            print(
                line(case, measure(case, options.seconds, prepared=options.time_only, only=options.prepare)), flush=True
            )
    if options.write or options.write_only:
        write([Case(model, variant) for model in MODELS for variant in HEADS])


def measure(case: Case, seconds: float, *, prepared: bool = False, only: bool = False) -> dict[str, Any] | None:
    """Compile and compare a case, unless it is `prepared`; time it, unless it is `only` prepared."""
    if not prepared:
        prepare(case)
    facts = json.loads((case.folder / "facts.json").read_text())
    if only:
        return None
    flags = ["--experimental-wasm-relaxed-simd"] if _node_major() < 21 else []
    command = [str(node()), *flags, str(SCRIPT), str(WORK), str(case.folder), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-3000:]}")
    facts |= json.loads(done.stdout.splitlines()[-1])
    facts["machine"] = machine()
    (case.folder / "facts.json").write_text(json.dumps(facts))
    return facts


def prepare(case: Case) -> None:
    """The package, the ONNX files, an input and the expected output; compared in Chromium where there is one."""
    shutil.rmtree(case.folder, ignore_errors=True)
    case.folder.mkdir(parents=True)
    dense = source(case.model)
    graph = VARIANTS[case.variant].run(dense, Context())
    export(dense, case.folder / "dense.onnx")
    tensorflow_js.export(dense, case.folder)
    if case.variant != "0":
        export(graph, case.folder / "variant.onnx")
    data = random_inputs(graph, 1)
    expected = execute(graph, data)
    (case.folder / "input.bin").write_bytes(b"".join(a.tobytes() for a in data.values()))
    (case.folder / "output.bin").write_bytes(b"".join(a.tobytes() for a in expected.values()))
    packager = WebPackage(threads=True)
    artifact = build(graph, case.folder / "package", target="wasm", keep_model=False, packager=packager)
    facts = {
        "code": artifact.manifest["code_bytes"],
        "weights": artifact.manifest["weights_bytes"],
        "macs": artifact.manifest["macs"],
        "chromium": in_chromium(artifact.path, data, expected),
    }
    (case.folder / "facts.json").write_text(json.dumps(facts))


def source(model: str) -> Graph:
    """A network, simplified."""
    network = MODELS[model]
    if network is None:
        path = ROOT / "examples" / "fashion_mnist" / "fashion_cnn.onnx"
        graph = load(path, shapes={"input": (1, 1, 28, 28)})
    else:
        graph = load(network.make())
    return Pipeline("simplify").run(graph, Context())


_IN_PAGE = """
const { load } = await import(args[0]);
const bytes = Uint8Array.from(atob(args[1]), (c) => c.charCodeAt(0));
const times = {}, results = {};
for (const variant of ["simd", "relaxed"]) {
  const model = await load({ variant, threads: 1 });
  const feeds = { [model.inputs[0].name]: new Float32Array(bytes.buffer) };
  let out;
  const list = [];
  for (let i = 0; i < 30; ++i) {
    const start = performance.now();
    out = await model.run(feeds);
    list.push(performance.now() - start);
  }
  results[variant] = Array.from(out[model.outputs[0].name]);
  times[variant] = list.sort((a, b) => a - b)[15];
}
return { results, times };
"""


def in_chromium(package: Path, data: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """The relative difference of each code in headless Chromium, and its median milliseconds."""
    import base64

    from tests.web.browser import site
    from tests.web.chromium import open_chromium

    if shutil.which("chromedriver") is None:
        return None
    (package / "index.html").write_text("<!doctype html><title>bench</title>")
    try:
        with site(package) as url, open_chromium() as page:
            page.open(f"{url}/")
            raw = base64.b64encode(next(iter(data.values())).tobytes()).decode()
            found = page.run(_IN_PAGE, f"{url}/index.js", raw)
    finally:
        (package / "index.html").unlink()
    wanted = next(iter(expected.values())).reshape(-1).astype(np.float64)
    differences = {
        k: float(np.linalg.norm(np.array(v) - wanted) / np.linalg.norm(wanted)) for k, v in found["results"].items()
    }
    return {"differences": differences, "milliseconds": found["times"]}


def line(case: Case, facts: dict[str, Any] | None) -> str:
    """What a terminal shows of a case."""
    if facts is None:
        return f"{case.model}, {HEADS[case.variant]}: prepared"
    times = {side: median(values) for side, values in facts["times"].items()}
    peers = ", ".join(f"{side} {ms:.2f} ms" for side, ms in times.items())
    gains = " / ".join(f"{times['ort dense'] / times[v]:.2f}" for v in ("simd", "relaxed"))
    worst = max(d for side, d in differences(facts).items())
    return f"{case.model}, {HEADS[case.variant]}: {peers}; gain {gains}; code {facts['code'] / 1e3:.0f} kB; {worst:.1e}"


def differences(facts: dict[str, Any]) -> dict[str, float]:
    """Relative differences from ONNX Runtime, where the same network was run."""
    own = {
        f"Node, {v}": facts["differences"][v] for v in ("simd", "relaxed", "two threads") if v in facts["differences"]
    }
    chromium = facts.get("chromium") or {"differences": {}}
    return own | {f"Chromium, {v}": d for v, d in chromium["differences"].items()}


def write(cases: list[Case]) -> None:
    """The tables in docs/web.md."""
    found = {c: json.loads(f.read_text()) for c in cases if (f := c.folder / "facts.json").is_file()}
    found = {case: facts for case, facts in found.items() if "times" in facts}
    if not found:
        raise SystemExit("nothing was measured yet")
    WEB.write("What was measured", page(found))


def page(found: dict[Case, dict[str, Any]]) -> str:
    """The section's text."""
    first = next(iter(found.values()))
    heads = ("network", "", "SIMD", "relaxed SIMD", "ONNX Runtime Web, dense", "the same file", "TensorFlow.js, dense")
    heads += ("gain", "gain, relaxed", "goal", "over TensorFlow.js", "code", "difference")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for case, facts in found.items():
        times = {side: median(values) for side, values in facts["times"].items()}
        goal = GOALS.get((case.model, case.variant))
        same = f"{times['ort same']:.2f} ms" if "ort same" in times else ""
        gains = [times["ort dense"] / times[v] for v in ("simd", "relaxed")]
        worst = max(differences(facts).values())
        rows.append(
            f"| {case.model} | {HEADS[case.variant]} | {times['simd']:.2f} ms | {times['relaxed']:.2f} ms | "
            f"{times['ort dense']:.2f} ms | {same} | {times['tf dense']:.2f} ms | {gains[0]:.2f} | {gains[1]:.2f} | "
            f"{'' if goal is None else f'{goal:g}'} | {times['tf dense'] / times['simd']:.2f} | "
            f"{facts['code'] / 1e3:.0f} kB | {worst:.0e} |"
        )
    checked = "Node and Chromium" if all(f.get("chromium") for f in found.values()) else "Node"
    return _METHOD.format(
        machine=first["machine"],
        node=first["node"],
        v8=first["v8"],
        ort=_version("onnxruntime-web"),
        tf=_version("@tensorflow/tfjs-backend-wasm"),
        checked=checked,
    ) + "\n".join(rows + on_two_threads(found))


def on_two_threads(found: dict[Case, dict[str, Any]]) -> list[str]:
    """The table of the cases that were measured on two threads, too; lines."""
    both = {case: facts["times"] for case, facts in found.items() if "two threads" in facts["times"]}
    rows = [
        f"| {case.model} | {HEADS[case.variant]} | {median(times['relaxed']):.2f} ms | "
        f"{median(times['two threads']):.2f} ms | {median(times['relaxed']) / median(times['two threads']):.2f} | "
        f"{min(times['relaxed']) / min(times['two threads']):.2f} |"
        for case, times in both.items()
    ]
    heads = ("network", "", "one thread", "two threads", "gain", "gain, fastest calls")
    return ["", _TWO_THREADS, f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows] if rows else []


def _version(package: str) -> str:
    """Of a package from npm."""
    return str(json.loads((WORK / "node_modules" / package / "package.json").read_text())["version"])


_METHOD = """\
`make bench-wasm` compiles the networks (random weights, as in docs/performance.md), compares their outputs with ONNX
Runtime's, times them in Node and writes this section. `MODELS=MobileNetV1,…`, `VARIANTS=0,90,…` and `SECONDS=…`
restrict it.

- Machine: {machine}. Node {node} (V8 {v8}), started with `--experimental-wasm-relaxed-simd`, which that version needs
  for relaxed SIMD; later ones and Chromium have it without a flag.
- One process, one thread, batch 1, float32, in turns; times are medians of calls of `run`, copies in and out included.
- ONNX Runtime Web {ort} from npm: its `wasm` provider with `numThreads = 1` and all optimisations. Its published
  WebAssembly has SIMD without relaxed SIMD, so the fair comparison is our SIMD column; "gain" is its time on the dense
  network over ours. "The same file" is its time on the pruned one: it makes nothing of single zeros.
- TensorFlow.js {tf} from npm: its WebAssembly backend (XNNPACK, SIMD, one thread) on the same dense weights, built of
  its core operators with bias and activation fused and batch normalization folded, images in its own layout; its
  outputs are compared with ONNX Runtime Web's before it is timed. "Over TensorFlow.js": its time over our SIMD code's.
- 90 %: magnitude pruning of single weights, each layer alike, the first and depthwise layers spared. Half the MACs:
  structured pruning.
- Code: bytes of the larger .wasm without weights. Difference: the largest relative one from ONNX Runtime, of both codes
  in {checked}.

"""


_TWO_THREADS = """\
On two threads (`--threads`), with relaxed SIMD; the machine has two cores, which whatever else runs on it shares:
"""


def _node_major() -> int:
    done = subprocess.run([str(node()), "-p", "process.versions.node"], capture_output=True, text=True, check=True)
    return int(done.stdout.split(".")[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_web", description=__doc__)
    parser.add_argument("--models", type=_names(list(MODELS)), default=list(MODELS))
    parser.add_argument("--variants", type=_names(list(HEADS)), default=list(HEADS))
    parser.add_argument("--seconds", type=float, default=6.0, help="for each case")
    parser.add_argument("--prepare", action="store_true", help="compile and compare, but do not time")
    parser.add_argument("--time-only", action="store_true", help="time what was prepared before")
    parser.add_argument("--write", action="store_true", help="write docs/web.md afterwards")
    parser.add_argument("--write-only", action="store_true", help="measure nothing, write what there is")
    return parser


def _names(known: list[str]):  # type: ignore[no-untyped-def]
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()] or known
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    main(sys.argv[1:])
