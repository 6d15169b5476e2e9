"""Layers to and from the Neuromorphic Intermediate Representation (NIR), the way to chips and to other simulators.

Needs the extra `nir` (`pip install 'hyprjax[nir]'`). NIR describes neurons in continuous time. A step of `dt` seconds
is taken as forward Euler, as snnTorch and spyx do: a decay of α per step is a time constant of `dt / (1 - α)`.
Resistances are such that those libraries need not scale weights. NIR holds `lif`, `cuba_lif` and `leaky_integrator`;
resonating and adaptive neurons have no counterpart in it.

    Pedersen et al. 2024, Neuromorphic intermediate representation, https://doi.org/10.1038/s41467-024-52259-9
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import nir
import numpy as np

from hyprjax._cell import Cell, Params
from hyprjax.cells import cuba_lif, leaky_integrator, lif
from hyprjax.surrogate import SpikeFn

INSTANT = 1e-3  # a time constant in steps at which a leaky integrator forgets within a step


class Layer(NamedTuple):
    """One layer of a network: `unroll(layer.cell, layer.params, inputs)`."""

    cell: Cell
    params: Params


def to_nir(layers: Sequence[tuple[Cell, Params]], *, dt: float = 1e-4) -> nir.NIRGraph:
    """Exports a stack of layers, each fed by the one before.

    A layer becomes an `Affine` (`Linear` without bias) and a `LIF`, `CubaLIF` or `LI`; with recurrent weights the
    neurons are a sub-graph of input, neurons, weights and output. NIR's neurons are reset to `v_reset = 0`. That is
    what `cuba_lif` and `lif(reset="zero")` do; the default `lif` subtracts its threshold, which NIR has no word for:
    it is exported with a warning and `metadata={"reset": "subtract"}`, and simulators that subtract, such as spyx,
    run it exactly. Surrogate derivatives are not part of NIR.

    Args:
      layers: `(cell, params)` pairs in order, `params` as `init_layer` returns them.
      dt: seconds per step; snnTorch assumes the default.

    Returns:
      The graph, for `nir.write` or another library.

    Raises:
      ValueError: a neuron model that NIR cannot hold, sizes that do not fit, or no layers.

    Examples:
      >>> import jax, hyprjax as hj
      >>> from hyprjax.nir import to_nir
      >>> cell, readout = hj.lif(reset="zero"), hj.leaky_integrator()
      >>> hidden = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> out = hj.init_layer(jax.random.key(1), readout, n_in=36, n_out=6)
      >>> sorted(to_nir([(cell, hidden), (readout, out)]).nodes)
      ['input', 'layer_0', 'layer_0_synapses', 'layer_1', 'layer_1_synapses', 'output']
    """
    if not layers:
        raise ValueError("to_nir: layers is empty; pass (cell, params) pairs")
    size = layers[0][1]["w_in"].shape[0]
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
    return nir.NIRGraph(nodes, list(pairwise(nodes)))


def from_nir(
    graph: nir.NIRGraph, *, dt: float = 1e-4, spike: SpikeFn | None = None, dtype: Any = jnp.float32
) -> list[Layer]:
    """Imports a graph that is a stack of layers: neurons joined by `Affine`, `Linear` and `Scale`.

    Recurrence may be a sub-graph or a cycle in the graph itself. Resistance, leak and reset potential, thresholds
    that differ between neurons and input weights are folded into synaptic weights and biases, which changes
    no spike. Linear nodes behind the last neurons become a `leaky_integrator` that forgets within a step.

    Args:
      graph: as `nir.read` returns it.
      dt: seconds per step; those it was exported with.
      spike: spike function of the cells, for training; default that of each cell.
      dtype: floating dtype of the parameters.

    Returns:
      The layers in order. Neurons start at their reset potential.

    Raises:
      ValueError: a node without counterpart, a connection that skips a layer or leads back to an earlier one, a time
        constant shorter than `dt`, or a threshold not above the reset potential.

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
    flat = _Flat(graph)
    layers, before = [], flat.name_of(nir.Input)
    while not (sources := flat.current(flat.name_of(nir.Output))).keys() <= {before, None}:
        here = flat.next_neurons(before)
        layers.append(_import(here, flat, before, dt, spike))
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


def _export(i: int, cell: Cell, neuron: dict, dt: float) -> tuple[np.ndarray, nir.NIRNode]:
    """What the weights are scaled with, and the node of the neurons."""
    if cell.name not in ("lif", "cuba_lif", "leaky_integrator"):
        raise ValueError(
            f"to_nir: layer {i} is a {cell.name!r} cell, which NIR cannot hold (it has lif, cuba_lif and "
            "leaky_integrator); keep its parameters as a checkpoint, or train a network of lif or cuba_lif for NIR"
        )
    decay = {name: np.exp(-1 / np.maximum(np.abs(tau.astype(float)), INSTANT)) for name, tau in neuron.items()}
    seconds = {name: (dt / (1 - d)).astype(neuron[name].dtype) for name, d in decay.items()}
    one, zero = np.ones_like(neuron["tau"]), np.zeros_like(neuron["tau"])
    if cell.name == "leaky_integrator":
        return one, nir.LI(tau=seconds["tau"], r=one, v_leak=zero)
    constants = dict(cell.constants)
    shared = {"r": seconds["tau"] / dt, "v_leak": zero, "v_threshold": constants["threshold"] * one, "v_reset": zero}
    if cell.name == "cuba_lif":
        synapses = {"tau_syn": seconds["tau_syn"], "w_in": seconds["tau_syn"] / dt}
        return 1 - decay["tau"], nir.CubaLIF(tau_mem=seconds["tau"], **synapses, **shared)
    if constants["reset"] == "subtract":
        message = f"to_nir: layer {i} subtracts its threshold at a spike, but NIR's LIF is put to v_reset; "
        warnings.warn(message + 'train lif(reset="zero") for a target that follows NIR', stacklevel=3)
    return one, nir.LIF(tau=seconds["tau"], **shared, metadata={"reset": constants["reset"]})


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

    def name_of(self, kind: type[nir.NIRNode]) -> str:
        names = [name for name, node in self.nodes.items() if isinstance(node, kind) and "/" not in name]
        if len(names) != 1:
            raise ValueError(f"from_nir: the graph must have one {kind.__name__} node, it has {len(names)}")
        return names[0]

    def next_neurons(self, before: str) -> str:
        """The neurons fed by `before`, and by nothing else but themselves."""
        for name, node in self.nodes.items():
            if isinstance(node, nir.LIF | nir.CubaLIF | nir.LI) and name != before:
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
                total[key] = total[key] + value if key in total else value
        return total

    def _emitted(self, name: str, through: tuple[str, ...]) -> dict[str | None, np.ndarray]:
        node = self.nodes[name]
        if isinstance(node, nir.LIF | nir.CubaLIF | nir.LI) or (isinstance(node, nir.Input) and "/" not in name):
            shape = next(iter(node.output_type.values()))
            if len(shape) != 1:
                raise ValueError(f"from_nir: {name!r} has shape {tuple(shape)}; only layers of one axis are imported")
            return {name: np.eye(int(shape[0]))}
        current = self.current(name, through)
        if isinstance(node, nir.Input | nir.Output):
            return current
        if isinstance(node, nir.Scale):
            return {key: value * node.scale for key, value in current.items()}
        if not isinstance(node, nir.Affine | nir.Linear):
            known = "it takes LIF, CubaLIF, LI, Affine, Linear and Scale"
            raise ValueError(f"from_nir: {name!r} is a {type(node).__name__}, which hyprjax does not have ({known})")
        emitted = {key: value @ node.weight.T.astype(float) for key, value in current.items()}
        if isinstance(node, nir.Affine):
            emitted[None] = emitted.get(None, 0) + node.bias
        return emitted


def _import(name: str, flat: _Flat, before: str, dt: float, spike: SpikeFn | None) -> Layer:
    node, current = flat.nodes[name], flat.current(name)
    cell, neuron, gain, offset = _neurons(name, node, dt, spike)
    params: Params = {"w_in": current[before] * gain, "neuron": neuron}
    if name in current:
        params["w_rec"] = current[name] * gain
    bias = current.get(None, 0) * gain + offset
    if np.any(bias) or None in current:
        params["bias"] = bias
    return Layer(cell, params)


def _neurons(name: str, node: Any, dt: float, spike: SpikeFn | None) -> tuple[Cell, dict, np.ndarray, np.ndarray]:
    """Cell, neuron parameters, and the gain and bias in which everything else of a node is folded."""
    if isinstance(node, nir.LI):
        return leaky_integrator(), {"tau": _steps(name, node.tau, dt)[0]}, node.r, node.v_leak
    subtract = node.metadata.get("reset", "zero") == "subtract"
    reset = np.zeros_like(node.v_threshold) if subtract else node.v_reset
    threshold, leak = (node.v_threshold - reset).astype(float), (node.v_leak - reset).astype(float)
    if np.any(threshold <= 0):
        raise ValueError(f"from_nir: v_threshold of {name!r} must be above {'0' if subtract else 'v_reset'} everywhere")
    unit, common = threshold, 1.0
    if np.ptp(threshold) == 0:
        unit, common = np.ones_like(threshold), float(threshold[0])
    if isinstance(node, nir.LIF):
        tau, decay = _steps(name, node.tau, dt)
        cell = lif(threshold=common, reset="subtract" if subtract else "zero", spike=spike)
        return cell, {"tau": tau}, (1 - decay) * node.r / unit, (1 - decay) * leak / unit
    if np.any(leak):
        raise ValueError(f"from_nir: v_leak of {name!r} differs from v_reset, which cuba_lif does not have")
    (tau, _), (tau_syn, decay) = _steps(name, node.tau_mem, dt), _steps(name, node.tau_syn, dt)
    gain = (1 - decay) * node.w_in * node.r / unit
    return cuba_lif(threshold=common, spike=spike), {"tau": tau, "tau_syn": tau_syn}, gain, np.zeros_like(gain)


def _steps(name: str, tau: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """A time constant in steps, and the decay per step."""
    decay = 1 - dt / tau.astype(float)
    if np.any(decay < 0):
        raise ValueError(f"from_nir: {name!r} has a time constant of {tau.min():g} s, shorter than a step, dt = {dt:g}")
    with np.errstate(divide="ignore"):
        return np.maximum(-1 / np.log(decay), INSTANT), decay
