"""AsyncClient: the asyncio client of a kvferryd.

The event loop watches the connection's descriptors; nothing blocks and there
is no thread. Cancelling a task cancels its request at the daemon, and what it
may still bring goes back.
"""
from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Any, Dict, List, Optional, Sequence, Set, Union

from . import ops
from .blocks import BlockOps
from .buffers import Buffer, Payload, Region
from .calls import Call, Request, now
from .client import default_endpoint, put_fields
from .engine import Engine
from .errors import KvferryError, PeerUnreachable
from .ops import From, Get, Into, PutResult, R
from .windows import WindowOps


class AsyncClient(BlockOps, WindowOps):
    """As Client, with coroutines; belongs to the loop that opened it.

    >>> async def main():
    ...     async with AsyncClient(endpoint) as c:
    ...         waiting = asyncio.create_task(c.get("k", source=0, timeout=5))
    ...         await c.put("k", b"hello")
    ...         with await waiting as p:
    ...             return bytes(p)
    >>> asyncio.run(main())
    b'hello'
    """

    def __init__(self, endpoint: Optional[str] = None, *,
                 cluster: str = "default", stage: int = 0, rank: int = 0,
                 replica: int = 0, name: Optional[str] = None,
                 timeout: float = 5.0, connect_timeout: float = 2.0,
                 events: bool = False) -> None:
        name = name or os.path.basename(sys.argv[0] or "") or "python"
        self._engine = Engine(
            endpoint or default_endpoint(cluster, stage, rank, replica), name,
            events, timeout, connect_timeout)
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._tid = 0
        self._watched: Set[int] = set()
        self._event: Optional[asyncio.Event] = None

    async def open(self) -> "AsyncClient":
        """Connects; `async with` does it."""
        self._loop = asyncio.get_running_loop()
        self._tid = threading.get_ident()
        self._event = asyncio.Event()
        self._engine.on_socket = self._in_loop(self._watch)
        self._engine.on_event = self._in_loop(self._event.set)
        await self.ping()
        return self

    # ---- driving the engine ------------------------------------------------

    def _in_loop(self, fn: Any) -> Any:
        """fn, called from the loop: the engine may be in another thread, where
        the garbage collector gave memory back."""
        def call() -> None:
            assert self._loop is not None
            if threading.get_ident() == self._tid:
                fn()
            elif not self._loop.is_closed():
                self._loop.call_soon_threadsafe(fn)
        return call

    def _watch(self) -> None:
        assert self._loop is not None
        if self._loop.is_closed():  # it watches nothing any more
            return
        for fd in self._watched:
            self._loop.remove_reader(fd)
        self._watched = set()
        if self._engine.state != "closed":
            self._watched = set(self._engine.fds())
        for fd in self._watched:
            self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        with self._engine.lock:
            self._engine.process()
        self._engine.settle()

    async def _call(self, request: Request) -> Any:
        if self._loop is None:
            await self.open()
        assert self._loop is not None
        future = self._loop.create_future()

        def finish() -> None:
            if not future.done():
                future.set_result(None)
        done = self._in_loop(finish)
        call = Call(request, lambda c: done())
        timer = None
        try:
            self._engine.submit(call)
            timer = self._loop.call_later(max(0, call.wake_at - now()),
                                          self._tick, call)
            await future
        except BaseException:
            self._engine.abandon(call)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if call.error is not None:
            raise call.error
        return call.result

    def _tick(self, call: Call) -> None:
        assert self._loop is not None
        with self._engine.lock:
            self._engine.check(call)
        self._engine.settle()
        if not call.done and not call.abandoned:
            self._loop.call_later(max(0.001, call.wake_at - now()),
                                  self._tick, call)

    async def _run(self, op: ops.Op[R]) -> R:
        try:
            request = next(op)
            while True:
                try:
                    result = await self._call(request)
                except BaseException as error:
                    request = op.throw(error)
                else:
                    request = op.send(result)
        except StopIteration as end:
            value: R = end.value
            return value

    # ---- life --------------------------------------------------------------

    async def close(self) -> None:
        """Ends the session. Idempotent; also from another loop, when that of
        this client was closed before."""
        e = self._engine
        if e.state == "closed":
            return
        if e.state == "open" and self._loop is asyncio.get_running_loop():
            e.closing = True
            e.timeout = min(e.timeout, 1.0)
            try:
                await self._call(Request("bye"))
            except KvferryError:
                pass
        with e.lock:
            e.shut() if e.closing else e.leave()
        e.settle()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.drop()

    async def __aenter__(self) -> "AsyncClient":
        return await self.open()

    async def __aexit__(self, *exc: Any) -> None:
        await self.close()

    @property
    def info(self) -> Dict[str, Any]:
        """As Client.info."""
        return dict(self._engine.info)

    # ---- operations: see Client --------------------------------------------

    async def alloc(self, size: int) -> Buffer:
        """As Client.alloc."""
        return await self._run(ops.alloc(self._engine, size))

    async def put(self, key: str, data: Any, *, ttl: Optional[float] = None,
                  readers: int = 1, replace: bool = True,
                  checksum: bool = False, notify: bool = False,
                  meta: bytes = b"") -> PutResult:
        """As Client.put; copying a large object holds up the loop."""
        fields = put_fields(key, ttl, readers, replace, checksum, notify, meta)
        return await self._run(ops.put(self._engine, fields, data))

    async def get(self, key: str, source: From = None, *,
                  timeout: Optional[float] = None, mode: str = "auto",
                  into: Optional[Into] = None,
                  generation: Optional[int] = None,
                  verify: bool = False) -> Payload:
        """As Client.get; cancelling the task cancels the get."""
        return await self._run(ops.get(self._engine, key, source, timeout,
                                       mode, into, generation, verify))

    async def mget(self, gets: Sequence[Union[str, Get]],
                   source: From = None, *, timeout: Optional[float] = None,
                   all_or_nothing: bool = False
                   ) -> List[Union[Payload, KvferryError]]:
        """As Client.mget."""
        return await self._run(ops.mget(self._engine, gets, timeout, source,
                                        all_or_nothing))

    async def region(self, size: int) -> Region:
        """As Client.region."""
        return await self.register(Region(size))

    async def register(self, region: Region) -> Region:
        """As Client.register."""
        return await self._run(ops.register(self._engine, region))

    async def unregister(self, region: Region) -> None:
        """As Client.unregister."""
        await self._run(ops.unregister(self._engine, region))

    async def ping(self) -> None:
        """As Client.ping."""
        await self._run(ops.simple("ping"))

    async def fail(self, key: str, reason: str = "") -> None:
        """As Client.fail."""
        await self._run(ops.simple("fail", {"key": key, "reason": reason}))

    async def cleanup(self, request_id: str, from_stage: Optional[int] = None,
                      to_stage: Optional[int] = None) -> int:
        """As Client.cleanup."""
        f = {"request_id": request_id, "from": from_stage, "to": to_stage}
        return await self._run(ops.simple(
            "cleanup", {k: v for k, v in f.items() if v is not None},
            "count"))

    async def list(self, prefix: str = "", limit: Optional[int] = None
                   ) -> List[Dict[str, Any]]:
        """As Client.list."""
        f: Dict[str, Any] = {"prefix": prefix} if prefix else {}
        if limit is not None:
            f["limit"] = limit
        return await self._run(ops.simple("list", f, "keys"))

    async def peer(self, stage: int, rank: int, host: str, port: int,
                   replica: int = 0) -> None:
        """As Client.peer."""
        await self._run(ops.simple("peer", {
            "stage": stage, "rank": rank, "replica": replica, "host": host,
            "port": port}))

    async def stats(self) -> Dict[str, Any]:
        """As Client.stats."""
        return await self._run(ops.simple("stats"))

    async def health(self) -> Dict[str, Any]:
        """As Client.health."""
        return await self._run(ops.simple("health"))

    async def drain(self, timeout: Optional[float] = None) -> None:
        """As Client.drain."""
        f = {} if timeout is None else {"timeout_ms": round(timeout * 1000)}
        await self._run(ops.simple("drain", f, limit=timeout or 0))

    async def next_event(self) -> Dict[str, Any]:
        """The next event; use asyncio.wait_for for a deadline."""
        if self._loop is None:
            await self.open()
        assert self._event is not None
        while not self._engine.events:
            self._event.clear()
            await self._event.wait()
        return self._engine.events.popleft()

    async def wait_for_daemon(self, timeout: float = 30.0) -> None:
        """As Client.wait_for_daemon."""
        until = now() + timeout
        while True:
            try:
                return await self.ping()
            except PeerUnreachable:
                if now() >= until:
                    raise
