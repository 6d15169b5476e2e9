"""The table of one accelerator: BPTT, checkpointed BPTT and HYPR with both back ends, in under eight minutes.

    python -m benchmarks.accelerator                      on a GPU or TPU
    python -m benchmarks.accelerator --small --limit 60   a try on a CPU

The hidden layer is BRF. Every case runs its rules in turn; what does not fit in memory is left out, and the run stops
when the time is up, the most telling cases first. Beside each gradient stands the forward pass alone: what HYPR takes
beyond it is its P-stage.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

import hyprjax as hj
from benchmarks import rules
from benchmarks.__main__ import Formatter, machine

SIZES = [(512, 64, 1_000), (512, 256, 1_000), (1024, 64, 1_000), (512, 64, 10_000), (1024, 256, 1_000)]
SMALL = [(32, 8, 200), (64, 8, 200)]


def all_rules(case):
    """By label."""
    _, _, loss_fn = rules.problem(case._replace(steps=2, batch=1))
    model, length = rules.network(case), min(250, case.steps)
    yield "forward", loss_fn
    yield "bptt", jax.value_and_grad(loss_fn)
    yield "bptt checkpointed", rules.checkpointed(loss_fn, rules.bptt_length(case.steps))
    yield "hj.bptt", jax.value_and_grad(rules.loss_of(hj.bptt(model)))
    yield f"hypr sequential {length}", hj.hypr_value_and_grad(loss_fn, segment_length=length, scan="sequential")
    for chunk in (1, 2, 5, 10, 25, 50):
        options = {"segment_length": length, "scan": "associative", "chunk_length": chunk}
        yield f"hypr associative {length}, chunks of {chunk}", hj.hypr_value_and_grad(loss_fn, **options)
    for length in (10, 50, 250):
        if length <= case.steps:
            yield f"online hypr {length}", rules.online(loss_fn, length, hypr=True)
            yield f"online bptt {length}", rules.online(loss_fn, length, hypr=False)


def measure(case, deadline, rounds):
    """Rows of one case, as far as time and memory allow."""
    params, xs, _ = rules.problem(case)
    for label, f in all_rules(case):
        if time.perf_counter() > deadline:
            return
        try:
            compiled = jax.jit(f).lower(params, xs).compile()
            jax.block_until_ready(compiled(params, xs))
            seconds = []
            for _ in range(rounds):
                start = time.perf_counter()
                jax.block_until_ready(compiled(params, xs))
                seconds.append(time.perf_counter() - start)
        except jax.errors.JaxRuntimeError as error:  # out of memory
            print(f"{case}: {label} left out: {str(error).splitlines()[0]}", flush=True)
            continue
        memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
        yield {**case._asdict(), "rule": label, "ms": 1e3 * float(np.median(seconds)), "memory_mb": memory}


def table(rows):
    """Markdown, a column for each case, times in ms and memory in MB."""
    cases = list(dict.fromkeys((row["neurons"], row["batch"], row["steps"]) for row in rows))
    cells = {(row["rule"], row["neurons"], row["batch"], row["steps"]): row for row in rows}
    lines = ["| | " + " | ".join(f"n={n}, B={b}, T={t}" for n, b, t in cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        own = [cells.get((rule, *case)) for case in cases]
        shown = [f"{row['ms']:.1f}, {row['memory_mb']:.0f}" if row else "" for row in own]
        lines.append(f"| {rule} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description=__doc__, formatter_class=Formatter
    )
    parser.add_argument("--small", action="store_true", help="two small cases, for a try on a CPU")
    parser.add_argument("--limit", type=float, default=450.0, help="seconds for all")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of every rule")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/accelerator.json"), help="JSON file")
    options = parser.parse_args(arguments)
    deadline, rows = time.perf_counter() + options.limit, []
    for n, batch, steps in SMALL if options.small else SIZES:
        for row in measure(rules.Case("brf", 140, n, batch, steps), deadline, options.rounds):
            rows.append(row)
            print(
                f"n={n} B={batch} T={steps}  {row['rule']:<36}{row['ms']:>10.1f} ms{row['memory_mb']:>10.1f} MB",
                flush=True,
            )
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({"machine": machine(), "rounds": options.rounds, "rows": rows}, indent=1))
    print(f"\n{machine()['device']}\n\n{table(rows)}\n\nsaved {options.out}")


if __name__ == "__main__":
    main()
