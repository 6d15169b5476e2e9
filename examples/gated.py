"""GRU and LSTM layers, trained with HYPR: which of four cues was shown before the delay?

Gated layers are cells with several currents. Their own state carries the memory, so HYPR's traces reach back over the
delay, while truncated BPTT ends with the segment. One update per batch for BPTT and HYPR, one every few steps for the
rules that end in "online". Needs the extra `examples`. Run it:

    python examples/gated.py
"""

from functools import partial
from itertools import product

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
    hypr, tbptt = hj.hypr_stream(loss), hj.stream(loss)

    def learn_segment(learning, xs):
        params, state, carry = learning
        if rule == "hypr online":
            (_, grads), carry = hypr.value_and_grad(params, carry, xs)
        else:
            grads, carry = jax.grad(tbptt.apply, has_aux=True)(params, carry, xs)
        return (*update(params, state, grads), carry), None

    def learn(params, state, xs):
        segments = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), xs)
        carry = (hypr if rule == "hypr online" else tbptt).init(params, xs)
        return jax.lax.scan(learn_segment, (params, state, carry), segments)[0][:2]

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
    options = outputs.gated_options(__doc__, CELLS, RULES).parse_args(arguments)
    rows = [
        {"cell": cell, "rule": rule, "seed": seed, "accuracy": train(cell, rule, options, seed)}
        for cell, rule, seed in product(options.cells, options.rules, options.seeds)
    ]
    outputs.gated(options.out, options, rows)
    return rows


if __name__ == "__main__":
    main()
