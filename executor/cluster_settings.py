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
        check_clusters(cluster)
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


def with_names(cluster: Any) -> Any:
    """What was given as ``cluster``, with the clusters of the settings in the place of their names."""
    if isinstance(cluster, str):
        check_name("clusters", cluster)
        return find_cluster(cluster)
    return [with_names(each) for each in cluster] if isinstance(cluster, Sequence) else cluster


def _kind(table: Table) -> type[BatchCluster]:
    return KINDS[table.read("type", partial(read_word, KINDS))]


def _read(table: Table, kind: type[BatchCluster]) -> dict[str, Any]:
    keys = [field.name for field in fields(kind)]
    table.check_keys(["type", *keys], {"partition": "queue"})
    return {
        key: table.read(key, _FORMS.get(key, lambda value: value)) for key in table.values if key != "type"
    }  # fmt: skip
