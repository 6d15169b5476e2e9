"""GRU and LSTM layers, trained with HYPR: which of four cues was shown before the delay?

Gated layers are cells with several currents. Their own state carries the memory, so HYPR's traces reach back over the
delay, while truncated BPTT ends with the segment. One update per batch for BPTT and HYPR, one every few steps for the
rules that end in "online". Needs the extra `examples`. Run it:

    python examples/gated.py
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import outputs
from tqdm import tqdm

import hyprjax as hj

CELLS = {"gru": hj.gru(), "lstm": hj.lstm()}
RULES = ["bptt", "hypr", "hypr online", "tbptt online"]
KEEPS = {"gru": "z", "lstm": "f"}  # the gate by which a cell keeps its state
NEURONS, CUES, CHANNELS = 32, 4, 3
CUE, DELAY, RECALL = 10, 40, 10  # steps
STEPS = CUE + DELAY + RECALL


def batch_of(seed, size):
    """Inputs, a group of noisy channels for each cue, and at every step the answer and its weight."""
    rng = np.random.default_rng(seed)
    cue, time = rng.integers(CUES, size=size), np.arange(STEPS)[:, None]
    shown = (np.arange(CUES) == cue[:, None]) & (time < CUE)[..., None]
    inputs = (rng.random((STEPS, size, CUES * CHANNELS)) < 0.4 * np.repeat(shown, CHANNELS, axis=-1)).astype(np.float32)
    weights = np.broadcast_to((time >= CUE + DELAY) * STEPS / RECALL, (STEPS, size)).astype(np.float32)
    return {"inputs": inputs, "labels": np.broadcast_to(cue, (STEPS, size)), "weights": weights}


def logits(cell, params, inputs):
    return hj.unroll(cell, params["hidden"], inputs) @ params["out"] + params["bias"]


def loss_fn(cell, params, xs):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(cell, params, xs["inputs"]), xs["labels"])
    return (losses * xs["weights"]).mean()


def init(key, name, n_in):
    k1, k2 = jax.random.split(key)
    hidden = hj.init_layer(k1, CELLS[name], n_in, NEURONS, recurrent=True)
    # States are kept for 1 to DELAY steps at the start (Tallec and Ollivier 2018).
    hidden["bias"][KEEPS[name]] += jnp.log(jnp.linspace(1.0, DELAY, NEURONS))
    return {"hidden": hidden, "out": 0.1 * jax.random.normal(k2, (NEURONS, CUES)), "bias": jnp.zeros(CUES)}


def learner(rule, cell, update, length):
    """`(params, optimiser state, batch) -> the same two after the batch`."""
    loss = partial(loss_fn, cell)
    if rule in ("bptt", "hypr"):
        gradient = jax.grad(loss) if rule == "bptt" else hj.hypr_grad(loss, segment_length=length)
        return lambda params, state, xs: update(params, state, gradient(params, xs))
    online, stream = hj.hypr_stream(loss), hj.stream(loss)
    start = online.init if rule == "hypr online" else stream.init

    def gradient(params, carry, xs):
        if rule == "hypr online":
            (_, grads), carry = online.value_and_grad(params, carry, xs)
            return grads, carry
        return jax.grad(stream.apply, has_aux=True)(params, carry, xs)

    def learn(params, state, xs):
        segments = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), xs)

        def learn_segment(learning, segment):
            *learning, carry = learning
            grads, carry = gradient(learning[0], carry, segment)
            return (*update(*learning, grads), carry), None

        first = jax.tree.map(lambda x: x[0], segments)
        return jax.lax.scan(learn_segment, (params, state, start(params, first)), segments)[0][:2]

    return learn


def train(name, rule, options, seed):
    """Test accuracy after every tenth of the updates."""
    cell, length = CELLS[name], options.segment_length
    test = batch_of(10_000, 500)
    params = init(jax.random.key(seed), name, test["inputs"].shape[-1])
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(options.learning_rate))

    def update(params, state, grads):
        changes, state = optimiser.update(grads, state)
        return optax.apply_updates(params, changes), state

    learn = jax.jit(learner(rule, cell, update, length))

    @jax.jit
    def answer(params):
        return (logits(cell, params, test["inputs"]) * test["weights"][..., None]).sum(0).argmax(-1)

    state, curve = optimiser.init(params), []
    for number in tqdm(range(options.batches), desc=f"{name}, {rule}, seed {seed}"):
        params, state = learn(params, state, batch_of(1000 * (seed + 1) + number, options.batch_size))
        if (number + 1) % max(1, options.batches // 10) == 0:
            curve.append(float((answer(params) == test["labels"][-1]).mean()))
    return curve


def main(arguments=None):
    parser = outputs.parser(__doc__)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="gated layers")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES, help="what to train with")
    parser.add_argument("--batches", type=int, default=100, help="batches to learn from")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences in a batch")
    parser.add_argument("--segment-length", type=int, default=10, help="steps per segment, and per update online")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of Adam")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of parameters and data")
    parser.add_argument("--out", type=Path, default=outputs.OUT / "gated.csv", help="where to save the accuracies")
    options = parser.parse_args(arguments)
    rows = [
        {"cell": cell, "rule": rule, "seed": seed, "accuracy": train(cell, rule, options, seed)}
        for cell in options.cells
        for rule in options.rules
        for seed in options.seeds
    ]
    outputs.gated(options.out, options, rows)
    return rows


if __name__ == "__main__":
    main()
