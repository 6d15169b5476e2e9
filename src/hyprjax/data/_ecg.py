"""ECG segmentation: QTDB, level-crossing encoded."""

from __future__ import annotations

import numpy as np
import scipy.io

from hyprjax.data import _files
from hyprjax.data._dataset import Dataset

_URL = (
    "https://raw.githubusercontent.com/AdaptiveAILab/brf-neurons/5d45b0e7d545f09b79d029bb40573200fde57fd7"
    "/experiments/ecg/data/"
)
_SHA256 = {
    "QTDB_train.mat": "72d1a10c96f1540880447e07256835d66da419c0b34f3dff495731a7928c5bc7",
    "QTDB_test.mat": "916f11e21679a5b61988305bbb7cd1e6df8b34f1ed4a157a7a4e295d400ef232",
}


def ecg_qtdb() -> tuple[Dataset, Dataset]:
    """The ECG-QTDB task of Yin, Corradi, Bohté 2021: which of six waves is it, at every step.

    Returns:
      Training and test set, 618 and 141 sequences of 1300 steps, 4 binary channels (up and down crossings of
      two leads) and a label per step. The file's last step is padding and left out.

    Raises:
      FileNotFoundError: `QTDB_train.mat` or `QTDB_test.mat` is nowhere and cannot be downloaded.
      ValueError: a file is damaged.

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> train, test = hj.data.ecg_qtdb()  # doctest: +SKIP
      >>> train.inputs.shape  # doctest: +SKIP
      (1300, 618, 4)
    """
    train, test = (_load(name) for name in _SHA256)
    return train, test


def _load(name: str) -> Dataset:
    path = _files.find(name, _URL + name, f"sha256:{_SHA256[name]}")

    def reader(path):
        content = scipy.io.loadmat(path)
        return content["x"].astype(np.int8), content["y"].argmax(-1).astype(np.int8)

    inputs, labels = _files.read(path, reader)
    inputs, labels = inputs.transpose(1, 0, 2)[:-1], labels.T[:-1]
    return Dataset(inputs, labels, np.ones(labels.shape, bool))
