"""What every loader returns, and how it becomes batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hyprjax.data import _check


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dataset:
    """Sequences of one length, time first; a pytree, so that it can live on the device and go through `jax.jit`.

    Attributes:
      inputs: `[T, N, channels]`, of any real dtype; small ones (bool, int8) save memory.
      targets: class labels, int `[N]` for a whole sequence or `[T, N]` per step; or real values `[T, N, outputs]`.
      mask: bool `[T, N]`: the steps whose output counts, False where a sequence is padded.
    """

    inputs: Any
    targets: Any
    mask: Any

    def __post_init__(self):
        """Refuses arrays that do not belong together."""
        shapes = [getattr(leaf, "shape", None) for leaf in (self.inputs, self.targets, self.mask)]
        if None in shapes or not all(isinstance(shape, tuple) for shape in shapes):
            return  # jax rebuilds dataclasses with placeholders for leaves
        inputs, targets, mask = (tuple(shape or ()) for shape in shapes)
        fits = len(inputs) == 3 and mask == inputs[:2] and targets[:2] in (inputs[:2], inputs[1:2])
        if not fits:
            raise ValueError(
                "Dataset: inputs must be [T, N, channels], targets [N], [T, N] or [T, N, outputs] and mask [T, N], got "
                f"inputs.shape = {inputs}, targets.shape = {targets}, mask.shape = {mask}"
            )

    @property
    def size(self) -> int:
        """Number of sequences N."""
        return self.inputs.shape[1]

    @property
    def steps(self) -> int:
        """Length T of a sequence."""
        return self.inputs.shape[0]

    def take(self, indices: Any) -> Dataset:
        """The sequences with these indices: ints, a mask, a slice, or one int.

        Raises:
          TypeError: inputs, targets or mask is not an array.
          IndexError: there is no such sequence.
        """
        for name, leaf in vars(self).items():
            if not hasattr(leaf, "shape"):
                raise TypeError(
                    f"Dataset: {name} is a {type(leaf).__name__}, but it must be an array; a list is "
                    f"np.asarray({name}), the mask of sequences without padding np.ones(inputs.shape[:2], bool)"
                )
        indices = self._within(indices)
        targets = self.targets[indices] if self.targets.ndim == 1 else self.targets[:, indices]
        return Dataset(self.inputs[:, indices], targets, self.mask[:, indices])

    def _within(self, indices: Any) -> Any:
        """The indices, if there are such sequences; JAX itself would take the last one for one that is not there."""
        if isinstance(indices, slice | Tracer):
            return indices
        chosen = np.atleast_1d(np.asarray(indices))
        if chosen.dtype != bool and chosen.size and not -self.size <= chosen.min() <= chosen.max() < self.size:
            raise IndexError(
                f"Dataset: there are {self.size} sequences, but indices from {chosen.min()} to {chosen.max()}"
            )
        return chosen

    def split(self, fraction: float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Two disjoint random parts; `fraction` of the sequences, rounded down, is in the second.

        Raises:
          ValueError: one of the parts would be empty.
        """
        held_out = int(fraction * self.size)
        if not 0 < held_out < self.size:
            raise ValueError(
                f"split: fraction {fraction} of {self.size} sequences leaves {held_out} for the second part"
            )
        order = np.random.default_rng(seed).permutation(self.size)
        return self.take(order[held_out:]), self.take(order[:held_out])

    def batch(self, indices: Any, dtype: Any = jnp.float32) -> dict[str, Any]:
        """The sequences with these indices as the `xs` of a loss function.

        Returns:
          `inputs` `[T, B, channels]`, `targets` `[T, B]` (int) or `[T, B, outputs]` and `mask` `[T, B]`, inputs,
          real-valued targets and mask in `dtype`. The loss at step t is `mask[t] * loss(outputs[t], targets[t])`.
        """
        part = self.take(indices)
        targets = part.targets
        if targets.ndim == 1:
            targets = jnp.broadcast_to(targets, part.mask.shape)
        targets = targets.astype(jnp.int32 if jnp.issubdtype(targets.dtype, jnp.integer) else dtype)
        return {"inputs": part.inputs.astype(dtype), "targets": targets, "mask": part.mask.astype(dtype)}


def batches(
    dataset: Dataset, batch_size: int, *, seed: int | None = None, epoch: int = 0, drop_last: bool = False
) -> Iterator[dict[str, Any]]:
    """One pass over a data set.

    Args:
      dataset: the sequences.
      batch_size: sequences per batch.
      seed: shuffles; the order depends on `seed` and `epoch` alone, so that a resumed run sees what it would have
        seen. None keeps the order.
      epoch: number of the pass.
      drop_last: whether to leave out a last batch that is smaller than the others.

    Yields:
      Batches as `Dataset.batch` makes them.

    Raises:
      ValueError: `batch_size` is no int of at least 1, or above the number of sequences with `drop_last`.
      TypeError: `dataset` is not a `Dataset`.

    Examples:
      >>> import hyprjax as hj, hyprjax.data
      >>> dataset = hj.data.evidence_accumulation(10, seed=0)
      >>> [batch["inputs"].shape[1] for batch in hj.data.batches(dataset, 4, seed=0)]
      [4, 4, 2]
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"batches: dataset is a {type(dataset).__name__}, not a Dataset; loaders return several, as in "
            "train, test = hj.data.digits()"
        )
    batch_size = _check.whole("batches", "batch_size", batch_size)
    if drop_last and batch_size > dataset.size:
        raise ValueError(f"batches: batch_size is {batch_size}, but the data set has {dataset.size} sequences")
    order = np.arange(dataset.size) if seed is None else np.random.default_rng((seed, epoch)).permutation(dataset.size)
    stop = dataset.size - dataset.size % batch_size if drop_last else dataset.size
    for start in range(0, stop, batch_size):
        yield dataset.batch(order[start : start + batch_size])
