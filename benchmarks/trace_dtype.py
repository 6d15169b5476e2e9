"""What traces in bfloat16 do to the gradient: relative error and cosine, against traces in float32.

python -m benchmarks.trace_dtype
"""

import jax
import jax.numpy as jnp
import optax

import hyprjax as hj
from benchmarks.rules import Case, problem

LENGTHS = (1, 10, 100, 250)


def main():
    print("| neuron | " + " | ".join(f"λ = {length}" for length in LENGTHS) + " |\n|---" + "|---" * len(LENGTHS) + "|")
    for cell in ("lif", "alif", "se_adlif", "brf"):
        params, xs, loss_fn = problem(Case(cell, inputs=20, neurons=64, batch=8, steps=1000))
        cells = []
        for length in LENGTHS:
            exact, rounded = (
                jax.jit(hj.hypr_grad(loss_fn, segment_length=length, trace_dtype=dtype))(params, xs)["hidden"]
                for dtype in (None, jnp.bfloat16)
            )
            difference = optax.tree.norm(optax.tree.sub(rounded, exact)) / optax.tree.norm(exact)
            cosine = optax.tree.vdot(rounded, exact) / (optax.tree.norm(rounded) * optax.tree.norm(exact))
            cells.append(f"{100 * difference:.2f} % ({cosine:.6f})")
        print(f"| `{cell}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
