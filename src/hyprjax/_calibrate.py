"""`calibrate`: input weights at which a layer fires at a given rate."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from hyprjax import _segment
from hyprjax._cell import Cell, Params, is_cell
from hyprjax._checks.layer import checked_layer
from hyprjax._stream import unroll

OCTAVES = np.arange(-20.0, 21.0, 2.0)  # log2 of the gains that are tried first
HALVINGS = 9  # of two octaves, so that the gain is found to 0.3 %


def calibrate(
    cell: Cell, layer: Params, inputs: PyTree[Float[Array, "t *batch _"]], *, rate: float | Array = 0.05
) -> Params:
    """Scales the input weights of a layer until it fires at `rate` on `inputs`.

    Gains from 2⁻²⁰ to 2²⁰ are tried in steps of four, and between the first with which the rate is too high and the one
    before, the interval is halved nine times: the rate may fall again for higher gains. It takes as long as to run the
    layer thirty times, so give it a part of the data, some hundred steps of ten sequences. Layers of a stack are
    calibrated from the bottom, each on the output of the one below.

    Nothing but `w_in` changes: what `bias` and `w_rec` contribute to the rate stays. It is a pure function, under
    `jax.jit` and `jax.vmap`, too; where no gain gives the rate, it takes the nearest there, instead of raising.

    Args:
      cell: the neuron model.
      layer: the layer's parameters, as `init_layer` makes them.
      inputs: what the layer will see, time first, any number of batch axes.
      rate: spikes per neuron and step, in (0, 1); of a cell that sends something else, as `filtered` does, the mean
        magnitude of that.

    Returns:
      The layer with another `w_in`.

    Raises:
      ValueError: `rate` is outside (0, 1), the cell is a `leaky_integrator`, shapes do not fit, or no gain comes within
        20 % of `rate`.
      TypeError: `cell` is not a cell.

    Examples:
      >>> import jax, hyprjax as hj
      >>> cell = hj.brf(omega=(15.0, 50.0))
      >>> layer = hj.init_layer(jax.random.key(0), cell, n_in=1, n_out=64, recurrent=True)
      >>> pixels = jax.random.randint(jax.random.key(1), (200, 8, 1), 0, 256)
      >>> layer = hj.calibrate(cell, layer, pixels, rate=0.05)
      >>> round(float(hj.unroll(cell, layer, pixels).mean()), 2)
      0.05
    """
    is_cell("calibrate", cell)
    if "leaky_integrator" in cell.name:
        raise ValueError(f"calibrate: {cell.name} sends no spikes, so it has no firing rate; leave it as it is")
    if not isinstance(rate, Tracer) and not (np.ndim(rate) == 0 and 0 < rate < 1):
        raise ValueError(f"calibrate: rate must be a number in (0, 1), spikes per neuron and step, got {rate!r}")
    _, signal, _ = checked_layer(cell, layer, inputs, None)
    if _segment.structure(cell, layer, signal).num_nodes != 1:
        raise ValueError(
            f"calibrate: the output of {cell.name} has several parts; calibrate the layer with the cell that sends "
            "spikes alone, its parameters are the same"
        )
    gain, found = _search(cell, layer, inputs, rate)
    if not isinstance(found, Tracer) and not abs(found - rate) <= 0.2 * rate:
        raise ValueError(
            f"calibrate: no gain of w_in makes the layer fire at {float(rate):g}, the nearest is {float(found):.3g}; "
            "inputs may be too few (at zero they drive nothing), or bias and w_rec alone keep the layer active"
        )
    return _scaled(layer, gain)


def _scaled(layer: Params, gain: Array) -> Params:
    return {**layer, "w_in": jax.tree.map(lambda w: (gain * w).astype(jnp.result_type(w)), layer["w_in"])}


@partial(jax.jit, static_argnums=0)
def _search(cell: Cell, layer: Params, inputs: Array, rate: Array) -> tuple[Array, Array]:
    """The gain and the rate at it."""

    def rate_at(octave):
        return jnp.abs(unroll(cell, _scaled(layer, 2**octave), inputs)).mean(dtype=float)

    def halve(_, ends):
        low, high = ends
        octave = (low[0] + high[0]) / 2
        middle = octave, rate_at(octave)
        choose = partial(jax.tree.map, lambda a, b: jnp.where(middle[1] < rate, a, b))
        return choose(middle, low), choose(high, middle)

    octaves = jnp.asarray(OCTAVES)
    rates = jax.lax.map(rate_at, octaves)
    first = jnp.argmax(rates >= rate)  # 0 if there is none
    nearest = jnp.argmin(jnp.where(jnp.isfinite(rates), jnp.abs(rates - rate), jnp.inf))
    ends = tuple(jnp.where(first > 0, index, nearest) for index in (first - 1, first))
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, tuple((octaves[index], rates[index]) for index in ends))
    octave, found = jax.tree.map(lambda a, b: jnp.where(rate - low[1] < high[1] - rate, a, b), low, high)
    return 2**octave, found
