"""What is measured at a time: a network, what was done to it, beside whom, how long."""

from __future__ import annotations

from dataclasses import dataclass

DENSE = "0"
"""The variant that is the network as it was."""
OURS, OURS_DENSE = "ours", "ours, dense"
"""What our sides are called among the timings: the variant, and the network as it was beside it."""
SAME_FILE = ("deepsparse",)
"""Peers that make something of zeros, and so run the variant."""


@dataclass(frozen=True)
class Case:
    """network and variant: by name. threads: the numbers of threads to measure with. seconds, rounds: at least, for
    each of them. peers: by name; those of SAME_FILE run the variant, the others the network as it was."""

    network: str
    variant: str
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 3.0
    rounds: int = 30
    peers: tuple[str, ...] = ("onnxruntime", "openvino")

    @property
    def name(self) -> str:
        """All of it as text, for `tests.runs`."""
        threads = ",".join(map(str, self.threads))
        return "/".join(
            (self.network, self.variant, threads, f"{self.seconds:g}", str(self.rounds), ",".join(self.peers))
        )

    @classmethod
    def parse(cls, name: str) -> Case:
        """From `name`."""
        network, variant, threads, seconds, rounds, peers = name.split("/")
        counts = tuple(int(n) for n in threads.split(","))
        return cls(network, variant, counts, float(seconds), int(rounds), tuple(peers.split(",")))
