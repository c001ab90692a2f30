"""Every network of the zoo there and back: torch -> prune -> torch -> ONNX equals torch -> ONNX -> prune."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.zoo.entry import zoo
from tests.zoo.test_write_back import SAMPLE, check_round_trip


@pytest.mark.parametrize("name", [name for name in zoo() if name not in SAMPLE])
def test_round_trip(name: str, tmp_path: Path) -> None:
    if isinstance(zoo()[name].build.made()[0], torch.jit.ScriptModule):
        pytest.skip("torch.export takes no ScriptModule, and so neither does the write-back")
    check_round_trip(name, tmp_path)
