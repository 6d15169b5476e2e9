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
    "filtered": hj.filtered(hj.leaky_integrator(tau=(3.0, 20.0)), tau=(2.0, 9.0)),
    "integrator": hj.lif(tau=jnp.inf, reset="zero"),
    "subtracting": hj.lif(tau=(5.0, 20.0)),
}


def make(*names, recurrent=True, bias=True, dtype=jnp.float64):
    """A stack of layers of 7 neurons that spike, and inputs for it."""
    layers, n_in = [], 5
    for i, name in enumerate(names):
        key = jax.random.fold_in(jax.random.key(3), i)
        spiking = name not in ("leaky_integrator", "filtered")
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
    """Forward Euler of NIR's equations, node by node; every edge within a step but those of a cycle, which take one.

    Inputs are `[T, batch, *shape]`.
    """
    edges, nodes = list(graph.edges), {}
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            entry, way_out = next(iter(node.inputs)), next(iter(node.outputs))
            edges = [(way_out if a == name else a, entry if b == name else b) for a, b in edges] + node.edges
        nodes |= node.nodes if isinstance(node, nir.NIRGraph) else {name: node}
    is_neuron = lambda node: isinstance(node, nir.LIF | nir.CubaLIF | nir.LI | nir.IF | nir.CubaLI)  # noqa: E731
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
            if isinstance(node, nir.Flatten):
                return np.reshape(total, (len(x), *map(int, node.output_type["output"])))
            if isinstance(node, nir.Affine | nir.Linear):
                return total @ node.weight.T + getattr(node, "bias", 0.0)
            return total

        for name in [name for name in order if name in spikes]:
            node = nodes[name]
            current = sum(value(source, name) for source, target in edges if target == name)
            if isinstance(node, nir.CubaLIF | nir.CubaLI):
                synaptic[name] = synaptic[name] + DT / node.tau_syn * (node.w_in * current - synaptic[name])
                current = synaptic[name]
            if isinstance(node, nir.IF):
                v[name] = v[name] + DT * node.r * current
            else:
                tau = node.tau_mem if isinstance(node, nir.CubaLIF | nir.CubaLI) else node.tau
                v[name] = v[name] + DT / tau * (node.v_leak - v[name] + node.r * current)
            if isinstance(node, nir.LI | nir.CubaLI):
                spikes[name] = v[name]
                continue
            spikes[name] = (v[name] > node.v_threshold).astype(float)
            v[name] = np.where(spikes[name] > 0, node.v_reset, v[name])
        yield value("output", None)


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "names",
    [
        ("lif",),
        ("integrator",),
        ("cuba_lif",),
        ("leaky_integrator",),
        ("filtered",),
        ("lif", "cuba_lif", "leaky_integrator"),
    ],
)
def test_an_exported_graph_has_the_meaning_of_the_network(names, recurrent, bias):
    layers, inputs = make(*names, recurrent=recurrent, bias=bias)
    expected = run(layers, inputs)
    if names not in (("leaky_integrator",), ("filtered",)):
        assert 0.005 < np.abs(expected).mean() < 0.9
    actual = np.stack(list(simulate(to_nir(layers, dt=DT), np.asarray(inputs))))
    assert np.allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:to_nir")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_a_round_trip_through_a_file_keeps_outputs(tmp_path, bias, dtype):
    layers, inputs = make("subtracting", "lif", "integrator", "cuba_lif", "filtered", bias=bias, dtype=dtype)
    nir.write(tmp_path / "network.nir", to_nir(layers, dt=1e-3))
    restored = from_nir(nir.read(tmp_path / "network.nir"), dtype=dtype)  # the file knows its dt
    assert [cell.name for cell, _ in restored] == ["lif", "lif", "lif", "cuba_lif", "filtered(leaky_integrator)"]
    for (cell, _), (original, _) in zip(restored, layers, strict=True):
        threshold, expected = (dict(c.constants).get("threshold", 0.0) for c in (cell, original))
        assert threshold == pytest.approx(expected, rel=1e-6)
        assert cell.constants[1:] == original.constants[1:]
    assert jax.tree.structure([p for _, p in restored]) == jax.tree.structure([p for _, p in layers])
    expected = run(layers, inputs)
    assert 0.02 < run(layers[:4], inputs).mean() < 0.9
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


def chain(nodes, n_in, n_out, **options):
    """Nodes one after the other, from inputs of a shape to `n_out` outputs."""
    named = {
        "input": nir.Input({"input": np.array(n_in)}),
        **nodes,
        "output": nir.Output({"output": np.array([n_out])}),
    }
    return nir.NIRGraph(named, list(pairwise(named)), **options)


def integrators():
    """An IF with resets below and above zero, and the same neurons as LIF without leak."""
    random = np.random.default_rng(2)
    up, r = nir.Linear(random.uniform(-1, 4, (6, 4))), random.uniform(500, 2000, 6)
    reset = {"v_threshold": random.uniform(0.3, 1, 6), "v_reset": random.uniform(-0.3, 0.1, 6)}
    lif = nir.LIF(tau=np.full(6, np.inf), r=r, v_leak=random.uniform(-1, 1, 6), **reset)
    return random, *(chain({"up": up, "neurons": node}, [4], 6) for node in (nir.IF(r=r, **reset), lif))


def test_neurons_without_leak_are_integrators():
    random, fire, without_leak = integrators()
    inputs = random.uniform(0, 1, (150, 3, 4))
    expected = np.stack(list(simulate(fire, inputs)))
    assert 0.02 < expected.mean() < 0.9
    for graph in (fire, without_leak):
        assert np.array_equal(run(from_nir(graph, dt=DT, dtype=jnp.float64), inputs), expected)


def test_leak_and_no_leak_in_one_layer():
    """Infinite time constants and resistances on the way in; none on the way out, where infinity times zero is NaN."""
    tau = np.array([np.inf, 1e-2, 2e-3])
    r = np.where(np.isinf(tau), np.inf, 1.0) * np.minimum(tau, 1) / DT
    lif = nir.LIF(tau=tau, r=r, v_leak=np.zeros(3), v_threshold=np.ones(3))
    ((cell, params),) = from_nir(chain({"lif": lif}, [3], 3), dt=DT, dtype=jnp.float64)
    assert np.allclose(params["w_in"], np.eye(3))
    assert np.allclose(np.exp(-1 / params["neuron"]["tau"]), [1, 0.99, 0.95])
    inputs = np.random.default_rng(0).uniform(0, 0.2, (100, 2, 3))
    actual = np.stack(list(simulate(to_nir([(cell, params)], dt=DT), inputs)))
    assert np.array_equal(actual, run([(cell, params)], inputs))
    assert (actual.mean((0, 1)) > 0.02).all()


@pytest.mark.parametrize("shape", [(1,), ()])
def test_parameters_of_all_neurons_of_a_layer(shape):
    random = np.random.default_rng(4)
    weights = random.uniform(0, 3, (6, 4)), random.uniform(-1, 1, (6, 6)), random.uniform(0, 2, (5, 6))

    def graph(shape, shape_5):
        full, full_5 = (lambda value: np.full(shape, value)), (lambda value: np.full(shape_5, value))
        nodes = {
            "input": nir.Input({"input": np.array([4])}),
            "up": nir.Affine(weights[0], full(0.1)),
            "scale": nir.Scale(full(0.5)),
            "lif": nir.LIF(tau=full(2e-3), r=full(20.0), v_leak=full(0.1), v_threshold=full(1.0), v_reset=full(-0.2)),
            "back": nir.Linear(weights[1]),
            "across": nir.Linear(weights[2]),
            "cuba": nir.CubaLIF(
                tau_mem=full_5(2e-3), tau_syn=full_5(1e-3), r=full_5(9.0), v_leak=full_5(0.0), v_threshold=full_5(0.5)
            ),
            "out": nir.Affine(np.eye(5), full_5(0.3)),
            "output": nir.Output({"output": np.array([5])}),
        }
        edges = [*pairwise([name for name in nodes if name != "back"]), ("lif", "back"), ("back", "lif")]
        return nir.NIRGraph(nodes, edges, type_check=False)

    inputs = random.uniform(0, 1, (100, 3, 4))
    expected = np.stack(list(simulate(graph((6,), (5,)), inputs)))
    layers = from_nir(graph(shape, shape), dt=DT, dtype=jnp.float64)
    assert [params["w_in"].shape for _, params in layers] == [(4, 6), (6, 5), (5, 5)]
    assert 0.02 < run(layers[:1], inputs).mean() < 0.9
    assert expected.std() > 0.1
    assert np.allclose(run(layers, inputs), expected, rtol=0, atol=1e-9)


def test_images_are_flattened():
    random = np.random.default_rng(5)
    square = np.full((2, 3), 1.0)
    lif = nir.LIF(tau=5e-3 * square, r=random.uniform(20, 60, (2, 3)), v_leak=0 * square, v_threshold=square)
    flatten = nir.Flatten({"input": np.array([2, 3])}, start_dim=0)
    li = nir.LI(tau=np.full(4, 2e-3), r=np.ones(4), v_leak=np.ones(4))
    nodes = {"lif": lif, "flatten": flatten, "down": nir.Linear(random.uniform(-1, 1, (4, 6))), "li": li}
    graph = chain(nodes, [2, 3], 4)
    images = random.uniform(0, 1, (100, 5, 2, 3))
    expected = np.stack(list(simulate(graph, images)))
    layers = from_nir(graph, dt=DT, dtype=jnp.float64)
    assert 0.02 < run(layers[:1], images.reshape(100, 5, 6)).mean() < 0.9
    assert np.allclose(run(layers, images.reshape(100, 5, 6)), expected, rtol=0, atol=1e-9)


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
    wrapped = (hj.filtered(hj.lif()), hj.refractory(hj.lif(), 2), hj.with_state(hj.lif()))
    for cell in (hj.brf(), hj.se_adlif(), hj.gru(), hj.coba_lif(), hj.dh_lif(), hj.two_compartment(), *wrapped):
        params = hj.init_layer(jax.random.key(0), cell, 3, 4)
        with pytest.raises(ValueError, match=r"layer 0 is a '.*' cell, which NIR cannot hold .*lif or cuba_lif"):
            to_nir([(cell, params)])
    with pytest.warns(UserWarning, match=r'subtracts its threshold .*lif\(reset="zero"\)'):
        to_nir(make("subtracting")[0])
    with pytest.raises(ValueError, match="layers is empty"):
        to_nir([])
    with pytest.raises(ValueError, match="layer 1 has 5 inputs, what feeds it 7 outputs"):
        to_nir([make("lif")[0][0], make("lif")[0][0]])


def test_a_filter_with_another_recurrence_is_refused():
    def layer(back, recurrent):
        cell = hj.filtered(hj.leaky_integrator(), recurrent=back)
        return cell, hj.init_layer(jax.random.key(0), cell, 3, 4, recurrent=recurrent)

    with pytest.raises(ValueError, match=r"w_rec carries back what is not filtered, .*recurrent=\"output\""):
        to_nir([layer("spikes", True)])
    for right in (layer("spikes", False), layer("output", True)):
        to_nir([right])


def test_parameters_that_are_not_those_of_a_layer_are_refused():
    (cell, params), (_, readout) = make("lif", "leaky_integrator")[0]
    ensemble = jax.vmap(lambda key: hj.init_layer(key, cell, 5, 7))(jax.random.split(jax.random.key(0), 3))
    for changed, words in [
        (ensemble, r"layer 1 has w_in of shape \(3, 5, 7\), .*ensemble one by one, .*p\[0\]"),
        (params | {"bias": jnp.zeros((3, 7))}, r"layer 1 has bias of shape \(3, 7\), but it must be \(7,\)"),
        (params | {"w_rec": jnp.zeros((5, 7))}, r"layer 1 has w_rec of shape \(5, 7\), but it must be \(7, 7\)"),
        (params | {"neuron": {"tau": 20.0}}, r"layer 1 has neuron.tau of shape \(\), but it must be \(7,\)"),
        (params | {"bias": jnp.full(7, jnp.nan)}, "layer 1 has NaN in bias"),
    ]:
        with pytest.raises(ValueError, match=words):
            to_nir([(cell, params), (cell, changed)])
    for layers in ((cell, params), [params], [(params, cell)], [cell]):
        with pytest.raises(TypeError, match=r"layers must be a list of \(cell, params\) pairs"):
            to_nir(layers)
    assert len(to_nir(zip([cell, hj.leaky_integrator()], [params, readout], strict=True)).nodes) == 6
    for dt in (0, -1e-3, np.nan, "1 ms"):
        with pytest.raises(ValueError, match="dt must be a positive number of seconds per step"):
            to_nir([(cell, params)], dt=dt)


def graph_of(*nodes, edges=None, **options):
    named = {
        "input": nir.Input({"input": np.array([3])}),
        **dict(nodes),
        "output": nir.Output({"output": np.array([3])}),
    }
    return nir.NIRGraph(named, edges or list(pairwise(named)), **options)


def lif_node(tau=1e-2, threshold=1.0, r=1.0, size=3):
    one = np.ones(size)
    return nir.LIF(tau=tau * one, r=r * one, v_leak=0 * one, v_threshold=threshold * one)


def test_what_cannot_be_imported_is_refused():
    square = nir.Linear(np.eye(3))
    skip = [("input", "a"), ("a", "b"), ("b", "output"), ("a", "output")]
    for graph, message in [
        (graph_of(("i", nir.I(np.ones(3)))), "'i' is a I, which hyprjax does not have .*it takes LIF, CubaLIF, IF"),
        (
            graph_of(("lif", lif_node(tau=1e-5))),
            "'lif' has a time constant of 1e-05 s, shorter than a step.*pass the dt",
        ),
        (graph_of(("lif", lif_node(tau=-1.0))), "'lif' has a time constant of -1 s"),
        (graph_of(("lif", lif_node(tau=np.nan))), "tau of 'lif' is not finite"),
        (graph_of(("lif", lif_node(threshold=np.nan))), "v_threshold of 'lif' is not finite"),
        (graph_of(("lif", lif_node(r=np.inf))), "r of 'lif' is infinite where tau is not"),
        (graph_of(("li", nir.LI(np.full(3, np.inf), np.ones(3), np.zeros(3)))), "tau of 'li' is not finite"),
        (graph_of(("lif", lif_node(size=2)), type_check=False), "'lif' takes 2 values, what feeds it has 3"),
        (graph_of(("a", nir.Linear(np.eye(4))), type_check=False), "'a' takes 4 values, what feeds it has 3"),
        (graph_of(("a", nir.Linear(np.ones((3, 3, 3)))), type_check=False), r"weight of 'a' has shape \(3, 3, 3\)"),
        (graph_of(("a", nir.Affine(np.eye(3), np.ones(2)))), "bias of 'a' has 2 values, it must have 1 or 3"),
        (graph_of(("lif", lif_node(threshold=-1.0))), "v_threshold of 'lif' must be above v_reset"),
        (graph_of(("a", lif_node()), ("b", lif_node()), edges=skip), "no neurons are fed by 'b'"),
        (graph_of(("a", square), edges=[("input", "a"), ("a", "a"), ("a", "output")]), "cycle without neurons"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_nir(graph, dt=DT)
    with pytest.raises(
        TypeError, match=r"graph must be a nir\.NIRGraph, as nir\.read\(path\) returns it; got 'network\.nir'"
    ):
        from_nir("network.nir")
    with pytest.raises(ValueError, match="from_nir: dt must be a positive number"):
        from_nir(graph_of(("lif", lif_node())), dt=0)
