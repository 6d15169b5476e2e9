"""The cells, stacks and data the tests share."""

import chex
import jax
import jax.numpy as jnp

import hyprjax as hj


def custom_cell():
    """A user's cell: three coupled nonlinear variables, a list as state, a rest state that is trained."""
    spike = hj.surrogate.fast_sigmoid(slope=2.0)

    def init(key, n):
        keys = jax.random.split(key, 3)
        return {name: 0.3 + 0.4 * jax.random.uniform(k, (n,)) for name, k in zip(("a", "b", "r"), keys, strict=True)}

    def rest(neuron, batch_shape, dtype):
        start = jnp.broadcast_to(neuron["r"], (*batch_shape, len(neuron["r"]))).astype(dtype)
        return [start, jnp.tanh(start), jnp.zeros_like(start)]

    def step(neuron, state, current):
        u, v, w = state
        u, v = jnp.tanh(neuron["a"] * u - 0.5 * w * v + current), neuron["b"] * v + 0.2 * jnp.sin(u) + 0.1 * w * u
        z = spike(u + 0.3 * v - 0.4)
        w = 0.7 * w + 0.5 * z * u + 0.1 * current**2
        return [u * (1 - 0.5 * z), v, w], z * (1 + 0.2 * u)

    return hj.Cell(init, rest, step)


CELLS = {
    "lif": hj.lif(),
    "lif_differentiable_reset": hj.lif(reset="zero", detach_reset=False),
    "alif": hj.alif(tau_a=(5.0, 30.0)),
    "se_adlif": hj.se_adlif(q=5.0),
    "brf": hj.brf(dt=0.1, omega=(2.0, 5.0)),
    "leaky_integrator": hj.leaky_integrator(tau=4.0),
    "filtered": hj.filtered(hj.alif(tau_a=(5.0, 30.0)), tau=5.0),
    "custom": custom_cell(),
}


def make_stack(names, n_in, sizes, seed=0, recurrent=True, bias=True):
    """Cells and float64 parameters of a stack of layers in which spikes do happen."""
    params = []
    for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
        key = jax.random.fold_in(jax.random.key(seed), i)
        layer = hj.init_layer(key, CELLS[name], n_in, size, recurrent=recurrent, bias=bias, dtype=jnp.float64)
        layer["w_in"] = layer["w_in"] + 0.1
        if bias:
            layer["bias"] = layer["bias"] + 0.05
        params.append(layer)
        n_in = size
    return [CELLS[name] for name in names], params


def make_data(steps, batch_shape, n_in, n_out, seed=0, resets=False):
    """Inputs, per-step loss weights for outputs, and resets (or None)."""
    keys = jax.random.split(jax.random.key(100 + seed), 3)
    xs = {
        "inputs": jax.random.normal(keys[0], (steps, *batch_shape, n_in), jnp.float64),
        "weights": jax.random.normal(keys[1], (steps, *batch_shape, n_out), jnp.float64),
    }
    if resets:
        xs["resets"] = jax.random.bernoulli(keys[2], 0.15, (steps, *batch_shape))
    return xs


def loss_of_outputs(outputs, weights):
    """A sum over time, nonlinear in each step's outputs."""
    return (jnp.sin(outputs) * weights + 0.1 * outputs**2).sum()


def make_model(cells):
    """A stack of `unroll`s on one segment of `make_data`."""

    def model(params, xs):
        signal = xs["inputs"]
        for cell, layer in zip(cells, params, strict=True):
            signal = hj.unroll(cell, layer, signal, resets=xs.get("resets"))
        return signal

    return model


def make_loss(cells):
    """The loss of `make_model`."""
    model = make_model(cells)
    return lambda params, xs: loss_of_outputs(model(params, xs), xs["weights"])


def assert_close(actual, expected, tolerance=1e-11):
    """Leaf by leaf, relative to the largest entry of the leaf; not all may be zero by accident."""
    chex.assert_trees_all_equal_shapes(actual, expected)
    chex.assert_tree_all_finite(actual)
    assert any(jnp.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(actual))
    scale = jax.tree.map(lambda leaf: jnp.maximum(jnp.abs(leaf).max(initial=0.0), 1.0), expected)
    relative = [jax.tree.map(jnp.divide, tree, scale) for tree in (actual, expected)]
    chex.assert_trees_all_close(*relative, rtol=0.0, atol=tolerance)


def assert_equal(actual, expected):
    """Leaf by leaf, bit by bit; NaN is not equal to itself."""
    chex.assert_tree_all_finite(actual)
    chex.assert_trees_all_equal(actual, expected)
