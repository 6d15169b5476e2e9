"""The Heidelberg data sets: spikes of a cochlea model in HDF5 files."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from hyprjax.data import _check, _files
from hyprjax.data._dataset import Dataset

_URL = "https://zenkelab.org/datasets/"
_MD5 = {
    "shd_train.h5": "f3252aeb598ac776c1b526422d90eecb",
    "shd_test.h5": "1503a5064faa34311c398fb0a1ed0a6f",
    "ssc_train.h5": "d102be95e7144fcc0553d1f45ba94170",
    "ssc_valid.h5": "b4eee3516a4a90dd0c71a6ac23a8ae43",
    "ssc_test.h5": "a35ff1e9cffdd02a20eb850c17c37748",
}
_UNITS = 700


def heidelberg_digits(*, steps: int = 250, dt: float = 0.004, channels: int = 140) -> tuple[Dataset, Dataset]:
    """Spiking Heidelberg Digits (Cramer et al. 2020): spoken digits, English and German, 20 classes.

    Args:
      steps: length T of a sequence; later spikes are left out.
      dt: length of a step in seconds.
      channels: neighbouring ones of the 700 cochlea channels are summed to this number, a divisor of 700.

    Returns:
      Training and test set, spike counts (uint8) and a label per sequence. The mask is True up to a sequence's last
      spike. Defaults: the binning of Baronig et al. 2024.

    Raises:
      FileNotFoundError: `shd_train.h5` or `shd_test.h5` is nowhere and cannot be downloaded.
      ValueError: a file is damaged, `channels` does not divide 700, `steps` is no int of at least 1, or `dt` no
        positive number below 1 second.

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> train, test = hj.data.heidelberg_digits(steps=100, dt=0.01)  # doctest: +SKIP
    """
    train, test = (_load(f"shd_{part}.h5", steps, dt, channels) for part in ("train", "test"))
    return train, test


def speech_commands(*, steps: int = 250, dt: float = 0.004, channels: int = 140) -> tuple[Dataset, Dataset, Dataset]:
    """Spiking Speech Commands (Cramer et al. 2020), 35 classes; about 3.5 GB in memory at the defaults.

    Arguments and errors are those of `heidelberg_digits`, with `ssc_train.h5`, `ssc_valid.h5`, `ssc_test.h5`.

    Returns:
      Training, validation and test set.

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> train, valid, test = hj.data.speech_commands()  # doctest: +SKIP
    """
    train, valid, test = (_load(f"ssc_{part}.h5", steps, dt, channels) for part in ("train", "valid", "test"))
    return train, valid, test


def _load(name: str, steps: int, dt: float, channels: int) -> Dataset:
    function = {"shd": "heidelberg_digits", "ssc": "speech_commands"}[name[:3]]
    steps, dt = _check.whole(function, "steps", steps), _check.seconds(function, "dt", dt)
    if _UNITS % _check.whole(function, "channels", channels):
        raise ValueError(f"{function}: channels must divide {_UNITS}, got {channels}")
    path = _files.find(name, f"{_URL}{name}.zip", f"md5:{_MD5[name]}")
    return _files.read(path, lambda path: _bin(path, steps, dt, channels))


def _bin(path, steps: int, dt: float, channels: int) -> Dataset:
    with h5py.File(path) as file:
        content: Any = file
        labels = content["labels"][()].astype(np.int32)
        times, units = content["spikes/times"][()], content["spikes/units"][()]
    inputs = np.zeros((steps, len(labels), channels), np.uint8)
    mask = np.zeros((steps, len(labels)), bool)
    for i, (t, unit) in enumerate(zip(times, units, strict=True)):
        step = (t.astype(np.float64) / dt).astype(int)
        channel = unit.astype(int) // (_UNITS // channels)
        inside = step < steps
        counts = np.zeros((steps, channels), int)
        np.add.at(counts, (step[inside], channel[inside]), 1)
        inputs[:, i] = np.minimum(counts, 255)
        mask[: step.max(initial=0) + 1, i] = True
    return Dataset(inputs, labels, mask)
