"""Weak and strong scaling over a mesh, read from the compiled program: collectives, memory and flops per device.

Runs on virtual devices of one CPU; times on those mean nothing and are not taken.

    python -m benchmarks.scaling
"""

import argparse
import json
import os
import re
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import hyprjax as hj

STEPS, LENGTH, INPUTS, CLASSES = 1000, 250, 140, 20
MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8), (2, 4)]
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
CELL, READOUT = hj.brf(), hj.leaky_integrator()


def loss_fn(params, xs):
    logits = hj.unroll(READOUT, params["readout"], hj.unroll(CELL, params["hidden"], xs["inputs"]))
    return optax.softmax_cross_entropy_with_integer_labels(logits, xs["labels"]).mean()


def measure(shape, batch, neurons):
    """One compiled gradient on a mesh of this shape, `(batch, neurons)`."""
    mesh = jax.make_mesh(shape, ("batch", "neurons"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    k1, k2 = jax.random.split(jax.random.key(0))
    params = {
        "hidden": hj.init_layer(k1, CELL, INPUTS, neurons, recurrent=True),
        "readout": hj.init_layer(k2, READOUT, neurons, CLASSES),
    }
    xs = {"inputs": jnp.zeros((STEPS, batch, INPUTS)), "labels": jnp.zeros((STEPS, batch), int)}
    of_params, _ = hj.shardings(mesh, params)
    whole = NamedSharding(mesh, PartitionSpec())
    of_params["readout"] = jax.tree.map(lambda _: whole, of_params["readout"])
    placed = jax.device_put(params, of_params), jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "batch")))
    compiled = jax.jit(hj.hypr_grad(loss_fn, segment_length=LENGTH)).lower(*placed).compile()
    per_step, per_segment = traffic(compiled.as_text())
    return {
        "mesh": list(shape),
        "batch": batch,
        "neurons": neurons,
        "flops_per_device": compiled.cost_analysis()["flops"],
        "memory_mb_per_device": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "bytes_per_step": per_step,
        "kb_per_segment": per_segment / 1e3,
    }


def traffic(program):
    """Bytes that collectives bring to a device in one step of the S-stage, and otherwise in one segment.

    Of a segment in the loop over segments; the program has the last segment once more, in a branch.
    """
    step = segment = 0
    for _, shapes, origin in collectives(program):
        if "cond" in origin:
            continue
        size = sum(4 * int(np.prod(shape)) for shape in shapes)
        if origin.count("while/body") >= 2:
            step += size
        else:
            segment += size
    return step, segment


def collectives(program):
    """Of every collective in the text of a program: kind, the shapes it brings about, and the operation it is for."""
    for result, kind, rest in re.findall(rf"= (.*?) ({KINDS})(?:-start)?\((.*)", program):
        shapes = [tuple(map(int, filter(None, shape.split(",")))) for shape in re.findall(r"\w+\[([\d,]*)\]", result)]
        yield kind, shapes, (re.findall(r'op_name="([^"]*)"', rest) or [""])[0]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="of strong scaling, and per 8 devices of weak scaling")
    parser.add_argument("--neurons", type=int, default=512, help="of strong scaling")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"), help="JSON file")
    options = parser.parse_args(arguments)
    cases = {"strong": [(shape, options.batch, options.neurons) for shape in MESHES]}
    cases["weak"] = [((d, 1), options.batch // 8 * d, options.neurons) for d in (1, 2, 4, 8)]
    rows = []
    print(
        "| scaling | mesh (batch x neurons) | B | n | GFLOP | MB | bytes per step | kB per segment |\n"
        + "|---" * 8
        + "|"
    )
    for scaling, settings in cases.items():
        for setting in settings:
            row = {"scaling": scaling} | measure(*setting)
            rows.append(row)
            values = [" x ".join(map(str, row["mesh"])), row["batch"], row["neurons"]]
            values += [f"{row['flops_per_device'] / 1e9:.2f}", f"{row['memory_mb_per_device']:.0f}"]
            values += [f"{row['bytes_per_step']:,}", f"{row['kb_per_segment']:,.0f}"]
            print(f"| {scaling} | " + " | ".join(map(str, values)) + " |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"command": "python -m benchmarks.scaling", "jax": jax.__version__, "rows": rows}, indent=1)
    )
    return rows


if __name__ == "__main__":
    main()
