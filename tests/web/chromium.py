"""Headless Chromium for tests, driven by chromedriver over its own protocol (W3C WebDriver): no other package."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.web.browser import Browser

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)


class Chromium(Browser):
    """One page of a headless Chromium."""

    def __init__(self, port: int, session: str) -> None:
        self._url = f"http://127.0.0.1:{port}/session/{session}"

    def open(self, url: str) -> None:
        _post(f"{self._url}/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function body returns in the page; a promise is waited for."""
        text = f"return (async (...args) => {{ {script} }})(...arguments)"
        return _post(f"{self._url}/execute/sync", {"script": text, "args": list(arguments)})

    def screenshot(self) -> bytes:
        with urllib.request.urlopen(f"{self._url}/screenshot", timeout=60) as response:
            return base64.b64decode(json.load(response)["value"])

    def choose_file(self, selector: str, path: Path) -> None:
        found = _post(f"{self._url}/element", {"using": "css selector", "value": selector})
        _post(f"{self._url}/element/{next(iter(found.values()))}/value", {"text": str(path)})

    def complaints(self) -> list[str]:
        """What the console was told of errors since the last call: among them what the page's policy forbids."""
        entries = _post(f"{self._url}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]


@contextmanager
def open_chromium() -> Iterator[Chromium]:
    """A browser with a profile of its own, closed at the end."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        port = _port(driver)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            options = {"args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = _post(f"http://127.0.0.1:{port}/session", {"capabilities": {"alwaysMatch": wanted}})
            try:
                yield Chromium(port, made["sessionId"])
            finally:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/session/{made['sessionId']}", method="DELETE"
                )
                urllib.request.urlopen(request, timeout=60).close()
    finally:
        driver.terminate()
        driver.wait(timeout=30)


def _port(driver: subprocess.Popen[str]) -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        if found := re.search(r"started successfully on port (\d+)", line):
            return int(found[1])
    raise AssertionError("chromedriver did not start")


def _post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode(errors="replace")[:2000]) from None
