"""Learning that never ends: a spiking network tracks a process that drifts, online, one segment after another.

Two ECG-like leads arrive as level-crossing spikes; the network tells what the first lead was some steps ago, longer
than a segment lasts, and updates after every segment. Every so often the electrodes are swapped or reversed, and it has
to learn anew. The same network frozen after the first regime, and one trained by truncated BPTT on the same segments,
run beside it. Memory stays what it was, for a million steps or for ever; a run that was killed continues where it was
with --resume.

    python examples/stream.py --steps 1000000 --checkpoints stream-run
"""

import resource
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import outputs
from checkpoints import Checkpoints
from leads import Process
from tqdm import tqdm

import hyprjax as hj

CELL, READOUT = hj.brf(omega=(3.0, 20.0), b_offset=(0.1, 2.0)), hj.leaky_integrator(tau=3.0)
CELLS = {"hidden": CELL, "readout": READOUT}
NEURONS, LEARNING_RATE = 64, 1e-2


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
    skipped = {rule: int(learner.optimiser.total_notfinite) for rule, learner in state["learners"].items()}
    outputs.stream(options, state["losses"], skipped, list(memory.values()), clock)
    return state


NOT_SETTINGS = ("checkpoints", "resume", "save_every", "figure")  # may differ when a run goes on


def parse_arguments(arguments):
    parser = outputs.parser(__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="time steps")
    parser.add_argument("--segment-length", type=int, default=10, help="steps per update")
    parser.add_argument("--regime", type=int, default=100_000, help="steps between drifts")
    parser.add_argument("--lag", type=int, default=50, help="how many steps ago")
    parser.add_argument("--source", choices=["auto", "ecg", "synthetic"], default="auto", help="see Process")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters")
    parser.add_argument("--checkpoints", type=Path, help="folder to save to")
    parser.add_argument("--save-every", type=int, default=5000, help="segments between checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument("--figure", type=Path, default=outputs.OUT / "stream.png", help="where to save the picture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
