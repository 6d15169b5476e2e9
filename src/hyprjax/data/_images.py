"""Images as pixel streams."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from hyprjax.data import _check, _files
from hyprjax.data._dataset import Dataset

_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}


def sequential_mnist(*, permutation_seed: int | None = None) -> tuple[Dataset, Dataset]:
    """MNIST, one pixel at a time: 784 steps of one channel, 10 classes.

    Args:
      permutation_seed: permuted MNIST: the pixels in a random order, the same for all images. None: row by row.

    Returns:
      Training and test set, 60,000 and 10,000 images, pixels as float16 in [0, 1], a label per sequence.

    Raises:
      FileNotFoundError: an IDX file (`train-images-idx3-ubyte` and so on, or its `.gz`) is nowhere and cannot be
        downloaded.
      ValueError: a file is damaged.

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> train, test = hj.data.sequential_mnist(permutation_seed=0)  # doctest: +SKIP
    """
    order = None if permutation_seed is None else np.random.default_rng(permutation_seed)
    train, test = (
        _streams(_idx(f"{part}-images-idx3-ubyte", 3), _idx(f"{part}-labels-idx1-ubyte", 1), 255)
        for part in ("train", "t10k")
    )
    if order is not None:
        pixels = order.permutation(train.steps)
        train, test = (Dataset(d.inputs[pixels], d.targets, d.mask) for d in (train, test))
    return train, test


def digits(*, hold: int = 4, test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Scikit-learn's 1,797 handwritten 8x8 digits, one pixel at a time; no download, needs scikit-learn.

    Args:
      hold: steps that each pixel is shown; T is 64 times as many.
      test_fraction: part of the digits held out, the same for every class.
      seed: of the split.

    Returns:
      Training and test set, pixels in [0, 1], a label per sequence.

    Raises:
      ValueError: `hold` is no int of at least 1, or `test_fraction` not between 0 and 1.

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> train, test = hj.data.digits()
      >>> train.inputs.shape, test.size
      ((256, 1437, 1), 360)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    _check.whole("digits", "hold", hold)
    if not 0 < test_fraction < 1:
        raise ValueError(f"digits: test_fraction must be between 0 and 1, got {test_fraction!r}")
    images, labels = load_digits(return_X_y=True)
    parts: Any = train_test_split(images, labels, test_size=test_fraction, random_state=seed, stratify=labels)
    train, test = (_streams(np.repeat(parts[i], hold, axis=1), parts[i + 2], 16) for i in (0, 1))
    return train, test


def _streams(images: np.ndarray, labels: np.ndarray, white: int) -> Dataset:
    inputs = (images.reshape(len(images), -1).T[:, :, None] / np.float32(white)).astype(np.float16)
    if len(labels) != len(images):
        raise ValueError(f"there are {len(images)} images but {len(labels)} labels")
    return Dataset(inputs, labels.astype(np.int32), np.ones(inputs.shape[:2], bool))


def _idx(name: str, dimensions: int) -> np.ndarray:
    path = _files.find(name, f"{_URL}{name}.gz", f"md5:{_MD5[name]}")

    def reader(path: Path) -> np.ndarray:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError(f"starts with {content[:4].hex()}, an IDX file of bytes with {dimensions} axes does not")
        try:
            shape = struct.unpack_from(f">{dimensions}I", content, 4)
        except struct.error as error:
            raise ValueError(str(error)) from error
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)

    return _files.read(path, reader)
