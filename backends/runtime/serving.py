"""A static server for pages that run WebAssembly: right types, and the headers that isolate them from other sites.

For one's own machine: `http.server` behind it is made for that, and not for the public network.
"""

from __future__ import annotations

import functools
import socket
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from compiler.errors import SecateurError

HEADERS = {
    # Together these two isolate a page, which then has SharedArrayBuffer and clocks of 5 µs.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Handler(SimpleHTTPRequestHandler):
    """Files of one folder; no listings, no log."""

    extensions_map = {  # noqa: RUF012 - the base class's name and kind
        "": "application/octet-stream",
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".md": "text/markdown; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".png": "image/png",
        ".svg": "image/svg+xml",
        ".ts": "text/plain; charset=utf-8",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: object) -> None:
        """No listing: a folder without index.html is not found."""
        self.send_error(HTTPStatus.NOT_FOUND, "there is no index.html here")

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


def server(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server of `folder` that listens and is yet to be started with serve_forever().

    Raises SecateurError: E_FILE if there is no such folder, E_PORT if the address cannot be listened on.
    """
    if not folder.is_dir():
        raise SecateurError("E_FILE", "there is no such folder", where=str(folder), hint="give what --demo has written")
    handler = functools.partial(Handler, directory=str(folder))
    try:
        return (_Server6 if ":" in host else _Server)((host, port), handler)
    except (OSError, OverflowError) as error:
        raise SecateurError(
            "E_PORT",
            f"cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}",
            hint="choose another one with --port, or 0 for any that is free",
        ) from None
