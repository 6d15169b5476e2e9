"""Free Spoken Digits, and the way from sound to spikes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io.wavfile
import scipy.signal
from numpy.typing import ArrayLike

from hyprjax.data import _check, _files
from hyprjax.data._dataset import Dataset

_RATE = 8000


def mel_spectrogram(
    audio: ArrayLike, rate: float, *, channels: int = 40, hop: float = 0.005, window: float = 0.025, floor: float = 60.0
) -> np.ndarray:
    """Loudness of a sound in bands of equal width on the mel scale.

    Args:
      audio: samples `[samples]`.
      rate: samples per second.
      channels: number of bands, from 50 Hz to half the rate.
      hop: seconds per step.
      window: seconds of sound that a step looks at (Hann window).
      floor: decibels below the loudest band of the sound that count as silence.

    Returns:
      `[T, channels]` float32, from 0 (silence) to 1 (the loudest), in decibels between.

    Raises:
      ValueError: a sound that is not `[samples]`, not finite or shorter than a step, lengths that are not positive, or
        more channels than the window can tell apart.

    Examples:
      >>> import numpy as np, hyprjax as hj, hyprjax.data
      >>> tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
      >>> hj.data.mel_spectrogram(tone, 8000, channels=20).shape
      (200, 20)
    """
    for name, value in {"rate": rate, "hop": hop, "window": window, "floor": floor}.items():
        _check.positive("mel_spectrogram", name, value)
    audio, step, size = _check.finite("mel_spectrogram", "audio", audio), round(hop * rate), round(window * rate)
    if audio.ndim != 1:
        raise ValueError(
            f"mel_spectrogram: audio must be [samples], its shape is {audio.shape}; mix its channels first"
        )
    if not (1 <= step <= len(audio) and size >= 3):
        raise ValueError(
            f"mel_spectrogram: at {rate} samples per second a hop of {hop} seconds is {step} and a window of {window} "
            f"is {size} samples of the sound's {len(audio)}; a hop must be 1 sample at least, a window 3"
        )
    transform = scipy.signal.ShortTimeFFT(np.hanning(size), step, rate, mfft=max(512, size))
    padded = np.pad(audio, (0, max(0, size - len(audio))))
    power = np.abs(transform.stft(padded, p0=0, p1=len(audio) // step)) ** 2
    filters = _mel_filters(transform.f, _check.whole("mel_spectrogram", "channels", channels))
    if not filters.any(1).all():
        raise ValueError(
            f"mel_spectrogram: {channels} channels are more than a window of {window} seconds can tell apart; take "
            "fewer, or a longer window"
        )
    if not audio.any():
        return np.zeros((power.shape[1], channels), np.float32)
    bands = filters @ power
    decibels = 10 * np.log10(np.maximum(bands, 1e-12 * bands.max() + 1e-30))
    return np.clip(1 + (decibels - decibels.max()) / floor, 0, 1).T.astype(np.float32)


def _mel_filters(frequencies: np.ndarray, channels: int, low: float = 50.0) -> np.ndarray:
    """Triangles `[channels, frequencies]` between points equally spaced in mel, m = 2595 log10(1 + f / 700)."""
    mel = lambda f: 2595 * np.log10(1 + f / 700)  # noqa: E731
    points = np.interp(np.linspace(mel(low), mel(frequencies[-1]), channels + 2), mel(frequencies), frequencies)
    left, centre, right = points[:-2, None], points[1:-1, None], points[2:, None]
    rise, fall = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    return np.maximum(0, np.minimum(rise, fall))


def level_crossing(signal: ArrayLike, threshold: float = 0.1) -> np.ndarray:
    """Events where a signal has moved by a threshold since its last event.

    Args:
      signal: `[T, channels]`, finite.
      threshold: size of a level, > 0, the same for all channels.

    Returns:
      `[T, 2 * channels]` uint8, levels crossed upward, then downward, at every step; the signal starts from 0. A step
      has up to 255 events per channel; where the signal jumps further, the others come in the next steps.

    Raises:
      ValueError: a signal that is not `[T, channels]`, not real or not finite, or `threshold` is not a positive number.

    Examples:
      >>> import numpy as np, hyprjax as hj, hyprjax.data
      >>> hj.data.level_crossing(np.array([[0.0], [0.25], [0.3], [0.0]]), threshold=0.1).tolist()
      [[0, 0], [2, 0], [1, 0], [0, 3]]
    """
    signal, threshold = (
        _check.signal("level_crossing", signal),
        _check.positive("level_crossing", "threshold", threshold),
    )
    steps, channels = signal.shape
    level = np.zeros(channels)
    events = np.zeros((steps, 2, channels), np.uint8)
    for t, value in enumerate(signal):
        moved = np.trunc(np.round(np.clip(value / threshold - level, -255, 255), 6))
        events[t] = np.maximum(moved, 0), np.maximum(-moved, 0)
        level += moved
    return events.reshape(steps, 2 * channels)


def rate_coding(signal: ArrayLike, probability: float = 0.5, *, seed: int = 0) -> np.ndarray:
    """Independent spikes, at every step with `probability` times the signal, which is clipped to [0, 1].

    Raises:
      ValueError: a signal that is not real or not finite, or a `probability` outside of [0, 1].

    Examples:
      >>> import numpy as np, hyprjax as hj, hyprjax.data
      >>> hj.data.rate_coding(np.array([[0.0, 1.0]]), probability=1.0).tolist()
      [[False, True]]
    """
    signal = _check.finite("rate_coding", "signal", signal)
    probability = _check.probability("rate_coding", "probability", probability)
    return np.random.default_rng(seed).random(signal.shape) < probability * np.clip(signal, 0, 1)


def spoken_digits(
    encoding: str = "level_crossing",
    *,
    steps: int = 160,
    hop: float = 0.005,
    channels: int = 40,
    threshold: float = 0.1,
) -> tuple[Dataset, Dataset]:
    """Free Spoken Digits: 3,000 recordings of 0 to 9 by six speakers, as spikes of a mel filter bank.

    Args:
      encoding: `"level_crossing"` (two channels per band), `"rate"` (spikes with a probability of half the loudness)
        or `"none"` (the loudness itself).
      steps: length T of a sequence; what is longer is cut off, what is shorter is padded and masked.
      hop: seconds per step.
      channels: bands of the filter bank.
      threshold: of the level crossing.

    Returns:
      Training and test set, 2,700 and 300 recordings (the data set's split, indices below 5 are the test) and a label
      per sequence.

    Raises:
      FileNotFoundError: neither `fsdd.npz` nor the data set's folder `recordings` is there.
      ValueError: unknown `encoding`, damaged files, `steps` or `channels` that is no int of at least 1, `threshold`
        that is not positive, or `hop` no positive number below 1 second.

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> train, test = hj.data.spoken_digits(encoding="rate")  # doctest: +SKIP
    """
    encoders = {
        "level_crossing": lambda signal, i: level_crossing(signal, threshold),
        "rate": lambda signal, i: rate_coding(signal, seed=i),
        "none": lambda signal, i: signal,
    }
    if encoding not in encoders:
        raise ValueError(f"spoken_digits: encoding must be one of {', '.join(encoders)}, got {encoding!r}")
    for name, value in {"steps": steps, "channels": channels}.items():
        _check.whole("spoken_digits", name, value)
    hop = _check.seconds("spoken_digits", "hop", hop)
    threshold = _check.positive("spoken_digits", "threshold", threshold)
    sounds, labels, test = _recordings()
    sequences = []
    for i, sound in enumerate(sounds):
        signal = mel_spectrogram(sound[: round(steps * hop * _RATE)], _RATE, channels=channels, hop=hop)
        sequences.append(encoders[encoding](signal, i))
    inputs = np.zeros((steps, len(sequences), sequences[0].shape[1]), sequences[0].dtype)
    mask = np.zeros(inputs.shape[:2], bool)
    for i, sequence in enumerate(sequences):
        inputs[: len(sequence), i] = sequence[:steps]
        mask[: len(sequence), i] = True
    whole = Dataset(inputs, labels, mask)
    return whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test))


def _recordings() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """All recordings, their labels, and which are of the test set; from one file or the data set's own folder."""
    for folder in _files.folders():
        if (folder / "fsdd.npz").exists():
            return _files.read(folder / "fsdd.npz", _from_npz)
        for recordings in (folder / "free-spoken-digit-dataset" / "recordings", folder / "recordings"):
            if recordings.is_dir():
                return _files.read(recordings, _from_wav)
    where = " or ".join(str(folder) for folder in _files.folders())
    raise FileNotFoundError(
        "Free Spoken Digits were not found; clone https://github.com/Jakobovski/free-spoken-digit-dataset into "
        f"{where}, or set HYPRJAX_DATA to the folder that has it"
    )


def _from_npz(path: Path):
    with np.load(path) as content:
        sounds = np.split(content["audio"], np.cumsum(content["length"])[:-1])
        return sounds, content["label"].astype(np.int32), content["index"] < 5


def _from_wav(folder: Path):
    """Files are named `digit_speaker_index.wav`."""
    paths = sorted(folder.glob("*_*_*.wav"))
    if not paths:
        raise ValueError("it has no file like 7_jackson_32.wav")
    names = [path.stem.split("_") for path in paths]
    sounds = [scipy.io.wavfile.read(path)[1] for path in paths]
    return sounds, np.array([int(name[0]) for name in names], np.int32), np.array([int(name[2]) < 5 for name in names])
