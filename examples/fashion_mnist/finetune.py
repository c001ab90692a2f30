"""Train a pruned file of the example network for a little longer, to win back what pruning cost.

    secateur prune examples/fashion_mnist/fashion_cnn.onnx -o pruned.onnx --ratio 0.5
    python -m examples.fashion_mnist.finetune --model pruned.onnx --data DIR --epochs 1 -o finetuned.onnx

The network is rebuilt from the file's initializers, whose shapes tell how wide each layer still is. With `--teacher`
it also imitates the unpruned network's outputs (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from .model import Net
from .onnx_file import read_state, write_onnx
from .train import accuracy, load_tensors, train


def main() -> None:
    """Rebuild, measure, train, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="ONNX file of the pruned network")
    parser.add_argument("--data", required=True, type=Path, help="folder of Fashion-MNIST idx files, gzipped or not")
    parser.add_argument("-o", "--output", required=True, type=Path, help="ONNX file to write")
    parser.add_argument("--teacher", type=Path, help="ONNX file of the unpruned network, to imitate")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.02, help="highest learning rate")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16: faster on CPUs that have it")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    try:
        net = Net.from_state_dict(read_state(args.model))
        teacher = Net.from_state_dict(read_state(args.teacher)).eval() if args.teacher else None
        images, labels = load_tensors(args.data, "train")
        test_images, test_labels = load_tensors(args.data, "t10k")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")

    print(f"widths: {net.widths}; {sum(p.numel() for p in net.parameters())} parameters")
    print(f"test accuracy before: {accuracy(net, test_images, test_labels):.2%}", flush=True)
    start = time.perf_counter()
    train(
        net,
        images,
        labels,
        epochs=args.epochs,
        lr=args.lr,
        batch=args.batch,
        warmup=0.1,
        teacher=teacher,
        bf16=args.bf16,
        seed=args.seed,
    )
    print(f"trained in {time.perf_counter() - start:.0f} s")
    print(f"test accuracy after: {accuracy(net, test_images, test_labels):.2%}")
    write_onnx(net, args.output)


if __name__ == "__main__":
    main()
