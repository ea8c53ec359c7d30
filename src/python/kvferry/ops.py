"""The operations, written once for the synchronous and the asyncio client.

Each is a generator: it yields a Request, is sent its reply or is thrown
the KvferryError of that request, and returns what the caller gets. It does
nothing that blocks.
"""
from __future__ import annotations

from typing import (Any, Callable, Dict, Generator, List, Mapping, NamedTuple,
                    Optional, Sequence, Tuple, TypeVar, Union)

from .buffers import Buffer, Payload, Region, Segment, Source
from .calls import INF, Lease, Request, now
from .engine import Engine
from .errors import (Internal, Invalid, KvferryError, NoSpace, Stale,
                     Unsupported, error_for)
from .shm import Mapping as Pool
from .spares import Spare

R = TypeVar("R")
M = TypeVar("M", Buffer, Spare)
Op = Generator[Request, Dict[str, Any], R]
_PARTS = (Buffer, Region, list, tuple)  # what may be put without a copy


class Worker(NamedTuple):
    """A worker as the source of a get: its stage, and where that is not to
    be taken from the configured edges, rank and replica."""
    stage: int
    rank: Optional[int] = None
    replica: Optional[int] = None


class PutResult(NamedTuple):
    """`metadata` travels to the reader: get(key, source=metadata)."""
    size: int
    generation: int
    metadata: Dict[str, Any]


From = Union[int, Worker, Tuple[str, int], Mapping[str, Any], None]
Into = Union[Region, Buffer, Segment, Sequence[Union[Region, Buffer, Segment]]]


def key_for(request_id: str, from_stage: int, to_stage: int) -> str:
    """The key of a request's transfer between two stages.

    >>> key_for("req-1", 0, 1)
    'req-1:0_1'
    """
    return f"{request_id}:{from_stage}_{to_stage}"


def simple(op: str, fields: Optional[Dict[str, Any]] = None,
           result: Optional[str] = None, limit: float = 0) -> Op[Any]:
    reply = yield Request(op, fields, None, limit)
    if result is not None:
        return reply.get(result)
    return {k: v for k, v in reply.items() if k not in ("id", "status")}


# ---- put ---------------------------------------------------------------------

def alloc(e: Engine, size: int) -> Op[Buffer]:
    return (yield from _alloc(e, size, _buffer))


def _alloc(e: Engine, size: int,
           make: Callable[[Engine, Request, Pool, Dict[str, Any]], M]
           ) -> Op[M]:
    again = True
    while True:
        request = Request("alloc", {"size": size})
        try:
            reply = yield request
            pool = request.pool
            if pool is None:
                raise Unsupported("the pool of the daemon cannot be mapped "
                                  "here")
            if not 4096 <= reply["offset"] <= pool.size - size:
                raise Internal("a buffer outside the pool")
            memory = make(e, request, pool, reply)
            request.reply = None
            return memory
        except BaseException as error:  # a signal's can come at any step
            e.undo(request)
            # It may also have overtaken what another thread gave back before.
            if not (again and isinstance(error, NoSpace) and (
                    e.spares.give_back() or
                    now() - e.lanes.posted_at <= 0.1)):
                raise
            again = False


def _buffer(e: Engine, request: Request, pool: Pool, reply: Dict[str, Any]
            ) -> Buffer:
    at, ident = reply["offset"], reply["buffer"]
    view = pool.view[at:at + request.fields["size"]]
    return Buffer(view, ident, Lease(e, "free", ident, request.epoch, [view]))


def segments_of(e: Engine, data: Any) -> Optional[List[Segment]]:
    """`data` as segments, or None when it is something to be copied."""
    if isinstance(data, Segment) or isinstance(data, (Buffer, Region)):
        data = [data]
    if not isinstance(data, (list, tuple)):
        return None
    out = []
    for d in data:
        if isinstance(d, (Buffer, Region)):
            d = d.segment()
        if not isinstance(d, Segment):
            raise TypeError("a list of buffers, regions and segments, not of "
                            f"{type(d).__name__}")
        owner = d.owner
        if isinstance(owner, Payload):
            raise TypeError("what a get brought is not to be put again: "
                            "put a copy")
        if isinstance(owner, Buffer) and owner._lease is not None and \
                owner._lease.epoch != e.epoch:
            raise Stale("the buffer is of a session that has ended")
        out.append(d)
    return out


def put(e: Engine, fields: Dict[str, Any], data: Any) -> Op[PutResult]:
    """Small things travel in the request, others through the pool. `fields`:
    those of the request but for what is put; they get that, too."""
    if isinstance(data, _PARTS):
        if isinstance(data, Payload):
            data = data.to_bytes()
        segments = segments_of(e, data)
        if segments is not None:
            return (yield from _put_segments(fields, segments))
    src = Source(data)
    size = src.size
    # Without a pool there is no other way.
    if size <= e.inline_max or e.pool is None and e.state == "open":
        reply = yield Request("put", fields, src.to_bytes())
        return _put_result(reply)
    while True:
        request = Request("put", fields)
        spare, shelf = e.spares.take(size, request)
        old = spare is not None
        try:
            if spare is None:
                spare = yield from _alloc(e, size, Spare)
            src.fill(spare.pool.view, spare.offset)
            fields["segments"] = [{"buffer": spare.ident, "offset": 0,
                                   "length": size}]
            if shelf is not None:
                fields["next"] = shelf.size
            reply = yield request
            spare.put = True
            if shelf is not None:
                e.spares.came(shelf, request)
            return _put_result(reply)
        except BaseException as error:  # a signal's can come at any step
            e.undo(request)
            # A daemon that was restarted while nothing was asked?
            stale = old and spare is not None and spare.epoch != e.epoch
            spare = None
            if not (stale and isinstance(error, (Invalid, Stale))):
                raise
            fields.pop("next", None)
        finally:
            if shelf is not None:
                shelf.asked.discard(request)


def _put_segments(fields: Dict[str, Any], segments: List[Segment]
                  ) -> Op[PutResult]:
    fields["segments"] = [s.wire() for s in segments]
    reply = yield Request("put", fields)
    for s in segments:
        if isinstance(s.owner, Buffer):
            s.owner._given_away()
    return _put_result(reply)


def _put_result(reply: Dict[str, Any]) -> PutResult:
    # As PutResult(...), which is a function in Python.
    return tuple.__new__(PutResult, (reply["size"], reply["generation"],
                                     reply["metadata"]))


# ---- get ---------------------------------------------------------------------

def time_fields(timeout: Optional[float], fields: Dict[str, Any]) -> float:
    """Seconds to the protocol's words; how long the daemon may take."""
    if timeout is None:
        return INF  # the daemon's configuration says
    if timeout == INF:
        fields["timeout_ms"] = 0
    elif timeout <= 0:
        fields["wait"] = False
        return 0
    else:
        fields["timeout_ms"] = max(1, round(timeout * 1000))
    return timeout


def source_fields(source: From) -> Dict[str, Any]:
    """The fields that name the sender."""
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return {"metadata": dict(source)}
    if isinstance(source, int):
        return {"from": {"stage": source}}
    if isinstance(source, Worker):
        return {"from": {k: v for k, v in source._asdict().items()
                         if v is not None}}
    return {"source": address_fields(source)}


def address_fields(address: Tuple[str, int]) -> Dict[str, Any]:
    """Of (host, port)."""
    if not isinstance(address, (tuple, list)) or len(address) != 2:
        raise TypeError("a worker is a stage, a Worker or (host, port), not "
                        f"{address!r}")
    return {"host": address[0], "port": address[1]}


def get_fields(e: Engine, key: str, source: From, mode: str,
               into: Optional[Into], generation: Optional[int]
               ) -> Dict[str, Any]:
    fields: Dict[str, Any] = {"key": key}
    if source is not None:
        fields.update(source_fields(source))
    if into is not None:
        segments = segments_of(e, into)
        if segments is None:
            raise TypeError("into takes regions, buffers and segments of them")
        fields["into"] = [s.wire() for s in segments]
    elif mode != "auto":
        fields["mode"] = mode
    if generation is not None:
        fields["generation"] = generation
    if e.pool is None and e.state == "open" and mode == "auto" and not into:
        fields["mode"] = "inline"
    return fields


def payload_of(e: Engine, request: Request, key: str, reply: Dict[str, Any],
               frame: Union[bytes, memoryview], into: Optional[Into]
               ) -> Payload:
    if reply.get("mode") == "inline":
        if len(frame) != reply["size"]:
            raise Internal("the inline bytes have not the size of the reply")
        return Payload(reply, [memoryview(frame)], None, key)
    if into is not None:
        return Payload(reply, _into_pieces(e, into), None, key)
    ident = reply.get("buffer", 0)
    pieces, size, foreign = [], 0, False
    try:
        for s in reply["segments"]:
            pool = request.pool
            if "path" in s:
                pool = e.maps.view_of(s["path"])
                foreign = True
            at, n = s["offset"], s["length"]
            if pool is None or at < 0 or n < 0 or at + n > pool.size:
                raise Internal("a segment outside of what is mapped")
            pieces.append(pool.readonly[at:at + n])
            size += n
        if size != reply["size"]:
            raise Internal("the segments do not make the size")
    except KvferryError:
        e.unused("release", ident, request.epoch)
        raise
    return Payload(reply, pieces, Lease(e, "release", ident, request.epoch,
                                        pieces, foreign), key)


def _into_pieces(e: Engine, into: Into) -> List[memoryview]:
    out = []
    for s in segments_of(e, into) or ():
        out.append(s.owner._export()[s.offset:s.offset + s.length]
                   .toreadonly())
    return out


def get(e: Engine, key: str, source: From, timeout: Optional[float],
        mode: str, into: Optional[Into], generation: Optional[int],
        verify: bool) -> Op[Payload]:
    fields = get_fields(e, key, source, mode, into, generation)
    limit = time_fields(timeout, fields)
    again = True
    while True:
        request = Request("get", fields, None, limit)
        try:
            reply = yield request
            payload = payload_of(e, request, key, reply, request.frame, into)
            request.reply = None
            break
        except BaseException as error:  # a signal's can come at any step
            e.undo(request)
            if not (again and isinstance(error, NoSpace) and
                    e.spares.give_back()):
                raise
            again = False
    if verify and payload.checksum is not None:
        try:
            payload.verify()
        except KvferryError:
            payload.discard()
            raise
    return payload


class Get(NamedTuple):
    """One get of an mget; the fields are those of Client.get."""
    key: str
    source: From = None
    timeout: Optional[float] = None
    mode: str = "auto"
    into: Optional[Into] = None
    generation: Optional[int] = None


def mget(e: Engine, gets: Sequence[Union[str, Get]],
         timeout: Optional[float], source: From, all_or_nothing: bool
         ) -> Op[List[Union[Payload, KvferryError]]]:
    if isinstance(gets, str):
        raise TypeError("mget takes a list of keys, not one")
    items = [Get(g, source) if isinstance(g, str) else g for g in gets]
    if not all(isinstance(g, Get) for g in items):
        raise TypeError("mget takes a list of keys and Gets")
    wire: List[Dict[str, Any]] = []
    limit = 0.0
    fields: Dict[str, Any] = {"gets": wire}
    if timeout is not None and timeout <= 0:
        items = [i._replace(timeout=0) if i.timeout is None else i
                 for i in items]
    else:
        limit = time_fields(timeout, fields)
    for g in items:
        m = get_fields(e, g.key, g.source, g.mode, g.into, g.generation)
        if g.timeout is not None:
            limit = max(limit, time_fields(g.timeout, m))
        wire.append(m)
    if all_or_nothing:
        fields["all_or_nothing"] = True
    request = Request("mget", fields, None, limit)
    try:
        reply = yield request
        out = _payloads(e, request, items, reply)
    except BaseException:
        e.undo(request)
        raise
    request.reply = None
    return out


def _payloads(e: Engine, request: Request, items: Sequence[Get],
              reply: Dict[str, Any]
              ) -> List[Union[Payload, KvferryError]]:
    out: List[Union[Payload, KvferryError]] = []
    at, frame = 0, memoryview(request.frame)
    for g, r in zip(items, reply["results"]):
        try:
            if r["status"] != "OK":
                raise error_for(r["status"], r.get("message", ""), r)
            part = memoryview(b"")
            if r.get("mode") == "inline":
                part = frame[at:at + r["size"]]
                at += r["size"]
            out.append(payload_of(e, request, g.key, r, part, g.into))
        except KvferryError as error:
            out.append(error)
    return out


# ---- memory of one's own -----------------------------------------------------

def register(e: Engine, region: Region) -> Op[Region]:
    reply = yield Request("register", {"fd": region.fd,
                                          "size": region.size})
    region.id = reply["region"]
    return region


def unregister(e: Engine, region: Region) -> Op[None]:
    if region.id:
        yield Request("unregister", {"region": region.id})
        region.id = 0
    region.close()
