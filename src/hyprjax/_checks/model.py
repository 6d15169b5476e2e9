"""`check`: a loss or a model is run and looked at, with a line of advice for each thing found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, PyTree

from hyprjax import _hypr, _ports, _program, _segment, _sequence, _unroll
from hyprjax._cell import emit
from hyprjax._checks import arguments
from hyprjax._checks.report import CREDITS, FIRING, Layer, Report, advise
from hyprjax._program import Program
from hyprjax._segment import Options
from hyprjax._sequence import Call, Plan


def check(
    fn: Callable[..., Any],
    params: PyTree,
    xs: PyTree,
    *args: Any,
    segment_length: int | None = None,
    has_aux: bool = False,
    reduction: str | None = None,
    time_axis: Any = 0,
    out_time_axis: Any = None,
    gradients: bool = True,
    **kwargs: Any,
) -> Report:
    """Runs a loss or a model and reports what one would want to know before training.

    Whether the value depends on the segment length, whether the layers fire, what HYPR's traces and BPTT's states
    need, and how near HYPR's gradient is to the exact one. It runs forward over the whole sequence three times and
    takes three gradients, of the first three segments only.

    Args:
      fn: a loss, `(params, xs, *args, **kwargs) -> loss` as for `hypr_grad`, or a model as for `hypr`.
      params: parameters.
      xs: the whole sequence. Rates and gradients depend on it, so take real data.
      *args: passed to `fn`.
      segment_length: time steps per segment, by default as in `hypr_value_and_grad`. Where that is the whole sequence,
        values are compared at half of it.
      has_aux: whether a loss returns `(loss, aux)`.
      reduction: of a loss over segments, see `hypr_value_and_grad`; by default the one that tracing it finds, or else
        `"mean"`.
      time_axis: the time axis of `xs`, see `hypr`.
      out_time_axis: that of a model's outputs, see `hypr`.
      gradients: whether to take gradients; they need the memory of traces and of BPTT through three segments.
      **kwargs: passed to `fn`.

    Returns:
      A `Report`, which prints as a table. It has advice where something is not finite; where values differ by more than
      the square root of the machine precision, or where tracing the function shows that they would; where more than
      half of a layer's neurons are silent or saturated; and where a cosine is below 0.5. The gradient of a model is
      that of a random projection of its outputs' mean over time.

    Raises:
      ValueError: all that `hypr` and `hypr_grad` refuse whatever the segment length.
      TypeError: the same, and a call under `jax.jit` or another transformation.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.lif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=5, recurrent=True)
      >>> last_step = lambda params, xs: hj.unroll(cell, params, xs)[-1].mean()
      >>> report = hj.check(last_step, params, jax.random.normal(jax.random.key(1), (60, 8, 3)))
      >>> report.ok, report.differences[30] > 0.01
      (False, True)
    """
    arguments.choice("reduction", reduction, (None, "mean", "sum"))
    length = arguments.positive_int("segment_length", segment_length, optional=True)
    arguments.floating("params", params)
    call = _sequence.call(fn, time_axis, params, xs, args, kwargs)
    if any(isinstance(x, Tracer) for x in call.operands):
        raise TypeError("check looks at numbers; call it outside of jax.jit, jax.grad and jax.vmap")
    length = min(length or _sequence.default_length(call.steps), call.steps)
    program, operands, _ = _sequence.one_segment("check", call)
    subject = _subject(program, call, has_aux, reduction, time_axis, out_time_axis)

    results, seen = _observe(program, operands)
    whole = results[:1] if subject.is_loss else results
    runs, refusal = _runs(partial(subject.run, call), _lengths(length, call.steps))
    runs[call.steps] = whole
    gradients = gradients and length in runs
    prefix = min(call.steps, 3 * length) if gradients else 0
    start, bound = _start(xs, time_axis, prefix), lambda params, xs: fn(params, xs, *args, **kwargs)
    grads = [subject.gradient(bound, params, start, length, how) for how in (None, *CREDITS) if gradients]
    report = Report(
        kind="loss" if subject.is_loss else "model",
        values={length: float(run[0]) for length, run in runs.items() if subject.is_loss},
        differences={length: _difference(run, whole) for length, run in runs.items()},
        layers=_layers(seen, call.steps),
        prefix=prefix,
        cosines=_cosines(*grads) if gradients else {},
        advice=(),
    )
    given = _not_finite(params=params, xs=xs)
    return report._replace(advice=tuple(advise(report, refusal, given, _rounding(whole))))


# --- running it -----------------------------------------------------------------------------------


class _Subject(NamedTuple):
    """How the transforms run what is checked; `out_axes` is the time axis of each output of a model."""

    is_loss: bool
    has_aux: bool
    reduction: str | None
    axes: dict[str, Any]
    out_axes: tuple[int, ...]

    def run(self, call: Call, length: int, check: bool) -> list[Array]:
        """The loss or the outputs, in segments, as `hypr_value_and_grad` and `hypr` return them."""
        if not self.is_loss:
            return _sequence.run(*_sequence.model("hypr", call, length, check=check, **self.axes))[0]
        plan, operands, found = _sequence.plan("hypr_grad", call, length, check=check)
        return [_loss(plan, _hypr.reduction_over_segments(self.reduction, found), operands)]

    def gradient(self, fn: Callable[..., Any], params: PyTree, xs: PyTree, length: int, credit: str | None) -> PyTree:
        """HYPR's with this credit, or the exact one: of the loss, or of a projection of the model's outputs."""

        def scalar(fn, params, xs):
            value = fn(params, xs)
            return (value[0] if self.has_aux else value) if self.is_loss else _projection(value, self.out_axes)

        options: Any = {"segment_length": length, "recurrent_credit": credit, "check": False}
        if credit is None:
            return jax.grad(partial(scalar, fn))(params, xs)
        if not self.is_loss:
            return jax.grad(partial(scalar, _hypr.hypr(fn, **options, **self.axes)))(params, xs)
        options |= {"reduction": self.reduction, "time_axis": self.axes["time_axis"]}
        return _hypr.hypr_grad(partial(scalar, fn), **options)(params, xs)


def _subject(
    program: Program, call: Call, has_aux: bool, reduction: str | None, time_axis: Any, out_time_axis: Any
) -> _Subject:
    """Whether this is a loss or a model; refuses what is neither."""
    results, axes = _program.results(program), {"time_axis": time_axis, "out_time_axis": out_time_axis}
    if not has_aux and all(leaf.ndim > 0 for leaf in jax.tree.leaves(results)):
        out_axes = _sequence.model("hypr", call, call.steps, check=False, **axes)[1]
        return _Subject(False, False, None, axes, out_axes)
    (arguments.loss_and_aux if has_aux else arguments.loss)(results)
    return _Subject(True, has_aux, reduction, axes, ())


def _lengths(length: int, steps: int) -> list[int]:
    """The segment length asked for, or half of the sequence, and another one, as far as they are shorter than that."""
    first = length if length < steps else -(-steps // 2)
    second = -(-2 * first // 3)
    return sorted(one for one in {first, second if second < first else first + 1} if one < steps)


def _runs(run: Callable[..., list[Array]], lengths: list[int]) -> tuple[dict[int, list[Array]], str | None]:
    """The results at each segment length that can be run, and the last reason why one should not be."""
    runs, reasons = {}, []
    for length in lengths:
        for check in (True, False):
            try:
                runs[length] = run(length, check=check)
                break
            except (TypeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                reasons.append(reason if check else f"it does not run in segments of {length} steps: {reason}")
    return runs, next(reversed(reasons), None)


@partial(jax.jit, static_argnums=(0, 1))
def _loss(plan: Plan, reduction: str, operands: Sequence[Array]) -> Array:
    """The value of `hypr_value_and_grad`, without a gradient."""

    def segment(carry, start, last):
        program, _, given = plan.segment(operands, start, last)
        (loss, *_), carry, _ = _program.evaluate(program, None, given, carry)
        return carry, loss * plan.weight(last, reduction)

    program, _, given = plan.segment(operands, 0, False)
    _, full, last = _sequence.scan(plan, segment, _program.rest(program, None, given))
    return full.sum() + (0 if last is None else last)


def _start(xs: PyTree, time_axis: Any, steps: int) -> PyTree:
    leaves, tree = jax.tree.flatten(xs)
    return tree.unflatten(_sequence.cut(leaves, arguments.time_axes(xs, time_axis)[1], 0, steps))


def _projection(outputs: PyTree, axes: tuple[int, ...]) -> Array:
    """A fixed random projection of the mean over time of all outputs that are floating."""
    leaves = enumerate(zip(jax.tree.leaves(outputs), axes, strict=True))
    means = [(i, leaf.mean(axis)) for i, (leaf, axis) in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum((jnp.vdot(jax.random.normal(jax.random.key(i), x.shape, x.dtype), x) for i, x in means), jnp.zeros(()))


# --- what is measured -----------------------------------------------------------------------------


@jax.tree_util.register_static
class _Of(NamedTuple):
    cell: str
    shape: tuple[int, ...]
    traces: int  # bytes, of one member of an ensemble
    state: int


class _Seen(NamedTuple):
    """Of one `unroll`: the part of all steps at which each neuron's output is not zero, and flags as in `Layer`."""

    of: _Of
    active: Array
    spiking: Array
    finite: Array
    driven: Array


@partial(jax.jit, static_argnums=0)
def _observe(program: Program, operands: Sequence[Array]) -> tuple[list[Array], list[_Seen]]:
    """The results over the whole sequence, and what each `unroll` does."""
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731

    def one(cell, params, inputs, resets):
        start = _segment.rest(cell, params, inputs, None)
        outputs, state, _, _ = _segment.run(cell, params, inputs, start.state, start.output, resets)
        # A readout above silent neurons has zeros only, too; driven hard it shows that they are no spikes.
        hard = _ports.join(cell, [jnp.full_like(start.output, 1e3)] * len(_ports.names(cell)))
        driven_hard, _ = emit(cell, cell.step(params["neuron"], start.state, hard)[1])
        binary = lambda z: jnp.all((z == 0) | (z == 1) | jnp.isnan(z))  # noqa: E731
        # Of an output of several parts the one that is spikes counts, or else the first.
        parts = list(zip(jax.tree.leaves(outputs), jax.tree.leaves(driven_hard), strict=True))
        spiking = jnp.stack([binary(part) & binary(hard) for part, hard in parts])
        active = jnp.stack([(part != 0).mean(range(part.ndim - 1)) for part, _ in parts])
        learning = jax.eval_shape(partial(_segment.rest, cell, options=Options()), params, inputs)
        seen = _Seen(
            of=_Of(cell.name, parts[0][0].shape, size(learning.traces), size(learning.state)),
            active=active[jnp.argmax(spiking)],
            spiking=spiking.any(),
            finite=jax.tree.reduce(lambda finite, x: finite & jnp.isfinite(x).all(), (outputs, state), jnp.array(True)),
            driven=jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(inputs)]).any(),
        )
        return jax.tree.leaves(outputs), [seen]

    def visit(name, params, operands, entering):
        if name == "unroll":
            return _unroll.for_ensemble(one, params, operands)
        made = _program.OPERATIONS[name]
        return made.run(params, operands, made.rest(params, operands, None)[1], None)[0], []

    results, seen = _program.run(program, operands, [None] * _program.entries(program), visit)
    return list(map(jnp.asarray, results)), seen


def _layers(seen: Sequence[_Seen], steps: int) -> tuple[Layer, ...]:
    def layer(one: _Seen) -> Layer:
        active = np.asarray(one.active)
        members = active.size // active.shape[-1]
        counts = float(active.mean()), int((active == 0).sum()), int((active >= 0.95).sum())
        firing: dict[str, Any] = dict(zip(FIRING, counts if one.spiking.all() else (None,) * 3, strict=True))
        return Layer(
            cell=one.of.cell,
            shape=(*active.shape[:-1], *one.of.shape),
            neurons=active.size,
            **firing,
            finite=bool(one.finite.all()),
            driven=bool(one.driven.any()),
            traces=members * one.of.traces,
            states=members * steps * one.of.state,
        )

    return tuple(map(layer, seen))


@np.errstate(all="ignore")
def _difference(run: Sequence[Array], whole: Sequence[Array]) -> float:
    """Relative, of all results together."""
    wide = lambda x: np.ravel(np.asarray(x).astype(complex if jnp.iscomplexobj(x) else float))  # noqa: E731
    a, b = (np.concatenate(list(map(wide, leaves))) for leaves in (run, whole))
    apart = float(np.linalg.norm(a - b))
    return apart and apart / max(float(np.linalg.norm(b)), 1e-30)


def _rounding(results: Sequence[Array]) -> float:
    """The relative difference from which on results do not agree."""
    dtypes = [x.dtype for x in results if jnp.issubdtype(x.dtype, jnp.inexact)]
    return float(max((jnp.finfo(dtype).eps for dtype in dtypes), default=0.0)) ** 0.5


@np.errstate(all="ignore")
def _cosines(exact: PyTree, *grads: PyTree) -> dict[str, dict[str, float | None]]:
    def cosine(*leaves: Array) -> float | None:
        a, b = (np.ravel(np.asarray(leaf)).astype(float) for leaf in leaves)
        size = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / size) if size else 0.0 if a.any() or b.any() else None

    named = lambda path: keystr(path, simple=True, separator="/") or "params"  # noqa: E731
    rows = zip(tree_leaves_with_path(exact), *map(jax.tree.leaves, grads), strict=True)
    return {named(path): dict(zip(CREDITS, [cosine(x, leaf) for x in own], strict=True)) for (path, leaf), *own in rows}


def _not_finite(**trees: PyTree) -> list[str]:
    """The names of the leaves that hold NaN or infinity."""
    broken = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all()  # noqa: E731
    leaves = [(name, *one) for name, tree in trees.items() for one in tree_leaves_with_path(tree)]
    return [f"{name}{keystr(path)}" for name, path, leaf in leaves if broken(jnp.asarray(leaf))]
