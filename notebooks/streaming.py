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
# # Learning on a stream that never ends
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/hyprjax/hyprjax/blob/main/notebooks/streaming.ipynb)
#
# `hypr_stream` turns a loss function into an online learner. All that it remembers is a *carry* of fixed size: states, last
# outputs and eligibility traces. Here a network watches a process through level-crossing events, tells where it was 50 steps
# ago, updates after every 10 steps, and has to learn anew when the process changes.

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
# ## The process
#
# Two beats of wandering rate. A sensor reports only events: a channel fired because its signal rose or fell by 0.2. After
# 60,000 steps somebody swaps the electrodes.

# %%
STEPS, SWAP, LAG, SEGMENT = 120_000, 60_000, 50, 10
rate = 1 + 0.3 * np.sin(2 * np.pi * np.arange(STEPS) / 40_000)
phase = 2 * np.pi * np.cumsum(rate) / 150
signal = np.stack([np.sin(phase) + 0.5 * np.sin(3 * phase), np.cos(phase) + 0.5 * np.sin(2 * phase)], 1)
events = np.minimum(hj.data.level_crossing(signal, 0.2), 1).astype(np.float32)
after = (np.arange(STEPS) >= SWAP)[:, None]
targets = np.roll(np.where(after, signal[:, 1:], signal[:, :1]), LAG, axis=0).astype(np.float32)

figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 4), sharex=True, layout="constrained")
top.plot(signal[:600])
hyprjax.plot.raster(events[:600], ax=bottom);

# %% [markdown]
# ## The learner
#
# `init` makes the carry, `value_and_grad` takes it and returns the next one. The gradient reaches back beyond the segment,
# because the traces do.

# %%
cell, readout = hj.brf(omega=(3.0, 20.0), b_offset=(0.1, 2.0)), hj.leaky_integrator(tau=3.0)
k1, k2 = jax.random.split(jax.random.key(0))
params = {
    "hidden": hj.init_layer(k1, cell, n_in=4, n_out=64, recurrent=True),
    "readout": hj.init_layer(k2, readout, n_in=64, n_out=1),
}
before = params


def loss_fn(params, xs):
    spikes = hj.unroll(cell, params["hidden"], xs["inputs"])
    prediction = hj.unroll(readout, params["readout"], spikes)
    return jnp.square(prediction - xs["targets"]).mean(), prediction


learner = hj.hypr_stream(loss_fn, has_aux=True)
optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
cells = {"hidden": cell, "readout": readout}


def learn(state, xs):
    params, opt_state, carry = state
    ((loss, prediction), grads), carry = learner.value_and_grad(params, carry, xs)
    updates, opt_state = optimiser.update(grads, opt_state, params)
    params = hj.project(cells, optax.apply_updates(params, updates))  # frequencies stay stable, time constants positive
    return (params, opt_state, carry), (loss, prediction)


# %% [markdown]
# A real stream comes segment by segment and calls a jitted `learn`. To be quick here, 1,200 segments at a time go through
# `lax.scan`. The carry is as large at the end as it was at the beginning.

# %%
segments = {
    "inputs": jnp.asarray(events).reshape(-1, SEGMENT, 1, 4),
    "targets": jnp.asarray(targets).reshape(-1, SEGMENT, 1, 1),
}
carry = learner.init(params, jax.tree.map(lambda x: x[0], segments))
state = (params, optimiser.init(params), carry)
size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
print(f"carry: {size(carry) / 1e3:.0f} kB")

learn_many = jax.jit(lambda state, xs: jax.lax.scan(learn, state, xs))
losses, predictions = [], []
for start in range(0, STEPS // SEGMENT, 1200):
    part = {name: x[start : start + 1200] for name, x in segments.items()}
    state, (loss, prediction) = learn_many(state, part)
    losses.append(loss)
    predictions.append(prediction.ravel())
losses, predictions = np.concatenate(losses), np.concatenate(predictions)
print(f"carry: {size(state[2]) / 1e3:.0f} kB after {STEPS:,} steps")

# %%
smooth = losses.reshape(-1, 100).mean(1)
plt.semilogy(np.arange(len(smooth)) * 100 * SEGMENT, smooth)
plt.axvline(SWAP, color="grey", ls=":")
plt.xlabel("step")
plt.ylabel("mean squared error")
plt.title("the electrodes are swapped at the dotted line");

# %%
last = slice(STEPS - 600, STEPS)
plt.figure(figsize=(11, 3))
plt.plot(targets[last], label="50 steps ago")
plt.plot(predictions[last], label="the network's answer")
plt.legend(loc="upper right");

# %% [markdown]
# ## Episodes in a stream
#
# Where a new recording or episode begins, `resets` puts state, last spike and traces back to rest, for each element of a
# batch on its own. Whatever came before has no influence on what follows, nor on its gradient.

# %%
params, _, _ = state
x = jnp.asarray(events[:200]).reshape(200, 1, 4)
resets = jnp.zeros((200, 1), bool).at[120].set(True)
spikes = hj.unroll(cell, params["hidden"], x, resets=resets)
fresh = hj.unroll(cell, params["hidden"], x[120:])
assert jnp.array_equal(spikes[120:], fresh)

# %% [markdown]
# ## Using the network
#
# `stream` gives the same functions without traces: one step at a time, as a sensor delivers them.

# %%
net = hj.stream(lambda params, x: hj.unroll(readout, params["readout"], hj.unroll(cell, params["hidden"], x)))
apply, carry = jax.jit(net.apply), net.init(params, x[:1])
answers = []
for t in range(200):
    answer, carry = apply(params, carry, x[t : t + 1])
    answers.append(answer)
print(f"carry without traces: {size(carry) / 1e3:.1f} kB")
whole = hj.unroll(readout, params["readout"], hj.unroll(cell, params["hidden"], x))
assert jnp.allclose(jnp.concatenate(answers), whole, atol=1e-5)

# %% [markdown]
# What did it learn? Among other things, frequencies.

# %%
hyprjax.plot.spectrum({"before": before["hidden"], "after": params["hidden"]});

# %% [markdown]
# A run of days wants checkpoints that survive a crash, and updates that a broken sensor cannot spoil: `examples/stream.py`
# does both, for a million steps, and the page on streams in the documentation tells how.
