"""A lane: a connection to the daemon that one thread has for itself while it
waits. lanes.py says what for.

Failure modes: one whose connection is lost, or whose daemon does not answer, is
closed, and its call ends with ConnectionLost. After an exception that is no
reply's (KeyboardInterrupt), the request is cancelled and its reply awaited, so
that what it brings goes back; the lane is given up when that takes too long or
half a message was sent.
"""
from __future__ import annotations

import select
import signal
import threading
from threading import get_ident
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

import msgpack
import zmq
from msgpack import unpackb

from .calls import Request, now
from .errors import (ClientClosed, ConnectionLost, Internal, KvferryError,
                     error_for)
from .wire import (EVENTS, NOBLOCK, POLLIN, RCVMORE, SNDMORE, close, dealer,
                   getopt, packer, sock_recv, sock_send)

if TYPE_CHECKING:
    from .engine import Engine
    from .shm import Mapping

# Milliseconds of a wait in which nothing but the reply is looked for: one system
# call instead of three. Who waits longer is told at once when the daemon goes.
# Not in the main thread, see keep_message.
_SOON = 20
_MAIN = threading.main_thread().ident
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP,
            signal.SIGUSR1, signal.SIGUSR2)
# That of C: the one of `signal` turns what it returns into enums.
_mask: Callable[..., Any] = getattr(signal.pthread_sigmask, "__wrapped__",
                                    signal.pthread_sigmask)
# What to say of memory that is no longer used, up to its id.
_TOLD = {op: b"\x84" + b"".join(map(msgpack.packb, (
    "op", op, "id", 0, "quiet", True, "buffer"))) for op in ("free", "release")}
_PATIENCE = 0.2  # seconds for the reply to a request that was cancelled
Reply = Dict[str, Any]


def keep_message(box: List[bytes], sock: Any) -> None:
    """Receives what is there (or zmq.Again) into the box; for the main thread.
    pyzmq runs the handlers of signals when it has received a message, and loses
    that when one of them raises. So the usual ones have to wait."""
    before = _mask(signal.SIG_BLOCK, ())
    try:
        _mask(signal.SIG_BLOCK, _SIGNALS)
        box.extend(map(sock_recv, (sock,), (NOBLOCK,)))
    finally:
        _mask(signal.SIG_SETMASK, before)


class Silent(ConnectionLost):
    """The daemon stands still."""


class Lane:
    """One connection. Its lock is held while it is used, so that the client
    can be closed by another thread."""

    def __init__(self, engine: "Engine", epoch: int, pool: Optional[Mapping],
                 slot: int) -> None:
        self.engine, self.epoch, self.pool = engine, epoch, pool
        self.slot = slot
        self.lock = threading.Lock()
        self._ids = engine.ids
        self._pack = packer()
        self._box: List[bytes] = []  # frames of a message being read
        self._half = False           # a message of which a part was sent
        self._posted = 0             # messages
        self.used = 0.0
        self.sock, self.mon = dealer(engine.ctx)
        self.sock.setsockopt(zmq.RCVTIMEO, _SOON)
        self._poller = select.poll()
        for fd in (self.sock.get(zmq.FD), self.mon.get(zmq.FD),
                   engine.lanes.end.fd):
            self._poller.register(fd, select.POLLIN)
        self.sock.connect(engine.endpoint)

    def fit(self) -> bool:
        """The connection is that of the session of now, as far as is known."""
        return self.sock is not None and \
            self.epoch == self.engine.epoch and not self.lost()

    def lost(self) -> bool:
        try:
            return bool(getopt(self.mon, EVENTS) & POLLIN)
        except zmq.ZMQError:  # closed by another thread
            return True

    def close(self) -> None:
        """Lock held, or nobody else knows it. Idempotent."""
        sock, self.sock = self.sock, None
        if sock is not None:
            close(sock, self.mon)
            self.engine.lanes.gone(self)

    # ---- messages ----------------------------------------------------------

    def send(self, head: bytes, payload: Optional[bytes] = None) -> None:
        try:
            if payload is None:
                sock_send(self.sock, head, NOBLOCK)
                return
            self._half = True
            sock_send(self.sock, head, SNDMORE)
            sock_send(self.sock, payload, NOBLOCK)
            self._half = False
        except zmq.ZMQError as e:
            self.close()
            raise Internal(f"cannot send: {e}") from None

    def read(self, flags: int, ident: int, request: Request
             ) -> Optional[Reply]:
        """Takes the next message, or None when none came: within _SOON, or
        with NOBLOCK is there. If it has that id it is the request's reply. It
        stays in the box until then: reading that an exception ended goes on
        where it was."""
        sock, box = self.sock, self._box
        if not box:
            try:
                if get_ident() == _MAIN:
                    keep_message(box, sock)
                else:
                    box.append(sock_recv(sock, flags))
            except zmq.Again:
                return None
        try:
            reply: Reply = unpackb(box[0], raw=False, strict_map_key=False)
            got = reply.get
        except (ValueError, AttributeError, msgpack.UnpackException):
            reply = {}
            got = reply.get
        if got("mode") == "inline" or "results" in reply or not reply:
            while getopt(sock, RCVMORE):
                box.append(sock_recv(sock, NOBLOCK))
            request.frame = box[1] if len(box) > 1 else b""
        if got("id") == ident and got("status") == "OK":
            request.reply = reply
        box.clear()
        if "event" in reply:
            self.engine.told(reply)
        return reply

    def post(self, op: str, ident: int) -> None:
        """Gives memory back without an answer. Lock held."""
        if self.sock is None:
            raise ClientClosed("the client was closed")
        self.send(_TOLD[op] + self._pack(ident))
        self._posted += 1
        if self._posted > 32:  # no call came by to read what was answered
            self._posted = 0
            while self.read(NOBLOCK, -1, Request("")) is not None:
                pass

    # ---- calls -------------------------------------------------------------

    def call(self, request: Request) -> Reply:
        """The reply, whatever its status. Lock held; when it raises, the lane
        is clean or closed."""
        if self.sock is None:
            raise ClientClosed("the client was closed")
        fields = request.fields
        ident = fields["id"] = next(self._ids)
        request.epoch, request.pool = self.epoch, self.pool
        try:
            head = self._pack(fields)
        except (TypeError, ValueError, OverflowError) as e:
            raise error_for("INVALID", str(e)) from None
        try:
            self.send(head, request.payload)
            reply = None
            if get_ident() != _MAIN:
                reply = self.read(0, ident, request)
                # Other ones are to what was posted or given up.
                while reply is not None and reply.get("id") != ident:
                    reply = self.read(0, ident, request)
            if reply is None:
                reply = self._await(ident, request)
            self._posted, self.used = 0, now()
            return reply
        except (ConnectionLost, ClientClosed):
            self.close()
            raise
        except KvferryError:  # nothing was sent
            raise
        except BaseException:
            self._give_up(ident, request)
            raise

    def _await(self, ident: int, request: Request) -> Reply:
        """The reply to one that takes its time."""
        e, began = self.engine, now()
        deadline = began + request.limit + e.timeout
        wake_at, woken = min(deadline, began + e.timeout), False
        heard, pinged = 0, -1
        while True:
            lost = woken and self.lost()
            if getopt(self.sock, EVENTS) & POLLIN:
                reply = self.read(NOBLOCK, ident, request)
                if reply is not None:
                    if reply.get("id") == ident:
                        return reply
                    heard += 1
                continue
            if lost:
                raise ConnectionLost("the connection to the daemon at "
                                     f"{e.endpoint} was lost")
            if e.state == "closed":
                raise ClientClosed("the client was closed")
            woken = bool(self._poller.poll(max(0, (wake_at - now()) * 1000)))
            if woken:
                continue
            if now() >= deadline:
                raise Silent(f"the daemon at {e.endpoint} did not answer "
                             f"{request.op} in time")
            if pinged == heard:
                raise Silent(f"the daemon at {e.endpoint} does not answer")
            pinged = heard
            self.send(self._pack({"op": "ping", "id": 0}))
            wake_at = min(deadline, now() + e.timeout)

    def _give_up(self, ident: int, request: Request) -> None:
        """An exception from outside, anywhere. Cancels the request, and takes
        what is answered nonetheless."""
        try:
            if self._half or self.sock is None:
                self.close()
                return
            cancel, until = next(self.engine.ids), now() + _PATIENCE
            self.send(self._pack({"op": "cancel", "target": ident,
                                  "id": cancel}))
            while True:
                reply = self.read(NOBLOCK, ident, request)
                if reply is None:
                    left = until - now()
                    if left < 0 or self.engine.state == "closed" or \
                            self.lost():
                        break
                    if not getopt(self.sock, EVENTS) & POLLIN:
                        self._poller.poll(left * 1000)
                    continue
                answered = reply.get("id")
                # Nothing to cancel: it was answered before, or never sent.
                if answered == ident or (answered == cancel and
                                         not reply.get("cancelled")):
                    return
            self.close()
        except BaseException:
            self.close()
            raise
