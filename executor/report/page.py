"""The page: a run for people, as one HTML file that needs nothing else, neither the network nor a program beside it.

All is there without JavaScript; with it, one can look closer at a part of the time. By the page's policy no script runs
but ours, and nothing is loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import groupby

from executor.report.advice import render_size
from executor.report.drawing import draw_cpus, draw_lane, draws_attempts, family, pick_colours
from executor.report.values import Attempt, Failure, Figures, Lane, UsageByNeeds
from executor.report.words import escape, render_count, render_mark, render_moment, render_seconds, round_step

#: Lanes that are drawn, those in which most has run.
MOST_LANES = 100
#: Where nothing was measured.
_NO = "&ndash;"


def render_page(report: Figures) -> str:
    """The whole page."""
    script = _read("page.js")
    body = "\n".join(filter(None, (
        _head(report), _charts(report), _usage(report), _failures(report), _slowest(report), _footer(report),
    )))  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(_title(report))}</title>\n<style>\n{_read('page.css')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _read(name: str) -> str:
    return resources.files("executor.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _title(report: Figures) -> str:
    return f"Run of {render_count(report.counts.submitted, 'task')}"


# ---- the head


def _head(report: Figures) -> str:
    counts = report.counts
    when = (
        "Nothing has run yet."
        if report.began is None or report.ended is None
        else f"{render_moment(report.began)} to {render_moment(report.ended)}"
    )
    ends = [
        ("good", "finished", counts.finished), ("bad", "failed", counts.failed), ("dim", "aborted", counts.aborted),
        ("dim", "cancelled", counts.cancelled), ("dim", "unfinished", counts.unfinished),
    ]  # fmt: skip
    return (
        f"<header><h1>{escape(_title(report))}</h1><p>{escape(when)}</p></header>\n"
        f'<section class="tiles" aria-label="The run in numbers">{_ends_tile(ends)}{_tiles(report)}</section>'
    )


def _ends_tile(ends: Sequence[tuple[str, str, int]]) -> str:
    shown = [(kind, word, number) for kind, word, number in ends if number]
    bar = "".join(f'<i class="{kind}" style="flex:{number}"></i>' for kind, _, number in shown)
    words = "".join(f'<span class="{kind}"><b>{_number(number)}</b> {word}</span>' for kind, word, number in shown)
    return f'<div class="tile wide"><div class="ends">{words or "no tasks"}</div><div class="bar">{bar}</div></div>'


def _tiles(report: Figures) -> str:
    counts, agents = report.counts, report.agents
    cpus = sum(agent.cpus for agent in agents)
    given = sum(report.timeline.given) * report.timeline.bin_seconds
    efficiency = f"{report.cpu_time / given:.0%} of what tasks were given" if given else ""
    tiles = [
        (render_seconds(report.wall_time), "wall time", "from the first submission to the last end"),
        (render_seconds(report.cpu_time), "CPU time", efficiency),
        (f"{report.utilisation:.0%}", "utilisation", "of the CPUs of all agents were given to tasks"),
        (_number(counts.attempts), "attempts", f"{_number(counts.retried)} of them failed and were tried again"),
        (_number(len(agents)), "agent" if len(agents) == 1 else "agents", f"{cpus:g} CPUs together"),
    ]
    return "".join(
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(word)}</span><small>{escape(small)}</small></div>'
        for big, word, small in tiles
    )


def _number(number: int) -> str:
    return render_count(number, "", " ").strip()


# ---- over time


def _charts(report: Figures) -> str:
    if report.began is None:
        return ""
    return (
        f'<section><h2>Over time</h2><div class="time" data-seconds="{report.wall_time:.6f}">\n'
        '<div class="tools" hidden="hidden"><span>Drag over the picture to look closer.</span>'
        '<button type="button" data-zoom="in">+ closer</button>'
        '<button type="button" data-zoom="out">&minus; wider</button>'
        '<button type="button" data-zoom="all">all</button></div>\n'
        f'<div class="grid" aria-hidden="true">{_marks(report.wall_time)}</div>\n'
        f"{_cpus(report)}\n{_lanes(report)}\n</div></section>"
    )


def _marks(seconds: float) -> str:
    step = round_step(seconds, 8)
    places = [number * step for number in range(int(seconds / step) + 1)] if seconds else [0.0]
    return "".join(
        f'<i style="left:{100 * at / (seconds or 1):.3f}%"><span>{render_mark(at)}</span></i>'
        for at in places
        if at <= 0.95 * seconds or not at  # the words of later ones would be cut off
    )


def _cpus(report: Figures) -> str:
    most = max([*report.timeline.there, *report.timeline.given, *report.timeline.used, 1.0])
    peak = max(report.timeline.there, default=0.0)
    return (
        f'<div class="row cpus"><div class="label"><b>CPUs</b><small>up to {peak:g} there</small>'
        '<span class="key"><i class="there"></i>there</span>'
        '<span class="key"><i class="given"></i>given to tasks</span>'
        f'<span class="key"><i class="used"></i>used by them</span></div>{draw_cpus(report, most)}</div>'
    )


def _lanes(report: Figures) -> str:
    most = sorted(report.lanes, key=lambda lane: -lane.attempts)[:MOST_LANES]
    lanes = [lane for lane in report.lanes if lane in most]
    colours = pick_colours(report.attempts) if draws_attempts(report) else {}
    by_lane: dict[tuple[str, str], list[Attempt]] = {}
    for attempt in report.attempts if draws_attempts(report) else ():
        by_lane.setdefault((attempt.agent, attempt.needs), []).append(attempt)
    parts = [_legend(report, colours)]
    for agent, group in groupby(lanes, key=lambda lane: lane.agent):
        parts.append(f'<h3 class="agent">{escape(agent)}</h3>')
        parts += [_lane(report, lane, by_lane.get((agent, lane.needs), []), colours) for lane in group]
    left_out = len(report.lanes) - len(lanes)
    if left_out:
        parts.append(f"<p>{render_count(left_out, 'lane')} in which less has run are not drawn.</p>")
    return "\n".join(parts)


def _lane(report: Figures, lane: Lane, attempts: Sequence[Attempt], colours: dict[str, int]) -> str:
    failed = f', <em class="bad">{_number(lane.failed)} not well</em>' if lane.failed else ""
    most = max(lane.running, default=0.0)
    return (
        f'<div class="row"><div class="label"><b>{escape(lane.needs)}</b>'
        f"<small>{render_count(lane.attempts, 'attempt')}{failed}, up to {max(1, round(most))} at a time</small></div>"
        f"{draw_lane(report, lane, attempts, colours)}</div>"
    )


def _legend(report: Figures, colours: dict[str, int]) -> str:
    keys = [(f"c{number}", name) for name, number in colours.items()]
    if any(family(attempt.name) not in colours for attempt in report.attempts) and colours:
        keys.append(("c0", "others"))
    if not colours:
        keys.append(("c1", "how many ran at a time"))
    if any(lane.failed for lane in report.lanes):
        keys.append(("bad", "did not end well"))
    shown = "".join(f'<span class="key"><i class="{kind}"></i>{escape(name)}</span>' for kind, name in keys)
    return f'<p class="legend">{shown}</p>'


# ---- tables


def _table(title: str, heads: Sequence[str], rows: Iterable[str], words: str = "") -> str:
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    text = f"<p>{words}</p>" if words else ""
    return (
        f'<section><h2>{title}</h2>{text}<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _usage(report: Figures) -> str:
    if not report.usage:
        return ""
    heads = ["asked for", "tasks", "attempts", "mean", "longest", "CPUs used", "memory, peak"]
    return _table(
        "Asked for and used", heads, (_usage_row(report, each) for each in report.usage),
        "CPUs used are the mean of all attempts and of the one that used the most; the mark is what was asked for.",
    )  # fmt: skip


def _usage_row(report: Figures, used: UsageByNeeds) -> str:
    advice = "".join(f'<div class="advice">{escape(sentence)}</div>' for sentence in used.advice)
    cells = [
        f"<b>{escape(used.needs)}</b>", escape(_names(report, used)), _number(used.attempts),
        render_seconds(used.mean_seconds), render_seconds(used.longest_seconds),
        f"{used.cpus_used:.2f}, at most {used.cpus_peak:.2f}" + _meter(used.cpus_peak, used.cpus_asked),
        (render_size(used.memory_peak) if used.memory_peak else _NO) + _meter(used.memory_peak, used.memory_asked),
    ]  # fmt: skip
    row = "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"
    return row + (f'<tr class="advised"><td colspan="{len(cells)}">{advice}</td></tr>\n' if advice else "")


def _names(report: Figures, used: UsageByNeeds) -> str:
    names = [*used.names, *(attempt.name for attempt in report.attempts if attempt.needs == used.needs)]
    families = list(dict.fromkeys(map(family, names)))
    more = len(families) > 4 or (used.other_names and report.attempts_left_out)
    return ", ".join(families[:4]) + (" and others" if more else "")


def _meter(used: float, asked: float) -> str:
    if not asked:
        return ""
    whole = max(used, asked)
    kind = "over" if used > asked * 1.05 else ""
    return (
        f'<div class="meter {kind}"><i style="width:{100 * used / whole:.1f}%"></i>'
        f'<u style="left:{100 * asked / whole:.1f}%"></u></div>'
    )


def _slowest(report: Figures) -> str:
    if not report.slowest:
        return ""
    longest = report.slowest[0].seconds
    heads = ["task", "name", "took", "CPU time", "memory, peak", "needs", "agent", "how it ended"]
    return _table("Slowest tasks", heads, (_slow_row(each, longest) for each in report.slowest))


def _slow_row(attempt: Attempt, longest: float) -> str:
    again = f", attempt {attempt.attempt}" if attempt.attempt > 1 else ""
    kind = "" if attempt.how == "finished" else ' class="bad"'
    cells = [
        f"{attempt.task_id}{again}", escape(attempt.name),
        render_seconds(attempt.seconds) + _meter(attempt.seconds, longest).replace("<u", "<u hidden"),
        render_seconds(attempt.cpu_time), render_size(attempt.max_rss) if attempt.max_rss else _NO,
        escape(attempt.needs), escape(attempt.agent), f"<span{kind}>{escape(attempt.how)}</span>",
    ]  # fmt: skip
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


# ---- failures


def _failures(report: Figures) -> str:
    if not report.counts.failed:
        return ""
    kinds = ", ".join(f"{_number(number)} &times; {escape(name)}" for name, number in report.failures_by_error.items())
    left_out = report.counts.failed - len(report.failures)
    more = f" Here are the first {_number(len(report.failures))}." if left_out > 0 else ""
    told = "\n".join(_failure(each, is_open=place < 3) for place, each in enumerate(report.failures))
    return f"<section><h2>Failed tasks</h2><p>{kinds}.{more}</p>\n{told}</section>"


def _failure(failure: Failure, is_open: bool) -> str:
    place = f"on {failure.host}" if failure.host else "not sent"
    tried = f", attempt {failure.attempt}" if failure.attempt > 1 else ""
    took = ""
    if failure.started and failure.ended:
        took = f", after {render_seconds(max(0.0, failure.ended - failure.started))}"
    first = failure.text.partition("\n")[0]
    parts = [
        ("What it says", failure.text if failure.text != first[:160] else ""),
        ("Traceback", failure.traceback), ("The end of its stderr", failure.stderr),
        ("Its stderr is in", failure.stderr_file or ""),
    ]  # fmt: skip
    blocks = "".join(f"<h4>{title}</h4><pre>{escape(text)}</pre>" for title, text in parts if text)
    opened = ' open="open"' if is_open else ""
    return (
        f"<details{opened}><summary><b>{escape(failure.name)}</b> "
        f'<span class="bad">{escape(failure.error)}</span> {escape(first[:160])}'
        f"<small>task {failure.task_id}{tried} {escape(place)}{took}</small></summary>{blocks}</details>"
    )


def _footer(report: Figures) -> str:
    words = ["Times are by the clocks of the hosts on which the tasks ran."]
    if report.attempts_left_out:
        kept, more = _number(len(report.attempts)), _number(report.attempts_left_out)
        words.append(f"The first {kept} attempts are kept one by one; {more} more are in all sums and pictures.")
    if report.counts.aborted:
        words.append("Aborted tasks were not run, because something that they waited for had failed.")
    return f"<footer><p>{' '.join(words)}</p></footer>"
