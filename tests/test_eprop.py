"""The recipe for e-prop as published (docs/wiring.md) against loops over the equations of Bellec et al. 2020."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprjax as hj

T, M, N, K = 40, 5, 8, 3
THRESHOLD, GAMMA, TAU, TAU_A, TAU_OUT = 0.6, 0.3, 20.0, 50.0, 15.0
BETA = np.where(np.arange(N) < N // 2, 0.0, 0.2)  # half LIF, half ALIF
RNG = np.random.default_rng(0)
XS, TARGETS = (RNG.random((T, M)) < 0.3).astype(float), RNG.normal(size=(T, K))
REFRACTORY = 3
ALIF = hj.refractory(hj.alif(TAU, TAU_A, lambda key, shape: jnp.asarray(BETA), threshold=THRESHOLD), REFRACTORY)
CELL = hj.filtered(ALIF, TAU_OUT, recurrent="spikes")


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(True):
        layer = hj.init_layer(jax.random.key(0), CELL, M, N, recurrent=True, bias=False, dtype=jnp.float64)
        rng = np.random.default_rng(1)
        out, back = rng.normal(size=(2, N, K))
        return {"hidden": layer, "out": jnp.asarray(out), "b": jnp.zeros(K), "back": jnp.asarray(back)}


def loss_with(feedback):
    def loss(params, xs):
        filtered = hj.unroll(CELL, params["hidden"], xs["inputs"]) / (1 - jnp.exp(-1 / TAU_OUT))
        fixed = jax.lax.stop_gradient(filtered)
        if feedback == "symmetric":
            y = filtered @ params["out"] + params["b"]
        else:  # the value is that of `out`, the error goes back through `back`
            back = params["back"] if feedback == "adaptive" else jax.lax.stop_gradient(params["back"])
            twin = (filtered - fixed) @ jax.lax.stop_gradient(back) + fixed @ back - jax.lax.stop_gradient(fixed @ back)
            y = fixed @ params["out"] + params["b"] + twin
        return 0.5 * jnp.square(y - xs["targets"]).sum()

    return loss


def published(params, feedback):
    """Gradients by eligibility traces, one synapse and one step after the other."""
    w_in, w_rec = (np.asarray(params["hidden"][name]) for name in ("w_in", "w_rec"))
    w_out, back = np.asarray(params["out"]), np.asarray(params["out" if feedback == "symmetric" else "back"])
    alpha, rho, kappa = np.exp(-1 / TAU), np.exp(-1 / TAU_A), np.exp(-1 / TAU_OUT)
    v, a, z, psi = (np.zeros(N) for _ in range(4))
    filtered, since = np.zeros(N), np.full(N, 100)  # steps since the last spike
    e_v, e_a, e_bar = np.zeros((M + N, N)), np.zeros((M + N, N)), np.zeros((M + N, N))
    grads = {"w": np.zeros((M + N, N)), "out": np.zeros((N, K)), "b": np.zeros(K)}
    spikes = held = 0
    for t in range(T):
        pre = np.concatenate([XS[t], z])
        for i in range(M + N):
            for j in range(N):
                # eqs. 24 and 25: the adaptation of before this step depends on the last pseudo-derivative
                e_a[i, j] = psi[j] * e_v[i, j] + (rho - psi[j] * BETA[j]) * e_a[i, j]
                e_v[i, j] = alpha * e_v[i, j] + pre[i]
        a = rho * a + z
        v = alpha * v + XS[t] @ w_in + z @ w_rec - z * THRESHOLD
        may_spike = since > REFRACTORY
        z = (may_spike & (v - THRESHOLD - BETA * a > 0)).astype(float)
        psi = may_spike * GAMMA / THRESHOLD * np.maximum(0, 1 - np.abs((v - THRESHOLD - BETA * a) / THRESHOLD))
        held = held + (~may_spike & (v - THRESHOLD - BETA * a > 0)).sum()
        since = np.where(z > 0, 1, since + 1)
        filtered = kappa * filtered + z
        error = filtered @ w_out + np.asarray(params["b"]) - TARGETS[t]
        learning_signal = back @ error
        for i in range(M + N):
            for j in range(N):
                e_bar[i, j] = kappa * e_bar[i, j] + psi[j] * (e_v[i, j] - BETA[j] * e_a[i, j])
                grads["w"][i, j] += learning_signal[j] * e_bar[i, j]
        grads["out"] += np.outer(filtered, error)
        grads["b"] += error
        spikes += z.sum()
    assert 0.02 < spikes / (T * N) < 0.6
    assert held > 0, "the refractory period holds spikes back"
    return grads


@pytest.mark.parametrize("feedback", ["symmetric", "random", "adaptive"])
def test_published_eprop(params, feedback):
    expected = published(params, feedback)
    xs = {"inputs": XS, "targets": TARGETS}
    for length in (1, 7, T):
        grads = hj.hypr_grad(loss_with(feedback), segment_length=length, reduction="sum")(params, xs)
        found = {"w": jnp.concatenate([grads["hidden"]["w_in"], grads["hidden"]["w_rec"]])} | grads
        for name, value in expected.items():
            assert np.abs(found[name] - value).max() < 1e-12 * max(1, np.abs(value).max()), (name, length)
        back = {"symmetric": 0 * expected["out"], "random": 0 * expected["out"], "adaptive": expected["out"]}[feedback]
        assert np.abs(grads["back"] - back).max() < 1e-12 * max(1, np.abs(back).max())


def test_online_step_by_step(params):
    """One step at a time, as a chip would: the gradients of all steps add up to the published ones."""
    learner = hj.hypr_stream(loss_with("symmetric"))
    xs = {"inputs": XS, "targets": TARGETS}
    at = lambda t: jax.tree.map(lambda x: x[t : t + 1], xs)  # noqa: E731

    @jax.jit
    def learn(carry, segment):
        (_, grads), carry = learner.value_and_grad(params, carry, segment)
        return carry, grads

    carry = learner.init(params, at(0))
    total = jax.tree.map(jnp.zeros_like, params)
    for t in range(T):
        carry, grads = learn(carry, at(t))
        total = jax.tree.map(jnp.add, total, grads)
    expected = published(params, "symmetric")
    found = jnp.concatenate([total["hidden"]["w_in"], total["hidden"]["w_rec"]])
    assert np.abs(found - expected["w"]).max() < 1e-12 * np.abs(expected["w"]).max()
