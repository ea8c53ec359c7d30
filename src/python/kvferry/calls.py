"""What is under way: requests, the calls that carry them, and leases of memory
that has to go back."""
from __future__ import annotations

import time
import weakref
from itertools import repeat
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from .errors import KvferryError

if TYPE_CHECKING:
    from .engine import Engine
    from .shm import Mapping

now = time.monotonic
INF = float("inf")
_ref: Callable[..., Any] = weakref.ref


class Request:
    """What to ask. `limit`: seconds that the daemon may take by the request's
    own words (INF: unknown; a silent daemon is found by pings). `reply`: what
    was answered OK, until somebody has the memory that it brought. `epoch`,
    `pool`: of the session that was asked, in which that memory lies; another
    thread may have a new session by then, with a daemon that was restarted.
    `frame`: bytes that came with the reply."""
    reply: Optional[Dict[str, Any]] = None
    frame = b""
    given_up = False
    epoch = 0
    pool: Optional[Mapping] = None

    def __init__(self, op: str, fields: Optional[Dict[str, Any]] = None,
                 payload: Optional[bytes] = None, limit: float = 0) -> None:
        self.op, self.payload, self.limit = op, payload, limit
        self.fields: Dict[str, Any] = {} if fields is None else fields
        self.fields["op"] = op


def brought(request: Request, reply: Dict[str, Any]) -> List[Tuple[str, int]]:
    """The memory in a reply: what to ask to give it back, and its id."""
    op = "free" if request.op == "alloc" else "release"
    out = [(op, r["buffer"]) for r in [reply, *(reply.get("results") or ())]
           if "buffer" in r]
    if "next" in reply:
        out.append(("free", reply["next"]["buffer"]))
    return out


class Call:
    """One request under way. `result` is the reply, or `error` is set."""
    __slots__ = ("id", "request", "done", "result", "error", "deadline",
                 "wake_at", "on_done", "abandoned", "gate", "leads")

    def __init__(self, request: Request,
                 on_done: Optional[Callable[["Call"], None]] = None) -> None:
        self.id, self.request, self.on_done = 0, request, on_done
        self.done = self.abandoned = self.leads = False
        self.result: Optional[Dict[str, Any]] = None
        self.error: Optional[KvferryError] = None
        self.deadline = self.wake_at = INF
        self.gate: Any = None


class Lease:
    """Memory that goes back when its views are gone, or at end(). `foreign`:
    it is not of the session's own pool."""
    __slots__ = ("engine", "op", "ident", "epoch", "left", "refs", "foreign")

    def __init__(self, engine: "Engine", op: str, ident: int, epoch: int,
                 views: List[memoryview], foreign: bool = False) -> None:
        self.engine, self.op, self.ident = engine, op, ident
        self.epoch, self.foreign, self.left = epoch, foreign, len(views)
        self.refs = list(map(_ref, views, repeat(self._gone)))
        engine.leases.add(self)

    def _gone(self, view: Any) -> None:
        self.left -= 1
        if self.left <= 0:
            self.end()

    def drop(self) -> None:
        """No longer ours to give back."""
        self.refs = []
        self.engine.leases.discard(self)

    def end(self) -> None:
        """Gives it back, once; from anywhere."""
        try:
            if self.refs:
                e, self.refs = self.engine, []
                e.leases.discard(self)
                if self.epoch != e.epoch or \
                        not e.lanes.post(self.op, self.ident):
                    e.later(self)
        except BaseException:  # a signal's; to give it back twice is no harm
            self.engine.queue_lease(self)
            raise
