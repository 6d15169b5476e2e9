"""Graphs mean the same on both sides: a NumPy loop of NIR's equations, another library, and the way back."""

import warnings
from itertools import pairwise

import jax
import jax.numpy as jnp
import nir
import numpy as np
import pytest

import hyprjax as hj
from hyprjax.nir import from_nir, to_nir

DT = 1e-4
CELLS = {
    "lif": hj.lif(tau=(5.0, 20.0), reset="zero"),
    "cuba_lif": hj.cuba_lif(tau=(5.0, 20.0), tau_syn=(3.0, 9.0)),
    "leaky_integrator": hj.leaky_integrator(tau=(3.0, 20.0)),
    "subtracting": hj.lif(tau=(5.0, 20.0)),
}


def make(*names, recurrent=True, bias=True, dtype=jnp.float64):
    """A stack of layers of 7 neurons that spike, and inputs for it."""
    layers, n_in = [], 5
    for i, name in enumerate(names):
        key = jax.random.fold_in(jax.random.key(3), i)
        spiking = name != "leaky_integrator"
        params = hj.init_layer(key, CELLS[name], n_in, 7, recurrent=recurrent and spiking, bias=bias, dtype=dtype)
        gain = (1.5 if name == "cuba_lif" else 0.3) * (1 if i == 0 else 2.5)
        params["w_in"] = jnp.abs(params["w_in"]) * gain / n_in**0.5
        if "w_rec" in params:
            params["w_rec"] *= 0.2
        if bias:
            params["bias"] += 0.02
        layers.append((CELLS[name], params))
        n_in = 7
    return layers, jax.random.uniform(jax.random.key(9), (120, 2, 5), dtype)


def run(layers, signal):
    for cell, params in layers:
        signal = hj.unroll(cell, params, signal)
    return np.asarray(signal)


def simulate(graph, inputs):
    """Forward Euler of NIR's equations, node by node; every edge within a step but those of a cycle, which take one."""
    edges, nodes = list(graph.edges), {}
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            entry, way_out = next(iter(node.inputs)), next(iter(node.outputs))
            edges = [(way_out if a == name else a, entry if b == name else b) for a, b in edges] + node.edges
        nodes |= node.nodes if isinstance(node, nir.NIRGraph) else {name: node}
    is_neuron = lambda node: isinstance(node, nir.LIF | nir.CubaLIF | nir.LI)  # noqa: E731
    spikes = {name: np.zeros(len(node.r)) for name, node in nodes.items() if is_neuron(node)}
    v = {name: getattr(node, "v_reset", 0.0) for name, node in nodes.items() if is_neuron(node)}
    synaptic = dict.fromkeys(spikes, 0.0)
    order = [name for name in nodes if not isinstance(nodes[name], nir.Input | nir.Output)]
    for x in inputs:
        before = dict(spikes)

        def value(name, reader, x=x, before=before):
            """What flows out of a node: of neurons that lie behind the reader, what they sent a step ago."""
            node = nodes[name]
            if name in spikes:
                return spikes[name] if reader is None or order.index(name) < order.index(reader) else before[name]
            if name == "input":
                return x
            total = sum(value(source, reader) for source, target in edges if target == name)
            if isinstance(node, nir.Scale):
                return total * node.scale
            if isinstance(node, nir.Affine | nir.Linear):
                return total @ node.weight.T + getattr(node, "bias", 0.0)
            return total

        for name in [name for name in order if name in spikes]:
            node = nodes[name]
            current = sum(value(source, name) for source, target in edges if target == name)
            tau = node.tau_mem if isinstance(node, nir.CubaLIF) else node.tau
            if isinstance(node, nir.CubaLIF):
                synaptic[name] = synaptic[name] + DT / node.tau_syn * (node.w_in * current - synaptic[name])
                current = synaptic[name]
            v[name] = v[name] + DT / tau * (node.v_leak - v[name] + node.r * current)
            if isinstance(node, nir.LI):
                spikes[name] = v[name]
                continue
            spikes[name] = (v[name] > node.v_threshold).astype(float)
            v[name] = np.where(spikes[name] > 0, node.v_reset, v[name])
        yield value("output", None)


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "names", [("lif",), ("cuba_lif",), ("leaky_integrator",), ("lif", "cuba_lif", "leaky_integrator")]
)
def test_an_exported_graph_has_the_meaning_of_the_network(names, recurrent, bias):
    layers, inputs = make(*names, recurrent=recurrent, bias=bias)
    expected = run(layers, inputs)
    if names != ("leaky_integrator",):
        assert 0.005 < np.abs(expected).mean() < 0.9
    actual = np.stack(list(simulate(to_nir(layers, dt=DT), np.asarray(inputs))))
    assert np.allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:to_nir")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_a_round_trip_through_a_file_keeps_outputs(tmp_path, bias, dtype):
    layers, inputs = make("subtracting", "lif", "cuba_lif", "leaky_integrator", bias=bias, dtype=dtype)
    nir.write(tmp_path / "network.nir", to_nir(layers))
    restored = from_nir(nir.read(tmp_path / "network.nir"), dtype=dtype)
    assert [cell.name for cell, _ in restored] == ["lif", "lif", "cuba_lif", "leaky_integrator"]
    for (cell, _), (original, _) in zip(restored, layers, strict=True):
        threshold, expected = (dict(c.constants).get("threshold", 0.0) for c in (cell, original))
        assert threshold == pytest.approx(expected, rel=1e-6)
        assert cell.constants[1:] == original.constants[1:]
    assert jax.tree.structure([p for _, p in restored]) == jax.tree.structure([p for _, p in layers])
    expected = run(layers, inputs)
    assert 0.02 < expected.mean() < 0.9
    assert np.abs(run(restored, inputs) - expected).max() <= 1e-6


def test_every_parameter_of_a_foreign_graph_counts():
    """Resistance, leak, reset, thresholds per neuron, scales, a biased recurrent map, a cycle that is no sub-graph."""
    random = np.random.default_rng(1)
    uniform = lambda low, high, *shape: random.uniform(low, high, shape or (6,))  # noqa: E731
    reset = uniform(-0.3, 0.1)
    graph = nir.NIRGraph(
        {
            "input": nir.Input({"input": np.array([4])}),
            "scale": nir.Scale(uniform(0.5, 1.5, 4)),
            "up": nir.Linear(uniform(0, 8, 6, 4)),
            "lif": nir.LIF(
                tau=uniform(1e-3, 3e-3), r=uniform(0.5, 2.0), v_leak=uniform(-0.2, 0.2),
                v_threshold=uniform(0.3, 1), v_reset=reset
            ),
            "back": nir.Affine(uniform(-4, 4, 6, 6), uniform(-0.1, 0.1)),
            "across": nir.Affine(uniform(0, 0.4, 6, 6), uniform(0, 0.1)),
            "cuba": nir.CubaLIF(
                tau_mem=uniform(1e-3, 3e-3), tau_syn=uniform(1e-3, 3e-3), r=uniform(0.5, 2.0), v_leak=reset,
                v_threshold=uniform(0.2, 0.4), v_reset=reset, w_in=uniform(0.5, 1.5)
            ),
            "down": nir.Linear(uniform(-1, 1, 3, 6)),
            "li": nir.LI(tau=uniform(1e-3, 3e-3, 3), r=uniform(0.5, 2.0, 3), v_leak=np.zeros(3)),
            "out": nir.Affine(uniform(-1, 1, 2, 3), uniform(-1, 1, 2)),
            "output": nir.Output({"output": np.array([2])}),
        },
        [("input", "scale"), ("scale", "up"), ("up", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "across"),
         ("across", "cuba"), ("cuba", "down"), ("down", "li"), ("li", "out"), ("out", "output")],
    )  # fmt: skip
    layers = from_nir(graph, dt=DT, dtype=jnp.float64)
    assert [cell.name for cell, _ in layers] == ["lif", "cuba_lif", "leaky_integrator", "leaky_integrator"]
    inputs = random.uniform(0, 1, (150, 3, 4))
    expected = np.stack(list(simulate(graph, inputs)))
    assert 0.02 < run(layers[:1], inputs).mean() < 0.9
    assert 0.02 < run(layers[:2], inputs).mean() < 0.9
    assert np.allclose(run(layers, inputs), expected, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:to_nir")
@pytest.mark.parametrize("recurrent", [False, True])
def test_spyx_reads_and_runs_an_exported_graph(recurrent):
    """spyx subtracts the threshold, and shows a spike one step after the membrane crossed it, in every layer.

    Without bias, of which its second layer would see a step more.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spyx.nir
    layers, inputs = make("subtracting", "subtracting", recurrent=recurrent, bias=False, dtype=jnp.float32)
    expected = run(layers, inputs)
    _, spikes = spyx.nir.from_nir(to_nir(layers, dt=DT), inputs, dt=DT)
    assert 0.02 < expected.mean() < 0.9
    assert np.array_equal(np.asarray(spikes)[2:], expected[:-2])


def test_what_nir_cannot_hold_is_refused():
    for cell in (hj.brf(), hj.se_adlif(), hj.filtered(hj.lif())):
        params = hj.init_layer(jax.random.key(0), cell, 3, 4)
        with pytest.raises(ValueError, match=r"layer 0 is a '.*' cell, which NIR cannot hold .*lif or cuba_lif"):
            to_nir([(cell, params)])
    with pytest.warns(UserWarning, match=r'subtracts its threshold .*lif\(reset="zero"\)'):
        to_nir(make("subtracting")[0])
    with pytest.raises(ValueError, match="layers is empty"):
        to_nir([])
    with pytest.raises(ValueError, match="layer 1 has 5 inputs, what feeds it 7 outputs"):
        to_nir([make("lif")[0][0], make("lif")[0][0]])


def graph_of(*nodes, edges=None):
    named = {
        "input": nir.Input({"input": np.array([3])}),
        **dict(nodes),
        "output": nir.Output({"output": np.array([3])}),
    }
    return nir.NIRGraph(named, edges or list(pairwise(named)))


def lif_node(tau=1e-2, threshold=1.0):
    one = np.ones(3)
    return nir.LIF(tau=tau * one, r=one, v_leak=0 * one, v_threshold=threshold * one)


def test_what_cannot_be_imported_is_refused():
    square = nir.Linear(np.eye(3))
    skip = [("input", "a"), ("a", "b"), ("b", "output"), ("a", "output")]
    for graph, message in [
        (graph_of(("if", nir.IF(np.ones(3), np.ones(3)))), "'if' is a IF, which hyprjax does not have"),
        (graph_of(("lif", lif_node(tau=1e-5))), "'lif' has a time constant of 1e-05 s, shorter than a step"),
        (graph_of(("lif", lif_node(threshold=-1.0))), "v_threshold of 'lif' must be above v_reset"),
        (graph_of(("a", lif_node()), ("b", lif_node()), edges=skip), "no neurons are fed by 'b'"),
        (graph_of(("a", square), edges=[("input", "a"), ("a", "a"), ("a", "output")]), "cycle without neurons"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_nir(graph, dt=DT)
