"""Where the time of one gradient goes: the device's time by part of the algorithm, from a trace of JAX's profiler.

    python -m benchmarks.profile --neurons 512 --batch 64

The parts are the `jax.named_scope`s of `_segment.py` and `_recursion.py`, which any profiler shows. A kernel counts for
the scope of its root; "other" is the readout's loss, copies, and what XLA made without a name.
"""

import argparse
import re
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import jax

import hyprjax as hj
from benchmarks import rules
from benchmarks.__main__ import CELLS, Formatter, machine

PARTS = ("recursion", "weights", "contraction", "traces", "p_stage", "s_stage")  # the innermost first
NO_GRAPHS = {"xla_gpu_graph_min_graph_size": 1_000_000}  # CUDA graphs, which hide the names of what is in them
LABELS = {"p_stage": "the rest of the P-stage", "s_stage": "S-stage"}


def scopes(hlo: str) -> dict[str, str]:
    """The part of the algorithm of every instruction of a compiled program that has one."""
    named = re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', hlo, re.MULTILINE)
    path = {name: set(re.split(r"[/()]", op_name)) for name, op_name in named}
    return {name: next((part for part in PARTS if part in words), "other") for name, words in path.items()}


def events(folder: Path) -> list[tuple[str, float]]:
    """`(instruction, nanoseconds)` of everything that ran on the device."""
    (file,) = folder.rglob("*.xplane.pb")
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of jaxlib's own types, which abort where it is an error
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                if plane.name.startswith("/device") and not line.name.startswith("Stream"):
                    continue  # the same kernels once more, by module or step
                stats = ((dict(event.stats), event.duration_ns) for event in line.events)
                found += [(str(own["hlo_op"]), duration) for own, duration in stats if own.get("hlo_op")]
    return found


def profile(case: rules.Case, segment_length: int | None = None, runs: int = 3) -> dict[str, tuple[float, float]]:
    """Milliseconds and kernels of one gradient by part."""
    params, xs, loss_fn = rules.problem(case)
    gradient = hj.hypr_value_and_grad(loss_fn, segment_length=segment_length)
    lowered = jax.jit(gradient).lower(params, xs)
    compiled = lowered.compile(NO_GRAPHS if jax.default_backend() == "gpu" else None)
    jax.block_until_ready(compiled(params, xs))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(runs):
                jax.block_until_ready(compiled(params, xs))
        part, spent = scopes(compiled.as_text()), defaultdict(lambda: [0.0, 0.0])
        for name, nanoseconds in events(Path(folder)):
            if not name.startswith(("while", "call", "conditional")):  # what is in them is counted by itself
                total = spent[part.get(name, "other")]
                total[0] += nanoseconds / runs / 1e6
                total[1] += 1 / runs
    return {name: tuple(spent[name]) for name in (*PARTS, "other") if name in spent}


def table(parts: dict[str, tuple[float, float]]) -> str:
    """Markdown."""
    lines = ["| part | ms | kernels |", "|---|---|---|"]
    lines += [f"| {LABELS.get(name, name)} | {ms:.2f} | {count:.0f} |" for name, (ms, count) in parts.items()]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description=__doc__, formatter_class=Formatter
    )
    parser.add_argument("--cell", choices=CELLS, default="brf", help="neuron model")
    parser.add_argument("--inputs", type=int, default=140, help="input channels m")
    parser.add_argument("--neurons", type=int, default=128, help="neurons n")
    parser.add_argument("--batch", type=int, default=32, help="batch size B")
    parser.add_argument("--steps", type=int, default=1000, help="sequence length T")
    parser.add_argument("--segment-length", type=int, help="steps per segment; the default one if not given")
    options = parser.parse_args(arguments)
    case = rules.Case(options.cell, options.inputs, options.neurons, options.batch, options.steps)
    print(f"{machine()['device']}, {case}\n\n{table(profile(case, options.segment_length))}")


if __name__ == "__main__":
    main()
