"""The client's own ZMTP against libzmq's ROUTER, and against peers that are
not what they should be."""
import select
import socket
import time

import pytest
import zmq

from kvferry.zmtp import Wire

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") \
    + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"


def receive(wire, count=1, seconds=20):
    """So many messages; sends what waits meanwhile."""
    out, end = [], time.monotonic() + seconds
    while len(out) < count:
        assert time.monotonic() < end
        select.select([wire.fd], [wire.fd] if wire.out else [], [], 1)
        wire.flush()
        out += wire.receive()
    return out


def arrived(router, wire, seconds=20):
    """The next message at the router; sends what waits meanwhile."""
    end = time.monotonic() + seconds
    while not router.poll(0):
        assert time.monotonic() < end
        select.select([wire.fd], [wire.fd] if wire.out else [], [], 0.01)
        wire.flush()
        assert wire.receive() == []
    return router.recv_multipart()


@pytest.fixture(params=["ipc", "abstract", "tcp"])
def router(request, tmp_path):
    ctx = zmq.Context()
    sock = ctx.socket(zmq.ROUTER)
    sock.linger = sock.sndhwm = 0
    if request.param == "tcp":
        port = sock.bind_to_random_port("tcp://127.0.0.1")
        endpoint = f"tcp://127.0.0.1:{port}"
    else:
        endpoint = f"ipc://{tmp_path}/r" if request.param == "ipc" \
            else f"ipc://@kvf-{tmp_path}"
        sock.bind(endpoint)
    yield sock, endpoint
    sock.close()
    ctx.term()


def test_frames_of_every_size(router):
    router, endpoint = router
    wire = Wire(endpoint)
    for n in (0, 1, 255, 256, 70_000, 3_000_000):
        frames = [b"h" * 30, bytes([n % 251]) * n]
        wire.send(*frames)
        who, *got = arrived(router, wire)
        assert got == frames
        router.send_multipart([who, *got])
        assert receive(wire) == [frames]
    for i in range(1000):
        wire.send(b"%d" % i)
    receive_all = [arrived(router, wire) for _ in range(1000)]
    assert [m[1] for m in receive_all] == [b"%d" % i for i in range(1000)]
    for m in receive_all:
        router.send_multipart(m)
    assert receive(wire, 1000) == [[b"%d" % i] for i in range(1000)]
    wire.close()


@pytest.fixture
def peer(tmp_path):
    """(a Wire, the other end as a plain socket)."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/p")
        listener.listen(1)
        wire = Wire(f"ipc://{tmp_path}/p")
        end, _ = listener.accept()
        with end:
            yield wire, end
    wire.close()


def test_nothing_is_sent_before_the_peer_is_ready(peer):
    wire, end = peer
    wire.send(b"early")
    hello = end.recv(1000)
    assert hello[:10] == GREETING[:10] and b"early" not in hello
    for byte in GREETING + READY:  # in the smallest pieces
        assert not wire.ready
        end.send(bytes([byte]))
        assert wire.receive() == []
    assert wire.ready and end.recv(100) == b"\0\5early"


def test_a_peer_that_does_not_read(peer):
    wire, end = peer
    end.sendall(GREETING + READY)
    assert wire.receive() == []
    sent = 0
    while not wire.out:
        wire.send(b"x" * 60_000)
        sent += 1
    wire.send(b"last")
    got = bytearray()
    while not got.endswith(b"\0\4last"):
        got += end.recv(1 << 20)
        wire.flush()
    assert got.count(b"x" * 60_000) == sent and not wire.out


def test_replies_before_the_end(peer):
    wire, end = peer
    end.sendall(GREETING + READY + b"\0\3one\1\1a\0\1b\0\5cut")
    end.close()
    assert wire.receive() == [[b"one"], [b"a", b"b"]]
    with pytest.raises(OSError):
        wire.receive()
    with pytest.raises(OSError):
        wire.send(b"x")


@pytest.mark.parametrize("data", [
    b"HTTP/1.1 400 Bad Request\r\n" * 4,
    GREETING[:10] + b"\x01\x00" + GREETING[12:],                # ZMTP 1
    GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32),
    GREETING + b"\x04\x0b\x05ERROR\x04nono",
    GREETING + b"\xf0\x01x",
    GREETING + b"\x02" + b"\xff" * 8,
])
def test_what_is_not_a_peer(peer, data):
    wire, end = peer
    end.sendall(data)
    with pytest.raises(OSError):
        wire.receive()


@pytest.mark.parametrize("endpoint", [
    "", "what://x", "ipc://", "tcp://", "tcp://127.0.0.1", "tcp://:1x",
    "ipc:///nowhere/at/all", "ipc:///" + "x" * 200, "udp://127.0.0.1:1"])
def test_bad_endpoints(endpoint):
    with pytest.raises(OSError):
        Wire(endpoint)
