"""A thousand to a million steps: memory and speed of BPTT, checkpointed BPTT and HYPR.

One recurrent BRF layer and a readout guess an input of 20 steps ago, one sequence; `hypr_stream` updates the network
every 100 steps. Memory is the compiled temporary memory of the whole gradient, inputs not counted. Needs the extra
`examples`. Run it:

    python examples/long.py
"""

import argparse
import csv
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import optax

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
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    lengths = [1_000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--steps", nargs="+", type=int, default=lengths, help="lengths of the sequence")
    parser.add_argument("--limit", type=float, default=2_000.0, help="megabytes beyond which a rule is not run")
    parser.add_argument("--out", type=Path, default=Path("long.csv"), help="where to save the numbers")
    options = parser.parse_args(arguments)
    rows = []
    for steps in options.steps:
        for rule in RULES:
            memory, speed = measure(rule, steps, options.limit)
            rows.append((rule, steps, f"{memory:.2f}", f"{speed:.0f}" if speed else ""))
            print(f"T = {steps:>9,}  {rule:<42}{memory:>10.1f} MB", f"{speed:>9.0f} steps/s" if speed else "not run")
    with options.out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("rule", "steps", "memory_mb", "steps_per_s"), *rows])
    save_figure(options.out.with_suffix(".png"), rows)


def save_figure(path, rows):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axes, column, label in zip(both, (2, 3), ("temporary memory, MB", "steps per second"), strict=True):
        for colour, rule in zip(("black", "gray", "C2", "C0"), RULES, strict=True):
            points = [(row[1], float(row[column])) for row in rows if row[0] == rule and row[column]]
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", ms=4, label=rule)
        axes.set(xscale="log", xlabel="steps T", ylabel=label)
    both[0].set_yscale("log")
    both[1].set_ylim(0)
    both[1].legend(fontsize=8, loc="lower center")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
