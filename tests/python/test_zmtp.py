"""The lanes' own ZMTP: what a daemon's libzmq never sends that way, and what
the network may do to it."""
import socket
import threading
import time

import kvf
import pytest

import kvferry
from kvferry import zmtp

HELLO = zmtp._GREETING + zmtp.frame(
    b"\x05READY\x0bSocket-Type\0\0\0\x06ROUTER", zmtp._COMMAND)
MINE = len(zmtp._GREETING) + 2 + len(zmtp._READY)


@pytest.fixture
def served(tmp_path):
    """served(script): a Connection to a server that runs script(socket)."""
    made = []

    def start(script, patience=5.0):
        path = str(tmp_path / f"s{len(made)}")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def run():
            with listener:
                sock = listener.accept()[0]
            with sock:
                script(sock)
        thread = threading.Thread(target=run)
        thread.start()
        made.append(thread)
        return zmtp.Connection("ipc://" + path, patience, 0.02)
    yield start
    for t in made:
        t.join(kvf.WAIT)
        assert not t.is_alive()


def exactly(sock, n):
    got = b""
    while len(got) < n:
        chunk = sock.recv(n - len(got))
        assert chunk
        got += chunk
    return got


def read(conn):
    until = time.monotonic() + 5
    while time.monotonic() < until:
        frames = conn.read()
        if frames is not None:
            conn.taken()
            return frames
    raise AssertionError("nothing came")


def test_byte_by_byte(served):
    data = HELLO + zmtp.message(b"one", b"") + zmtp.message(b"x" * 300) + \
        zmtp.message(b"", b"y" * 255) + zmtp.message(b"z" * 256, b"last")

    def script(sock):
        for i in range(len(data)):
            sock.sendall(data[i:i + 1])
        sock.recv(1)
    conn = served(script)
    assert [read(conn) for _ in range(4)] == [
        [b"one", b""], [b"x" * 300], [b"", b"y" * 255], [b"z" * 256, b"last"]]
    conn.close()


def test_all_at_once(served):
    """Messages that came with the handshake, and what is read twice."""
    conn = served(lambda sock: (sock.sendall(
        HELLO + zmtp.message(b"1") + zmtp.message(b"2")), sock.recv(1)))
    assert conn.read() == [b"1"] == conn.read()
    conn.taken()
    assert conn.read(zmtp.NOWAIT) == [b"2"]
    conn.taken()
    assert conn.read(zmtp.NOWAIT) is None
    conn.close()


def test_large(served):
    payload = bytes(range(256)) * (3 << 12)
    got = []

    def script(sock):
        sock.sendall(HELLO)
        exactly(sock, MINE)
        echo = zmtp.message(b"head", payload)
        got.append(exactly(sock, len(echo)) == echo)
        sock.sendall(echo)
        sock.recv(1)
    conn = served(script)
    assert conn.send(zmtp.message(b"head", payload), 5)
    assert not conn.half_sent()
    assert read(conn) == [b"head", payload] and got == [True]
    conn.close()


def test_ping(served):
    """A peer with heartbeats is answered; other commands are passed over."""
    got = []

    def script(sock):
        sock.sendall(HELLO + zmtp.frame(b"\x05OTHER", zmtp._COMMAND) +
                     zmtp.frame(b"\x04PING\0\x0acontext", zmtp._COMMAND) +
                     zmtp.message(b"m"))
        exactly(sock, MINE)
        pong = zmtp.frame(b"\x04PONGcontext", zmtp._COMMAND)
        got.append(exactly(sock, len(pong)) == pong)
    conn = served(script)
    assert read(conn) == [b"m"]
    kvf.until(lambda: got == [True], "answered")
    conn.close()


def test_lost_in_the_middle(served):
    conn = served(lambda sock: (sock.sendall(HELLO + zmtp.message(
        b"whole") + zmtp.message(b"half")[:3]), exactly(sock, MINE)))
    kvf.until(conn.lost, "gone")
    assert read(conn) == [b"whole"]  # what came before
    with pytest.raises(zmtp.Lost):
        conn.read()
    with pytest.raises(OSError):
        conn.send(zmtp.message(b"m"), 1)
    conn.close()


@pytest.mark.parametrize("words", [
    b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 100, b"", HELLO[:70],
    zmtp._GREETING[:12] + b"CURVE" + zmtp._GREETING[17:] + HELLO[64:],
    HELLO[:10] + b"\1" + HELLO[11:],
    zmtp._GREETING + zmtp.frame(b"\x05ERROR\x03no!", zmtp._COMMAND)])
def test_no_zmtp(served, words):
    with pytest.raises((zmtp.Lost, OSError)):
        served(lambda sock: (sock.sendall(words),
                             sock.shutdown(socket.SHUT_WR), sock.recv(1)))


def test_silent_in_the_handshake(served):
    began = time.monotonic()
    with pytest.raises(OSError):
        served(lambda sock: exactly(sock, MINE) and sock.recv(1), 0.1)
    assert time.monotonic() - began < kvf.SLOW


def test_who_reads_nothing(served):
    """Sending ends with its patience, and half a message is known as such."""
    done = threading.Event()
    conn = served(lambda sock: (sock.sendall(HELLO), done.wait(kvf.WAIT)))
    assert not conn.send(zmtp.message(bytes(8 << 20)), 0.1)
    assert conn.half_sent()
    conn.close()
    done.set()


@pytest.mark.parametrize("endpoint", [
    "inproc://x", "tcp://127.0.0.1", "tcp://127.0.0.1:*", "ipc:///none/such"])
def test_no_such_endpoint(endpoint):
    with pytest.raises((zmtp.Lost, OSError)):
        zmtp.Connection(endpoint, 1, 0.02)


def test_tcp(make):
    """Lanes of a session over tcp."""
    d = make(0, conf={"worker": {"engine_endpoint": "tcp://127.0.0.1:*"}})
    with kvferry.Client(d.endpoint) as c:
        c.put("k", b"some bytes")
        assert c.get("k").to_bytes() == b"some bytes"
        assert len(c._engine.lanes._idle) == 1
