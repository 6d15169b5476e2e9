"""Tasks made on the fly: the same seed gives the same data."""

from __future__ import annotations

import numpy as np

from hyprjax.data import _check
from hyprjax.data._dataset import Dataset


def evidence_accumulation(
    n: int,
    *,
    seed: int,
    cues: int = 7,
    cue_steps: int = 100,
    gap_steps: int = 50,
    delay_steps: int = 1000,
    recall_steps: int = 150,
    channels: int = 40,
    rate: float = 0.04,
    noise: float = 0.01,
) -> Dataset:
    """Count cues on the left and on the right, wait, and say which side had more (Bellec et al. 2020).

    Four groups of channels: left cues, right cues, the signal to answer, and background noise.

    Args:
      n: number of sequences.
      seed: of the data.
      cues: number of cues, odd; each comes from the side that is right with a probability of 0.7.
      cue_steps: length of a cue.
      gap_steps: silence after a cue.
      delay_steps: wait after the last gap.
      recall_steps: length of the signal to answer.
      channels: input channels, a multiple of 4.
      rate: spike probability per step of a group that is on.
      noise: spike probability per step of the background noise.

    Returns:
      Binary inputs and a label per sequence, 0 for left and 1 for right; the mask is the recall. Defaults are the
      paper's, steps of 1 ms, and the middle of its delays.

    Raises:
      ValueError: `cues` is even, `channels` no multiple of 4, a number of steps or sequences that is no int of at least
        1 (of pauses at least 0), or `rate` or `noise` outside of [0, 1].

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> hj.data.evidence_accumulation(5, seed=0).inputs.shape
      (2200, 5, 40)
    """
    if cues % 2 == 0 or channels % 4 or channels < 4:
        raise ValueError(f"evidence_accumulation: cues must be odd ({cues}), channels a multiple of 4 ({channels})")
    _check.probability("evidence_accumulation", "noise", noise)
    _common("evidence_accumulation", rate, n=n, cues=cues, cue_steps=cue_steps, recall_steps=recall_steps)
    _pauses("evidence_accumulation", gap_steps=gap_steps, delay_steps=delay_steps)
    rng = np.random.default_rng(seed)
    group = channels // 4
    sides = (rng.random((n, cues)) < 0.7) == (rng.random((n, 1)) < 0.5)
    steps = cues * (cue_steps + gap_steps) + delay_steps + recall_steps
    probability = np.zeros((steps, n, 4))
    for i in range(cues):
        start = i * (cue_steps + gap_steps)
        probability[start : start + cue_steps, np.arange(n), sides[:, i].astype(int)] = rate
    probability[-recall_steps:, :, 2] = rate
    probability[:, :, 3] = noise
    inputs = rng.random((steps, n, channels)) < np.repeat(probability, group, axis=-1)
    return Dataset(inputs, (sides.sum(1) > cues // 2).astype(np.int32), _last(recall_steps, steps, n))


def delayed_match(
    n: int,
    *,
    seed: int,
    symbols: int = 4,
    cue_steps: int = 50,
    delay_steps: int = 200,
    recall_steps: int = 50,
    group: int = 5,
    rate: float = 0.2,
) -> Dataset:
    """Delayed match to sample: was the symbol after the delay the one before it?

    Args:
      n: number of sequences.
      seed: of the data.
      symbols: number of symbols, each a group of channels that is on.
      cue_steps: length of a symbol.
      delay_steps: silence between sample and test.
      recall_steps: silence after the test, in which the answer counts.
      group: channels per symbol.
      rate: spike probability per step of a group that is on.

    Returns:
      Binary inputs and a label per sequence, 1 for a match (half of all); the mask is the recall.

    Raises:
      ValueError: fewer than two symbols, a number of steps, channels or sequences that is no int of at least 1 (of
        `delay_steps` at least 0), or `rate` outside of [0, 1].

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> hj.data.delayed_match(5, seed=0).inputs.shape
      (350, 5, 20)
    """
    _check.whole("delayed_match", "symbols", symbols, 2)
    _common("delayed_match", rate, n=n, cue_steps=cue_steps, recall_steps=recall_steps, group=group)
    _pauses("delayed_match", delay_steps=delay_steps)
    rng = np.random.default_rng(seed)
    sample, match = rng.integers(symbols, size=n), rng.random(n) < 0.5
    other = (sample + rng.integers(1, symbols, size=n)) % symbols
    steps = 2 * cue_steps + delay_steps + recall_steps
    probability = np.zeros((steps, n, symbols))
    probability[:cue_steps, np.arange(n), sample] = rate
    probability[-recall_steps - cue_steps : -recall_steps, np.arange(n), np.where(match, sample, other)] = rate
    inputs = rng.random((steps, n, symbols * group)) < np.repeat(probability, group, axis=-1)
    return Dataset(inputs, match.astype(np.int32), _last(recall_steps, steps, n))


def pattern_generation(
    n: int, *, seed: int, steps: int = 2000, channels: int = 100, outputs: int = 3, rate: float = 0.01
) -> Dataset:
    """Turn frozen noise into smooth curves (Bellec et al. 2020).

    Args:
      n: number of input patterns, each with curves of its own.
      seed: of the data.
      steps: length T.
      channels: input channels.
      outputs: curves per pattern: sums of 0.5, 1, 2, 3 and 4 Hz with random amplitudes and phases, steps of 1 ms,
        scaled to [-1, 1].
      rate: spike probability per step.

    Returns:
      Binary inputs and real targets `[T, n, outputs]`; every step counts.

    Raises:
      ValueError: a size that is no int of at least 1, or `rate` outside of [0, 1].

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> hj.data.pattern_generation(2, seed=0).targets.shape
      (2000, 2, 3)
    """
    _common("pattern_generation", rate, n=n, steps=steps, channels=channels, outputs=outputs)
    rng = np.random.default_rng(seed)
    inputs = rng.random((steps, n, channels)) < rate
    frequencies = np.array([0.5, 1.0, 2.0, 3.0, 4.0])
    amplitudes, phases = rng.uniform(0.5, 2.0, (n, outputs, 5)), rng.uniform(0, 2 * np.pi, (n, outputs, 5))
    angle = 2e-3 * np.pi * frequencies * np.arange(steps)[:, None, None, None] + phases
    targets = (amplitudes * np.sin(angle)).sum(-1)
    targets = (targets / np.abs(targets).max(0)).astype(np.float32)
    return Dataset(inputs, targets, np.ones((steps, n), bool))


def _common(function: str, rate: float, **sizes: int) -> None:
    """What all tasks check."""
    _check.probability(function, "rate", rate)
    for name, size in sizes.items():
        _check.whole(function, name, size)


def _pauses(function: str, **steps: int) -> None:
    for name, length in steps.items():
        _check.whole(function, name, length, 0)


def _last(recall_steps: int, steps: int, n: int) -> np.ndarray:
    return np.repeat((np.arange(steps) >= steps - recall_steps)[:, None], n, axis=1)
