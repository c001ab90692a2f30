"""What the web has of its own: the options of `secateur compile --target wasm`, and `secateur serve`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from compiler.cli.shared import Quiet, Screen
from compiler.ir import SecateurError

if TYPE_CHECKING:
    from backends.packaging import Packager
    from backends.webpage import Page

Demo = Annotated[
    bool,
    typer.Option(
        "--demo", help="wasm: write a web page too that runs the model, beside the dense one where passes shrink it."
    ),
]
Threads = Annotated[
    bool,
    typer.Option(
        "--threads",
        help="wasm: add code for several threads, used in Node and where pages are isolated; see docs/web.md.",
    ),
]
Bench = Annotated[
    bool,
    typer.Option(
        "--bench",
        help="wasm: add bench/, which times kernels in an engine or a browser and writes what --profile reads.",
    ),
]
ClassNames = Annotated[
    Path | None, typer.Option("--class-names", help="--demo: a text file with the name of each class, one a line.")
]
PageSamples = Annotated[
    Path | None,
    typer.Option(
        "--samples", help="--demo: an .npz with inputs to choose from, one array for each, and labels if any."
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        "--normalize", metavar="MEAN/STD", help="--demo: of pictures in [0, 1], as 0.5/0.25 or three numbers each."
    ),
]


def packager(
    target: str,
    embed_weights: bool,
    threads: bool,
    bench: bool,
    demo: bool,
    class_names: Path | None,
    samples: Path | None,
    normalize: str | None,
) -> Packager | None:
    """What the options ask for; None where they leave it to the target.

    Raises SecateurError E_OPTION_VALUE for options without the one that they belong to, E_FILE.
    """
    given = {"--class-names": class_names, "--samples": samples, "--normalize": normalize}
    orphan = next((name for name, value in given.items() if value is not None and not demo), None)
    if orphan is not None:
        raise SecateurError(
            "E_OPTION_VALUE", f"{orphan} is for the page of --demo", hint=f"add --demo, or leave {orphan} out"
        )
    chosen = {"--demo": demo, "--threads": threads, "--bench": bench, "--embed-weights": embed_weights}
    option = next((name for name, value in chosen.items() if value), None)
    if option is None:
        return None
    if target != "wasm":
        others = " and C libraries" if option == "--embed-weights" else ""
        raise SecateurError("E_OPTION_VALUE", f"{option} is for WebAssembly{others}", hint="add --target wasm")
    from backends.wasm import WebPackage

    page = _page(class_names, samples, normalize) if demo else None
    return WebPackage(embed_weights=embed_weights, threads=threads, bench=bench, page=page)


def _page(class_names: Path | None, samples: Path | None, normalize: str | None) -> Page:
    from backends.webpage import Page

    labels = tuple(_lines(class_names)) if class_names is not None else ()
    arrays = _arrays(samples) if samples is not None else {}
    classes = arrays.pop("labels", None)
    names = () if classes is None else tuple(_sample_name(i, c, labels) for i, c in enumerate(classes.reshape(-1)))
    mean, std = _normalization(normalize) if normalize is not None else ((0.0,), (1.0,))
    return Page(labels, arrays, names, mean, std)


def _sample_name(index: int, label: object, labels: tuple[str, ...]) -> str:
    number = int(label) if isinstance(label, np.integer) else -1
    return f"{index + 1}: {labels[number] if 0 <= number < len(labels) else label}"


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SecateurError(
            "E_FILE", "the class names cannot be read", where=f"{path}: {error}", hint="give a text file, a name a line"
        ) from None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise SecateurError(
            "E_FILE",
            "the samples are no .npz file",
            where=f"{path}: {str(error)[:60]}",
            hint="write it with numpy.savez",
        ) from None


def _normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
        if len(mean) not in (1, 3) or len(std) not in (1, 3) or not all(np.isfinite(mean)) or min(std) <= 0:
            raise ValueError
    except ValueError:
        raise SecateurError(
            "E_OPTION_VALUE",
            f"--normalize {text!r} is not MEAN/STD",
            hint="such as 0.485,0.456,0.406/0.229,0.224,0.225",
        ) from None
    return mean, std


def serve_command(
    folder: Annotated[Path, typer.Argument(help="A folder with a page, as --demo writes it.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any free one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="The address to listen on; others than this one let the network in.")
    ] = "127.0.0.1",
    quiet: Quiet = False,
) -> None:
    """Serve a folder to browsers: right types, and the headers that isolate pages. Ends with Ctrl-C."""
    from backends.runtime.serving import server

    with server(folder, host, port) as running:
        shown = f"[{host}]" if ":" in host else host
        Screen(False, quiet).print(f"http://{shown}:{running.server_port}/ serves {folder}; Ctrl-C ends it")
        with suppress(KeyboardInterrupt):
            running.serve_forever()
