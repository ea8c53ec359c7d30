"""The operations, written once for the synchronous and the asyncio client.

Each is a generator: it yields a Request, is sent (reply, frame) or is thrown
the KvferryError of that request, and returns what the caller gets. It does
nothing that blocks.
"""
from __future__ import annotations

from typing import (Any, Dict, Generator, List, Mapping, NamedTuple, Optional,
                    Sequence, Tuple, TypeVar, Union)

from .buffers import Buffer, Payload, Region, Segment, Source
from .calls import INF, Lease, Request, now
from .engine import Engine
from .errors import (Internal, Invalid, KvferryError, NoSpace, Stale,
                     Unsupported, error_for)
from .spares import Asked

R = TypeVar("R")
Op = Generator[Request, Tuple[Dict[str, Any], bytes], R]


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
    reply, _ = yield Request(op, fields, None, limit)
    if result is not None:
        return reply.get(result)
    return {k: v for k, v in reply.items() if k not in ("id", "status")}


# ---- put ---------------------------------------------------------------------

def alloc(e: Engine, size: int) -> Op[Buffer]:
    try:
        return (yield from _alloc(e, size))
    except NoSpace:
        # It may also have overtaken what another thread gave back before.
        if not e.spares.give_back() and now() - e.lanes.posted_at > 0.1:
            raise
    return (yield from _alloc(e, size))


def _alloc(e: Engine, size: int) -> Op[Buffer]:
    request = Request("alloc", {"size": size})
    try:
        reply, _ = yield request
        pool = request.pool
        if pool is None:
            raise Unsupported("the pool of the daemon cannot be mapped here")
        at = reply["offset"]
        if at < 4096 or at + size > pool.size:
            raise Internal("a buffer outside the pool")
        view = pool.view[at:at + size]
        buffer = Buffer(view, reply["buffer"],
                        Lease(e, "free", reply["buffer"], [view]))
    except BaseException:  # a signal's can come at any step
        e.undo(request)
        raise
    request.reply = None
    return buffer


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


def put(e: Engine, key: str, data: Any, options: Dict[str, Any],
        inline_max: int = 4096) -> Op[PutResult]:
    """Small things travel in the request, others through the pool."""
    fields: Dict[str, Any] = {"key": key, **options}
    if isinstance(data, Payload):
        data = data.to_bytes()
    segments = segments_of(e, data)
    if segments is not None:
        return (yield from _put_segments(fields, segments))
    src = Source(data)
    # Without a pool there is no other way.
    if src.size <= min(inline_max, e.inline_max) or \
            (e.pool is None and e.state == "open"):
        reply, _ = yield Request("put", fields, src.to_bytes())
        return _put_result(reply)
    spare, asked = e.spares.take(src.size)
    if spare is not None:
        try:
            at = spare.offset
            src.fill(spare.pool.view[at:at + src.size])
            fields["segments"] = [{"buffer": spare.ident, "offset": 0,
                                   "length": src.size}]
            reply = yield from _put(e, fields, asked)
            spare.put()
            return _put_result(reply)
        except (Invalid, Stale):
            if spare.epoch == e.epoch:
                raise  # else the daemon was restarted while nothing was asked
        del spare
    with (yield from alloc(e, src.size)) as buffer:
        src.fill(buffer._export())
        fields["segments"] = [buffer.segment().wire()]
        reply = yield from _put(e, fields, asked)
        buffer._given_away()
        return _put_result(reply)


def _put(e: Engine, fields: Dict[str, Any], asked: Optional[Asked]
         ) -> Op[Dict[str, Any]]:
    """The reply. What it brought for the next put is taken care of."""
    if asked is None:
        return (yield Request("put", fields))[0]
    fields["next"] = asked.shelf.size
    request = Request("put", fields)
    try:
        reply, _ = yield request
        e.spares.came(asked, request, reply.get("next"))
        return reply
    except BaseException:
        e.undo(request)
        raise
    finally:
        asked.shelf.asked.discard(asked)


def _put_segments(fields: Dict[str, Any], segments: List[Segment]
                  ) -> Op[PutResult]:
    fields["segments"] = [s.wire() for s in segments]
    reply, _ = yield Request("put", fields)
    for s in segments:
        if isinstance(s.owner, Buffer):
            s.owner._given_away()
    return _put_result(reply)


def _put_result(reply: Dict[str, Any]) -> PutResult:
    return PutResult(reply["size"], reply["generation"], reply["metadata"])


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
    host, port = source
    return {"source": {"host": host, "port": port}}


def get_fields(e: Engine, key: str, source: From, mode: str,
               into: Optional[Into], generation: Optional[int]
               ) -> Dict[str, Any]:
    fields: Dict[str, Any] = {"key": key, **source_fields(source)}
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
               frame: memoryview, into: Optional[Into]) -> Payload:
    ident = reply.get("buffer")
    if reply.get("mode") == "inline":
        if frame.nbytes != reply["size"]:
            raise Internal("the inline bytes have not the size of the reply")
        return Payload(reply, [frame.toreadonly()], None, key)
    if into is not None:
        return Payload(reply, _into_pieces(e, into), None, key)
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
            pieces.append(pool.view[at:at + n].toreadonly())
            size += n
        if size != reply["size"]:
            raise Internal("the segments do not make the size")
    except KvferryError:
        Lease(e, "release", ident or 0, [memoryview(b"")]).end()
        raise
    return Payload(reply, pieces,
                   Lease(e, "release", ident or 0, pieces, foreign), key)


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
    try:
        payload = yield from _get(e, key, fields, limit, into)
    except NoSpace:
        if not e.spares.give_back():
            raise
        payload = yield from _get(e, key, fields, limit, into)
    if verify and payload.checksum is not None:
        try:
            payload.verify()
        except KvferryError:
            payload.discard()
            raise
    return payload


def _get(e: Engine, key: str, fields: Dict[str, Any], limit: float,
         into: Optional[Into]) -> Op[Payload]:
    request = Request("get", fields, None, limit)
    try:
        reply, frame = yield request
        payload = payload_of(e, request, key, reply, memoryview(frame), into)
    except BaseException:
        e.undo(request)
        raise
    request.reply = None
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
        reply, frame = yield request
        out = _payloads(e, request, items, reply, memoryview(frame))
    except BaseException:
        e.undo(request)
        raise
    request.reply = None
    return out


def _payloads(e: Engine, request: Request, items: Sequence[Get],
              reply: Dict[str, Any], frame: memoryview
              ) -> List[Union[Payload, KvferryError]]:
    out: List[Union[Payload, KvferryError]] = []
    at = 0
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
    reply, _ = yield Request("register", {"fd": region.fd,
                                          "size": region.size})
    region.id = reply["region"]
    return region


def unregister(e: Engine, region: Region) -> Op[None]:
    if region.id:
        yield Request("unregister", {"region": region.id})
        region.id = 0
    region.close()
