# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Neuron models: the zoo, and one of your own
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/hyprjax/hyprjax/blob/main/notebooks/neurons.ipynb)

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("hyprjax") is None:  # in Colab, say
    hyprjax = "hyprjax[examples] @ git+https://github.com/hyprjax/hyprjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", hyprjax], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import hyprjax as hj
import hyprjax.data
import hyprjax.plot

# %% [markdown]
# ## The zoo
#
# Every model is a `Cell` of three pure functions: `init` draws neuron parameters, `rest` is the state before any
# input, and `step` is the model itself. Here each one gets a current for 200 of 300 steps. Oscillating models answer with
# a rhythm, adapting ones with a rate that falls.

# %%
zoo = {
    "lif": (hj.lif(), 0.12),
    "cuba_lif": (hj.cuba_lif(), 0.2),
    "alif": (hj.alif(tau_a=100.0), 0.1),
    "ef_adlif": (hj.ef_adlif(), 5.0),
    "se_adlif": (hj.se_adlif(), 5.0),
    "rf": (hj.rf(omega=10.0, b_offset=1.5), 8.0),
    "brf": (hj.brf(omega=10.0, b_offset=1.0), 14.0),
    "filtered(lif)": (hj.filtered(hj.lif()), 0.4),
}
window = jnp.where((jnp.arange(300) >= 50) & (jnp.arange(300) < 250), 1.0, 0.0)[:, None]
figure, axes = plt.subplots(4, 2, figsize=(12, 10), sharex=True, layout="constrained")
for ax, (name, (cell, current)) in zip(axes.flat, zoo.items(), strict=True):
    layer = hj.init_layer(jax.random.key(1), cell, n_in=1, n_out=1)
    hyprjax.plot.membrane(cell, layer | {"w_in": jnp.full((1, 1), current)}, window, ax=ax)
    ax.set(title=name, xlabel="")

# %% [markdown]
# ## Eligibility traces
#
# The trace of a synapse is how much the neuron's state would change with its weight: `∂s/∂w`. It is HYPR's memory. A
# leaky neuron's trace fades; that of an oscillating one rings, so that an input of a while ago counts with the sign of its phase.

# %%
events = jax.random.bernoulli(jax.random.key(2), 0.03, (300, 8))
figure, axes = plt.subplots(1, 2, figsize=(12, 3.5), layout="constrained")
for ax, name, variable in zip(axes, ("lif", "brf"), ("v", "u"), strict=True):
    cell = zoo[name][0]
    layer = hj.init_layer(jax.random.key(3), cell, n_in=8, n_out=4)
    hyprjax.plot.eligibility(cell, layer, events, variable=variable, ax=ax)
    ax.set_title(name)

# %% [markdown]
# ## A neuron of your own
#
# Take a quadratic integrate-and-fire neuron with a slow recovery variable, in the manner of Izhikevich (2003): a nonlinear membrane, two coupled
# state variables, a reset that depends on neuron parameters. It is one function. Nobody derives a trace by hand;
# the library differentiates `step`.

# %%
spike = hj.surrogate.fast_sigmoid(slope=5.0)


def step(neuron, state, current):
    v, u = state["v"], state["u"]
    v = v + 0.1 * (v**2 - v - u + current)
    u = u + 0.1 * neuron["a"] * (neuron["b"] * v - u)
    z = spike(v - 1.5)
    v = jnp.clip(v, -2.0, 1.5) * (1 - z)  # the upstroke is cut where the spike is
    return {"v": v, "u": u + neuron["d"] * z}, z


izhikevich = hj.Cell(
    init=lambda key, n: {"a": jnp.full(n, 0.3), "b": jnp.full(n, 0.5), "d": jnp.full(n, 0.3)},
    rest=lambda neuron, batch_shape, dtype: {
        name: jnp.zeros((*batch_shape, len(neuron["a"])), dtype) for name in ("v", "u")
    },
    step=step,
    name="izhikevich",
)
layer = hj.init_layer(jax.random.key(1), izhikevich, n_in=1, n_out=1)
hyprjax.plot.membrane(izhikevich, layer | {"w_in": jnp.full((1, 1), 1.5)}, window);

# %% [markdown]
# ## Is its gradient right?
#
# With one segment as long as the sequence and `recurrent_credit="segment"`, HYPR *is* backpropagation through time, whatever
# the cell. With shorter segments it is an approximation; a cosine tells how close.

# %%
task = hj.data.delayed_match(256, seed=0, symbols=2, cue_steps=20, delay_steps=20, recall_steps=20, group=2, rate=0.5)
targets, weights = jnp.broadcast_to(task.targets, task.mask.shape), task.mask / task.mask.sum()  # of each step
batch = {"inputs": task.inputs, "targets": targets, "weights": weights}

readout = hj.leaky_integrator(tau=10.0)
k1, k2 = jax.random.split(jax.random.key(0))
hidden = hj.init_layer(k1, izhikevich, n_in=task.inputs.shape[-1], n_out=40, recurrent=True)
params = {
    "hidden": hidden | {"w_in": 4 * jnp.abs(hidden["w_in"])},
    "readout": hj.init_layer(k2, readout, n_in=40, n_out=2),
}


def loss_fn(params, xs):
    spikes = hj.unroll(izhikevich, params["hidden"], xs["inputs"])
    logits = hj.unroll(readout, params["readout"], spikes)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, xs["targets"])
    return (losses * xs["weights"]).sum()  # a sum over steps, so that it may be cut into segments


def cosine(a, b):
    a, b = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree["hidden"])]) for tree in (a, b))
    return a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)


exact = jax.jit(jax.grad(loss_fn))(params, batch)
for length, credit in [(80, "segment"), (80, "none"), (20, "none"), (1, "none")]:
    grads = jax.jit(hj.hypr_grad(loss_fn, segment_length=length, recurrent_credit=credit))
    print(f"segments of {length:3}, credit {credit:8}: cosine {cosine(grads(params, batch), exact):.4f}")
