"""A DEALER socket of ZeroMQ over one stream socket: what an engine needs of
ZMTP 3.0 (rfc.zeromq.org/spec/23), and no more.

A request to the daemon of the same host is a few hundred bytes. Through
libzmq each costs two thread switches on the way out and two on the way back,
and every call of it drops the interpreter's lock; here it is one send and one
recv by the thread that asks. So threads that share a client do not hand the
lock to each other for each call.

Happy path: connect, send greeting and READY, read those of the peer, then
messages of one or more frames both ways. Nothing blocks: what the kernel does
not take now stays in `out` until flush(). Failure modes: every error of the
socket, its end, and bytes that are not ZMTP raise OSError; the owner closes
the Wire and opens another.
"""
from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from typing import List, Tuple, Union

Frame = Union[bytes, bytearray, memoryview]

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING = (b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0")
             + bytes(32))
_READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
_ROOM = 256 << 10
_MAX_FRAME = 1 << 40
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.EINPROGRESS,
          errno.ENOTCONN)


def _frame(flags: int, data: Frame) -> bytes:
    n = len(data)
    if n > 255:
        return struct.pack(">BQ", flags | _LONG, n) + data
    return struct.pack("BB", flags, n) + data


def _address(endpoint: str) -> Tuple[int, Union[str, Tuple[str, int]]]:
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc" and rest:
        return socket.AF_UNIX, "\0" + rest[1:] if rest[0] == "@" else rest
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port.isdigit():
        raise OSError(errno.EINVAL, "not ipc://PATH or tcp://HOST:PORT")
    found = socket.getaddrinfo(host.strip("[]"), int(port),
                               type=socket.SOCK_STREAM)
    family, _, _, _, where = found[0]
    return family, where[:2]  # type: ignore[return-value]


class _Kernel:
    """send and recv of libc that keep the interpreter's lock: the socket does
    not block, and giving the lock away for two microseconds costs a switch
    between threads where others want it."""

    def __init__(self) -> None:
        lib = ctypes.PyDLL(None, use_errno=True)
        self.send, self.recv = lib.send, lib.recv
        for f in (self.send, self.recv):
            f.restype = ctypes.c_ssize_t
        self.send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t,
                              ctypes.c_int]
        self.recv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t,
                              ctypes.c_int]


_kernel = _Kernel()
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Wire:
    """One connection. Not thread-safe: its owner has a lock."""

    def __init__(self, endpoint: str) -> None:
        """Connects; OSError when that fails at once."""
        family, where = _address(endpoint)
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self.fd = self._sock.fileno()
        self.out = b""          # taken by the kernel when it has room
        self.ready = False      # the handshake is done
        self._held: List[bytes] = []  # until then
        self._greeted = False
        self._in = bytearray()
        self._need = 64
        self._frames: List[bytes] = []
        self._room = ctypes.create_string_buffer(_ROOM)
        self._view = memoryview(self._room).cast("B")
        self._at = ctypes.addressof(self._room)
        self._sock.setblocking(False)
        try:
            if family != socket.AF_UNIX:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY,
                                      1)
            rc = self._sock.connect_ex(where)
            if rc not in (0, errno.EINPROGRESS):
                raise OSError(rc, os.strerror(rc))
            self._write(_GREETING + _frame(_COMMAND, _READY))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """What was not sent is lost."""
        self._sock.close()

    # ---- sending -----------------------------------------------------------

    def send(self, *frames: Frame) -> None:
        """One message of these frames, at once or from flush()."""
        last = len(frames) - 1
        data = b"".join([_frame(_MORE if i < last else 0, f)
                         for i, f in enumerate(frames)])
        if self.ready:
            self._write(data)
        else:
            self._held.append(data)

    def _write(self, data: bytes) -> None:
        if self.out:
            self.out += data
            return
        n = _kernel.send(self.fd, data, len(data), _FLAGS)
        if n < 0:
            code = ctypes.get_errno()
            if code not in _AGAIN:
                raise OSError(code, os.strerror(code))
            n = 0
        if n < len(data):
            self.out = data[n:]

    def flush(self) -> None:
        """Sends what waits for room in the kernel."""
        data, self.out = self.out, b""
        if data:
            self._write(data)

    # ---- receiving ---------------------------------------------------------

    def receive(self) -> List[List[bytes]]:
        """The whole messages that are there now, each a list of frames."""
        out: List[List[bytes]] = []
        while True:
            n = _kernel.recv(self.fd, self._at, _ROOM, _FLAGS)
            if n < 0:
                code = ctypes.get_errno()
                if code in _AGAIN:
                    return out
                raise OSError(code, os.strerror(code))
            if n == 0:
                if out:  # the next call says so
                    return out
                raise OSError(errno.ECONNRESET, "closed by the peer")
            self._in += self._view[:n]
            if len(self._in) >= self._need:
                self._parse(out)
            if n < _ROOM:
                return out

    def _parse(self, out: List[List[bytes]]) -> None:
        data, at, end = self._in, 0, len(self._in)
        if not self._greeted:
            if data[0] != 0xff or not data[9] & 1 or data[10] < 3 or \
                    data[12:32].rstrip(b"\0") != b"NULL":
                raise OSError(errno.EPROTO, "the peer does not speak ZMTP 3 "
                              "without authentication")
            self._greeted, at = True, 64
        self._need = 2
        while end - at >= 2:
            flags, n, body = data[at], data[at + 1], at + 2
            if flags & _LONG:
                if end - at < 9:
                    self._need = 9
                    break
                n, body = struct.unpack_from(">Q", data, at + 1)[0], at + 9
            if flags & ~7 or n > _MAX_FRAME:
                raise OSError(errno.EPROTO, "that is not ZMTP")
            if end - body < n:
                self._need = body + n - at
                break
            frame = bytes(data[body:body + n])
            at = body + n
            if flags & _COMMAND:
                self._command(frame)
                continue
            self._frames.append(frame)
            if not flags & _MORE:
                out.append(self._frames)
                self._frames = []
        del data[:at]

    def _command(self, body: bytes) -> None:
        name = body[1:1 + body[0]] if body else b""
        if name == b"ERROR":
            raise OSError(errno.ECONNREFUSED, "refused: "
                          + body[7:].decode("ascii", "replace"))
        if name == b"READY" and not self.ready:
            self.ready = True
            held, self._held = b"".join(self._held), []
            if held:
                self._write(held)
