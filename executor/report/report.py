"""What ``HPCExecutor.report`` gives."""

from __future__ import annotations

import dataclasses
import html
import json
from dataclasses import dataclass

from executor.report.page import render_page
from executor.report.values import Figures


@dataclass(frozen=True, slots=True, repr=False)
class Report(Figures):
    """What ``HPCExecutor.report`` gives: a run in numbers, which shows itself in a notebook."""

    def __repr__(self) -> str:
        ends = {
            name: getattr(self.counts, name) for name in ("finished", "failed", "aborted", "cancelled", "unfinished")
        }
        told = ", ".join(f"{number} {name}" for name, number in ends.items() if number) or "no tasks"
        return f"<Report {told}; {self.wall_time:.1f} s, {self.cpu_time:.1f} s of CPU time>"

    def _repr_html_(self) -> str:
        """For notebooks: the page, in a frame of its own."""
        page = html.escape(render_page(self))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 640px; border: 0"></iframe>'

    def to_json(self) -> str:
        """All of it as JSON; the names are those of the fields."""
        return json.dumps(dataclasses.asdict(self), indent=1)
