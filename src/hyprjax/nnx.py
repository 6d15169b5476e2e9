"""Flax NNX modules over the same functions: layers with parameters of their own, for `nnx.Optimizer` and Orbax.

Needs the extra `flax` (`pip install 'hyprjax[flax]'`). A module keeps parameters, never a carry: that stays with the
transform, so a model works with every transform like any function. Wrap it with `hypr` under `nnx.value_and_grad`, or,
for `hypr_grad` and `hypr_stream`, split it with `nnx.split(model, nnx.Param, ...)`, differentiate the parameters and
merge it inside the loss; docs/ecosystem.md has both, with Dropout and BatchNorm.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from hyprjax._cell import Cell, Params, init_layer
from hyprjax._stream import unroll
from hyprjax.cells import leaky_integrator
from hyprjax.weights import WeightsFn


class Recurrent(nnx.Module):
    """One layer of neurons: `unroll` with its parameters.

    Attributes:
      cell: the neuron model.
      w_in, w_rec, bias: `nnx.Param`s as `init_layer` draws them; `w_rec` and `bias` only if the layer has them.
      neuron: the neuron parameters, a pytree of `nnx.Param`s `[n_out]`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, hyprjax as hj
      >>> from flax import nnx
      >>> from hyprjax.nnx import Readout, Recurrent
      >>> class Network(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.hidden = Recurrent(hj.brf(), 4, 36, rngs=rngs)
      ...         self.norm = nnx.LayerNorm(36, rngs=rngs)
      ...         self.readout = Readout(36, 6, rngs=rngs)
      ...     def __call__(self, x):
      ...         return self.readout(self.norm(self.hidden(x)))
      >>> model = Network(nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
      >>> graph, params = nnx.split(model)
      >>> def loss_fn(params, xs):
      ...     logits = nnx.merge(graph, params)(xs["inputs"])
      ...     return optax.softmax_cross_entropy_with_integer_labels(logits, xs["labels"]).mean()
      >>> xs = {"inputs": jnp.ones((100, 8, 4)), "labels": jnp.zeros((100, 8), int)}
      >>> updates = optimizer.update(model, hj.hypr_grad(loss_fn)(params, xs))
    """

    def __init__(
        self,
        cell: Cell,
        n_in: int | dict[str, int],
        n_out: int,
        *,
        recurrent: bool = True,
        bias: bool = True,
        weights: WeightsFn | None = None,
        gain: float = 1.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the parameters.

        Args:
          cell: the neuron model.
          n_in: number of inputs; of a cell with ports a number for all, or a dict of the ports that have inputs.
          n_out: number of neurons.
          recurrent: whether the layer's output feeds back through `w_rec` one step later.
          bias: whether the neurons have a bias current.
          weights: draws `w_in` and `w_rec` instead of `cell.weights`; see `hyprjax.weights`.
          gain: factor of `w_in`.
          dtype: floating dtype of the parameters.
          rngs: its stream `params` gives the key.

        Raises:
          ValueError: `n_in` or `n_out` is not a positive int, or `gain` is not a positive number.
          TypeError: `rngs` is not `nnx.Rngs`.
        """
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"{type(self).__name__}: rngs must be nnx.Rngs, such as nnx.Rngs(0), got {rngs!r}")
        drawn = {"recurrent": recurrent, "bias": bias, "weights": weights, "gain": gain, "dtype": dtype}
        params = init_layer(rngs.params(), cell, n_in, n_out, **drawn)
        self.cell = nnx.static(cell)
        for name, value in params.items():
            setattr(self, name, nnx.data(jax.tree.map(nnx.Param, value)))

    def __call__(
        self, inputs: Float[Array, "t *batch n_in"], *, resets: Bool[Array, "t *batch"] | None = None
    ) -> Float[Array, "t *batch n_out"]:
        """Runs the layer over a sequence; arguments, result and errors are those of `unroll`."""
        return unroll(self.cell, self.params, inputs, resets=resets)

    @property
    def params(self) -> Params:
        """The parameters as `unroll` and `hyprjax.nir.to_nir` take them: a dict of arrays.

        Raises:
          TypeError: a parameter was replaced by something that is not a variable.
        """
        variables = {name: getattr(self, name) for name in ("w_in", "w_rec", "bias", "neuron") if hasattr(self, name)}

        def value(path, leaf):
            if not _is_variable(leaf):
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise TypeError(
                    f"{type(self).__name__}: {name} was replaced by {type(leaf).__name__}, which no optimizer would "
                    f"see; set the value of the parameter, module.{name}[...] = array"
                )
            return leaf.get_value()

        return jax.tree.map_with_path(value, variables, is_leaf=_is_variable)


class Readout(Recurrent):
    """Leaky integrators without recurrence: the usual readout.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from hyprjax.nnx import Readout
      >>> Readout(36, 6, tau=10.0, rngs=nnx.Rngs(0))(jnp.ones((50, 36))).shape
      (50, 6)
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        tau: Any = 20.0,
        bias: bool = True,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """As `Recurrent`, with the initial time constant `tau` in steps."""
        super().__init__(leaky_integrator(tau), n_in, n_out, recurrent=False, bias=bias, dtype=dtype, rngs=rngs)


def project(model: nnx.Module) -> None:
    """Puts the neuron parameters of every layer in a model back where its cell is defined; call it after an update.

    `hyprjax.project` for modules: it changes the parameters of each `Recurrent` in place, as `nnx.Optimizer` does.

    Args:
      model: a module that holds layers anywhere, or a layer.

    Examples:
      >>> import jax.numpy as jnp, hyprjax as hj, hyprjax.nnx
      >>> from flax import nnx
      >>> layer = hj.nnx.Recurrent(hj.brf(), 4, 2, rngs=nnx.Rngs(0))
      >>> layer.neuron["omega"].set_value(jnp.array([7.0, 105.0]))  # what an optimiser did
      >>> hj.nnx.project(layer)
      >>> layer.neuron["omega"].get_value().tolist()
      [7.0, 99.0]
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Recurrent):
            neuron, kept = vars(module)["neuron"], module.cell.project(module.params["neuron"])
            jax.tree.map(lambda param, value: param.set_value(value), neuron, kept, is_leaf=_is_variable)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
