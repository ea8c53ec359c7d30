"""What is under way: requests, the calls that carry them, and leases of memory
that has to go back."""
from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from .errors import KvferryError

if TYPE_CHECKING:
    from .engine import Engine
    from .shm import Mapping

now = time.monotonic
INF = float("inf")


class Request:
    """What to ask. `limit`: seconds that the daemon may take by the request's
    own words (INF: unknown; a silent daemon is found by pings). `reply`: what
    was answered OK, until somebody has the memory that it brought. `pool`: that
    of the session which was asked, where the offsets of the reply lie; another
    thread may have a new session by then, with a daemon that was restarted."""
    __slots__ = ("op", "fields", "payload", "limit", "reply", "given_up",
                 "pool")

    def __init__(self, op: str, fields: Optional[Dict[str, Any]] = None,
                 payload: Optional[bytes] = None, limit: float = 0) -> None:
        self.op, self.payload, self.limit = op, payload, limit
        self.fields: Dict[str, Any] = {} if fields is None else fields
        self.reply: Optional[Dict[str, Any]] = None
        self.given_up = False
        self.pool: Optional[Mapping] = None


def brought(request: Request, reply: Dict[str, Any]) -> List[Tuple[str, int]]:
    """The memory in a reply: what to ask to give it back, and its id."""
    op = "free" if request.op == "alloc" else "release"
    out = [(op, r["buffer"]) for r in [reply, *(reply.get("results") or ())]
           if "buffer" in r]
    if "next" in reply:
        out.append(("free", reply["next"]["buffer"]))
    return out


class Call:
    """One request under way. `result` is (reply, frame), or `error` is set."""
    __slots__ = ("id", "request", "done", "result", "error", "deadline",
                 "wake_at", "on_done", "abandoned", "gate", "leads")

    def __init__(self, request: Request,
                 on_done: Optional[Callable[["Call"], None]] = None) -> None:
        self.id, self.request, self.on_done = 0, request, on_done
        self.done = self.abandoned = self.leads = False
        self.result: Optional[Tuple[Dict[str, Any], bytes]] = None
        self.error: Optional[KvferryError] = None
        self.deadline = self.wake_at = INF
        self.gate: Any = None


class Lease:
    """Memory that goes back when its views are gone, or at end()."""
    __slots__ = ("engine", "op", "ident", "epoch", "left", "refs",
                 "foreign", "__weakref__")

    def __init__(self, engine: "Engine", op: str, ident: int,
                 views: List[memoryview], foreign: bool = False) -> None:
        self.engine, self.op, self.ident = engine, op, ident
        self.epoch, self.foreign = engine.epoch, foreign
        self.left = len(views)
        self.refs = [weakref.ref(v, self._gone) for v in views]
        engine.leases.add(self)
        if foreign:
            engine.foreign.add(self)

    def _gone(self, ref: Any) -> None:
        self.left -= 1
        if self.left <= 0:
            self.end()

    def drop(self) -> bool:
        """No longer ours to give back; False when it was so already."""
        refs, self.refs = self.refs, []
        if not refs:
            return False
        self.engine.leases.discard(self)
        return True

    def end(self) -> None:
        try:
            if self.drop():
                self.engine.give_back(self)
        except BaseException:  # a signal's; to give it back twice is no harm
            self.engine.queue_lease(self)
            raise
