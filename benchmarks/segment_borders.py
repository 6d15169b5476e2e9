"""How much credit is lost where segments end under a leaky readout inside of the transform.

    python -m benchmarks.segment_borders

Relative error of the hidden layer's gradient against one segment over the whole sequence, by segment length. With the
readout outside of `hj.hypr` it is zero for every length (a test).
"""

import jax
import jax.numpy as jnp

from benchmarks.rules import Case, loss_of, network, problem
from hyprjax import hypr

CELLS = ("lif", "alif", "se_adlif", "brf")
STEPS, LENGTHS = 4000, (50, 100, 250, 500, 1000, 2000)


def main():
    print(f"| neuron | {' | '.join(f'λ = {length}' for length in LENGTHS)} |\n|{'---|' * (len(LENGTHS) + 1)}")
    for cell in CELLS:
        case = Case(cell, inputs=20, neurons=32, batch=8, steps=STEPS)
        params, xs, _ = problem(case)

        def hidden(length, case=case, params=params, xs=xs):
            loss = loss_of(hypr(network(case), segment_length=length))
            return jnp.concatenate([g.ravel() for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params, xs)["hidden"])])

        whole = hidden(STEPS)
        errors = [jnp.linalg.norm(hidden(length) - whole) / jnp.linalg.norm(whole) for length in LENGTHS]
        print(f"| `{cell}` | {' | '.join(f'{100 * error:.1f} %' for error in errors)} |", flush=True)


if __name__ == "__main__":
    main()
