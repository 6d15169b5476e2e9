"""A thousand to a million steps: memory and speed of BPTT, checkpointed BPTT and HYPR.

One recurrent BRF layer and a readout guess an input of 20 steps ago, one sequence; `hypr_stream` updates the network
every 100 steps. Memory is the compiled temporary memory of the whole gradient, inputs not counted. Needs the extra
`examples`. Run it:

    python examples/long.py
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import outputs

import hyprjax as hj

CELL, READOUT = hj.brf(), hj.leaky_integrator(tau=5.0)
INPUTS, NEURONS, LAG, EVERY = 4, 64, 20, 100
OPTIMISER = optax.adam(1e-3)


def init(key):
    k1, k2 = jax.random.split(key)
    return {
        "hidden": hj.init_layer(k1, CELL, INPUTS, NEURONS, recurrent=True),
        "readout": hj.init_layer(k2, READOUT, NEURONS, INPUTS),
    }


def losses(params, xs):
    """Squared error of each step."""
    outputs = hj.unroll(READOUT, params["readout"], hj.unroll(CELL, params["hidden"], xs["inputs"]))
    return jnp.square(outputs - xs["targets"]).mean(-1)


def loss_fn(params, xs):
    return losses(params, xs).mean()


def online(params, xs):
    """The parameters after an update for every segment."""
    learner = hj.hypr_stream(loss_fn)
    cut = lambda start: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, EVERY), xs)  # noqa: E731

    def learn(learning, start):
        params, state, carry = learning
        (_, grads), carry = learner.value_and_grad(params, carry, cut(start))
        updates, state = OPTIMISER.update(grads, state)
        return (optax.apply_updates(params, updates), state, carry), None

    start = params, OPTIMISER.init(params), learner.init(params, cut(0))
    return jax.lax.scan(learn, start, jnp.arange(0, len(xs["inputs"]), EVERY))[0][0]


RULES = {
    "jax.grad": jax.grad(loss_fn),
    "hj.bptt": jax.grad(lambda params, xs: hj.bptt(losses)(params, xs).mean()),
    "hypr_grad": hj.hypr_grad(loss_fn),
    f"hypr_stream, an update every {EVERY} steps": online,
}


def measure(rule, steps, limit):
    """Megabytes and steps per second; the speed is None where the memory is over the limit."""
    inputs = jax.random.bernoulli(jax.random.key(1), 0.1, (steps, 1, INPUTS)).astype(jnp.float32)
    params, xs = init(jax.random.key(0)), {"inputs": inputs, "targets": jnp.roll(inputs, LAG, axis=0)}
    compiled = jax.jit(RULES[rule]).lower(params, xs).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
    if memory > limit:
        return memory, None
    jax.block_until_ready(compiled(params, xs))
    start = time.perf_counter()
    jax.block_until_ready(compiled(params, xs))
    return memory, steps / (time.perf_counter() - start)


def main(arguments=None):
    parser = outputs.parser(__doc__)
    lengths = [1_000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--steps", nargs="+", type=int, default=lengths, help="lengths of the sequence")
    parser.add_argument("--limit", type=float, default=2_000.0, help="megabytes beyond which a rule is not run")
    parser.add_argument("--out", type=Path, default=outputs.OUT / "long.csv", help="where to save the numbers")
    options = parser.parse_args(arguments)
    rows = []
    for steps in options.steps:
        for rule in RULES:
            memory, speed = measure(rule, steps, options.limit)
            rows.append((rule, steps, f"{memory:.2f}", f"{speed:.0f}" if speed else ""))
            print(f"T = {steps:>9,}  {rule:<42}{memory:>10.1f} MB", f"{speed:>9.0f} steps/s" if speed else "not run")
    outputs.write_csv(options.out, ("rule", "steps", "memory_mb", "steps_per_s"), rows)
    outputs.long(options.out.with_suffix(".png"), rows)


if __name__ == "__main__":
    main()
