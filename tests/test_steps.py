"""The step of a cell is followed when it is first used: what mixes neurons or batch elements is refused."""

import jax
import jax.numpy as jnp
import pytest

import hyprjax as hj

B, N = 4, 5
SPIKE = hj.surrogate.fast_sigmoid()
WEIGHTS, SCALES = jnp.ones((N, N)), jnp.arange(1.0, N + 1)


def cell_of(between):
    """A leaky neuron whose potential is `between(v, current)`."""

    def step(neuron, v, current):
        v = between(neuron["decay"] * v, current)
        return v, SPIKE(v - 1)

    rest = lambda neuron, batch, dtype: jnp.zeros((*batch, len(neuron["decay"])), dtype)  # noqa: E731
    return hj.Cell(lambda key, n: {"decay": jnp.full(n, 0.9)}, rest, step)


def run(cell, batch=(B,)):
    params = hj.init_layer(jax.random.key(0), cell, 3, N, recurrent=True, dtype=float)
    return jax.eval_shape(lambda p, x: hj.unroll(cell, p, x), params, jnp.ones((10, *batch, 3)))


WRONG = {
    "lateral inhibition": (lambda v, i: v + i - 0.1 * SPIKE(v).sum(-1, keepdims=True), "reduce_sum over neurons"),
    "winner takes all": (lambda v, i: jnp.where(v == v.max(-1, keepdims=True), v + i, i), "reduce_max over neurons"),
    "softmax": (lambda v, i: v + jax.nn.softmax(i), "over neurons"),
    "weights": (lambda v, i: v @ WEIGHTS.astype(v.dtype) + i, "dot_general mixes neurons"),
    "neighbours": (lambda v, i: v + jnp.roll(i, 1, -1), "slice picks neurons"),
    "sorted": (lambda v, i: v + jnp.sort(i), "sort along neurons"),
    "one for all": (lambda v, i: v + i[..., :1], "slice picks neurons"),
    "reversed": (lambda v, i: v + i[..., ::-1], "rev reverses neurons"),
    "cumulated": (lambda v, i: v + jnp.cumsum(i, -1), "cumsum along neurons"),
    "batch mean": (lambda v, i: v + i - i.mean(0), "reduce_sum over batch elements"),
    "batch of the spikes": (lambda v, i: v + i - jax.lax.stop_gradient(SPIKE(v)).mean(), "reduce_sum over"),
    "noise": (lambda v, i: v + i + jax.random.normal(jax.random.key(0), v.shape, v.dtype), "draws random numbers"),
    "dropout in a jit": (
        jax.jit(lambda v, i: v + i * jax.random.bernoulli(jax.random.key(0), 0.5, v.shape)),
        "draws random numbers",
    ),
}
RIGHT = {
    "constants for each neuron": lambda v, i: v + SCALES.astype(v.dtype) * i + 0.1 * jnp.arange(N),
    "branches": lambda v, i: jnp.where(v > 1, jnp.tanh(v), jax.nn.relu(v)) + i,
    "small steps": lambda v, i: jax.lax.fori_loop(0, 3, lambda _, v: 0.9 * v + i, v),
    "until it is small": lambda v, i: jax.lax.while_loop(lambda v: (jnp.abs(v) > 1).any(), lambda v: v / 2, v) + i,
    "pairs of variables": lambda v, i: jnp.einsum("ij,j...->i...", jnp.ones((2, 2)), jnp.stack([v, i]))[0],
    "complex": lambda v, i: jnp.abs(v + 1j * i),
    "vmapped": lambda v, i: jax.vmap(jnp.add, in_axes=-1, out_axes=-1)(v, i),
    "turned": lambda v, i: jnp.tanh(v.T).T + i,
    "a sum of nothing": lambda v, i: v + i + jnp.ones((3, 4)).sum(),
    "a derivative": lambda v, i: jax.vmap(jax.grad(jnp.tanh))(v.ravel()).reshape(v.shape) + i,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_step_that_is_not_element_wise_is_refused(name):
    between, operation = WRONG[name]
    with pytest.raises(ValueError, match=rf"(?s)cell 'custom' is not element-wise.*{operation}.*test_steps\.py"):
        run(cell_of(between))


@pytest.mark.parametrize("name", RIGHT)
def test_an_element_wise_step_is_let_through(name):
    run(cell_of(RIGHT[name]))


@pytest.mark.parametrize("maker", [hj.lif, hj.cuba_lif, hj.alif, hj.ef_adlif, hj.se_adlif, hj.rf, hj.brf])
@pytest.mark.parametrize("batch", [(), (B,), (1,), (N, 2)])
def test_the_built_in_cells_are_let_through(maker, batch):
    run(maker(), batch)
    run(hj.filtered(maker()), batch)


def test_the_transforms_refuse_it_too():
    cell = cell_of(WRONG["lateral inhibition"][0])
    params = hj.init_layer(jax.random.key(0), cell, 3, N, recurrent=True, dtype=float)
    for transform in (hj.hypr, hj.bptt, lambda fn: hj.hypr_grad(lambda p, x: fn(p, x).mean())):
        with pytest.raises(ValueError, match="is not element-wise"):
            transform(lambda p, x: hj.unroll(cell, p, x))(params, jnp.ones((10, B, 3)))


OTHERS = [(hj.lif, hj.alif), (hj.cuba_lif, hj.lif), (hj.brf, hj.lif), (hj.rf, hj.brf)]


@pytest.mark.parametrize(("maker", "other"), OTHERS)
def test_the_parameters_of_another_cell_are_refused(maker, other):
    params = hj.init_layer(jax.random.key(0), other(), 3, N)
    with pytest.raises(
        ValueError, match=f"the cell '{maker.__name__}' has .* give the layer the cell that it was made"
    ):
        hj.unroll(maker(), params, jnp.ones((10, 3)))


@pytest.mark.parametrize(("cell", "words"), [(hj.brf, "the function brf; call it, as in hj.brf"), (3, "got 3 of type")])
def test_a_cell_that_is_none_is_refused(cell, words):
    with pytest.raises(TypeError, match=f"init_layer: the cell .*{words}"):
        hj.init_layer(jax.random.key(0), cell, 3, N)
    with pytest.raises(TypeError, match=f"unroll: the cell .*{words}"):
        hj.unroll(cell, hj.init_layer(jax.random.key(0), hj.lif(), 3, N), jnp.ones((10, 3)))


def test_a_bias_of_none_is_refused():
    params = hj.init_layer(jax.random.key(0), hj.lif(), 3, N) | {"bias": None}
    with pytest.raises(ValueError, match=r'params\["bias"\] is None; leave the key out'):
        hj.unroll(hj.lif(), params, jnp.ones((10, 3)))


@pytest.mark.parametrize("spike", [hj.surrogate.triangular, hj.surrogate.from_derivative, lambda x: x.sum(), 0.5])
@pytest.mark.parametrize("maker", [hj.lif, hj.cuba_lif, hj.alif, hj.ef_adlif, hj.se_adlif, hj.rf, hj.brf])
def test_a_spike_function_that_is_none_is_refused(maker, spike):
    made = "; call it, as in hj.surrogate.triangular" if spike is hj.surrogate.triangular else ""
    with pytest.raises(TypeError, match=f"{maker.__name__}: spike must be an element-wise function .*{made}"):
        maker(spike=spike)
