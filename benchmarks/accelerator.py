"""The table of one accelerator: BPTT, checkpointed BPTT and HYPR with both back ends, in under eight minutes.

    python -m benchmarks.accelerator                      on a GPU or TPU
    python -m benchmarks.accelerator --steps 10000        the long sequences alone
    python -m benchmarks.accelerator --small --limit 60   a try on a CPU

The hidden layer is BRF. Every case runs its rules in turn; what does not fit in memory is left out, and no case begins
once the time is up; the most telling come first. Beside each gradient stands the forward pass alone: what HYPR takes
beyond it is its P-stage.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

import hyprjax as hj
from benchmarks import profile, rules
from benchmarks.__main__ import Formatter, by_turns, machine

SIZES = [(n, b, 1_000) for n in (512, 1024) for b in (64, 256)]
SIZES += [(512, 64, 10_000), (512, 256, 10_000), (1024, 64, 10_000), (1024, 256, 10_000)]
SMALL = [(32, 8, 200), (64, 8, 200)]
CHUNKS = {(512, 64, 1_000): (1, 2, 5, 10, 25, 50), (1024, 256, 1_000): (5, 10, 25, 50), (32, 8, 200): (1, 10)}


def all_rules(case):
    """By label."""
    _, _, loss_fn = rules.problem(case._replace(steps=2, batch=1))
    model, length = rules.network(case), rules.default_length(case.steps)
    yield "forward", loss_fn
    yield "bptt", jax.value_and_grad(loss_fn)
    yield "bptt checkpointed", rules.checkpointed(loss_fn, rules.bptt_length(case.steps))
    yield "hj.bptt", rules.exact(case)
    yield "hj.hypr", jax.value_and_grad(rules.loss_of(hj.hypr(model)))
    yield "hypr", hj.hypr_value_and_grad(loss_fn)
    yield "hypr, segment credit", hj.hypr_value_and_grad(loss_fn, recurrent_credit="segment")
    yield "hypr, sequential", hj.hypr_value_and_grad(loss_fn, scan="sequential")
    for chunk in CHUNKS.get((case.neurons, case.batch, case.steps), ()):
        options = {"segment_length": length, "scan": "associative", "chunk_length": chunk}
        yield f"hypr, chunks of {chunk}", hj.hypr_value_and_grad(loss_fn, **options)
    for length in (10, 50, 250) if case.steps <= 1_000 else (50,):
        if length <= case.steps:
            yield f"hypr online, {length} steps", rules.online(loss_fn, length, hypr=True)
            yield f"truncated BPTT online, {length} steps", rules.online(loss_fn, length, hypr=False)


def runs_of(case, params, xs):
    """Compiled, run once, by label: what memory and time have room for. Compiled side by side, run one by one."""
    with ThreadPoolExecutor() as pool:
        futures = {label: pool.submit(jax.jit(f).lower(params, xs).compile) for label, f in all_rules(case)}
    for label, future in futures.items():
        try:
            compiled = future.result()
            jax.block_until_ready(compiled(params, xs))
        except jax.errors.JaxRuntimeError as error:  # out of memory
            print(f"{case}: {label} left out: {str(error).splitlines()[0]}", flush=True)
            continue
        yield label, compiled


def measure(case, rounds):
    """Rows of one case, its rules timed by turns."""
    params, xs, _ = rules.problem(case)
    runs = dict(runs_of(case, params, xs))
    for label, seconds in by_turns(runs, params, xs, rounds).items():
        memory = runs[label].memory_analysis().temp_size_in_bytes / 1e6
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
    parser.add_argument("--steps", type=int, nargs="+", help="sequence lengths; all by default")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds after which no other case begins")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of every rule")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/accelerator.json"), help="JSON file")
    options = parser.parse_args(arguments)
    deadline, rows = time.perf_counter() + options.limit, []
    cases = [rules.Case("brf", 140, *size) for size in (SMALL if options.small else SIZES)]
    cases = [case for case in cases if not options.steps or case.steps in options.steps]
    parts = profile.profile(cases[0]._replace(steps=min(cases[0].steps, 1_000)))
    print(f"{cases[0]}, one gradient by part\n{profile.table(parts)}\n", flush=True)
    for case in cases:
        if time.perf_counter() > deadline:
            break
        for row in measure(case, options.rounds):
            rows.append(row)
            print(
                f"{case}  {row['rule']:<36}{row['ms']:>10.1f} ms{row['memory_mb']:>10.1f} MB",
                flush=True,
            )
            options.out.parent.mkdir(parents=True, exist_ok=True)
            found = {"machine": machine(), "rounds": options.rounds, "profile": parts, "rows": rows}
            options.out.write_text(json.dumps(found, indent=1))
    print(f"\n{machine()['device']}\n\n{table(rows)}\n\nsaved {options.out}")


if __name__ == "__main__":
    main()
