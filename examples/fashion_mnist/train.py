"""Train the example network on Fashion-MNIST and write `fashion_cnn.onnx` and `test_images.npz`.

    python -m examples.fashion_mnist.train --data DIR

One cycle of SGD (Smith and Topin 2017, https://arxiv.org/abs/1708.07120) with random shifts and flips.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .data import MEAN, STD, load_split, preprocess
from .model import Net
from .onnx_file import write_onnx

HERE = Path(__file__).parent
BUNDLED = 1000  # test images in test_images.npz


def augment(images: Tensor, generator: torch.Generator, shift: int = 2) -> Tensor:
    """Move each image by up to `shift` pixels each way and mirror half of them: `[N, 1, 28, 28]` -> the same."""
    n, _, height, width = images.shape
    padded = nn.functional.pad(images, (shift,) * 4, value=-MEAN / STD)  # black, once normalised
    dy, dx = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator)
    rows = dy + torch.arange(height)
    columns = dx + torch.arange(width)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(n)[:, None, None]
    return padded[batch, 0, rows[:, :, None], columns[:, None, :]][:, None]


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Fraction of `images` (normalised, `[N, 1, 28, 28]`) that the network classifies as `labels` say."""
    net.eval()
    hits = sum(
        int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(batch), labels.split(batch), strict=True)
    )
    return hits / len(labels)


def load_tensors(folder: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """Load a split as normalised images `float32 [N, 1, 28, 28]` and labels `int64 [N]`."""
    images, labels = load_split(folder, split)
    return torch.from_numpy(preprocess(images)), torch.from_numpy(labels.astype(np.int64))


def train(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    batch: int = 128,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.05,
    warmup: float = 0.25,
    teacher: nn.Module | None = None,
    temperature: float = 2.0,
    bf16: bool = False,
    seed: int = 0,
) -> None:
    """Train `net` in place: Nesterov SGD whose learning rate rises to `lr` and falls to nought along a cosine.

    Args:
        net: the network to train; left in training mode.
        images: normalised, `[N, 1, 28, 28]`.
        labels: `int64 [N]`.
        epochs: passes over the images.
        lr: the highest learning rate.
        batch: images per step.
        weight_decay: on convolution and linear weights; biases and BatchNorm are left alone.
        label_smoothing: of the cross entropy.
        warmup: the fraction of all steps in which the learning rate rises.
        teacher: a trained network to imitate: half the loss becomes the divergence from its softened outputs
            (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).
        temperature: what softens them.
        bf16: compute in bfloat16 where PyTorch thinks it safe: faster on CPUs that have it, slower elsewhere.
        seed: of the order of the images and of the augmentation.
    """
    generator = torch.Generator().manual_seed(seed)
    net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    parameters = list(net.parameters())
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(images) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * steps, pct_start=warmup, cycle_momentum=False, final_div_factor=1e3
    )
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    start = time.perf_counter()
    for epoch in range(epochs):
        net.train()
        order = torch.randperm(len(images), generator=generator)
        total, hits = 0.0, 0
        for indices in order[: steps * batch].view(steps, batch):
            x, y = augment(images[indices], generator), labels[indices]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = net(x.contiguous(memory_format=torch.channels_last))
            logits = logits.float()
            loss = cross_entropy(logits, y)
            if teacher is not None:
                with torch.inference_mode():
                    target = (teacher(x) / temperature).log_softmax(1)
                divergence = nn.functional.kl_div(
                    (logits / temperature).log_softmax(1), target.clone(), reduction="batchmean", log_target=True
                )
                loss = 0.5 * loss + 0.5 * temperature**2 * divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            hits += int((logits.argmax(1) == y).sum())
        print(
            f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, training accuracy {hits / (steps * batch):.2%}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


def main() -> None:
    """Train, report, and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of Fashion-MNIST idx files, gzipped or not")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder to write to (default: this one)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.1, help="highest learning rate")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16: faster on CPUs that have it")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    images, labels = load_tensors(args.data, "train")
    net = Net()
    start = time.perf_counter()
    train(net, images, labels, epochs=args.epochs, lr=args.lr, batch=args.batch, bf16=args.bf16, seed=args.seed)
    print(f"trained in {time.perf_counter() - start:.0f} s")

    args.output.mkdir(parents=True, exist_ok=True)
    write_onnx(net, args.output / "fashion_cnn.onnx")
    raw_images, raw_labels = load_split(args.data, "t10k")
    np.savez_compressed(args.output / "test_images.npz", images=raw_images[:BUNDLED], labels=raw_labels[:BUNDLED])
    images, labels = load_tensors(args.data, "t10k")
    print(f"test accuracy: {accuracy(net, images, labels):.2%} of {len(labels)} images")
    print(f"test accuracy: {accuracy(net, images[:BUNDLED], labels[:BUNDLED]):.2%} of the {BUNDLED} bundled images")


if __name__ == "__main__":
    main()
