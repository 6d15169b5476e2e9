"""Slow, obvious reference implementations: Python loops, dense Jacobians. Nothing here is shared with the library."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient


@partial(jax.jit, static_argnames=("cell", "cut"))
def step_layer(cell, params, state, z, x, reset=None, cut=False):
    """One step of one layer, `z` its last output; with `cut`, no gradient through `z @ w_rec`."""
    if reset is not None:
        rest = cell.rest(params["neuron"], x.shape[:-1], x.dtype)
        state = jax.tree.map(lambda r, s: jnp.where(reset[..., None], r, s), rest, state)
        z = jnp.where(reset[..., None], 0.0, z)
    current = x @ params["w_in"]
    if "w_rec" in params:
        current = current + (stop_gradient(z) if cut else z) @ params["w_rec"]
    if "bias" in params:
        current = current + params["bias"]
    return cell.step(params["neuron"], state, current)


def unroll(cell, params, inputs, resets=None, cut=False):
    """`hyprjax.unroll` as a Python loop; `jax.grad` of it is BPTT, with `cut` BPTT less explicit recurrence."""
    batch_shape, n = inputs.shape[1:-1], params["w_in"].shape[1]
    state = cell.rest(params["neuron"], batch_shape, inputs.dtype)
    z = jnp.zeros((*batch_shape, n), inputs.dtype)
    outputs = []
    for t, x in enumerate(inputs):
        state, z = step_layer(cell, params, state, z, x, None if resets is None else resets[t], cut)
        outputs.append(z)
    return jnp.stack(outputs)


def run_stack(cells, params, inputs, resets=None, cut=False):
    for cell, layer in zip(cells, params, strict=True):
        inputs = unroll(cell, layer, inputs, resets, cut)
    return inputs


def bptt(cells, loss, params, inputs, resets=None, cut=False):
    """Gradient of `loss(outputs of the stack)` by backpropagation through the loops."""
    return jax.grad(lambda params: loss(run_stack(cells, params, inputs, resets, cut)))(params)


def block_rtrl(cell, params, inputs, zeta, resets=None):
    """Real-time recurrent learning of one layer, one batch element, cross-neuron Jacobian blocks set to zero.

    The full Jacobian of (state, output) over (state, output) is made dense, what connects different
    neurons through `w_rec` is zeroed, and the sensitivity to every single parameter is carried
    forward. `zeta` `[T, n]` is the loss gradient of each output.
    """
    n = params["w_in"].shape[1]
    theta, unravel = ravel_pytree(params)
    state = cell.rest(params["neuron"], (), inputs.dtype)
    flat_state, unravel_state = ravel_pytree(state)
    k = flat_state.size // n
    neuron_of = np.tile(np.arange(n), k)
    same_neuron = neuron_of[:, None] == neuron_of[None, :]

    def rest(theta):
        return ravel_pytree(cell.rest(unravel(theta)["neuron"], (), inputs.dtype))[0]

    @jax.jit
    def jacobians(theta, flat_state, z, x):
        def step(theta, flat_state):
            state, output = step_layer(cell, unravel(theta), unravel_state(flat_state), z, x)
            return ravel_pytree(state)[0], output

        return step(theta, flat_state), jax.jacfwd(step, argnums=(0, 1))(theta, flat_state)

    sensitivity, z, grad = jax.jacfwd(rest)(theta), jnp.zeros(n, inputs.dtype), jnp.zeros_like(theta)
    for t, x in enumerate(inputs):
        if resets is not None and resets[t]:
            flat_state, sensitivity, z = rest(theta), jax.jacfwd(rest)(theta), jnp.zeros_like(z)
        (flat_state, z), ((s_theta, s_state), (z_theta, z_state)) = jacobians(theta, flat_state, z, x)
        z_state = z_state * (np.arange(n)[:, None] == neuron_of[None, :])
        dz = z_theta + z_state @ sensitivity
        sensitivity = s_theta + (s_state * same_neuron) @ sensitivity
        grad = grad + zeta[t] @ dz
    return unravel(grad)


def eprop(cell, params, inputs, zeta):
    """e-prop of one layer, step by step over explicit traces `[batch, P, k, n]`, without resets."""
    batch, n = inputs.shape[1], params["w_in"].shape[1]
    neuron = params["neuron"]
    neuron_leaves, neuron_tree = jax.tree.flatten(neuron)

    def scalar_step(phi, s, current):
        """One neuron: vectors of its parameters and state variables in and out."""
        state, z = cell.step(neuron_tree.unflatten([p[None] for p in phi]), unflatten(s), current[None])
        return jnp.concatenate(jax.tree.leaves(state)), z[0]

    state = cell.rest(neuron, (batch,), inputs.dtype)
    leaves, tree = jax.tree.flatten(state)

    def unflatten(s):
        return jax.tree.unflatten(tree, [v[None] for v in s])

    per_neuron = jax.vmap(jax.vmap(jax.jacfwd(scalar_step, argnums=(0, 1, 2)), (0, 0, 0)), (None, 0, 0))
    phi = jnp.stack(neuron_leaves, -1)
    k, rows = len(leaves), params["w_in"].shape[0] + n + 1

    def rest_of_neuron(phi):
        state = cell.rest(neuron_tree.unflatten([p[None] for p in phi]), (), inputs.dtype)
        return jnp.concatenate(jax.tree.leaves(state))

    trace = jnp.zeros((batch, rows, n, k))
    trace_phi = jnp.broadcast_to(jax.vmap(jax.jacfwd(rest_of_neuron))(phi), (batch, n, k, len(neuron_leaves)))
    z, dW, dphi = jnp.zeros((batch, n)), jnp.zeros((rows, n)), jnp.zeros((n, len(neuron_leaves)))
    for t, x in enumerate(inputs):
        pre = jnp.concatenate([x, z, jnp.ones((batch, 1))], -1)
        current = pre @ jnp.concatenate([params["w_in"], params["w_rec"], params["bias"][None]])
        stacked = jnp.stack(jax.tree.leaves(state), -1)
        (D, J, B), (h, G, g) = per_neuron(phi, stacked, current)
        dz = jnp.einsum("bnd,bpnd->bpn", G, trace) + g[:, None] * pre[..., None]
        dz_phi = jnp.einsum("bnd,bndi->bni", G, trace_phi) + h
        trace = jnp.einsum("bncd,bpnd->bpnc", J, trace) + B[:, None] * pre[..., None, None]
        trace_phi = jnp.einsum("bncd,bndi->bnci", J, trace_phi) + D
        dW = dW + jnp.einsum("bn,bpn->pn", zeta[t], dz)
        dphi = dphi + jnp.einsum("bn,bni->ni", zeta[t], dz_phi)
        state, z = cell.step(neuron, state, current)
    m = params["w_in"].shape[0]
    d_neuron = neuron_tree.unflatten(list(dphi.T))
    return {"w_in": dW[:m], "w_rec": dW[m : m + n], "bias": dW[-1], "neuron": d_neuron}
