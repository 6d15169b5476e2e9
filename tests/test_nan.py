"""A NaN that comes in is seen: in spikes, loss and gradient of its own batch element, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_close

import hyprjax as hj

SPIKES = {
    **{name: getattr(hj.surrogate, name)() for name in ("double_gaussian", "slayer", "fast_sigmoid", "triangular")},
    **{name: getattr(hj.surrogate, name)() for name in ("arctan", "gaussian")},
    "of a user": hj.surrogate.from_derivative(lambda x: (jnp.abs(x) < 0.5).astype(x.dtype)),  # a box is 0 at NaN
}
CELLS = {
    **{name: getattr(hj, name)() for name in ("lif", "cuba_lif", "alif", "ef_adlif", "se_adlif", "rf", "brf")},
    "lif_reset_to_zero": hj.lif(reset="zero"),
    "leaky_integrator": hj.leaky_integrator(),
    "filtered": hj.filtered(hj.brf()),
}
VALUES = [np.nan, -np.inf, -1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0, np.inf]
by_spike = pytest.mark.parametrize("spike", SPIKES.values(), ids=SPIKES)


@by_spike
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_a_spike_function_hands_nan_on_and_nothing_else(spike, dtype):
    x = jnp.asarray(VALUES, dtype)
    for z in (spike(x), jax.jit(spike)(x), jax.vmap(spike)(x)):
        assert z.dtype == dtype
        assert np.array_equal(z.astype(float), [np.nan, 0, 0, 0, 0, 0, 1, 1, 1], equal_nan=True)


@by_spike
def test_its_derivative_is_nan_at_nan_alone(spike):
    x = jnp.asarray(VALUES)
    backward = jax.grad(lambda x: spike(x).sum())(x)
    forward = jax.jvp(spike, (x,), (jnp.ones_like(x),))[1]
    for derivative in (backward, forward):
        assert jnp.isnan(derivative).tolist() == [True] + [False] * 8
        assert derivative[jnp.array([1, 8])].tolist() == [0.0, 0.0]
    assert backward[5] > 0


T, B, BROKEN = 12, 3, 5


def network(cell):
    """Parameters, and a model that returns spikes and readout."""
    readout = hj.leaky_integrator()
    k1, k2 = jax.random.split(jax.random.key(0))
    params = {
        "hidden": hj.init_layer(k1, cell, n_in=4, n_out=5, recurrent=True, dtype=jnp.float64),
        "readout": hj.init_layer(k2, readout, n_in=5, n_out=2, dtype=jnp.float64),
    }

    def model(params, x):
        spikes = hj.unroll(cell, params["hidden"], x)
        return spikes, hj.unroll(readout, params["readout"], spikes)

    return params, model


HEALTHY = np.random.default_rng(0).normal(size=(T, B, 4))


def broken():
    x = HEALTHY.copy()
    x[BROKEN, 1, 2] = np.nan  # one step, one batch element, one channel
    return x


@pytest.mark.parametrize("name", CELLS)
def test_one_nan_in_the_input_is_seen_from_then_on_and_in_its_batch_element_alone(name):
    params, model = network(CELLS[name])
    for output, expected in zip(model(params, broken()), model(params, HEALTHY), strict=True):
        assert jnp.isfinite(expected).all()
        assert jnp.array_equal(output[:, ::2], expected[:, ::2])
        assert jnp.array_equal(output[:BROKEN, 1], expected[:BROKEN, 1])
        assert jnp.isnan(output[BROKEN:, 1]).all()


def test_it_is_in_the_loss_and_the_gradient():
    params, model = network(CELLS["brf"])
    loss_fn = lambda params, x: jnp.square(model(params, x)[1]).mean()  # noqa: E731
    for value_and_grad in (jax.value_and_grad(loss_fn), hj.hypr_value_and_grad(loss_fn, segment_length=4)):
        loss, grads = jax.jit(value_and_grad)(params, broken())
        assert jnp.isnan(loss)
        assert all(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(("traces", "scan"), [("full", "sequential"), ("full", "associative"), ("factored", "auto")])
def test_a_reset_in_a_segment_ends_it_in_the_traces(traces, scan):
    """After the segment with the reset gradients are those without the NaN, for every segment length."""
    params, _ = network(CELLS["brf"])
    xs = {"x": broken(), "resets": np.zeros((T, B), bool)}
    xs["resets"][BROKEN + 2] = True

    def loss_fn(params, xs):
        spikes = hj.unroll(CELLS["brf"], params["hidden"], xs["x"], resets=xs["resets"])
        return jnp.square(hj.unroll(hj.leaky_integrator(), params["readout"], spikes, resets=xs["resets"])).mean()

    options = {"traces": traces, "scan": scan} | ({"trace_rank": 12} if traces == "factored" else {})
    learner = hj.hypr_stream(loss_fn, **options)
    run = jax.jit(learner.value_and_grad)
    grads = []
    for x, lengths in ((HEALTHY, (4, 4, 4)), (broken(), (4, 4, 4)), (broken(), (8, 4))):
        carry = learner.init(params, xs)
        for segment in np.split(np.arange(T), np.cumsum(lengths)[:-1]):
            (_, last), carry = run(params, carry, {"x": x[segment], "resets": xs["resets"][segment]})
        grads.append(last)
    assert_close(grads[1], grads[0], 1e-11 if traces == "full" else 1e-6)
    assert_close(grads[2], grads[0], 1e-11 if traces == "full" else 1e-6)
