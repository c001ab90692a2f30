"""A static page that runs a WebAssembly package: its inputs and outputs, its latency, the dense model beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backends.lowering.program import Buffer, Program
from compiler.errors import SecateurError
from compiler.ir.graph import Graph

PAGE = Path(__file__).parent / "runtime" / "web" / "page"
_SCRIPTS = ("page.js", "show.js", "worker.js", "page.css", "icon.svg")
_MOST_SAMPLES = 24
_MOST_CLASSES = 100_000
_SMALLEST_PICTURE = 8


@dataclass(frozen=True)
class Page:
    """What the page shows beside the numbers.

    labels: names of the classes, in order. samples: inputs to choose from, by name, the first axis counting them;
    sample_names: what they are called. mean, std: of each channel, what pictures in [0, 1] are normalised with. dense:
    the model as it was, to run side by side. milliseconds: how long each model is timed.
    """

    labels: tuple[str, ...] = ()
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    sample_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    dense: Graph | None = None
    milliseconds: int = 1000


@dataclass(frozen=True)
class Side:
    """A model on the page. base: the URL of its package, from the page's scripts."""

    name: str
    title: str
    base: str
    macs: int
    weights: int
    code: int


def page_files(page: Page, program: Program, sides: list[Side], threads: bool = False) -> dict[str, bytes]:
    """index.html and what lies beside it in `page/`. threads: the packages have code for several."""
    title = html.escape(program.name or "model")
    config = {
        "models": [vars(side) for side in sides],
        "outputs": [_tensor(b) | {"kind": output_kind(b)} for b in program.outputs],
        "picture": _picture(program.inputs),
        "labels": list(page.labels),
        "mean": _channels(page.mean),
        "std": _channels(page.std),
        "milliseconds": page.milliseconds,
        "threads": threads,
        "samples": None,
    }
    files = {f"page/{name}": (PAGE / name).read_bytes() for name in _SCRIPTS}
    if page.samples:
        data, config["samples"] = pack_samples(page, program.inputs)
        files["page/samples.bin"] = data
    script = f"/* Written by Secateur. */\nexport const config = {json.dumps(config, indent=1)};\n"
    text = (PAGE / "index.html").read_text().replace("{title}", title)
    return files | {"page/config.js": script.encode(), "index.html": text.encode()}


def output_kind(buffer: Buffer) -> str:
    """How an output is shown: "classes", "picture", or "table"."""
    floats = np.dtype(buffer.dtype).kind == "f" and buffer.dtype != np.float16
    extents = [extent for extent in buffer.shape if extent != 1]
    if floats and len(extents) == 1 and 2 <= extents[0] <= _MOST_CLASSES:
        return "classes"
    return "picture" if floats and _is_picture(buffer) else "table"


def _is_picture(buffer: Buffer) -> bool:
    shape = buffer.shape
    return len(shape) == 4 and shape[0] == 1 and shape[1] in (1, 3) and min(shape[2:]) >= _SMALLEST_PICTURE


def _picture(inputs: list[Buffer]) -> dict[str, Any] | None:
    """The input that a picture can be put into, where there is one input and it is one."""
    if len(inputs) != 1 or inputs[0].dtype != np.float32 or not _is_picture(inputs[0]):
        return None
    _, channels, height, width = inputs[0].shape
    return {"name": inputs[0].name, "channels": channels, "height": height, "width": width}


def _channels(values: tuple[float, ...]) -> list[float]:
    """Three numbers: one may stand for all."""
    return list(values) * 3 if len(values) == 1 else list(values)


def _tensor(buffer: Buffer) -> dict[str, Any]:
    return {"name": buffer.name, "dtype": str(buffer.dtype), "shape": list(buffer.shape)}


def pack_samples(page: Page, inputs: list[Buffer]) -> tuple[bytes, dict[str, Any]]:
    """The samples' bytes, and where each input's lie.

    Raises SecateurError E_SAMPLES for samples of other names, types or shapes than the inputs.
    """
    count = min(_MOST_SAMPLES, min((len(a) for a in page.samples.values()), default=0))
    blob, places = b"", {}
    for buffer in inputs:
        array = page.samples.get(buffer.name)
        if array is None:
            raise SecateurError(
                "E_SAMPLES", f"the samples hold no input {buffer.name!r}", hint=f"they hold: {', '.join(page.samples)}"
            )
        fits = array.dtype == buffer.dtype and array[:1].size == buffer.size and count > 0
        if not fits:
            wanted = f"{buffer.dtype}[n, {', '.join(map(str, buffer.shape[1:]))}]"
            raise SecateurError(
                "E_SAMPLES",
                f"the samples of input {buffer.name!r} are {array.dtype}{list(array.shape)}, not {wanted}",
                hint="one array for each input, its first axis counting samples",
            )
        places[buffer.name] = {"at": len(blob), "bytes": buffer.nbytes}
        data = np.ascontiguousarray(array[:count]).tobytes()
        blob += data + bytes(-len(data) % 8)
    names = [*page.sample_names[:count], *(str(i + 1) for i in range(len(page.sample_names), count))]
    return blob, {"names": names, "tensors": places}
