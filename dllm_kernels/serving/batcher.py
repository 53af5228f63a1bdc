"""Rows of many requests, batched into calls.

Ray Serve's own `serve.batch` closes a batch when its wait is over even while the last one still runs, so that under load calls
stay small. Here what arrives during a call shares the next one, and the wait counts only for a replica that is idle.
"""

import asyncio
from collections.abc import Callable

from dllm_kernels.serving.replica import Answer, Row

Run = Callable[[list[Row]], list[Answer | None]]


class Batcher:
    """Hands rows to `run` in lists of at most `largest`, one list at a time, in the order in which they came.

    Args:
        run: blocks, so it has a thread of its own.
        largest: rows a call.
        wait_s: how long the first row of a list waits for others.
    """

    def __init__(self, run: Run, largest: int, wait_s: float):
        self._run, self._largest, self._wait_s = run, largest, wait_s
        self._queue: asyncio.Queue[tuple[Row, asyncio.Future]] = asyncio.Queue()
        self._loop: asyncio.Task | None = None

    async def __call__(self, row: Row) -> Answer | None:
        """A row's answer, or None where `run` gave none. Raises what `run` raised for the row's list."""
        if self._loop is None:
            self._loop = asyncio.create_task(self._serve())
        answer = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((row, answer))
        return await answer

    async def _serve(self) -> None:
        while True:
            taken = await self._next()
            # Nobody waits for a cancelled one.
            taken = [(row, future) for row, future in taken if not future.done()]
            if not taken:
                continue
            try:
                answers = await asyncio.to_thread(self._run, [row for row, _ in taken])
            except Exception as error:
                answers = [error] * len(taken)
            for (_, future), answer in zip(taken, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _next(self) -> list[tuple[Row, asyncio.Future]]:
        taken = [await self._queue.get()]
        try:
            async with asyncio.timeout(self._wait_s):
                while len(taken) < self._largest:
                    taken.append(await self._queue.get())
        except TimeoutError:
            pass
        while len(taken) < self._largest and not self._queue.empty():
            taken.append(self._queue.get_nowait())
        return taken
