"""Training over several processes: each keeps a part of the batch, and its traces; gradients are summed between them.

Nothing here is special to hyprjax: `jax.distributed` connects the processes, a mesh names their devices, and what
`hypr_stream` returns runs on arrays that are spread over it. This starts the processes on one machine; on a cluster,
start one per node with `--processes`, `--process-id` and `--coordinator`. With --checkpoints, what four processes
saved can go on with two, or with one.

    python examples/distributed.py --processes 4
"""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import outputs
from checkpoints import Checkpoints
from jax.sharding import NamedSharding, PartitionSpec

import hyprjax as hj

BATCH, STEPS, INPUTS, NEURONS, LAG = 8, 50, 10, 32, 5
CELL, READOUT = hj.alif(tau=10.0, tau_a=50.0), hj.leaky_integrator(tau=3.0)
CELLS = {"hidden": CELL, "readout": READOUT}
OPTIMISER = optax.adam(5e-3)


def loss_fn(params, xs):
    """Tell how many inputs fired a few steps ago."""
    spikes = hj.unroll(CELL, params["hidden"], xs["inputs"])
    return jnp.square(hj.unroll(READOUT, params["readout"], spikes) - xs["targets"]).mean()


LEARNER = hj.hypr_stream(loss_fn)


def segment(number: int):
    """Segment `number` of an endless stream, `[STEPS, BATCH, ...]`: a function of its number alone."""

    def inputs(number):
        rng = np.random.default_rng([0, max(number, 0)])
        return (rng.random((STEPS, BATCH, INPUTS)) < 0.2).astype(np.float32)

    past = np.concatenate([inputs(number - 1)[-LAG:], inputs(number)[:-LAG]])
    return {"inputs": inputs(number), "targets": past.sum(-1, keepdims=True) / INPUTS}


def start(first):
    """Parameters, optimiser state and carry before the first segment."""
    k1, k2 = jax.random.split(jax.random.key(0))
    hidden = hj.init_layer(k1, CELL, INPUTS, NEURONS, recurrent=True)
    params = {"hidden": hidden, "readout": hj.init_layer(k2, READOUT, NEURONS, 1)}
    return params, OPTIMISER.init(params), LEARNER.init(params, first)


def learn(state, xs):
    params, optimiser_state, carry = state
    (loss, grads), carry = LEARNER.value_and_grad(params, carry, xs)
    updates, optimiser_state = OPTIMISER.update(grads, optimiser_state, params)
    params = hj.project(CELLS, optax.apply_updates(params, updates))
    return (params, optimiser_state, carry), loss


def train(options):
    """One process of the run. Every process runs the same program on its own part of each array."""
    mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    of_data, everywhere = NamedSharding(mesh, PartitionSpec(None, "batch")), NamedSharding(mesh, PartitionSpec())
    spread = lambda x: jax.make_array_from_callback(x.shape, of_data, lambda index: x[index])  # noqa: E731

    params, _, carry = jax.eval_shape(start, segment(0))
    _, of_carry = hj.shardings(mesh, params, carry)
    of_state = everywhere, everywhere, of_carry
    state = jax.jit(start, out_shardings=of_state)(jax.tree.map(spread, segment(0)))
    step = jax.jit(learn, out_shardings=(of_state, everywhere))

    saved = Checkpoints(options.checkpoints, {"example": "distributed"}) if options.checkpoints else None
    first, state = (saved and saved.restore(state)) or (0, state)
    for number in range(first, options.segments):
        state, loss = step(state, jax.tree.map(spread, segment(number)))
        if jax.process_index() == 0:
            print(f"segment {number} loss {float(loss):.8f}", flush=True)
    if saved and options.segments > first:
        saved.save(options.segments, state)


def launch(processes: int, arguments: list[str]) -> int:
    """Starts this program `processes` times and waits for all of them."""
    with socket.create_server(("localhost", 0)) as free:
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, __file__, *arguments, "--coordinator", coordinator, "--process-id"]
    running = [subprocess.Popen([*command, str(i)]) for i in range(processes)]
    return max(abs(process.wait()) for process in running)


def main(arguments):
    parser = outputs.parser(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="number of processes")
    parser.add_argument("--segments", type=int, default=20, help="segments to learn from")
    parser.add_argument("--checkpoints", type=Path, default=None, help="folder to save to and resume from")
    parser.add_argument("--coordinator", default=None, help="host:port of process 0")
    parser.add_argument("--process-id", type=int, default=None, help="which process this is; none: start all of them")
    options = parser.parse_args(arguments)
    if BATCH % options.processes:
        parser.error(f"--processes must divide the batch of {BATCH}")
    if options.process_id is None and options.processes > 1:
        return launch(options.processes, arguments)
    if options.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(options.coordinator, options.processes, options.process_id)
    train(options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
