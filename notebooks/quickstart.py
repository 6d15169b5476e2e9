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
# # From `jax.grad` to `hypr_grad`
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/hyprjax/hyprjax/blob/main/notebooks/quickstart.ipynb)
#
# A recurrent spiking network reads a handwritten digit one pixel at a time. We train it once with backpropagation through
# time (BPTT) and once with HYPR. The loss function is the same; only the transformation of it differs.

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
# ## Data
#
# Everything in hyprjax is time first: `[T, batch, channels]`. A digit has 64 pixels, each shown for four steps.

# %%
train_data, test_data = jax.device_put(hj.data.digits(hold=4))
train_data.inputs.shape, test_data.inputs.shape

# %% [markdown]
# ## A network is a function
#
# A *cell* is a neuron model, `init_layer` makes a layer's parameters (a plain dict), and `unroll` runs the layer over
# a sequence. Balanced resonate-and-fire neurons (BRF) oscillate, each at a frequency of its own, which is their memory.

# %%
cell = hj.brf(omega=(5.0, 60.0), b_offset=(0.1, 2.0))
readout = hj.leaky_integrator(tau=20.0)


def init(key):
    k1, k2 = jax.random.split(key)
    return {
        "hidden": hj.init_layer(k1, cell, n_in=1, n_out=64, recurrent=True),
        "readout": hj.init_layer(k2, readout, n_in=64, n_out=10),
    }


def forward(params, inputs):
    spikes = hj.unroll(cell, params["hidden"], inputs)
    return hj.unroll(readout, params["readout"], spikes), spikes


def loss_fn(params, xs):
    logits, _ = forward(params, xs["inputs"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, xs["targets"])
    late = xs["time"] > 0.75  # most of the digit has been seen
    return (losses * late).mean()


params = init(jax.random.key(0))
jax.tree.map(jnp.shape, params)

# %% [markdown]
# ## Two gradients of one loss
#
# `jax.grad` is BPTT: exact, and its memory grows with the length of the sequence. `hypr_grad` cuts the sequence into
# segments and carries eligibility traces from one to the next: its memory does not grow.


# %%
def batch_of(dataset, indices):
    batch = dataset.batch(indices)
    time = jnp.linspace(0, 1, dataset.steps)[:, None]
    return {"inputs": batch["inputs"], "targets": batch["targets"], "time": time}


rules = {
    "BPTT": jax.jit(jax.value_and_grad(loss_fn)),
    "HYPR": jax.jit(hj.hypr_value_and_grad(loss_fn, segment_length=64)),
}
batch = batch_of(train_data, np.arange(64))
for rule, value_and_grad in rules.items():
    loss, grads = value_and_grad(params, batch)
    print(f"{rule}: loss {loss:.4f}, |dL/dw_rec| = {jnp.linalg.norm(grads['hidden']['w_rec']):.2e}")

# %% [markdown]
# The loss is the same. The gradient is not quite: HYPR follows each neuron's own state exactly and leaves out what went
# through other neurons. What does it buy? Here is the memory that the two compiled programs ask for, at growing length.


# %%
def memory(transform, steps):
    xs = {"inputs": jnp.zeros((steps, 64, 1)), "targets": jnp.zeros((steps, 64), int), "time": jnp.ones((steps, 1))}
    return jax.jit(transform(loss_fn)).lower(params, xs).compile().memory_analysis().temp_size_in_bytes / 1e6


lengths = [250, 1000, 4000]
megabytes = {
    "BPTT": [memory(jax.grad, steps) for steps in lengths],
    "HYPR": [memory(hj.hypr_grad, steps) for steps in lengths],
}
for rule, values in megabytes.items():
    plt.plot(lengths, values, "o-", label=rule)
plt.xlabel("time steps")
plt.ylabel("temporary memory (MB)")
plt.legend();

# %% [markdown]
# ## Training
#
# Any Optax optimiser, any loop. `hj.project` after an update keeps neuron parameters where their model is defined: frequencies
# at which a neuron is stable, time constants that are positive.

# %%
EPOCHS, BATCH_SIZE = 10, 64
updates = EPOCHS * (train_data.size // BATCH_SIZE)
optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.1, updates)))
cells = {"hidden": cell, "readout": readout}
test_batch = batch_of(test_data, np.arange(test_data.size))


@jax.jit
def accuracy(params):
    logits, _ = forward(params, test_batch["inputs"])
    votes = jax.nn.log_softmax(logits) * (test_batch["time"] > 0.75)[..., None]
    return (votes.sum(0).argmax(-1) == test_data.targets).mean()


def train(value_and_grad):
    params = init(jax.random.key(0))
    state = optimiser.init(params)

    @jax.jit
    def update(params, state, indices):
        loss, grads = value_and_grad(params, batch_of(train_data, indices))
        updates, state = optimiser.update(grads, state)
        return hj.project(cells, optax.apply_updates(params, updates)), state, loss

    rng, curve = np.random.default_rng(0), [float(accuracy(params))]
    for _ in range(EPOCHS):
        for indices in rng.permutation(train_data.size)[: updates // EPOCHS * BATCH_SIZE].reshape(-1, BATCH_SIZE):
            params, state, _ = update(params, state, indices)
        curve.append(float(accuracy(params)))
    return params, curve


trained, curves = {}, {}
for rule, value_and_grad in rules.items():
    trained[rule], curves[rule] = train(value_and_grad)
    print(f"{rule}: {100 * curves[rule][-1]:.1f} % of the test digits")

# %%
hyprjax.plot.learning_curves({rule: curve[1:] for rule, curve in curves.items()}, ylabel="test accuracy");

# %% [markdown]
# ## What it learned
#
# The spikes that one test digit evokes, and the frequencies of the neurons before and after training.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
_, spikes = forward(trained["HYPR"], test_batch["inputs"][:, :1])
hyprjax.plot.raster(spikes[:, 0], ax=left)
hyprjax.plot.spectrum({"before": params["hidden"], "after": trained["HYPR"]["hidden"]}, ax=right);

# %% [markdown]
# ## Where to go from here
#
# - `neurons`: the other neuron models, and how to write your own in one function.
# - `streaming`: learning online, on a stream that never ends.
# - `hypr_explained`: what HYPR computes, step by step, with every identity checked.
