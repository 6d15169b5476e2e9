"""Pictures of spikes, states, eligibility traces and training, with matplotlib.

Needs the extra `plot` (`pip install 'hyprjax[plot]'`). Every function draws one picture into `ax` (the current axes by
default, as in matplotlib) and returns the Axes, whose labels, limits and colours are then yours to change.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, ArrayLike
from matplotlib.axes import Axes

from hyprjax import _ports, _segment
from hyprjax._cell import Cell, Params
from hyprjax._checks.layer import checked_layer
from hyprjax._hypr import hypr_stream
from hyprjax._stream import unroll


def raster(spikes: ArrayLike, *, dt: float = 1.0, ax: Axes | None = None, **scatter: Any) -> Axes:
    """Spikes as dots, time to the right, one row per neuron.

    Args:
      spikes: `[t, n]`; anything that is not zero is a spike.
      dt: duration of a step, in the unit the time axis shall have; 1 for steps.
      ax: where to draw.
      **scatter: passed to `Axes.scatter`.

    Returns:
      The Axes; where there is no spike it says so.

    Raises:
      ValueError: `spikes` has not two axes, is empty or holds NaN, or `dt` is not positive.
      TypeError: `ax` is not one Axes.

    Examples:
      >>> import jax, hyprjax.plot
      >>> spikes = jax.random.bernoulli(jax.random.key(0), 0.05, (200, 30))
      >>> hyprjax.plot.raster(spikes, dt=1e-3).get_xlabel()
      'time'
    """
    events, ax, label = _matrix("raster", "spikes", spikes, "t, n"), _axes(ax), _time("raster", dt)
    if np.isnan(events).any():
        raise ValueError(f"raster: spikes hold NaN, from step {np.argwhere(np.isnan(events))[0, 0]} on")
    steps, neurons = np.nonzero(events)
    if not len(steps):
        ax.text(0.5, 0.5, "no spikes", transform=ax.transAxes, ha="center", va="center", color="grey")
    ax.scatter(steps * dt, neurons, **_style(scatter, s=12, marker="|", color="black", linewidths=0.8))
    ax.set(xlim=(0, len(events) * dt), ylim=(-0.5, events.shape[1] - 0.5), xlabel=label, ylabel="neuron")
    return ax


def membrane(
    cell: Cell,
    params: Params,
    inputs: ArrayLike,
    *,
    neurons: Sequence[int] | int = (0,),
    variables: Sequence[int | str] | int | str | None = None,
    dt: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Runs a layer and draws the state variables of some neurons; their spikes are ticks on top.

    Args:
      cell: the neuron model.
      params: the layer's parameters.
      inputs: `[t, n_in]`, one sequence.
      neurons: indices of the neurons to draw, or one.
      variables: state variables to draw, or one, by name (by position if the state is not a dict); default: all.
      dt: duration of a step; 1 for steps.
      ax: where to draw.

    Returns:
      The Axes, one line per neuron and variable. A state that is not finite is not drawn, with a warning.

    Raises:
      ValueError: `inputs` has not two axes, a variable or neuron that the layer does not have, none of them, or `dt` is
        not positive.
      TypeError: `ax` is not one Axes.

    Examples:
      >>> import jax, jax.numpy as jnp, matplotlib.pyplot as plt, hyprjax as hj, hyprjax.plot
      >>> cell, ax = hj.brf(), plt.figure().add_subplot()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36)
      >>> inputs = 30 * jnp.ones((300, 4))
      >>> ax = hyprjax.plot.membrane(cell, params, inputs, neurons=[0, 1], variables=["u"], ax=ax)
      >>> [line.get_label() for line in ax.lines]
      ['u, neuron 0', 'u, neuron 1']
    """
    ax, label = _axes(ax), _time("membrane", dt)
    params, signal, _ = checked_layer(cell, params, _matrix("membrane", "inputs", inputs, "t, n_in"), None)
    n = jax.tree.leaves(params["w_in"])[0].shape[1]
    indices = [_neuron("membrane", neuron, n) for neuron in np.atleast_1d(neurons)]
    rest = _segment.rest(cell, params, signal, None)
    outputs, last, _, past = _segment.run(cell, params, signal, rest.state, rest.output, None, keep_past=True)
    assert past is not None
    after = jax.tree.map(lambda before, end: jnp.concatenate([before[1:], end[None]]), past.state, last)
    found = {_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(after)}
    chosen = list(found) if variables is None else list(map(str, np.atleast_1d(np.asarray(variables, object))))
    if not (indices and chosen):
        raise ValueError("membrane: there is nothing to draw; neurons and variables must name at least one each")
    if missing := [name for name in chosen if name not in found]:
        raise ValueError(f"membrane: the state of this cell has no variable {missing[0]!r}; it has {list(found)}")
    times = dt * np.arange(len(signal))
    for neuron in indices:
        lines = []
        for name in chosen:
            line, what = found[name][:, neuron], f"{name}, neuron {neuron}"
            if not np.isfinite(line).all():
                step = np.flatnonzero(~np.isfinite(line))[0]
                warnings.warn(f"membrane: {what}, is {line[step]} at step {step}; it cannot be drawn", stacklevel=2)
            lines += ax.plot(times, line, **_style(_points(line), lw=1, label=what))
        spikes = times[np.asarray(jax.tree.leaves(outputs)[0])[:, neuron] == 1]
        top = ax.get_xaxis_transform()
        style = _style({}, s=30, marker="|", color=lines[-1].get_color(), transform=top, clip_on=False)
        ax.scatter(spikes, np.ones(len(spikes)), **style)
    ax.set(xlim=(0, len(signal) * dt), xlabel=label, ylabel="state")
    ax.legend(fontsize="small", frameon=False, loc="upper right")
    return ax


def eligibility(
    cell: Cell,
    params: Params,
    inputs: ArrayLike,
    *,
    neuron: int = 0,
    variable: int | str = 0,
    port: str | None = None,
    dt: float = 1.0,
    ax: Axes | None = None,
    **imshow: Any,
) -> Axes:
    """Runs a layer and shows the eligibility traces `∂s/∂W` of one neuron's synapses as a heat map.

    Args:
      cell: the neuron model.
      params: the layer's parameters.
      inputs: `[t, n_in]`, one sequence.
      neuron: index of the postsynaptic neuron.
      variable: state variable whose traces are shown, by name or by position in the order of `jax.tree.leaves`.
      port: of a cell with ports, whose synapses are shown.
      dt: duration of a step; 1 for steps.
      ax: where to draw.
      **imshow: passed to `Axes.imshow`.

    Returns:
      The Axes. Rows are synapses, inputs from the bottom, then recurrent ones, with a line between.

    Raises:
      ValueError: `inputs` has not two axes, a variable or neuron that the layer does not have, traces that are not
        finite, or `dt` is not positive.
      TypeError: `ax` is not one Axes.

    Examples:
      >>> import jax, hyprjax as hj, hyprjax.plot
      >>> cell = hj.alif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> inputs = jax.random.bernoulli(jax.random.key(1), 0.1, (100, 4))
      >>> hyprjax.plot.eligibility(cell, params, inputs, neuron=3, variable="a").images[0].get_array().shape
      (40, 100)
    """
    ax, label = _axes(ax), _time("eligibility", dt)
    params, signal, _ = checked_layer(cell, params, _matrix("eligibility", "inputs", inputs, "t, n_in"), None)
    neuron = _neuron("eligibility", neuron, jax.tree.leaves(params["w_in"])[0].shape[1])
    if port not in _ports.names(cell):
        raise ValueError(f"eligibility: port must be one of the cell's, {', '.join(cell.ports) or None}, got {port!r}")
    rest = _segment.rest(cell, params, signal, None)
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(rest.state)]
    index = names.index(variable) if variable in names else variable
    if not isinstance(index, int | np.integer) or not -len(names) <= index < len(names):
        raise ValueError(f"eligibility: the state of this cell has no variable {variable!r}; it has {names}")
    loss_fn = lambda params, x: jax.tree.leaves(unroll(cell, params, x))[0].mean()  # noqa: E731
    learner: Any = hypr_stream(loss_fn)

    def step(carry: Any, x: Array) -> tuple[Any, Array]:  # segments of one step: the traces after each
        _, carry = learner.value_and_grad(params, carry, x[None])
        return carry, _ports.onto(port, carry[0].traces.synapses)[index][:, neuron]

    _, traces = jax.lax.scan(step, learner.init(params, signal[:1]), signal)
    w_in, w_rec = (_ports.onto(port, params.get(part)) for part in ("w_in", "w_rec"))
    n_in, n_rec = (0 if w is None else len(w) for w in (w_in, w_rec))
    rows = np.asarray(traces).T[: n_in + n_rec]
    if not np.isfinite(rows).all():
        step = np.flatnonzero(~np.isfinite(rows).all(0))[0]
        raise ValueError(f"eligibility: the traces of neuron {neuron} are not finite from step {step} on")
    limit = float(np.abs(rows).max()) or 1.0
    extent = (0, len(signal) * dt, -0.5, len(rows) - 0.5)
    style = _style(imshow, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    image = ax.imshow(rows, origin="lower", extent=extent, **style)
    if n_rec:
        ax.axhline(n_in - 0.5, color="grey", lw=0.8)
    ax.figure.colorbar(image, ax=ax, label=f"∂{names[index]}/∂w")
    ax.set(xlabel=label, ylabel=f"synapse onto neuron {neuron}")
    return ax


def learning_curves(
    curves: Mapping[str, ArrayLike], *, ylabel: str = "loss", ax: Axes | None = None, **plot: Any
) -> Axes:
    """Curves over epochs (or updates); of several seeds, the mean and a band of one standard deviation.

    As everywhere in this library time comes first: `[epochs, seeds]`. Of curves `[seeds, epochs]` pass the transpose; a
    warning says where there are more seeds than epochs. Where a value is not finite the curve has a gap.

    Args:
      curves: of each label `[epochs]`, or `[epochs, seeds]`.
      ylabel: what the curves show.
      ax: where to draw.
      **plot: passed to `Axes.plot`.

    Returns:
      The Axes.

    Raises:
      ValueError: no curves, or one with more than two axes, without a finite value, or with seeds of different length.
      TypeError: `curves` is not a mapping, or `ax` is not one Axes.

    Examples:
      >>> import numpy as np, hyprjax.plot
      >>> losses = {"HYPR": np.exp(-np.arange(20) / 5), "BPTT": np.random.rand(20, 3)}
      >>> hyprjax.plot.learning_curves(losses).get_ylabel()
      'loss'
    """
    if not isinstance(curves, Mapping):
        raise TypeError(
            "learning_curves: curves must be a dict of label -> [epochs] or [epochs, seeds], got "
            f"{type(curves).__name__}"
        )
    if not curves:
        raise ValueError("learning_curves: curves is empty; pass a dict of label -> [epochs] or [epochs, seeds]")
    ax, arrays = _axes(ax), {label: _curve(label, values) for label, values in curves.items()}
    for label, seeds in arrays.items():
        mean, deviation = seeds.mean(1), seeds.std(1, ddof=1) if seeds.shape[1] > 1 else 0
        epochs = np.arange(1, len(seeds) + 1)
        (line,) = ax.plot(epochs, mean, **_style(plot, label=label, **({} if "marker" in plot else _points(mean))))
        if seeds.shape[1] > 1:
            ax.fill_between(epochs, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, lw=0)
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.legend(frameon=False)
    return ax


def _curve(label: str, values: ArrayLike) -> np.ndarray:
    """`[epochs, seeds]`."""
    what = f"learning_curves: {label!r}"
    try:
        array = np.asarray(values, float)
    except ValueError as error:
        raise ValueError(f"{what} must be an array of numbers, seeds of equal length ({error})") from error
    if array.ndim not in (1, 2):
        raise ValueError(f"{what} must be [epochs] or [epochs, seeds], its shape is {array.shape}")
    seeds = array[:, None] if array.ndim == 1 else array
    if not seeds.size or not np.isfinite(seeds).all(1).any():
        raise ValueError(f"{what} has no epoch with a finite value of every seed, its shape is {array.shape}")
    if seeds.shape[1] > len(seeds):
        warnings.warn(
            f"{what} has {seeds.shape[1]} seeds of {len(seeds)} epochs; curves are [epochs, seeds], so pass the "
            "transpose if it is the other way round",
            stacklevel=3,
        )
    return seeds


def spectrum(layers: Mapping[str, Params] | Params, *, bins: Any = "auto", ax: Axes | None = None, **hist: Any) -> Axes:
    """How the frequencies of resonating neurons (`brf`, `rf`) are spread, before and after training, say.

    Args:
      layers: the parameters of a layer, or several by label, as `{"before": ..., "after": ...}`.
      bins: of the histogram, as `np.histogram` takes them, common to all.
      ax: where to draw.
      **hist: passed to `Axes.hist`.

    Returns:
      The Axes; frequencies `|ω| / 2π` in cycles per time unit of the cell (100 steps at its default `dt` of 0.01).

    Raises:
      ValueError: no layer, one without `omega`, or with one that is not finite.
      TypeError: `ax` is not one Axes.

    Examples:
      >>> import jax, hyprjax as hj, hyprjax.plot
      >>> params = hj.init_layer(jax.random.key(0), hj.brf(), n_in=4, n_out=36)
      >>> hyprjax.plot.spectrum({"before": params}).get_xlabel()
      'frequency |ω| / 2π (cycles per time unit)'
    """
    layers = {"": layers} if "neuron" in layers else layers
    if not isinstance(layers, Mapping) or not layers:
        raise ValueError("spectrum: layers must be the parameters of a layer, or a dict of label -> parameters")
    ax, frequencies = _axes(ax), {}
    for label, params in layers.items():
        neuron = params["neuron"] if isinstance(params, Mapping) and "neuron" in params else {}
        while "cell" in neuron:  # filtered
            neuron = neuron["cell"]
        if "omega" not in neuron:
            raise ValueError(f"spectrum: layer {label!r} has no neuron parameter 'omega'; only brf and rf have one")
        frequencies[label] = np.abs(np.asarray(neuron["omega"])) / (2 * np.pi)
        if not np.isfinite(frequencies[label]).all():
            raise ValueError(f"spectrum: omega of layer {label!r} is not finite in every neuron")
    edges: Any = np.histogram_bin_edges(np.concatenate(list(frequencies.values())), bins)
    for label, values in frequencies.items():
        ax.hist(values, edges, **_style(hist, alpha=0.5, label=label))
    ax.set(xlabel="frequency |ω| / 2π (cycles per time unit)", ylabel="neurons")
    if any(layers):
        ax.legend(frameon=False)
    return ax


def _axes(ax: Axes | None) -> Axes:
    if not isinstance(ax, Axes | None):
        raise TypeError(f"ax must be one Axes, got {type(ax).__name__}; of plt.subplots(2, 2) it is axes[0, 0], say")
    return plt.gca() if ax is None else ax


def _style(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | given


def _matrix(function: str, name: str, value: ArrayLike, shape: str) -> Any:
    array = np.asarray(value)
    if array.ndim != 2:
        fix = (
            f"pick one sequence of a batch, as in {name}[:, 0]" if array.ndim > 2 else f"one channel is {name}[:, None]"
        )
        raise ValueError(f"{function}: {name} must be [{shape}], its shape is {array.shape}; {fix}")
    if not array.size:
        raise ValueError(f"{function}: {name} is empty, its shape is {array.shape}")
    return array


def _neuron(function: str, index: Any, n: int) -> int:
    """The index of a neuron, from the start."""
    if not isinstance(index, int | np.integer) or not -n <= index < n:
        raise ValueError(f"{function}: there is no neuron {index}, the layer has {n}")
    return int(index) % n


def _points(values: np.ndarray) -> dict[str, Any]:
    """Dots for values that have no neighbour to draw a line to."""
    finite = np.pad(np.isfinite(values), 1)
    alone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:])
    return {"marker": "o", "markevery": alone.tolist()} if len(alone) else {}


def _name(path: tuple[Any, ...]) -> str:
    """A leaf's place in the state: `u`, or `cell.u`, or `0`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _time(function: str, dt: float) -> str:
    """What the time axis is called."""
    if not 0 < dt < np.inf:
        raise ValueError(f"{function}: dt must be a positive number, got {dt!r}")
    return "step" if dt == 1 else "time"
