"""`unroll`, and the frame through which a transform gives it a carry.

Called plainly, `unroll` runs from rest. Within a frame, each `unroll` takes the next layer's carry
(state, last output, traces) in call order and leaves the new one: so a function that uses
`unroll` becomes one that continues where it stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, Bool, Float, PyTree

from hyprjax import _check, _segment
from hyprjax._cell import Cell, Params
from hyprjax._segment import Carry


class Frame:
    """Carries in, carries out, for the `unroll` calls of one run of a function, in call order."""

    def __init__(self, carry: tuple[Carry, ...] | None, options: _segment.Options | None):
        self.carry = carry  # None: only the rest carry is asked for, nothing is run
        self.options = options  # None: no traces
        self.next_carry: list[Carry] = []
        self.tokens: list[Array] = []
        self.trace_state = get_opaque_trace_state(convention="flax")


# A user context is part of jit's cache key: a function compiled outside a frame, or in another one,
# is traced again rather than reused with the wrong carry.
_current_frame = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def frame(carry: tuple[Carry, ...] | None, options: _segment.Options | None) -> Iterator[Frame]:
    """Runs the `unroll` calls inside the `with` block from `carry` and collects their new one.

    Raises:
      ValueError: at the end of the block, if no `unroll` was called, or fewer than the carry has.
    """
    entered = Frame(carry, options)
    with _current_frame(entered):
        yield entered
    if not entered.next_carry:
        raise ValueError(
            "the function given to a hyprjax transform must call hyprjax.unroll on at least one layer, and called none"
        )
    if carry is not None and len(entered.next_carry) != len(carry):
        raise ValueError(
            f"the function called unroll {len(entered.next_carry)} times, but its carry is that of {len(carry)} calls; "
            "the unroll calls must be the same in every segment"
        )


def unroll(
    cell: Cell,
    params: Params,
    inputs: Float[Array, "t *batch n_in"],
    *,
    resets: Bool[Array, "t *batch"] | None = None,
) -> Float[Array, "t *batch n_out"]:
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

    Inside `hypr_grad`, `hypr_value_and_grad`, `hypr_stream` and `stream` it continues from the carry.

    Args:
      cell: the neuron model.
      params: the layer's parameters as `init_layer` makes them; `w_rec` and `bias` are optional.
      inputs: inputs, time first, any number of batch axes; bool and int spikes are converted.
      resets: True at t puts state, last output and traces back to rest before step t.

    Returns:
      The neurons' outputs, time first.

    Raises:
      ValueError: shapes that do not fit, an empty sequence, a `step` that changes the state's
        shape, or a call under a transformation nested inside a hyprjax transform.
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
    params, inputs, resets = _check.layer(cell, params, inputs, resets)
    current = _current_frame.value
    if current is None:
        start = _segment.rest(cell, params, inputs, None)
        outputs, *_ = _segment.run(cell, params, inputs, start.state, start.output, resets)
        return outputs
    if get_opaque_trace_state(convention="flax") != current.trace_state:
        raise ValueError(
            "unroll was called under a jax transformation (jit, vmap, scan, checkpoint, grad, cond, ...) inside a "
            "function given to a hyprjax transform; call unroll directly in that function and put the "
            "transformation outside, as in jax.jit(hypr_grad(loss_fn))"
        )

    rest = _segment.rest(cell, params, inputs, current.options)
    if current.carry is None:
        current.next_carry.append(rest)
        return jnp.broadcast_to(rest.output, (len(inputs), *rest.output.shape))
    carry = _take(current.carry, len(current.next_carry), rest)
    if current.options is None:
        outputs, state, output, _ = _segment.run(cell, params, inputs, carry.state, carry.output, resets)
        current.next_carry.append(Carry(state, output, None))
    else:
        result: Any = _segment.segment(cell, current.options, params, inputs, carry, resets)
        outputs, next_carry, token = result
        current.next_carry.append(next_carry)
        current.tokens.append(token)
    return outputs


def _take(carries: tuple[Carry, ...], index: int, rest: Carry) -> Carry:
    """The carry of an `unroll` call, checked against the one it would have at rest."""
    if index >= len(carries):
        raise ValueError(
            f"unroll call number {index + 1} has no carry: the function called unroll {len(carries)} times when its "
            "carry was made; the unroll calls must be the same in every segment"
        )
    carry = carries[index]
    if rest.traces is not None and carry.traces is None:
        raise ValueError(
            f"the carry of unroll call number {index + 1} holds no eligibility traces, it was made by stream; "
            "make it with the init of hypr_stream"
        )
    have, want = (carry.state, carry.output), (rest.state, rest.output)
    if _check.describe(have) != _check.describe(want):
        raise ValueError(
            f"unroll call number {index + 1} does not fit its carry: the carry holds {_check.describe(have)}, the call "
            f"needs {_check.describe(want)}; cell, batch shape and dtype must be the same in every segment"
        )
    if rest.traces is not None and jax.tree.map(jnp.shape, carry.traces) != jax.tree.map(jnp.shape, rest.traces):
        raise ValueError(
            f"the carry of unroll call number {index + 1} holds eligibility traces of another layer or kind (traces, "
            "trace_rank); make it with the init of the same hypr_stream"
        )
    return carry


def rest_carry(
    fn: Callable[..., Any], options: _segment.Options | None, params: PyTree, xs: PyTree, args: tuple[Any, ...]
) -> tuple[Carry, ...]:
    """The carry before `fn(params, xs, *args)` has run at all."""

    @jax.jit  # for the dead code elimination: of `fn`, only what the rest states need is computed
    def record(params, xs):
        with frame(None, options) as entered:
            fn(params, xs, *args)
        return tuple(entered.next_carry)

    return record(params, xs)


class Stream(NamedTuple):
    """Stateful inference: a pair of pure functions.

    Attributes:
      init: `(params, x, *args) -> carry`, the carry at rest; of `x` only the shapes matter.
      apply: `(params, carry, x, *args) -> (output, carry)`.
    """

    init: Callable[..., tuple[Carry, ...]]
    apply: Callable[..., tuple[Any, tuple[Carry, ...]]]


def stream(fn: Callable[..., Any]) -> Stream:
    """Turns a function that uses `unroll` into one that continues where it stopped.

    No traces: for inference, one step at a time or in chunks of any length. `jax.grad` of `apply`
    is backpropagation through the chunk, that is, truncated BPTT.

    Args:
      fn: `(params, x, *args) -> output`; `x` a pytree with time as leading axis.

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

    def init(params: PyTree, x: PyTree, *args: Any) -> tuple[Carry, ...]:
        return rest_carry(fn, None, params, x, args)

    def apply(params: PyTree, carry: tuple[Carry, ...], x: PyTree, *args: Any) -> tuple[Any, Any]:
        with frame(carry, None) as entered:
            output = fn(params, x, *args)
        return output, tuple(entered.next_carry)

    return Stream(init, apply)
