"""Fashion-MNIST: reading the idx files and preparing images, with numpy alone.

Images are `uint8 [N, 28, 28]` everywhere; `preprocess` turns them into what the network takes. The data set is
Zalando's (https://github.com/zalandoresearch/fashion-mnist, MIT licence).
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MEAN = 0.2860  # of the training images, as fractions of 255
STD = 0.3530


def preprocess(images: np.ndarray) -> np.ndarray:
    """Normalise images for the network: `uint8 [N, 28, 28]` -> `float32 [N, 1, 28, 28]`.

    Raises:
        ValueError: if `images` has another dtype or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"expected uint8 [N, 28, 28] images, got {images.dtype} {list(images.shape)}")
    scaled = (images.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return scaled[:, None]


def read_idx(path: Path) -> np.ndarray:
    """Read one idx file of unsigned bytes, gzipped or not (format: http://yann.lecun.com/exdb/mnist).

    Raises:
        ValueError: if the file is not an idx file of unsigned bytes, or is cut short.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    rank = raw[3]
    header = 4 + 4 * rank
    shape = tuple(int(size) for size in np.frombuffer(raw[4:header], ">u4"))
    if len(raw) != header + int(np.prod(shape)):
        raise ValueError(f"{path} holds {len(raw) - header} bytes where its header promises {shape}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def load_split(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Load a split (`"train"` or `"t10k"`) from the idx files in `folder`.

    A split may be one pair of files (`train-images-idx3-ubyte[.gz]`, the published layout) or several, told apart by
    a letter and joined in its order (`train-images-a-idx3-ubyte[.gz]`, ...).

    Returns:
        images `uint8 [N, 28, 28]` and labels `uint8 [N]`.

    Raises:
        FileNotFoundError: if the folder has no images of this split, or an image file has no label file beside it.
    """
    pairs = {}
    for path in sorted(Path(folder).glob(f"{split}-images*-idx3-ubyte*")):
        pairs[path.name.removesuffix(".gz")] = path  # a file and its gzipped twin count once
    if not pairs:
        raise FileNotFoundError(f"no {split}-images*-idx3-ubyte[.gz] in {folder}")
    images, labels = [], []
    for name, path in pairs.items():
        stem = path.with_name(name.replace("-images", "-labels").replace("idx3", "idx1"))
        label_path = next((p for p in (stem, stem.with_name(stem.name + ".gz")) if p.exists()), None)
        if label_path is None:
            raise FileNotFoundError(f"{path} has no {stem.name}[.gz] beside it")
        images.append(read_idx(path))
        labels.append(read_idx(label_path))
    return np.concatenate(images), np.concatenate(labels)


def load_test_images() -> tuple[np.ndarray, np.ndarray]:
    """Load the 1,000 test images bundled in this folder: images `uint8 [1000, 28, 28]` and labels `uint8 [1000]`."""
    with np.load(Path(__file__).with_name("test_images.npz")) as archive:
        return archive["images"], archive["labels"]
