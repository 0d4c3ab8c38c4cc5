"""Advice: what to ask for next time, from what was asked for and what was used. Values in, sentences out."""

from __future__ import annotations

import math

_MIB, _GIB = 2**20, 2**30
#: Who asked for no memory is told to only if a task used so much.
_MUCH = _GIB
#: What is said is what was used at most, and so much more.
_MARGIN = 1.25
#: Who uses less of a CPU than this waits, and does not compute.
_WAITING = 0.1
#: Seconds of work from which on the use of CPUs means something.
_ENOUGH = 1.0


def render_size(size: float) -> str:
    """Bytes, with three digits: ``310 MiB``, ``1.5 GiB``."""
    for unit, name in ((2**40, "TiB"), (_GIB, "GiB"), (_MIB, "MiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:.0f} {name}"
    return f"{size / 1024:.0f} KiB"


def round_up_size(size: float) -> int:
    """The next size that people ask for: a power of two, or half as much again above 2 GiB; 64 MiB at least."""
    best = 64 * _MIB
    while best < size:
        half_more = best * 3 // 2
        if best >= 2 * _GIB and half_more >= size:
            return half_more
        best *= 2
    return best


def advise_memory(asked: int, peak: int, out_of_memory: int) -> str:
    """What to ask for, in bytes as all is here; "" if it was well. ``asked`` is 0 if nothing was."""
    if out_of_memory:
        had = f"asked {render_size(asked)}" if asked else "asked for no memory"
        more = round_up_size(max(2 * asked, peak * _MARGIN))
        return f"{had}, and {_times(out_of_memory)} out of memory: ask {render_size(more)}"
    enough = round_up_size(peak * _MARGIN)
    if peak and asked and enough <= asked / 2:
        return f"asked {render_size(asked)}, peak {render_size(peak)}: ask {render_size(enough)}"
    if peak > asked > 0:
        return f"asked {render_size(asked)}, peak {render_size(peak)}: ask {render_size(enough)}"
    if not asked and peak >= _MUCH:
        return f"asked for no memory, peak {render_size(peak)}: ask {render_size(enough)}, so that all fit side by side"
    return ""


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def advise_cpus(asked: float, seconds: float, cpu: float, most: float) -> str:
    """What to ask for, after ``seconds`` of work in which ``cpu`` seconds were used; "" if it was well.

    ``most`` are the CPUs that one attempt used on its average.
    """
    if seconds < _ENOUGH or not asked or not most:
        return ""
    if most > asked * _MARGIN:
        return f"asked {_cpus(asked)}, used up to {most:.1f}: ask {_cpus(_whole(most))}, or have it start fewer threads"
    used = f"asked {_cpus(asked)}, used {cpu / seconds:.2f} on average and {most:.2f} at most"
    if _whole(most) <= asked / 2:
        return f"{used}: ask {_cpus(_whole(most))}"
    if most < _WAITING and asked >= 1:
        return f"{used}: they wait most of the time, and with cpus=0.25 more of them run at once"
    return ""


def _whole(most: float) -> int:
    """Whole CPUs: with a part of one, tasks that compute would be slower for who else has a part of it."""
    return max(1, math.ceil(most - 0.1))


def _cpus(number: float) -> str:
    return "1 CPU" if number == 1 else f"{number:g} CPUs"
