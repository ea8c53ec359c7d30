"""Faults that must do no harm: to the bytes, to other clients, to memory."""
import ctypes
import os
import random
import re
import resource
import socket
import struct
import time

import msgpack
import pytest
import zmq

import kvf
from kvf import MIB, Client, until

TCP = {"connector": {"protocol": "tcp"}}


# -- cutting connections --------------------------------------------------
class TcpCutter:
    """Shuts down the bulk connections between two daemons, by borrowing the
    sockets of one of them (pidfd_getfd)."""
    PIDFD_OPEN, PIDFD_GETFD = 434, 438

    def __init__(self, daemon, owner):
        self.pid = daemon.pid
        self.port = int(owner.ready["bulk"].rsplit(":", 1)[1])
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.pidfd = self.libc.syscall(self.PIDFD_OPEN, self.pid, 0)
        if self.pidfd < 0:
            pytest.skip("pidfd_open is not to be had here")

    def sockets(self):
        """Borrowed sockets of established bulk connections."""
        inodes = set()
        for table in ("tcp", "tcp6"):
            path = f"/proc/{self.pid}/net/{table}"
            if not os.path.exists(path):
                continue
            with open(path, encoding="utf-8") as f:
                for line in f.readlines()[1:]:
                    x = line.split()
                    ports = {int(x[i].rsplit(":", 1)[1], 16) for i in (1, 2)}
                    if x[3] == "01" and self.port in ports:
                        inodes.add(f"socket:[{x[9]}]")
        out = []
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                if os.readlink(f"/proc/{self.pid}/fd/{fd}") not in inodes:
                    continue
            except FileNotFoundError:
                continue
            got = self.libc.syscall(self.PIDFD_GETFD, self.pidfd, int(fd), 0)
            if got < 0:
                if ctypes.get_errno() == 1:
                    pytest.skip("pidfd_getfd is not permitted here")
                continue
            out.append(socket.socket(fileno=got))
        return out

    @staticmethod
    def received(s):
        info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        return struct.unpack_from("<Q", info, 128)[0]

    def cut(self):
        n = 0
        for s in self.sockets():
            try:
                s.shutdown(socket.SHUT_RDWR)
                n += 1
            except OSError:
                pass
            s.close()
        return n

    def cut_after(self, size, done):
        """Cuts once `size` more bytes came in; False when done() first."""
        socks = self.sockets()
        start = sum(self.received(s) for s in socks)
        try:
            while not done():
                if sum(self.received(s) for s in socks) - start >= size:
                    for s in socks:
                        s.shutdown(socket.SHUT_RDWR)
                    return True
            return False
        except OSError:
            return False
        finally:
            for s in socks:
                s.close()


def get_cut_in_the_middle(make, size, pool):
    conf = kvf.merge(TCP, {"connector": {"memory_pool_size": pool}})
    src, dst = make(0, conf=conf), make(1, conf=conf)
    dst.knows(src)
    a, b = src.engine(), dst.engine()
    data = kvf.pattern(size, 8)
    a.put("k", data, readers=0)
    b.ok("release", buffer=b.ok("get", key="k", mode="copy")["buffer"])
    cutter = TcpCutter(dst, src)
    for _ in range(20):
        w = b.send("get", key="k", mode="copy")
        cut = cutter.cut_after(size // 4, lambda: b.sock.poll(0))
        g = b.recv(w)
        assert g.status == "OK", dict(g)
        assert b.bytes_of(g) == data
        b.ok("release", buffer=g["buffer"])
        if cut and g["attempts"] > 1:
            break
    else:
        pytest.skip("no cut came in the middle of a transfer")
    m = dst.wait_log(r"\[KVF RETRY\] key=k attempt=(\d+)/(\d+) "
                     r"transport=tcp backoff_ms=\d+ done=(\d+)/(\d+): .+")
    assert int(m[4]) == size and 0 < int(m[3]) < size
    dst.wait_log(r"\[KVF GET\] key=k gen=\d+ .* attempts=2 ")


def test_get_that_is_cut_in_the_middle_resumes(make):
    get_cut_in_the_middle(make, 40 * MIB, "64MiB")


@pytest.mark.slow
def test_get_of_256_mib_that_is_cut_resumes(make):
    get_cut_in_the_middle(make, 256 * MIB, "300MiB")


# -- engines that die -----------------------------------------------------
STEPS = ["hello", "alloc", "filled", "put", "parked", "view", "copy",
         "transfer"]


def engine_until(step, e, key):
    if step in ("alloc",):
        e.ok("alloc", size=MIB)
    elif step == "filled":
        e.do("fill", size=MIB, seed=1)
    elif step == "put":
        e.put(key, MIB)
    elif step == "parked":
        e.send("get", key="never", timeout_ms=0)
        e.ok("ping")
    elif step in ("view", "copy"):
        e.ok("get", key="big", mode=step)
    elif step == "transfer":
        e.send("get", key="big", mode="copy")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_engine_killed_at(pair_of, other_process, step, protocol):
    if step == "view" and protocol == "tcp":
        pytest.skip("no view over tcp")
    p = pair_of(conf={"connector": {"protocol": protocol}})
    data = kvf.pattern(8 * MIB, 4)
    p.a.put("big", data, readers=0)
    for _ in range(3):
        e = other_process(p.dst)
        engine_until(step, e, "mine")
        e.kill()
        assert p.b.fetch("big", mode="copy") == data
    for d in (p.src, p.dst):
        d.wipe()
        d.assert_all_free()


def test_view_of_a_dead_engine_goes_back_to_its_reader(pair, other_process):
    """The claim of a killed reader ends by its exit and no reader was
    used up, or it counts as read; the bytes are FREE either way."""
    pair.a.put("k", kvf.pattern(MIB))
    e = other_process(pair.dst)
    e.ok("get", key="k", mode="view")
    e.kill()
    assert pair.b.request("get", key="k", mode="copy", timeout_ms=5000
                          ).status in ("OK", "CONSUMED")
    pair.b.ok("bye")
    pair.src.wipe()
    pair.src.assert_all_free()


def test_dead_engines_leave_no_fds(daemon, other_process):
    def once():
        e = other_process(daemon)
        e.ok("alloc", size=5000)
        e.put("k", 5000)
        e.kill()
    once()
    until(lambda: daemon.pool()["filling"] == 0, "freed")
    before = daemon.fds()
    for _ in range(15):
        once()
    until(lambda: daemon.fds() <= before + 4, "fds given back")


def test_stopped_engine_keeps_what_it_maps(pair, other_process):
    """Unreachable is not quiet: a stopped viewer may read again."""
    pair.a.put("k", kvf.pattern(MIB, 1), ttl_ms=200)
    e = other_process(pair.dst)
    e.ok("get", key="k", mode="view")
    e.stop()
    until(lambda: pair.src.pool()["draining"] >= MIB, "expired, not freed")
    hog = pair.a.request("alloc", size=pair.src.pool()["free"])
    assert pair.src.pool()["draining"] >= MIB
    if hog.status == "OK":
        pair.a.ok("free", buffer=hog["buffer"])
    e.cont()
    e.kill()
    pair.src.assert_all_free()


# -- daemons that die -----------------------------------------------------
def test_owner_killed_while_a_get_is_parked(pair):
    pair.meet()
    w = pair.b.send("get", key="k", timeout_ms=30000)
    pair.b.ok("ping")
    began = time.monotonic()
    pair.src.kill()
    assert pair.b.recv(w).status == "PEER_UNREACHABLE"
    assert time.monotonic() - began < 2.5 * kvf.SLOW


def test_owner_stopped_while_a_get_is_parked(pair):
    pair.meet()
    w = pair.b.send("get", key="k", timeout_ms=30000)
    pair.b.ok("ping")
    began = time.monotonic()
    pair.src.stop()
    try:
        assert pair.b.recv(w).status == "PEER_UNREACHABLE"
        assert time.monotonic() - began < 3 * kvf.SLOW
    finally:
        pair.src.cont()


def test_owner_down_is_reported_within_peer_timeout(pair_of):
    p = pair_of(conf={"connector": {"peer_timeout_ms": 500}})
    p.meet()
    p.src.kill()
    p.dst.wait_log(r"\[KVF PEER\] \S+ down")
    began = time.monotonic()
    p.b.want("PEER_UNREACHABLE", "get", key="k", timeout_ms=30000)
    assert time.monotonic() - began < 1.5 * kvf.SLOW


@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_owner_killed_during_a_transfer(pair_of, protocol):
    p = pair_of(conf={"connector": {"protocol": protocol,
                                    "peer_timeout_ms": 500}})
    data = kvf.pattern(40 * MIB)
    p.a.put("k", data, readers=0)
    w = p.b.send("get", key="k", mode="copy", timeout_ms=20000)
    until(lambda: p.dst.pool()["receiving"] or p.b.sock.poll(0), "under way")
    p.src.kill()
    r = p.b.recv(w)
    assert r.status in ("OK", "PEER_UNREACHABLE", "TRANSPORT"), dict(r)
    if r.status == "OK":
        assert p.b.bytes_of(r) == data
        p.b.ok("release", buffer=r["buffer"])
    p.dst.assert_all_free()


def test_view_outlives_its_owner(pair):
    """The engine's mapping holds the memory; release still works."""
    data = kvf.pattern(MIB)
    pair.a.put("k", data)
    g = pair.b.ok("get", key="k", mode="view")
    pair.b.bytes_of(g)
    held = list(pair.b.maps.values())[0]
    pair.src.kill()
    s = g["segments"][0]
    assert held[s["offset"]:s["offset"] + s["length"]] == data
    pair.b.ok("release", buffer=g["buffer"])


@pytest.mark.parametrize("mode", ["view", "copy"])
def test_getter_killed_with_a_claim(pair, mode):
    pair.a.put("k", kvf.pattern(8 * MIB))
    if mode == "view":
        pair.b.ok("get", key="k", mode="view")
    else:
        pair.b.send("get", key="k", mode="copy")
    pair.dst.kill()
    pair.b.close()
    pair.src.wipe()
    pair.src.assert_all_free()


def test_getter_daemon_killed_but_its_engine_still_maps(pair, other_process):
    """The owner waits for the engine's exit, not only for the daemon's."""
    pair.a.put("k", kvf.pattern(MIB), ttl_ms=300)
    e = other_process(pair.dst)
    e.ok("get", key="k", mode="view")
    pair.dst.kill()
    pair.src.wait_log(r"\[KVF PEER\] \S+ down")
    p = pair.src.pool()
    assert p["size"] - kvf.HEADER - p["free"] >= MIB
    e.kill()
    pair.src.assert_all_free()


def test_getter_restart_with_unmapped_frees_the_view(pair):
    pair.a.put("k", kvf.pattern(MIB), ttl_ms=300)
    pair.b.ok("get", key="k", mode="view")
    old = pair.dst.incarnation
    pair.dst.kill()
    pair.dst.restart()
    pair.dst.knows(pair.src)
    b = pair.dst.engine()
    b.hello(unmapped=old)
    pair.src.assert_all_free()


def test_restarted_owner_is_a_new_incarnation(make):
    from test_two_daemons import fixed_port, free_port
    port = free_port()
    src, dst = make(0, conf=fixed_port(port)), make(1)
    dst.knows(src)
    m = src.engine().put("k", b"old", readers=0)["metadata"]
    b = dst.engine()
    assert b.fetch("k", mode="inline") == b"old"
    src.kill()
    src.start()
    src.engine().put("k", b"new", readers=0)

    def back():
        r = b.request("get", key="k", mode="inline", timeout_ms=3000)
        assert r.payload in (None, b"new"), "bytes of the dead incarnation"
        return r.status == "OK"
    until(back, "reconnected")
    b.want("STALE", "get", key="k", metadata=m)


# -- stopped daemons ------------------------------------------------------
def test_late_bytes_of_a_stopped_owner_touch_nothing(tcp_pair):
    """SIGSTOP in the middle, the getter gives up, SIGCONT: `into` keeps what
    the engine wrote there afterwards."""
    data = kvf.pattern(40 * MIB)
    tcp_pair.a.put("k", data, readers=0)
    tcp_pair.b.fetch("k", mode="copy")
    buf = tcp_pair.b.alloc(len(data))
    for _ in range(8):
        w = tcp_pair.b.send("get", key="k", timeout_ms=300,
                            into=[{"buffer": buf["buffer"]}])
        tcp_pair.src.stop()
        r = tcp_pair.b.recv(w)
        mark = b"\xa5" * len(data)
        tcp_pair.b.fill(buf, mark)
        tcp_pair.src.cont()
        until(lambda: tcp_pair.b.request(
            "get", key="k", mode="view", timeout_ms=2000).status
            == "UNSUPPORTED", "the owner answers again")
        assert tcp_pair.b.peek(buf) == mark
        assert r.status in ("OK", "TIMEOUT", "TRANSFER_TIMEOUT",
                            "PEER_UNREACHABLE"), dict(r)
    tcp_pair.b.ok("free", buffer=buf["buffer"])
    assert tcp_pair.b.fetch("k", mode="copy", timeout_ms=20000) == data
    tcp_pair.dst.assert_all_free()


def test_replace_and_ttl_during_a_transfer(tcp_pair):
    """The get has the bytes of exactly one generation."""
    size = 16 * MIB
    want = {}
    for i in range(12):
        data = kvf.pattern(size, i)
        want[tcp_pair.a.put("k", data, ttl_ms=100 if i % 3 == 2 else 60000)
             ["generation"]] = data
        w = tcp_pair.b.send("get", key="k", mode="copy", timeout_ms=4000)
        time.sleep(random.random() * 0.01)
        if i % 2:
            other = kvf.pattern(size, 100 + i)
            want[tcp_pair.a.put("k", other)["generation"]] = other
        r = tcp_pair.b.recv(w)
        assert r.status in ("OK", "STALE", "EXPIRED", "TIMEOUT"), dict(r)
        if r.status == "OK":
            assert tcp_pair.b.bytes_of(r) == want[r["generation"]]
            tcp_pair.b.ok("release", buffer=r["buffer"])
        tcp_pair.src.wipe()
        tcp_pair.src.assert_all_free()


# -- full pools -----------------------------------------------------------
@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_full_pool_at_the_receiver_and_recovery(pair_of, protocol):
    p = pair_of(conf={"connector": {"protocol": protocol}})
    data = kvf.pattern(2 * MIB)
    p.a.put("k", data)
    hog = p.b.alloc(p.dst.pool()["largest_free"])
    p.b.want("NO_SPACE", "get", key="k", mode="copy", timeout_ms=2000)
    p.b.ok("ping")
    p.b.ok("free", buffer=hog["buffer"])
    assert p.b.fetch("k", mode="copy") == data


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
def test_fd_exhaustion_recovers(make):
    d = make(preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE,
                                                (64, 64)))
    first = d.engine()
    many = [Client(d.endpoint) for _ in range(80)]
    for c in many:
        c.send("ping")
    first.ok("put", b"x", key="k")
    assert first.fetch("k", mode="inline") == b"x"
    for c in many:
        c.close()

    def again():
        with Client(d.endpoint, timeout=1) as c:
            try:
                return c.request("ping").status == "OK"
            except kvf.NoReply:
                return False
    until(again, "new clients are served", 20)


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
