"""Checks of what a user passes in: one clear line instead of a wrong picture of the data."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike


def positive(function: str, name: str, value: Any) -> float:
    """The positive finite number that `value` is."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not 0 < number < np.inf:
        raise ValueError(f"{function}: {name} must be positive, one finite number, got {value!r}")
    return number


def signal(function: str, value: ArrayLike) -> np.ndarray:
    """The float64 array `[T, channels]` of finite numbers that `value` is."""
    array = np.asarray(value)
    if array.ndim != 2:
        fix = "encode one sequence at a time" if array.ndim > 2 else "give a single channel as signal[:, None]"
        raise ValueError(f"{function}: signal must be [T, channels], its shape is {array.shape}; {fix}")
    return finite(function, "signal", array)


def finite(function: str, name: str, value: ArrayLike) -> np.ndarray:
    """The float64 array of finite numbers that `value` is."""
    array = np.asarray(value)
    if not (array.dtype.kind in "biu" or jnp.issubdtype(array.dtype, jnp.floating)):
        raise ValueError(f"{function}: {name} must hold real numbers, its dtype is {array.dtype}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        place = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
        raise ValueError(
            f"{function}: {name}[{', '.join(map(str, place))}] is {array[place]}; fill gaps first, as with "
            f"np.nan_to_num({name}), or cut them out"
        )
    return array
