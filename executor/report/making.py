"""The report of a run, made of what a recorder has seen. Values in, values out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from executor.core.model import WorkerId
from executor.core.needs import Needs
from executor.report.advice import advise_cpus, advise_memory, render_size
from executor.report.recorder import AgentSeen, Ends, Failed, Snapshot
from executor.report.report import Report
from executor.report.series import Series
from executor.report.tally import Kind, KindSums, LaneSums, Record, Row, Tally
from executor.report.values import Agent, Attempt, Counts, Failure, Lane, Timeline, UsageByNeeds
from executor.resources import render_amount


def make_report(seen: Snapshot) -> Report:
    """The report of what a recorder has seen."""
    sums = seen.sum_up()
    ran = bool(sums.kinds)
    timeline = _make_timeline(sums, seen.agents.values()) if ran else _NOTHING
    names = {worker: agent.name for worker, agent in seen.agents.items()}
    total = sum(kind.attempts for kind in sums.kinds.values())
    there = sum(timeline.there)
    return Report(
        began=sums.scale.origin if ran else None,
        ended=sums.last_end if ran else None,
        wall_time=sums.last_end - sums.scale.origin,
        cpu_time=sum(kind.cpu for kind in sums.kinds.values()),
        utilisation=min(1.0, sum(timeline.given) / there) if there else 0.0,
        counts=_make_counts(seen.ends, total),
        agents=sorted((_make_agent(each) for each in seen.agents.values()), key=lambda each: each.joined),
        timeline=timeline,
        lanes=[_make_lane(row, lane, names, sums) for row, lane in _ordered(sums, seen.agents)],
        usage=[_make_usage(kind, each) for kind, each in sums.kinds.items()],
        slowest=[_make_attempt(record, names) for record in sums.slowest],
        failures=[Failure(*(getattr(each, name) for name in Failed.__slots__)) for each in seen.failures],
        failures_by_error=dict(sorted(seen.errors.items(), key=lambda each: -each[1])),
        attempts=[_make_attempt(record, names) for record in seen.records],
        attempts_left_out=total - len(seen.records),
    )


#: Nothing has run yet.
_NOTHING = Timeline(0.0, 1.0, [], [], [])


def _make_counts(ends: Ends, attempts: int) -> Counts:
    return Counts(
        ends.submitted, ends.finished, ends.failed, ends.aborted, ends.cancelled, max(0, ends.submitted - ends.ended),
        attempts, ends.retried,
    )  # fmt: skip


def _make_agent(seen: AgentSeen) -> Agent:
    return Agent(seen.name, seen.cpus, seen.joined, seen.left)


def _make_attempt(record: Record, names: dict[WorkerId, str]) -> Attempt:
    agent, needs = _title(record.row, names)
    return Attempt(
        record.task_id, record.name, record.number, agent, needs, record.submitted, record.started, record.ended,
        record.cpu, record.peak, record.how,
    )  # fmt: skip


def _title(row: Row, names: dict[WorkerId, str]) -> tuple[str, str]:
    agent = "others" if row.agent is None else names[row.agent]
    return agent, render_needs(row.kind)


# ---- over time


def _make_timeline(sums: Tally, agents: Iterable[AgentSeen]) -> Timeline:
    scale, there = sums.scale, Series()
    for agent in agents:
        start = max(agent.joined, scale.origin)
        end = sums.last_end if agent.left is None else min(agent.left, sums.last_end)
        if start < end:
            there.add(scale.span(start, end), agent.cpus)
    given = [[row.kind.cpus * mean for mean in _means(lane.running, sums)] for row, lane in sums.lanes.items()]
    used = [_means(lane.cpus, sums) for lane in sums.lanes.values()]
    return Timeline(scale.origin, scale.width, _means(there, sums), _added(given), _added(used))


def _means(series: Series, sums: Tally) -> list[float]:
    """Those of the bins in use; the last one is in use up to the end of the run only."""
    scale = sums.scale
    count = max(1, math.ceil((sums.last_end - scale.origin) / scale.width))
    means = series.means(scale.width)[:count]
    rest = (sums.last_end - scale.origin) / scale.width - (count - 1)
    means[-1] /= rest if rest > 0 else 1.0
    return means


def _added(all_of: list[list[float]]) -> list[float]:
    return [sum(each) for each in zip(*all_of, strict=True)]


def _make_lane(row: Row, lane: LaneSums, names: dict[WorkerId, str], sums: Tally) -> Lane:
    agent, needs = _title(row, names)
    return Lane(agent, needs, lane.attempts, lane.failed, _means(lane.running, sums), _means(lane.bad, sums))


def _ordered(sums: Tally, agents: dict[WorkerId, AgentSeen]) -> list[tuple[Row, LaneSums]]:
    """The lanes, those of one agent together, in the order in which the agents have come; the others last."""
    places = {worker: place for place, worker in enumerate(agents)}

    def place(each: tuple[Row, LaneSums]) -> tuple[int, str]:
        agent = each[0].agent
        return len(places) if agent is None else places[agent], render_needs(each[0].kind)

    return sorted(sums.lanes.items(), key=place)


# ---- by needs


def _make_usage(kind: Kind, sums: KindSums) -> UsageByNeeds:
    used = sums.cpu / sums.seconds if sums.seconds else 0.0
    most = max(used, sums.most_cpus)  # where all were too short to be measured one by one, their mean is all there is
    advice = (
        advise_cpus(kind.cpus, sums.seconds, sums.cpu, most) if kind.needs else "",
        advise_memory(kind.memory, sums.peak, sums.out_of_memory) if kind.needs else "",
    )
    return UsageByNeeds(
        render_needs(kind), dict(sums.names), sums.other_names, sums.attempts, sums.seconds / sums.attempts,
        sums.longest, sums.cpu, kind.cpus, used, most, kind.memory, sums.peak, sums.out_of_memory,
        [sentence for sentence in advice if sentence],
    )  # fmt: skip


def render_needs(kind: Kind) -> str:
    """The needs in words: ``2 CPUs, 8 GiB``."""
    if kind.needs is None:
        return "others"
    if kind.needs.nodes:
        return "1 whole agent" if kind.needs.nodes == 1 else f"{kind.needs.nodes} whole agents"
    return ", ".join(_render_all(kind.needs, kind)) or "nothing"


def _render_all(needs: Needs, kind: Kind) -> Iterator[str]:
    for need in needs.needs:
        if need.name == "cpus":
            yield "1 CPU" if kind.cpus == 1 else f"{kind.cpus:g} CPUs"
        elif need.amount is None:
            yield f"all {need.name}"
        elif need.name == "memory":
            yield render_size(kind.memory)
        else:
            yield f"{render_amount(need.amount)} {need.name}"
