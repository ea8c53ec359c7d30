"""Lanes: connections to the daemon, each for one thread at a time.

A call of a synchronous client takes an idle lane, sends its request, sleeps
until the reply is there, and reads it itself: no thread wakes another one, no
two wait for one lock, and the interpreter's is held only between two system
calls. That is what makes many threads as fast as they are.

All lanes of a client belong to its session. There are as many as threads were
waiting at once, _MAX at most; who finds none uses the engine's connection,
which also carries everything that events may come of: they go to the socket
that asked. When a lane is lost, the engine finds out for itself what that means
for the session.
"""
from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Deque, Dict, Optional

import zmq

from .calls import Request, now
from .errors import ClientClosed, ConnectionLost, KvferryError, error_for
from .lane import Lane, Reply, Silent
from .wire import Bell

if TYPE_CHECKING:
    from .engine import Engine

_MAX = 16
_OPS = frozenset(("alloc", "free", "put", "get", "mget", "release", "ping",
                  "stats", "health", "list", "fail", "cleanup"))
_FRESH = 0.001  # seconds in which a lane is not looked at again
_HELLO = 0.5  # seconds until a new lane has to be one


class Lanes:
    """Those of one engine."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.end = Bell()  # rings when the client is closed
        self._idle: Deque[Lane] = deque()
        self._slots = deque(range(_MAX))
        self._open: Dict[int, Lane] = {}
        self._pause = 0.0  # until then none is opened
        self.posted_at = 0.0

    def run(self, request: Request) -> Optional[Reply]:
        """The reply, or None: it is to go by the engine's connection. Raises
        what is not OK, and ConnectionLost."""
        if request.op not in _OPS or "notify" in request.fields:
            return None
        lane, e = None, self.engine
        try:
            try:
                lane = self._idle.pop()
            except IndexError:
                pass
            # To look at it costs as much as all else: not within a moment. One
            # that is lost by then counts as lost under way.
            if lane is None or now() - lane.used >= _FRESH or \
                    lane.epoch != e.epoch or e.state != "open":
                lane = self._fit(lane)
                if lane is None:
                    return None
            with lane.lock:
                if lane.sock is None:  # closed at this moment
                    return None
                reply = lane.call(request)
        except Silent as error:
            e.silent(error.message)
            raise ConnectionLost(error.message) from None
        except ConnectionLost:
            e.suspect()
            raise
        except KvferryError:
            raise
        except BaseException:
            if lane is not None and lane.sock is None:
                e.cancel(request.fields.get("id", 0))
            raise
        finally:
            if lane is not None and lane.sock is not None:
                self._idle.append(lane)
        if request.reply is not None:  # what is OK
            if lane.used >= e.look_at:
                e.look()
            return reply
        if e.closing:  # "the session has ended": by our own bye
            raise ClientClosed("the client was closed")
        raise error_for(reply.get("status", "INTERNAL"),
                        reply.get("message", ""), reply)

    def _fit(self, lane: Optional[Lane]) -> Optional[Lane]:
        """That lane if it is fit for use, else another idle one or a new one;
        None: there is none to be had now."""
        e = self.engine
        while e.state == "open":
            if lane is None:
                try:
                    lane = self._idle.pop()
                except IndexError:
                    return self._new()
            if lane.fit():
                return lane
            lost = lane.epoch == e.epoch
            with lane.lock:
                lane.close()
            lane = None
            if lost:
                e.suspect()
        if lane is not None:
            self._idle.append(lane)
        return None

    def _new(self) -> Optional[Lane]:
        e, lane = self.engine, None
        if now() < self._pause:
            return None
        self._find_lost()
        try:
            slot = self._slots.pop()
        except IndexError:
            return None
        try:
            with e.lock:
                epoch, session, pool = e.epoch, e.session, e.pool
            lane = self._open[slot] = Lane(e, epoch, pool, slot)
            with lane.lock:
                reply = lane.call(Request("hello", {
                    "version": 1, "client": e.name, "session": session},
                    limit=min(0, _HELLO - e.timeout)))
            # Its monitor wakes nobody before it was found empty once.
            if reply.get("status") == "OK" and not lane.lost():
                return lane
        except ClientClosed:
            raise
        except (KvferryError, zmq.ZMQError, OSError):
            pass  # the engine's connection shows what that means
        except BaseException:
            self._forget(lane, slot)
            raise
        self._pause = now() + 1
        self._forget(lane, slot)
        return None

    def _find_lost(self) -> None:
        """Lanes that an exception kept from becoming idle again."""
        if self._slots:
            return
        for lane in list(self._open.values()):
            if now() - lane.used > 1 and lane not in self._idle and \
                    not lane.lock.locked():
                with lane.lock:
                    lane.close()

    def _forget(self, lane: Optional[Lane], slot: int) -> None:
        if lane is None:
            self._slots.append(slot)
        else:
            with lane.lock:
                lane.close()

    def post(self, op: str, ident: int) -> bool:
        """Gives memory back without waiting for an answer, if a lane is
        idle."""
        try:
            lane = self._idle.pop()
        except IndexError:
            return False
        at = now()
        if (at - lane.used >= _FRESH or lane.epoch != self.engine.epoch) and \
                not lane.fit():
            self._idle.append(lane)  # the next call sees to it
            return False
        try:
            with lane.lock:
                lane.post(op, ident)
            self.posted_at = at
        except KvferryError:
            return False
        except BaseException:
            with lane.lock:
                lane.close()
            raise
        self._idle.append(lane)
        return True

    def gone(self, lane: Lane) -> None:
        """It was closed."""
        if self._open.pop(lane.slot, None) is not None:
            self._slots.append(lane.slot)

    def shut(self) -> bool:
        """Closes all; calls under way end with ClientClosed. False: a thread
        stands still with one."""
        self.end.ring()
        clean = True
        for lane in list(self._open.values()):
            if lane.lock.acquire(timeout=1):
                try:
                    lane.close()
                finally:
                    lane.lock.release()
            else:
                clean = False
        return clean
