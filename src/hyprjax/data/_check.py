"""Checks of what a user passes in: one clear line instead of a wrong picture of the data."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike


def whole(function: str, name: str, value: Any, least: int = 1) -> int:
    """The int that `value` is, Python's or NumPy's."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{function}: {name} must be an int of at least {least}, got {value!r}")
    return int(value)


def probability(function: str, name: str, value: Any) -> float:
    """The number between 0 and 1 that `value` is."""
    if not (isinstance(value, int | float | np.number) and 0 <= value <= 1):
        raise ValueError(f"{function}: {name} must be a probability per step, from 0 to 1, got {value!r}")
    return float(value)


def seconds(function: str, name: str, value: Any) -> float:
    """The length of a step of sound."""
    if (number := positive(function, name, value)) >= 1:
        raise ValueError(f"{function}: {name} is in seconds, got {value!r}; milliseconds are {name}={value / 1000}")
    return number


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
