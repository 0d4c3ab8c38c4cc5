"""Settings from files called ``hpc-executor.toml``: what a site, a project and its people want of batch jobs.

    [defaults]          of all batch jobs: time = "1h"
    [types.gpu]         of those made by BatchJob.from_config("gpu"): gpus = 1, queue = "gpu"
    [clusters.big]      a place: type = "slurm", queue = "main", omit = ["--mem"]

The project's file is that of the current directory, or of the nearest parent that has one, up to the repository's or
the user's home. The user's lies in ``$XDG_CONFIG_HOME/hpc-executor``, or ``~/.config/hpc-executor``. Of two that say
something about the same key, the project's counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from executor.jobs.toml_tables import Table, parse_toml
from executor.refusals import did_you_mean

FILE: Final = "hpc-executor.toml"
_KEYS: Final = ("defaults", "types", "clusters")


def read_settings() -> list[Table]:
    """The files that there are, the user's first.

    :raises JobFileError: what is no TOML, and unknown tables.
    :raises OSError: a file that cannot be read.
    """
    return [_read(path) for path in (_user_file(), _project_file()) if path is not None]


def find_tables(kind: str, name: str) -> list[Table]:
    """What the files have about ``[kind.name]``, the user's first; "" as name: about ``[kind]``."""
    found = [top.table(kind) for top in read_settings() if kind in top.values]
    return found if not name else [table.table(name) for table in found if name in table.values]


def names_of(kind: str) -> list[str]:
    """The names of all tables of a kind."""
    return list(dict.fromkeys(name for table in find_tables(kind, "") for name in table.values))


def check_name(kind: str, name: str) -> None:
    """Raises ValueError if no file has a table of this kind and name."""
    names = names_of(kind)
    if name not in names:
        there_are = f"There are: {', '.join(names)}" if names else f"No {FILE} has any"
        raise ValueError(f"there is no [{kind}.{name}] in the settings{did_you_mean(name, names) or '.'} {there_are}")


def _read(path: Path) -> Table:
    top = parse_toml(path.read_bytes(), str(path))
    top.check_keys(_KEYS)
    return top


def _user_file() -> Path | None:
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(config).expanduser() / "hpc-executor" / FILE
    return path if path.is_file() else None


def _project_file() -> Path | None:
    return next((path for folder in _folders() if (path := folder / FILE).is_file() and _is_trusted(path)), None)


def _folders() -> Iterator[Path]:
    """The current directory and its parents, up to a repository's root or the user's home."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        yield folder
        if (folder / ".git").exists() or folder == Path.home():
            return


def _is_trusted(path: Path) -> bool:
    """Settings hold lines of shell. Where everybody may put a file, as in /tmp, another's does not count."""
    owner = path.stat().st_uid
    if owner in (os.getuid(), 0, path.parent.stat().st_uid):
        return True
    raise PermissionError(f"{path} belongs to neither you nor the owner of its directory: it is not read; remove it")
