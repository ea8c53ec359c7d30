"""Sockets to a daemon: pyzmq's, with as little around them as can be."""
from __future__ import annotations

import operator
import os
from typing import Any, Callable, Tuple

import msgpack
import zmq

NOBLOCK = int(zmq.NOBLOCK)
SNDMORE = int(zmq.NOBLOCK | zmq.SNDMORE)
EVENTS, RCVMORE, POLLIN = (int(x) for x in (zmq.EVENTS, zmq.RCVMORE,
                                            zmq.POLLIN))
# Those of pyzmq's backend: zmq.Socket's turn each flag into an enum, which
# costs more than the call.
getopt: Callable[[Any, int], Any] = zmq.backend.Socket.get
sock_send = zmq.backend.Socket.send
sock_recv = zmq.backend.Socket.recv


def packer() -> Callable[[Any], bytes]:
    """For one thread at a time. Takes numpy's integers for integers."""
    pack: Callable[[Any], bytes] = msgpack.Packer(
        use_bin_type=True, autoreset=True, default=operator.index).pack
    return pack


def dealer(ctx: Any) -> Tuple[Any, Any]:
    """A DEALER that never blocks and drops nothing, and the socket that tells
    when its connection is lost."""
    sock = ctx.socket(zmq.DEALER)
    for option, value in ((zmq.LINGER, 0), (zmq.SNDHWM, 0), (zmq.RCVHWM, 0),
                          (zmq.RECONNECT_IVL, 20),
                          (zmq.RECONNECT_IVL_MAX, 200)):
        sock.setsockopt(option, value)
    return sock, sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)


def close(sock: Any, mon: Any) -> None:
    """Both of dealer()."""
    sock.disable_monitor()
    if mon is not None:
        mon.close(0)
    sock.close()


class Bell:
    """A descriptor to poll, and how to make it readable."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):  # from Python 3.10 on
            self.fd = self._write = os.eventfd(0, os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(self) -> None:
        try:
            os.write(self._write, b"\x01\0\0\0\0\0\0\0")
        except BlockingIOError:  # it is ringing
            pass

    def hush(self) -> None:
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass

    def __del__(self) -> None:
        for fd in {self.fd, self._write}:
            os.close(fd)
