"""The examples run from end to end, for two updates, on small files of the official layouts."""

import csv

import ecg
import jax
import numpy as np
import pytest
import scipy.io
import shd
import smnist
import spoken_digits
import training
from networks import assert_equal
from test_data import tone, write_events

import hyprjax as hj
import hyprjax.data


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPRJAX_DATA", str(tmp_path))
    jax.config.update("jax_enable_x64", False)
    return tmp_path


def write_ecg(folder):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        y = np.eye(6, dtype=np.uint8)[rng.integers(0, 6, (80, 31))]
        scipy.io.savemat(folder / f"QTDB_{part}.mat", {"x": rng.integers(-1, 2, (80, 31, 4)), "y": y})


def write_fsdd(folder):
    index = np.tile(np.arange(12), 10)
    label = np.repeat(np.arange(10), 12)
    audio = np.concatenate([tone(200 + 100 * digit, 0.05) for digit in label])
    np.savez(folder / "fsdd.npz", audio=audio, length=np.full(120, 400), label=label, index=index)


def write_mnist(folder):
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        for kind, shape in (("images-idx3", (12, 28, 28)), ("labels-idx1", (12,))):
            header = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()
            content = rng.integers(0, 10, shape, np.uint8).tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + content)


def write_shd(folder):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        times, units = rng.uniform(0, 0.9, (12, 40)), rng.integers(0, 700, (12, 40))
        write_events(folder / f"shd_{part}.h5", times, units, rng.integers(0, 20, 12))


@pytest.mark.parametrize(
    ("example", "write", "arguments"),
    [
        (ecg, write_ecg, ["--cell", "brf", "--epochs", "1"]),
        (ecg, write_ecg, ["--cell", "se_adlif", "--epochs", "2", "--rules", "hypr"]),
        (ecg, write_ecg, ["--cell", "alif", "--epochs", "1", "--rules", "hypr"]),
        (
            spoken_digits,
            write_fsdd,
            ["--epochs", "1", "--layers", "2", "--neurons", "8", "--rules", "hypr", "--steps", "20"],
        ),
        (
            smnist,
            write_mnist,
            ["--epochs", "1", "--neurons", "8", "--batch-size", "5", "--permuted", "--rules", "hypr"],
        ),
        (
            shd,
            write_shd,
            ["--epochs", "1", "--neurons", "8", "--batch-size", "5", "--cell", "se_adlif", "--rules", "hypr"],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_example(folder, example, write, arguments, capsys):
    write(folder)
    results = example.main([*arguments, "--seeds", "0", "1", "--out", str(folder / "results.csv")])
    for result in results.values():
        assert result.test_accuracy.shape == (2,)
        assert np.isfinite(result.history["loss"]).all()
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rule"], row["seed"]) for row in rows] == [(rule, seed) for rule in results for seed in "01"]
    assert "±" in capsys.readouterr().out


@pytest.fixture
def problem(folder):
    """Which of three channels is active? Learnt in a few epochs."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    inputs = rng.random((20, 120, 3)) < np.where(np.arange(3) == labels[:, None], 0.7, 0.1)
    data = hj.data.Dataset(inputs, labels, np.arange(20)[:, None] >= np.zeros((1, 120), int))
    network = training.stack(hj.lif(tau=5.0), hj.leaky_integrator(tau=5.0), (3, 16, 3))
    return network, data.take(np.arange(80)), data.take(np.arange(80, 120))


@pytest.mark.parametrize("rule", training.RULES)
def test_training_learns_and_reports_the_best_model(problem, rule):
    import optax

    result = training.train(
        *problem,
        rule=rule,
        optimiser=lambda updates: optax.adam(0.02),
        seeds=(0, 1),
        epochs=8,
        batch_size=8,
        segment_length=7,
    )
    assert (result.test_accuracy > 0.9).all()
    best = result.history["valid_loss"].argmin(0)
    assert np.allclose(result.valid_accuracy, result.history["valid_accuracy"][best, [0, 1]])


def test_without_validation_data_the_last_model_is_tested(problem):
    import optax

    settings = {"optimiser": lambda updates: optax.adam(0.02), "epochs": 3, "batch_size": 8, "validation": 0}
    result = training.train(*problem, rule="hypr-online", segment_length=7, **settings)
    assert np.array_equal(result.test_accuracy, result.last_accuracy)
    assert np.isnan(result.valid_accuracy).all()


def test_an_interrupted_run_ends_like_an_uninterrupted_one(problem, tmp_path, monkeypatch):
    import optax

    settings = {"rule": "hypr", "optimiser": lambda updates: optax.adam(0.02), "seeds": (0, 1)}
    settings |= {"batch_size": 8, "segment_length": 7, "average": 0.5}
    whole = training.train(*problem, epochs=4, **settings)

    class Interrupted(training.tqdm):
        def __iter__(self):
            for number in super().__iter__():
                if number == 3:
                    raise KeyboardInterrupt
                yield number

    settings |= {"epochs": 4, "checkpoint": tmp_path / "run", "save_every": 2}
    with monkeypatch.context() as patched:
        patched.setattr(training, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.train(*problem, **settings)
    resumed = training.train(*problem, **settings)
    assert_equal((whole.params, whole.history), (resumed.params, resumed.history))


def test_another_learning_rate_does_not_continue_the_same_run(folder):
    write_ecg(folder)
    arguments = ["--epochs", "1", "--rules", "hypr", "--seeds", "0", "--checkpoints", str(folder / "runs")]
    ecg.main([*arguments, "--learning-rate", "0.1"])
    with pytest.raises(ValueError, match=r"learning_rate 0\.1 there, 0\.2 here; choose another folder"):
        ecg.main([*arguments, "--learning-rate", "0.2"])


def test_the_gradients_example_compares_rules_while_a_network_learns(folder):
    import gradients

    write_ecg(folder)
    short = ["--cell", "alif", "--epochs", "1", "--every", "1", "--segment-lengths", "10"]
    gradients.main([*short, "--out", str(folder / "gradients.csv")])
    with (folder / "gradients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["rule"]) for row in rows] == [
        (e, r) for e in "01" for r in ("bptt", *training.RULES[1:3])
    ]
    cosines = np.array([float(row["cosine"]) for row in rows]).reshape(2, 3)
    assert np.allclose(cosines[:, 0], 1)
    assert (np.abs(cosines) <= 1).all()
    assert (cosines[0] != cosines[1]).any()  # it has learnt


def test_parameters_stay_in_their_ranges_unless_told_otherwise(problem):
    import optax

    _, *data = problem
    network = training.stack(hj.se_adlif(q=20.0), hj.leaky_integrator(tau=5.0), (3, 16, 3))
    settings = {"rule": "hypr", "optimiser": lambda updates: optax.adam(0.3), "epochs": 1, "batch_size": 8}
    ranges = {"tau_u": (0, 1), "tau_w": (0, 1), "a": (0, 1), "b": (0, 2)}
    outside = {}
    for project in (True, False):
        neuron = training.train(network, *data, **settings, project=project).params[0]["neuron"]
        outside[project] = sum(
            ((neuron[name] < low) | (neuron[name] > high)).sum() for name, (low, high) in ranges.items()
        )
    assert outside[True] == 0
    assert outside[False] > 5


def test_dropout_is_of_training_only(problem):
    network, data, _ = problem
    network = network._replace(dropout=0.5)
    params = network.init(jax.random.key(0))
    plain = network.logits(params, training.make_batch(network, data, np.arange(4)))
    dropped = network.logits(params, training.make_batch(network, data, np.arange(4), jax.random.key(1)))
    assert not np.allclose(plain, dropped)


def test_large_network_in_small(tmp_path):
    import large

    rows = large.main(["--neurons", "40", "--updates", "2", "--out", str(tmp_path / "large.csv")])
    assert [row[:2] for row in rows] == [[40, 2]]
    assert (tmp_path / "large.csv").read_text().startswith("neurons,update,loss,test_accuracy\n40,2,")


@pytest.mark.filterwarnings("default")  # of matplotlib
def test_convolutional_network_in_small(folder):
    import conv_mnist

    write_mnist(folder)
    figure = folder / "conv_mnist.png"
    accuracy = conv_mnist.main(["--images", "12", "--passes", "3", "--figure", str(figure)])
    assert list(accuracy) == ["hypr", "truncated bptt", "bptt"]
    assert all(0 <= value <= 1 for value in accuracy.values())
    assert figure.stat().st_size > 10_000


def test_gated_example_compares_rules(tmp_path):
    import gated

    jax.config.update("jax_enable_x64", False)
    arguments = ["--cells", "lstm", "--rules", "hypr online", "--batches", "2", "--batch-size", "4", "--seeds", "0"]
    rows = gated.main([*arguments, "--out", str(tmp_path / "gated.csv")])
    assert [len(row["accuracy"]) for row in rows] == [2]
    assert (tmp_path / "gated.csv").read_text().count("hypr online") == 2
    assert (tmp_path / "gated.png").stat().st_size > 10_000


def test_the_maze_is_walked_and_learnt_from_by_both_rules(tmp_path):
    import tmaze

    jax.config.update("jax_enable_x64", False)
    tmaze.main(["--updates", "40", "--seeds", "0", "--out", str(tmp_path / "tmaze.csv")])
    with (tmp_path / "tmaze.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rule"] for row in rows] == ["hypr"] * 40 + ["tbptt"] * 40
    assert {row["step"] for row in rows} == {str(10 * (i + 1)) for i in range(40)}
    assert all(0 <= float(row["right"]) <= 1 for row in rows)
    assert (tmp_path / "tmaze.png").stat().st_size > 10_000


def test_mazes_last_as_long_as_they_say_and_reward_the_side_of_the_cue():
    import maze

    state = maze.new_maze(jax.random.key(0))
    length = int(state["junction"]) + maze.JUNCTION
    assert maze.CORRIDOR[0] <= length - maze.CUE - maze.JUNCTION < maze.CORRIDOR[1]
    for _ in range(length):
        side, (state, turns, reward) = state["side"], maze.move(state, state["side"], jax.random.key(1))
    assert turns
    assert reward == 1
    assert state["time"] == 0
    assert maze.move({**state, "side": side}, 1 - side, jax.random.key(1))[2] == -1


def test_the_symbol_of_store_and_recall_is_shown_before_the_delay_and_the_signal_after_it():
    import delays

    data = delays.store_recall(50, 30, seed=0)
    groups = data.inputs.reshape(len(data.inputs), 50, delays.SYMBOLS + 1, delays.GROUP).sum(-1)
    shown = groups[: delays.SHOWN].sum(0)[:, :-1]
    assert np.array_equal(shown.argmax(-1), data.targets)
    assert groups[-delays.SHOWN :, :, -1].mean() > 10 * groups[: -delays.SHOWN, :, -1].mean()
    assert data.mask.sum(0).tolist() == [delays.SHOWN] * 50
    assert not data.mask[: delays.SHOWN + 30].any()


def test_updates_every_few_steps_learn_what_truncated_bptt_does_not(tmp_path):
    """A symbol of 100 steps ago, an update every 20: in small, the figure of the results."""
    import delays

    jax.config.update("jax_enable_x64", False)
    short = ["--cells", "alif", "--delays", "100", "--epochs", "10", "--seeds", "0"]
    delays.main([*short, "--out", str(tmp_path / "delays.csv")])
    with (tmp_path / "delays.csv").open() as file:
        accuracy = {row["rule"]: float(row["test_accuracy"]) for row in csv.DictReader(file)}
    assert accuracy["hypr-online"] > 0.9
    assert accuracy["tbptt-online"] < 0.7


def test_evidence_is_accumulated_in_small(folder, monkeypatch):
    import evidence

    make = hj.data.evidence_accumulation
    short = {"cue_steps": 5, "gap_steps": 2, "delay_steps": 10, "recall_steps": 5}
    monkeypatch.setattr(hj.data, "evidence_accumulation", lambda n, seed: make(n, seed=seed, **short))
    results = evidence.main(["--sequences", "20", "--epochs", "1", "--batch-size", "9", "--seeds", "0"])
    assert list(results) == ["hypr-online", "tbptt-online"]
    assert all(np.isfinite(result.history["loss"]).all() for result in results.values())


def test_epochs_are_timed_by_turns(folder, monkeypatch):
    import epoch_time

    write_ecg(folder)
    monkeypatch.setattr(epoch_time, "WAYS", [("bptt", 16, None), ("hypr-segment-online", 8, 10)])
    epoch_time.main(["--times", "2", "--out", str(folder / "time.csv")])
    with (folder / "time.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rule"], row["segment_length"]) for row in rows] == [
        ("bptt", "default"),
        ("hypr-segment-online", "10"),
    ]
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_memory_of_hypr_does_not_grow_with_the_steps(tmp_path):
    import long

    jax.config.update("jax_enable_x64", False)
    long.main(["--steps", "1000", "4000", "--out", str(tmp_path / "long.csv")])
    with (tmp_path / "long.csv").open() as file:
        memory = {(row["rule"], row["steps"]): float(row["memory_mb"]) for row in csv.DictReader(file)}
    growth = {rule: memory[rule, "4000"] / memory[rule, "1000"] for rule in long.RULES}
    assert growth["jax.grad"] > 3.5
    assert growth["hj.bptt"] < 2.5
    assert growth["hypr_grad"] < 1.1
    assert growth["hypr_stream, an update every 100 steps"] < 1.1
    assert (tmp_path / "long.png").stat().st_size > 10_000
