"""`check_cell`: a neuron model against what `unroll` and HYPR take for granted, by running it.

Uncoupled neurons are driven with white noise of four strengths, one for each sequence of a batch, in float64. Every
check is one function `(Subject) -> (ok, detail)`, and an exception is a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from hyprjax import _ports
from hyprjax._cell import Cell, Current, NeuronParams, Output, State, init_layer
from hyprjax._checks import arguments
from hyprjax._checks.layer import checked_layer
from hyprjax._checks.report import table

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # standard deviations of the currents: some neurons fire at 0.1, some at 100
SHORT = 50  # steps, where every neuron is perturbed on its own
ORDER = ("neuron", "state", "current")  # of the arguments of step
DISTANCE, TOLERANCE = 1e-6, 1e-4  # of finite differences, the latter relative


class Finding(NamedTuple):
    """One check: `ok` is None where it does not decide."""

    name: str
    ok: bool | None
    detail: str


class CellReport(NamedTuple):
    """What `check_cell` found; `str` is a table.

    Attributes:
      cell: name of the neuron model.
      findings: one for each check.
    """

    cell: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(one.ok is not False for one in self.findings)

    def __str__(self):
        rows = [[one.name, {True: "ok", False: "FAILED", None: "note"}[one.ok], one.detail] for one in self.findings]
        return f"cell {self.cell}\n\n{table(rows)}"

    __repr__ = __str__


def check_cell(cell: Cell, n: int = 8, *, steps: int = 4000, key: PRNGKeyArray | None = None) -> CellReport:
    """Checks a neuron model by running it: what a transform assumes of a cell and cannot see in its shapes.

    | check | fails if |
    |---|---|
    | float32, float64, bfloat16 | `unroll` refuses the cell: shapes, dtypes or structure change (bfloat16: a note) |
    | rest | the rest state is not finite, or not the same for every batch shape |
    | repeatable | `step` or `rest` gives something else at the second call |
    | neurons apart, batch apart | one neuron or sequence changes another one |
    | alike | sequences in another order behave otherwise: random numbers (neurons: a note, a constant for each) |
    | bounded | states of neurons driven with noise keep growing, or are not finite |
    | derivative | a derivative of `step` differs from finite differences where both are smooth |
    | gradient | the gradient of the outputs is not finite, or zero for every input |
    | project | `cell.project` changes what `cell.init` gives, or what it gives itself |

    Finite differences do not see the surrogate of a spike function, nor a stopped gradient: the former counts as zero
    there, the latter as no stop, and points next to a jump are left out.

    Args:
      cell: the neuron model.
      n: how many neurons, at least 2.
      steps: how long they are driven for the check of bounds.
      key: of neuron parameters, inputs and directions; a fixed one by default.

    Returns:
      A `CellReport`: `.ok`, `.findings`, and a table when printed.

    Raises:
      TypeError: `cell` is not a `Cell`, or `n` or `steps` not an int.
      ValueError: fewer than 2 neurons.

    Examples:
      >>> import hyprjax as hj
      >>> hj.check_cell(hj.alif()).ok
      True
      >>> brf = hj.brf()
      >>> def inhibited(neuron, state, current):
      ...     state, z = brf.step(neuron, state, current)
      ...     return state, z * (z.sum(-1, keepdims=True) < 3)
      >>> report = hj.check_cell(brf._replace(step=inhibited))
      >>> [(one.name, one.detail) for one in report.findings if one.ok is False][-1]
      ('neurons apart', 'other currents of neuron 0 change another neuron: keep step element-wise')
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"check_cell: cell must be a Cell, as hj.lif() returns, got {cell!r}")
    if arguments.positive_int("n", n) < 2:
        raise ValueError("check_cell: n must be 2 or more, or neurons cannot be told apart, got 1")
    steps = arguments.positive_int("steps", steps)
    key = jax.random.key(0) if key is None else key
    dtypes = dict.fromkeys(map(jnp.dtype, (jnp.float32, jnp.result_type(float), jnp.bfloat16)))
    findings = [_find(dtype.name, partial(_accepted, cell, n, dtype, key)) for dtype in dtypes]
    with jax.enable_x64(True):
        subject = _subject(cell, n, steps, key)
        findings += [_find(name, partial(run, subject)) for name, run in CHECKS.items()]
    return CellReport(cell.name, tuple(findings))


def _find(name: str, run: Callable[[], tuple[bool | None, str]]) -> Finding:
    try:
        return Finding(name, *run())
    except Exception as error:
        return Finding(name, False, f"{type(error).__name__}: {[*str(error).splitlines(), ''][0]}")


class Subject(NamedTuple):
    """A cell, parameters of `n` neurons, and currents `[T, len(STRENGTHS), n]`, one for each port."""

    cell: Cell
    neuron: NeuronParams
    currents: PyTree[Float[Array, "t batch n"]]
    key: PRNGKeyArray

    @property
    def short(self) -> PyTree[Array]:
        """The currents of the first steps."""
        return jax.tree.map(lambda x: x[:SHORT], self.currents)

    def run(self, neuron: NeuronParams, currents: PyTree[Array]) -> tuple[State, Output]:
        """All states and outputs, `[T, batch, n]`, from rest."""
        return _run(self.cell, neuron, currents)

    def visited(self) -> tuple[State, Current]:
        """States that the neurons come through, with the currents that they get there."""
        states, _ = self.run(self.neuron, self.short)
        return jax.tree.map(lambda s: s[:-1], states), jax.tree.map(lambda x: x[1:], self.short)


@partial(jax.jit, static_argnums=0)
def _run(cell, neuron, currents):
    def step(state, current):
        state, output = cell.step(neuron, state, current)
        return state, (state, output)

    _, *batch, _ = jnp.shape(jax.tree.leaves(currents)[0])
    return jax.lax.scan(step, cell.rest(neuron, tuple(batch), jnp.dtype(float)), currents)[1]


def _subject(cell: Cell, n: int, steps: int, key: PRNGKeyArray) -> Subject:
    of_init, of_currents, key = jax.random.split(key, 3)
    neuron = jax.tree.map(lambda p: jnp.asarray(p, float), cell.init(of_init, n))
    ports = _ports.names(cell)
    noise = jax.random.normal(of_currents, (len(ports), max(steps, SHORT), len(STRENGTHS), n))
    currents = _ports.join(cell, list(noise * jnp.array(STRENGTHS)[:, None]))
    return Subject(cell, neuron, currents, key)


# --- the checks -----------------------------------------------------------------------------------


def _accepted(cell, n, dtype, key):
    try:
        layer = init_layer(key, cell, 3, n, dtype=dtype)
        checked_layer(cell, layer, jnp.zeros((1, len(STRENGTHS), 3), dtype), None)
    except (TypeError, ValueError) as error:
        return None if dtype == jnp.bfloat16 else False, str(error).splitlines()[0]
    return True, "shapes, dtypes and structure of the state are kept"


def _rest(subject):
    of = lambda *batch: subject.cell.rest(subject.neuron, batch, jnp.dtype(float))  # noqa: E731
    alone = of()
    for path, leaf in tree_leaves_with_path(alone):
        if not jnp.isfinite(leaf).all():
            return False, f"{_name(path)} is not finite"
    for batch in ((3,), (2, 3)):
        repeated = jax.tree.map(lambda leaf, batch=batch: jnp.broadcast_to(leaf, (*batch, *leaf.shape)), alone)
        if not _same(of(*batch), repeated):
            return False, f"for a batch of shape {batch} it is not that of one sequence, repeated"
    return True, "finite, and the same for every batch shape"


def _repeatable(subject):
    state, current = subject.visited()
    rest, step = subject.cell.rest, subject.cell.step
    call = lambda: (rest(subject.neuron, (3,), jnp.dtype(float)), step(subject.neuron, state, current))  # noqa: E731
    same = _same(call(), call())
    return same, "two calls agree" if same else "a second call of rest or step gives something else"


def _apart(axis, subject):
    """Whether what becomes of one neuron (axis -1) or sequence (axis 1) is left alone by the others."""
    name, currents = {-1: "neuron", 1: "sequence"}[axis], subject.short
    before = subject.run(subject.neuron, currents)
    for i in range(jax.tree.leaves(currents)[0].shape[axis]):
        at = (..., i) if axis == -1 else (slice(None), i)
        change = lambda x, at=at: x.at[at].multiply(1.5).at[at].add(0.1)  # noqa: E731
        runs = {"other currents": subject.run(subject.neuron, jax.tree.map(change, currents))}
        if axis == -1:
            runs["other parameters"] = subject.run(jax.tree.map(change, subject.neuron), currents)
        others = lambda tree, i=i: jax.tree.map(lambda x: np.delete(x, i, axis), tree)  # noqa: E731
        for what, after in runs.items():
            if not _same(others(after), others(before)):
                return False, f"{what} of {name} {i} change another {name}: keep step element-wise"
    return True, f"no {name} changes another one"


def _alike(subject):
    state, current = subject.visited()
    before = subject.cell.step(subject.neuron, state, current)
    for what, axis in (("sequences", 1), ("neurons", -1)):
        turn = lambda tree, axis=axis: jax.tree.map(lambda x: jnp.roll(x, 1, axis), tree)  # noqa: E731
        neuron = turn(subject.neuron) if axis == -1 else subject.neuron
        after = subject.cell.step(neuron, turn(state), turn(current))
        if not _same(after, turn(before), 1e-9):
            if what == "neurons":
                return (
                    None,
                    "neurons in another order behave otherwise: constants for each of them, which init could have",
                )
            return False, "sequences in another order behave otherwise: random numbers belong to the inputs"
    return True, "neurons and sequences in another order behave the same"


def _bounded(subject):
    steps = len(jax.tree.leaves(subject.currents)[0])
    for path, leaf in tree_leaves_with_path(subject.run(subject.neuron, subject.currents)[0]):
        early, late = (np.abs(part).max((0, 2)) for part in np.split(np.asarray(leaf), [steps // 2]))
        grows = ~(late <= 3 * early.max(where=np.isfinite(early), initial=0.0))
        if grows.any():
            first = grows.argmax()
            what = f"{_name(path)} grows to {late[first]:.1g} with currents of standard deviation {STRENGTHS[first]:g}"
            return False if STRENGTHS[first] <= 1 else None, what
    return True, f"over {steps} steps of noise"


def _derivative(subject):
    """Along each variable, at all states visited; the tolerance is far above rounding."""
    state, current = subject.visited()
    step = lambda at: dict(zip(("state", "output"), subject.cell.step(*map(at.get, ORDER)), strict=True))  # noqa: E731
    given = dict(zip(ORDER, (subject.neuron, state, current), strict=True))
    closed, results = jax.make_jaxpr(step, return_shape=True)(given)
    loops = {eqn.primitive.name for eqn in closed.jaxpr.eqns} & {"scan", "while", "cond"}  # not entered
    at = jax.tree.leaves(given)

    @jax.jit
    def compare(direction):
        pairs = []
        near = lambda h: _evaluate(closed, *[x + h * d for x, d in zip(at, direction, strict=True)])  # noqa: E731
        here, slopes = jax.jvp(partial(_evaluate, closed), at, direction)
        for x, after, before, slope in zip(here, near(DISTANCE), near(-DISTANCE), slopes, strict=True):
            right, left = (after - x) / DISTANCE, (x - before) / DISTANCE
            tolerance = TOLERANCE * (jnp.abs(right) + jnp.abs(left) + 0.01 + 1e-4 * jnp.abs(x))
            smooth = jnp.abs(right - left) <= tolerance
            pairs.append((slope, right, smooth, smooth & ~(jnp.abs(slope - right) <= tolerance)))
        return pairs

    compared = []
    for i, (of, x) in enumerate(tree_leaves_with_path(given)):
        push = (1 + jnp.abs(x)) * jax.random.normal(jax.random.fold_in(subject.key, i), x.shape)
        direction = [push if i == j else jnp.zeros_like(other) for j, other in enumerate(at)]
        for (path, _), (slope, right, smooth, wrong) in zip(
            tree_leaves_with_path(results), compare(direction), strict=True
        ):
            compared.append(smooth.mean())
            if wrong.any():
                own, measured = float(slope[wrong][0]), float(right[wrong][0])
                what = f"of {_name(path)} along {_name(of)} it is {own:.3g}, by finite differences {measured:.3g}"
                if loops:
                    return None, f"{what}; surrogates in a {loops.pop()} cannot be left out, so that says little"
                return False, what
    part = sum(compared) / len(compared)
    return (
        True if part else None,
        f"equal to finite differences at {part:.0%} of the points, the rest are next to a jump",
    )


def _evaluate(closed: Any, *operands: Array) -> list[Array]:
    """With every spike function as the jump that it is, and nothing stopped."""
    values = dict(zip([*closed.jaxpr.constvars, *closed.jaxpr.invars], [*closed.consts, *operands], strict=True))
    read = lambda v: v.val if isinstance(v, jec.Literal) else values[v]  # noqa: E731
    for eqn in closed.jaxpr.eqns:
        ins, name = list(map(read, eqn.invars)), eqn.primitive.name
        inner = eqn.params.get({"jit": "jaxpr"}.get(name, "call_jaxpr"))
        if name == "stop_gradient":
            outs = ins
        elif name in ("jit", "custom_vjp_call") or (name == "custom_jvp_call" and _jumps(inner)):
            outs = _evaluate(inner, *ins)
        else:
            outs = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
            outs = outs if eqn.primitive.multiple_results else [outs]
        values.update(zip(eqn.outvars, outs, strict=True))
    return list(map(read, closed.jaxpr.outvars))


def _jumps(closed: Any) -> bool:
    """Whether a function is flat wherever one looks, as a spike function is."""
    with jax.ensure_compile_time_eval():
        at = [jax.random.normal(jax.random.key(i), aval.shape, aval.dtype) for i, aval in enumerate(closed.in_avals)]
        slopes = jax.jvp(partial(_evaluate, closed), at, jax.tree.map(jnp.ones_like, at))[1]
        return not any(slope.any() for slope in slopes)


def _gradient(subject):
    loss = lambda at: jax.tree.reduce(lambda a, x: a + x.sum(), subject.run(at["neuron"], at["current"])[1], 0.0)  # noqa: E731
    grads = jax.grad(loss)({"neuron": subject.neuron, "current": subject.short})
    for path, leaf in tree_leaves_with_path(grads):
        if not jnp.isfinite(leaf).all():
            return False, f"it is not finite along {_name(path)}"
    if not any(grad.any() for grad in jax.tree.leaves(grads["current"])):
        return False, "no current has an influence on the outputs: is the spike function one of hj.surrogate?"
    return True, "finite, and it reaches the currents"


def _project(subject):
    project = getattr(subject.cell, "project", None) or (lambda neuron: neuron)
    far = jax.tree.map(lambda p: 10 * p + 1, subject.neuron)
    if not _same(project(subject.neuron), subject.neuron, 1e-6):
        return False, "it changes what init gives"
    if not _same(project(project(far)), project(far), 1e-6):
        return False, "it changes again what it has changed before"
    return True, "it keeps what init gives"


def _name(path: Any) -> str:
    return keystr(path, simple=True, separator="/") or "the state"


def _same(a: PyTree, b: PyTree, rtol: float = 0.0) -> bool:
    """Structure, shapes and values."""
    close = lambda a, b: np.shape(a) == np.shape(b) and np.allclose(a, b, rtol, rtol, equal_nan=True)  # noqa: E731
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(close, a, b))


CHECKS: dict[str, Callable[[Subject], tuple[bool | None, str]]] = {
    "rest": _rest,
    "repeatable": _repeatable,
    "neurons apart": partial(_apart, -1),
    "batch apart": partial(_apart, 1),
    "alike": _alike,
    "bounded": _bounded,
    "derivative": _derivative,
    "gradient": _gradient,
    "project": _project,
}
