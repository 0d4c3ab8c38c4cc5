"""Tasks from asyncio.

What you learn: ``await ex.submit_async(fn, ...)`` runs a task and leaves the loop free meanwhile. Whoever stops waiting
for it, by a timeout or a cancel, ends the task as well. ``as_completed_async`` gives futures as they complete, and
``loop.run_in_executor`` takes an ``HPCExecutor`` as any other.

It prints: results as they come, whether the loop ticked meanwhile, and the end of a task that took too long.
"""

import asyncio
import time

from executor import HPCExecutor, Program, as_completed_async


def simulate(seconds: float) -> str:
    """Keep a process busy."""
    time.sleep(seconds)
    return f"simulated {seconds} s"


async def tick(ticks: list[float]) -> None:
    """Shows that the loop is alive."""
    while True:
        await asyncio.sleep(0.02)
        ticks.append(time.perf_counter())


async def main() -> None:
    """Run functions and a program, and lose patience with the last."""
    ticks: list[float] = []
    ticker = asyncio.create_task(tick(ticks))
    with HPCExecutor(max_workers=2) as ex:
        print(await asyncio.gather(ex.submit_async(simulate, 0.1), ex.submit_async(simulate, 0.2)))
        tasks = [ex.submit(simulate, 0.3), ex.submit(Program(["sleep", "0.1"]))]
        async for future in as_completed_async(tasks):
            print(f"{future.name}: {future.result()}")
        print(await asyncio.get_running_loop().run_in_executor(ex, simulate, 0.1))
        print("the loop ticked meanwhile:", len(ticks) >= 5)

        try:
            async with asyncio.timeout(0.3):
                await ex.submit_async(simulate, 60)
        except TimeoutError:
            print("no more patience")
        ticker.cancel()
    print("all tasks have ended; cancelled:", ex.counts().cancelled)


asyncio.run(main())
