"""HYPR: of a model, whatever the loss; of a loss function, in one pass; of one segment after another of a stream.

All three run a segment and pull it back (`_pull_segment`), which gives the gradient and the next carry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hyprjax import _backward, _program, _sequence, _sharding
from hyprjax._backward import Wanted
from hyprjax._checks import arguments, start
from hyprjax._program import Program
from hyprjax._segment import Carry, Options
from hyprjax._sequence import Plan

LossFn = Callable[..., Any]


class Learner(NamedTuple):
    """Online learning on a stream: a pair of pure functions.

    Attributes:
      init: `(params, xs, *args) -> carry`, the carry at rest; of `xs` only the shapes matter.
      value_and_grad: `(params, carry, xs, *args) -> ((loss, grads), carry)`, or
        `(((loss, aux), grads), carry)` with `has_aux`; `xs` is the next segment, of any length.
    """

    init: Callable[..., tuple[Carry, ...]]
    value_and_grad: Callable[..., tuple[tuple[Any, PyTree], tuple[Carry, ...]]]


def hypr(
    fn: Callable[..., PyTree],
    *,
    segment_length: int | None = None,
    recurrent_credit: Literal["none", "segment"] = "none",
    scan: Literal["auto", "associative", "sequential"] = "auto",
    chunk_length: int | None = None,
    trace_dtype: Any = None,
    traces: Literal["full", "factored"] = "full",
    trace_rank: int = 1,
    time_axis: Any = 0,
    out_time_axis: Any = None,
    check: bool = True,
) -> Callable[..., PyTree]:
    """A model whose derivative is HYPR: the same outputs, and under `jax.grad` memory that does not grow with time.

    The model is run segment by segment, forward and, when it is differentiated, once more, traces carried on, so that

    ```python
    def backward(params, xs, cotangents):  # what jax.grad does through hypr(fn)
        learner = hypr_stream(lambda params, x, ct: (ct * fn(params, x)).sum())
        carry, grads = learner.init(params, xs[:segment_length], cotangents[:segment_length]), 0
        for start in range(0, T, segment_length):
            segment = slice(start, start + segment_length)
            (_, segment_grads), carry = learner.value_and_grad(params, carry, xs[segment], cotangents[segment])
            grads += segment_grads
    ```

    Any loss of the outputs of the whole sequence will do: of the last step, of spike counts, of an average over time.
    What is outside of the model, such as a readout, is differentiated by JAX, exactly and through all of time.

    Args:
      fn: the model, `(params, xs, *args, **kwargs) -> outputs`; it calls `unroll`, and every output has a time axis.
      segment_length: time steps per segment; by default about 250, see `hypr_value_and_grad`.
      recurrent_credit: `"none"` or `"segment"`, see `hypr_stream`.
      scan: `"auto"`, `"associative"` or `"sequential"`, see `hypr_stream`.
      chunk_length: see `hypr_stream`.
      trace_dtype: see `hypr_stream`.
      traces: `"full"` or `"factored"`, see `hypr_stream`.
      trace_rank: see `hypr_stream`.
      time_axis: the time axis of `xs`: an int, or a pytree of ints that is a prefix of `xs`, as `in_axes` of
        `jax.vmap`; None for a leaf without time, which is handed to every segment whole.
      out_time_axis: the same for the outputs; by default `time_axis` where that is one int, else 0.
      check: whether to refuse a function that is another one for another segment length: one in which something
        between layers or in the outputs mixes or picks time steps, or draws the same random numbers in every segment.
        What cannot be followed, a callback, say, is let through.

    Returns:
      A function with the arguments and the value of `fn`. Its derivative with respect to `params`, `args` and `xs`,
      and to what `fn` closes over, is HYPR's. Integer and bool arrays have no gradient.

    Raises:
      ValueError: an unknown option; when called, an output without the time axis, `xs` that are empty or differ in
        length, an `unroll` over other steps than those of its segment or where it cannot be given a carry
        (`jax.lax.cond`, `jax.lax.while_loop`, `jax.custom_vjp`, `jax.shard_map`), an `init` of `scan` that depends on
        `params`.
      TypeError: a segment length or time axis that is not an int; a second derivative; forward mode (`jax.jvp`).

    Examples:
      >>> import jax, jax.numpy as jnp, optax, hyprjax as hj
      >>> cell, readout = hj.se_adlif(), hj.leaky_integrator()
      >>> k1, k2 = jax.random.split(jax.random.key(0))
      >>> params = {
      ...     "hidden": hj.init_layer(k1, cell, n_in=4, n_out=36, recurrent=True),
      ...     "readout": hj.init_layer(k2, readout, n_in=36, n_out=6),
      ... }
      >>> def model(params, xs):
      ...     return hj.unroll(readout, params["readout"], hj.unroll(cell, params["hidden"], xs))
      >>> xs, labels = jnp.ones((300, 8, 4)), jnp.zeros(8, int)
      >>> def loss(params):
      ...     logits = hj.hypr(model, segment_length=100)(params, xs).mean(0)  # of the whole sequence
      ...     return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
      >>> grads = jax.jit(jax.grad(loss))(params)
      >>> grads["hidden"]["w_rec"].shape
      (36, 36)
    """
    length = arguments.positive_int("segment_length", segment_length, optional=True)
    run = partial(_model, _options(recurrent_credit, scan, chunk_length, trace_dtype, traces, trace_rank))
    options = {"time_axis": time_axis, "out_time_axis": out_time_axis, "check": check}
    return _sequence.wrap("hypr", fn, run, length, _sequence.default_length, **options)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _model(options: Options, plan: Plan, axes: tuple[int, ...], *operands: Array) -> list[Array]:
    return _sequence.run(plan, axes, operands)[0]


def _forward(options, plan, axes, *operands):
    values = [operand.value for operand in operands]
    return _sequence.run(plan, axes, values)[0], (_backward.perturbed(plan, operands), values)


def _pull(options, plan, axes, residuals, cotangents):
    wanted, operands = residuals
    start.check("hypr", plan.program.jaxpr, [i in {*wanted.whole, *wanted.timed} for i in plan.takes])
    operands = _backward.once("hypr", operands)
    return _gradients(plan.last_apart, options, axes, wanted, operands, _backward.nonzero(cotangents))


_model.defvjp(_forward, _pull, symbolic_zeros=True)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _gradients(plan, options, axes, wanted, operands, cotangents):
    """From the cotangents of the results (or None) over the whole sequence: segments in order, traces carried on."""
    (_, total), full, last = _sweep(plan, options, wanted, operands, lambda last: 1.0, (cotangents, axes))
    return _backward.spread(plan, wanted, operands, total, full and full[1], last[1])


def hypr_stream(
    loss_fn: LossFn,
    *,
    recurrent_credit: Literal["none", "segment"] = "none",
    has_aux: bool = False,
    scan: Literal["auto", "associative", "sequential"] = "auto",
    chunk_length: int | None = None,
    trace_dtype: Any = None,
    traces: Literal["full", "factored"] = "full",
    trace_rank: int = 1,
    time_axis: Any = 0,
    check: bool = True,
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
      scan: how the linear recursions run: `"sequential"` (one reversed scan), `"associative"` (the segment in chunks
        side by side, joined by `jax.lax.associative_scan`; the reversed scan of `recurrent_credit="segment"` stays
        sequential) or `"auto"`: sequential for layers whose steps have work enough each, by backend.
      chunk_length: steps per chunk of the associative scan, or the next lower divisor of those of a segment; 1 for a
        scan over single steps, which needs memory for the derivatives of each. By default about `√λ`.
      trace_dtype: dtype in which the traces of the weights wait between segments; that of the inputs by default.
        `jnp.bfloat16` halves their memory; docs/streams.md has the error that it makes.
      traces: `"full"`, or `"factored"` for large layers: traces of the weights of low rank, `B·(m+2n+1)·k·trace_rank`
        instead of `B·(m+n+1)·n·k` numbers a layer. Exact for neurons that share one leak and have no adaptation, an
        approximation elsewhere; docs/scaling.md has its quality for each neuron model.
      trace_rank: rank of factored traces, at least 1.
      time_axis: the time axis of `xs`, see `hypr`.
      check: whether to refuse a function that is another one for another segment length, see `hypr`, and a loss of
        several segments that is not a sum or mean over time steps.

    Returns:
      A `Learner(init, value_and_grad)`.

    Raises:
      ValueError: an unknown option, or, when called, data that does not fit (see `unroll`), or a
        loss without `unroll` or with an `unroll` under a nested transformation.
      TypeError: when called, a loss that is not a real scalar, parameters that are not floating, a derivative of the
        loss or the gradient.

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
    arguments.function("hypr_stream", loss_fn)
    options = _options(recurrent_credit, scan, chunk_length, trace_dtype, traces, trace_rank)

    def init(params: PyTree, xs: PyTree, *args: Any, **kwargs: Any) -> tuple[Carry, ...]:
        call = _sequence.call(loss_fn, time_axis, params, xs, args, kwargs)
        program, operands, _ = _sequence.one_segment("hypr_stream", call)
        return _program.rest(program, options, operands)

    def value_and_grad(
        params: PyTree, carry: tuple[Carry, ...], xs: PyTree, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, PyTree], tuple[Carry, ...]]:
        arguments.carry_and_others("hypr_stream", "value_and_grad", params, carry, xs)
        arguments.floating("params", params)
        call = _sequence.call(loss_fn, time_axis, params, _sharding.vary(xs, carry), args, kwargs)
        program, operands, of_params = _sequence.one_segment("hypr_stream", call, check=check)
        _check_loss(program, has_aux)
        carry = _program.check_carry("hypr_stream", program, options, operands, carry)
        operands, carry = _backward.once("hypr_stream", (operands, carry))
        results, grads, carry = _one_segment(program, options, operands, of_params, carry, None)
        return (_loss(program, results, has_aux), jax.tree.unflatten(jax.tree.structure(params), grads)), carry

    return Learner(init, value_and_grad)


def hypr_value_and_grad(
    loss_fn: LossFn,
    *,
    segment_length: int | None = None,
    recurrent_credit: Literal["none", "segment"] = "none",
    has_aux: bool = False,
    reduction: Literal["mean", "sum"] | None = None,
    scan: Literal["auto", "associative", "sequential"] = "auto",
    chunk_length: int | None = None,
    trace_dtype: Any = None,
    traces: Literal["full", "factored"] = "full",
    trace_rank: int = 1,
    time_axis: Any = 0,
    check: bool = True,
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
      reduction: over segments: `"sum"`, or `"mean"`, weighted by their lengths. By default the one that keeps the value
        of the loss, a sum or a mean over time steps, found by tracing it; where that cannot be told, an error asks for
        it (with `check=False`: `"mean"`).
      scan: `"auto"`, `"associative"` or `"sequential"`, see `hypr_stream`.
      chunk_length: see `hypr_stream`.
      trace_dtype: see `hypr_stream`.
      traces: `"full"` or `"factored"`, see `hypr_stream`.
      trace_rank: see `hypr_stream`.
      time_axis: the time axis of `xs`, see `hypr`.
      check: whether to refuse a function that is another one for another segment length, see `hypr`, and a loss of
        several segments that is not a sum or mean over time steps.

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
    arguments.function("hypr_grad", loss_fn)
    arguments.choice("reduction", reduction, (None, "mean", "sum"))
    length = arguments.positive_int("segment_length", segment_length, optional=True)
    options = _options(recurrent_credit, scan, chunk_length, trace_dtype, traces, trace_rank)

    def value_and_grad(params: PyTree, xs: PyTree, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        arguments.floating("params", params)
        call = _sequence.call(loss_fn, time_axis, params, xs, args, kwargs)
        length_here = length or _sequence.default_length(call.steps)
        plan, operands, found = _sequence.plan("hypr_grad", call, length_here, check=check)
        for program in (plan.program, plan.last):
            _check_loss(program, has_aux)
        _check_stackable(plan)
        reduce = reduction_over_segments(reduction, found, check)
        operands = _backward.once("hypr_grad", operands)
        results, grads = _value_and_grad(plan.last_apart, options, reduce, call.of_params, operands)
        return _loss(plan.last, results, has_aux), jax.tree.unflatten(jax.tree.structure(params), grads)

    return value_and_grad


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _value_and_grad(plan: Plan, options: Options, reduction: str, of_params: int, operands: list[Array]) -> Any:
    """Loss, auxiliary results stacked over segments, and the gradient of the parameters."""
    weight = partial(plan.weight, reduction=reduction)
    wanted = _backward.wanted(plan, range(of_params))
    (_, total), full, last = _sweep(plan, options, wanted, operands, weight, None)
    (loss, *auxs), _ = last
    loss, auxs = weight(True) * loss, [one[None] for one in auxs]
    if full is not None:
        (losses, *full_auxs), _ = full
        loss = weight(False) * losses.sum() + loss
        auxs = [jnp.concatenate([many, one]) for many, one in zip(full_auxs, auxs, strict=True)]
    return [loss, *auxs], [t.astype(p.dtype) for t, p in zip(total, operands, strict=False)]


def hypr_grad(
    loss_fn: LossFn,
    *,
    segment_length: int | None = None,
    recurrent_credit: Literal["none", "segment"] = "none",
    has_aux: bool = False,
    reduction: Literal["mean", "sum"] | None = None,
    scan: Literal["auto", "associative", "sequential"] = "auto",
    chunk_length: int | None = None,
    trace_dtype: Any = None,
    traces: Literal["full", "factored"] = "full",
    trace_rank: int = 1,
    time_axis: Any = 0,
    check: bool = True,
) -> Callable[..., PyTree]:
    """`jax.grad` with HYPR: memory does not grow with the length of the sequence.

    Args:
      loss_fn: `(params, xs, *args) -> loss` (or `(loss, aux)`), see `hypr_value_and_grad`.
      segment_length: time steps per segment; by default about 250, see `hypr_value_and_grad`.
      recurrent_credit: `"none"` or `"segment"`, see `hypr_stream`.
      has_aux: whether `loss_fn` returns `(loss, aux)`.
      reduction: whether the loss is a `"mean"` or a `"sum"` over time, see `hypr_value_and_grad`.
      scan: `"auto"`, `"associative"` or `"sequential"`, see `hypr_stream`.
      chunk_length: see `hypr_stream`.
      trace_dtype: see `hypr_stream`.
      traces: `"full"` or `"factored"`, see `hypr_stream`.
      trace_rank: see `hypr_stream`.
      time_axis: the time axis of `xs`, see `hypr`.
      check: whether to refuse a function that is another one for another segment length, see `hypr`.

    Returns:
      `f(params, xs, *args) -> grads`, or `(grads, aux)` with `has_aux`.

    Raises:
      ValueError: as `hypr_value_and_grad`.
      TypeError: as `hypr_value_and_grad`.

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
        chunk_length=chunk_length,
        trace_dtype=trace_dtype,
        traces=traces,
        trace_rank=trace_rank,
        time_axis=time_axis,
        check=check,
    )

    def grad(params: PyTree, xs: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        value, grads = value_and_grad(params, xs, *args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return grad


# --- one segment, and all of them -----------------------------------------------------------------


def _pull_segment(
    program: Program,
    options: Options,
    operands: Sequence[Array],
    places: Sequence[int],
    carry: Sequence[Carry],
    cotangents: Sequence[Array | None] | None,
) -> tuple[list[Array], list[Array], tuple[Carry, ...]]:
    """Results, gradients of the operands at `places`, and next carry.

    `cotangents` are those of the results, None where nothing comes back; None altogether: the first result is a loss.
    """

    def run(operands, traces):
        entering = [layer._replace(traces=trace) for layer, trace in zip(carry, traces, strict=True)]
        results, layers, tokens = _program.evaluate(program, options, operands, entering)
        pulled = results[:1] if cotangents is None else _backward.present(results, cotangents)
        return (pulled, tokens), (results, layers)

    def of_outputs(outputs):
        losses, tokens = jax.tree.map(jnp.ones_like, outputs)
        return losses if cotangents is None else _backward.present(cotangents, cotangents), tokens

    traces = [layer.traces for layer in carry]
    (results, layers), grads, traces = _backward.pull_back(run, of_outputs, operands, places, traces)
    # The "cotangent" of the traces is the traces at the end of the segment (see `_segment`).
    return results, grads, tuple(layer._replace(traces=trace) for layer, trace in zip(layers, traces, strict=True))


_one_segment = jax.jit(_pull_segment, static_argnums=(0, 1, 3))


def _sweep(
    plan: Plan,
    options: Options,
    wanted: Wanted,
    operands: Sequence[Array],
    weight: Callable[[bool], float],
    cotangents: tuple[Sequence[Array | None], tuple[int, ...]] | None,
) -> tuple[Any, Any, Any]:
    """Pulls all segments back, the first one first, traces carried on.

    `cotangents` are those of the results and their time axes; None for a loss function.

    Returns:
      As `_sequence.scan`: the last carry and the weighted sums of gradients, and of each segment its results (of a loss
      function) and the gradients of what is cut.
    """

    def segment(state, start, last):
        carry, total = state
        program, takes, given = plan.segment(operands, start, last)
        back = cotangents and _sequence.cut(*cotangents, start, plan.steps(last))
        indices, places = _backward.taken(wanted, takes)
        of_segment = options._replace(first=plan.full == 0, last=last)
        results, grads, carry = _pull_segment(program, of_segment, given, places, carry, back)
        total, timed = _backward.collect(wanted, indices, grads, total, weight(last))
        return (() if last else carry, total), ([] if cotangents else results, timed)

    program, _, given = plan.segment(operands, 0, plan.full == 0)
    start = _program.rest(program, options, given), _backward.zeros(wanted, operands)
    return _sequence.scan(plan, segment, start)


# --- options and results --------------------------------------------------------------------------


def _options(
    recurrent_credit: str, scan: str, chunk_length: int | None, trace_dtype: Any, traces: str, trace_rank: int
) -> Options:
    arguments.choice("recurrent_credit", recurrent_credit, ("none", "segment"))
    arguments.choice("scan", scan, ("auto", "associative", "sequential"))
    arguments.choice("traces", traces, ("full", "factored"))
    rank = arguments.positive_int("trace_rank", trace_rank)
    length = arguments.positive_int("chunk_length", chunk_length, optional=True)
    if length and scan == "sequential":
        raise ValueError('chunk_length is of scan="associative" and "auto"; scan="sequential" has no chunks')
    if rank > 1 and traces == "full":
        raise ValueError(f'trace_rank={rank} is of traces="factored"; traces="full" have none')
    rank = rank if traces == "factored" else None
    return Options(scan, length, recurrent_credit, arguments.trace_dtype(trace_dtype), rank)


def _loss(program: Program, results: Sequence[Array], has_aux: bool) -> Any:
    """The results of a loss function as it returns them."""
    value = jax.tree.unflatten(program.tree, results)
    return tuple(value) if has_aux else value


def _check_loss(program: Program, has_aux: bool) -> None:
    (arguments.loss_and_aux if has_aux else arguments.loss)(_program.results(program))


def reduction_over_segments(asked: str | None, found: str | None, check: bool = True) -> str:
    """`"mean"` or `"sum"`, from what the user asks for and what `time.check` finds."""
    if not check and found not in ("mean", "sum"):
        return asked or "mean"
    if asked is None and found == "neither":
        raise ValueError(
            "hypr_grad: the loss is neither a sum nor a mean over time steps: it has terms of both, one without time "
            "beside a sum, counted once per segment, or a factor that depends on the number of steps in another way; "
            "divide by the number of steps, or set reduction"
        )
    if asked is None and found == "unknown":
        raise ValueError(
            "hypr_grad: whether the loss is a sum or a mean over time steps cannot be told from its operations; set "
            "reduction to 'sum' or 'mean'"
        )
    return asked or found or "mean"


def _check_stackable(plan: Plan) -> None:
    of_full, of_last = (_program.results(program) for program in (plan.program, plan.last))
    if jax.tree.structure(of_full) != jax.tree.structure(of_last):
        raise ValueError(
            f"aux has another structure in the shorter last segment, {jax.tree.structure(of_last[1])}, than in a full "
            f"one, {jax.tree.structure(of_full[1])}, so it cannot be stacked; choose a segment_length that divides the "
            "number of time steps"
        )
    of_full, of_last = map(jax.tree.leaves, (of_full, of_last))
    for many, one in zip([leaf.shape for leaf in of_full], [leaf.shape for leaf in of_last], strict=True):
        if many != one:
            raise ValueError(
                f"aux has shape {many} in a full segment but {one} in the shorter last one, so it cannot be stacked; "
                "choose a segment_length that divides the number of time steps, or reduce aux over time"
            )
