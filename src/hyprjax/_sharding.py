"""Arrays on a mesh of devices: the batch over some of them, the neurons over others.

With axes of type `Auto` the compiler finds the shardings. With `Explicit` ones an array's type carries its sharding,
and what is made from shapes alone has to be placed where it belongs. Under `jax.shard_map` it carries the manual axes
over which it may differ between devices, and what starts a scan must vary over those that the scan will make it vary
over. Without a mesh nothing here does anything.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import AbstractValue
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def shardings(
    mesh: Mesh, params: PyTree, carry: PyTree = (), *, batch: str = "batch", neurons: str = "neurons"
) -> tuple[PyTree, PyTree]:
    """Where parameters and the carry of a stream belong on a mesh of devices.

    Neurons do not need each other's traces. So everything that has a postsynaptic axis, `w_in` and `w_rec` by columns,
    bias, neuron parameters, states and traces, is split along it over the mesh axis `neurons`, and the batch over
    `batch`. Between devices then go spikes and errors, and the sum of the gradients over the batch. What a mesh axis
    does not divide stays whole, and a mesh may have only one of the two axes.

    Args:
      mesh: of devices, with an axis named `batch`, one named `neurons`, or both; of type `Auto` or `Explicit`.
      params: parameters, or their shapes; the last axis of every leaf is taken for that of neurons.
      carry: the carry of `hypr_stream` or `stream`, or its shapes.
      batch: name of the mesh axis that the first batch axis is split over.
      neurons: name of the mesh axis that neurons are split over.

    Returns:
      Two pytrees of `NamedSharding`, for `jax.device_put` or the `in_shardings` of `jax.jit`. Data, time first, belongs
      to `NamedSharding(mesh, PartitionSpec(None, batch))`.

    Raises:
      TypeError: `mesh` is none.
      ValueError: the mesh has neither axis.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> mesh = jax.sharding.AbstractMesh((2, 4), ("batch", "neurons"))  # jax.make_mesh for one of real devices
      >>> cell = hj.lif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> learner = hj.hypr_stream(lambda params, x: hj.unroll(cell, params, x).mean())
      >>> carry = learner.init(params, jnp.ones((10, 8, 4)))
      >>> of_params, of_carry = hj.shardings(mesh, params, carry)
      >>> of_params["w_in"].spec, of_carry[0].traces.synapses[0].spec
      (P(None, 'neurons'), P('batch', None, 'neurons'))
    """
    if not hasattr(mesh, "axis_names"):
        raise TypeError(f"shardings: mesh must be a mesh, as jax.make_mesh makes it, got {type(mesh).__name__}")
    if not {batch, neurons} & set(mesh.axis_names):
        raise ValueError(
            f"shardings: the mesh has the axes {mesh.axis_names}, but neither {batch!r} nor {neurons!r}; name its axes "
            "with the arguments batch and neurons"
        )

    neurons = neurons if mesh.shape.get(neurons, 1) > 1 else ""

    def split(shape: tuple[int, ...], names: dict[int, str]) -> NamedSharding:
        axes: list[str | None] = [None] * len(shape)
        for axis, name in names.items():
            if -len(shape) <= axis < len(shape) and name in mesh.shape and shape[axis] % mesh.shape[name] == 0:
                axes[axis] = name
        return NamedSharding(mesh, PartitionSpec(*axes))

    def of_layer(layer: Any) -> Any:
        if layer.output is None:  # of `scan` or `delay`: which axis is which is not known
            return jax.tree.map(lambda leaf: split(leaf.shape, {}), layer)
        of_batch = {0: batch} if layer.output.ndim > 1 else {}

        def of_leaf(path: Any, leaf: Any) -> NamedSharding:
            presynaptic = {".synapses", ".pre"} <= set(map(str, path))  # of factored traces: whole on every device
            return split(leaf.shape, of_batch if presynaptic else {-1: neurons} | of_batch)

        return jax.tree.map_with_path(of_leaf, layer)

    of_params = jax.tree.map(lambda leaf: split(leaf.shape, {-1: neurons}), params)
    return of_params, tuple(of_layer(layer) for layer in carry)


def _type(x: Any) -> Any:
    """The type of an array; a type is its own."""
    return x if isinstance(x, AbstractValue) else jax.typeof(x)


def spec(x: Array) -> tuple[Any, ...]:
    """What each axis of an array is sharded over: mesh axes with an `Explicit` type, or None."""
    return tuple(_type(x).sharding.spec)


def on_mesh(x: Array) -> bool:
    """Whether an array lives on a mesh of devices, and so may be split; under `jax.shard_map` each has its own."""
    return any(kind != AxisType.Manual for kind in _type(x).sharding.mesh.axis_types)


def over(like: Array, *axes: Any) -> NamedSharding | None:
    """The sharding over these `axes` of the mesh of `like`, where that is explicit; None elsewhere."""
    mesh = _type(like).sharding.mesh
    return NamedSharding(mesh, PartitionSpec(*axes)) if AxisType.Explicit in mesh.axis_types else None


def place(x: Array, like: Array, *axes: Any) -> Array:
    """`x` on the mesh of `like`: where that is explicit, sharded over `axes`; elsewhere as the compiler sees fit."""
    x, sharding = vary(x, like), over(like, *axes)
    if sharding is None:
        return _constrain(x, like, *[PartitionSpec.UNCONSTRAINED] * x.ndim)
    return x if _type(x).sharding == sharding else jax.sharding.reshard(x, sharding)


def zeros_like(x: Array, dtype: Any = None) -> Array:
    """`jnp.zeros_like`, where `x` is."""
    return place(jnp.zeros_like(x, dtype), x, *spec(x))


def zeros(like: Any) -> Array:
    """Zeros of this type, as `jax.typeof` says it, where it is."""
    return place(jnp.zeros(like.shape, like.dtype), like, *spec(like))


def varying(*trees: PyTree) -> frozenset[str]:
    """The manual axes of `jax.shard_map` over which any of the arrays may differ between devices."""
    arrays = [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array | AbstractValue)]
    return frozenset().union(*[_type(x).manual_axis_type.varying for x in arrays])


def vary(tree: PyTree, *like: PyTree) -> PyTree:
    """The arrays of `tree`, varying over the manual axes over which any of `tree` and `like` does.

    Its derivative is the sum over devices: made once, before a scan, and not by every step of it.
    """
    if not (axes := varying(tree, like)):
        return tree
    missing = lambda x: tuple(sorted(axes - _type(x).manual_axis_type.varying))  # noqa: E731
    return jax.tree.map(lambda x: jax.lax.pcast(x, missing(x), to="varying"), tree)


def where(mask: Array, value: Any, x: Array) -> Array:
    """`value` where `mask` `[*batch]` is True, `x` `[*batch, ...]` elsewhere; both placed as `x` is."""
    like_x = lambda a: place(jnp.broadcast_to(a, x.shape), x, *spec(x))  # noqa: E731
    mask = jnp.expand_dims(mask, range(mask.ndim, x.ndim))
    return jnp.where(like_x(mask), like_x(jnp.asarray(value, x.dtype)), x)


def gather(x: Array) -> Array:
    """`x` with its last axis, that of neurons, whole on every device."""
    if over(x) is None:  # left to itself, the compiler moves more than that
        return _constrain(x, x, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1), None)
    return place(x, x, *spec(x)[:-1], None)


def _constrain(x: Array, like: Array, *axes: Any) -> Array:
    mesh = _type(like).sharding.mesh
    if mesh.size < 2 or AxisType.Auto not in mesh.axis_types:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))
