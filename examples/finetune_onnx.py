"""Prune an ONNX file, fine-tune what is left, and write an ONNX file again: no source code of the network is needed.

    python -m examples.finetune_onnx [MODEL.onnx] [-o OUTPUT.onnx]

Needs `pip install "secateur[torch]"`. It trains on 800 of the 1,000 bundled test images of Fashion-MNIST and measures
on the other 200, which says nothing about accuracy at large; give it your data and your loss.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from compiler import export, load
from compiler.exporters import from_module, to_module
from examples.fashion_mnist.data import load_test_images, preprocess
from passes import Pipeline

BUNDLED = Path(__file__).parent / "fashion_mnist" / "fashion_cnn.onnx"


def main(arguments: list[str] | None = None) -> None:
    """Prune, measure, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=BUNDLED, help="images [N, 1, 28, 28] -> logits [N, 10]")
    parser.add_argument("-o", "--output", type=Path, default=Path("finetuned.onnx"))
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the multiply-accumulates to remove")
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    images, labels = load_test_images()
    x, y = torch.from_numpy(preprocess(images)), torch.from_numpy(labels.astype(np.int64))

    graph = Pipeline(f"prune(ratio={args.ratio})")(load(args.model))
    module = to_module(graph)  # an nn.Module; compared with ONNX Runtime before it is returned
    print(f"{sum(p.numel() for p in module.parameters()):,} parameters are left")
    print(f"accuracy before: {accuracy(module, x[800:], y[800:]):.1%}")

    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(args.epochs):
        module.train()  # BatchNormalization moves its statistics, Dropout drops
        for batch in torch.randperm(800).split(50):
            loss = functional.cross_entropy(module(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")

    print(f"accuracy after: {accuracy(module, x[800:], y[800:]):.1%}")
    export(from_module(graph, module), args.output, overwrite=True)
    print(f"wrote {args.output}")


def accuracy(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of right answers, in evaluation mode."""
    with torch.no_grad():
        return (module.eval()(x).argmax(1) == y).float().mean().item()


if __name__ == "__main__":
    main()
