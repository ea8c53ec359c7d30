"""The connection to the daemon: requests out, replies in, nothing that blocks.

The synchronous and the asyncio client drive the same Engine: they submit
requests and call process() when one of its descriptors is readable. Most calls
of the synchronous one pass it by (lanes.py) and need only what it knows of the
session.

Happy path: submit sends, process reads the replies and completes the calls.
Failure modes: a connection that is lost ends every outstanding call with
ConnectionLost and closes the socket; the next request opens a new one, asks
for the old session, and takes a new one when the daemon was restarted. A
daemon that stands still is found by deadlines and pings.

Locks: everything here runs under `lock`; who leaves it calls settle(). Memory
may be given back from the garbage collector, which can run anywhere, also
inside the lock; so that only appends to a queue, and settle empties it.

A signal's exception (KeyboardInterrupt) can come between any two steps. So the
lock is taken by `with`, and one that comes while a message is read or written
costs the connection: half a message must not be taken for a whole one.
"""
from __future__ import annotations

import atexit
import itertools
import os
import select
import sys
import threading
import weakref
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Set

import msgpack
import zmq
from zmq.utils.monitor import recv_monitor_message

from .calls import Call, Lease, Request, brought, now
from .errors import (ClientClosed, ConnectionLost, Internal, KvferryError,
                     error_for)
from .lanes import Lanes
from .shm import Mapping, Mappings
from .spares import Spares
from .wire import (EVENTS as _EVENTS, NOBLOCK as _NOBLOCK, POLLIN as _POLLIN,
                   RCVMORE as _RCVMORE, SNDMORE as _SNDMORE, Bell, close,
                   dealer, getopt as _get, packer, sock_recv as _sock_recv,
                   sock_send as _sock_send)

_pack = packer()
_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()
_INLINE = 4096  # bytes that a request carries, unless the daemon takes less
_stuck: List[Any] = []  # contexts that cannot be ended: never collected


class Engine:
    """See above. `connect_timeout`: seconds to wait for a daemon that is not
    there; `timeout`: for an answer that should come at once."""

    def __init__(self, endpoint: str, name: str, events: bool,
                 timeout: float, connect_timeout: float) -> None:
        self.endpoint, self.name, self.want_events = endpoint, name, events
        self.timeout, self.connect_timeout = timeout, connect_timeout
        self.lock = threading.Lock()
        self.ctx = zmq.Context()
        self.ctx.set(zmq.BLOCKY, False)
        self.sock: Any = None
        self.mon: Any = None
        self.bell = Bell()  # ends a poll of another thread
        self.poller = select.poll()
        self.state = "down"  # hello, open, closed
        self.closing = False
        self.calls: Dict[int, Call] = {}
        self.queue: List[Call] = []  # until hello is answered
        self.gates: Deque[Any] = deque()  # to be opened by settle
        self.ids = itertools.count(1)
        self.maps = Mappings()
        self.pool: Optional[Mapping] = None
        self.info: Dict[str, Any] = {}
        self.inline_max = _INLINE
        self.epoch = 0
        self.session: Optional[bytes] = None
        self.incarnation: Optional[bytes] = None
        self.old: Optional[bytes] = None  # incarnation still to be `unmapped`
        self.leases: Set[Lease] = set()
        self.last_rx = now()
        self.events: Deque[Dict[str, Any]] = deque(maxlen=65536)
        self.on_socket: Optional[Callable[[], None]] = None
        self.on_event: Optional[Callable[[], None]] = None
        self._later: Deque[Lease] = deque()
        self._ping: Optional[Call] = None
        self.look_at = 0.0
        self.lanes = Lanes(self)
        self.spares = Spares(self)
        _engines.add(self)

    # ---- the lock ----------------------------------------------------------

    def settle(self) -> None:
        """After every release of the lock: nothing queued is left behind.
        Threads are woken as late as that: earlier they would find the lock
        taken, or the interpreter's, and sleep again."""
        while True:
            self._open_gates()
            if not self._later:
                return
            with self.lock:
                self._flush()

    def _open_gates(self) -> None:
        while self.gates:
            try:
                gate = self.gates.popleft()
            except IndexError:  # another thread was faster
                return
            gate.release()

    def queue_lease(self, lease: Lease) -> None:
        """It goes back when the lock is left next."""
        self._later.append(lease)

    def later(self, lease: Lease) -> None:
        """From anywhere, the garbage collector included: does not wait for
        the lock, whose holder settles."""
        self._later.append(lease)
        while self._later and self.lock.acquire(False):
            try:
                self._flush()
            finally:
                self.lock.release()
            self._open_gates()

    def undo(self, request: Request) -> None:
        """Its caller is gone: what was or will be answered goes back."""
        request.given_up = True
        reply, request.reply = request.reply, None
        if reply is not None:
            for op, ident in brought(request, reply):
                self.unused(op, ident, request.epoch)

    def unused(self, op: str, ident: int, epoch: int) -> None:
        """Gives back what was no lease yet."""
        Lease(self, op, ident, epoch, [memoryview(b"")]).end()

    # ---- what lanes found out ----------------------------------------------

    def suspect(self) -> None:
        """A lane has lost its connection: has this one, too? The daemon's end
        is told to each by itself, so a moment is given."""
        with self.lock:
            if self.state == "open":
                self.mon.poll(50)
                self.process(False)
        self.settle()

    def silent(self, why: str) -> None:
        """The daemon does not answer on a lane."""
        with self.lock:
            if self.state == "open":
                self._lost(why)
        self.settle()

    def cancel(self, ident: int) -> None:
        """Of a request on a lane that was given up."""
        with self.lock:
            if self.state == "open":
                self._send(Call(Request("cancel", {"target": ident})))
                self.process(False)
        self.settle()

    def look(self) -> None:
        """Now and then, from look_at on, while lanes are used: what came by
        this connection."""
        self.look_at = now() + 0.05
        with self.lock:
            self.process(False)
        self.settle()
        if now() >= self.spares.due:
            self.spares.trim()

    def _cut(self) -> None:
        """An exception came in the middle of a message. Lock held."""
        if self.state in ("hello", "open"):
            self._lost("the client was interrupted in the middle of a message")

    def _flush(self) -> None:
        try:
            while self._later:
                lease = self._later.popleft()
                if lease.foreign:
                    self._view_gone(lease)
                if self.state == "open" and lease.epoch == self.epoch:
                    self._send(Call(Request(lease.op, {
                        "buffer": lease.ident, "quiet": True})))
                    # A send may swallow the wake-up of a reply.
                    self._drain()
        except BaseException:
            self._cut()
            raise

    def _view_gone(self, lease: Lease) -> None:
        if lease.epoch != self.epoch:
            self._say_unmapped()

    # ---- requests ----------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Sends, or queues until there is a session. Lock not held. Whatever
        it raises, abandon(call) is to follow."""
        with self.lock:
            if self.state == "closed":
                raise ClientClosed("the client is closed")
            try:
                self._number(call)
                if self._later:
                    self._flush()
                if self.state == "open":
                    self._check_monitor()
                if self.state == "open":
                    self._start(call)
                    self._drain()
                else:
                    self.queue.append(call)
                    call.deadline = call.wake_at = \
                        now() + self.connect_timeout
                    if self.state == "down":
                        self._connect()
            except BaseException:
                self._cut()
                raise
        self.settle()
        if now() >= self.spares.due:
            self.spares.trim()

    def _number(self, call: Call) -> Call:
        call.id = next(self.ids)
        return call

    def _start(self, call: Call) -> None:
        at = now()
        self.calls[call.id] = call
        call.deadline = at + call.request.limit + self.timeout
        call.wake_at = at + self.timeout
        self._send(call)

    def _send(self, call: Call) -> None:
        r = call.request
        r.epoch, r.pool = self.epoch, self.pool
        m = dict(r.fields)
        m["id"] = call.id
        try:
            if r.payload is None:
                _sock_send(self.sock, _pack(m), _NOBLOCK)
            else:
                _sock_send(self.sock, _pack(m), _SNDMORE)
                _sock_send(self.sock, r.payload, _NOBLOCK)
        except zmq.ZMQError as e:
            self._complete(call, None, Internal(f"cannot send: {e}"))
        except (TypeError, ValueError, OverflowError) as e:
            self._complete(call, None, error_for("INVALID", str(e)))

    def _complete(self, call: Call, result: Optional[Dict[str, Any]],
                  error: Optional[KvferryError]) -> None:
        if call.done:
            return
        if result is not None:
            call.request.reply = result
        call.result, call.error, call.done = result, error, True
        self.calls.pop(call.id, None)
        if call.on_done is not None:
            call.on_done(call)

    def abandon(self, call: Call) -> None:
        """Nobody waits any more: what it may still bring goes back. Lock
        not held."""
        with self.lock:
            try:
                if call in self.queue:
                    self.queue.remove(call)
                elif call.id in self.calls:
                    call.abandoned = True
                    self._send(Call(Request("cancel", {"target": call.id})))
                    self._drain()
                elif call.request.reply is not None:
                    reply, call.request.reply = call.request.reply, None
                    self._undo(call, reply)
            except BaseException:
                self._cut()
                raise
        self.settle()

    def _undo(self, call: Call, reply: Dict[str, Any]) -> None:
        for op, ident in brought(call.request, reply):
            if self.state == "open":
                self._send(Call(Request(op, {"buffer": ident,
                                             "quiet": True})))

    def check(self, call: Call) -> None:
        """wake_at passed: the deadline too, or time for a ping. Lock held."""
        at = now()
        if call.done or at < call.wake_at:
            return
        if call in self.queue:
            # The hello stays under way: it is answered when a daemon comes.
            self.queue.remove(call)
            self._complete(call, None, ConnectionLost(
                f"no daemon answers at {self.endpoint}: is kvferryd running?"))
            return
        if at >= call.deadline:
            why = (f"the daemon at {self.endpoint} did not answer "
                   f"{call.request.op} in time")
            self._lost(why)
            # One that was forgotten when a signal came in between.
            self._complete(call, None, ConnectionLost(why))
            return
        if self._ping is not None and not self._ping.done:
            if at >= self._ping.wake_at:
                self._lost(f"the daemon at {self.endpoint} does not answer")
                return
        elif self.state == "open" and at - self.last_rx >= self.timeout:
            self._ping = self._number(Call(Request("ping")))
            self._start(self._ping)
            self._drain()
        call.wake_at = min(call.deadline, at + self.timeout)

    # ---- replies -----------------------------------------------------------

    def process(self, woken: bool = True) -> None:
        """Reads all that is there. woken: the bell may ring. Lock
        held."""
        if self.state == "closed":
            return
        if woken:
            self.bell.hush()
        try:
            self._drain()
            self._check_monitor()
        except BaseException:
            self._cut()
            raise

    def _drain(self) -> None:
        while self.sock is not None and \
                _get(self.sock, _EVENTS) & _POLLIN:
            try:
                head = _sock_recv(self.sock, _NOBLOCK)
                frame = b""
                while _get(self.sock, _RCVMORE):
                    frame = _sock_recv(self.sock, _NOBLOCK)
            except zmq.Again:
                return
            self._dispatch(head, frame)

    def told(self, event: Dict[str, Any]) -> None:
        self.events.append(event)
        if self.on_event is not None:
            self.on_event()

    def _dispatch(self, head: bytes, frame: bytes) -> None:
        try:
            reply = msgpack.unpackb(head, raw=False, strict_map_key=False)
        except (ValueError, msgpack.UnpackException):
            return
        if not isinstance(reply, dict):
            return
        self.last_rx = now()
        if "event" in reply:
            self.told(reply)
            return
        call = self.calls.get(reply.get("id") or 0)
        if call is None:
            return
        status = reply.get("status", "INTERNAL")
        if call.abandoned or call.request.given_up:
            self.calls.pop(call.id, None)
            if status == "OK":
                self._undo(call, reply)
        elif status == "OK":
            call.request.frame = frame
            self._complete(call, reply, None)
        elif self.closing:  # "the session has ended": by our own bye
            self._complete(call, None,
                           ClientClosed("the client was closed"))
        else:
            self._complete(call, None, error_for(
                status, reply.get("message", ""), reply))

    # ---- the connection ----------------------------------------------------

    def _connect(self) -> None:
        self.state = "hello"
        self.sock, self.mon = dealer(self.ctx)
        try:
            self.sock.connect(self.endpoint)
        except zmq.ZMQError as e:
            self._lost(f"endpoint {self.endpoint}: {e}")
            return
        self.poller = select.poll()
        for fd in self.fds():
            self.poller.register(fd, select.POLLIN)
        self._changed()
        self._hello(self.session)

    def fds(self) -> List[int]:
        """What to poll; they change with on_socket."""
        if self.sock is None:
            return [self.bell.fd]
        return [self.sock.get(zmq.FD), self.mon.get(zmq.FD), self.bell.fd]

    def _changed(self) -> None:
        self.bell.ring()
        if self.on_socket is not None:
            self.on_socket()

    def _hello(self, session: Optional[bytes], unmapped: bool = False) -> None:
        fields: Dict[str, Any] = {"version": 1, "client": self.name,
                                  "events": self.want_events}
        if session is not None:
            fields["session"] = session
        if unmapped:
            fields["unmapped"] = self.old
            self.old = None
        call = self._number(Call(Request("hello", fields)))
        if not unmapped:
            call.on_done = self._hello_done
        self._start(call)
        self._drain()

    def _hello_done(self, call: Call) -> None:
        error = call.error
        if call.result is not None:
            try:
                self._opened(call.result)
                return
            except KvferryError as e:
                error = e
        elif "session" in call.request.fields and \
                not isinstance(error, ConnectionLost):
            self._hello(None)  # it does not know us: restarted
            return
        self._down(error or Internal("hello without an answer"))

    def _opened(self, reply: Dict[str, Any]) -> None:
        inc = reply.get("incarnation")
        if reply.get("session") != self.session:
            pool = reply.get("pool") or {}
            if self.endpoint.startswith("ipc:") and pool.get("path"):
                try:
                    self.pool = self.maps.open(pool["path"], True,
                                               pool.get("size"), inc)
                except KvferryError as e:
                    # Another PID namespace: operations without memory work.
                    if e.status != "UNSUPPORTED":
                        raise
                    self.pool = None
            if self.incarnation is not None and inc != self.incarnation:
                self.old = self.incarnation
            self.epoch += 1
        self.session, self.incarnation = reply.get("session"), inc
        self.info = {k: v for k, v in reply.items()
                     if k not in ("id", "status")}
        self.inline_max = min(_INLINE, (self.info.get("limits") or {}).get(
            "inline_max", _INLINE))
        self.state = "open"
        queue, self.queue = self.queue, []
        for call in queue:
            self._start(call)
        self._say_unmapped()
        self._drain()

    def _say_unmapped(self) -> None:
        if self.old is None or self.state != "open" or any(
                lease.foreign and lease.epoch != self.epoch
                for lease in list(self.leases)):
            return
        pool = self.pool
        self.maps.drop()
        if pool is not None:
            self.maps.keep(pool)
        self._hello(self.session, unmapped=True)

    def _check_monitor(self) -> None:
        lost = False
        while self.mon is not None and \
                _get(self.mon, _EVENTS) & _POLLIN:
            recv_monitor_message(self.mon, _NOBLOCK)
            lost = True
        if lost:
            self._drain()  # replies first: the loss ends the rest
            self._lost(f"the connection to the daemon at {self.endpoint} was "
                       "lost")

    def _lost(self, why: str) -> None:
        self._down(ConnectionLost(why))

    def _down(self, error: KvferryError) -> None:
        if self.state != "closed":
            self.state = "down"
        sock, self.sock, self.mon, mon = self.sock, None, None, self.mon
        calls = list(self.calls.values()) + self.queue
        self.calls, self.queue = {}, []
        if sock is not None:
            close(sock, mon)  # LINGER is 0, but for the bye of an exit
            self._changed()
        for call in calls:
            if call.on_done != self._hello_done:
                self._complete(call, None, error)

    def shut(self) -> None:
        """Ends all outstanding calls with ClientClosed. Lock held."""
        if self.state == "closed":
            return
        self.state = "closed"
        self._down(ClientClosed("the client was closed"))
        self.pool = None
        self.spares.give_back()
        self.maps.drop()
        if self.lanes.shut():
            self.ctx.term()
        else:
            _stuck.append(self.ctx)

    def leave(self) -> None:
        """Says bye without waiting for an answer, and shuts. Lock held."""
        if self.state == "open":
            self.sock.setsockopt(zmq.LINGER, 100)  # the bye has to go
            self._send(Call(Request("bye")))
        self.shut()

    def drop(self) -> None:
        """leave(), from a client's __del__: does not wait for the lock."""
        if self.state == "closed" or sys.is_finalizing() or \
                not self.lock.acquire(False):
            return
        try:
            self.leave()
        finally:
            self.lock.release()
        self._open_gates()


@atexit.register
def _at_exit() -> None:
    """Nothing of zmq is left for the interpreter's last moments."""
    for e in list(_engines):
        if e.state == "closed" or not e.lock.acquire(timeout=1):
            continue
        try:
            e.leave()
        finally:
            e.lock.release()
        e.settle()


def _after_fork() -> None:
    """A child has no part in its parent's connections."""
    for e in list(_engines):
        e.lock = threading.Lock()
        e.state = "closed"
        e.sock = e.mon = None
        e.calls, e.queue = {}, []
        e.lanes = Lanes(e)


os.register_at_fork(after_in_child=_after_fork)
