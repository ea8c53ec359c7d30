"""Memory of other workers: windows that they expose, and payloads pushed into
their daemons' pools.

For both clients: what `_run` returns is the result of Client's methods and
the coroutine of AsyncClient's.
"""
from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

from . import ops
from .buffers import Memory, Region, Segment, Source, _check_range
from .calls import Request
from .engine import Engine
from .errors import Internal, Unsupported
from .ops import Into, Op, Worker

Target = Union[int, Worker, Tuple[str, int]]


class Moved(NamedTuple):
    """What push, write and read answer. `generation`: of push, at the
    receiver."""
    size: int
    transport: str
    attempts: int
    timing: Dict[str, int]
    generation: int = 0


class Window(Memory):
    """Memory that other workers may address by `name`. Bytes-like; what they
    wrote is there when their write has answered."""

    def __init__(self, name: str, ident: int, buffer: int, view: memoryview,
                 keep: Any) -> None:
        self.name, self.window, self.id = name, ident, buffer
        self.size = view.nbytes
        self._mv: Optional[memoryview] = view
        self._keep = keep

    def segment(self, offset: int = 0, length: Optional[int] = None
                ) -> Segment:
        """A part of it, for push, write, read, and get's `into`."""
        if isinstance(self._keep, Region):
            return self._keep.segment(offset, length)
        if length is None:
            length = self.size - offset
        _check_range(offset, length, self.size)
        self._export()
        return Segment(self, offset, length)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"<kvferry.Window {self.name!r}: {self.size} bytes>"


def target_fields(to: Target) -> Dict[str, Any]:
    """The fields that name the receiver."""
    if isinstance(to, (int, Worker)):
        return {"to": ops.source_fields(to)["from"]}
    return {"target": ops.address_fields(to)}


def _moved(r: Dict[str, Any]) -> Moved:
    return Moved(r["size"], r["transport"], r["attempts"], r["timing"],
                 r.get("generation", 0))


def _expose(e: Engine, name: str, memory: Union[int, Region], writable: bool
            ) -> Op[Any]:
    f: Dict[str, Any] = {"name": name, "writable": writable}
    if isinstance(memory, Region):
        f["region"] = memory.id
        r = yield Request("expose", f)
        return Window(name, r["window"], 0, memory._export(), memory)
    f["size"] = memory
    request = Request("expose", f)
    r = yield request
    at, pool = r["offset"], request.pool
    if pool is None:
        yield Request("unexpose", {"window": r["window"]})
        raise Unsupported("the pool of the daemon cannot be mapped here")
    if at < 4096 or at + memory > pool.size:
        raise Internal("a window outside the pool")
    return Window(name, r["window"], r["buffer"], pool.view[at:at + memory],
                  pool)


def _unexpose(window: Window) -> Op[Any]:
    yield Request("unexpose", {"window": window.window})
    window._mv = None


def _move(e: Engine, op: str, fields: Dict[str, Any], data: Any,
          timeout: Optional[float], inline: bool) -> Op[Any]:
    """push and write: from segments, or through a buffer that goes back."""
    limit = ops.time_fields(timeout, fields)
    segments = ops.segments_of(e, data)
    if segments is not None:
        fields["segments"] = [s.wire() for s in segments]
        r = yield Request(op, fields, None, limit)
        return _moved(r)
    src = Source(data)
    if inline and src.size <= e.inline_max:
        r = yield Request(op, fields, src.to_bytes(), limit)
        return _moved(r)
    with (yield from ops.alloc(e, src.size)) as buffer:
        src.fill(buffer._mv)
        fields["segments"] = [buffer.segment().wire()]
        r = yield Request(op, fields, None, limit)
        return _moved(r)


def _read(e: Engine, fields: Dict[str, Any], into: Optional[Into],
          size: Optional[int], timeout: Optional[float]) -> Op[Any]:
    limit = ops.time_fields(timeout, fields)
    if into is not None:
        segments = ops.segments_of(e, into)
        if segments is None:
            raise TypeError("into takes regions, buffers and segments of them")
        fields["segments"] = [s.wire() for s in segments]
        r = yield Request("read", fields, None, limit)
        return _moved(r)
    if size is None:
        raise TypeError("read needs size or into")
    buffer = yield from ops.alloc(e, size)
    try:
        fields["segments"] = [buffer.segment().wire()]
        yield Request("read", fields, None, limit)
    except BaseException:
        buffer.discard()
        raise
    return buffer


def _check_timeout(timeout: Optional[float]) -> None:
    if timeout is not None and timeout <= 0:
        raise ValueError("timeout > 0, or math.inf")


class WindowOps:
    """Operations on the memory of other workers, of both clients."""

    _engine: Engine

    def _run(self, op: Op[Any]) -> Any:
        raise NotImplementedError

    def push(self, key: str, data: Any, to: Target, *,
             ttl: Optional[float] = None, readers: int = 1,
             replace: bool = True, checksum: bool = False,
             notify: bool = False, meta: bytes = b"",
             timeout: Optional[float] = None) -> Any:
        """Puts `data` under `key` at the receiver's daemon: when this returns,
        it lies in that pool, and a get there finds it.

        to: a stage, a Worker or (host, port). The other arguments are put's;
        buffers and regions stay this client's. NoSpace is the receiver's.
        notify: an event `retired` tells how it ended there. Returns a Moved.

        >>> client.push("pushed", b"x" * 10000, client.me).size
        10000
        >>> client.get("pushed").size
        10000
        """
        _check_timeout(timeout)
        from .client import put_fields
        f = put_fields(key, ttl, readers, replace, checksum, notify, meta)
        f.update(target_fields(to))
        return self._run(_move(self._engine, "push", f, data, timeout, True))

    def expose(self, name: str, memory: Union[int, Region],
               writable: bool = True) -> Any:
        """Memory that other workers may read, and write if `writable`: so
        many bytes of the daemon's pool, or a Region. Returns a Window; it
        ends with unexpose or the session.

        >>> window = client.expose("mailbox", 100)
        >>> _ = client.write(client.me, "mailbox", b"news", offset=10)
        >>> bytes(window.view[10:14])
        b'news'
        >>> client.unexpose(window)
        """
        return self._run(_expose(self._engine, name, memory, writable))

    def unexpose(self, window: Window) -> Any:
        """Ends a window; writers under way get Stale."""
        return self._run(_unexpose(window))

    def write(self, to: Target, window: str, data: Any, offset: int = 0, *,
              timeout: Optional[float] = None, notify: Optional[bytes] = None
              ) -> Any:
        """Writes into a worker's window: in place when it returns. notify: the
        owner gets an event `written` with these bytes afterwards. Returns a
        Moved."""
        _check_timeout(timeout)
        f: Dict[str, Any] = {**target_fields(to), "window": window,
                             "target_offset": offset}
        if notify is not None:
            f["notify"] = bytes(notify)
        return self._run(_move(self._engine, "write", f, data, timeout,
                               False))

    def read(self, to: Target, window: str, size: Optional[int] = None,
             offset: int = 0, *, into: Optional[Into] = None,
             timeout: Optional[float] = None, notify: Optional[bytes] = None
             ) -> Any:
        """Reads from a worker's window: `size` bytes into a new Buffer, which
        is returned, or `into` buffers and regions (returns a Moved)."""
        _check_timeout(timeout)
        f: Dict[str, Any] = {**target_fields(to), "window": window,
                             "target_offset": offset}
        if notify is not None:
            f["notify"] = bytes(notify)
        return self._run(_read(self._engine, f, into, size, timeout))
