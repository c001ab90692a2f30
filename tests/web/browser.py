"""What tests ask of a page in a browser, and a site to open in it."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from backends.runtime.serving import server


class Browser(ABC):
    """One page of a headless browser."""

    @abstractmethod
    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""

    @abstractmethod
    def run(self, script: str, *arguments: object) -> Any:
        """What a function body returns in the page; a promise is waited for."""

    @abstractmethod
    def complaints(self) -> list[str]:
        """What the console was told of errors since the last call: among them what the page's policy forbids."""

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until a condition in JavaScript holds."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition});"):
            assert time.monotonic() < end, (
                f"{condition} did not come true: {self.run('return document.body.innerText')}"
            )
            time.sleep(0.1)


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """The URL of a folder that is served as `secateur serve` does."""
    running: ThreadingHTTPServer = server(folder, "127.0.0.1", 0)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
