"""What factored traces do to the gradient, and to its time: cosine to that of full traces, and ratio of times.

python -m benchmarks.factored
"""

import statistics

import jax
import optax

import hyprjax as hj
from benchmarks.__main__ import by_turns
from benchmarks.rules import Case, problem

CELLS, RANKS, LENGTHS = ("lif", "alif", "se_adlif", "brf"), (1, 2, 4, 8), (10, 50)


def cosines():
    columns = [(length, rank) for length in LENGTHS for rank in RANKS]
    print("| neuron | " + " | ".join(f"λ = {length}, rank {rank}" for length, rank in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for cell in CELLS:
        params, xs, loss_fn = problem(Case(cell, inputs=20, neurons=64, batch=8, steps=1000))
        full = {n: jax.jit(hj.hypr_grad(loss_fn, segment_length=n))(params, xs)["hidden"] for n in LENGTHS}
        cells = []
        for length, rank in columns:
            gradient = hj.hypr_grad(loss_fn, segment_length=length, traces="factored", trace_rank=rank)
            grads, exact = jax.jit(gradient)(params, xs)["hidden"], full[length]
            cosine = optax.tree.vdot(grads, exact) / (optax.tree.norm(grads) * optax.tree.norm(exact))
            cells.append(f"{cosine:.4f}")
        print(f"| `{cell}` | " + " | ".join(cells) + " |", flush=True)


def times(rounds=5):
    """Interleaved in one process, medians."""
    print(
        "\n| neuron | n | "
        + " | ".join(f"rank {rank}: time, memory" for rank in RANKS)
        + " |\n|---|---"
        + "|---" * 4
        + "|"
    )
    for cell, neurons in [("lif", 128), ("lif", 512), ("brf", 128), ("brf", 512)]:
        params, xs, loss_fn = problem(Case(cell, inputs=140, neurons=neurons, batch=32, steps=1000))
        rules = {"full": hj.hypr_grad(loss_fn)}
        rules |= {rank: hj.hypr_grad(loss_fn, traces="factored", trace_rank=rank) for rank in RANKS}
        programs = {name: jax.jit(rule).lower(params, xs).compile() for name, rule in rules.items()}
        memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
        taken = by_turns(programs, params, xs, rounds)
        median = {name: statistics.median(values[1:]) for name, values in taken.items()}
        ratios = [f"{median[r] / median['full']:.2f}, {memory[r] / memory['full']:.2f}" for r in RANKS]
        print(f"| `{cell}` | {neurons} | " + " | ".join(ratios) + " |", flush=True)


if __name__ == "__main__":
    cosines()
    times()
