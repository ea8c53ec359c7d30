"""ZMTP 3.1 (rfc.zeromq.org/spec/23), as much of it as a DEALER needs: a plain
socket on which a thread talks to the daemon's ROUTER by itself.

libzmq has a thread of its own do all reading and writing: a request and its
reply take some twenty system calls and wake threads four times. Here they take
two system calls and one sleep. A connection that is lost stays so, nothing is
queued, and no two threads may use one at a time.

A signal's exception (KeyboardInterrupt) may come between any two steps. What
the kernel took or gave is in a list by then, by list.extend(map(...)), which
is one step: so no byte is lost, and half_sent() knows.
"""
from __future__ import annotations

import ctypes
import select
import socket
import struct
import time
from typing import List, Optional, Tuple

_MORE, _LARGE, _COMMAND = 1, 2, 4  # flags of a frame
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16 + 1 + 31)
_READY = (b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
          b"\x08Identity\0\0\0\0")
_PING, _PONG = b"\x04PING", b"\x04PONG"
_CHUNK, _CHUNK_MAX = 8192, 1 << 20  # bytes to receive at once
NOWAIT = int(socket.MSG_DONTWAIT)
_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

# send(2) that keeps the interpreter's lock: it does not block, and a thread that
# gives the lock away for a moment may find it taken, sleep and have to be woken.
_send = ctypes.PyDLL(None).send
_send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_send.restype = ctypes.c_ssize_t


class Lost(Exception):
    """The other end is gone, or does not speak ZMTP."""


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame.

    >>> frame(b"abc")
    b'\\x00\\x03abc'
    >>> frame(bytes(256))[:9].hex()
    '020000000000000100'
    """
    n = len(body)
    if n < 256:
        return bytes((flags, n)) + body
    return struct.pack(">BQ", flags | _LARGE, n) + body


def message(head: bytes, payload: Optional[bytes] = None) -> bytes:
    """A message of one frame or two."""
    if payload is None:
        return frame(head)
    return frame(head, _MORE) + frame(payload)


def split(data: bytes) -> Tuple[List[bytes], int]:
    """The frames of the first message (or command) and where it ends. [] when
    it is not all there, and how many bytes are needed to go on.

    >>> split(message(b"head", b"payload") + b"...")
    ([b'head', b'payload'], 15)
    >>> split(b"")
    ([], 2)
    >>> split(message(b"head", b"payload")[:10])
    ([], 15)
    """
    frames: List[bytes] = []
    at, have = 0, len(data)
    while True:
        start = at + 2
        if have < start:
            return [], start
        flags = data[at]
        if flags & _LARGE:
            start = at + 9
            if have < start:
                return [], start
            end = start + int.from_bytes(data[at + 1:start], "big")
        else:
            end = start + data[at + 1]
        if have < end:
            return [], end
        frames.append(data[start:end])
        if not flags & _MORE:
            return frames, end
        at = end


def _connected(endpoint: str, timeout: float) -> socket.socket:
    kind, _, place = endpoint.partition("://")
    if kind == "ipc":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect("\0" + place[1:] if place[:1] == "@" else place)
        except BaseException:
            sock.close()
            raise
        return sock
    host, _, port = place.rpartition(":")
    if kind != "tcp" or not port.isdigit():
        raise Lost(f"{endpoint} is neither ipc nor tcp")
    sock = socket.create_connection((host.strip("[]"), int(port)), timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Connection:
    """Raises Lost or OSError when there is none within `timeout` seconds.
    `soon`: seconds until a read that waits gives up."""

    def __init__(self, endpoint: str, timeout: float, soon: float) -> None:
        until = time.monotonic() + timeout
        self._box: List[bytes] = []   # received, not taken yet
        self._end = 0                 # of the message that was read
        self._sent: List[int] = []    # bytes of the last message that went
        self._size = 0                # its bytes
        self._sock = sock = _connected(endpoint, timeout)
        try:
            self._recv = sock.recv
            self.fd = sock.fileno()
            self._gone, self._room = select.poll(), select.poll()
            self._gone.register(self.fd, select.POLLRDHUP)
            self._room.register(self.fd, select.POLLOUT)
            self._greet(until)
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO,
                            struct.pack("@ll", 0, round(soon * 1e6)))
        except BaseException:
            sock.close()
            raise

    def _greet(self, until: float) -> None:
        self._sock.sendall(_GREETING + frame(_READY, _COMMAND))
        got, need = b"", len(_GREETING)
        while len(got) < need:
            self._sock.settimeout(max(0.001, until - time.monotonic()))
            chunk = self._sock.recv(_CHUNK)
            if not chunk:
                raise Lost("closed in the handshake")
            got += chunk
            if len(got) >= len(_GREETING):
                frames, end = split(got[len(_GREETING):])
                need = len(_GREETING) + end
        if got[:1] != b"\xff" or got[10] < 3 or got[12:32] != _GREETING[12:32] \
                or frames[0][:6] != _READY[:6]:
            raise Lost("no ZMTP 3 without security")
        if len(got) > need:
            self._box.append(got[need:])

    def close(self) -> None:
        """What was sent arrives. Idempotent."""
        self._sock.close()

    def lost(self) -> bool:
        """Is the other end gone? Replies may still be there to be read."""
        return bool(self._gone.poll(0))

    # ---- out ---------------------------------------------------------------

    def send(self, data: bytes, patience: float) -> bool:
        """Messages. False when they did not all go in `patience` seconds:
        the connection is of no more use. OSError when it is lost."""
        sent = self._sent
        sent.clear()
        self._size = n = len(data)
        sent.extend(map(_send, (self.fd,), (data,), (n,), (_SEND,)))
        return sent[0] == n or self._send_rest(memoryview(data), patience)

    def _send_rest(self, data: memoryview, patience: float) -> bool:
        sent, until = self._sent, time.monotonic() + patience
        sent[0] = max(sent[0], 0)  # -1: what was wrong shows again
        while sum(sent) < len(data):
            try:
                sent.extend(map(self._sock.send, (data[sum(sent):],),
                                (_SEND,)))
            except BlockingIOError:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._room.poll(left * 1000)
        return True

    def half_sent(self) -> bool:
        """An exception came in the middle of sending."""
        return 0 < sum(self._sent) < self._size

    # ---- in ----------------------------------------------------------------

    def read(self, flags: int = 0) -> Optional[List[bytes]]:
        """The frames of the next message, or None when none came: within
        `soon`, or with NOWAIT is there. It is the next one until taken().
        Lost, or OSError."""
        box, need = self._box, 1
        while True:
            while sum(map(len, box)) < need:
                try:
                    box.extend(map(self._recv, (
                        min(max(need, _CHUNK), _CHUNK_MAX),), (flags,)))
                except BlockingIOError:
                    return None
                if not box[-1]:
                    raise Lost("closed by the other end")
            if len(box) > 1:
                box[:] = (b"".join(box),)
            frames, need = split(box[0])
            if not frames:
                continue
            self._end = need
            if not box[0][0] & _COMMAND:
                return frames
            self.taken()
            if frames[0].startswith(_PING):
                self.send(frame(_PONG + frames[0][7:], _COMMAND), 0)
            need = 1

    def taken(self) -> None:
        """The message that was read is done with."""
        box = self._box
        box[:] = (box[0][self._end:],) if self._end < len(box[0]) else ()
