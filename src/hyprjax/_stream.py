"""`unroll`, one layer over a sequence, and `stream`, which lets a function that uses it continue where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, PyTree

from hyprjax import _program, _sequence, _sharding, _unroll
from hyprjax._cell import Cell, Params
from hyprjax._checks import arguments
from hyprjax._checks.layer import checked_layer
from hyprjax._program import Program
from hyprjax._segment import Carry


def unroll(
    cell: Cell,
    params: Params,
    inputs: PyTree[Float[Array, "t *batch _"]],
    *,
    resets: Bool[Array, "t *batch"] | None = None,
) -> PyTree[Float[Array, "t *batch n_out"]]:
    """Runs one layer of neurons over a sequence.

    Plainly, this is a `lax.scan` from rest, and `jax.grad` of it is backpropagation through time:

    ```python
    state, z = cell.rest(params["neuron"], batch_shape, dtype), 0
    for t in range(T):
        if resets is not None and resets[t]:
            state, z = cell.rest(params["neuron"], batch_shape, dtype), 0
        current = inputs[t] @ params["w_in"] + z @ params["w_rec"] + params["bias"]
        state, z = cell.step(params["neuron"], state, current)
        outputs[t] = z
    ```

    In a function given to one of the transforms (`hypr`, `bptt`, `hypr_grad`, `hypr_stream`, `stream`, ...) it
    continues from the carry, and may stand under `jax.jit`, `jax.vmap`, `jax.checkpoint` and in a `jax.lax.scan` over
    layers.

    Args:
      cell: the neuron model.
      params: the layer's parameters as `init_layer` makes them; `w_rec` and `bias` are optional.
      inputs: inputs, time first, any number of batch axes; bool and int spikes are converted. Of a cell with ports one
        array for all of them or a dict of one for each that has `w_in`.
      resets: True at t puts state, last output and traces back to rest before step t.

    Returns:
      The neurons' outputs, time first: an array, or the pytree that the cell has as its output.

    Raises:
      ValueError: shapes that do not fit, an empty sequence, a `step` that changes the state's shape.
      TypeError: complex inputs, `params` that are not floating, `resets` that are not bool, a
        `step` that changes the state's dtype.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.alif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=10, n_out=20, recurrent=True)
      >>> spikes = jax.random.bernoulli(jax.random.key(1), 0.1, (100, 8, 10))
      >>> hj.unroll(cell, params, spikes).shape
      (100, 8, 20)
    """
    return _unroll.unroll(cell, *checked_layer(cell, params, inputs, resets, in_transform=_program.tracing()))


class Stream(NamedTuple):
    """Stateful inference: a pair of pure functions.

    Attributes:
      init: `(params, x, *args) -> carry`, the carry at rest; of `x` only the shapes matter.
      apply: `(params, carry, x, *args) -> (output, carry)`.
    """

    init: Callable[..., tuple[Carry, ...]]
    apply: Callable[..., tuple[Any, tuple[Carry, ...]]]


def stream(fn: Callable[..., Any], *, time_axis: Any = 0) -> Stream:
    """Turns a function that uses `unroll` into one that continues where it stopped.

    No traces: for inference, one step at a time or in chunks of any length. `jax.grad` of `apply`
    is backpropagation through the chunk, that is, truncated BPTT.

    Args:
      fn: `(params, x, *args, **kwargs) -> output`; `x` a pytree with time as leading axis.
      time_axis: the time axis of `x`, if it is another; see `hypr`.

    Returns:
      A `Stream(init, apply)`. Both raise a ValueError if `fn` calls no `unroll`.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.lif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=5, recurrent=True)
      >>> net = hj.stream(lambda params, x: hj.unroll(cell, params, x))
      >>> x = jnp.ones((10, 3))
      >>> carry = net.init(params, x)
      >>> first, carry = net.apply(params, carry, x[:4])
      >>> rest, carry = net.apply(params, carry, x[4:])
      >>> bool((jnp.concatenate([first, rest]) == hj.unroll(cell, params, x)).all())
      True
    """
    arguments.function("stream", fn)

    def init(params: PyTree, x: PyTree, *args: Any, **kwargs: Any) -> tuple[Carry, ...]:
        call = _sequence.call(fn, time_axis, params, x, args, kwargs)
        program, operands, _ = _sequence.one_segment("stream", call)
        return _program.rest(program, None, operands)

    def apply(params: PyTree, carry: tuple[Carry, ...], x: PyTree, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        arguments.carry_and_others("stream", "apply", params, carry, x)
        call = _sequence.call(fn, time_axis, params, _sharding.vary(x, carry), args, kwargs)
        program, operands, _ = _sequence.one_segment("stream", call)
        carry = _program.check_carry("stream", program, None, operands, carry)
        results, carry = _apply(program, operands, carry)
        return jax.tree.unflatten(program.tree, results), carry

    return Stream(init, apply)


@partial(jax.jit, static_argnums=0)
def _apply(program: Program, operands: list[Array], carry: tuple[Carry, ...]) -> tuple[list[Array], tuple[Carry, ...]]:
    return _program.evaluate(program, None, operands, carry)[:2]
