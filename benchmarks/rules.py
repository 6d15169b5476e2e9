"""The rules under test, each a function `(params, xs) -> (loss, grads)` of the same network and loss.

The network is one recurrent layer and a leaky readout with cross entropy at every step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import hyprjax as hj
from hyprjax._sequence import bptt_length, default_length

TAU = 20.0  # of the readout, in steps
READOUT = hj.leaky_integrator(TAU)


class Case(NamedTuple):
    """One network and data size."""

    cell: str
    inputs: int
    neurons: int
    batch: int
    steps: int
    classes: int = 20

    def __str__(self) -> str:
        """For titles and keys."""
        return f"{self.cell} m={self.inputs} n={self.neurons} B={self.batch} T={self.steps}"


def network(case: Case) -> Callable:
    """The model of a case, `(params, inputs) -> logits`."""
    cell = getattr(hj, case.cell)()
    return lambda params, inputs: hj.unroll(READOUT, params["readout"], hj.unroll(cell, params["hidden"], inputs))


def loss_of(model: Callable) -> Callable:
    """The loss of a model, wrapped or not."""
    return lambda params, xs: step_loss(model(params, xs["inputs"]), xs["labels"])


def exact(case: Case) -> Callable:
    """`hj.bptt` with the loss of each step inside, so that no output of a whole sequence waits for its cotangent."""
    model = network(case)
    losses = hj.bptt(lambda params, xs: step_losses(model(params, xs["inputs"]), xs["labels"]))
    return jax.value_and_grad(lambda params, xs: losses(params, xs).mean())


def problem(case: Case, seed: int = 0) -> tuple[Any, Any, Callable]:
    """Parameters, data and loss function of a case; input spikes at a rate of 5 %."""
    cell = getattr(hj, case.cell)()
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "hidden": hj.init_layer(keys[0], cell, case.inputs, case.neurons, recurrent=True),
        "readout": hj.init_layer(keys[1], READOUT, case.neurons, case.classes),
    }
    xs = {
        "inputs": (jax.random.uniform(keys[2], (case.steps, case.batch, case.inputs)) < 0.05).astype(jnp.float32),
        "labels": jax.random.randint(keys[3], (case.steps, case.batch), 0, case.classes),
    }
    return params, xs, loss_of(network(case))


step_losses = optax.softmax_cross_entropy_with_integer_labels


def step_loss(logits, labels):
    """Cross entropy of the logits of any number of steps."""
    return step_losses(logits, labels).mean()


def eprop(case: Case, segment_length: int | None = None) -> Callable:
    """e-prop as published, through HYPR: raw spikes go round, filtered ones go to a readout without memory."""
    cell = hj.filtered(getattr(hj, case.cell)(), TAU, recurrent="spikes")

    def loss_fn(params, xs):
        hidden, readout = params["hidden"], params["readout"]
        neuron = {"cell": hidden["neuron"], "tau": jnp.full(case.neurons, TAU)}
        filtered = hj.unroll(cell, {**hidden, "neuron": neuron}, xs["inputs"])
        return step_loss(filtered @ readout["w_in"] + readout["bias"], xs["labels"])

    return hj.hypr_value_and_grad(loss_fn, segment_length=segment_length)


def step_by_step(case: Case) -> Callable:
    """Explicit traces, one step after the other: what online learners do. The gradient is HYPR's at λ = 1."""
    cells = {"hidden": getattr(hj, case.cell)(), "readout": READOUT}

    def value_and_grad(params, xs):
        def start(name, n_in):
            layer, cell = params[name], cells[name]
            state = cell.rest(layer["neuron"], (case.batch,), jnp.float32)
            n = layer["bias"].shape[0]
            rows = n_in + ("w_rec" in layer) * n + 1
            z = jnp.zeros((case.batch, n))
            traces = [jnp.zeros((case.batch, rows, n)) for _ in jax.tree.leaves(state)]
            of_neuron = [[jnp.zeros_like(z) for _ in jax.tree.leaves(state)] for _ in jax.tree.leaves(layer["neuron"])]
            return state, z, traces, of_neuron

        def forward(name, carry, x):
            """One step of one layer: output, next carry, and what its loss gradient ζ makes of the parameters."""
            layer, cell = params[name], cells[name]
            state, z, traces, of_neuron = carry
            weights = [layer[key] for key in ("w_in", "w_rec") if key in layer]
            pre = jnp.concatenate([x, *([z] if "w_rec" in layer else []), jnp.ones((len(x), 1))], -1)
            current = pre @ jnp.concatenate([*weights, layer["bias"][None]])
            leaves, tree = jax.tree.flatten((state, current, layer["neuron"]))

            def step(*leaves):
                state, current, neuron = jax.tree.unflatten(tree, leaves)
                state, z = cell.step(neuron, state, current)
                return (*jax.tree.leaves(state), z)

            tangents = [
                [jnp.ones_like(a) if i == j else jnp.zeros_like(a) for j, a in enumerate(leaves)]
                for i in range(len(leaves))
            ]
            columns = [jax.jvp(step, leaves, tangent)[1] for tangent in tangents]
            k = len(traces)
            J, B, D = columns[:k], columns[k], columns[k + 1 :]
            outer = lambda factor: pre[:, :, None] * factor[:, None, :]  # noqa: E731
            new_traces = [sum(J[d][c][:, None] * traces[d] for d in range(k)) + outer(B[c]) for c in range(k)]
            new_of_neuron = [
                [sum(J[d][c] * trace[d] for d in range(k)) + D_i[c] for c in range(k)]
                for trace, D_i in zip(of_neuron, D, strict=True)
            ]

            def gradient(zeta):
                # One batch element after the other: on a CPU several times faster than a sum over the leading axis.
                signal = [J[d][k] * zeta for d in range(k)]
                add = lambda total, at_b: (total + sum(q * e for q, e in zip(*at_b, strict=True)), None)  # noqa: E731
                rows, _ = jax.lax.scan(add, pre.T @ (B[k] * zeta), (signal, traces))
                splits = jax.lax.split(rows, [len(w) for w in weights] + [1])
                dz_neuron = [
                    sum(J[d][k] * t[d] for d in range(k)) + D_i[k] for t, D_i in zip(of_neuron, D, strict=True)
                ]
                neuron = jax.tree.structure(layer["neuron"]).unflatten([(dz * zeta).sum(0) for dz in dz_neuron])
                grads = {"w_in": splits[0], "bias": splits[-1][0], "neuron": neuron}
                return {**grads, "w_rec": splits[1]} if "w_rec" in layer else grads

            *new_state, z = step(*leaves)
            state = jax.tree.unflatten(jax.tree.structure(state), new_state)
            return z, (state, z, new_traces, new_of_neuron), gradient, B[k]

        def step(state, at_t):
            hidden, readout, loss, grads = state
            z, hidden, hidden_gradient, _ = forward("hidden", hidden, at_t["inputs"])
            y, readout, readout_gradient, gain = forward("readout", readout, z)
            value, error = jax.value_and_grad(step_loss)(y, at_t["labels"])
            zeta = (error * gain) @ params["readout"]["w_in"].T
            step_grads = {"hidden": hidden_gradient(zeta), "readout": readout_gradient(error)}
            return (hidden, readout, loss + value, jax.tree.map(jnp.add, grads, step_grads)), None

        init = (start("hidden", case.inputs), start("readout", case.neurons), 0.0, jax.tree.map(jnp.zeros_like, params))
        (_, _, loss, grads), _ = jax.lax.scan(step, init, xs)
        return loss / case.steps, jax.tree.map(lambda g: g / case.steps, grads)

    return value_and_grad


def checkpointed(loss_fn: Callable, segment_length: int) -> Callable:
    """BPTT in plain JAX that keeps the state between segments alone and runs each once more: the baseline to beat."""
    net = hj.stream(loss_fn)

    @jax.checkpoint
    def segment(params, carry, xs):
        return net.apply(params, carry, xs)

    def loss(params, xs):
        steps = len(xs["labels"])
        full, rest = divmod(steps, segment_length)
        pieces = jax.tree.map(lambda x: x[: full * segment_length].reshape(full, segment_length, *x.shape[1:]), xs)
        first = jax.tree.map(lambda x: x[0], pieces)
        carry, losses = jax.lax.scan(
            lambda carry, piece: segment(params, carry, piece)[::-1], net.init(params, first), pieces
        )
        total = losses.sum() * segment_length
        if rest:
            total += rest * segment(params, carry, jax.tree.map(lambda x: x[-rest:], xs))[0]
        return total / steps

    return jax.value_and_grad(loss)


def online(loss_fn: Callable, segment_length: int, *, hypr: bool) -> Callable:
    """An update of Adam after every segment, by HYPR or by BPTT that ends there: `(params, xs) -> (loss, params)`.

    Steps beyond a whole number of segments are left out.
    """
    optimiser = optax.adam(1e-3)
    learner = hj.hypr_stream(loss_fn) if hypr else hj.stream(loss_fn)

    def gradient(params, carry, xs):
        if hypr:
            return learner.value_and_grad(params, carry, xs)
        (loss, carry), grads = jax.value_and_grad(learner.apply, has_aux=True)(params, carry, xs)
        return (loss, grads), carry

    def learn(params, xs):
        full = len(xs["labels"]) // segment_length
        pieces = jax.tree.map(lambda x: x[: full * segment_length].reshape(full, -1, *x.shape[1:]), xs)

        def step(learning, piece):
            params, state, carry = learning
            (loss, grads), carry = gradient(params, carry, piece)
            updates, state = optimiser.update(grads, state)
            return (optax.apply_updates(params, updates), state, carry), loss

        carry = learner.init(params, jax.tree.map(lambda x: x[0], pieces))
        (params, _, _), losses = jax.lax.scan(step, (params, optimiser.init(params), carry), pieces)
        return losses.mean(), params

    return learn


def all_rules(
    case: Case, loss_fn: Callable, segment_lengths: list[int], scans: list[str], online_lengths: list[int]
) -> dict[str, Callable]:
    """Every rule of hyprjax itself by its label, which ends with the segment length; the default one is included."""
    default = default_length(case.steps)
    lengths = sorted({default, *(length for length in segment_lengths if length <= case.steps)})
    model = network(case)
    rules = {"forward": loss_fn, "bptt": jax.value_and_grad(loss_fn)}
    for length in sorted({bptt_length(case.steps), min(250, case.steps)}):
        rules[f"bptt checkpointed {length}"] = checkpointed(loss_fn, length)
    rules[f"hj.bptt {bptt_length(case.steps)}"] = exact(case)
    rules[f"hj.hypr {default}"] = jax.value_and_grad(loss_of(hj.hypr(model)))
    for scan in scans:
        for length in lengths:
            rules[f"hypr {scan} {length}"] = hj.hypr_value_and_grad(loss_fn, segment_length=length, scan=scan)
    credit = hj.hypr_value_and_grad(loss_fn, segment_length=default, recurrent_credit="segment")
    rules[f"hypr segment-credit {default}"] = credit
    rules[f"e-prop {default}"] = eprop(case)
    for length in online_lengths:
        if length <= case.steps:
            rules[f"online hypr {length}"] = online(loss_fn, length, hypr=True)
            rules[f"online bptt {length}"] = online(loss_fn, length, hypr=False)
    if case.batch * case.steps * case.neurons * (case.inputs + case.neurons) < 5e9:  # beyond, it takes minutes
        rules["step by step"] = step_by_step(case)
    return rules


def is_exact(rule: str) -> bool:
    """Whether this is one of the exact gradients in plain JAX, the faster of which is what others compare with."""
    return rule == "bptt" or rule.startswith("bptt checkpointed")


def check_step_by_step(case: Case) -> float:
    """Largest relative difference between the gradient step by step and HYPR's at λ = 1, on the first 20 steps."""
    case = case._replace(steps=20, batch=min(case.batch, 4))
    params, xs, loss_fn = problem(case)
    _, expected = jax.jit(hj.hypr_value_and_grad(loss_fn, segment_length=1))(params, xs)
    _, actual = jax.jit(step_by_step(case))(params, xs)
    errors = jax.tree.map(lambda a, b: jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-12), actual, expected)
    return float(max(jax.tree.leaves(errors)))
