"""The example that prunes, fine-tunes and writes an ONNX file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compiler.frontends import load
from compiler.ir.execute import execute
from examples.fashion_mnist.data import load_test_images, preprocess


def test_fine_tuning_wins_accuracy_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    from examples.finetune_onnx import main

    torch.set_num_threads(1)
    path = tmp_path / "finetuned.onnx"
    main(["-o", str(path), "--epochs", "2"])
    printed = capsys.readouterr().out
    before, after = (float(n) for n in re.findall(r"accuracy \w+: ([\d.]+)%", printed))
    assert after >= before + 20
    images, labels = load_test_images()
    (logits,) = execute(load(path), {"input": preprocess(images[800:])}).values()
    assert 100 * (logits.argmax(1) == labels[800:]).mean() == pytest.approx(after, abs=0.6)
