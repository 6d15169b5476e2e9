"""Bad input gets one clear line that names argument, shapes and fix."""

import re
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from networks import assert_equal

import hyprjax as hj

CELL = hj.lif()


@pytest.fixture
def params():
    return hj.init_layer(jax.random.key(0), CELL, n_in=4, n_out=3, recurrent=True)


XS = np.ones((10, 2, 4), np.float32)


def loss_fn(params, xs):
    return hj.unroll(CELL, params, xs).mean()


def refuses(error, *words):
    """`pytest.raises` with all `words` in the message."""
    return pytest.raises(error, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words))


def transforms(loss_fn, **options):
    """Each way to differentiate a loss, as functions of (params, xs)."""
    learner = hj.hypr_stream(loss_fn, **options)
    yield hj.hypr_grad(loss_fn, **options)
    yield hj.hypr_value_and_grad(loss_fn, segment_length=3, **options)
    yield lambda params, xs: learner.value_and_grad(params, learner.init(params, xs), xs)


def test_feature_count(params):
    words = ('params["w_in"] has 4 input rows', "inputs have 140 features", "(250, 32, 140)", "n_in=140")
    with refuses(ValueError, *words):
        hj.unroll(CELL, params, jnp.ones((250, 32, 140)))


@pytest.mark.parametrize(("shape", "words"), [((10, 2, 5), ("5 features", "n_in=5")), ((10,), ("[T, *batch, n_in]",))])
def test_input_shapes_inside_transforms(params, shape, words):
    for grad in transforms(loss_fn):
        with refuses(ValueError, "inputs", *words):
            grad(params, jnp.ones(shape))


def test_leaves_of_different_length(params):
    xs = {"inputs": XS, "labels": np.zeros(9, int)}
    for grad in transforms(lambda params, xs: loss_fn(params, xs["inputs"])):
        with refuses(ValueError, "xs['inputs']", "10", "xs['labels']", "9", "as an argument after xs"):
            grad(params, xs)


@pytest.mark.parametrize("xs", [{}, None, np.ones((0, 2, 4)), {"inputs": XS, "label": 3.0}])
def test_empty_or_timeless_xs(params, xs):
    for grad in transforms(loss_fn):
        with refuses(ValueError, "xs", "leading"):
            grad(params, xs)


def test_empty_sequence(params):
    with refuses(ValueError, "no time steps", "(0, 2, 4)"):
        hj.unroll(CELL, params, jnp.ones((0, 2, 4)))


def test_complex_inputs(params):
    with refuses(TypeError, "complex64", "real and imaginary"):
        hj.unroll(CELL, params, XS.astype(np.complex64))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32])
def test_spikes_of_bool_or_int_are_accepted(params, dtype):
    outputs = hj.unroll(CELL, params, XS.astype(dtype))
    assert outputs.dtype == jnp.float32
    assert jnp.array_equal(outputs, hj.unroll(CELL, params, XS))


@pytest.mark.parametrize("dtype", [np.int32, np.complex64])
def test_params_that_are_not_floating(params, dtype):
    params["w_in"] = jnp.ones((4, 3), dtype)
    with refuses(TypeError, "params['w_in']", np.dtype(dtype).name, "float32"):
        hj.unroll(CELL, params, XS)
    for grad in transforms(loss_fn):
        with refuses(TypeError, "params['w_in']", np.dtype(dtype).name):
            grad(params, XS)


def test_an_integer_leaf_anywhere_in_params(params):
    for grad in transforms(lambda params, xs: loss_fn(params["layer"], xs)):
        with refuses(TypeError, "params['step']", "int32", "after xs"):
            grad({"layer": params, "step": jnp.int32(3)}, XS)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)])
def test_segment_length(value, error):
    for transform in (hj.hypr_grad, hj.hypr_value_and_grad):
        with refuses(error, "segment_length", repr(value)):
            transform(loss_fn, segment_length=value)


@pytest.mark.parametrize("option", ["recurrent_credit", "reduction", "scan"])
def test_unknown_option_values(option):
    for transform in (hj.hypr_grad, hj.hypr_value_and_grad):
        with refuses(ValueError, option, "one of", "'maximal'"):
            transform(loss_fn, **{option: "maximal"})
    if option != "reduction":
        with refuses(ValueError, option, "one of", "'maximal'"):
            hj.hypr_stream(loss_fn, **{option: "maximal"})


def broken(**changes):
    return CELL._replace(**changes)


def test_a_step_that_changes_shape(params):
    cell = broken(step=lambda neuron, state, current: ({"v": state["v"].sum(-1)}, current))
    with refuses(ValueError, "cell.step", "the state['v']", "[2]", "[2, 3]"):
        hj.unroll(cell, params, XS)
    cell = broken(step=lambda neuron, state, current: (state, current[..., :2]))
    with refuses(ValueError, "cell.step", "the output", "[2, 2]", "[2, 3]"):
        hj.unroll(cell, params, XS)


def test_a_step_that_changes_dtype(params):
    cell = broken(step=lambda neuron, state, current: (state, current > 0))
    with refuses(TypeError, "cell.step", "the output", "bool[2, 3]", "float32[2, 3]"):
        hj.unroll(cell, params, XS)
    cell = broken(step=lambda neuron, state, current: ({"v": state["v"] * np.float64(0.9)}, current))
    with refuses(TypeError, "cell.step", "float64[2, 3]", "Python numbers"):
        hj.unroll(cell, params, XS)


def test_a_step_that_changes_structure(params):
    cell = broken(step=lambda neuron, state, current: ({**state, "a": current}, current))
    with refuses(ValueError, "cell.step", "structure", "a: float32[2, 3]"):
        hj.unroll(cell, params, XS)


def test_a_rest_state_of_wrong_shape(params):
    cell = broken(rest=lambda neuron, batch_shape, dtype: {"v": jnp.zeros(3, dtype)})
    with refuses(ValueError, "cell.rest", "['v']", "[3]", "[2, 3]"):
        hj.unroll(cell, params, XS)
    with refuses(ValueError, "cell.rest", "no arrays"):
        hj.unroll(broken(rest=lambda neuron, batch_shape, dtype: {}), params, XS)


def test_a_loss_that_is_not_a_real_scalar(params):
    for grad in transforms(lambda params, xs: hj.unroll(CELL, params, xs).mean((0, 1))):
        with refuses(TypeError, "scalar", "(3,)", ".mean()"):
            grad(params, XS)
    for grad in transforms(lambda params, xs: hj.unroll(CELL, params, xs).sum().astype(int)):
        with refuses(TypeError, "real float", "int"):
            grad(params, XS)
    for grad in transforms(lambda params, xs: (loss_fn(params, xs), 0)):
        with refuses(TypeError, "tuple", "has_aux=True"):
            grad(params, XS)
    for grad in transforms(loss_fn, has_aux=True):
        with refuses(TypeError, "(loss, aux)"):
            grad(params, XS)


def differentiated(f):
    return lambda params, x: jax.value_and_grad(f)(params, x)[0]


def in_branches(f):
    return lambda params, x: jax.lax.cond(x.sum() > 0, f, f, params, x)


def in_a_loop(f):
    def body(state):
        return state[0] + 1, f(state[2], state[3]), *state[2:]

    return lambda params, x: jax.lax.while_loop(lambda state: state[0] < 2, body, (0, jnp.float32(0), params, x))[1]


def with_a_rule(f):
    @jax.custom_vjp
    def g(params, x):
        return f(params, x)

    g.defvjp(lambda params, x: (f(params, x), None), lambda _, ct: (None, None))
    return g


def on_a_mesh(f):
    mesh = jax.make_mesh((1,), ("batch",))
    return lambda params, x: jax.shard_map(
        lambda params, x: f(params, x)[None], mesh=mesh, in_specs=(jax.P(), jax.P()), out_specs=jax.P(), check_vma=False
    )(params, x)[0]


@pytest.mark.parametrize(
    ("nest", "words"),
    [
        (differentiated, ("differentiated", "return the value itself")),
        (in_branches, ("jax.lax.cond", "jnp.where", "test_errors.py")),
        (in_a_loop, ("jax.lax.while_loop", "jax.lax.scan", "test_errors.py")),
        (with_a_rule, ("jax.custom_vjp", "derivative of its own")),
        (on_a_mesh, ("jax.shard_map", "around the transform")),
    ],
)
def test_unroll_where_it_cannot_be_given_a_carry(params, nest, words):
    nested = nest(loss_fn)
    alone = nested(params, XS)  # fine on its own, and now compiled
    for grad in transforms(nested):
        with refuses(ValueError, *words):
            grad(params, XS)
    net = hj.stream(nested)
    with refuses(ValueError, *words):
        net.init(params, XS)
    for wrap in (hj.hypr, hj.bptt):
        with refuses(ValueError, *words):
            wrap(nested)(params, XS)
    assert nested(params, XS) == alone  # nothing is left behind


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("hypr", lambda p, x: hj.hypr(lambda p, x: hj.unroll(CELL, p, x))(p, x).mean()),
        ("bptt", lambda p, x: hj.bptt(lambda p, x: hj.unroll(CELL, p, x))(p, x).mean()),
        ("hypr_grad", lambda p, x: hj.hypr_grad(loss_fn)(p, x)["w_in"].mean()),
        ("stream", lambda p, x: hj.stream(loss_fn).init(p, x)[0].output.mean()),
        ("hypr_stream", lambda p, x: hj.hypr_stream(loss_fn).init(p, x)[0].output.mean()),
    ],
)
def test_a_transform_inside_of_another(params, name, inner):
    for grad in transforms(inner):
        with refuses(ValueError, f"{name} was called inside", "one transform", "call unroll there"):
            grad(params, XS)


@pytest.mark.parametrize("wrap", [hj.hypr, hj.bptt])
def test_outputs_without_time(params, wrap):
    model = lambda params, x: {"mean": hj.unroll(CELL, params, x).mean(0)}  # noqa: E731
    with refuses(ValueError, "output['mean']", "(2, 3)", "5 steps", f"hj.{wrap.__name__}(model)(params, xs).mean(0)"):
        wrap(model, segment_length=5)(params, XS)
    with refuses(ValueError, "output", "at 3", "out_time_axis"):
        wrap(lambda params, x: hj.unroll(CELL, params, x), out_time_axis=3)(params, XS)
    with refuses(ValueError, "output", "()"):
        wrap(loss_fn)(params, XS)


def steps_apart(params, x):
    return jnp.stack([hj.unroll(CELL, params, x[t][None])[0] for t in range(len(x))])


def scanned_steps(params, x):
    return jax.lax.scan(lambda c, x_t: (c, hj.unroll(CELL, params, x_t[None])[0]), 0, x)[1]


@pytest.mark.parametrize(
    ("model", "ran"),
    [
        (lambda p, x: hj.unroll(CELL, p, x.swapaxes(0, 1)).swapaxes(0, 1), 2),  # the data is not what is batch-first
        (lambda p, x: jax.vmap(lambda x: hj.unroll(CELL, p, x))(x), 2),
        (lambda p, x: hj.unroll(CELL, p, x[::2]), 3),
        (lambda p, x: hj.unroll(CELL, p, x[:4]), 4),
        (lambda p, x: hj.unroll(CELL, p, jnp.concatenate([x, x])), 10),
        (steps_apart, 1),
        (scanned_steps, 1),
        (lambda p, x: jax.jit(jax.checkpoint(steps_apart))(p, x), 1),
    ],
)
def test_an_unroll_over_other_steps_than_those_of_its_segment(params, model, ran):
    loss = lambda params, x: model(params, x).mean()  # noqa: E731
    for segment_length in (5, 10):
        hints = ("time_axis=1", "all steps at once", "test_errors.py")
        grads = hj.hypr_grad(loss, segment_length=segment_length), jax.grad(lambda p, x: hj.hypr(model)(p, x).sum())
        for grad in grads:
            with refuses(ValueError, "unroll ran over", *hints):
                grad(params, XS)
    with refuses(ValueError, f"over {ran} time steps", "has 5"):
        hj.hypr_stream(loss).init(params, XS[:5])


def test_time_axes_that_do_not_fit(params):
    xs = {"x": XS, "label": np.zeros(2, int)}
    loss = lambda params, xs: loss_fn(params, xs["x"])  # noqa: E731
    for grad in transforms(loss, time_axis={"x": 0}):
        with refuses(ValueError, "time_axis", "prefix of xs"):
            grad(params, xs)
    for grad in transforms(loss, time_axis={"x": 3, "label": None}):
        with refuses(ValueError, "xs['x']", "(10, 2, 4)", "cannot be 3"):
            grad(params, xs)
    for grad in transforms(loss, time_axis=None):
        with refuses(ValueError, "time_axis is None for every leaf"):
            grad(params, xs)
    for grad in transforms(loss, time_axis=0.5):
        with refuses(TypeError, "time_axis must hold ints", "0.5"):
            grad(params, xs)


def test_a_cell_that_closes_over_a_traced_array(params):
    def loss(slope, x):
        cell = hj.lif(spike=hj.surrogate.from_derivative(lambda v: slope["a"] / (1 + v**2)))
        return hj.unroll(cell, params, x).mean()

    slope = {"a": jnp.float32(1.0)}
    assert jnp.isfinite(jax.grad(loss)(slope, XS)["a"])  # plain JAX
    for grad in transforms(loss):
        with refuses(ValueError, "'lif'", "closes over a traced array", "neuron parameter"):
            grad(slope, XS)


def test_a_cell_that_cannot_be_hashed(params):
    with refuses(TypeError, "cell must be hashable", "list"):
        hj.unroll(CELL._replace(constants=[1.0]), params, XS)


def test_loss_without_unroll(params):
    for grad in transforms(lambda params, xs: params["w_in"].sum() * xs.sum()):
        with refuses(ValueError, "must call hyprjax.unroll"):
            grad(params, XS)


def test_unroll_calls_that_change_between_segments(params):
    def twice(params, xs):
        return loss_fn(params, xs) + loss_fn(params, xs)

    one, two = hj.hypr_stream(loss_fn), hj.hypr_stream(twice)
    with refuses(ValueError, "needs 2 carries", "given 1", "hypr_stream"):
        two.value_and_grad(params, one.init(params, XS), XS)
    with refuses(ValueError, "needs 1 carries", "given 2"):
        one.value_and_grad(params, two.init(params, XS), XS)
    with refuses(ValueError, "call number 1", "float32[2, 3]", "float32[5, 3]"):
        one.value_and_grad(params, one.init(params, XS), np.ones((10, 5, 4), np.float32))


def test_a_carry_without_traces_is_refused_by_a_learner(params):
    net, learner = hj.stream(loss_fn), hj.hypr_stream(loss_fn)
    with refuses(ValueError, "call number 1", "traces", "hypr_stream"):
        learner.value_and_grad(params, net.init(params, XS), XS)


def learning_and_inference(fn):
    """`init` and what takes a carry, of both streams."""
    learner, net = hj.hypr_stream(fn), hj.stream(fn)
    return ("value_and_grad", learner.init, learner.value_and_grad), ("apply", net.init, net.apply)


@pytest.mark.parametrize("nth", [0, 1])
def test_what_is_not_a_carry(params, nth):
    call, init, run = learning_and_inference(loss_fn)[nth]
    carry = init(params, XS)
    order, whole = f"the order is {call}(params, carry, xs)", "pass the whole tuple"
    for args, words in [
        ((params, None, XS), ("the carry is None", "carry = init(params, xs)")),
        ((carry, params, XS), ("a carry was given as params", order)),
        ((params, XS, carry), ("a carry was given as xs", order)),
        ((params, carry[0], XS), ("the carry is that of one unroll call", whole)),
        (
            (params, run(params, carry, XS), XS),
            ("the carry is inside of something else", f"result, carry = {call}(...)"),
        ),
        ((params, params, XS), ("the carry is a dict", "what init or")),
        ((params, 0.0, XS), ("the carry is a float", "what init or")),
        ((params, jax.eval_shape(init, params, XS), XS), ("holds a ShapeDtypeStruct", "an array")),
        ((params, jax.tree.map(lambda a: np.asarray(a).tolist(), carry), XS), ("holds a float", "an array")),
    ]:
        with refuses(TypeError, *words):
            run(*args)


@pytest.mark.parametrize("nth", [0, 1])
def test_a_carry_from_a_checkpoint(params, nth, tmp_path):
    _, init, run = learning_and_inference(loss_fn)[nth]
    carry = run(params, init(params, XS), XS)[1]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "carry", carry)
        checkpointer.wait_until_finished()
        without, restored = (
            checkpointer.restore(tmp_path / "carry", *target) for target in ((), (jax.eval_shape(init, params, XS),))
        )
    with refuses(TypeError, "the carry is a list of dicts", "without a target", "jax.eval_shape(init, params, xs)"):
        run(params, without, XS)
    expected = run(params, carry, XS)
    for same in (restored, list(carry), jax.tree.map(np.asarray, carry)):
        assert_equal(run(params, same, XS), expected)
        assert_equal(jax.jit(run)(params, same, XS), jax.jit(run)(params, carry, XS))


def test_resets(params):
    with refuses(TypeError, "resets must be bool", "int"):
        hj.unroll(CELL, params, XS, resets=np.zeros((10, 2), int))
    with refuses(ValueError, "resets.shape = (10,)", "(10, 2)"):
        hj.unroll(CELL, params, XS, resets=np.zeros(10, bool))


@pytest.mark.parametrize("name", ["w_rec", "bias"])
def test_parameter_shapes(params, name):
    params[name] = jnp.ones((2, 2))
    with refuses(ValueError, f'params["{name}"].shape = (2, 2)', "(4, 3)"):
        hj.unroll(CELL, params, XS)


def test_neuron_parameter_shapes(params):
    params["neuron"]["tau"] = jnp.float32(20.0)
    with refuses(ValueError, "['tau']", "()", "(3,)", "jnp.full(3, value)"):
        hj.unroll(CELL, params, XS)


def test_parameter_keys(params):
    with refuses(ValueError, "params must be a dict", "w_fast"):
        hj.unroll(CELL, {**params, "w_fast": jnp.ones((3, 3))}, XS)
    with refuses(ValueError, "params must be a dict", "tuple"):
        hj.unroll(CELL, tuple(params.values()), XS)


def test_aux_that_cannot_be_stacked(params):
    fn = lambda params, xs: ((spikes := hj.unroll(CELL, params, xs)).mean(), spikes)  # noqa: E731
    with refuses(ValueError, "aux", "(4, 2, 3)", "(2, 2, 3)", "divides"):
        hj.hypr_grad(fn, segment_length=4, has_aux=True)(params, XS)


@pytest.mark.parametrize(("n_in", "n_out"), [(0, 3), (4, -1), (4, 2.0)])
def test_init_layer_sizes(n_in, n_out):
    with refuses(ValueError, "init_layer", "positive int"):
        hj.init_layer(jax.random.key(0), CELL, n_in, n_out)


def test_cell_makers():
    for make, words in (
        (lambda: hj.lif(threshold=0.0), ("lif: threshold", "positive")),
        (lambda: hj.alif(threshold=-1.0), ("alif: threshold", "positive")),
        (lambda: hj.brf(dt=0.0), ("brf: dt", "positive")),
        (lambda: hj.brf(gamma=1.0), ("brf: gamma", "[0, 1)")),
        (lambda: hj.se_adlif(tau_u=(25.0, 5.0)), ("se_adlif: tau_u", "low <= high")),
        (lambda: hj.se_adlif(a=1.0), ("se_adlif: a", "range")),
    ):
        with refuses(ValueError, *words):
            make()


def test_what_is_no_cell():
    for wrapper in (hj.filtered, hj.with_state, lambda cell: hj.refractory(cell, 3)):
        with refuses(TypeError, "the cell is the function lif", "hj.lif()"):
            wrapper(hj.lif)


@pytest.mark.parametrize(
    "transform", [hj.hypr, hj.bptt, hj.hypr_grad, hj.hypr_value_and_grad, hj.hypr_stream, hj.stream]
)
def test_what_is_no_function(params, transform):
    with refuses(TypeError, "must be given a function (params, xs, ...)", "dict"):
        transform(params)


def test_options_that_would_be_ignored():
    with refuses(ValueError, "chunk_length", 'scan="sequential"'):
        hj.hypr(loss_fn, scan="sequential", chunk_length=5)
    with refuses(ValueError, "trace_rank=3", 'traces="factored"'):
        hj.hypr_grad(loss_fn, trace_rank=3)


@pytest.mark.parametrize("inputs", [None, "spikes", {"inputs": XS}])
def test_inputs_that_are_no_array(params, inputs):
    with refuses((TypeError, ValueError), "unroll: inputs"):
        hj.unroll(CELL, params, inputs)


@pytest.mark.parametrize(
    "weights", ["orthogonal", hj.weights.heterogeneous, lambda key, n_in, n_out: jnp.ones((n_in, n_out))]
)
def test_init_layer_weights(weights):
    with refuses(TypeError, "init_layer: weights must be a function (key, n_in, n_out) -> (w_in, w_rec)"):
        hj.init_layer(jax.random.key(0), CELL, 4, 3, weights=weights)


def test_init_layer_key_and_a_number_as_text():
    with refuses(TypeError, "init_layer: key", "jax.random.key(0)"):
        hj.init_layer(0, CELL, 4, 3)
    with refuses(ValueError, "lif: tau must be a number", "'20'"):
        hj.lif(tau="20")
    with refuses(TypeError, "shardings: mesh", "NoneType"):
        hj.shardings(None, {})


def test_init_layer_numbers():
    with refuses(TypeError, "init_layer: dtype", "float32", "int"):
        hj.init_layer(jax.random.key(0), CELL, 4, 3, dtype=int)
    with refuses(ValueError, "init_layer: gain", "finite", "inf"):
        hj.init_layer(jax.random.key(0), CELL, 4, 3, gain=jnp.inf)


def test_parameters_that_are_none(params):
    with refuses(ValueError, 'params["w_in"] is None', "leave the key out"):
        hj.unroll(CELL, {**params, "w_in": None}, XS)
    gru = hj.init_layer(jax.random.key(0), hj.gru(), 4, 3)
    gru["bias"]["r"] = None
    with refuses(ValueError, 'params["bias"]["r"] is None', "leave the key out"):
        hj.unroll(hj.gru(), gru, XS)


@pytest.mark.parametrize("cell", [CELL, hj.gru()])
def test_dicts_of_other_kinds(cell):
    """Gradients are of the same type as the parameters."""
    plain = hj.init_layer(jax.random.key(0), cell, 4, 3, recurrent=True)
    ordered = lambda tree: OrderedDict((k, ordered(v)) for k, v in tree.items()) if isinstance(tree, dict) else tree  # noqa: E731
    grad = hj.hypr_grad(lambda p, x: hj.unroll(cell, p, x).mean(), segment_length=4)
    grads = grad(ordered(plain), XS)
    assert jax.tree.structure(grads) == jax.tree.structure(ordered(plain))
    assert_equal(jax.tree.leaves(grads), jax.tree.leaves(ordered(grad(plain, XS))))


def test_a_counter_that_its_dtype_cannot_hold():
    cell = hj.refractory(hj.lif(), 300)
    layer = hj.init_layer(jax.random.key(0), cell, 4, 3, dtype=jnp.bfloat16)
    with refuses(ValueError, "refractory: bfloat16 cannot count 300 steps", "float32"):
        hj.unroll(cell, layer, XS.astype(jnp.bfloat16))


def test_a_carry_with_traces_of_another_dtype(params):
    carry = hj.hypr_stream(loss_fn).init(params, XS)
    with refuses(ValueError, "call number 1", "trace_dtype"):
        hj.hypr_stream(loss_fn, trace_dtype=jnp.bfloat16).value_and_grad(params, carry, XS)


def test_aux_of_another_structure_in_the_last_segment(params):
    def fn(params, xs):
        spikes = hj.unroll(CELL, params, xs)
        return spikes.mean(), {"rate": spikes.mean()} | ({"short": 0.0} if len(xs) < 4 else {})

    with refuses(ValueError, "aux has another structure", "short", "divides"):
        hj.hypr_grad(fn, segment_length=4, has_aux=True)(params, XS)


@pytest.mark.parametrize("wrap", [hj.hypr, hj.bptt])
def test_outputs_with_time_elsewhere(params, wrap):
    """A segment as long as the batch is large has the right shape by chance."""
    model = lambda params, x: hj.unroll(CELL, params, x).swapaxes(0, 1)  # noqa: E731
    with refuses(ValueError, wrap.__name__, "time is axis 1 of output 0", "out_time_axis"):
        wrap(model, segment_length=2)(params, XS)
    assert wrap(model, segment_length=2, out_time_axis=1)(params, XS).shape == (2, 10, 3)


def test_an_exception_in_the_loss_leaves_no_frame(params):
    def fails(params, xs):
        hj.unroll(CELL, params, xs)
        raise RuntimeError("user's own")

    for grad in transforms(fails):
        with pytest.raises(RuntimeError, match="user's own"):
            grad(params, XS)
    assert jnp.isfinite(loss_fn(params, XS))


def test_a_time_axis_of_numpy_is_that_of_the_outputs(params):
    model = lambda params, x: hj.unroll(CELL, params, x.swapaxes(0, 1)).swapaxes(0, 1)  # noqa: E731
    x = jnp.ones((3, 9, 4))
    outputs = hj.hypr(model, segment_length=3, time_axis=np.int64(1))(params, x)
    assert_equal(outputs, model(params, x))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(jnp.bfloat16, {"trace_dtype": jnp.float32}), (jnp.float32, {"traces": "factored", "trace_rank": 99})],
)
def test_traces_wider_than_the_layer_needs(params, dtype, options):
    layer = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    grads = [hj.hypr_grad(loss_fn, segment_length=5, **own)(layer, jnp.asarray(XS, dtype)) for own in ({}, options)]
    for plain, wide in zip(*map(jax.tree.leaves, grads), strict=True):
        assert wide.dtype == dtype
        assert jnp.allclose(plain.astype(float), wide.astype(float), rtol=0.05, atol=1e-3)
        assert jnp.isfinite(wide).all()


def test_an_array_with_time_that_is_no_xs(params):
    """What does not fit a segment is JAX's own error, with a note on segments."""
    targets = jnp.ones((10, 2, 3))
    closed = lambda p, xs: jnp.square(hj.unroll(CELL, p, xs) - targets).mean()  # noqa: E731
    after = lambda p, xs, ys: jnp.square(hj.unroll(CELL, p, xs) - ys).mean()  # noqa: E731
    for loss, args in ((closed, ()), (after, (targets,))):
        with pytest.raises(TypeError, match="incompatible shapes") as error:
            hj.hypr_grad(loss, segment_length=5)(params, XS, *args)
        notes = "\n".join(error.value.__notes__)
        assert "hypr_grad runs the function on segments of 5 of the 10 time steps" in notes
        assert "give it in xs" in notes


def test_what_a_function_returns_beside_arrays_is_refused(params):
    model = lambda p, xs: {"spikes": hj.unroll(CELL, p, xs), "name": "lif"}  # noqa: E731
    with refuses(TypeError, "hypr: the function returns a str at result['name']", "return arrays only"):
        hj.hypr(model)(params, XS)
    with refuses(TypeError, "hypr_grad: the function returns a str at result[1]['phase']"):
        hj.hypr_grad(lambda p, xs: (loss_fn(p, xs), {"phase": "train"}), has_aux=True)(params, XS)
