"""Flax modules are the same functions: same outputs, same gradients, and what Flax users do with a model works."""

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from networks import CELLS, assert_close, assert_equal, make_data

import hyprjax as hj
from hyprjax.nnx import Readout, Recurrent, project


class Network(nnx.Module):
    """Spiking layers with everything between them that has no time: Dense, LayerNorm, Dropout."""

    def __init__(self, rngs):
        self.first = Recurrent(CELLS["custom"], 3, 5, rngs=rngs, dtype=jnp.float64)
        self.dense = nnx.Linear(5, 4, rngs=rngs, param_dtype=jnp.float64)
        self.norm = nnx.LayerNorm(4, rngs=rngs, param_dtype=jnp.float64)
        self.dropout = nnx.Dropout(0.3)
        self.second = Recurrent(CELLS["alif"], 4, 4, rngs=rngs, dtype=jnp.float64)
        self.readout = Readout(4, 2, tau=4.0, rngs=rngs)

    def __call__(self, x, key=None):
        x = self.norm(self.dense(self.first(x)))
        if key is not None:
            x = self.dropout(x, rngs=nnx.Rngs(key))
        return self.readout(self.second(x))


@pytest.fixture
def problem():
    graph, params = nnx.split(Network(nnx.Rngs(0)))

    def loss_fn(params, xs, key=None):
        return (nnx.merge(graph, params)(xs["inputs"], key) * xs["weights"]).mean()

    return params, make_data(12, (2,), 3, 2), loss_fn


@pytest.mark.parametrize("key", [None, 7])
def test_gradients_of_layers_between_spiking_layers_are_right(problem, key):
    params, xs, loss_fn = problem
    key = None if key is None else jax.random.key(key)
    exact = jax.jit(jax.grad(loss_fn))(params, xs, key)
    credit = hj.hypr_grad(loss_fn, segment_length=12, recurrent_credit="segment")
    assert_close(nnx.to_pure_dict(jax.jit(credit)(params, xs, key)), nnx.to_pure_dict(exact))


def test_a_module_is_unroll_with_its_parameters():
    module = Recurrent(CELLS["brf"], 3, 4, bias=False, rngs=nnx.Rngs(0))
    neuron = {name: param[...] for name, param in module.neuron.items()}
    params = {"w_in": module.w_in[...], "w_rec": module.w_rec[...], "neuron": neuron}
    xs = make_data(9, (2,), 3, 4, resets=True)
    expected = hj.unroll(CELLS["brf"], params, xs["inputs"], resets=xs["resets"])
    assert jnp.array_equal(module(xs["inputs"], resets=xs["resets"]), expected)
    assert_equal(module.params, params)
    assert not hasattr(module, "bias")


def test_slips_with_a_module():
    with pytest.raises(TypeError, match=r"Readout: rngs must be nnx\.Rngs, such as nnx\.Rngs\(0\), got 0"):
        Readout(3, 4, rngs=0)
    module = Recurrent(CELLS["brf"], 3, 4, rngs=nnx.Rngs(0))
    module.w_in = jnp.ones((3, 4))
    with pytest.raises(TypeError, match=r"Recurrent: w_in was replaced by ArrayImpl, .*module\.w_in\[\.\.\.\] = array"):
        module(jnp.ones((5, 3)))
    module.w_in = nnx.Variable(jnp.ones((3, 4)))  # a parameter that is not trained
    assert module.params["w_in"].sum() == 12
    assert Readout(3, 4, dtype=jnp.float64, rngs=nnx.Rngs(0)).w_in[...].dtype == jnp.float64


def test_a_stream_carries_the_state_of_a_model(problem):
    params, xs, _ = problem
    graph, _ = nnx.split(Network(nnx.Rngs(0)))
    net = hj.stream(lambda params, x: nnx.merge(graph, params)(x))
    carry = net.init(params, xs["inputs"])
    first, carry = net.apply(params, carry, xs["inputs"][:5])
    second, _ = net.apply(params, carry, xs["inputs"][5:])
    whole = nnx.merge(graph, params)(xs["inputs"])
    assert jnp.allclose(jnp.concatenate([first, second]), whole, rtol=0, atol=1e-12)


def test_project_reaches_every_layer_of_a_model_in_place():
    model = Network(nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for module, name in ((model.second, "tau"), (model.second, "tau_a"), (model.readout, "tau")):
        param = module.neuron[name]
        param.set_value(-param.get_value())
    assert not jnp.array_equal(model.readout.neuron["tau"].get_value(), before["readout"]["neuron"]["tau"])
    nnx.jit(project)(model)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert_equal(after, before)


def test_an_optimizer_trains_a_model_and_orbax_keeps_it(tmp_path):
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)
    xs = make_data(12, (4,), 3, 2)
    before = model.first.w_rec[...]

    @nnx.jit
    def train(model, optimizer):
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss_fn(params, xs):
            return jnp.square(nnx.merge(graph, params, rest)(xs["inputs"]) - xs["targets"]).mean()

        data = {"inputs": xs["inputs"], "targets": jnp.full((12, 4, 2), 0.5)}
        loss, grads = hj.hypr_value_and_grad(loss_fn, segment_length=6)(params, data)
        optimizer.update(model, grads)
        return loss

    losses = [float(train(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    assert not jnp.allclose(model.first.w_rec[...], before)

    graph, state = nnx.split(model)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", nnx.to_pure_dict(state))
        checkpointer.wait_until_finished()
        empty = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Network(nnx.Rngs(1)))))
        restored = checkpointer.restore(tmp_path / "model", empty)
    nnx.replace_by_pure_dict(state, restored)
    assert jnp.array_equal(nnx.merge(graph, state)(xs["inputs"]), model(xs["inputs"]))


@pytest.mark.parametrize(
    ("layer", "operation"),
    [
        (lambda rngs: nnx.Dropout(0.2, rngs=rngs), "random_bits draws the same random numbers in every segment"),
        (lambda rngs: nnx.BatchNorm(5, rngs=rngs), "combines time steps with a sum over time"),
    ],
)
def test_dropout_with_its_own_key_and_batch_statistics_over_time_are_refused(layer, operation):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.between = Recurrent(hj.lif(), 3, 5, rngs=rngs), layer(rngs)
            self.readout = Readout(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.readout(self.between(self.hidden(x)))

    graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)
    model = lambda params, x, rest: nnx.merge(graph, params, rest)(x)  # noqa: E731
    xs = jnp.ones((20, 4, 3), jnp.float32)
    for transform in (hj.hypr(model, segment_length=5), hj.bptt(model, segment_length=5)):
        with pytest.raises(ValueError, match=f"what enters unroll is not the same .*{operation}"):
            transform(params, xs, rest)
