"""Clusters by their names in the settings: ``HPCExecutor(cluster="big")``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from executor.batch.settings import check_name, find_tables, names_of
from executor.clusters import PBS, BatchCluster, Flux, GridEngine, Slurm, check_clusters
from executor.errors import JobFileError
from executor.jobs.toml_tables import Table, read_word
from executor.launched import Local, Ssh, find_allocation

#: The kinds of clusters, by what ``type`` says.
KINDS: dict[str, type[BatchCluster]] = {"slurm": Slurm, "sge": GridEngine, "pbs": PBS, "flux": Flux}
#: What TOML has another form for.
_FORMS: dict[str, Callable[[Any], Any]] = {"nodes": lambda value: tuple(value) if isinstance(value, list) else value}


def cluster_names() -> list[str]:
    """The names of the clusters in the settings."""
    return names_of("clusters")


def find_cluster(name: str) -> BatchCluster | None:
    """The cluster of this name; None if no file of settings has one. Raises JobFileError for what makes no sense."""
    tables = find_tables("clusters", name)
    if not tables:
        return None
    kind = next((_kind(table) for table in reversed(tables) if "type" in table.values), None)
    if kind is None:
        raise tables[0].refuse(f"it has no type; write one of: {', '.join(KINDS)}")
    options: dict[str, Any] = {}
    for table in tables:
        options.update(_read(table, kind))
    try:
        cluster = kind(**options)
        check_clusters([cluster])
    except (TypeError, ValueError) as error:
        raise _refusal(tables, error) from None
    return cluster


def _refusal(tables: Sequence[Table], error: Exception) -> JobFileError:
    """With the line of the key that the error begins with, if it does."""
    key = str(error).partition("=")[0]
    for table in reversed(tables):
        if key in table.values:
            return table.refuse(str(error), key)
    return tables[-1].refuse(str(error))


#: The nodes of the allocation that we are in; outside of one, this machine.
AUTO = "auto"


def resolve(cluster: Any) -> tuple[list[BatchCluster], int]:
    """What was given as ``cluster``: all that agents may come from, in its order, and how many are started here.

    Names are those of clusters in the settings, or "auto". Raises TypeError, ValueError, JobFileError.
    """
    if cluster is None:
        return [], 1
    given = list(cluster) if isinstance(cluster, list | tuple) else [cluster]
    found = [_find_named(each) if isinstance(each, str) else each for each in given]
    here = sum(each.agents for each in found if isinstance(each, Local))
    clusters = [one for each in found if not isinstance(each, Local) for one in _each(each)]
    return check_clusters(clusters), here


def _find_named(name: str) -> Any:
    if name == AUTO:
        return find_allocation() or Local()
    check_name("clusters", name)
    return find_cluster(name)


def _each(cluster: Any) -> list[Any]:
    return cluster.each() if isinstance(cluster, Ssh) else [cluster]


def _kind(table: Table) -> type[BatchCluster]:
    return KINDS[table.read("type", partial(read_word, KINDS))]


def _read(table: Table, kind: type[BatchCluster]) -> dict[str, Any]:
    keys = [field.name for field in fields(kind)]
    table.check_keys(["type", *keys], {"partition": "queue"})
    return {
        key: table.read(key, _FORMS.get(key, lambda value: value)) for key in table.values if key != "type"
    }  # fmt: skip
