"""Loaders on files of each official layout, written here; on the real ones where HYPRJAX_DATA has them."""

import gzip
import os
import struct
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
import scipy.io.wavfile

import hyprjax as hj
import hyprjax.data
from hyprjax.data import _files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty HYPRJAX_DATA, an empty cache, and no network."""
    monkeypatch.setenv("HYPRJAX_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(_files, "cache", lambda: tmp_path / "cache")

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(_files.pooch, "retrieve", offline)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def counting(steps=6, n=10):
    """Inputs that say which sequence and step they are."""
    inputs = (np.arange(n)[None, :, None] * 100 + np.arange(steps)[:, None, None]).astype(np.int16)
    return hj.data.Dataset(inputs, np.arange(n), np.ones((steps, n), bool))


# --- the data set itself --------------------------------------------------------------------------


def test_an_epoch_shows_every_sequence_once_with_its_own_label():
    for drop_last, sizes in ((False, [4, 4, 2]), (True, [4, 4])):
        batches = list(hj.data.batches(counting(), 4, seed=3, epoch=1, drop_last=drop_last))
        assert [batch["inputs"].shape for batch in batches] == [(6, size, 1) for size in sizes]
        for batch in batches:
            assert batch["inputs"].dtype == jnp.float32
            assert (batch["inputs"][..., 0] // 100 == batch["targets"]).all()
        shown = np.concatenate([batch["targets"][0] for batch in batches])
        assert len(set(shown.tolist())) == sum(sizes)


def test_the_order_depends_on_seed_and_epoch_alone():
    order = lambda **options: np.concatenate(  # noqa: E731
        [batch["targets"][0] for batch in hj.data.batches(counting(), 4, **options)]
    ).tolist()
    assert order() == list(range(10))
    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_split_is_disjoint_and_complete():
    first, second = counting().split(0.25, seed=1)
    assert (first.size, second.size) == (8, 2)
    assert sorted([*first.targets.tolist(), *second.targets.tolist()]) == list(range(10))
    with pytest.raises(ValueError, match=r"fraction 0\.01 of 10 sequences"):
        counting().split(0.01)


def test_targets_per_step_and_real_targets():
    base = counting()
    per_step = hj.data.Dataset(base.inputs, np.arange(60).reshape(6, 10), base.mask).batch(np.array([7, 2]))
    assert per_step["targets"].tolist() == [[10 * t + 7, 10 * t + 2] for t in range(6)]
    real = hj.data.Dataset(base.inputs, np.ones((6, 10, 3)), base.mask).batch(np.array([1]))
    assert (real["targets"].shape, real["targets"].dtype) == ((6, 1, 3), jnp.float32)


def test_batches_are_made_under_jit():
    dataset = jax.device_put(counting())
    batch = jax.jit(lambda dataset, indices: dataset.batch(indices))(dataset, jnp.array([3, 1]))
    assert batch["targets"][0].tolist() == [3, 1]


@pytest.mark.parametrize(
    ("inputs", "targets", "mask"),
    [((6, 10), (10,), (6, 10)), ((6, 10, 1), (6,), (6, 10)), ((6, 10, 1), (10,), (10, 6))],
)
def test_arrays_that_do_not_belong_together(inputs, targets, mask):
    with pytest.raises(ValueError, match=r"inputs must be \[T, N, channels\]"):
        hj.data.Dataset(np.zeros(inputs), np.zeros(targets), np.zeros(mask))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be an int of at least 1, got 0"),
        ({"batch_size": 4.0}, r"batch_size must be an int of at least 1, got 4\.0"),
        ({"batch_size": 11, "drop_last": True}, "batch_size is 11, but the data set has 10 sequences"),
    ],
)
def test_impossible_batch_size(options, words):
    with pytest.raises(ValueError, match=f"batches: {words}"):
        list(hj.data.batches(counting(), **options))


def test_what_a_loader_returns_is_not_one_data_set():
    with pytest.raises(TypeError, match=r"dataset is a tuple, not a Dataset; .*train, test = hj\.data\.digits"):
        next(hj.data.batches((counting(), counting()), 4))


@pytest.mark.parametrize("where", [lambda dataset: dataset, jax.device_put])
def test_indices(where):
    dataset = where(counting())
    assert dataset.batch(3)["targets"].shape == (6, 1)
    assert dataset.batch(-1)["targets"][0].tolist() == [9]
    assert dataset.batch([7, 2])["targets"][0].tolist() == [7, 2]
    assert dataset.batch(slice(2, 4))["targets"][0].tolist() == [2, 3]
    assert dataset.batch(np.arange(10) > 7)["targets"][0].tolist() == [8, 9]
    for indices in ([3, 10], jnp.array([99]), -11):
        with pytest.raises(IndexError, match="there are 10 sequences, but indices from"):
            dataset.batch(indices)


def test_leaves_that_are_no_arrays():
    whole = counting()
    for dataset, words in [
        (
            hj.data.Dataset(whole.inputs, whole.targets, None),
            r"mask is a NoneType.* np\.ones\(inputs.shape\[:2\], bool\)",
        ),
        (
            hj.data.Dataset(whole.inputs.tolist(), whole.targets, whole.mask),
            r"inputs is a list.* np\.asarray\(inputs\)",
        ),
    ]:
        with pytest.raises(TypeError, match=f"Dataset: {words}"):
            dataset.batch(np.array([1]))


# --- official layouts -----------------------------------------------------------------------------


def test_ecg(folder):
    rng = np.random.default_rng(0)
    x, labels = rng.integers(-1, 2, (3, 1301, 4)), rng.integers(0, 6, (3, 1301))
    for part in ("train", "test"):
        scipy.io.savemat(folder / f"QTDB_{part}.mat", {"x": x, "y": np.eye(6, dtype=np.uint8)[labels]})
    train, _ = hj.data.ecg_qtdb()
    assert train.inputs.shape == (1300, 3, 4)
    assert (train.inputs == x.transpose(1, 0, 2)[:-1]).all()
    assert (train.targets == labels.T[:-1]).all()


def write_events(path, times, units, labels):
    with h5py.File(path, "w") as file:
        for name, values, dtype in (("times", times, np.float16), ("units", units, np.uint16)):
            dataset = file.create_dataset(f"spikes/{name}", (len(values),), h5py.vlen_dtype(dtype))
            for i, value in enumerate(values):
                dataset[i] = np.asarray(value, dtype)
        file["labels"] = np.asarray(labels, np.uint16)


def test_heidelberg_data_sets(folder):
    times, units = [[0.0, 0.5, 0.5], [0.25, 0.75, 9.0], []], [[0, 4, 699], [5, 5, 5], []]
    for name in ("shd_train", "shd_test", "ssc_train", "ssc_valid", "ssc_test"):
        write_events(folder / f"{name}.h5", times, units, [3, 19, 0])
    train, _ = hj.data.heidelberg_digits(steps=10, dt=0.125)
    assert train.inputs.shape == (10, 3, 140)
    assert {tuple(map(int, index)): int(train.inputs[tuple(index)]) for index in np.argwhere(train.inputs)} == {
        (0, 0, 0): 1,
        (4, 0, 0): 1,
        (4, 0, 139): 1,
        (2, 1, 1): 1,
        (6, 1, 1): 1,
    }
    assert train.targets.tolist() == [3, 19, 0]
    assert train.mask.sum(0).tolist() == [5, 10, 1]
    assert [part.size for part in hj.data.speech_commands(steps=5, channels=700)] == [3, 3, 3]
    for options, words in [
        ({"channels": 300}, "channels must divide 700, got 300"),
        ({"channels": 140.0}, "channels must be an int"),
        ({"dt": 4}, r"dt is in seconds, got 4; milliseconds are dt=0\.004"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"steps": 0}, "steps must be an int of at least 1"),
    ]:
        for load in (hj.data.heidelberg_digits, hj.data.speech_commands):
            with pytest.raises(ValueError, match=f"{load.__name__}: {words}"):
                load(**options)


@pytest.mark.parametrize("archive", [False, True])
def test_sequential_mnist(folder, archive):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    labels = np.array([5, 0, 4, 1, 9], np.uint8)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            path = folder / f"{part}-{kind}-ubyte"
            (
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
                if archive
                else path.write_bytes(content)
            )
    train, _test = hj.data.sequential_mnist()
    assert train.inputs.shape == (784, 5, 1)
    assert np.allclose(train.inputs[:, 2, 0], images[2].ravel() / 255, atol=1e-3)
    assert train.targets.tolist() == labels.tolist()
    permuted, permuted_test = hj.data.sequential_mnist(permutation_seed=0)
    assert not np.array_equal(permuted.inputs, train.inputs)
    assert np.array_equal(np.sort(permuted.inputs, 0), np.sort(train.inputs, 0))
    assert np.array_equal(permuted.inputs, permuted_test.inputs)  # one permutation for both: the images are the same


def tone(frequency, seconds=0.2):
    return (8000 * np.sin(2 * np.pi * frequency * np.arange(int(8000 * seconds)) / 8000)).astype(np.int16)


@pytest.mark.parametrize("layout", ["npz", "wav"])
def test_spoken_digits(folder, layout):
    sounds = {(7, "jackson", 5): tone(500), (3, "theo", 4): tone(1000, 0.1), (0, "theo", 12): tone(300, 0.5)}
    if layout == "npz":
        lengths = [len(sound) for sound in sounds.values()]
        np.savez(
            folder / "fsdd.npz",
            audio=np.concatenate(list(sounds.values())),
            length=lengths,
            label=[key[0] for key in sounds],
            index=[key[2] for key in sounds],
        )
    else:
        recordings = folder / "free-spoken-digit-dataset" / "recordings"
        recordings.mkdir(parents=True)
        for (digit, speaker, index), sound in sounds.items():
            scipy.io.wavfile.write(recordings / f"{digit}_{speaker}_{index}.wav", 8000, sound)
    train, test = hj.data.spoken_digits(steps=60, channels=16)
    assert (train.inputs.shape, test.inputs.shape) == ((60, 2, 32), (60, 1, 32))
    assert sorted(train.targets.tolist()) == [0, 7]
    assert test.targets.tolist() == [3]
    assert test.mask.sum() == 20
    assert sorted(train.mask.sum(0).tolist()) == [40, 60]
    assert test.inputs[:20].sum() > 0
    assert hj.data.spoken_digits("rate", steps=60, channels=16)[0].inputs.dtype == bool
    assert hj.data.spoken_digits("none", steps=60, channels=16)[0].inputs.max() == 1.0
    with pytest.raises(ValueError, match="level_crossing, rate, none, got 'phase'"):
        hj.data.spoken_digits("phase")
    for options, words in [
        ({"hop": 5}, r"hop is in seconds.*hop=0\.005"),
        ({"steps": 0}, "steps"),
        ({"threshold": 0}, "thr"),
    ]:
        with pytest.raises(ValueError, match=f"spoken_digits: {words}"):
            hj.data.spoken_digits(**options)


LOADERS = {
    "QTDB_train.mat": hj.data.ecg_qtdb,
    "shd_train.h5": hj.data.heidelberg_digits,
    "ssc_train.h5": hj.data.speech_commands,
    "train-images-idx3-ubyte": hj.data.sequential_mnist,
    "fsdd.npz": hj.data.spoken_digits,
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_file_says_what_to_fetch_and_where_to_put_it(folder, name):
    with pytest.raises(FileNotFoundError) as error:
        LOADERS[name]()
    for part in ("https://", str(folder), "cache", "HYPRJAX_DATA"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 20])
def test_a_damaged_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged or not the expected file") as error:
        LOADERS[name]()
    assert str(folder / name) in str(error.value)


# --- from sound to spikes -------------------------------------------------------------------------


def test_mel_spectrogram_finds_the_frequency():
    low, high = (hj.data.mel_spectrogram(tone(f), 8000).mean(0).argmax() for f in (300, 3000))
    assert low < 12
    assert high > 30
    assert not hj.data.mel_spectrogram(np.zeros(4000), 8000).any()


@pytest.mark.parametrize(
    ("audio", "options", "words"),
    [
        (np.ones((8000, 2)), {}, r"audio must be \[samples\], its shape is \(8000, 2\)"),
        (np.array([0.0, np.nan] * 500), {}, r"audio\[1\] is nan"),
        (np.ones(8000), {"hop": 5}, "a hop of 5 seconds is 40000"),
        (np.ones(0), {}, "of the sound's 0"),
        (np.ones(8000), {"window": 1e-4}, "is 1 samples"),
        (np.ones(8000), {"channels": 0}, "channels must be an int of at least 1"),
        (np.ones(8000), {"channels": 300}, "300 channels are more than a window of 0.025 seconds can tell apart"),
        (np.ones(8000), {"floor": -60.0}, "floor must be positive"),
    ],
)
def test_sounds_without_a_spectrogram(audio, options, words):
    with pytest.raises(ValueError, match=f"mel_spectrogram: .*{words}"):
        hj.data.mel_spectrogram(audio, 8000, **options)


def test_rate_coding_of_what_is_no_probability():
    assert hj.data.rate_coding([[0.5] * 1000], seed=1).mean() == pytest.approx(0.25, abs=0.05)
    for signal, probability, words in [
        (np.array([[np.nan]]), 0.5, r"signal\[0, 0\] is nan"),
        (np.ones((2, 2)), 2.0, "probability must be .* from 0 to 1, got 2"),
        (np.ones((2, 2)), -1.0, "probability must be .* from 0 to 1, got -1"),
    ]:
        with pytest.raises(ValueError, match=f"rate_coding: {words}"):
            hj.data.rate_coding(signal, probability)


def test_level_crossings_follow_the_signal():
    signal = np.cumsum(np.random.default_rng(0).normal(0, 0.2, (300, 5)), 0)
    up, down = np.split(hj.data.level_crossing(signal, 0.1).astype(int), 2, axis=1)
    assert np.abs(0.1 * np.cumsum(up - down, 0) - signal).max() <= 0.1 + 1e-6
    assert (up * down == 0).all()


def crossings(signal, threshold):
    """One event after the other, each a level up or down; 255 of them in a step at most."""
    events = np.zeros((len(signal), 2 * signal.shape[1]), int)
    for channel in range(signal.shape[1]):
        level = 0
        for t in range(len(signal)):
            while signal[t, channel] >= (level + 1) * threshold and events[t, channel] < 255:
                level, events[t, channel] = level + 1, events[t, channel] + 1
            while signal[t, channel] <= (level - 1) * threshold and events[t, signal.shape[1] + channel] < 255:
                level, events[t, signal.shape[1] + channel] = level - 1, events[t, signal.shape[1] + channel] + 1
    return events


@pytest.mark.parametrize("threshold", [0.125, 0.5, 3.0])  # exact in binary, so that both sides agree on a level reached
def test_the_rest_of_a_jump_of_more_than_255_levels_comes_in_the_next_steps(threshold):
    signal = np.array([[0, 0, 1], [100, -90, 2], [100, -90, -400], [100, -90, 0], [-20, 300, 0.4], [100, 7, 1.6]])
    signal = np.concatenate([signal, np.repeat(signal[-1:], 20, axis=0)])
    events = hj.data.level_crossing(signal, threshold)
    assert (events == crossings(signal, threshold)).all()
    assert events.max() == (255 if threshold < 3 else 133)
    up, down = np.split(events.astype(int), 2, axis=1)
    assert (np.abs(threshold * (up - down).sum(0) - signal[-1]) < threshold).all()


def test_level_crossings_of_numbers_beyond_those_of_an_int():
    events = hj.data.level_crossing(np.array([[1e300], [1e300], [-1e300]]), 1e-3)
    assert events.tolist() == [[255, 0], [255, 0], [0, 255]]
    assert hj.data.level_crossing(np.zeros((0, 3))).shape == (0, 6)
    assert hj.data.level_crossing(np.array([[0], [3]], np.uint8), 1).tolist() == [[0, 0], [3, 0]]
    assert hj.data.level_crossing(jnp.array([[0.5]], jnp.bfloat16)).tolist() == [[5, 0]]


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (np.zeros(5), r"signal must be \[T, channels\], its shape is \(5,\); .*signal\[:, None\]"),
        (np.zeros((5, 2, 3)), r".* shape is \(5, 2, 3\); encode one sequence"),
        (np.array([[0.0, 1.0], [0.0, np.nan]]), r"signal\[1, 1\] is nan; fill gaps"),
        (np.array([[np.inf, 1.0]]), r"signal\[0, 0\] is inf"),
        (np.ones((2, 2), complex), "signal must hold real numbers, its dtype is complex128"),
        ([["a", "b"]], "signal must hold real numbers"),
    ],
)
def test_signals_that_cannot_be_encoded(signal, words):
    with pytest.raises(ValueError, match=f"level_crossing: {words}"):
        hj.data.level_crossing(signal)


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan, np.inf, None, "0.1x", np.array([0.1, 0.2])])
def test_thresholds_that_are_no_level(threshold):
    with pytest.raises(ValueError, match="level_crossing: threshold must be positive, one finite number, got"):
        hj.data.level_crossing(np.zeros((3, 2)), threshold)


# --- synthetic tasks ------------------------------------------------------------------------------


def test_evidence_accumulation():
    task = hj.data.evidence_accumulation(200, seed=0, rate=0.5, noise=0.0)
    sides = task.inputs[:1050].reshape(7, 150, 200, 4, 10)[:, :100].any(axis=(1, 4))
    assert (sides[..., 0] ^ sides[..., 1]).all()
    assert (task.targets == (sides[..., 1].sum(0) > 3)).all()
    assert 0.3 < task.targets.mean() < 0.7
    assert not task.inputs[1050:-150].any()
    assert (task.inputs[..., 20:30].any((0, 2))).all()
    assert (task.mask.sum(0) == 150).all()


def test_delayed_match():
    task = hj.data.delayed_match(200, seed=0, rate=0.5)
    symbols = task.inputs.reshape(350, 200, 4, 5).any(-1)
    assert (task.targets == (symbols[:50].any(0) == symbols[250:300].any(0)).all(-1)).all()
    assert not symbols[50:250].any()
    assert 0.3 < task.targets.mean() < 0.7


def test_pattern_generation():
    task = hj.data.pattern_generation(2, seed=0)
    assert task.targets.shape == (2000, 2, 3)
    assert np.abs(task.targets).max() == 1
    assert np.allclose(np.fft.rfft(task.targets, axis=0)[9:], 0, atol=1e-2)  # nothing beyond 4 Hz


def test_the_seed_decides():
    for make in (hj.data.evidence_accumulation, hj.data.delayed_match, hj.data.pattern_generation):
        assert np.array_equal(make(3, seed=1).inputs, make(3, seed=1).inputs)
        assert not np.array_equal(make(3, seed=1).inputs, make(3, seed=2).inputs)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (
            hj.data.evidence_accumulation,
            {"recall_steps": 0, "cue_steps": 0, "cues": -1, "delay_steps": -5, "noise": 2.0},
        ),
        (hj.data.delayed_match, {"recall_steps": 0, "cue_steps": 0.5, "group": 0, "delay_steps": -1, "symbols": 1}),
        (hj.data.pattern_generation, {"steps": 0, "channels": 0, "outputs": 0}),
    ],
)
def test_tasks_that_cannot_be_made(make, options):
    for name, value in (options | {"rate": 40.0, "n": 0}).items():
        with pytest.raises(ValueError, match=f"{make.__name__}: {name} must be .*, got {value}"):
            make(**({"n": 2} | {name: value}), seed=0)
    with pytest.raises(ValueError, match="rate must be a probability per step"):
        make(2, seed=0, rate=np.nan)


def test_digits_that_cannot_be_shown():
    for options in ({"hold": 0}, {"hold": 2.5}, {"test_fraction": 30}):
        with pytest.raises(ValueError, match=f"digits: {next(iter(options))} must be"):
            hj.data.digits(**options)


# --- the real files -------------------------------------------------------------------------------

DATA = Path(os.environ.get("HYPRJAX_DATA", "no data"))


@pytest.mark.skipif(not (DATA / "QTDB_train.mat").exists(), reason="HYPRJAX_DATA has no ECG-QTDB")
def test_real_ecg():
    train, test = hj.data.ecg_qtdb()
    assert (train.inputs.shape, test.inputs.shape) == ((1300, 618, 4), (1300, 141, 4))
    assert set(np.unique(train.inputs)) == {0, 1}
    assert np.bincount(train.targets.ravel()).max() / train.targets.size == pytest.approx(0.327, abs=0.002)


@pytest.mark.skipif(not (DATA / "fsdd.npz").exists(), reason="HYPRJAX_DATA has no Free Spoken Digits")
def test_real_spoken_digits():
    train, test = hj.data.spoken_digits(steps=100)
    assert (train.size, test.size) == (2700, 300)
    assert np.bincount(test.targets).tolist() == [30] * 10
    assert 0.01 < train.inputs.mean() < 0.5
