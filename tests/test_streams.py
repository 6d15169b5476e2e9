"""Endless streams: any cut, bad input, crashes, deployment."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoints import Checkpoints
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from networks import CELLS, assert_close, make_data, make_loss, make_stack

import hyprjax as hj

ROOT = Path(__file__).parent.parent
few = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
T = 9


def cut(xs, start, length):
    return jax.tree.map(lambda x: x[start : start + length], xs)


@st.composite
def lengths(draw, total=T):
    """Any way of cutting `total` steps."""
    marks = sorted(draw(st.sets(st.integers(1, total - 1), max_size=4)))
    return np.diff([0, *marks, total]).tolist()


@cache  # a segment of a length that was seen before is not compiled again
def compiled(names, scan="sequential", trace_dtype=None):
    """A stack, its loss function, and its learner under jit."""
    cells, _ = make_stack(names, 2, (3, 2)[: len(names)])
    loss_fn = make_loss(cells)
    learner = hj.hypr_stream(loss_fn, scan=scan, trace_dtype=trace_dtype)
    return cells, loss_fn, learner._replace(value_and_grad=jax.jit(learner.value_and_grad))


def run_stream(learner, params, xs, parts):
    """Summed gradient, last carry."""
    carry, start, total = learner.init(params, cut(xs, 0, 1)), 0, jax.tree.map(jnp.zeros_like, params)
    for length in parts:
        (_, grads), carry = learner.value_and_grad(params, carry, cut(xs, start, length))
        total, start = jax.tree.map(jnp.add, total, grads), start + length
    return total, carry


# --- properties -----------------------------------------------------------------------------------


@few
@given(parts=lengths(), seed=st.integers(0, 99))
@pytest.mark.parametrize(("name", "scan"), [("custom", "sequential"), ("brf", "associative")])
def test_however_a_stream_is_cut_gradient_state_and_traces_are_the_same(name, scan, parts, seed):
    _, params = make_stack((name,), 2, (3,), seed=seed)
    xs = make_data(T, (2,), 2, 3, seed=seed, resets=True)
    learner = compiled((name,), scan)[2]
    grads, carry = run_stream(learner, params, xs, parts)
    whole_grads, whole_carry = run_stream(learner, params, xs, [T])
    assert_close(grads, whole_grads)
    assert_close(carry, whole_carry)


def both(params, x):
    """Outputs of both layers."""
    spikes = hj.unroll(CELLS["custom"], params[0], x)
    return spikes, hj.unroll(CELLS["leaky_integrator"], params[1], spikes)


STREAM = hj.stream(both)
apply, plainly = jax.jit(STREAM.apply), jax.jit(both)


@few
@given(parts=lengths(), seed=st.integers(0, 99), dtype=st.sampled_from(["float64", "float32", "bfloat16"]))
def test_however_a_stream_is_cut_outputs_are_the_same(parts, seed, dtype):
    _, params = make_stack(("custom", "leaky_integrator"), 2, (3, 2), seed=seed)
    xs = make_data(T, (2,), 2, 2, seed=seed)["inputs"]
    params, xs = jax.tree.map(lambda a: a.astype(dtype), (params, xs))
    carry, start, outputs = STREAM.init(params, xs), 0, []
    for length in parts:
        output, carry = apply(params, carry, xs[start : start + length])
        outputs.append(output)
        start += length
    joined = [np.concatenate(parts).astype(float) for parts in zip(*outputs, strict=True)]
    tolerance = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.1}[dtype]
    for actual, expected in zip(joined, plainly(params, xs), strict=True):
        assert expected.dtype == dtype
        assert np.allclose(actual, np.asarray(expected, float), rtol=0, atol=tolerance)


@few
@given(ends=st.lists(st.integers(1, T - 1), min_size=1, max_size=3, unique=True), seed=st.integers(0, 99))
def test_resets_make_separate_sequences(ends, seed):
    names = ("custom", "leaky_integrator")
    _, params = make_stack(names, 2, (3, 2), seed=seed)
    xs = make_data(T, (1,), 2, 2, seed=seed)
    xs["resets"] = jnp.zeros((T, 1), bool).at[jnp.array(ends)].set(True)
    learner = compiled(names)[2]
    starts = [0, *sorted(ends)]
    pieces = [cut(xs, a, b - a) for a, b in zip(starts, [*starts[1:], T], strict=True)]
    apart = [run_stream(learner, params, piece, [len(piece["inputs"])])[0] for piece in pieces]
    assert_close(run_stream(learner, params, xs, [T])[0], jax.tree.map(lambda *leaves: sum(leaves), *apart))


@few
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(0, 2), st.integers(1, 4), st.integers(1, 4)),
    kind=st.sampled_from(["float32", "float64", "bfloat16", "int8", "bool"]),
    length=st.integers(1, 7),
    x64=st.booleans(),
)
@example(shape=(3, 0, 2, 2), kind="float32", length=1, x64=False)  # an empty batch, two segments
def test_any_shape_and_dtype_gives_finite_gradients_of_the_parameters_own_dtype(shape, kind, length, x64):
    jax.config.update("jax_enable_x64", x64)
    steps, batch, m, n = shape
    cell = CELLS["custom"]
    params = hj.init_layer(jax.random.key(0), cell, m, n, recurrent=True)
    inputs = np.ones((steps, batch, m), jnp.dtype(kind))
    gradient = hj.hypr_value_and_grad(lambda p, x: hj.unroll(cell, p, x).sum(), segment_length=length)
    loss, grads = jax.jit(gradient)(params, inputs)
    chex.assert_tree_all_finite((loss, grads))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)


def test_weakly_typed_parameters_and_inputs():
    cell = CELLS["leaky_integrator"]
    params = {"w_in": jnp.full((1, 1), 2.0), "neuron": {"tau": jnp.full(1, 3.0)}}
    assert jnp.full((1, 1), 2.0).weak_type
    grads = hj.hypr_grad(lambda p, x: hj.unroll(cell, p, x).sum())(params, jnp.full((4, 1), 1.0))
    exact = jax.grad(lambda p, x: hj.unroll(cell, p, x).sum())(params, jnp.full((4, 1), 1.0))
    assert_close(grads, exact)


@few
@given(bad=st.sampled_from([np.nan, np.inf, -np.inf, 1e300]), at=st.integers(0, T - 1))
@pytest.mark.parametrize(("name", "scan"), [("custom", "sequential"), ("se_adlif", "associative")])
def test_bad_input_stays_in_its_own_batch_element(name, scan, bad, at):
    names = (name, "leaky_integrator")
    _, params = make_stack(names, 2, (3, 2))
    xs = make_data(T, (3,), 2, 2)
    broken = {**xs, "inputs": xs["inputs"].at[at, 1].set(bad)}
    learner = compiled(names, scan)[2]
    healthy_carry, broken_carry = (run_stream(learner, params, data, [6, 3])[1] for data in (xs, broken))
    others = lambda carry: jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], carry)  # noqa: E731
    assert_close(others(broken_carry), others(healthy_carry))


# --- numbers --------------------------------------------------------------------------------------


def test_a_segment_that_is_not_finite_can_be_skipped():
    _, params = make_stack(("custom", "leaky_integrator"), 2, (3, 2))
    xs = make_data(20, (2,), 2, 2)
    learner, optimiser = compiled(("custom", "leaky_integrator"))[2], optax.apply_if_finite(optax.adam(1e-3), 10)

    def train(inputs, segments):
        state, opt_state = params, optimiser.init(params)
        carry = learner.init(params, cut(xs, 0, 5))
        for start in segments:
            segment = cut({**xs, "inputs": inputs}, start, 5)
            (loss, grads), new_carry = learner.value_and_grad(state, carry, segment)
            updates, opt_state = optimiser.update(grads, opt_state, state)
            state = optax.apply_updates(state, updates)
            carry = new_carry if opt_state.last_finite else carry
        return state, loss

    broken, loss = train(xs["inputs"].at[7, 0].set(jnp.nan), [0, 5, 10, 15])
    assert jnp.isfinite(loss)
    assert_close(broken, train(xs["inputs"], [0, 10, 15])[0])


@pytest.mark.parametrize("name", ["lif", "alif", "se_adlif", "brf"])
def test_bfloat16_traces_halve_the_memory_and_change_the_gradient_little(name):
    cells, params = make_stack((name,), 3, (8,))
    xs = make_data(200, (4,), 3, 8)
    params, xs = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
    learners = {dtype: hj.hypr_stream(make_loss(cells), trace_dtype=dtype) for dtype in (None, jnp.bfloat16)}
    learners = {d: one._replace(value_and_grad=jax.jit(one.value_and_grad)) for d, one in learners.items()}
    sizes, grads = {}, {}
    for dtype, learner in learners.items():
        sizes[dtype] = sum(trace.nbytes for trace in learner.init(params, xs)[0].traces.synapses)
        grads[dtype], carry = run_stream(learner, params, xs, [20] * 10)
        assert {trace.dtype for trace in carry[0].traces.synapses} == {jnp.dtype(dtype or jnp.float32)}
    assert sizes[jnp.bfloat16] == sizes[None] / 2
    exact, rounded = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads[d])]) for d in learners)
    assert 0 < np.linalg.norm(rounded - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("value", [jnp.int32, "nonsense", jnp.complex64, 3])
def test_trace_dtype_must_be_floating(value):
    with pytest.raises(TypeError, match=r"trace_dtype must be a floating dtype such as jnp\.bfloat16"):
        hj.hypr_stream(lambda params, xs: 0.0, trace_dtype=value)


@pytest.mark.parametrize("name", ["lif", "alif", "se_adlif", "brf", "leaky_integrator"])
def test_silence_leaves_no_denormal_numbers(name):
    """Numbers that decay end at zero, not in the range in which processors are slow."""
    cells, params = make_stack((name,), 3, (8,))
    xs = jax.tree.map(lambda a: a.astype(jnp.float32), make_data(50, (2,), 3, 8))
    params = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    params[0]["bias"] = jnp.zeros(8, jnp.float32)
    learner = hj.hypr_stream(make_loss(cells))
    learn = jax.jit(learner.value_and_grad)
    _, carry = learn(params, learner.init(params, xs), xs)
    silent = {**xs, "inputs": jnp.zeros_like(xs["inputs"])}
    for _ in range(100):
        (_, grads), carry = learn(params, carry, silent)
    tiny = np.finfo(np.float32).tiny
    for leaf in jax.tree.leaves((carry, grads)):
        size = np.abs(np.asarray(leaf))
        assert not ((size > 0) & (size < tiny)).any()


def test_a_frame_does_not_outlive_an_exception():
    cells, params = make_stack(("lif",), 2, (3,))
    xs = make_data(4, (), 2, 3)

    def failing(params, xs):
        hj.unroll(cells[0], params[0], xs["inputs"])
        raise RuntimeError("in the loss")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="in the loss"):
            hj.hypr_grad(failing)(params, xs)
        assert hj.unroll(cells[0], params[0], xs["inputs"]).shape == (4, 3)  # plain again: from rest, no carry


# --- checkpoints ----------------------------------------------------------------------------------


def state(value):
    return {"w": np.full((40, 3), value, np.float32), "carry": (np.arange(5) + value,)}


def test_the_last_checkpoint_comes_back(tmp_path):
    saved = Checkpoints(tmp_path / "run", {"rule": "hypr"}, keep=2)
    assert saved.restore(state(0)) is None
    for step in (1, 2, 3):
        saved.save(step, state(step))
    step, restored = Checkpoints(tmp_path / "run", {"rule": "hypr"}).restore(state(0))
    assert step == 3
    assert_close(restored, jax.tree.map(jnp.asarray, state(3)), 0)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "removed", "half-written"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(tmp_path, damage):
    saved = Checkpoints(tmp_path / "run", {})
    saved.save(1, state(1))
    saved.save(2, state(2))
    folder = tmp_path / "run" / "2"
    if damage == "half-written":  # what a crash leaves: Orbax's temporary folder
        folder.rename(tmp_path / "run" / "2.orbax-checkpoint-tmp-0")
    else:
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            size = path.stat().st_size
            if damage == "removed":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: size // 2] if damage == "truncated" else os.urandom(size))
    again = Checkpoints(tmp_path / "run", {})
    if damage == "half-written":
        step, restored = again.restore(state(0))
    else:
        with pytest.warns(RuntimeWarning, match=r"run/2 is damaged and left out"):
            step, restored = again.restore(state(0))
    assert step == 1
    assert_close(restored, jax.tree.map(jnp.asarray, state(1)), 0)
    if damage != "half-written":
        assert list((tmp_path / "run").glob("2.damaged-*"))  # set aside, not deleted
    again.save(2, state(5))  # the run goes on over it
    assert Checkpoints(tmp_path / "run", {}).restore(state(0))[0] == 2


def test_a_foreign_checkpoint_is_refused(tmp_path):
    Checkpoints(tmp_path / "run", {"rule": "hypr", "seed": 0}).save(1, state(1))
    with pytest.raises(ValueError, match=r"another run: rule 'hypr' there, 'bptt' here; choose another folder"):
        Checkpoints(tmp_path / "run", {"rule": "bptt", "seed": 0}).restore(state(0))
    with (
        pytest.warns(RuntimeWarning, match="damaged"),
        pytest.raises(ValueError, match=r"no checkpoint in .*run can be read"),
    ):
        Checkpoints(tmp_path / "run", {"rule": "hypr", "seed": 0}).restore({"other": np.zeros(3)})


def test_without_the_data_set_the_stream_is_synthetic(tmp_path, monkeypatch, capsys):
    import stream

    from hyprjax.data import _files

    monkeypatch.setenv("HYPRJAX_DATA", str(tmp_path))
    monkeypatch.setattr(_files, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(_files.pooch, "retrieve", lambda *args, **kwargs: 1 / 0)
    assert stream.Process(100, 5, "auto").source == "synthetic"
    assert "QTDB_train.mat was not found" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        stream.Process(100, 5, "ecg")


def stream_command(folder, *more):
    return [
        *(sys.executable, str(ROOT / "examples" / "stream.py"), "--source", "synthetic", "--steps", "2000"),
        *("--segment-length", "5", "--regime", "1000", "--save-every", "7", "--checkpoints", str(folder)),
        *("--figure", str(folder) + ".png", *more),
    ]


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
def test_a_stream_killed_five_times_ends_bit_identical(tmp_path):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_ENABLE_X64": "0"}
    subprocess.run(stream_command(tmp_path / "whole"), env=environment, check=True, capture_output=True)
    rng = random.Random(0)
    reached = lambda: max([int(p.name) for p in (tmp_path / "killed").glob("*") if p.name.isdigit()], default=0)  # noqa: E731
    for _ in range(5):
        before = reached()
        process = subprocess.Popen(
            stream_command(tmp_path / "killed", "--resume"),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while reached() == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    subprocess.run(stream_command(tmp_path / "killed", "--resume"), env=environment, check=True, capture_output=True)
    whole, killed = (raw_state(tmp_path / name / "400" / "state") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert len(whole) > 30
    for name, value in whole.items():
        assert np.array_equal(value, killed[name], equal_nan=True), name


def raw_state(path):
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore(path)
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# --- deployment -----------------------------------------------------------------------------------


def test_an_exported_network_runs_without_the_library(tmp_path):
    cells, params = make_stack(("brf", "leaky_integrator"), 3, (6, 2))
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    xs = np.asarray(make_data(30, (), 3, 2)["inputs"], np.float32)
    jax.config.update("jax_enable_x64", False)
    net = hj.stream(lambda params, x: hj.unroll(cells[1], params[1], hj.unroll(cells[0], params[0], x)))
    carry, tree = jax.tree.flatten(net.init(params, xs[:1]))

    def one_step(carry, x):
        y, carry = net.apply(params, jax.tree.unflatten(tree, carry), x[None])
        return y[0], jax.tree.leaves(carry)

    exported = jax.export.export(jax.jit(one_step))(carry, xs[0])
    (tmp_path / "step.bin").write_bytes(exported.serialize())
    np.savez(tmp_path / "data.npz", xs=xs, **{f"carry{i}": leaf for i, leaf in enumerate(carry)})
    program = """
import sys
sys.modules["hyprjax"] = None  # not to be had
import jax, numpy as np, jax.export
step = jax.export.deserialize(open("step.bin", "rb").read()).call
data = np.load("data.npz")
carry, outputs = [data[f"carry{i}"] for i in range(len(data.files) - 1)], []
for x in data["xs"]:
    y, carry = step(carry, x)
    outputs.append(y)
np.save("outputs.npy", np.stack(outputs))
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    expected = hj.unroll(cells[1], params[1], hj.unroll(cells[0], params[0], xs))
    assert np.abs(expected).max() > 0.01
    assert np.allclose(np.load(tmp_path / "outputs.npy"), expected, rtol=0, atol=1e-6)
