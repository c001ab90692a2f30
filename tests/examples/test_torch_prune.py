"""The example that prunes a module in its training loop."""

from __future__ import annotations

import re

import pytest


def test_it_learns_while_it_shrinks(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from examples.torch_prune import main

    main()
    printed = capsys.readouterr().out
    losses = [float(n) for n in re.findall(r"loss ([\d.]+)", printed)]
    sizes = [int(n.replace(",", "")) for n in re.findall(r"of ([\d,]+) parameters", printed)]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    assert len(sizes) == 3 and sizes[0] > sizes[1] > sizes[2]
