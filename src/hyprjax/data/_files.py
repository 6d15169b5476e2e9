"""Where the files of a data set are: HYPRJAX_DATA, the user's cache, or the web."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pooch


def cache() -> Path:
    """The folder that downloads go to."""
    return Path(pooch.os_cache("hyprjax"))


def folders() -> list[Path]:
    """Where files are looked for, in this order."""
    local = os.environ.get("HYPRJAX_DATA")
    return [*([Path(local)] if local else []), cache()]


def find(name: str, url: str, known_hash: str) -> Path:
    """The path of a file, or of its gzip archive.

    Args:
      name: the file's name in `HYPRJAX_DATA` or the cache.
      url: where the file or an archive of it can be downloaded.
      known_hash: of what `url` names, as `algorithm:hash`.

    Raises:
      FileNotFoundError: the file is nowhere and cannot be downloaded.
    """
    for folder in folders():
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                return path
    where = " or ".join(str(folder) for folder in folders())
    put = f"put {name} into {where}, or set HYPRJAX_DATA to the folder that has it"
    processor: Any = pooch.Unzip(members=[name], extract_dir=".") if url.endswith(".zip") else None
    try:
        found = pooch.retrieve(url, known_hash, fname=url.rsplit("/", 1)[1], path=cache(), processor=processor)
    except Exception as error:  # a library of many backends raises many errors
        raise FileNotFoundError(
            f"{name} was not found and could not be downloaded ({error}); fetch {url} and {put}"
        ) from error
    return Path(found[0] if isinstance(found, list) else found)


def read(path: Path, reader: Callable[[Path], Any]) -> Any:
    """What `reader` makes of a file, with an error that says what to do where the file is damaged.

    Raises:
      ValueError: the file cannot be read.
    """
    try:
        return reader(path)
    except Exception as error:  # readers of damaged files raise anything
        raise ValueError(
            f"{path} is damaged or not the expected file ({type(error).__name__}: {error}); delete it and fetch it anew"
        ) from error
