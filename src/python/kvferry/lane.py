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
import threading
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

import msgpack

from .calls import Request, now
from .errors import ClientClosed, ConnectionLost, KvferryError, error_for
from .zmtp import NOWAIT, Connection, Lost, message

if TYPE_CHECKING:
    from .engine import Engine

# Seconds of a wait in which nothing but the reply is looked for: one system
# call instead of two. Who waits longer is told at once of the client's close.
_SOON = 0.02
_PATIENCE = 0.2  # seconds for the reply to a request that was cancelled
Reply = Tuple[Dict[str, Any], bytes]


class Silent(ConnectionLost):
    """The daemon stands still."""


class Lane:
    """One connection. Its lock is held while it is used, so that the client
    can be closed by another thread."""

    def __init__(self, engine: "Engine", epoch: int, slot: int,
                 patience: float) -> None:
        self.engine, self.epoch, self.slot = engine, epoch, slot
        self.lock = threading.Lock()
        self._pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
        self._heard = self._posted = 0  # messages
        self.used = 0.0
        self.conn: Optional[Connection] = None
        self.conn = conn = Connection(engine.endpoint, patience, _SOON)
        self._poller = select.poll()
        for fd in (conn.fd, engine.lanes.end.fd):
            self._poller.register(fd, select.POLLIN)

    def fit(self) -> bool:
        """The connection is that of the session of now, as far as is known.
        Not looked at again within a moment: one that is lost by then counts
        as lost under way."""
        conn = self.conn
        if self.epoch != self.engine.epoch or conn is None:
            return False
        return now() - self.used < 0.001 or not conn.lost()

    def close(self) -> None:
        """Lock held, or nobody else knows it. Idempotent."""
        conn, self.conn = self.conn, None
        if conn is not None:
            conn.close()
            self.engine.lanes.gone(self)

    # ---- messages ----------------------------------------------------------

    def _lost(self) -> ConnectionLost:
        return ConnectionLost("the connection to the daemon at "
                              f"{self.engine.endpoint} was lost")

    def _message(self, fields: Dict[str, Any],
                 payload: Optional[bytes] = None) -> bytes:
        try:
            return message(self._pack(fields), payload)
        except (TypeError, ValueError, OverflowError) as e:
            raise error_for("INVALID", str(e)) from None

    def send(self, data: bytes) -> None:
        """Messages."""
        if self.conn is None:
            raise ClientClosed("the client was closed")
        try:
            gone = self.conn.send(data, self.engine.timeout)
        except OSError:
            raise self._lost() from None
        if not gone:
            raise Silent(f"the daemon at {self.engine.endpoint} reads nothing")

    def read(self, flags: int = 0) -> Optional[Reply]:
        """The next message, or None when none came: within _SOON, or with
        NOWAIT is there. It is the next one until taken(): reading that an
        exception ended goes on where it was."""
        if self.conn is None:
            raise ClientClosed("the client was closed")
        try:
            frames = self.conn.read(flags)
        except (Lost, OSError):
            raise self._lost() from None
        if frames is None:
            return None
        try:
            reply = msgpack.unpackb(frames[0], raw=False, strict_map_key=False)
        except (ValueError, msgpack.UnpackException):
            reply = None
        return (reply if isinstance(reply, dict) else {},
                frames[1] if len(frames) > 1 else b"")

    def taken(self, reply: Dict[str, Any]) -> None:
        if self.conn is not None:
            self.conn.taken()
        self._heard += 1
        if "event" in reply:
            self.engine.told(reply)

    def post(self, fields: Dict[str, Any]) -> None:
        """Sends what needs no answer. Lock held; when it raises, the lane is
        to be closed."""
        fields["id"] = 0
        self.send(self._message(fields))
        self._posted += 1
        if self._posted > 32:  # no call came by to read what was answered
            self._posted = 0
            result = self.read(NOWAIT)
            while result is not None:
                self.taken(result[0])
                result = self.read(NOWAIT)

    # ---- calls -------------------------------------------------------------

    def call(self, request: Request) -> Reply:
        """The reply, whatever its status. Lock held; when it raises, the lane
        is clean or closed."""
        fields = request.fields
        ident = fields["id"] = next(self.engine.ids)
        fields["op"] = request.op
        try:
            self.send(self._message(fields, request.payload))
            result = self._read_for(ident, request)
            if result is None:
                result = self._await(ident, request)
            self._posted, self.used = 0, now()
            return result
        except (ConnectionLost, ClientClosed):
            self.close()
            raise
        except KvferryError:  # nothing was sent
            raise
        except BaseException:
            self._give_up(ident, request)
            raise

    def _read_for(self, ident: int, request: Request, flags: int = 0
                  ) -> Optional[Reply]:
        """The reply to that request, if it comes soon. Other ones are to what
        was posted or given up."""
        while True:
            result = self.read(flags)
            if result is None:
                return None
            if self._answers(result[0], ident, request):
                return result

    def _answers(self, reply: Dict[str, Any], ident: int, request: Request
                 ) -> bool:
        """Takes a reply; is it the one to that request?"""
        mine = reply.get("id") == ident
        if mine and reply.get("status") == "OK":
            request.reply = reply
        self.taken(reply)
        return mine

    def _await(self, ident: int, request: Request) -> Reply:
        """The reply to one that takes its time."""
        e, began = self.engine, now()
        deadline = began + request.limit + e.timeout
        wake_at, pinged = min(deadline, began + e.timeout), -1
        while True:
            result = self._read_for(ident, request, NOWAIT)
            if result is not None:
                return result
            if e.state == "closed":
                raise ClientClosed("the client was closed")
            if self._poller.poll(max(0, (wake_at - now()) * 1000)):
                continue
            if now() >= deadline:
                raise Silent(f"the daemon at {e.endpoint} did not answer "
                             f"{request.op} in time")
            if pinged == self._heard:
                raise Silent(f"the daemon at {e.endpoint} does not answer")
            pinged = self._heard
            self.send(self._message({"op": "ping", "id": 0}))
            wake_at = min(deadline, now() + e.timeout)

    def _give_up(self, ident: int, request: Request) -> None:
        """An exception from outside, anywhere. Cancels the request, and takes
        what is answered nonetheless."""
        try:
            conn = self.conn
            if conn is None or conn.half_sent():
                self.close()
                return
            cancel, until = next(self.engine.ids), now() + _PATIENCE
            self.send(self._message({"op": "cancel", "target": ident,
                                     "id": cancel}))
            while True:
                result = self.read(NOWAIT)
                if result is None:
                    left = until - now()
                    if left < 0 or self.engine.state == "closed":
                        break
                    self._poller.poll(left * 1000)
                    continue
                reply = result[0]
                mine = self._answers(reply, ident, request)
                # Nothing to cancel: it was answered before, or never sent.
                if mine or (reply.get("id") == cancel
                            and not reply.get("cancelled")):
                    return
            self.close()
        except ConnectionLost:
            self.close()
        except BaseException:
            self.close()
            raise
