"""Checkpoints that survive a crash: what was saved last and is whole, or a clear error. Orbax underneath."""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The last few states of a run in a folder.

    A save is complete or does not exist: Orbax writes into a temporary folder and renames it.

    Args:
      folder: made if it is not there.
      config: the settings of the run, JSON values by name; a checkpoint of other settings is refused.
      keep: number of checkpoints kept.
    """

    def __init__(self, folder: Path, config: dict[str, Any], keep: int = 3):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self.folder, self.config = Path(folder).absolute(), json.loads(json.dumps(config))
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any) -> None:
        """Saves a pytree of arrays; replaces nothing, so that a crash in here loses nothing."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(self.config))
        self.manager.save(step, args=items, force=True)

    def restore(self, template: Any) -> tuple[int, Any] | None:
        """The newest checkpoint that is whole, as `(step, state)`; None in an empty folder.

        Args:
          template: a pytree of arrays with the structure, shapes and dtypes of what was saved.

        Raises:
          ValueError: there are checkpoints, but none is whole, or they are those of other settings.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                state = self._read(step, template)
            except OtherRunError:
                raise
            except Exception as error:  # storage that is damaged raises anything
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                warnings.warn(
                    f"checkpoint {self.folder / str(step)} is damaged and left out ({reason})", RuntimeWarning, 2
                )
                continue
            for later in steps[: steps.index(step)]:  # kept aside: what cannot be read today may be read another day
                (self.folder / str(later)).rename(self.folder / f"{later}.damaged-{time.time_ns()}")
            self.manager.reload()
            return step, state
        if steps:
            raise ValueError(f"no checkpoint in {self.folder} can be read; delete the folder to start anew")
        return None

    def _read(self, step: int, template: Any) -> Any:
        config = self.manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
        if config != self.config:
            differ = {name for name in config.keys() | self.config if config.get(name) != self.config.get(name)}
            text = ", ".join(f"{n} {config.get(n)!r} there, {self.config.get(n)!r} here" for n in sorted(differ))
            raise OtherRunError(f"{self.folder} has checkpoints of another run: {text}; choose another folder")
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        state = self.manager.restore(step, args=items)["state"]
        wanted = jax.tree.leaves(template)
        for (path, have), want in zip(jax.tree_util.tree_leaves_with_path(state), wanted, strict=True):
            if (have.shape, have.dtype) != (want.shape, want.dtype):
                raise ValueError(f"{jax.tree_util.keystr(path)} is {have.dtype}{list(have.shape)}")
        return state


class OtherRunError(ValueError):
    """A folder holds the checkpoints of a run with other settings."""
