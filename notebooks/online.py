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
# # An update every fifty steps
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/hyprjax/hyprjax/blob/main/notebooks/online.ipynb)
#
# A recording of a heart is 1300 steps long. Backpropagation through time (BPTT) learns from it once, at its end. An online learner updates
# the network every 50 steps, 26 times as often. If that learner is truncated BPTT, no update knows what was before its
# 50 steps. HYPR's updates do: eligibility traces carry it on. This notebook trains the same network in all three ways.

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
import numpy as np
import optax

import hyprjax as hj
import hyprjax.data
import hyprjax.plot

# %% [markdown]
# ## Which wave of the heartbeat is it?
#
# QTDB in four channels of level-crossing spikes, two for each lead, and at every step one of six labels. The environment variable
# `HYPRJAX_DATA` names the folder with the two files.

# %%
train, test = jax.device_put(hj.data.ecg_qtdb())
train.inputs.shape, test.inputs.shape

# %%
fig, (top, bottom) = plt.subplots(2, sharex=True, figsize=(8, 3.2), layout="constrained")
hj.plot.raster(train.inputs[:, 0], ax=top)
top.set(ylabel="channel", xlabel="")
bottom.step(np.arange(train.steps), train.targets[:, 0], lw=1)
bottom.set(ylabel="wave", xlabel="step");

# %% [markdown]
# ## One network, one loss

# %%
cell = hj.brf(omega=(3.0, 5.0), b_offset=(0.1, 1.0), dt=0.01)
readout = hj.leaky_integrator(tau=20.0)
EVERY, BATCH, EPOCHS = 50, 16, 8


def init(key):
    k1, k2 = jax.random.split(key)
    return {
        "hidden": hj.init_layer(k1, cell, 4, 36, recurrent=True, bias=False, weights=hj.weights.glorot_uniform),
        "readout": hj.init_layer(k2, readout, 36, 6, bias=False),
    }


def logits(params, inputs):
    return hj.unroll(readout, params["readout"], hj.unroll(cell, params["hidden"], inputs))


def losses(params, xs):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, xs["inputs"]), xs["targets"])


def loss_fn(params, xs):
    return losses(params, xs).mean()


# %% [markdown]
# ## Three ways to learn from a batch
#
# BPTT is `jax.grad` of the model wrapped in `hj.bptt`, the same gradient in less memory. The two online learners differ in one line: what turns a
# segment of 50 steps into a gradient. `recurrent_credit="segment"` lets HYPR's credit pass through the recurrent weights inside a segment, as
# truncated BPTT's does; beyond the segment it has its traces, and truncated BPTT has nothing.

# %%
learner, net = hj.hypr_stream(loss_fn, recurrent_credit="segment"), hj.stream(loss_fn)
exact = hj.bptt(losses)


def bptt(update, learning, batch):
    params, state = learning
    return update(params, state, jax.grad(lambda params: exact(params, batch).mean())(params))


def online(start, gradient, update, learning, batch):
    segments = jax.tree.map(lambda x: x.reshape(-1, EVERY, *x.shape[1:]), batch)

    def learn_segment(learning, segment):
        params, state, carry = learning
        grads, carry = gradient(params, carry, segment)
        return (*update(params, state, grads), carry), None

    carry = start(learning[0], jax.tree.map(lambda x: x[0], segments))
    return jax.lax.scan(learn_segment, (*learning, carry), segments)[0][:2]


def hypr_gradient(params, carry, segment):
    (_, grads), carry = learner.value_and_grad(params, carry, segment)
    return grads, carry


truncated_gradient = jax.grad(net.apply, has_aux=True)

# %% [markdown]
# ## Training
#
# Adam with linear decay, the same batches for all.

# %%
BATCHES = train.size // BATCH
RULES = {
    "BPTT": (bptt, 1),
    "truncated BPTT, every 50 steps": (lambda *args: online(net.init, truncated_gradient, *args), train.steps // EVERY),
    "HYPR, every 50 steps": (lambda *args: online(learner.init, hypr_gradient, *args), train.steps // EVERY),
}


def accuracy(params):
    answers = logits(params, test.inputs.astype(jnp.float32)).argmax(-1)
    return (answers == test.targets).mean()


def train_with(learn, updates_per_batch):
    optimiser = optax.adam(optax.linear_schedule(0.1, 0.0, EPOCHS * BATCHES * updates_per_batch))

    def update(params, state, grads):
        changes, state = optimiser.update(grads, state)
        return optax.apply_updates(params, changes), state

    def learn_batch(learning, indices):
        batch = {"inputs": train.inputs[:, indices].astype(jnp.float32), "targets": train.targets[:, indices]}
        return learn(update, learning, batch), None

    @jax.jit
    def epoch(learning, key):
        order = jax.random.permutation(key, train.size)[: BATCHES * BATCH].reshape(BATCHES, BATCH)
        learning, _ = jax.lax.scan(learn_batch, learning, order)
        return learning, accuracy(learning[0])

    params = init(jax.random.key(0))
    learning, curve = (params, optimiser.init(params)), []
    for key in jax.random.split(jax.random.key(1), EPOCHS):
        learning, right = epoch(learning, key)
        curve.append(100 * float(right))
    return learning[0], curve


trained = {name: train_with(*rule) for name, rule in RULES.items()}

# %%
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, (_, curve) in trained.items():
    ax.plot(range(1, EPOCHS + 1), curve, marker="o", ms=3, label=f"{name}: {curve[-1]:.1f} %")
ax.set(xlabel="pass over the data", ylabel="test accuracy, %")
ax.legend(fontsize=8);

# %% [markdown]
# ## A recording it has not seen

# %%
params, _ = trained["HYPR, every 50 steps"]
answers = logits(params, test.inputs[:, :1].astype(jnp.float32)).argmax(-1)[:, 0]
fig, ax = plt.subplots(figsize=(8, 2.2), layout="constrained")
ax.step(np.arange(test.steps), test.targets[:, 0], lw=1, color="gray", label="labelled")
ax.step(np.arange(test.steps), answers, lw=1, color="C2", label="read")
ax.set(ylabel="wave", xlabel="step")
ax.legend(fontsize=8);

# %% [markdown]
# Eight passes and one seed make a short run. Eight seeds, forty passes and all intervals between updates are in
# [the results](https://github.com/hyprjax/hyprjax/blob/main/docs/results.md#online), and what the same learner does on a stream
# without an end in [the notebook on streaming](https://github.com/hyprjax/hyprjax/blob/main/notebooks/streaming.ipynb).
