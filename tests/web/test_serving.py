"""The static server: right types, isolating headers, one folder and nothing else, loopback unless told."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from backends.runtime.serving import server
from compiler.cli import main
from tests.web.browser import site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("not yours")
    inside = tmp_path / "site"
    (inside / "empty").mkdir(parents=True)
    for name in ("index.html", "a.wasm", "a.js", "a.mjs", "a.css", "a.bin", "a.json", "a.svg"):
        (inside / name).write_bytes(name.encode())
    return inside


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", "text/html; charset=utf-8"),
        ("index.html", "text/html; charset=utf-8"),
        ("a.wasm", "application/wasm"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.mjs", "text/javascript; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.bin", "application/octet-stream"),
        ("a.json", "application/json"),
        ("a.svg", "image/svg+xml"),
    ],
)
def test_types_and_headers(folder: Path, path: str, kind: str) -> None:
    with site(folder) as url, urllib.request.urlopen(f"{url}/{path}") as response:
        assert response.read() == (path or "index.html").encode()
        assert response.headers["Content-Type"] == kind
        assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["nowhere", "empty/", "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt"])
def test_what_is_not_inside_is_not_found(folder: Path, path: str) -> None:
    with site(folder) as url:
        host = url.removeprefix("http://")
        connection = http.client.HTTPConnection(host)
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        assert response.status == 404 and b"not yours" not in response.read()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_written(folder: Path, method: str) -> None:
    request_ = urllib.request.Request("http://unused", method=method)
    with site(folder) as url:
        request_.full_url = f"{url}/a.js"
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(request_)


def test_the_command_listens_on_this_machine_alone_and_ends_with_an_interrupt(folder: Path) -> None:
    command = [sys.executable, "-u", "-m", "compiler", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    url = line.split()[0]
    assert url.startswith("http://127.0.0.1:") and not url.endswith(":0/")
    with urllib.request.urlopen(url) as response:
        assert response.read() == b"index.html"
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=30)
    assert process.returncode == 0 and complaints == ""


def test_a_missing_folder_and_a_taken_port_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server(folder, "127.0.0.1", 0) as taken:
        for arguments, code in (
            (["serve", str(folder / "nowhere")], "E_FILE"),
            (["serve", str(folder), "--port", str(taken.server_port)], "E_PORT"),
            (["serve", str(folder), "--host", "no.such.host.invalid"], "E_PORT"),
        ):
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == 2
            assert f"[{code}]" in capsys.readouterr().err
