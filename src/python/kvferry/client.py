"""Client: the synchronous, thread-safe client of a kvferryd.

Most calls go by a lane (lanes.py), a connection that the calling thread has
for itself meanwhile. The others share the engine's connection, and there is no
thread of the client's own while no `on_event` asks for one: of the threads
that wait for a reply one polls that connection and completes the others'
calls; when it has its own, it hands that job on.
"""
from __future__ import annotations

import os
import sys
import threading
from select import POLLIN
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

from . import blocks, ops
from .blocks import BlockOps
from .buffers import Buffer, Payload, Region
from .calls import INF, Call, Request, now
from .engine import Engine
from .errors import ClientClosed, KvferryError, PeerUnreachable
from .ops import From, Get, Into, PutResult, R
from .windows import WindowOps


def default_endpoint(cluster: str = "default", stage: int = 0, rank: int = 0,
                     replica: int = 0) -> str:
    """Where the daemon of that worker listens unless its configuration says
    otherwise.

    >>> default_endpoint(stage=1, rank=2)
    'ipc:///.../kvferry-default-s1-r2-p0.ipc'
    """
    run = os.environ.get("XDG_RUNTIME_DIR")
    if not run:
        run = "/run/kvferry" if os.access("/run/kvferry", os.W_OK) \
            else f"/tmp/kvferry-{os.getuid()}"
    return (f"ipc://{run}/kvferry-{cluster}-s{stage}-r{rank}-p{replica}"
            ".ipc")


def put_fields(key: str, ttl: Optional[float], readers: int, replace: bool,
               checksum: bool, notify: bool, meta: bytes) -> Dict[str, Any]:
    """put's arguments in the protocol's words."""
    o: Dict[str, Any] = {"key": key}
    if ttl is not None:
        # The daemon keeps nothing for more than a year.
        o["ttl_ms"] = max(1, round(min(ttl, 1e9) * 1000)) if ttl > 0 else 0
    if readers != 1:
        o["readers"] = readers
    if not replace:
        o["on_duplicate"] = "reject"
    if checksum:
        o["checksum"] = True
    if notify:
        o["notify"] = True
    if meta:
        o["meta"] = bytes(memoryview(meta))
    return o


class Client(BlockOps, WindowOps):
    """A connection to the kvferryd of this worker.

    endpoint: "ipc://..."; or None for the default one of the worker that
    cluster, stage, rank and replica name. `timeout`: seconds for an answer
    that should come at once; `connect_timeout`: how long a call waits for a
    daemon that is not there (ConnectionLost then). on_event: called in a
    thread of its own with each event's dict, `events` asks for those of peers,
    drain and pool too.

    >>> with Client(endpoint) as c:
    ...     r = c.put("greeting", b"hello")
    ...     with c.get("greeting") as p:
    ...         print(r.size, bytes(p))
    5 b'hello'

    After a fork a child must open a Client of its own.
    """

    def __init__(self, endpoint: Optional[str] = None, *,
                 cluster: str = "default", stage: int = 0, rank: int = 0,
                 replica: int = 0, name: Optional[str] = None,
                 timeout: float = 5.0, connect_timeout: float = 2.0,
                 events: bool = False,
                 on_event: Optional[Callable[[Dict[str, Any]], None]] = None
                 ) -> None:
        name = name or os.path.basename(sys.argv[0] or "") or "python"
        self._engine = Engine(
            endpoint or default_endpoint(cluster, stage, rank, replica), name,
            events or on_event is not None, timeout, connect_timeout)
        self._leader: Optional[object] = None
        self._followers: Dict[Call, None] = {}
        self._led = self._lead_until = now()
        self._thread: Optional[threading.Thread] = None
        try:
            self.ping()
        except BaseException:
            self._shut()
            raise
        if on_event is not None:
            from .events import EventThread
            self._thread = EventThread(self, on_event)
            self._thread.start()

    # ---- driving the engine ------------------------------------------------

    def _on_done(self, call: Call) -> None:
        """Lock held; by whichever thread read the reply."""
        if call.gate is not None:
            self._followers.pop(call, None)
            self._engine.gates.append(call.gate)
            call.gate = None
        elif self._leader is call:
            self._engine.bell.ring()

    def _lead(self, me: object, until: float) -> Any:
        """What to _poll with, or None while another thread reads. Lock
        held."""
        # Should its reader be gone without a word, one takes over.
        if self._leader is not None and now() < self._lead_until:
            return None
        self._leader, self._lead_until = me, until + self._engine.timeout
        return self._engine.poller

    def _poll(self, me: object, poller: Any, until: float) -> None:
        """Polls as the leader, and hands that on. Lock not held."""
        e = self._engine
        wait = until - now()
        ready = poller.poll(None if wait == INF else max(0, wait * 1000))
        with e.lock:
            if self._leader is me:
                self._leader = None
            self._led = now()
            e.process((e.bell.fd, POLLIN) in ready)
            # Whose call is not done goes on itself.
            if self._leader is None and getattr(me, "done", True):
                self._hand_on()
        e.settle()

    def _hand_on(self) -> None:
        """Wakes one of those who wait, to read. Lock held."""
        while self._followers:
            f = next(iter(self._followers))
            gate, f.gate = f.gate, None
            # Should it be done before it runs, it has to hand on in its turn.
            f.leads = True
            self._followers.pop(f, None)
            if gate is not None:
                self._engine.gates.append(gate)
                return

    def _give_up(self, me: Any) -> None:
        """Takes no part any more: somebody else has to read."""
        with self._engine.lock:
            if isinstance(me, Call):
                me.gate = None
                self._followers.pop(me, None)
            if self._leader is me:
                self._leader = None
            if self._leader is None:
                self._hand_on()
        self._engine.settle()

    def _wait(self, call: Call) -> None:
        e = self._engine
        try:
            while not call.done:
                gate = poller = None
                with e.lock:
                    if call.gate is not None:  # it waited long enough
                        call.gate = None
                        self._followers.pop(call, None)
                    if now() >= call.wake_at:
                        e.check(call)
                    if not call.done:
                        call.leads = False
                        poller = self._lead(call, call.wake_at)
                        if poller is None:
                            gate = call.gate = threading.Lock()
                            gate.acquire()
                            self._followers[call] = None
                e.settle()
                if poller is not None:
                    self._poll(call, poller, call.wake_at)
                elif gate is not None:
                    gate.acquire(timeout=max(0, min(call.wake_at - now(),
                                                    1e6)))
        except BaseException:
            self._give_up(call)
            raise
        if call.leads:
            self._give_up(call)

    def _call(self, request: Request) -> Dict[str, Any]:
        """What is answered, by the engine's connection."""
        call = Call(request, self._on_done)
        try:
            self._engine.submit(call)
            self._wait(call)
        except BaseException:
            self._engine.abandon(call)
            raise
        if call.result is None:
            assert call.error is not None
            raise call.error
        return call.result

    def _run(self, op: ops.Op[R]) -> R:
        """Runs an operation of ops.py."""
        try:
            request = next(op)
            while True:
                try:
                    reply = self._engine.lanes.run(request) or \
                        self._call(request)
                except BaseException as error:
                    request = op.throw(error)
                else:
                    request = op.send(reply)
        except StopIteration as end:
            value: R = end.value
            return value

    # ---- life --------------------------------------------------------------

    def close(self) -> None:
        """Ends the session: what was not published goes back. Buffers and
        payloads still held must not be used any more. Idempotent."""
        if self._engine.state == "closed":
            return
        if self._engine.state == "open":
            self._engine.closing = True
            self._engine.timeout = min(self._engine.timeout, 1.0)
            try:
                self._call(Request("bye"))
            except KvferryError:
                pass
        self._shut()

    def _shut(self) -> None:
        with self._engine.lock:
            self._engine.shut()
        self._engine.settle()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.drop()

    def __repr__(self) -> str:
        return f"<kvferry.Client {self._engine.endpoint}>"

    @property
    def info(self) -> Dict[str, Any]:
        """What hello told: server, cluster, stage, rank, replica, pool,
        limits, incarnation, ..."""
        return dict(self._engine.info)

    # ---- put ---------------------------------------------------------------

    def alloc(self, size: int) -> Buffer:
        """A buffer of the pool, to be filled in place and put. NoSpace when
        there is none now.

        >>> buffer = client.alloc(1000)
        >>> buffer.view[:] = bytes(1000)
        >>> client.put("filled in place", buffer).size
        1000
        """
        return self._run(ops.alloc(self._engine, size))

    def put(self, key: str, data: Any, *, ttl: Optional[float] = None,
            readers: int = 1, replace: bool = True, checksum: bool = False,
            notify: bool = False, meta: bytes = b"") -> PutResult:
        """Publishes `data` under `key`; a get that starts now can succeed.

        A Buffer (or parts of it: segments) is published in place and belongs
        to the daemon afterwards; on failure it stays yours. A Region needs
        `notify`. Anything else that is bytes-like, an array or a tensor is
        copied. readers: how many may get it, 0 for any number until ttl
        (seconds). replace=False: Exists when the key is published.

        >>> r = client.put("numbers", numpy.arange(4, dtype="int16"))
        >>> r.size, sorted(r.metadata)
        (8, ['data_size', 'generation', 'incarnation', 'key', 'source_host', \
'source_port'])
        """
        fields = put_fields(key, ttl, readers, replace, checksum, notify, meta)
        return self._run(ops.put(self._engine, fields, data))

    # ---- get ---------------------------------------------------------------

    def get(self, key: str, source: From = None, *,
            timeout: Optional[float] = None, mode: str = "auto",
            into: Optional[Into] = None, generation: Optional[int] = None,
            verify: bool = False) -> Payload:
        """Fetches `key`, waiting for it up to `timeout` seconds.

        source: who has it: a stage number, a Worker, (host, port), a put's
        metadata, or None for the predecessor of the configured edges. timeout:
        None for the daemon's default, 0 never waits (NotFound), math.inf waits
        for ever. mode: "view" (no copy, same host), "copy" (into the pool of
        this daemon), "inline" (in the reply), "auto"; or `into` regions or
        buffers of the right length. verify: check a view's checksum here.

        >>> _ = client.put("k", b"some bytes", meta=b"dtype=u1")
        >>> payload = client.get("k", timeout=1)
        >>> payload.to_bytes(), payload.meta
        (b'some bytes', b'dtype=u1')
        >>> payload.release()
        >>> client.get("k", source=0, timeout=0)
        Traceback (most recent call last):
        ...
        kvferry.errors.Consumed: CONSUMED: ...
        """
        return self._run(ops.get(self._engine, key, source, timeout, mode,
                                 into, generation, verify))

    def mget(self, gets: Sequence[Union[str, Get]], source: From = None, *,
             timeout: Optional[float] = None, all_or_nothing: bool = False
             ) -> List[Union[Payload, KvferryError]]:
        """Several gets in one request; for each its payload or the error (not
        raised). With all_or_nothing the first failure is raised, and nothing
        is consumed.

        >>> _ = client.put("a", b"1"), client.put("b", b"22")
        >>> [p.to_bytes() for p in client.mget(["a", "b"])]
        [b'1', b'22']
        """
        return self._run(ops.mget(self._engine, gets, timeout, source,
                                  all_or_nothing))

    # ---- memory of one's own -----------------------------------------------

    def region(self, size: int) -> Region:
        """New memory of this process, registered with the daemon.

        >>> region = client.region(8)
        >>> region.view[:] = b"abcdefgh"
        >>> _ = client.put("part", region.segment(2, 3), notify=True)
        >>> client.get("part").to_bytes()
        b'cde'
        """
        region = Region(size)
        try:
            return self.register(region)
        except BaseException:
            region.close()
            raise

    def register(self, memory: Union[Region, int],
                 size: Optional[int] = None) -> Region:
        """Registers a Region (again, after a restart of the daemon), or a
        memfd sealed against shrinking with its size."""
        if isinstance(memory, int):
            memory = Region(os.fstat(memory).st_size if size is None
                            else size, memory)
        return self._run(ops.register(self._engine, memory))

    def unregister(self, region: Region) -> None:
        """Busy while the daemon uses it. The region is closed then."""
        self._run(ops.unregister(self._engine, region))

    # ---- the rest ----------------------------------------------------------

    def ping(self) -> None:
        """Asks for a sign of life; opens the connection when it is lost."""
        self._run(ops.simple("ping"))

    def fail(self, key: str, reason: str = "") -> None:
        """The key will not come: who waits for it gets Failed at once.

        >>> client.fail("never", "prefill aborted")
        >>> client.get("never", source=0)
        Traceback (most recent call last):
        ...
        kvferry.errors.Failed: FAILED: ...prefill aborted...
        """
        self._run(ops.simple("fail", {"key": key, "reason": reason}))

    def cleanup(self, request_id: str, from_stage: Optional[int] = None,
                to_stage: Optional[int] = None) -> int:
        """Takes every key of a request (or of one edge); how many.

        >>> _ = client.put(key_for("req-9", 0, 1), b"x")
        >>> client.cleanup("req-9")
        1
        """
        f: Dict[str, Any] = {"request_id": request_id}
        if from_stage is not None:
            f["from"] = from_stage
        if to_stage is not None:
            f["to"] = to_stage
        return self._run(ops.simple("cleanup", f, "count"))

    def list(self, prefix: str = "", limit: Optional[int] = None
             ) -> List[Dict[str, Any]]:
        """The keys of this daemon: key, state, size, generation, ..."""
        f: Dict[str, Any] = {"prefix": prefix} if prefix else {}
        if limit is not None:
            f["limit"] = limit
        return self._run(ops.simple("list", f, "keys"))

    def peer(self, stage: int, rank: int, host: str, port: int,
             replica: int = 0) -> None:
        """Sets or replaces where a worker is."""
        self._run(ops.simple("peer", {"stage": stage, "rank": rank,
                                      "replica": replica, "host": host,
                                      "port": port}))

    def stats(self) -> Dict[str, Any]:
        """Counters and gauges, docs/METRICS.md."""
        return self._run(ops.simple("stats"))

    def health(self) -> Dict[str, Any]:
        """`health` ("healthy", "degraded", "unhealthy") and `reasons`.

        >>> client.health()["health"]
        'healthy'
        """
        return self._run(ops.simple("health"))

    def drain(self, timeout: Optional[float] = None) -> None:
        """Asks the daemon to let readers finish and to exit."""
        f = {} if timeout is None else {"timeout_ms": round(timeout * 1000)}
        self._run(ops.simple("drain", f, limit=timeout or 0))

    def start_get(self, key: str, source: From = None, *,
                  timeout: Optional[float] = None, mode: str = "auto",
                  into: Optional[Into] = None,
                  generation: Optional[int] = None) -> "PendingGet":
        """Starts a get and returns at once: result() waits, cancel() ends it.

        >>> pending = client.start_get("later", source=0, timeout=5)
        >>> pending.done()
        False
        >>> _ = client.put("later", b"now")
        >>> pending.result().to_bytes()
        b'now'
        """
        return PendingGet(self, ops.get(self._engine, key, source, timeout,
                                        mode, into, generation, False))

    def start_pull(self, *args: Any, **kw: Any) -> "PendingGet":
        """Starts a pull (its arguments) and returns at once, as start_get."""
        return PendingGet(self, blocks.pull(self._engine, *args, **kw))

    def next_event(self, timeout: Optional[float] = None
                   ) -> Optional[Dict[str, Any]]:
        """The next event, None after `timeout` seconds without one. Not
        together with on_event.

        >>> _ = client.put("told", b"x", notify=True)
        >>> client.get("told").release()
        >>> client.next_event(5)["reason"]
        'consumed'
        """
        e, me = self._engine, object()
        until = INF if timeout is None else now() + timeout
        while not e.events and now() < until:
            # Others wait for what this one polls for: hand on often.
            soon, poller = min(until, now() + 0.05), None
            with e.lock:
                if e.state == "closed":
                    raise ClientClosed("the client is closed")
                if not e.events:
                    poller = self._lead(me, soon)
            e.settle()
            if poller is None:
                threading.Event().wait(min(0.005, max(0, until - now())))
                continue
            try:
                self._poll(me, poller, soon)
            except BaseException:
                self._give_up(me)
                raise
        try:
            return e.events.popleft()
        except IndexError:
            return None

    def wait_for_daemon(self, timeout: float = 30.0) -> None:
        """Returns when the daemon answers (again); ConnectionLost after
        `timeout` seconds."""
        until = now() + timeout
        while True:
            try:
                return self.ping()
            except PeerUnreachable:
                if now() >= until:
                    raise


class PendingGet:
    """A get or pull under way, from Client.start_get or start_pull."""

    def __init__(self, client: Client, op: ops.Op[Any]) -> None:
        self._client, self._op = client, op
        self._lock = threading.Lock()
        self._payload: Any = None
        self._error: Optional[BaseException] = None
        self._call = Call(next(op), client._on_done)
        try:
            client._engine.submit(self._call)
        except BaseException:
            client._engine.abandon(self._call)
            raise

    def done(self) -> bool:
        """True when result() would not block."""
        c = self._client
        if not self._call.done and c._leader is None:
            with c._engine.lock:
                c._engine.process()
            c._engine.settle()
        return self._call.done

    def cancel(self) -> None:
        """Asks the daemon to give up; result() raises Cancelled then, unless
        the get finished before."""
        try:
            self._client._call(Request("cancel", {"target": self._call.id}))
        except KvferryError:
            pass

    def result(self) -> Any:
        """Waits for the Payload (of a pull: the Pulled); raises what the get
        raises."""
        self._client._wait(self._call)
        with self._lock:
            if self._payload is None and self._error is None:
                try:
                    if self._call.error is not None:
                        self._op.throw(self._call.error)
                    else:
                        self._op.send(self._call.result)  # type: ignore
                except StopIteration as end:
                    self._payload = end.value
                except KvferryError as error:
                    self._error = error
        if self._error is not None:
            raise self._error
        return self._payload
