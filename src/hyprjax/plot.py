"""Pictures of spikes, states, eligibility traces and training, with matplotlib.

Needs the extra `plot` (`pip install 'hyprjax[plot]'`). Every function draws one picture into `ax` (the current axes by
default, as in matplotlib) and returns the Axes, whose labels, limits and colours are then yours to change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, ArrayLike
from matplotlib.axes import Axes

from hyprjax import _check, _segment
from hyprjax._cell import Cell, Params
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
      The Axes.

    Raises:
      ValueError: `spikes` has not two axes.

    Examples:
      >>> import jax, hyprjax.plot
      >>> spikes = jax.random.bernoulli(jax.random.key(0), 0.05, (200, 30))
      >>> hyprjax.plot.raster(spikes, dt=1e-3).get_xlabel()
      'time'
    """
    events, ax = _matrix("raster", "spikes", spikes, "t, n"), _axes(ax)
    steps, neurons = np.nonzero(events)
    ax.scatter(steps * dt, neurons, **_style(scatter, s=12, marker="|", color="black", linewidths=0.8))
    ax.set(xlim=(0, len(events) * dt), ylim=(-0.5, events.shape[1] - 0.5), xlabel=_time(dt), ylabel="neuron")
    return ax


def membrane(
    cell: Cell,
    params: Params,
    inputs: ArrayLike,
    *,
    neurons: Sequence[int] = (0,),
    variables: Sequence[int | str] | None = None,
    dt: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Runs a layer and draws the state variables of some neurons; their spikes are ticks on top.

    Args:
      cell: the neuron model.
      params: the layer's parameters.
      inputs: `[t, n_in]`, one sequence.
      neurons: indices of the neurons to draw.
      variables: state variables to draw, by name (by position if the state is not a dict); default: all.
      dt: duration of a step; 1 for steps.
      ax: where to draw.

    Returns:
      The Axes, one line per neuron and variable.

    Raises:
      ValueError: `inputs` has not two axes, or a variable that the cell does not have.

    Examples:
      >>> import jax, jax.numpy as jnp, matplotlib.pyplot as plt, hyprjax as hj, hyprjax.plot
      >>> cell, ax = hj.brf(), plt.figure().add_subplot()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36)
      >>> inputs = 30 * jnp.ones((300, 4))
      >>> ax = hyprjax.plot.membrane(cell, params, inputs, neurons=[0, 1], variables=["u"], ax=ax)
      >>> [line.get_label() for line in ax.lines]
      ['u, neuron 0', 'u, neuron 1']
    """
    ax = _axes(ax)
    params, signal, _ = _check.layer(cell, params, _matrix("membrane", "inputs", inputs, "t, n_in"), None)
    rest = _segment.rest(cell, params, signal, None)
    outputs, last, _, past = _segment.run(cell, params, signal, rest.state, rest.output, None, keep_past=True)
    assert past is not None
    after = jax.tree.map(lambda before, end: jnp.concatenate([before[1:], end[None]]), past.state, last)
    found = {_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(after)}
    chosen = list(found) if variables is None else list(map(str, variables))
    if missing := [name for name in chosen if name not in found]:
        raise ValueError(f"membrane: the state of this cell has no variable {missing[0]!r}; it has {list(found)}")
    times = dt * np.arange(len(signal))
    for neuron in neurons:
        lines = [ax.plot(times, found[name][:, neuron], lw=1, label=f"{name}, neuron {neuron}")[0] for name in chosen]
        spikes = times[np.asarray(outputs)[:, neuron] == 1]
        top = ax.get_xaxis_transform()
        style = _style({}, s=30, marker="|", color=lines[-1].get_color(), transform=top, clip_on=False)
        ax.scatter(spikes, np.ones(len(spikes)), **style)
    ax.set(xlim=(0, len(signal) * dt), xlabel=_time(dt), ylabel="state")
    ax.legend(fontsize="small", frameon=False, loc="upper right")
    return ax


def eligibility(
    cell: Cell,
    params: Params,
    inputs: ArrayLike,
    *,
    neuron: int = 0,
    variable: int | str = 0,
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
      dt: duration of a step; 1 for steps.
      ax: where to draw.
      **imshow: passed to `Axes.imshow`.

    Returns:
      The Axes. Rows are synapses, inputs from the bottom, then recurrent ones, with a line between.

    Raises:
      ValueError: `inputs` has not two axes, or a variable that the cell does not have.

    Examples:
      >>> import jax, hyprjax as hj, hyprjax.plot
      >>> cell = hj.alif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> inputs = jax.random.bernoulli(jax.random.key(1), 0.1, (100, 4))
      >>> hyprjax.plot.eligibility(cell, params, inputs, neuron=3, variable="a").images[0].get_array().shape
      (40, 100)
    """
    ax = _axes(ax)
    params, signal, _ = _check.layer(cell, params, _matrix("eligibility", "inputs", inputs, "t, n_in"), None)
    rest = _segment.rest(cell, params, signal, None)
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(rest.state)]
    index = names.index(variable) if variable in names else variable
    if not isinstance(index, int) or not -len(names) <= index < len(names):
        raise ValueError(f"eligibility: the state of this cell has no variable {variable!r}; it has {names}")
    learner: Any = hypr_stream(lambda params, x: unroll(cell, params, x).mean())

    def step(carry: Any, x: Array) -> tuple[Any, Array]:  # segments of one step: the traces after each
        _, carry = learner.value_and_grad(params, carry, x[None])
        return carry, carry[0].traces.synapses[index][:, neuron]

    _, traces = jax.lax.scan(step, learner.init(params, signal[:1]), signal)
    n_in = len(params["w_in"])
    rows = np.asarray(traces).T[: n_in + len(params.get("w_rec", ()))]
    limit = float(np.abs(rows).max()) or 1.0
    extent = (0, len(signal) * dt, -0.5, len(rows) - 0.5)
    style = _style(imshow, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    image = ax.imshow(rows, origin="lower", extent=extent, **style)
    if "w_rec" in params:
        ax.axhline(n_in - 0.5, color="grey", lw=0.8)
    ax.figure.colorbar(image, ax=ax, label=f"∂{names[index]}/∂w")
    ax.set(xlabel=_time(dt), ylabel=f"synapse onto neuron {neuron}")
    return ax


def learning_curves(
    curves: Mapping[str, ArrayLike], *, ylabel: str = "loss", ax: Axes | None = None, **plot: Any
) -> Axes:
    """Curves over epochs (or updates); of several seeds, the mean and a band of one standard deviation.

    Args:
      curves: of each label `[epochs]`, or `[epochs, seeds]`.
      ylabel: what the curves show.
      ax: where to draw.
      **plot: passed to `Axes.plot`.

    Returns:
      The Axes.

    Raises:
      ValueError: no curves, or one with more than two axes.

    Examples:
      >>> import numpy as np, hyprjax.plot
      >>> losses = {"HYPR": np.exp(-np.arange(20) / 5), "BPTT": np.random.rand(20, 3)}
      >>> hyprjax.plot.learning_curves(losses).get_ylabel()
      'loss'
    """
    if not curves:
        raise ValueError("learning_curves: curves is empty; pass a dict of label -> [epochs] or [epochs, seeds]")
    ax = _axes(ax)
    for label, values in curves.items():
        values = np.asarray(values, float)
        if values.ndim not in (1, 2):
            raise ValueError(
                f"learning_curves: {label!r} must be [epochs] or [epochs, seeds], its shape is {values.shape}"
            )
        seeds = values.reshape(len(values), -1)
        mean, deviation = seeds.mean(1), seeds.std(1, ddof=1) if seeds.shape[1] > 1 else 0
        epochs = np.arange(1, len(values) + 1)
        (line,) = ax.plot(epochs, mean, **_style(plot, label=label))
        if seeds.shape[1] > 1:
            ax.fill_between(epochs, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, lw=0)
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.legend(frameon=False)
    return ax


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
      ValueError: a layer without `omega`.

    Examples:
      >>> import jax, hyprjax as hj, hyprjax.plot
      >>> params = hj.init_layer(jax.random.key(0), hj.brf(), n_in=4, n_out=36)
      >>> hyprjax.plot.spectrum({"before": params}).get_xlabel()
      'frequency |ω| / 2π (cycles per time unit)'
    """
    layers = {"": layers} if "neuron" in layers else layers
    ax, frequencies = _axes(ax), {}
    for label, params in layers.items():
        neuron = params["neuron"] if isinstance(params, Mapping) and "neuron" in params else {}
        if "omega" not in neuron:
            raise ValueError(f"spectrum: layer {label!r} has no neuron parameter 'omega'; only brf and rf have one")
        frequencies[label] = np.abs(np.asarray(neuron["omega"])) / (2 * np.pi)
    edges: Any = np.histogram_bin_edges(np.concatenate(list(frequencies.values())), bins)
    for label, values in frequencies.items():
        ax.hist(values, edges, **_style(hist, alpha=0.5, label=label))
    ax.set(xlabel="frequency |ω| / 2π (cycles per time unit)", ylabel="neurons")
    if any(layers):
        ax.legend(frameon=False)
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.gca() if ax is None else ax


def _style(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | given


def _matrix(function: str, name: str, value: ArrayLike, shape: str) -> Any:
    array = np.asarray(value)
    if array.ndim != 2:
        raise ValueError(
            f"{function}: {name} must be [{shape}], its shape is {array.shape}; pick one sequence of a batch, "
            f"as in {name}[:, 0]"
        )
    return array


def _name(path: tuple[Any, ...]) -> str:
    """A leaf's place in the state: `u`, or `cell.u`, or `0`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _time(dt: float) -> str:
    return "step" if dt == 1 else "time"
