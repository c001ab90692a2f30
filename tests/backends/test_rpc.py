"""Devices behind TVM's RPC tracker, on loopback: artifacts run and are timed there, tuning measures there; no hang."""

from __future__ import annotations

import gc
import importlib.util
import json
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from backends import build, native, tuning
from backends.clibrary import CLibrary
from backends.remote import RemoteExecutable, model_libraries
from backends.rpc import Device
from backends.runtime.loader import read_manifest
from backends.target import Target
from compiler.cli import main
from compiler.errors import SecateurError
from compiler.frontends.onnx import load_onnx
from tests.backends.networks import assert_same, reference, small_cnn
from tests.backends.test_sparse import network
from tests.backends.test_tuning import requests

NATIVE = Target.native()
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tornado") is None, reason="tornado is not installed: TVM's RPC tracker needs it"
    ),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the packages that are sent are for x86-64"),
]


@pytest.fixture(scope="module")
def tracker() -> Iterator[str]:
    """The address of a tracker with two devices."""
    command = [sys.executable, str(Path(__file__).with_name("rpc_devices.py"))]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    address = f"127.0.0.1:{process.stdout.readline().strip()}"
    yield address
    process.stdin.close()
    process.wait(20)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model, for Python here and as C libraries."""
    graph, folder = load_onnx(small_cnn()), tmp_path_factory.mktemp("rpc")
    build(graph, folder / "library")
    build(graph, folder / "c", target="x86-64-v3", packager=CLibrary("net"))
    build(graph, folder / "embedded", target="x86-64-v3", packager=CLibrary(embed_weights=True))
    build(graph, folder / "arm", target="arm64-android")
    return {name: folder / name for name in ("library", "c", "embedded", "arm")}


def device(tracker: str, key: str = "here", timeout: float = 20.0) -> Device:
    return Device.parse(tracker, key, timeout)


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.mark.parametrize("kind", ["library", "c", "embedded"])
def test_a_device_computes_what_onnx_runtime_computes(tracker: str, artifacts: dict[str, Path], kind: str) -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with RemoteExecutable(artifacts[kind], device(tracker), threads=2) as executable:
        assert_same(reference(small_cnn(), {"x": x}), executable.run({"x": x}))
        seconds = executable.time({"x": x}, 5)
    assert len(seconds) == 5 and all(0 < s < 5 for s in seconds)


def test_bench_tells_the_devices_time(
    tracker: str, artifacts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(artifacts["library"]), "--rpc", tracker, "--key", "here", "--seconds", "0.2"]
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ours"]["calls"] >= 3 and told["ours"]["median"] > 0 and told["difference"] < 1e-4
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "on here, with ONNX Runtime on model.onnx here: " in text and "on here, 1 thread(s)" in text


def test_tuning_measures_there_and_keeps_what_it_measured(tracker: str, tmp_path: Path) -> None:
    asked = requests()
    preferred = tuning.tune(asked, NATIVE, 60, folder=tmp_path, device=device(tracker))
    assert set(preferred) == set(asked)
    assert len(list(tmp_path.glob("*.json"))) == len(asked)
    gone = Device("127.0.0.1", 1, "here", 1.0)
    assert tuning.tune(requests(), NATIVE, 60, folder=tmp_path, device=gone) == preferred, "known under this key"
    with pytest.raises(SecateurError, match="E_RPC_TRACKER"):
        tuning.tune(requests(), NATIVE, 60, folder=tmp_path, device=Device("127.0.0.1", 1, "other", 1.0))


def test_another_target_is_tuned_through_its_device(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "cache_folder", lambda name: str(tmp_path / name))
    model, x = network()
    artifact = build(load_onnx(model), tmp_path / "out", target="x86-64-v3", tune=60, device=device(tracker))
    assert "measurement" in {layer.get("chosen_by") for layer in artifact.manifest["layers"]}
    with RemoteExecutable(artifact.path, device(tracker)) as executable:
        assert_same(reference(model, {"x": x}), executable.run({"x": x}))


def test_libraries_for_arm_are_linked(artifacts: dict[str, Path]) -> None:
    """Built, not run: no server of TVM runs under an emulator here."""
    (code,) = model_libraries(artifacts["arm"], read_manifest(artifacts["arm"])).values()
    assert code[:4] == b"\x7fELF" and code[18] == 183, "AArch64"
    assert all(symbol in code for symbol in (b"__tvm_ffi_secateur_prepare", b"__tvm_ffi_secateur_time"))


def silent() -> tuple[socket.socket, str]:
    """A port that takes connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"127.0.0.1:{listener.getsockname()[1]}"


def no_tracker(tracker: str, artifacts: dict[str, Path]) -> list[str]:
    return ["bench", str(artifacts["c"]), "--rpc", "127.0.0.1:9", "--key", "here"]


def no_answer(tracker: str, artifacts: dict[str, Path]) -> list[str]:
    listener, address = silent()
    no_answer.held = listener  # type: ignore[attr-defined]
    return ["bench", str(artifacts["c"]), "--rpc", address, "--key", "here", "--rpc-timeout", "1"]


def no_device(tracker: str, artifacts: dict[str, Path]) -> list[str]:
    return ["bench", str(artifacts["c"]), "--rpc", tracker, "--key", "pixel"]


def other_machine(tracker: str, artifacts: dict[str, Path]) -> list[str]:
    return ["bench", str(artifacts["arm"]), "--rpc", tracker, "--key", "here"]


def no_address(tracker: str, artifacts: dict[str, Path]) -> list[str]:
    return ["bench", str(artifacts["c"]), "--rpc", "localhost", "--key", "here"]


def no_key(tracker: str, artifacts: dict[str, Path]) -> list[str]:
    return ["bench", str(artifacts["c"]), "--rpc", tracker]


def with_peer(tracker: str, artifacts: dict[str, Path]) -> list[str]:
    return ["bench", str(artifacts["c"]), "--rpc", tracker, "--key", "here", "--against", "onnxruntime"]


def without_tune(tracker: str, artifacts: dict[str, Path]) -> list[str]:
    model = artifacts["c"] / "model.onnx"
    return ["compile", str(model), "-o", str(artifacts["c"].parent / "o"), "--rpc", tracker, "--key", "here"]


def lost_tracker(tracker: str, artifacts: dict[str, Path]) -> list[str]:
    return [*without_tune(no_tracker("", artifacts)[3], artifacts), "--tune", "5"]


ERRORS = (no_tracker, no_answer, no_device, other_machine, no_address, no_key, with_peer, without_tune, lost_tracker)


@pytest.mark.parametrize("make", ERRORS, ids=lambda make: make.__name__)
def test_errors(
    make: Callable[[str, dict[str, Path]], list[str]],
    tracker: str,
    artifacts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    golden: Callable[[str, str], None],
) -> None:
    monkeypatch.setattr(native, "cache_folder", lambda name: str(tmp_path / name))
    start = time.monotonic()
    assert run(make(tracker, artifacts)) == 2
    assert time.monotonic() - start < 30
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    text = captured.err.replace(str(artifacts["c"].parent), "DIR")
    golden(re.sub(r"127\.0\.0\.1:\d{2,}", "HOST:PORT", text), f"errors/rpc_{make.__name__}")


def test_a_device_in_use_is_waited_for_no_longer_than_allowed(tracker: str, artifacts: dict[str, Path]) -> None:
    with RemoteExecutable(artifacts["c"], device(tracker, "slow")):
        start = time.monotonic()
        with pytest.raises(SecateurError, match="became free within 1 seconds") as caught:
            device(tracker, "slow", 1.0).connect(60)
        assert caught.value.code == "E_RPC_TIMEOUT" and time.monotonic() - start < 10


def test_a_device_that_stops_answering_is_given_up(tracker: str, artifacts: dict[str, Path]) -> None:
    """More runs than the time allowed: the call is left, and so is all that lives on the device."""
    x = np.zeros((1, 3, 32, 32), np.float32)
    with RemoteExecutable(artifacts["c"], device(tracker, "slow", 1.0)) as executable:
        start = time.monotonic()
        with pytest.raises(SecateurError) as caught:
            executable.time({"x": x}, 1 << 22)
        assert caught.value.code == "E_RPC_TIMEOUT" and time.monotonic() - start < 10
        with pytest.raises(SecateurError, match="closed"):
            executable.run({"x": x})
    del executable, caught
    gc.collect()
    assert time.monotonic() - start < 10, "releasing tensors there waits for nothing"


def test_altered_weights_are_refused_by_the_device(tracker: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    manifest = read_manifest(artifacts["c"])
    with device(tracker).connect(60) as session:
        function = session.load(model_libraries(artifacts["c"], manifest), "x86-64-v3")
        weights = np.fromfile(artifacts["c"] / "weights.bin", np.uint8)
        weights[-1] ^= 1
        assert function("secateur_prepare")(1, session.tensor(weights)) == 0
        text = session.tensor(np.zeros(256, np.uint8))
        function("secateur_message")(text)
        message = session.fetch(text, np.dtype(np.uint8), (256,)).tobytes()
        assert message.startswith(b"the weights were altered: their checksum is wrong\0")
        assert function("secateur_prepare")(1) == -1 and function("secateur_time")(1, 2) == -1


def test_sessions_leave_no_thread_behind(tracker: str, artifacts: dict[str, Path]) -> None:
    before = threading.active_count()
    with RemoteExecutable(artifacts["library"], device(tracker)) as executable:
        executable.time({"x": np.zeros((1, 3, 32, 32), np.float32)}, 1)
    assert threading.active_count() <= before
