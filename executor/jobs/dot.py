"""Pictures of jobs: the graph as text for Graphviz, and files that its program ``dot`` makes of that."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from executor.errors import JobError

#: Colours that people with any kind of colour vision can tell apart (after Okabe and Ito), light behind black letters.
COLOURS: Final[Mapping[str, str]] = {
    "waiting": "#eeeeee",
    "running": "#8fd0f5",
    "finished": "#a6dcc6",
    "failed": "#f2a277",
    "cancelled": "#f5eb9c",
    "aborted": "#dcb0cb",
}
#: The formats that "dot" is asked for, by the ends of names.
_DRAWN: Final = ("pdf", "png", "svg")


@dataclass(frozen=True, slots=True)
class Node:
    """A task or an array in the picture."""

    id: int
    #: what is written on it, in lines
    lines: tuple[str, ...]
    #: drawn as a stack
    is_array: bool = False
    #: one of the states of tasks; None: it has not been submitted
    state: str | None = None
    #: the ids of the nodes that it comes after
    after: tuple[int, ...] = ()


def render_dot(name: str, nodes: Iterable[Node]) -> str:
    """The graph in Graphviz's language."""
    nodes = list(nodes)
    edges = [f"    {before} -> {node.id};" for node in nodes for before in node.after]
    style = '    node [shape=box, style="rounded,filled", fillcolor="#ffffff", fontname="sans-serif"];'
    return "\n".join([f"digraph {_quoted(name)} {{", style, *map(_render_node, nodes), *edges, "}", ""])


def _render_node(node: Node) -> str:
    attributes = {"label": "\n".join(node.lines)}
    if node.state is not None:
        attributes |= {"fillcolor": COLOURS[node.state], "tooltip": node.state}
    if node.is_array:
        attributes |= {"shape": "box3d", "style": "filled"}
    return f"    {node.id} [{', '.join(f'{key}={_quoted(text)}' for key, text in attributes.items())}];"


def _quoted(text: str) -> str:
    # In a quoted string only the quote is special; in labels, backslashes are as well.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def draw(text: str, path: str | os.PathLike[str]) -> None:
    """Write a picture of the graph, by the end of the name: .dot or .gv (text), .svg, .png or .pdf.

    :raises JobError: another end; "dot" is missing, or fails.
    :raises OSError: the file cannot be written.
    """
    file = Path(path)
    kind = file.suffix.removeprefix(".")
    if kind in ("dot", "gv"):
        file.write_text(text, encoding="utf-8")
    elif kind in _DRAWN:
        file.write_bytes(_drawn(text, kind))
    else:
        raise JobError(f"path={os.fspath(file)!r}: expected a name that ends in .dot, .gv, .svg, .png or .pdf")


def _drawn(text: str, kind: str) -> bytes:
    program = shutil.which("dot")
    if program is None:
        raise JobError(
            f"a picture ({kind}) needs Graphviz, and its program 'dot' is not in PATH; install it (the package "
            "is called graphviz), or write the graph as text, to a name that ends in .dot"
        )
    done = subprocess.run([program, f"-T{kind}"], input=text.encode(), capture_output=True, check=False)
    if done.returncode:
        raise JobError(f"Graphviz cannot draw the graph: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
