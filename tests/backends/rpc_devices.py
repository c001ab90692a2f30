"""A tracker of TVM and two servers behind it, in one process: `python rpc_devices.py` prints the tracker's port.

The servers' keys are `here` and `slow`; each session is a process of its own, as with `python -m tvm.exec.rpc_server`.
It ends when its standard input does.
"""

from __future__ import annotations

import multiprocessing
import os

from tvm.rpc.server import PopenRPCServerState
from tvm.rpc.tracker import PopenTrackerServerState

HOST, PORTS = "127.0.0.1", (20000, 32000)


def main() -> None:
    start = PORTS[0] + os.getpid() % 10000
    tracker = PopenTrackerServerState(HOST, start, PORTS[1], silent=True, reuse_addr=False)
    for number, key in enumerate(("here", "slow")):
        address = (HOST, tracker.port)
        PopenRPCServerState(HOST, start + 100 + number, PORTS[1], tracker_addr=address, key=key, silent=True)
    print(tracker.port, flush=True)
    os.read(0, 1)  # not sys.stdin, whose lock a session's process would inherit
    for session in multiprocessing.active_children():
        session.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
