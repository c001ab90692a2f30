"""Headless Firefox for tests, driven by the protocol that is built into it (Marionette): no other package.

Source: Firefox Source Docs, "Marionette Protocol": messages are `length:[type, id, command, parameters]`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tests.web.browser import Browser

# The last one lets `complaints` ask for what the console was told.
_ARGUMENTS = ("--marionette", "--headless", "--no-remote", "--remote-allow-system-access")
_START_SECONDS = 60
# Errors and warnings of pages; the browser's own parts complain of other things.
_COMPLAINTS = """
const found = Services.console.getMessageArray().filter((m) => m instanceof Ci.nsIScriptError);
Services.console.reset();
return found.filter((m) => /^http/.test(m.sourceName)).map((m) => m.errorMessage);
"""


class Firefox(Browser):
    """One page of a headless Firefox."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")
        self._numbers = count(1)
        assert self._read()["marionetteProtocol"] == 3
        self._ask("WebDriver:NewSession", {})
        self._ask("WebDriver:SetTimeouts", {"script": 120_000})

    def open(self, url: str) -> None:
        self._ask("WebDriver:Navigate", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function body returns in the page; a promise is waited for."""
        text = f"return (async (...args) => {{ {script} }})(...arguments)"
        return self._ask("WebDriver:ExecuteScript", {"script": text, "args": list(arguments)})["value"]

    def complaints(self) -> list[str]:
        self._ask("Marionette:SetContext", {"value": "chrome"})
        try:
            return self.run(_COMPLAINTS)
        finally:
            self._ask("Marionette:SetContext", {"value": "content"})

    def _ask(self, command: str, parameters: Mapping[str, object]) -> Any:
        message = json.dumps([0, next(self._numbers), command, parameters])
        self._connection.sendall(f"{len(message.encode())}:{message}".encode())
        _, _, error, result = self._read()
        assert error is None, f"{command}: {error}"
        return result

    def _read(self) -> Any:
        length = b""
        while not length.endswith(b":"):
            read = self._stream.read(1)
            assert read, "Firefox has closed the connection"
            length += read
        return json.loads(self._stream.read(int(length[:-1])))


@contextmanager
def open_firefox(command: str) -> Iterator[Firefox]:
    """A browser with a profile of its own, closed at the end. command: the one that starts it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Firefox chooses a free port and writes it into its profile.
        (Path(profile) / "user.js").write_text('user_pref("marionette.port", 0);\n')
        arguments = [
            command,
            "--marionette",
            "--headless",
            "--remote-allow-system-access",
            "--no-remote",
            "--profile",
            profile,
        ]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with socket.create_connection(("127.0.0.1", _port(process, Path(profile))), timeout=130) as connection:
                yield Firefox(connection)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _port(process: subprocess.Popen[bytes], profile: Path) -> int:
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        found = profile / "MarionetteActivePort"
        if found.is_file() and (text := found.read_text().strip()):
            return int(text)
        time.sleep(0.1)
    raise AssertionError("Firefox did not start")
