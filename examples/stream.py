"""Learning that never ends: a spiking network tracks a process that drifts, online, one segment after another.

Two ECG-like leads arrive as level-crossing spikes; the network tells what the first lead was some steps ago, longer
than a segment lasts, and updates after every segment. Every so often the electrodes are swapped or reversed, and it has
to learn anew. The same network frozen after the first regime, and one trained by truncated BPTT on the same segments,
run beside it. Memory stays what it was, for a million steps or for ever; a run that was killed continues where it was
with --resume.

    python examples/stream.py --steps 1000000 --checkpoints stream-run
"""

import argparse
import resource
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from checkpoints import Checkpoints
from tqdm import tqdm

import hyprjax as hj

CELL, READOUT = hj.brf(omega=(3.0, 20.0), b_offset=(0.1, 2.0)), hj.leaky_integrator(tau=3.0)
CELLS = {"hidden": CELL, "readout": READOUT}
NEURONS, LEARNING_RATE = 64, 1e-2


# --- the process ----------------------------------------------------------------------------------


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
    from scipy.signal import lfilter

    steps = events[:, :2].astype(float) - events[:, 2:]
    return lfilter([1.0], [1.0, -np.exp(-1 / tau)], steps, axis=0)


# --- the learners ---------------------------------------------------------------------------------


def loss_fn(params, xs):
    """Mean squared error; the same function for HYPR and for truncated BPTT."""
    spikes = hj.unroll(CELL, params["hidden"], xs["inputs"])
    return jnp.square(hj.unroll(READOUT, params["readout"], spikes) - xs["targets"]).mean()


def init_params(key):
    k1, k2 = jax.random.split(key)
    return {
        "hidden": hj.init_layer(k1, CELL, 4, NEURONS, recurrent=True),
        "readout": hj.init_layer(k2, READOUT, NEURONS, 1),
    }


LEARNER, STREAM = hj.hypr_stream(loss_fn), hj.stream(loss_fn)


def truncated_bptt(params, carry, xs):
    """`LEARNER.value_and_grad` without traces: backpropagation within the segment."""
    (loss, carry), grads = jax.value_and_grad(STREAM.apply, has_aux=True)(params, carry, xs)
    return (loss, grads), carry


RULES = {"hypr": (LEARNER.init, LEARNER.value_and_grad), "truncated bptt": (STREAM.init, truncated_bptt)}
# A segment whose loss or gradient is not finite changes nothing: no update here, no carry in `learn`.
OPTIMISER = optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE)), 1_000_000)


class Learning(NamedTuple):
    """All that a learner is."""

    params: dict
    optimiser: optax.OptState
    carry: tuple


def start(rule, key, xs):
    params = init_params(key)
    return Learning(params, OPTIMISER.init(params), RULES[rule][0](params, xs))


def learn(rule, state: Learning, xs):
    """One segment: loss, gradient, update."""
    (loss, grads), carry = RULES[rule][1](state.params, state.carry, xs)
    updates, optimiser = OPTIMISER.update(grads, state.optimiser, state.params)
    kept = jax.tree.map(lambda new, old: jnp.where(optimiser.last_finite, new, old), carry, state.carry)
    params = hj.project(CELLS, optax.apply_updates(state.params, updates))
    return Learning(params, optimiser, kept), loss


@jax.jit
def step(learners, frozen, key, index, xs):
    """One segment for every learner, and for the frozen network; one event in fifty is lost on its way."""
    key = jax.random.fold_in(jax.random.wrap_key_data(key), index)
    xs = {**xs, "inputs": xs["inputs"] * jax.random.bernoulli(key, 0.98, xs["inputs"].shape)}
    results = {rule: learn(rule, state, xs) for rule, state in learners.items()}
    loss, carry = STREAM.apply(frozen["params"], frozen["carry"], xs)
    losses = {rule: loss for rule, (_, loss) in results.items()} | {"frozen": loss}
    return {rule: state for rule, (state, _) in results.items()}, {**frozen, "carry": carry}, losses


# --- the run --------------------------------------------------------------------------------------


def main(arguments=None):
    options = parse_arguments(arguments)
    process = Process(options.regime, options.lag, options.source)
    length, segments = options.segment_length, options.steps // options.segment_length
    first = process.segment(0, length)
    key = jax.random.key(options.seed)
    learners = {rule: start(rule, key, first) for rule in RULES}
    params = learners["hypr"].params
    state = {
        "learners": learners,
        "frozen": {"params": params, "carry": STREAM.init(params, first)},
        "losses": {name: np.full(segments, np.nan, np.float32) for name in (*RULES, "frozen")},
        "key": jax.random.key_data(key),
    }
    settings = {name: value for name, value in vars(options).items() if name not in NOT_SETTINGS}
    settings["source"] = process.source
    saved = Checkpoints(options.checkpoints, settings) if options.checkpoints else None
    begin = 0
    if saved and (found := saved.restore(state)):
        if not options.resume:
            raise SystemExit(f"{options.checkpoints} has a run at segment {found[0]}: go on with --resume")
        begin, state = found
        state["losses"] = {name: np.array(losses) for name, losses in state["losses"].items()}

    memory, clock, running = {}, [], None
    progress = tqdm(range(begin, segments), initial=begin, total=segments, unit="segment", smoothing=0.01)
    for index in progress:
        if index * length == options.regime:
            state["frozen"] = {**state["frozen"], "params": state["learners"]["hypr"].params}
        xs = process.segment(index * length, length)
        state["learners"], state["frozen"], losses = step(state["learners"], state["frozen"], state["key"], index, xs)
        for name, loss in losses.items():
            state["losses"][name][index] = loss
        running = float(losses["hypr"]) if running is None else 0.99 * running + 0.01 * float(losses["hypr"])
        if index % 50 == 0:
            progress.set_postfix(loss=f"{running:.3f}")
        if index % max(1, segments // 10) == 0 or index + 1 == segments:
            clock.append((index * length, time.perf_counter()))
        if index in (begin + 200, segments - 1):
            memory[index] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        if saved and ((index + 1) % options.save_every == 0 or index + 1 == segments):
            saved.save(index + 1, state)
    report(options, state, memory, clock)
    return state


def report(options, state, memory, clock):
    """The table and the picture."""
    length, per_regime = options.segment_length, options.regime // options.segment_length
    losses_of = {name: state["losses"][name] for name in (*RULES, "frozen")}
    print(f"\nmean squared error after the first drift, {len(state['losses']['hypr']) * length:,} steps")
    for name, losses in losses_of.items():
        print(f"  {name:<16}{np.nanmean(losses[per_regime:]):.4f}" if len(losses) > per_regime else f"  {name:<16}-")
    skipped = {rule: int(learner.optimiser.total_notfinite) for rule, learner in state["learners"].items()}
    print("segments left out because they were not finite: " + ", ".join(f"{r} {n}" for r, n in skipped.items()))
    if len(memory) == 2:
        early, late = memory.values()
        print(f"peak memory {early:.0f} MB after 200 segments, {late:.0f} MB at the end")
    if len(clock) > 3:
        pace = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(clock)]
        print(f"steps per second: {pace[1]:.0f} in the second tenth, {pace[-1]:.0f} in the last")
    figure, axes = plt.subplots(2, 1, figsize=(10, 6), layout="constrained")
    window = max(1, min(100, per_regime // 10))
    before, after, smoothing = per_regime // 50, per_regime // 20, max(1, per_regime // 400)
    for name, losses in losses_of.items():
        smooth = np.convolve(losses, np.ones(window) / window, "valid")
        axes[0].plot((np.arange(len(smooth)) + window) * length, smooth, lw=1, label=name)
        drifts = [losses[d - before : d + after] for d in range(per_regime, len(losses) - after + 1, per_regime)]
        if drifts:
            mean = np.convolve(np.mean(drifts, 0), np.ones(smoothing) / smoothing, "valid")
            axes[1].plot((np.arange(len(mean)) + smoothing - before) * length, mean, lw=1, label=name)
    for drift in range(options.regime, options.steps, options.regime):
        axes[0].axvline(drift, color="gray", lw=0.5)
    axes[1].axvline(0, color="gray", lw=0.5)
    axes[0].set(xlabel="step", ylabel="mean squared error", title="error; gray lines: drifts", yscale="log")
    axes[1].set(
        xlabel="steps after a drift", ylabel="mean squared error", title="around a drift, mean of all", yscale="log"
    )
    axes[0].legend(ncols=3, fontsize=8)
    figure.savefig(options.figure, dpi=120)
    plt.close(figure)
    print(f"saved {options.figure}")


NOT_SETTINGS = ("checkpoints", "resume", "save_every", "figure")  # may differ when a run goes on


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000, help="time steps")
    parser.add_argument("--segment-length", type=int, default=10, help="steps per update")
    parser.add_argument("--regime", type=int, default=100_000, help="steps between drifts")
    parser.add_argument("--lag", type=int, default=50, help="how many steps ago")
    parser.add_argument("--source", choices=["auto", "ecg", "synthetic"], default="auto", help="see Process")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters")
    parser.add_argument("--checkpoints", type=Path, help="folder to save to")
    parser.add_argument("--save-every", type=int, default=5000, help="segments between checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument("--figure", type=Path, default=Path("stream.png"), help="where to save the picture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
