"""A device behind TVM's RPC tracker: asked for by key, sent libraries and tensors, called.

The tracker knows which servers serve a key and hands one out (`python -m tvm.exec.rpc_tracker`, `rpc_server`; TVM's RPC
protocol). Whatever is waited for is waited for so long and no longer.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from compiler.errors import SecateurError

_SERVE = "on the device: python -m tvm.exec.rpc_server --tracker {address} --key {key}"


@dataclass(frozen=True)
class Device:
    """Any device that a tracker at host:port has under `key`. timeout: seconds to wait for each answer."""

    host: str
    port: int
    key: str
    timeout: float = 60.0

    @classmethod
    def parse(cls, address: str, key: str, timeout: float = 60.0) -> Device:
        """The device of an address HOST:PORT; E_OPTION_VALUE for what is none."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise SecateurError(
                "E_OPTION_VALUE", f"{address!r} is no tracker's address", hint="--rpc HOST:PORT, such as localhost:9190"
            )
        return cls(host.strip("[]"), int(port), key, timeout)

    @property
    def address(self) -> str:
        """Where the tracker is."""
        return f"{self.host}:{self.port}"

    def connect(self, seconds: float) -> Session:
        """A session on a free device, which ends it by itself after so many seconds.

        Raises SecateurError: E_RPC_TRACKER without a tracker, E_RPC_DEVICE without a device, E_RPC_TIMEOUT.
        """
        from tvm import rpc

        host, port, match = self._request()
        before = _connections(port)
        session = _within(
            self,
            f"its server at {host}:{port} did not accept the session",
            lambda: rpc.connect(host, port, match, session_timeout=max(1, round(seconds))),
        )
        return Session(self, session, _connections(port) - before)

    def _request(self) -> tuple[str, int, str]:
        """Where a free device listens, and the key that it expects."""
        from tvm.rpc import base

        with self._tracker() as tracker:
            try:
                keys = self._ask(tracker, [base.TrackerCode.SUMMARY])[1]["server_info"]
            except TimeoutError:
                raise self._no_tracker(f"it did not answer within {self.timeout:g} seconds") from None
            known = sorted({str(entry["key"]).removeprefix("server:") for entry in keys})
            if self.key not in known:
                listed = f"it has devices under: {', '.join(known)}" if known else "it has no devices"
                raise SecateurError(
                    "E_RPC_DEVICE",
                    f"the tracker has no device under the key {self.key!r}; {listed}",
                    where=self.address,
                    hint=_SERVE.format(address=self.address, key=self.key),
                )
            try:
                answer = self._ask(tracker, [base.TrackerCode.REQUEST, self.key, "", 1])
            except TimeoutError:
                raise SecateurError(
                    "E_RPC_TIMEOUT",
                    f"no device under the key {self.key!r} became free within {self.timeout:g} seconds",
                    where=self.address,
                    hint="wait until others are done, or allow more time with --rpc-timeout",
                ) from None
        host, port, match = answer[1]
        return host, port, match

    def _tracker(self) -> socket.socket:
        from tvm.rpc import base

        try:
            tracker = socket.create_connection((self.host, self.port), self.timeout)
        except OSError as error:
            raise self._no_tracker(error.strerror or str(error)) from None
        try:
            tracker.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            (magic,) = struct.unpack("<i", base.recvall(tracker, 4))
        except (OSError, struct.error):
            magic = None
        if magic != base.RPC_TRACKER_MAGIC:
            tracker.close()
            raise self._no_tracker("what answers there is no RPC tracker")
        return tracker

    def _ask(self, tracker: socket.socket, question: list[Any]) -> Any:
        """A tracker's answer; TimeoutError when there is none in time."""
        from tvm.rpc import base

        try:
            base.sendjson(tracker, question)
            answer = base.recvjson(tracker)
        except TimeoutError:
            raise
        except (OSError, ValueError, struct.error) as error:
            raise self._no_tracker(str(error)) from None
        if not isinstance(answer, list) or not answer or answer[0] != base.TrackerCode.SUCCESS:
            raise self._no_tracker(f"it answered {answer!r}")
        return answer

    def _no_tracker(self, why: str) -> SecateurError:
        return SecateurError(
            "E_RPC_TRACKER",
            f"there is no RPC tracker at {self.address}: {why}",
            where=self.address,
            hint="start one: python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190",
        )


class Session:
    """A device in use. Errors of calls: E_RPC_TIMEOUT, E_RPC when the device failed or went away.

    connections: file descriptors of the session's sockets. They are shut down at its end and when an answer does not
    come in time: TVM keeps the device while anything that lives there is referred to, and waits for it without end.
    """

    def __init__(self, device: Device, session: Any, connections: Iterable[int] = ()) -> None:
        self.device, self._session = device, session
        self._connections = [socket.socket(fileno=os.dup(number)) for number in connections]

    def load(self, files: dict[str, bytes], target: str) -> Callable[[str], Callable[..., Any]]:
        """Send libraries and load the last; its functions by name. E_TARGET where the device cannot load it."""
        for name, data in files.items():
            self._call("it did not take a library", self._session.upload, bytearray(data), name)
        try:
            module = self._call("it did not load a library", self._session.load_module, next(reversed(files)))
        except SecateurError as error:
            if error.code != "E_RPC":
                raise
            raise SecateurError(
                "E_TARGET",
                f"the device under the key {self.device.key!r} cannot load code for target {target!r}",
                where=self.device.address,
                hint="compile for the device's kind of machine, or ask for another key",
            ) from error

        def function(name: str) -> Callable[..., Any]:
            found = self._call(f"it has no function {name!r}", module.get_function, name)
            return lambda *arguments: self._call("it did not answer", found, *arguments)

        return function

    def tensor(self, array: np.ndarray) -> Any:
        """The bytes of an array in the device's memory."""
        import tvm

        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return self._call("it took no tensor", lambda: tvm.runtime.tensor(flat, self._session.cpu()))

    def fetch(self, tensor: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """The content of a tensor on the device."""
        data: np.ndarray = self._call("it sent no tensor", tensor.numpy)
        return data.view(dtype).reshape(shape)

    def close(self) -> None:
        """Give the device back."""
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._connections = []
        self._session = None  # after that: releasing it waits for a call that waits for the device

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, otherwise: str, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._session is None:
            raise SecateurError("E_CLOSED", "the session is closed", hint="connect again")
        try:
            return _within(self.device, otherwise, lambda: function(*arguments))
        except SecateurError as error:
            if error.code == "E_RPC_TIMEOUT":
                self.close()
            raise


def _connections(port: int) -> set[int]:
    """File descriptors of this process's sockets that are connected to a port of some host."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.getpeername()[1:2] == (port,):
                    found.add(int(name))
    return found


def _within(device: Device, otherwise: str, call: Callable[[], Any]) -> Any:
    """What `call` returns, if it does within the device's timeout. TVM's calls wait without end by themselves."""
    answer: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(device.timeout)
    if thread.is_alive():
        raise SecateurError(
            "E_RPC_TIMEOUT",
            f"the device under the key {device.key!r} did not answer within {device.timeout:g} seconds",
            where=device.address,
            hint="look at its server's output, or allow more time with --rpc-timeout",
        )
    if failure:
        if not isinstance(failure[0], Exception):
            raise failure[0]
        lines = [line.strip() for line in str(failure[0]).splitlines() if line.strip()]
        raise SecateurError(
            "E_RPC",
            f"the device under the key {device.key!r} failed: {otherwise}",
            where=f"{device.address}: {lines[-1][-300:] if lines else type(failure[0]).__name__}",
            hint="look at its server's output; it may have run out of memory, or lack instructions",
        ) from None
    return answer[0]
