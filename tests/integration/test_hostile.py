"""Strangers, liars and competitors: garbage on the peer and bulk ports, second
daemons, engines that ask for what is not theirs, a machine out of fds."""
import os
import random
import re
import resource
import socket
import struct
import subprocess
import sys
import time

import msgpack
import pytest
import zmq

import kvf
from kvf import MIB, Client, until


# -- peers that lie -------------------------------------------------------
class FakePeer:
    """A ROUTER that answers whatever it is told to."""

    def __init__(self):
        self.sock = zmq.Context.instance().socket(zmq.ROUTER)
        self.sock.linger = 0
        self.port = self.sock.bind_to_random_port("tcp://127.0.0.1")

    def serve(self, answer, done):
        """answer(frames) -> list of messages (frames after the id)."""
        while not done():
            if not self.sock.poll(10):
                continue
            frames = self.sock.recv_multipart()
            for out in answer(frames[1:]):
                try:
                    self.sock.send_multipart([frames[0]] + out, zmq.NOBLOCK)
                except zmq.ZMQError:
                    pass

    def close(self):
        self.sock.close(0)


def scramble(rng, frames):
    out = []
    for f in frames:
        b = bytearray(f)
        for _ in range(rng.randint(1, 4)):
            if b:
                b[rng.randrange(len(b))] = rng.randrange(256)
        out.append(bytes(b))
    return out


ANSWERS = {
    "silent": lambda rng, f: [],
    "nonsense": lambda rng, f: [[rng.randbytes(rng.randint(0, 300))]
                                for _ in range(5)],
    "echo": lambda rng, f: [f],
    "scrambled echo": lambda rng, f: [scramble(rng, f) for _ in range(5)],
    "empty": lambda rng, f: [[b""], [b"", b"", b""]],
    "maps": lambda rng, f: [[msgpack.packb(
        {rng.choice(["op", "t", "type", "id", "status", "size"]):
         rng.choice([2 ** 64 - 1, "OK", [], {}, b"x" * 50, None, -1])})]
        for _ in range(5)],
    "huge": lambda rng, f: [[b"\xdd\xff\xff\xff\xff"],
                            [b"\xc6\xff\xff\xff\xff" + b"x" * 1000]],
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_owner_that_answers(daemon, make, kind):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    b = daemon.engine()
    fake = FakePeer()
    good = make(1)
    daemon.knows(good)
    good.engine().put("real", b"x" * 1000, readers=0)
    try:
        w = b.send("get", key="k", timeout_ms=1000,
                   source={"host": "127.0.0.1", "port": fake.port})
        real = daemon.engine()
        fake.serve(lambda f: ANSWERS[kind](rng, f),
                   lambda: b.sock.poll(0))
        assert b.recv(w).status in ("PEER_UNREACHABLE", "TRANSPORT",
                                    "MISMATCH", "TIMEOUT", "DENIED")
        assert real.fetch("real", from_={"stage": 1}) == b"x" * 1000
    finally:
        fake.close()


def flood(sock, rng, seconds, per_turn, alive):
    end = time.monotonic() + seconds
    n = 0
    while time.monotonic() < end:
        for _ in range(per_turn):
            try:
                sock.send_multipart(
                    [rng.randbytes(rng.randint(0, 300))
                     for _ in range(rng.randint(1, 3))], zmq.NOBLOCK)
            except zmq.ZMQError:
                break
            n += 1
        alive()
    return n


@pytest.mark.parametrize("seconds", [
    2, pytest.param(10, marks=pytest.mark.slow)])
def test_garbage_on_the_peer_channel_beside_real_traffic(pair, seconds):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    s = zmq.Context.instance().socket(zmq.DEALER)
    s.linger = 0
    s.connect(f"tcp://127.0.0.1:{pair.src.peer_port}")
    n = [0]

    def real():
        n[0] += 1
        data = kvf.pattern(100000, n[0])
        pair.a.put(f"k{n[0]}", data)
        assert pair.b.fetch(f"k{n[0]}", mode="copy") == data
    try:
        flood(s, rng, seconds, 100, real)
    finally:
        s.close(0)
    assert pair.src.alive() and n[0] > 3


@pytest.mark.parametrize("seconds", [
    2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_mad_getter_beside_real_traffic(pair, seconds):
    """Messages between daemons, mutated field by field and byte by byte: 3,000
    a second where nobody else wants the processors."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    for i in range(4):
        pair.a.put(f"fuzz{i}", kvf.pattern(5000 + 90000 * (i % 2)), readers=0)
    n = 0
    with subprocess.Popen(
            [sys.executable, os.path.join(kvf.HERE, "fuzz_peer.py"),
             str(pair.src.peer_port), pair.src.incarnation.hex(), str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bad:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            n += 1
            data = kvf.pattern(100000, n)
            pair.a.put(f"good{n}", data)
            assert pair.b.fetch(f"good{n}", mode="copy") == data
        sent = int(bad.communicate(timeout=kvf.WAIT)[0])
    assert sent >= 500 * seconds / kvf.SLOW and n > 3
    assert pair.src.stats()["counters"]["peer_malformed"] > sent / 10


def test_peer_channel_offers_no_administration(daemon, engine):
    engine.put("secret", b"x", readers=0)
    s = zmq.Context.instance().socket(zmq.DEALER)
    s.linger = 0
    s.connect(f"tcp://127.0.0.1:{daemon.peer_port}")
    try:
        for op in ("list", "stats", "fail", "cleanup", "drain"):
            s.send(kvf.pack({"op": op, "id": 1, "key": "secret",
                             "request_id": "secret"}))
        got = b""
        while s.poll(300):
            got += b"".join(s.recv_multipart())
        assert b"secret" not in got and b'"OK"' not in got
        assert engine.fetch("secret", mode="inline") == b"x"
    finally:
        s.close(0)


@pytest.mark.parametrize("which", ["bulk", "peer"])
def test_strangers_on_the_tcp_ports(tcp_pair, which):
    p = tcp_pair
    where = (p.src.ready["bulk"].rsplit(":", 1)[1] if which == "bulk"
             else p.src.peer_port)
    rng = random.Random(7)
    p.a.put("k", kvf.pattern(MIB), readers=0)
    p.b.fetch("k", mode="copy")
    before = p.src.fds()
    for i in range(60):
        with socket.create_connection(("127.0.0.1", int(where))) as s:
            try:
                s.sendall(rng.randbytes(rng.choice([0, 1, 20, 64, 5000])))
                if i % 3 == 0:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                 struct.pack("ii", 1, 0))
            except OSError:
                pass
    assert p.b.fetch("k", mode="copy") == kvf.pattern(MIB)
    until(lambda: p.src.fds() <= before + 4, "strangers' fds closed", 20)


def test_many_silent_strangers_do_not_stop_the_bulk_port(tcp_pair):
    port = int(tcp_pair.src.ready["bulk"].rsplit(":", 1)[1])
    held = []
    try:
        for _ in range(100):
            held.append(socket.create_connection(("127.0.0.1", port)))
        tcp_pair.a.put("k", kvf.pattern(MIB))
        assert tcp_pair.b.fetch("k", mode="copy") == kvf.pattern(MIB)
    finally:
        for s in held:
            s.close()


# -- starting over what is there ------------------------------------------
def test_second_daemon_on_a_live_endpoint_refuses(daemon):
    second = kvf.Daemon(run=daemon.run, rank=1, start=False, conf={
        "worker": {"engine_endpoint": daemon.endpoint}})
    try:
        with pytest.raises(kvf.DaemonExited) as e:
            second.start()
        assert e.value.status != 0
        assert daemon.endpoint[len("ipc://"):] in e.value.text
    finally:
        second.close(check=False)
    daemon.engine().ok("ping")
    with Client(daemon.endpoint) as c:
        assert c.hello()["incarnation"] == daemon.incarnation


def test_second_daemon_on_a_taken_port_refuses(make):
    from test_two_daemons import fixed_port, free_port
    port = free_port()
    first = make(0, conf=fixed_port(port))
    second = kvf.Daemon(0, rank=1, start=False, conf=fixed_port(port, 0, 1))
    try:
        with pytest.raises(kvf.DaemonExited) as e:
            second.start()
        assert str(port) in e.value.text
    finally:
        second.close(check=False)
    first.engine().ok("ping")


def test_remains_of_a_killed_daemon_are_cleaned_up(daemon):
    daemon.engine().put("k", b"x")
    path = daemon.endpoint[len("ipc://"):]
    daemon.kill()
    assert os.path.exists(path)
    daemon.restart()
    c = daemon.engine()
    assert c.ok("list")["keys"] == []
    daemon.assert_all_free()


def test_kill_and_restart_many_times(daemon):
    for _ in range(10):
        daemon.kill()
        daemon.restart()
    daemon.engine().ok("ping")


# -- the machine ----------------------------------------------------------
def few_fds(n):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))


def answers(endpoint):
    with Client(endpoint, timeout=1) as c:
        try:
            return c.request("ping").status == "OK"
        except kvf.NoReply:
            return False


def refused(c):
    return c.ok("stats")["counters"]["refused_no_fd"]


def test_fd_exhaustion_recovers(make):
    """Past the limit connections are closed at once (libzmq would abort);
    who is connected is served, and newcomers again when there is room."""
    d = make(preexec=few_fds(64))
    first = d.engine()
    many = [Client(d.endpoint) for _ in range(80)]
    for c in many:
        c.send("ping")
    until(lambda: refused(first) > 0, "connections refused")
    first.ok("put", b"x", key="k", readers=0)
    for _ in range(200):
        assert first.fetch("k", mode="inline") == b"x"
    assert "degraded" == first.ok("health")["health"]
    for c in many:
        c.close()
    until(lambda: answers(d.endpoint), "new clients are served", 20)
    until(lambda: first.ok("stats")["process"]["fds"] <= d.fd_baseline + 8,
          "descriptors given back")


def test_owner_is_unreachable_without_descriptors_to_dial(make):
    """Not NO_SPACE, which would speak of a pool; and it is dialled as soon as
    there is room again, for the get that waits."""
    src, dst = make(0), make(1, preexec=few_fds(64))
    dst.knows(src)
    a, b = src.engine(), dst.engine()
    a.put("k", b"here", readers=0)
    many = []
    while refused(b) == 0:
        many.append(Client(dst.endpoint))
        many[-1].send("ping")
        b.ok("ping")
    b.want("PEER_UNREACHABLE", "get", key="k", timeout_ms=500)
    assert "cannot dial" in dst.log()
    get = b.send("get", key="k", mode="inline", timeout_ms=20000)
    b.ok("ping")
    for c in many:
        c.close()
    r = b.recv(get, timeout=30)
    assert r.status == "OK" and r.payload == b"here"


def test_fd_exhaustion_with_many_connections_that_come_and_go(make):
    """Raw connects in a storm, on the engine's and on the peers' listener,
    while one engine works; three rounds, each time everybody recovers."""
    d = make(preexec=few_fds(72))
    first = d.engine()
    path = d.endpoint[len("ipc://"):]
    for _ in range(3):
        before, socks = refused(first), []
        for _ in range(100):
            for family, to in ((socket.AF_UNIX, path),
                               (socket.AF_INET,
                                (d.peer_host, d.peer_port))):
                s = socket.socket(family)
                s.settimeout(2)
                try:
                    s.connect(to)
                except OSError:
                    pass
                socks.append(s)
            first.ok("ping")
        first.put("k", kvf.pattern(MIB), readers=0)
        assert first.fetch("k", mode="view") == kvf.pattern(MIB)
        until(lambda: refused(first) > before, "connections refused")
        closed = 0
        for s in socks:
            s.settimeout(0.05)
            try:
                while s.recv(100):
                    pass
                closed += 1
            except OSError as e:
                closed += isinstance(e, ConnectionError)
            s.close()
        assert closed > 0, "nobody saw a closed connection"
        until(lambda: answers(d.endpoint), "new clients are served", 20)
    first.ok("bye")
    d.wipe()


def test_peer_in_another_pid_namespace_falls_back_to_tcp(make):
    if os.geteuid() != 0:
        pytest.skip("needs root for a PID namespace")
    ns = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.system(" ".join(ns) + " true 2>/dev/null") != 0:
        pytest.skip("unshare --pid is not permitted here")
    src, dst = make(0), make(1, wrapper=ns)
    dst.knows(src)
    data = kvf.pattern(3 * MIB)
    src.engine().put("k", data, readers=0)
    # Its engines are seen from outside too: talk to it without memory.
    b = dst.client()
    r = b.request("get", key="k", mode="inline")
    assert r.status == "TOO_LARGE"
    e = kvf.Engine(dst.endpoint, hello=False,
                   prefix=["nsenter", "-t", str(dst.pid), "-p", "-m"])
    try:
        hello = e.request("hello", version=1)
        assert hello["status"] == "OK"
        e.ok("ping")
        r = e.request("get", key="k", mode="copy")
        if r["status"] == "UNSUPPORTED" or r["status"] == "STALE":
            pytest.skip("the engine has the rights of a tcp session there")
        assert r["status"] == "OK" and r["transport"] == "tcp", r
    finally:
        e.close()


def test_engine_that_asks_for_everything_that_is_not_its(daemon, engine):
    victim = daemon.engine()
    data = kvf.pattern(100000, 3)
    victim.put("k", data, readers=0)
    mine = engine.alloc(5000)["buffer"]
    rng = random.Random(5)
    for _ in range(300):
        b = rng.choice([mine, mine + 1, mine - 1, 0, 2 ** 64 - 1,
                        rng.randrange(2 ** 64)])
        o = rng.choice([0, 1, 4999, 5000, 2 ** 63, 2 ** 64 - 1])
        n = rng.choice([0, 1, 5000, 5001, 2 ** 63, 2 ** 64 - 1])
        seg = {"buffer": b, "offset": o, "length": n}
        if b == mine and 0 < n and o + n <= 5000:
            continue
        assert engine.request("put", key="evil", segments=[seg]
                              ).status in ("INVALID", "DENIED"), seg
        assert engine.request("get", key="k", into=[seg], timeout_ms=100
                              ).status in ("INVALID", "DENIED",
                                           "MISMATCH"), seg
        if b != mine:
            engine.request("free", buffer=b)
            engine.request("release", buffer=b)
    assert victim.fetch("k", mode="copy") == data
    engine.ok("free", buffer=mine)


def test_log_has_no_unescaped_key(engine, daemon):
    engine.ok("put", b"x", key="a\n[KVF PUT] key=forged gen=1")
    assert not re.search(r"^\[KVF PUT\] key=forged", daemon.log(), re.M)
    assert "key=forged" not in daemon.log()


def test_client_that_never_reads_hurts_nobody(daemon, engine):
    engine.put("k", kvf.pattern(60000), readers=0)
    with Client(daemon.endpoint) as lazy:
        lazy.sock.setsockopt(zmq.RCVHWM, 1)
        lazy.sock.disconnect(daemon.endpoint)
        lazy.sock.connect(daemon.endpoint)
        for _ in range(3000):
            lazy.send("get", key="k", mode="inline")
        for _ in range(50):
            began = time.monotonic()
            assert engine.fetch("k", mode="inline") == kvf.pattern(60000)
            assert time.monotonic() - began < 2 * kvf.SLOW
    engine.ok("ping")
    assert daemon.rss_anon() < 1200 * MIB
