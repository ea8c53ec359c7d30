"""Buffers of the pool that are allocated before they are needed, so that a
put of bytes waits for the daemon once instead of twice.

A put that follows another one of its size by less than a second takes such a
spare, and asks for one for the next along with it (the field `next`): as many
come to be ready as puts of that size were under way at once. A daemon that does
not know that field brings none.

They are memory that others might want. So a client has at most _COUNT of them
and _BYTES, and a sixteenth of the pool, in all (they count as `filling` in the
daemon's statistics); what was not needed for a second goes back with the next
call, all of them at once when the daemon says NO_SPACE, and with the session.
"""
from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Deque, Dict, Optional, Set, Tuple

from .calls import INF, Request, now

if TYPE_CHECKING:
    from .engine import Engine
    from .shm import Mapping

_COUNT, _BYTES = 16, 16 << 20
_PAGE = 4096
_KEEP = 1.0  # seconds


class Spare:
    """A buffer: its id, and its place in the pool of the session that it is
    of. Unless it was `put` it goes back with the last reference to it: then
    an exception cannot lose it, whenever it comes."""
    __slots__ = ("ident", "offset", "epoch", "pool", "put", "_engine")

    def __init__(self, engine: "Engine", request: Request, pool: "Mapping",
                 brought: Dict[str, Any]) -> None:
        self.put = False
        self.ident: int = brought["buffer"]
        self.offset: int = brought.get("offset", 0)
        self.epoch, self.pool = request.epoch, pool
        self._engine = engine

    def __del__(self) -> None:
        if not self.put and hasattr(self, "_engine") and \
                self._engine.epoch == self.epoch:
            self._engine.unused("free", self.ident, self.epoch)


class Shelf:
    """Spares of one size."""
    __slots__ = ("size", "ready", "asked", "low", "used")

    def __init__(self, size: int, at: float) -> None:
        self.size = size
        self.ready: Deque[Spare] = deque()
        self.asked: Set[Request] = set()  # requests that bring one
        self.low = 0     # the fewest that were ready of late
        self.used = at


class Spares:
    """Those of one engine. Threads share them without a lock: each step is
    one operation of a deque, a set or a dict."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._shelves: Dict[int, Shelf] = {}
        self._all: Tuple[Shelf, ...] = ()
        self._pause = 0.0  # until then none is asked for
        self.due = INF     # when to look for what is not needed

    def take(self, size: int, request: Request
             ) -> Tuple[Optional[Spare], Optional[Shelf]]:
        """A buffer of at least that size, if there is one; and the shelf for
        which that request, a put, is to ask for another, if any: it is one of
        the shelf's `asked` then, until it was answered."""
        size, at = (size + _PAGE - 1) & -_PAGE, now()
        shelf = self._shelves.get(size)
        if shelf is None:
            if len(self._shelves) < _COUNT:
                self._shelves[size] = Shelf(size, at)
                self._all = tuple(self._shelves.values())
                self.due = min(self.due, at + _KEEP)
            return None, None
        again, shelf.used = at - shelf.used < _KEEP, at
        ready, asked, pool = shelf.ready, None, self._engine.pool
        if again and pool is not None and at >= self._pause:
            shelf.asked.add(request)
            asked = shelf
        try:
            spare: Optional[Spare] = ready.pop()
        except IndexError:
            spare = None
        if len(ready) < shelf.low:
            shelf.low = len(ready)
        if spare is not None and spare.epoch != self._engine.epoch:
            spare = None
        # One for one that was taken: then there are as many as before.
        if spare is None and asked is not None and pool is not None and \
                not self._fit(pool):
            asked.asked.discard(request)
            asked = None
        return spare, asked

    def _fit(self, pool: "Mapping") -> bool:
        n = held = 0
        for shelf in self._all:
            here = len(shelf.ready) + len(shelf.asked)
            n += here
            held += here * shelf.size
        return n <= _COUNT and held <= _BYTES and held <= pool.size // 16

    def came(self, shelf: Shelf, request: Request) -> None:
        """The answer to a put that asked for one."""
        pool, reply = request.pool, request.reply
        if reply is None or "next" not in reply:  # there is no room
            self._pause = now() + _KEEP
            return
        if pool is None:  # it was another session that was asked
            self._engine.undo(request)
            return
        spare = Spare(self._engine, request, pool, reply["next"])
        request.reply = None
        # Unless it is kept it goes back. The pool may be short since then.
        if self._pause <= shelf.used and \
                _PAGE <= spare.offset <= pool.size - shelf.size:
            shelf.ready.append(spare)

    # ---- giving back -------------------------------------------------------

    def trim(self) -> None:
        """Gives back what was not needed of late."""
        at = now()
        self.due = at + _KEEP
        for shelf in self._all:
            unused = at - shelf.used >= _KEEP
            self._drop(shelf, len(shelf.ready) if unused else shelf.low)
            shelf.low = len(shelf.ready)
            if unused and not shelf.ready:
                self._shelves.pop(shelf.size, None)
        self._all = tuple(self._shelves.values())
        if not self._shelves:
            self.due = INF

    def _drop(self, shelf: Shelf, n: int) -> bool:
        """n of them, as far as there are; False when there was none."""
        some = False
        for _ in range(n):
            try:
                shelf.ready.popleft()
            except IndexError:
                break
            some = True
        return some

    def give_back(self) -> bool:
        """All of them: the pool is short. False when there was none."""
        self._pause = now() + _KEEP
        return any([self._drop(shelf, _COUNT) for shelf in self._all])
