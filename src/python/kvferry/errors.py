"""One exception class per status code of kvferryd.

The table is checked against include/kvferry/status.h by a test. Every class
derives from KvferryError, so `except kvferry.KvferryError` catches all that a
daemon can answer, and `except kvferry.Timeout` only that one status.

>>> error_for("TIMEOUT", "no put came")
Timeout('TIMEOUT: no put came')
>>> issubclass(ConnectionLost, PeerUnreachable)
True
"""
from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Type


class KvferryError(Exception):
    """What the daemon answered instead of OK.

    `status` is the stable string, `number` that of status.h, `message` a
    sentence for people, `reply` the reply's other fields (NO_SPACE has `free`,
    `largest_free` and `needed`; MISMATCH has `size`).
    """

    status = "INTERNAL"
    number = 21

    def __init__(self, message: str = "",
                 reply: Optional[Mapping[str, Any]] = None) -> None:
        super().__init__(f"{self.status}: {message}" if message
                         else self.status)
        self.message = message
        self.reply: Dict[str, Any] = dict(reply or {})


class Invalid(KvferryError):
    """The request is malformed or out of range."""
    status, number = "INVALID", 1


class Unsupported(KvferryError):
    """This session or build cannot do that."""
    status, number = "UNSUPPORTED", 2


class NotFound(KvferryError):
    """Not there, and the caller did not want to wait."""
    status, number = "NOT_FOUND", 3


class Timeout(KvferryError, TimeoutError):
    """Waited the whole time; the owner lives, no key came."""
    status, number = "TIMEOUT", 4


class TransferTimeout(KvferryError, TimeoutError):
    """It was there; the bytes did not arrive in time."""
    status, number = "TRANSFER_TIMEOUT", 5


class PeerUnreachable(KvferryError, ConnectionError):
    """The owner could not be reached, or died."""
    status, number = "PEER_UNREACHABLE", 6


class Expired(KvferryError):
    """Its time to live passed."""
    status, number = "EXPIRED", 7


class Consumed(KvferryError):
    """All its readers have read it."""
    status, number = "CONSUMED", 8


class Failed(KvferryError):
    """The producer said that it will not come."""
    status, number = "FAILED", 9


class Cancelled(KvferryError):
    """Cancelled by cancel, cleanup, or the failure of its group."""
    status, number = "CANCELLED", 10


class Stale(KvferryError):
    """Session, incarnation or generation no longer valid."""
    status, number = "STALE", 11


class NoSpace(KvferryError):
    """The pool is full."""
    status, number = "NO_SPACE", 12


class TooLarge(KvferryError):
    """Can never fit."""
    status, number = "TOO_LARGE", 13


class Busy(KvferryError):
    """In use, or over an admission limit: retry later."""
    status, number = "BUSY", 14


class Exists(KvferryError):
    """The key is already published."""
    status, number = "EXISTS", 15


class Mismatch(KvferryError):
    """Lengths, layouts or versions disagree."""
    status, number = "MISMATCH", 16


class Corrupt(KvferryError):
    """The checksum does not match the bytes."""
    status, number = "CORRUPT", 17


class Denied(KvferryError, PermissionError):
    """Not allowed."""
    status, number = "DENIED", 18


class Transport(KvferryError):
    """Failed after all retries."""
    status, number = "TRANSPORT", 19


class ShuttingDown(KvferryError):
    """The daemon is draining."""
    status, number = "SHUTTING_DOWN", 20


class Internal(KvferryError):
    """A defect in kvferry: please report it."""
    status, number = "INTERNAL", 21


BY_STATUS: Dict[str, Type[KvferryError]] = {
    c.status: c for c in (
        Invalid, Unsupported, NotFound, Timeout, TransferTimeout,
        PeerUnreachable, Expired, Consumed, Failed, Cancelled, Stale, NoSpace,
        TooLarge, Busy, Exists, Mismatch, Corrupt, Denied, Transport,
        ShuttingDown, Internal)}


class ConnectionLost(PeerUnreachable):
    """This worker's own daemon does not answer or went away.

    What was asked may or may not have been done. The client opens a new
    connection by itself at the next call.
    """


class ClientClosed(KvferryError, ValueError):
    """The client was closed (or belongs to the parent of a fork)."""
    status, number = "CANCELLED", 10


def error_for(status: str, message: str = "",
              reply: Optional[Mapping[str, Any]] = None) -> KvferryError:
    """The exception of a status; Internal for one that is not in the table."""
    cls = BY_STATUS.get(status)
    if cls is None:
        return Internal(f"unknown status {status}: {message}", reply)
    return cls(message, reply)
