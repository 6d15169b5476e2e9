"""Each neuron model against a plain NumPy loop of its published equations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprjax as hj

STEPS = 500


def brf(p, current, dt=0.01):
    u, v, q = np.zeros((3, *current.shape[1:]))
    omega, b_offset = np.abs(p["omega"]), np.abs(p["b_offset"])
    for x in current:
        b = (-1 + np.sqrt(1 - (dt * omega) ** 2)) / dt - b_offset - q
        u, v = u + dt * (b * u - omega * v + x), v + dt * (omega * u + b * v)
        z = (u > 1 + q).astype(float)
        q = 0.9 * q + z
        yield z


def se_adlif(p, current):
    u, w = np.zeros((2, *current.shape[1:]))
    alpha, rho = np.exp(-1 / (5 + 20 * p["tau_u"])), np.exp(-1 / (60 + 240 * p["tau_w"]))
    for x in current:
        u = alpha * u + (1 - alpha) * (x - w)
        z = (u > 1).astype(float)
        u = u * (1 - z)
        w = rho * w + (1 - rho) * 120 * (p["a"] * u + p["b"] * z)
        yield z


def ef_adlif(p, current):
    u, w, z = np.zeros((3, *current.shape[1:]))
    alpha, rho = np.exp(-1 / (5 + 20 * p["tau_u"])), np.exp(-1 / (60 + 240 * p["tau_w"]))
    for x in current:
        u, w = alpha * u + (1 - alpha) * (x - w), rho * w + (1 - rho) * 120 * (p["a"] * u + p["b"] * z)
        z = (u > 1).astype(float)
        u = u * (1 - z)
        yield z


def rf(p, current, dt=0.01):
    x = np.zeros(current.shape[1:], complex)
    for i in current:
        x = x + dt * ((-np.abs(p["b"]) + 1j * np.abs(p["omega"])) * x + i)
        yield (x.real > 1).astype(float)


def cuba_lif(p, current):
    i, v = np.zeros((2, *current.shape[1:]))
    for x in current:
        i = np.exp(-1 / p["tau_syn"]) * i + x
        v = np.exp(-1 / p["tau"]) * v + (1 - np.exp(-1 / p["tau"])) * i
        z = (v > 1).astype(float)
        v = v * (1 - z)
        yield z


def alif(p, current):
    v, a, z = np.zeros((3, *current.shape[1:]))
    for x in current:
        a = np.exp(-1 / p["tau_a"]) * a + z
        v = np.exp(-1 / p["tau"]) * v + x - 0.6 * z
        z = (v > 0.6 + p["beta"] * a).astype(float)
        yield z


def lif(p, current):
    v, z = np.zeros((2, *current.shape[1:]))
    for x in current:
        v = np.exp(-1 / p["tau"]) * v + x - 0.6 * z
        z = (v > 0.6).astype(float)
        yield z


def leaky_integrator(p, current):
    v = np.zeros(current.shape[1:])
    for x in current:
        decay = np.exp(-1 / p["tau"])
        v = decay * v + (1 - decay) * x
        yield v


@pytest.mark.parametrize("published", [brf, rf, se_adlif, ef_adlif, alif, cuba_lif, lif, leaky_integrator])
def test_trajectory_follows_the_published_equations(published):
    cell, name = getattr(hj, published.__name__)(), published.__name__
    params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=8, bias=False, dtype=jnp.float64)
    inputs = np.random.default_rng(0).uniform(0, 1, (STEPS, 2, 3))
    params["w_in"] = np.abs(params["w_in"])
    expected = np.stack(
        list(published(jax.tree.map(np.asarray, params["neuron"]), inputs @ np.asarray(params["w_in"])))
    )
    actual = hj.unroll(cell, params, inputs)
    if name != "leaky_integrator":
        assert 0.01 < expected.mean() < 0.9
        assert np.mean(actual != expected) == 0
    assert np.allclose(actual, expected, rtol=0, atol=1e-12)


def test_a_filtered_cell_follows_the_equation_of_its_filter():
    cell = hj.filtered(hj.lif(), tau=10.0)
    params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=8, bias=False, dtype=jnp.float64)
    inputs = np.random.default_rng(0).uniform(0, 1, (STEPS, 2, 3))
    params["w_in"] = np.abs(params["w_in"])
    spikes = lif(jax.tree.map(np.asarray, params["neuron"]["cell"]), inputs @ np.asarray(params["w_in"]))
    y, expected = 0.0, []
    for z in spikes:
        y = np.exp(-0.1) * y + (1 - np.exp(-0.1)) * z
        expected.append(y)
    assert np.mean(expected) > 0.01
    assert np.allclose(hj.unroll(cell, params, inputs), expected, rtol=0, atol=1e-12)


def test_a_lif_neuron_can_be_reset_to_zero():
    cell = hj.lif(reset="zero")
    params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=8, bias=False, dtype=jnp.float64)
    inputs = np.random.default_rng(0).uniform(0, 1, (STEPS, 2, 3))
    params["w_in"] = np.abs(params["w_in"])
    v, expected = 0.0, []
    for current in inputs @ np.asarray(params["w_in"]):
        v = np.exp(-1 / 20) * v + current
        expected.append(v > 0.6)
        v = np.where(v > 0.6, 0, v)
    assert 0.01 < np.mean(expected) < 0.9
    assert np.array_equal(hj.unroll(cell, params, inputs), expected)


def test_initialisations_of_the_papers():
    draws = {
        "brf": hj.weights.glorot_uniform,
        "se_adlif": hj.weights.uniform_orthogonal,
        "alif": hj.weights.normal_fan_in,
        "lif": None,
    }
    make = lambda name, draw: hj.init_layer(  # noqa: E731
        jax.random.key(0), getattr(hj, name)(), 50, 400, recurrent=True, weights=draw
    )
    layer = {name: make(name, draw) for name, draw in draws.items()}
    bound = np.sqrt(6 / (50 + 400 + 400))  # Glorot over [w_in; w_rec], Higuchi et al. 2024
    assert 0.99 * bound < np.abs(layer["brf"]["w_in"]).max() <= bound
    assert 0.99 * bound < np.abs(layer["brf"]["w_rec"]).max() <= bound
    w_rec = np.asarray(layer["se_adlif"]["w_rec"])
    assert np.allclose(w_rec @ w_rec.T, np.eye(400), atol=1e-4)
    assert np.abs(layer["se_adlif"]["w_in"]).max() <= 50**-0.5
    assert np.isclose(np.std(layer["alif"]["w_rec"]), 400**-0.5, rtol=0.02)
    for name, (low, high) in {"omega": (5, 10), "b_offset": (0, 3)}.items():
        values = np.asarray(layer["brf"]["neuron"][name])
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high
    assert layer["lif"]["neuron"]["tau"].tolist() == [20.0] * 400


def test_an_initialiser_may_be_a_function():
    mixed = lambda key, shape: jnp.where(jnp.arange(shape[0]) < 2, 0.0, 0.1)  # noqa: E731
    neuron = hj.alif(beta=mixed).init(jax.random.key(0), 4)
    assert neuron["beta"].tolist() == pytest.approx([0.0, 0.0, 0.1, 0.1])


def test_brf_without_input_decays_from_any_state():
    """The divergence boundary: damping keeps every frequency stable up to 1 / dt, and finite for a while beyond."""
    cell = hj.brf()
    neuron = {"omega": jnp.linspace(1.0, 150.0, 64), "b_offset": jnp.full(64, 0.01)}
    state = {"u": jnp.full(64, 0.9), "v": jnp.zeros(64), "q": jnp.zeros(64)}
    silent = neuron["omega"] < 99.0
    start = jnp.hypot(state["u"], state["v"])
    for _ in range(200):
        state, _ = cell.step(neuron, state, jnp.zeros(64))
    assert (jnp.hypot(state["u"], state["v"]) < start)[silent].all()
    chex.assert_tree_all_finite(state)


@pytest.mark.parametrize("name", ["tau_u", "a"])
def test_se_adlif_parameters_can_return_from_their_bounds(name):
    cell = hj.se_adlif()
    params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=8, dtype=jnp.float64)
    params["w_in"] = jnp.abs(params["w_in"]) * 8
    inputs = np.random.default_rng(0).uniform(0, 1, (50, 3))
    at_bound = {**params, "neuron": {**params["neuron"], name: jnp.full(8, 1.0)}}
    beyond = {**params, "neuron": {**params["neuron"], name: jnp.full(8, 1.7)}}
    assert jnp.array_equal(hj.unroll(cell, at_bound, inputs), hj.unroll(cell, beyond, inputs))
    grads = jax.grad(lambda params: hj.unroll(cell, params, inputs).sum())(beyond)
    assert jnp.abs(grads["neuron"][name]).max() > 0


@pytest.mark.parametrize("name", ["double_gaussian", "slayer", "fast_sigmoid", "triangular", "arctan", "gaussian"])
def test_spike_functions(name):
    spike = getattr(hj.surrogate, name)()
    x = jnp.linspace(-1, 1, 101)
    assert spike(x).tolist() == [0.0] * 51 + [1.0] * 50  # 0 at the threshold itself
    derivative = jax.vmap(jax.grad(spike))(x)
    assert jnp.allclose(derivative, derivative[::-1])
    assert derivative.argmax() == 50
    assert spike(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert jax.grad(lambda x: spike(x).sum())(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
