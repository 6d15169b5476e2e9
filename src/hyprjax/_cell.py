"""The cell protocol: a spiking neuron model is three pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from hyprjax.weights import WeightsFn, glorot_uniform

NeuronParams = PyTree[Float[Array, " n"]]
State = PyTree[Float[Array, "*batch n"]]
Current = PyTree[Float[Array, "*batch n"]]
Output = PyTree[Float[Array, "*batch n"]]
Params = dict[str, Any]
Initializer = Callable[..., Array]
Init = float | tuple[float, float] | Initializer


@runtime_checkable
class InitFn(Protocol):
    """Initialises the parameters of `n` neurons."""

    def __call__(self, key: PRNGKeyArray, n: int) -> NeuronParams:
        """Returns a pytree of `[n]` arrays; every leaf is trained."""
        ...


@runtime_checkable
class RestFn(Protocol):
    """The state of neurons that have received no input yet."""

    def __call__(self, neuron: NeuronParams, batch_shape: tuple[int, ...], dtype: Any) -> State:
        """Returns a pytree of `[*batch_shape, n]` arrays of `dtype`, the same structure as `step`'s."""
        ...


@runtime_checkable
class StepFn(Protocol):
    """One time step of the dynamics, element-wise over neurons and batch."""

    def __call__(self, neuron: NeuronParams, state: State, current: Current) -> tuple[State, Output]:
        """Returns `(next state, output)`; the output is the spike, or whatever the neuron sends on."""
        ...


@runtime_checkable
class ProjectFn(Protocol):
    """Puts neuron parameters back where the model is defined."""

    def __call__(self, neuron: NeuronParams) -> NeuronParams:
        """Returns a pytree like `neuron`; what is in range stays, and a second call changes nothing."""
        ...


def unbounded(neuron: NeuronParams) -> NeuronParams:
    """The `project` of a model that is defined for all parameters."""
    return neuron


class Cell(NamedTuple):
    """A neuron model: pure functions, no state of its own.

    Anything element-wise over neurons may stand in `step`: any number of state variables, any
    nonlinearity. Surrogate gradients come from the spike function used (`hyprjax.surrogate`).
    The library differentiates `step`; no trace is derived by hand.

    Attributes:
      init: `(key, n) -> neuron parameters`, a pytree of `[n]` arrays.
      rest: `(neuron, batch_shape, dtype) -> state`, a pytree of `[*batch_shape, n]` arrays.
      step: `(neuron, state, current) -> (state, output)`; the output is an array `[*batch, n]` or a pytree of such.
      weights: `(key, n_in, n_out) -> (w_in, w_rec)`, the draw `init_layer` uses. The default `glorot_uniform`
        knows nothing of thresholds; `weights.heterogeneous` takes a scale, and `calibrate` finds one.
      name: of the model, for messages and for `hyprjax.nir`.
      constants: what `step` has fixed, as `(name, value)` pairs, as far as `hyprjax.nir` needs it.
      project: `neuron parameters -> neuron parameters` where the model is defined, for `hyprjax.project`; by default
        nothing changes.
      ports: names of the synaptic currents of a cell that has several. `current` is then a dict with an entry for each,
        so are `w_in`, `w_rec` and `bias` of a layer, for the ports that have such a part, and its inputs are one array
        for all ports or a dict.
      lacks: `(port, part)` pairs, the parts of a port, `"w_in"`, `"w_rec"` or `"bias"`, that `init_layer` leaves out.
      feedback: `output -> [*batch, n]`, what `w_rec` carries back, element-wise; by default the output itself.
      sends: `output -> output`, what `unroll` returns; by default all of it.

    Examples:
      A leaky integrate-and-fire neuron with a hard reset to zero:

      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> spike = hj.surrogate.fast_sigmoid()
      >>> def step(neuron, v, current):
      ...     v = neuron["decay"] * v + current
      ...     z = spike(v - 1.0)
      ...     return v * (1.0 - z), z
      >>> cell = hj.Cell(
      ...     init=lambda key, n: {"decay": jnp.full(n, 0.9)},
      ...     rest=lambda neuron, batch_shape, dtype: jnp.zeros((*batch_shape, len(neuron["decay"])), dtype),
      ...     step=step,
      ... )
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=5, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((20, 2, 3))).shape
      (20, 2, 5)
    """

    init: InitFn
    rest: RestFn
    step: StepFn
    weights: WeightsFn = glorot_uniform
    name: str = "custom"
    constants: tuple[tuple[str, Any], ...] = ()
    project: ProjectFn = unbounded
    ports: tuple[str, ...] = ()
    feedback: Callable[[Output], Array] | None = None
    sends: Callable[[Output], Output] | None = None
    lacks: tuple[tuple[str, str], ...] = ()


def emit(cell: Cell, output: Output) -> tuple[Output, Array | None]:
    """What of the output of `step` goes up, and what `w_rec` carries back; None if the cell does not say what."""
    up = output if cell.sends is None else cell.sends(output)
    if cell.feedback is not None:
        return up, cell.feedback(output)
    return up, output if jax.tree.structure(output).num_nodes == 1 else None


def is_cell(caller: str, cell: Any) -> None:
    """Refuses what is not a neuron model."""
    if all(callable(getattr(cell, name, None)) for name in ("init", "rest", "step")):
        return
    name = getattr(cell, "__name__", None)
    if callable(cell) and name:
        raise TypeError(f"{caller}: the cell is the function {name}; call it, as in hj.{name}()")
    raise TypeError(
        f"{caller}: the cell must be a Cell, as hj.lif() makes it, got {cell!r:.60} of type {type(cell).__name__}"
    )


def init_layer(
    key: PRNGKeyArray,
    cell: Cell,
    n_in: int | dict[str, int],
    n_out: int,
    *,
    recurrent: bool = False,
    bias: bool = True,
    weights: WeightsFn | None = None,
    gain: float | Array = 1.0,
    dtype: Any = jnp.float32,
) -> Params:
    """Initialises one layer: synapses as `cell.weights` draws them, bias zero, neurons as `cell.init` does.

    A layer of any model of `hyprjax.cells` fires at 1 to 20 % on spikes, on standard normal inputs and on pixels in
    [0, 1], whatever their number. For inputs of another size, `gain` scales their weights, and `calibrate` finds the
    gain for a rate. The draws of the models' papers are in `hyprjax.weights`.

    The result is a plain dict. Masks, sign constraints or low-rank factors are ordinary JAX
    applied to a leaf before `unroll`; the chain rule does the rest.

    Args:
      key: PRNG key.
      cell: the neuron model.
      n_in: number of inputs; of a cell with ports a number for all, or a dict of the ports that have inputs.
      n_out: number of neurons.
      recurrent: whether the layer's output feeds back through `w_rec` one step later.
      bias: whether the neurons have a bias current.
      weights: draws `w_in` and `w_rec` instead of `cell.weights`; see `hyprjax.weights`.
      gain: factor of `w_in`.
      dtype: floating dtype of every leaf.

    Returns:
      A dict of `w_in` `[n_in, n_out]`, `w_rec` `[n_out, n_out]` if recurrent, `bias` `[n_out]` if there is one, and
      `neuron`, what `cell.init` returns. Of a cell with ports the first three are dicts by port, without what
      `cell.lacks`; take another entry out for a port that should not have it.

    Raises:
      ValueError: `n_in` or `n_out` is not a positive int, or `gain` is not a positive, finite number.
      TypeError: `key` is no key, `cell` no cell, `dtype` not one of real floats, or `weights` no function as described.

    Examples:
      >>> import jax, hyprjax as hj
      >>> params = hj.init_layer(jax.random.key(0), hj.brf(), n_in=4, n_out=36, recurrent=True)
      >>> jax.tree.map(lambda p: p.shape, params)
      {'bias': (36,), 'neuron': {'b_offset': (36,), 'omega': (36,)}, 'w_in': (4, 36), 'w_rec': (36, 36)}
    """
    is_cell("init_layer", cell)
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"init_layer: key must be a key, as jax.random.key(0) makes it, got {key!r:.60}")
    with_inputs = [port for port in cell.ports if (port, "w_in") not in cell.lacks]
    if isinstance(n_in, dict) and not (n_in and n_in.keys() <= set(with_inputs)):
        raise ValueError(
            f"init_layer: n_in has the ports {', '.join(map(str, n_in)) or 'of nothing'}, but the cell {cell.name!r} "
            f"has {', '.join(with_inputs) or 'one current without a name: give a number'}"
        )
    of_port = n_in if isinstance(n_in, dict) else dict.fromkeys(with_inputs or ("",), n_in)
    for name, size in (*(("n_in", size) for size in of_port.values()), ("n_out", n_out)):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"init_layer: {name} must be a positive int, got {size!r}")
    if not isinstance(gain, Tracer) and not (np.ndim(gain) == 0 and np.isreal(gain) and 0 < gain < np.inf):
        raise ValueError(f"init_layer: gain must be a positive, finite number, got {gain!r}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"init_layer: dtype must be a floating dtype such as jnp.float32, got {dtype!r}")
    key_weights, key_neuron = jax.random.split(key)
    params: Params = {"neuron": cell.init(key_neuron, n_out)}
    ports = cell.ports or ("",)
    keys = jax.random.split(key_weights, len(ports)) if cell.ports else [key_weights]
    parts = {
        port: _synapses(weights or cell.weights, key, of_port.get(port), n_out, gain, recurrent, bias)
        for key, port in zip(keys, ports, strict=True)
    }
    for part in ("w_in", "w_rec", "bias"):
        with_part = [port for port, drawn in parts.items() if part in drawn and (port, part) not in cell.lacks]
        having = {port: parts[port][part] for port in with_part}
        if having:
            params[part] = having if cell.ports else having[""]
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


def _synapses(
    weights: WeightsFn, key: PRNGKeyArray, n_in: int | None, n_out: int, gain: Any, recurrent: bool, bias: bool
) -> dict[str, Array]:
    """Of one port, which may have no inputs."""
    try:
        w_in, w_rec = weights(key, n_in or n_out, n_out)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "init_layer: weights must be a function (key, n_in, n_out) -> (w_in, w_rec), as "
            f"hj.weights.glorot_uniform is one, got {getattr(weights, '__name__', repr(weights))}: {error}"
        ) from error
    drawn = {"w_in": gain * w_in if n_in else None, "w_rec": w_rec if recurrent else None}
    drawn["bias"] = jnp.zeros(n_out) if bias else None
    return {part: value for part, value in drawn.items() if value is not None}


def draw(key: PRNGKeyArray, init: Init, n: int) -> Float[Array, " n"]:
    """Draws one neuron parameter: a number for all, a `(low, high)` uniform range, or an initializer."""
    if callable(init):
        return init(key, (n,))
    if isinstance(init, tuple):
        low, high = init
        return jax.random.uniform(key, (n,), minval=low, maxval=high)
    return jnp.full((n,), init, dtype=float)


def zeros_state(*names: str) -> RestFn:
    """The rest state of a model whose variables `names` all start at zero."""

    def rest(neuron: NeuronParams, batch_shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
        n = jax.tree.leaves(neuron)[0].shape[-1]
        return {name: jnp.zeros((*batch_shape, n), dtype) for name in names}

    return rest
