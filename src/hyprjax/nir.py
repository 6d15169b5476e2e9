"""Layers to and from the Neuromorphic Intermediate Representation (NIR), the way to chips and to other simulators.

Needs the extra `nir` (`pip install 'hyprjax[nir]'`). NIR describes neurons in continuous time. A step of `dt` seconds
is taken as forward Euler, as snnTorch and spyx do: a decay of α per step is a time constant of `dt / (1 - α)`.
Resistances are such that those libraries need not scale weights. NIR holds `lif`, `cuba_lif`, `leaky_integrator` and
`filtered(leaky_integrator())`; resonating and adaptive neurons have no counterpart in it.

    Pedersen et al. 2024, Neuromorphic intermediate representation, https://doi.org/10.1038/s41467-024-52259-9
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import nir
import numpy as np

from hyprjax._cell import Cell, Params
from hyprjax.cells import cuba_lif, filtered, leaky_integrator, lif
from hyprjax.surrogate import SpikeFn

INSTANT = 1e-3  # a time constant in steps at which a leaky integrator forgets within a step
_DT = 1e-4  # snnTorch's
_NEURONS = (nir.LIF, nir.CubaLIF, nir.IF, nir.LI, nir.CubaLI)


class Layer(NamedTuple):
    """One layer of a network: `unroll(layer.cell, layer.params, inputs)`."""

    cell: Cell
    params: Params


def to_nir(layers: Iterable[tuple[Cell, Params]], *, dt: float = 1e-4) -> nir.NIRGraph:
    """Exports a stack of layers, each fed by the one before.

    A layer becomes an `Affine` (`Linear` without bias) and a `LIF`, `CubaLIF`, `LI` or `CubaLI`, or an `IF` where no
    neuron leaks (`tau = inf`); with recurrent weights the neurons are a sub-graph of input, neurons, weights and
    output. NIR's neurons are reset to `v_reset = 0`. That is what `cuba_lif` and `lif(reset="zero")` do; the default
    `lif` subtracts its threshold, which NIR has no word for: it is exported with a warning and `metadata={"reset":
    "subtract"}`, and simulators that subtract, such as spyx, run it exactly. Surrogate derivatives are not part of NIR.

    Args:
      layers: `(cell, params)` pairs in order, `params` as `init_layer` returns them.
      dt: seconds per step, kept as `metadata={"dt": dt}` of the graph; snnTorch assumes the default.

    Returns:
      The graph, for `nir.write` or another library.

    Raises:
      ValueError: a neuron model that NIR cannot hold, parameters that are not those of one layer (but of an ensemble)
        or hold NaN, sizes that do not fit, no layers, or a `dt` that is not positive.
      TypeError: `layers` does not hold such pairs.

    Examples:
      >>> import jax, hyprjax as hj
      >>> from hyprjax.nir import to_nir
      >>> cell, readout = hj.lif(reset="zero"), hj.leaky_integrator()
      >>> hidden = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> out = hj.init_layer(jax.random.key(1), readout, n_in=36, n_out=6)
      >>> sorted(to_nir([(cell, hidden), (readout, out)]).nodes)
      ['input', 'layer_0', 'layer_0_synapses', 'layer_1', 'layer_1_synapses', 'output']
    """
    layers = _checked(layers)
    dt = _positive("to_nir", dt)
    size = np.shape(layers[0][1]["w_in"])[0]
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array([size])})}
    for i, (cell, params) in enumerate(layers):
        name, params = f"layer_{i}", jax.tree.map(np.asarray, params)
        if params["w_in"].shape[0] != size:
            raise ValueError(f"to_nir: layer {i} has {params['w_in'].shape[0]} inputs, what feeds it {size} outputs")
        scale, neurons = _export(i, cell, params["neuron"], dt)
        size = params["w_in"].shape[1]
        weight, dtype = (params["w_in"] * scale).T, params["w_in"].dtype
        bias = [params["bias"] * scale] if "bias" in params else []
        nodes[f"{name}_synapses"] = (nir.Affine if bias else nir.Linear)(weight.astype(dtype), *bias)
        nodes[name] = neurons
        if "w_rec" in params:
            nodes[name] = _recurrent(name, neurons, (params["w_rec"] * scale).T.astype(dtype))
    nodes["output"] = nir.Output({"output": np.array([size])})
    return nir.NIRGraph(nodes, list(pairwise(nodes)), metadata={"dt": dt})


def from_nir(
    graph: nir.NIRGraph, *, dt: float | None = None, spike: SpikeFn | None = None, dtype: Any = jnp.float32
) -> list[Layer]:
    """Imports a graph that is a stack of layers: neurons joined by `Affine`, `Linear` and `Scale`.

    Recurrence may be a sub-graph or a cycle in the graph itself. Resistance, leak and reset potential, thresholds
    that differ between neurons and input weights are folded into synaptic weights and biases, which changes
    no spike. An `IF` is a `lif` with `tau = inf`. A `LIF` with an infinite time constant is taken for the `IF` with its
    resistance; if that is infinite, too, as exporters have it that set it to the time constant in steps, its gain is 1.
    Parameters of shape `()` or `[1]` are those of all neurons of a layer, and arrays with several axes are layers in
    row-major order, as `Flatten` has them. Linear nodes behind the last neurons become a `leaky_integrator` that
    forgets within a step.

    Args:
      graph: as `nir.read` returns it.
      dt: seconds per step; by default those of the graph, as `to_nir` keeps them, or 1e-4 where it does not say.
      spike: spike function of the cells, for training; default that of each cell.
      dtype: floating dtype of the parameters.

    Returns:
      The layers in order. Neurons start at their reset potential.

    Raises:
      ValueError: a node without counterpart, a connection that skips a layer or leads back to an earlier one, sizes
        that do not fit, a parameter that is not finite, a time constant shorter than `dt`, or a threshold not above the
        reset potential.
      TypeError: `graph` is not a `nir.NIRGraph`.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> from hyprjax.nir import from_nir, to_nir
      >>> cell = hj.cuba_lif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> signal = jnp.ones((50, 8, 4))
      >>> for layer in from_nir(to_nir([(cell, params)])):
      ...     signal = hj.unroll(layer.cell, layer.params, signal)
      >>> signal.shape
      (50, 8, 36)
    """
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"from_nir: graph must be a nir.NIRGraph, as nir.read(path) returns it; got {graph!r}")
    dt = _positive("from_nir", graph.metadata.get("dt", _DT) if dt is None else dt)
    flat = _Flat(graph)
    layers, before = [], flat.name_of(nir.Input)
    while not (sources := flat.current(flat.name_of(nir.Output))).keys() <= {before, None}:
        here = flat.next_neurons(before)
        layers.append(flat.layer(here, before, dt, spike))
        before = here
    weight = sources.get(before)
    if weight is None:
        raise ValueError(f"from_nir: the output does not depend on {before!r}")
    if not layers or None in sources or not np.array_equal(weight, np.eye(len(weight))):
        bias = {"bias": sources[None]} if None in sources else {}
        layers.append(
            Layer(leaky_integrator(), {"w_in": weight, **bias, "neuron": {"tau": np.full(weight.shape[1], INSTANT)}})
        )
    return [Layer(cell, jax.tree.map(lambda p: jnp.asarray(p, dtype), params)) for cell, params in layers]


# --- export ---------------------------------------------------------------------------------------


def _checked(layers: Iterable[tuple[Cell, Params]]) -> list[tuple[Cell, Params]]:
    """The stack of layers, if it is one."""
    layers = list(layers)
    if not all(isinstance(layer, tuple | list) and len(layer) == 2 and isinstance(layer[0], Cell) for layer in layers):
        raise TypeError(
            "to_nir: layers must be a list of (cell, params) pairs, as in to_nir([(cell, params)]); of a Flax module "
            "(module.cell, module.params)"
        )
    if not layers:
        raise ValueError("to_nir: layers is empty; pass (cell, params) pairs")
    for i, (cell, params) in enumerate(layers):
        if cell.name not in ("lif", "cuba_lif", "leaky_integrator", "filtered(leaky_integrator)"):
            raise ValueError(
                f"to_nir: layer {i} is a {cell.name!r} cell, which NIR cannot hold (it has lif, cuba_lif, "
                "leaky_integrator and filtered(leaky_integrator())); keep its parameters as a checkpoint, or train a "
                "network of lif or cuba_lif for NIR"
            )
        if cell.feedback and "w_rec" in params:
            raise ValueError(
                f"to_nir: layer {i} is a {cell.name} whose w_rec carries back what is not filtered, but NIR connects "
                'outputs; use filtered(..., recurrent="output")'
            )
        shape = np.shape(params["w_in"])
        if len(shape) != 2:
            raise ValueError(
                f"to_nir: layer {i} has w_in of shape {shape}, but it must be [n_in, n_out]; export the members of an "
                "ensemble one by one, as in jax.tree.map(lambda p: p[0], params)"
            )
        wanted = {"w_in": shape, "w_rec": (shape[1], shape[1])}
        for path, leaf in jax.tree.leaves_with_path(params):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            expected = wanted.get(name, shape[1:])
            if np.shape(leaf) != expected:
                raise ValueError(f"to_nir: layer {i} has {name} of shape {np.shape(leaf)}, but it must be {expected}")
            if np.isnan(leaf).any():
                raise ValueError(f"to_nir: layer {i} has NaN in {name}; export a checkpoint from before it diverged")
    return layers


def _positive(function: str, dt: Any) -> float:
    """The length of a step."""
    if not (isinstance(dt, int | float | np.number) and 0 < dt < np.inf):
        raise ValueError(f"{function}: dt must be a positive number of seconds per step, got {dt!r}")
    return float(dt)


def _export(i: int, cell: Cell, neuron: dict, dt: float) -> tuple[np.ndarray, nir.NIRNode]:
    """What the weights are scaled with, and the node of the neurons."""
    if "cell" in neuron:
        neuron = {"tau": neuron["cell"]["tau"], "tau_syn": neuron["tau"]}
    leak = {name: -np.expm1(-1 / np.maximum(np.abs(tau.astype(float)), INSTANT)) for name, tau in neuron.items()}
    in_dtype = lambda name, x: np.asarray(x).astype(neuron[name].dtype)  # noqa: E731
    # Not quite infinite: that times the leak of a neuron without one is not a number.
    seconds = {name: in_dtype(name, dt / np.maximum(part, 1e-30)) for name, part in leak.items()}
    one, zero = np.ones_like(neuron["tau"]), np.zeros_like(neuron["tau"])
    if cell.name == "leaky_integrator":
        return one, nir.LI(tau=seconds["tau"], r=one, v_leak=zero)
    if cell.name == "filtered(leaky_integrator)":
        return one, nir.CubaLI(tau_mem=seconds["tau"], tau_syn=seconds["tau_syn"], r=one, v_leak=zero)
    constants = dict(cell.constants)
    shared = {"r": seconds["tau"] / dt, "v_leak": zero, "v_threshold": constants["threshold"] * one, "v_reset": zero}
    if cell.name == "cuba_lif":
        synapses = {"tau_syn": seconds["tau_syn"], "w_in": seconds["tau_syn"] / dt}
        return leak["tau"], nir.CubaLIF(tau_mem=seconds["tau"], **synapses, **shared)
    if constants["reset"] == "subtract":
        message = f"to_nir: layer {i} subtracts its threshold at a spike, but NIR's neurons are put to v_reset; "
        warnings.warn(message + 'train lif(reset="zero") for a target that follows NIR', stacklevel=3)
    metadata = {"reset": constants["reset"]}
    if not leak["tau"].any():
        spiking = {name: shared[name] for name in ("v_threshold", "v_reset")}
        return one, nir.IF(r=in_dtype("tau", one / dt), **spiking, metadata=metadata)
    return one, nir.LIF(tau=seconds["tau"], **shared, metadata=metadata)


def _recurrent(name: str, neurons: nir.NIRNode, weight: np.ndarray) -> nir.NIRGraph:
    size = np.array([len(weight)])
    parts = {
        "input": nir.Input({"input": size}),
        "lif": neurons,
        "w_rec": nir.Linear(weight),
        "output": nir.Output({"output": size}),
    }
    edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
    key = lambda part: f"{name}.{part}"  # noqa: E731
    return nir.NIRGraph({key(part): node for part, node in parts.items()}, [(key(a), key(b)) for a, b in edges])


# --- import ---------------------------------------------------------------------------------------


class _Flat:
    """A graph without sub-graphs, and the affine map that leads into each of its nodes."""

    def __init__(self, graph: nir.NIRGraph):
        self.nodes: dict[str, nir.NIRNode] = {}
        self.before: dict[str, list[str]] = {}
        self._add(graph, "", ())

    def _add(self, graph: nir.NIRGraph, prefix: str, feeds: Sequence[str]) -> list[str]:
        """Adds the nodes under `prefix`, the graph's inputs fed by `feeds`; returns the names of its outputs."""
        exits = {name: [prefix + name] for name in graph.nodes}
        for name, node in graph.nodes.items():
            if isinstance(node, nir.NIRGraph):
                exits[name] = [f"{prefix}{name}/{output}" for output in node.outputs]
        for name, node in graph.nodes.items():
            fed_by = [exit for source, target in graph.edges if target == name for exit in exits[source]]
            if isinstance(node, nir.NIRGraph):
                self._add(node, f"{prefix}{name}/", fed_by)
                continue
            self.nodes[prefix + name] = node
            self.before[prefix + name] = [*fed_by, *(feeds if isinstance(node, nir.Input) else ())]
        return [prefix + name for name in graph.outputs]

    def width(self, name: str, through: tuple[str, ...] = ()) -> int:
        """How many values flow out of a node; one whose parameters are those of all neurons has as many as feed it."""
        node = self.nodes[name]
        if isinstance(node, nir.Affine | nir.Linear):
            return node.weight.shape[-2]
        own = _size(node)
        sources = [source for source in self.before[name] if source not in through]
        return own if own > 1 else max([own, *[self.width(source, (*through, name)) for source in sources]])

    def name_of(self, kind: type[nir.NIRNode]) -> str:
        names = [name for name, node in self.nodes.items() if isinstance(node, kind) and "/" not in name]
        if len(names) != 1:
            raise ValueError(f"from_nir: the graph must have one {kind.__name__} node, it has {len(names)}")
        return names[0]

    def next_neurons(self, before: str) -> str:
        """The neurons fed by `before`, and by nothing else but themselves."""
        for name, node in self.nodes.items():
            if isinstance(node, _NEURONS) and name != before:
                sources = self.current(name).keys()
                if before in sources and sources <= {before, name, None}:
                    return name
        raise ValueError(
            f"from_nir: no neurons are fed by {before!r} and themselves alone; only stacks of layers can be imported"
        )

    def current(self, name: str, through: tuple[str, ...] = ()) -> dict[str | None, np.ndarray]:
        """What flows into a node: of each source the weights `[source, node]`, and under None a bias `[node]`."""
        total: dict[str | None, np.ndarray] = {}
        for source in self.before[name]:
            if source in through:
                raise ValueError(f"from_nir: a cycle without neurons leads through {source!r}")
            for key, value in self._emitted(source, (*through, source)).items():
                if key in total and total[key].shape != value.shape:
                    raise ValueError(f"from_nir: what flows into {name!r} differs in size between its sources")
                total[key] = total[key] + value if key in total else value
        return total

    def _emitted(self, name: str, through: tuple[str, ...]) -> dict[str | None, np.ndarray]:
        node = self.nodes[name]
        if isinstance(node, _NEURONS) or (isinstance(node, nir.Input) and "/" not in name):
            return {name: np.eye(self.width(name))}
        current = self.current(name, through)
        if isinstance(node, nir.Input | nir.Output | nir.Flatten):
            return current
        if isinstance(node, nir.Scale):
            scale = _spread(name, "scale", node.scale, self.width(name))
            return {key: self._fitting(name, value, len(scale)) * scale for key, value in current.items()}
        if not isinstance(node, nir.Affine | nir.Linear):
            known = "it takes LIF, CubaLIF, IF, LI, CubaLI, Affine, Linear, Scale and Flatten"
            raise ValueError(f"from_nir: {name!r} is a {type(node).__name__}, which hyprjax does not have ({known})")
        if node.weight.ndim != 2:
            raise ValueError(f"from_nir: the weight of {name!r} has shape {node.weight.shape}, it must have two axes")
        weight = node.weight.T.astype(float)
        emitted = {key: self._fitting(name, value, len(weight)) @ weight for key, value in current.items()}
        if isinstance(node, nir.Affine):
            emitted[None] = emitted.get(None, 0) + _spread(name, "bias", node.bias, weight.shape[1])
        return emitted

    def _fitting(self, name: str, value: np.ndarray, size: int) -> np.ndarray:
        if value.shape[-1] != size:
            raise ValueError(f"from_nir: {name!r} takes {size} values, what feeds it has {value.shape[-1]}")
        return value

    def layer(self, name: str, before: str, dt: float, spike: SpikeFn | None) -> Layer:
        """The neurons of this name with the weights that lead to them from those before, and from themselves."""
        size = self.width(name)
        current = {key: self._fitting(name, value, size) for key, value in self.current(name).items()}
        cell, neuron, gain, offset = _neurons(name, self.nodes[name], size, dt, spike)
        params: Params = {"w_in": current[before] * gain, "neuron": neuron}
        if name in current:
            params["w_rec"] = current[name] * gain
        bias = current.get(None, 0) * gain + offset
        if np.any(bias) or None in current:
            params["bias"] = bias
        return Layer(cell, params)


def _size(node: nir.NIRNode) -> int:
    """How many values a node has by itself."""
    shape = next(iter(node.output_type.values()))
    return 1 if shape is None or None in list(shape) else int(np.prod(shape))


def _spread(name: str, field: str, value: Any, size: int, *, infinite: bool = False) -> np.ndarray:
    """A parameter of a node as `[size]`, from one value for each neuron or one for all."""
    flat = np.ravel(np.asarray(value, float))
    if len(flat) not in (1, size):
        raise ValueError(f"from_nir: {field} of {name!r} has {len(flat)} values, it must have 1 or {size}")
    if np.isnan(flat).any() or not (infinite or np.isfinite(flat).all()):
        raise ValueError(f"from_nir: {field} of {name!r} is not finite")
    return np.broadcast_to(flat, (size,))


def _neurons(
    name: str, node: Any, size: int, dt: float, spike: SpikeFn | None
) -> tuple[Cell, dict, np.ndarray, np.ndarray]:
    """Cell, neuron parameters, and the gain and bias in which everything else of a node is folded."""
    field = lambda key: _spread(name, key, getattr(node, key), size)  # noqa: E731
    leak = {key: _leak(name, key, node, size, dt) for key in ("tau", "tau_mem", "tau_syn") if hasattr(node, key)}
    tau, zero = {key: _steps(part) for key, part in leak.items()}, np.zeros(size)
    if isinstance(node, nir.LI):
        return leaky_integrator(), {"tau": tau["tau"]}, field("r"), field("v_leak")
    if isinstance(node, nir.CubaLI):
        if np.any(field("v_leak")):
            raise ValueError(f"from_nir: v_leak of {name!r} is not 0, which filtered(leaky_integrator()) does not have")
        neuron = {"cell": {"tau": tau["tau_mem"]}, "tau": tau["tau_syn"]}
        return filtered(leaky_integrator()), neuron, field("w_in") * field("r"), zero
    subtract = node.metadata.get("reset", "zero") == "subtract"
    reset = zero if subtract else field("v_reset")
    threshold = field("v_threshold") - reset
    if np.any(threshold <= 0):
        raise ValueError(f"from_nir: v_threshold of {name!r} must be above {'0' if subtract else 'v_reset'} everywhere")
    unit, common = (np.ones(size), float(threshold[0])) if np.ptp(threshold) == 0 else (threshold, 1.0)
    if isinstance(node, nir.CubaLIF):
        if np.any(field("v_leak") != reset):
            raise ValueError(f"from_nir: v_leak of {name!r} differs from v_reset, which cuba_lif does not have")
        neuron = {"tau": tau["tau_mem"], "tau_syn": tau["tau_syn"]}
        gain = leak["tau_syn"] * field("w_in") * field("r") / unit
        return cuba_lif(threshold=common, spike=spike), neuron, gain, zero
    cell = lif(threshold=common, reset="subtract" if subtract else "zero", spike=spike)
    if isinstance(node, nir.IF):
        return cell, {"tau": np.full(size, np.inf)}, dt * field("r") / unit, zero
    without, r = leak["tau"] == 0, _spread(name, "r", node.r, size, infinite=True)
    if np.any(np.isinf(r) & ~without):
        raise ValueError(f"from_nir: r of {name!r} is infinite where tau is not")
    gain = np.where(without, np.where(np.isinf(r), 1.0, dt * r), leak["tau"] * np.where(without, 0.0, r))
    return cell, {"tau": tau["tau"]}, gain / unit, leak["tau"] * (field("v_leak") - reset) / unit


def _leak(name: str, key: str, node: nir.NIRNode, size: int, dt: float) -> np.ndarray:
    """The part of a variable that leaks away in a step."""
    tau = _spread(name, key, getattr(node, key), size, infinite=isinstance(node, nir.LIF))
    if np.any(tau < dt * (1 - 1e-6)):  # one step in float32 may be a little less
        raise ValueError(
            f"from_nir: {name!r} has a time constant of {tau.min():g} s, shorter than a step, dt = {dt:g}; pass the dt "
            "of the library that it comes from"
        )
    return np.minimum(dt / tau, 1.0)


def _steps(leak: np.ndarray) -> np.ndarray:
    """The time constant in steps."""
    with np.errstate(divide="ignore"):
        return np.maximum(-1 / np.log1p(-leak), INSTANT)
