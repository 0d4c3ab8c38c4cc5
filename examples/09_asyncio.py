"""Tasks from asyncio.

What you learn: ``loop.run_in_executor`` takes an ``HPCExecutor`` as any other, and ``asyncio.wrap_future`` makes a
``TaskFuture`` awaitable. The loop stays free meanwhile. To stop a task that runs, keep its future and cancel it with
``kill=True``: asyncio's own ``cancel`` only stops waiting.

It prints: results as they come, how often the loop ticked meanwhile, and the end of a task that took too long.
"""

import asyncio
import time

from executor import HPCExecutor, Program


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
    loop, ticks = asyncio.get_running_loop(), []
    ticker = asyncio.create_task(tick(ticks))
    with HPCExecutor(max_workers=2) as ex:
        jobs = [loop.run_in_executor(ex, simulate, seconds) for seconds in (0.3, 0.1)]
        jobs.append(asyncio.wrap_future(ex.submit(Program(["sleep", "0.2"]))))
        for job in asyncio.as_completed(jobs):
            print(await job)
        print("the loop ticked meanwhile:", len(ticks) >= 5)

        slow = ex.submit(simulate, 60)
        try:
            async with asyncio.timeout(0.3):
                await asyncio.wrap_future(slow)
        except TimeoutError:
            slow.cancel(kill=True)
            print(f"no more patience: the task is {slow.state}")
        ticker.cancel()


asyncio.run(main())
