"""The endless signal of `stream.py`: two ECG-like leads as level-crossing spikes, which drift every so often."""

import jax.numpy as jnp
import numpy as np
from scipy.signal import lfilter


class Process:
    """An endless real-valued signal of two leads; every part of it is a function of its position alone.

    `"ecg"`: the level crossings of the 618 recordings of ECG-QTDB, end to end, and leads rebuilt from them.
    `"synthetic"`: two beats of drifting rate. `"auto"`: ECG-QTDB where it is to be had.
    """

    def __init__(self, regime: int, lag: int, source: str):
        self.regime, self.lag = regime, lag
        try:
            self.source = "synthetic" if source == "synthetic" else "ecg"
            self.events, lead = {"ecg": ecg, "synthetic": synthetic}[self.source]()
        except FileNotFoundError as error:
            if source == "ecg":
                raise
            print(f"a synthetic process instead of ECG-QTDB: {error}")
            self.source, (self.events, lead) = "synthetic", synthetic()
        self.lead = (lead - lead.mean(0)) / lead.std(0)

    def segment(self, start: int, length: int):
        """Inputs `[length, 1, 4]` and targets `[length, 1, 1]`."""
        at = np.arange(start, start + length)
        swapped, sign = (at // self.regime) % 2, 1 - 2 * ((at // self.regime) % 3 == 2)
        lead = self.lead[(at - self.lag) % len(self.lead)]
        targets = sign * np.where(swapped, lead[:, 1], lead[:, 0])
        inputs = self.events[at % len(self.events)]
        return {
            "inputs": jnp.asarray(inputs[:, None], jnp.float32),
            "targets": jnp.asarray(targets[:, None, None], jnp.float32),
        }


def ecg():
    """Level crossings `[steps, 4]` of ECG-QTDB, and the leads that they add up to, `[steps, 2]`."""
    from hyprjax.data import ecg_qtdb

    events = ecg_qtdb()[0].inputs.transpose(1, 0, 2).reshape(-1, 4)
    return events, rebuild(events)


def synthetic(steps: int = 800_000, seed: int = 0):
    """Two beats with harmonics whose rate wanders, and their level crossings."""
    from hyprjax.data import level_crossing

    rng = np.random.default_rng(seed)
    rate = 1 + 0.3 * np.sin(2 * np.pi * np.arange(steps) / 40_000 + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(rate) / 150
    signal = np.stack([np.sin(phase) + 0.5 * np.sin(3 * phase), np.cos(phase) + 0.5 * np.sin(2 * phase)], 1)
    events = np.minimum(level_crossing(signal, 0.2), 1)
    return events, rebuild(events)


def rebuild(events, tau: float = 100.0):
    """A leaky sum of up minus down crossings."""
    steps = events[:, :2].astype(float) - events[:, 2:]
    return lfilter([1.0], [1.0, -np.exp(-1 / tau)], steps, axis=0)
