"""Parameters that stay where the models are defined: `Cell.project` for every layer of a network."""

from __future__ import annotations

from typing import Any

from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree

from hyprjax._cell import Cell
from hyprjax._checks.layer import neuron_names


def project(cells: Cell | PyTree[Cell], params: PyTree) -> PyTree:
    """Puts the neuron parameters of every layer back where its model is defined; call it after each update.

    An optimiser knows no bounds: it makes time constants negative and pushes the frequency of `brf` past the boundary
    beyond which it diverges. Each model's `Cell.project` knows them; docs/neurons.md has the table. What is in range
    stays as it is, everything but neuron parameters stays as it is.

    Args:
      cells: a cell, for the parameters of one layer, or a pytree of cells in which each has the place that its layer
        has in `params`: dicts with the same keys, lists or tuples of the same length, nested as `params` is. None
        leaves what is in its place as it is.
      params: parameters, layers being dicts with an entry `"neuron"`, as `init_layer` makes them; leading axes, such
        as one of seeds, make no difference. What is no layer (a matrix, a scale) needs no cell.

    Returns:
      A pytree like `params`.

    Raises:
      TypeError: `cells` holds something that is no cell.
      ValueError: a cell without its layer, a layer without its cell, or neuron parameters of another cell.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cells = {"hidden": hj.brf(), "readout": hj.leaky_integrator()}
      >>> params = {
      ...     "hidden": hj.init_layer(jax.random.key(0), cells["hidden"], n_in=4, n_out=2),
      ...     "readout": hj.init_layer(jax.random.key(1), cells["readout"], n_in=2, n_out=1),
      ... }
      >>> params["hidden"]["neuron"]["omega"] = jnp.array([7.0, 105.0])  # what an optimiser did
      >>> params = hj.project(cells, params)
      >>> params["hidden"]["neuron"]["omega"].tolist()
      [7.0, 99.0]
    """
    own, _ = tree_flatten_with_path(cells, is_leaf=_is_cell)
    for path, cell in own:
        if not _is_cell(cell):
            hint = f"; call it: {cell.__name__}()" if callable(cell) and hasattr(cell, "__name__") else ""
            raise TypeError(f"project: cells{keystr(path)} must be a Cell or None, got {type(cell).__name__}{hint}")
    leaves, treedef = tree_flatten_with_path(params, is_leaf=_is_layer)
    layers = [path for path, leaf in leaves if _is_layer(leaf)]
    cell_at = {path: cell for path, cell in own if cell is not None}
    left_alone = [path for path, cell in own if cell is None]
    for path in cell_at:
        if path not in layers:
            there = ", ".join(f"params{keystr(layer)}" for layer in layers) or "no place at all"
            raise ValueError(
                f'project: cells{keystr(path)} is a cell, but params{keystr(path)} is no layer, a dict with "neuron"; '
                f"layers are at {there}"
            )
    for path in layers:
        if path not in cell_at and not any(path[: len(above)] == above for above in left_alone):
            raise ValueError(
                f"project: params{keystr(path)} is a layer without a cell; give cells{keystr(path)}, its cell, or None "
                "to leave it as it is"
            )
    return treedef.unflatten([_project_layer(cell_at.get(path), leaf, path) for path, leaf in leaves])


def _project_layer(cell: Cell | None, leaf: Any, path: tuple[Any, ...]) -> Any:
    if cell is None:
        return leaf
    neuron_names(f'project: params{keystr(path)}["neuron"]', cell, leaf["neuron"])
    try:
        return {**leaf, "neuron": cell.project(leaf["neuron"])}
    except KeyError as missing:
        raise ValueError(
            f'project: params{keystr(path)}["neuron"] has no {missing}, which {cell.name!r} needs: these are '
            "parameters of another cell"
        ) from missing


def _is_cell(node: Any) -> bool:
    return node is None or isinstance(node, Cell)


def _is_layer(node: Any) -> bool:
    return isinstance(node, dict) and "neuron" in node
