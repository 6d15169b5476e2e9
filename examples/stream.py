"""Learning that never ends: a spiking network tracks a process that drifts, online, one segment after another.

Two ECG-like leads arrive as level-crossing spikes; the network tells what the first lead was some steps ago, longer
than a segment lasts, and updates after every segment. Every so often the electrodes are swapped or reversed, and it has
to learn anew. The same network frozen after the first regime, and one trained by truncated BPTT on the same segments,
run beside it. Memory stays what it was, for a million steps or for ever; a run that was killed continues where it was
with --resume.

    python examples/stream.py --steps 1000000 --checkpoints stream-run
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import outputs
from checkpoints import Checkpoints
from leads import Process

import hyprjax as hj

CELL, READOUT = hj.brf(omega=(3.0, 20.0), b_offset=(0.1, 2.0)), hj.leaky_integrator(tau=3.0)
CELLS = {"hidden": CELL, "readout": READOUT}
NEURONS, LEARNING_RATE = 64, 1e-2
NOT_SETTINGS = ("checkpoints", "resume", "save_every", "figure")  # options that may differ when a run goes on


def loss_fn(params, xs):
    """Mean squared error; the same function for HYPR and for truncated BPTT."""
    spikes = hj.unroll(CELL, params["hidden"], xs["inputs"])
    return jnp.square(hj.unroll(READOUT, params["readout"], spikes) - xs["targets"]).mean()


LEARNER, STREAM = hj.hypr_stream(loss_fn), hj.stream(loss_fn)


def truncated_bptt(params, carry, xs):
    """`LEARNER.value_and_grad` without traces: backpropagation within the segment."""
    (loss, carry), grads = jax.value_and_grad(STREAM.apply, has_aux=True)(params, carry, xs)
    return (loss, grads), carry


RULES = {"hypr": LEARNER, "truncated bptt": hj.Learner(STREAM.init, truncated_bptt)}
# A segment whose loss or gradient is not finite changes nothing: no update here, no carry in `learn`.
OPTIMISER = optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE)), 1_000_000)


class Learning(NamedTuple):
    """All that a learner is."""

    params: dict
    optimiser: optax.OptState
    carry: tuple


def start(key, xs):
    """All networks, with the same parameters."""
    k1, k2 = jax.random.split(key)
    hidden = hj.init_layer(k1, CELL, 4, NEURONS, recurrent=True)
    params = {"hidden": hidden, "readout": hj.init_layer(k2, READOUT, NEURONS, 1)}
    learners = {rule: Learning(params, OPTIMISER.init(params), RULES[rule].init(params, xs)) for rule in RULES}
    return {"learners": learners, "frozen": {"params": params, "carry": STREAM.init(params, xs)}}


def learn(rule, state: Learning, xs):
    """One segment: loss, gradient, update."""
    (loss, grads), carry = RULES[rule].value_and_grad(state.params, state.carry, xs)
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
    options = outputs.stream_options(__doc__).parse_args(arguments)
    process = Process(options.regime, options.lag, options.source)
    length, segments = options.segment_length, options.steps // options.segment_length
    key = jax.random.key(options.seed)
    state = start(key, process.segment(0, length)) | {"key": jax.random.key_data(key)}
    state["losses"] = {name: np.full(segments, np.nan, np.float32) for name in (*RULES, "frozen")}
    settings = {name: value for name, value in vars(options).items() if name not in NOT_SETTINGS}
    settings["source"] = process.source
    saved = Checkpoints(options.checkpoints, settings) if options.checkpoints else None
    begin, state = (saved and saved.restore(state)) or (0, state)
    if begin and not options.resume:
        raise SystemExit(f"{options.checkpoints} has a run at segment {begin}: go on with --resume")
    losses = state["losses"] = {name: np.array(values) for name, values in state["losses"].items()}

    progress = outputs.Progress(begin, losses["hypr"])
    for index in progress:
        if index * length == options.regime:
            state["frozen"] = {**state["frozen"], "params": state["learners"]["hypr"].params}
        xs = process.segment(index * length, length)
        state["learners"], state["frozen"], loss = step(state["learners"], state["frozen"], state["key"], index, xs)
        for name in losses:
            losses[name][index] = loss[name]
        if saved and ((index + 1) % options.save_every == 0 or index + 1 == segments):
            saved.save(index + 1, state)
    skipped = {rule: int(learner.optimiser.total_notfinite) for rule, learner in state["learners"].items()}
    outputs.stream(options, losses, skipped, progress)
    return state


if __name__ == "__main__":
    main()
