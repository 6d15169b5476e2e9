"""HYPR as transformations of a loss function: one segment, an endless stream of them, a whole sequence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hyprjax import _check, _segment, _sharding
from hyprjax._segment import Options
from hyprjax._stream import frame, rest_carry

LossFn = Callable[..., Any]
Carry = tuple[_segment.Carry, ...]


class Learner(NamedTuple):
    """Online learning on a stream: a pair of pure functions.

    Attributes:
      init: `(params, xs, *args) -> carry`, the carry at rest; of `xs` only the shapes matter.
      value_and_grad: `(params, carry, xs, *args) -> ((loss, grads), carry)`, or
        `(((loss, aux), grads), carry)` with `has_aux`; `xs` is the next segment, of any length.
    """

    init: Callable[..., Carry]
    value_and_grad: Callable[..., tuple[tuple[Any, PyTree], Carry]]


def hypr_stream(
    loss_fn: LossFn,
    *,
    recurrent_credit: str = "none",
    has_aux: bool = False,
    scan: str = "auto",
    trace_dtype: Any = None,
    traces: str = "full",
    trace_rank: int = 1,
) -> Learner:
    """HYPR on an endless stream: loss and gradient of one segment after another, at constant memory.

    The carry holds states and eligibility traces; parameters may change between segments. The
    reference semantics, for one layer of neurons with state `s`, parameters `w` and output `z`:

    ```python
    for t in range(segment_length):  # ε is ∂s/∂w; J, G, B, g are the local derivatives of cell.step
        dz_dw = G(s, I[t]) * ε + g(s, I[t]) * x[t]
        ε = J(s, I[t]) * ε + B(s, I[t]) * x[t]
        s, z = cell.step(neuron, s, I[t])
        grads += dloss_dz[t] * dz_dw
    ```

    Args:
      loss_fn: `(params, xs, *args) -> loss` (or `(loss, aux)`), a scalar of one segment that calls
        `unroll`; the function one would give to `jax.grad`.
      recurrent_credit: `"none"`, the paper's rule: credit passes through a neuron's own state only.
        `"segment"`: inside a segment it also passes through `w_rec`, as in BPTT.
      has_aux: whether `loss_fn` returns `(loss, aux)`.
      scan: how the linear recursions run: `"sequential"` (one reversed scan), `"associative"` (the segment in
        about `√λ` chunks side by side, `λ` best a number with a divisor near that; the reversed scan of
        `recurrent_credit="segment"` stays sequential) or `"auto"`: sequential on a CPU, unless the layer is small.
      trace_dtype: dtype in which the traces of the weights wait between segments; that of the inputs by default.
        `jnp.bfloat16` halves their memory; docs/streams.md has the error that it makes.
      traces: `"full"`, or `"factored"` for large layers: traces of the weights of low rank, `B·(m+2n+1)·k·trace_rank`
        instead of `B·(m+n+1)·n·k` numbers a layer. Exact for neurons that share one leak and have no adaptation, an
        approximation elsewhere; docs/scaling.md has its quality for each neuron model.
      trace_rank: rank of factored traces, at least 1.

    Returns:
      A `Learner(init, value_and_grad)`.

    Raises:
      ValueError: an unknown option, or, when called, data that does not fit (see `unroll`), or a
        loss without `unroll` or with an `unroll` under a nested transformation.
      TypeError: when called, a loss that is not a real scalar, parameters that are not floating.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.brf()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=5, recurrent=True)
      >>> learner = hj.hypr_stream(lambda params, xs: hj.unroll(cell, params, xs).mean())
      >>> xs = jax.random.normal(jax.random.key(1), (3, 20, 3))
      >>> carry = learner.init(params, xs[0])
      >>> for segment in xs:
      ...     (loss, grads), carry = learner.value_and_grad(params, carry, segment)
      ...     params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    """
    options = _options(recurrent_credit, scan, trace_dtype, traces, trace_rank)

    def init(params: PyTree, xs: PyTree, *args: Any) -> Carry:
        _check.time_steps("xs", xs)
        return rest_carry(loss_fn, options, params, xs, args)

    def value_and_grad(params: PyTree, carry: Carry, xs: PyTree, *args: Any) -> tuple[tuple[Any, PyTree], Carry]:
        _check.floating("params", params)
        _check.time_steps("xs", xs)
        loss, aux, grads, carry = _differentiate(loss_fn, options, has_aux, params, carry, xs, args)
        return ((loss, aux) if has_aux else loss, grads), carry

    return Learner(init, value_and_grad)


def hypr_value_and_grad(
    loss_fn: LossFn,
    *,
    segment_length: int | None = None,
    recurrent_credit: str = "none",
    has_aux: bool = False,
    reduction: str = "mean",
    scan: str = "auto",
    trace_dtype: Any = None,
    traces: str = "full",
    trace_rank: int = 1,
) -> Callable[..., tuple[Any, PyTree]]:
    """`jax.value_and_grad` with HYPR: memory does not grow with the length of the sequence.

    The sequence is cut into segments; the result is

    ```python
    learner = hypr_stream(loss_fn)
    carry, loss, grads = learner.init(params, xs[:segment_length]), 0, 0
    for start in range(0, T, segment_length):
        segment = xs[start : start + segment_length]
        (segment_loss, segment_grads), carry = learner.value_and_grad(params, carry, segment)
        weight = len(segment) / T  # reduction="mean"; 1 for "sum"
        loss, grads = loss + weight * segment_loss, grads + weight * segment_grads
    ```

    so that a loss that is a mean over time steps keeps its value, whatever the segment length.

    Args:
      loss_fn: `(params, xs, *args) -> loss` (or `(loss, aux)`), a scalar that calls `unroll`. It is
        called on one segment of `xs` at a time.
      segment_length: time steps per segment; cut to T when longer. Memory grows with it. By default
        about 250: the length between 125 and 500 that divides T and is nearest to 250, or, where none does, T cut
        into the number of segments that comes nearest to 250 steps each (measured in docs/performance.md).
      recurrent_credit: `"none"` or `"segment"`, see `hypr_stream`.
      has_aux: whether `loss_fn` returns `(loss, aux)`; the leaves of `aux` come back stacked, one
        entry per segment.
      reduction: `"mean"` or `"sum"` over segments.
      scan: `"auto"`, `"associative"` or `"sequential"`, see `hypr_stream`.
      trace_dtype: see `hypr_stream`.
      traces: `"full"` or `"factored"`, see `hypr_stream`.
      trace_rank: see `hypr_stream`.

    Returns:
      `f(params, xs, *args) -> (loss, grads)`, or `((loss, aux), grads)`. `xs` is a pytree whose
      leaves share their leading time axis; `args` are passed whole to every segment. Put `jax.jit`
      around it, as around `jax.grad`.

    Raises:
      ValueError: an unknown option, a segment length below 1, or, when called, `xs` that are empty
        or differ in length, and all that `hypr_stream` refuses.
      TypeError: a segment length that is not an int, and all that `hypr_stream` refuses.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell, readout = hj.se_adlif(), hj.leaky_integrator()
      >>> k1, k2 = jax.random.split(jax.random.key(0))
      >>> params = {
      ...     "hidden": hj.init_layer(k1, cell, n_in=4, n_out=36, recurrent=True),
      ...     "readout": hj.init_layer(k2, readout, n_in=36, n_out=6),
      ... }
      >>> def loss_fn(params, xs):
      ...     spikes = hj.unroll(cell, params["hidden"], xs["inputs"])
      ...     return jnp.square(hj.unroll(readout, params["readout"], spikes) - xs["targets"]).mean()
      >>> xs = {"inputs": jnp.ones((300, 8, 4)), "targets": jnp.ones((300, 8, 6))}
      >>> loss, grads = jax.jit(hj.hypr_value_and_grad(loss_fn, segment_length=100))(params, xs)
      >>> jax.tree.structure(grads) == jax.tree.structure(params)
      True
    """
    _check.segment_length(segment_length)
    _check.choice("reduction", reduction, ("mean", "sum"))
    options = _options(recurrent_credit, scan, trace_dtype, traces, trace_rank)

    def value_and_grad(params: PyTree, xs: PyTree, *args: Any) -> tuple[Any, PyTree]:
        _check.floating("params", params)
        steps = _check.time_steps("xs", xs)
        length = min(segment_length or _default_segment_length(steps), steps)
        scanned = (steps - 1) // length  # every segment but the last, whose traces nobody will read
        last_length = steps - scanned * length

        carry = rest_carry(loss_fn, options, params, _slice(xs, 0, length), args)

        def segment(carry, start, length, options):
            xs_segment = _slice(xs, start, length)
            return _differentiate(loss_fn, options, has_aux, params, carry, xs_segment, args)

        def scanned_segment(state, index):
            carry, total = state
            loss, aux, grads, carry = segment(carry, index * length, length, options)
            return (carry, _add(total, grads, weight)), (loss, aux, index)

        last = options._replace(last=True)
        if scanned == 0:
            loss, aux, grads, _ = segment(carry, 0, steps, last._replace(first=True))
            auxs = jax.tree.map(lambda one: jnp.asarray(one)[None], aux)
        else:
            weight, last_weight = (length / steps, last_length / steps) if reduction == "mean" else (1.0, 1.0)
            indices = jnp.arange(scanned)
            (carry, total), (losses, auxs, done) = jax.lax.scan(scanned_segment, (carry, _zeros(params)), indices)

            def last_segment(carry):
                loss, aux, grads, _ = segment(carry, scanned * length, last_length, last)
                _check_stackable(auxs, aux)
                return loss, aux, grads

            def never(carry):
                value = jax.tree.map(lambda many: _sharding.zeros_like(many[0]), (losses, auxs))
                return *value, jax.tree.map(_sharding.zeros_like, params)

            # A branch always taken: without it XLA prepares the last segment's buffers before the loop over the others
            # has released its own, a third more memory.
            loss, aux, grads = jax.lax.cond(done[-1] >= 0, last_segment, never, carry)
            loss = weight * losses.sum() + last_weight * loss
            total = _add(total, grads, last_weight)
            grads = jax.tree.map(lambda t, g: t.astype(g.dtype), total, grads)
            auxs = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), auxs, aux)
        return ((loss, auxs) if has_aux else loss), grads

    return value_and_grad


def hypr_grad(
    loss_fn: LossFn,
    *,
    segment_length: int | None = None,
    recurrent_credit: str = "none",
    has_aux: bool = False,
    reduction: str = "mean",
    scan: str = "auto",
    trace_dtype: Any = None,
    traces: str = "full",
    trace_rank: int = 1,
) -> Callable[..., PyTree]:
    """`jax.grad` with HYPR: memory does not grow with the length of the sequence.

    Arguments and errors are those of `hypr_value_and_grad`.

    Returns:
      `f(params, xs, *args) -> grads`, or `(grads, aux)` with `has_aux`.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.brf()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=5, recurrent=True)
      >>> loss_fn = lambda params, xs: hj.unroll(cell, params, xs).mean()
      >>> grads = hj.hypr_grad(loss_fn, segment_length=10)(params, jnp.ones((25, 3)))
      >>> grads["w_rec"].shape
      (5, 5)
    """
    value_and_grad = hypr_value_and_grad(
        loss_fn,
        segment_length=segment_length,
        recurrent_credit=recurrent_credit,
        has_aux=has_aux,
        reduction=reduction,
        scan=scan,
        trace_dtype=trace_dtype,
        traces=traces,
        trace_rank=trace_rank,
    )

    def grad(params: PyTree, xs: PyTree, *args: Any) -> PyTree:
        value, grads = value_and_grad(params, xs, *args)
        return (grads, value[1]) if has_aux else grads

    return grad


def _differentiate(
    loss_fn: LossFn,
    options: Options,
    has_aux: bool,
    params: PyTree,
    carry: Carry,
    xs: PyTree,
    args: tuple[Any, ...],
) -> tuple[Array, Any, PyTree, Carry]:
    """Loss, aux, gradient and next carry of one segment."""

    def run(params, traces):
        entering = tuple(layer._replace(traces=trace) for layer, trace in zip(carry, traces, strict=True))
        with frame(entering, options) as entered:
            value = loss_fn(params, xs, *args)
        (_check.loss_and_aux if has_aux else _check.loss)(value)
        loss, aux = value if has_aux else (value, None)
        return (loss, entered.tokens), (aux, entered.next_carry)

    (loss, tokens), pull, (aux, layers) = jax.vjp(run, params, [layer.traces for layer in carry], has_aux=True)
    # The "cotangent" of the traces is the traces at the end of the segment (see `_segment`).
    grads, traces = pull((jnp.ones_like(loss), [jnp.ones_like(token) for token in tokens]))
    return loss, aux, grads, tuple(layer._replace(traces=trace) for layer, trace in zip(layers, traces, strict=True))


def _default_segment_length(steps: int) -> int:
    """About 250 steps; a last segment as long as the others compiles faster."""
    divisors = [length for length in range(125, 501) if steps % length == 0]
    if divisors:
        return min(divisors, key=lambda length: abs(math.log(length / 250)))
    return math.ceil(steps / max(1, round(steps / 250)))


def _options(recurrent_credit: str, scan: str, trace_dtype: Any, traces: str, trace_rank: int) -> Options:
    _check.choice("recurrent_credit", recurrent_credit, ("none", "segment"))
    _check.choice("scan", scan, ("auto", "associative", "sequential"))
    _check.choice("traces", traces, ("full", "factored"))
    if not isinstance(trace_rank, int) or trace_rank < 1:
        raise ValueError(f"trace_rank must be a positive int, got {trace_rank!r}")
    rank = trace_rank if traces == "factored" else None
    return Options(scan, recurrent_credit, _check.trace_dtype(trace_dtype), rank)


def _slice(xs: PyTree, start: Any, length: int) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(jnp.asarray(x), start, length), xs)


def _zeros(params: PyTree) -> PyTree:
    """Accumulators of the gradient, of float32 at least."""
    return jax.tree.map(lambda p: _sharding.zeros_like(p, jnp.promote_types(jnp.result_type(p), jnp.float32)), params)


def _add(total: PyTree, grads: PyTree, weight: float) -> PyTree:
    return jax.tree.map(lambda t, g: t + weight * g.astype(t.dtype), total, grads)


def _check_stackable(auxs: PyTree, last: PyTree) -> None:
    for many, one in zip(jax.tree.leaves(auxs), jax.tree.leaves(last), strict=True):
        if many.shape[1:] != jnp.shape(one):
            raise ValueError(
                f"aux has shape {many.shape[1:]} in a full segment but {jnp.shape(one)} in the shorter last one, so it "
                "cannot be stacked; choose a segment_length that divides the number of time steps, or reduce aux over "
                "time"
            )
