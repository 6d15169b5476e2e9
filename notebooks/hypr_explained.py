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
# # HYPR, step by step
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/hyprjax/hyprjax/blob/main/notebooks/hypr_explained.ipynb)
#
# We derive the algorithm (Baronig et al. 2025, [arXiv:2506.14464](https://arxiv.org/abs/2506.14464)) for one layer with plain
# loops, check every step against the one before in float64, and end with the library's own result. Then a second layer
# comes on top, and we see what is lost.

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
from jax.lax import stop_gradient

import hyprjax as hj
import hyprjax.plot

jax.config.update("jax_enable_x64", True)


def same(a, b, tolerance=1e-10):
    """Whether two pytrees are equal, up to rounding."""
    differences = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)
    assert max(jax.tree.leaves(differences)) < tolerance, differences
    print(f"equal; the largest difference is {max(jax.tree.leaves(differences)):.0e}")


# %% [markdown]
# ## 1. The network
#
# $T$ steps, $m$ inputs, $n$ neurons with $k$ state variables each:
#
# $$I_t = x_t W_{in} + z_{t-1} W_{rec} + b, \qquad (s_t, z_t) = \mathrm{step}(\varphi, s_{t-1}, I_t)$$
#
# We take adaptive LIF neurons ($k=2$), one sequence, and a loss that looks at every step's spikes.

# %%
T, m, n = 60, 3, 5
cell = hj.alif(tau=5.0, tau_a=30.0)
params = hj.init_layer(jax.random.key(0), cell, n_in=m, n_out=n, recurrent=True, dtype=float)
params["w_in"] = jnp.abs(params["w_in"])
x = jax.random.uniform(jax.random.key(1), (T, m), float)
weights = jax.random.normal(jax.random.key(2), (T, n), float)


def loss_of_outputs(z):
    return (weights * jnp.sin(2 * z)).sum()


def step(params, s, z, x):
    current = x @ params["w_in"] + z @ params["w_rec"] + params["bias"]
    return cell.step(params["neuron"], s, current)


def outputs(params, cut=lambda z: z):
    s, z, zs = cell.rest(params["neuron"], (), float), jnp.zeros(n), []
    for t in range(T):
        s, z = step(params, s, cut(z), x[t])
        zs.append(z)
    return jnp.stack(zs)


z = outputs(params)
assert jnp.array_equal(z, hj.unroll(cell, params, x))
hyprjax.plot.raster(z, ax=plt.figure(figsize=(8, 2)).add_subplot());

# %% [markdown]
# ## 2. What is cut
#
# The loss depends on a weight along two kinds of paths. The *implicit* recurrence runs through a neuron's own state, reset and
# adaptation included. The *explicit* one runs through spikes and $W_{rec}$ into other neurons. HYPR, like e-prop, keeps the first
# and cuts the second: a `stop_gradient` on $z_{t-1}$. That is the only approximation in this layer.

# %%
exact = jax.grad(lambda params: loss_of_outputs(outputs(params)))(params)
target = jax.grad(lambda params: loss_of_outputs(outputs(params, cut=stop_gradient)))(params)


def cosine(a, b):
    a, b = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


print(f"cosine between the exact gradient and that without explicit recurrence: {cosine(exact, target):.3f}")

# %% [markdown]
# What comes now computes `target` without ever going back through all of time.
#
# ## 3. Local derivatives
#
# Per step and neuron, all element-wise over neurons:
# $J_t = \partial s_t / \partial s_{t-1}$ ($k \times k$), $B_t = \partial s_t / \partial I_t$,
# $G_t = \partial z_t / \partial s_{t-1}$, $g_t = \partial z_t / \partial I_t$. Because `step` is element-wise, one `jvp` with
# ones in one component gives a whole column for all neurons.

# %%
names = ["a", "v"]  # the state variables, in the order of jax.tree.leaves
k = len(names)


def local_derivatives(s, current):
    f = lambda s, current: cell.step(params["neuron"], s, current)
    zero, one = jnp.zeros(n), jnp.ones(n)
    J, G = [], []
    for name in names:
        tangent = {other: one if other == name else zero for other in names}
        _, (ds, dz) = jax.jvp(f, (s, current), (tangent, zero))
        J.append([ds[row] for row in names])
        G.append(dz)
    _, (ds, g) = jax.jvp(f, (s, current), (dict.fromkeys(names, zero), one))
    # J[row][column], B[row], G[column]
    return jnp.stack([jnp.stack(column) for column in J], 1), jnp.stack([ds[row] for row in names]), jnp.stack(G), g


s, z_before, J, B, G, g = cell.rest(params["neuron"], (), float), jnp.zeros(n), [], [], [], []
for t in range(T):
    current = x[t] @ params["w_in"] + z_before @ params["w_rec"] + params["bias"]
    for values, value in zip((J, B, G, g), local_derivatives(s, current), strict=True):
        values.append(value)
    s, z_before = cell.step(params["neuron"], s, current)
J, B, G, g = map(jnp.stack, (J, B, G, g))
zeta = jax.grad(loss_of_outputs)(z)  # the learning signal dL/dz_t
J.shape, B.shape, G.shape, g.shape, zeta.shape

# %% [markdown]
# ## 4. e-prop: traces forward, one step at a time
#
# The eligibility trace $\varepsilon_t = \partial s_t / \partial W$ of all synapses from $p_t = [x_t, z_{t-1}, 1]$ obeys
# $\varepsilon_t = J_t \varepsilon_{t-1} + B_t \otimes p_t$, and
#
# $$\frac{dL}{dW} = \sum_t \zeta_t \left( G_t \varepsilon_{t-1} + g_t \, p_t \right).$$
#
# It is forward in time, online, of constant memory, and slow: every step reads and writes $k (m+n+1) n$ numbers.

# %%
p = jnp.concatenate([x, jnp.concatenate([jnp.zeros((1, n)), z[:-1]]), jnp.ones((T, 1))], axis=1)  # [T, m+n+1]


def rows(dW):
    return {"w_in": dW[:m], "w_rec": dW[m : m + n], "bias": dW[m + n]}


trace, eprop = jnp.zeros((k, m + n + 1, n)), 0.0
for t in range(T):
    eprop += zeta[t] * (jnp.einsum("cn,cpn->pn", G[t], trace) + g[t] * p[t][:, None])
    trace = jnp.einsum("rcn,cpn->rpn", J[t], trace) + B[t][:, None, :] * p[t][:, None]

synapses = lambda grads: {name: grads[name] for name in ("w_in", "w_rec", "bias")}
same(rows(eprop), synapses(target))

# %% [markdown]
# ## 5. Backwards inside a segment
#
# The same sum can be ordered the other way. Go back through time along each neuron's own state,
#
# $$q_\lambda = 0, \qquad q_{t-1} = J_t^\top q_t + G_t \zeta_t, \qquad \delta_t = B_t \cdot q_t + g_t \zeta_t,$$
#
# and the gradient is a matrix product over time, $dW = \sum_t p_t^\top \delta_t$. No traces; $q$ is a *linear* recursion, which a
# parallel scan solves in logarithmic depth. But over the whole sequence this needs all of it in memory, as BPTT does.


# %%
def backward(first, last):
    q, delta = jnp.zeros((k, n)), []
    for t in reversed(range(first, last)):
        delta.append((B[t] * q).sum(0) + g[t] * zeta[t])
        q = jnp.einsum("rcn,rn->cn", J[t], q) + G[t] * zeta[t]
    return q, jnp.stack(delta[::-1])


_, delta = backward(0, T)
same(rows(p.T @ delta), synapses(target))

# %% [markdown]
# ## 6. HYPR: backwards inside, traces across
#
# Cut the sequence into segments of $\lambda$ steps. Inside a segment, go backwards as in 5. What happened before the segment
# enters through the incoming trace: $q_0$ says what the state at the segment's start is worth to its loss, so the earlier
# inputs get $q_0 \cdot \varepsilon_0$.
#
# $$dW = \sum_t p_t^\top \delta_t + q_0 \cdot \varepsilon_0$$
#
# The traces make the jump over the whole segment at once. With $R_\lambda = 1$, $R_{t-1} = R_t J_t$ (a linear recursion again),
#
# $$\varepsilon_\lambda = R_0 \varepsilon_0 + \sum_t p_t \otimes (R_t B_t),$$
#
# and the sum is one matrix product. So the large arrays are touched once per segment instead of once per step.


# %%
def hypr(segment_length):
    trace, dW = jnp.zeros((k, m + n + 1, n)), 0.0
    for first in range(0, T, segment_length):
        last = min(first + segment_length, T)
        q0, delta = backward(first, last)
        dW += p[first:last].T @ delta + jnp.einsum("cn,cpn->pn", q0, trace)
        R, RB = jnp.broadcast_to(jnp.eye(k)[..., None], (k, k, n)), []
        for t in reversed(range(first, last)):
            RB.append(jnp.einsum("rcn,cn->rn", R, B[t]))
            R = jnp.einsum("rin,icn->rcn", R, J[t])
        added = jnp.einsum("tp,trn->rpn", p[first:last], jnp.stack(RB[::-1]))
        trace = jnp.einsum("rcn,cpn->rpn", R, trace) + added
    return rows(dW)


for segment_length in (1, 7, 20, T):
    print(f"λ = {segment_length:2}: ", end="")
    same(hypr(segment_length), synapses(target))

# %% [markdown]
# For a single layer, the result does not depend on $\lambda$. And this is what the library computes:

# %%
library_loss = lambda params, xs: (xs["weights"] * jnp.sin(2 * hj.unroll(cell, params, xs["x"]))).sum()
for segment_length in (1, 7, 20, T):
    grads = hj.hypr_grad(library_loss, segment_length=segment_length, reduction="sum")
    print(f"λ = {segment_length:2}: ", end="")
    same(grads(params, {"x": x, "weights": weights}), target)

# %% [markdown]
# That comparison included the neuron parameters `tau`, `tau_a` and `beta`: their traces follow the same recursions, with
# $D_t = \partial s_t / \partial \varphi$ in the place of $B_t \otimes p_t$.
#
# ## 7. The traces
#
# What neuron 2 remembers of its synapses: the membrane's traces fade within some steps, those of the adaptation last.

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 3), layout="constrained")
for ax, variable in zip(axes, ("v", "a"), strict=True):
    hyprjax.plot.eligibility(cell, params, x, neuron=2, variable=variable, ax=ax)

# %% [markdown]
# ## 8. Two layers: what is lost beyond a segment
#
# Put a leaky readout on top. Its own gradient is the same for every $\lambda$. But the error that would come back to this
# segment's spikes *from later segments, through the readout's state* is lost, for the segment is over by then. It
# matters less the longer a segment is compared with the readout's time constant.

# %%
readout = hj.leaky_integrator(tau=5.0)
stack = {"hidden": params, "readout": hj.init_layer(jax.random.key(3), readout, n_in=n, n_out=2, dtype=float)}
xs = {"x": x, "targets": jax.random.normal(jax.random.key(4), (T, 2), float)}


def stack_loss(stack, xs):
    spikes = hj.unroll(cell, stack["hidden"], xs["x"])
    return jnp.square(hj.unroll(readout, stack["readout"], spikes) - xs["targets"]).mean()


bptt = jax.grad(stack_loss)(stack, xs)
lengths, cosines = [1, 2, 3, 5, 10, 20, 60], {"none": [], "segment": []}
for credit, values in cosines.items():
    for segment_length in lengths:
        grads = hj.hypr_grad(stack_loss, segment_length=segment_length, recurrent_credit=credit)(stack, xs)
        values.append(cosine(grads["hidden"], bptt["hidden"]))
for credit, values in cosines.items():
    plt.semilogx(lengths, values, "o-", label=f'recurrent_credit="{credit}"')
plt.axvline(5, color="grey", ls=":")
plt.xlabel("segment length λ (dotted: the readout's time constant)")
plt.ylabel("cosine with BPTT, hidden layer")
plt.legend();

# %% [markdown]
# ## 9. A dial from e-prop to BPTT
#
# `recurrent_credit="segment"` keeps the explicit recurrence inside each segment as well: $\zeta_{t-1}$ gets
# $\delta_t W_{rec}^\top$ added. At $\lambda = T$ nothing is approximate any more.

# %%
grads = hj.hypr_grad(stack_loss, segment_length=T, recurrent_credit="segment")(stack, xs)
same(grads, bptt)
