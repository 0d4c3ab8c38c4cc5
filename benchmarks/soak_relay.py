"""The network of a soak: a relay on loopback that drops, freezes or holds up what goes between agents and their hub."""

import asyncio
import contextlib
import threading
from collections.abc import Callable


class Relay:
    """Carries connections to a port of this machine, in a thread of its own. Its methods may be called from any."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._frozen: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()

    def drop(self) -> None:
        """End all connections; both ends are told."""
        self._call(lambda: [writer.transport.abort() for writer in list(self._writers)])

    def freeze(self) -> None:
        """Nothing passes by these connections any more, and nobody is told; new ones work."""
        self._call(lambda: self._frozen.update(self._writers))

    def hold_up(self) -> None:
        """Nothing passes, as by a cable that was cut, until :meth:`go_on`."""
        self._call(self._open.clear)

    def go_on(self) -> None:
        """The cable is whole again, and what was sent meanwhile arrives."""
        self._call(self._open.set)

    def close(self) -> None:
        """End the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._call(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _call(self, action: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(action)

    async def _serve(self, up: asyncio.StreamReader, down: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            down.transport.abort()
            return
        self._writers |= {down, forth}
        ways = [self._loop.create_task(self._carry(*way)) for way in ((up, forth), (back, down))]
        self._tasks.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way, writer in zip(ways, (down, forth), strict=True):
            way.cancel()
            writer.transport.abort()
        await asyncio.gather(*ways, return_exceptions=True)
        self._tasks.difference_update(ways)
        self._writers -= {down, forth}
        self._frozen -= {down, forth}

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                await self._open.wait()
                if sink not in self._frozen:
                    sink.write(data)
                    await sink.drain()
