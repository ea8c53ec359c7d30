"""Faults that must do no harm: to the bytes, to other clients, to memory."""
import ctypes
import os
import random
import socket
import struct
import time

import pytest

import kvf
from kvf import MIB, until

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
    dst.wait_log(r"\[KVF GET\] key=k gen=\d+ .* attempts=[2-9] ")


def test_get_that_is_cut_in_the_middle_resumes(make):
    get_cut_in_the_middle(make, 40 * MIB, "64MiB")


@pytest.mark.slow
def test_get_of_256_mib_that_is_cut_resumes(make):
    get_cut_in_the_middle(make, 256 * MIB, "300MiB")


# -- engines that die -----------------------------------------------------
STEPS = ["hello", "alloc", "filled", "region", "put_sent", "put", "notify",
         "parked", "view", "view_sent", "copy", "transfer", "into", "mget",
         "release"]


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
    elif step == "region":
        e.do("region", size=MIB)
    elif step == "put_sent":
        buf = e.do("fill", size=MIB, seed=1)["buffer"]
        e.send("put", key=key, segments=[{"buffer": buf}], checksum=True)
    elif step == "notify":
        e.put(key, MIB, notify=True)
    elif step in ("view", "copy"):
        e.ok("get", key="big", mode=step)
    elif step == "view_sent":
        e.send("get", key="big", mode="view")
    elif step == "into":
        buf = e.ok("alloc", size=8 * MIB)["buffer"]
        e.send("get", key="big", into=[{"buffer": buf}])
    elif step == "mget":
        e.send("mget", gets=[{"key": "big", "mode": "copy"}] * 3)
    elif step == "release":
        got = e.ok("get", key="big", mode="copy")["buffer"]
        e.send("release", buffer=got)
    elif step == "transfer":
        e.send("get", key="big", mode="copy")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_engine_killed_at(pair_of, other_process, step, protocol):
    if step.startswith("view") and protocol == "tcp":
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
    e = other_process(pair.dst)
    pair.meet()
    pair.a.put("k", kvf.pattern(MIB, 1), ttl_ms=500)
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
def test_getter_killed_with_a_claim(pair, other_process, mode):
    """A view's bytes are reused only after its engine has exited too."""
    pair.a.put("k", kvf.pattern(8 * MIB))
    e = other_process(pair.dst)
    if mode == "view":
        e.ok("get", key="k", mode="view")
    else:
        e.send("get", key="k", mode="copy")
    pair.dst.kill()
    pair.b.close(bye=False)
    if mode == "view":
        pair.src.wait_log(r"\[KVF PEER\] \S+ down")
        pair.src.wipe()
        until(lambda: pair.src.pool()["draining"] >= 8 * MIB, "kept")
    e.kill()
    pair.src.wipe()
    pair.src.assert_all_free()


def test_getter_daemon_killed_but_its_engine_still_maps(pair, other_process):
    """The owner waits for the engine's exit, not only for the daemon's."""
    e = other_process(pair.dst)
    pair.meet()
    pair.a.put("k", kvf.pattern(MIB), ttl_ms=500)
    e.ok("get", key="k", mode="view")
    pair.dst.kill()
    pair.src.wait_log(r"\[KVF PEER\] \S+ down")
    p = pair.src.pool()
    assert p["size"] - kvf.HEADER - p["free"] >= MIB
    e.kill()
    pair.src.assert_all_free()


def test_getter_restart_with_unmapped_frees_the_view(pair):
    pair.meet()
    pair.a.put("k", kvf.pattern(MIB), ttl_ms=500)
    pair.b.ok("get", key="k", mode="view")
    old = pair.dst.incarnation
    pair.dst.kill()
    pair.getter_comes_back_without_views(old)
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

    assert b.fetch("k", mode="inline") == b"new"
    b.want("STALE", "get", key="k", metadata=m)


def beside_a_restart(make):
    """Two daemons that have met; the first can start again at its port, and
    has long enough for that."""
    from test_two_daemons import fixed_port, free_port
    conf = {"connector": {"peer_timeout_ms": int(5000 * kvf.SLOW)}}
    src = make(0, conf=kvf.merge(fixed_port(free_port()), conf))
    dst = make(1, conf=conf)
    dst.knows(src)
    b = dst.engine()
    src.engine().ok("put", b"x", key="meet")
    assert b.fetch("meet", mode="inline") == b"x"
    return src, b


@pytest.mark.parametrize("heard", [False, True])
def test_get_beside_a_restart_of_its_owner(make, heard):
    """One that the dead owner had heard of is lost with it; one that came
    when it was down already, noticed or not, waits for it to come back."""
    src, b = beside_a_restart(make)
    if heard:
        w = b.send("get", key="k", mode="inline", timeout_ms=60000)
        until(lambda: src.stats()["keys"]["parked"] == 1, "parked")
    src.kill()
    if not heard:
        w = b.send("get", key="k", mode="inline", timeout_ms=60000)
        b.ok("ping")
    src.start()
    src.engine().put("k", b"new", readers=0)
    r = b.recv(w)
    assert r.status == ("PEER_UNREACHABLE" if heard else "OK"), dict(r)
    assert heard or r.payload == b"new"


@pytest.mark.parametrize("size", [10, MIB])
def test_push_to_a_receiver_that_is_starting_again(make, size):
    """It was down when the push came: it waits, and is published once."""
    src, b = beside_a_restart(make)
    src.kill()
    buf = b.filled(kvf.pattern(size))
    w = b.send("push", key="k", to={"stage": 0}, timeout_ms=60000,
               segments=[{"buffer": buf["buffer"]}])
    b.ok("ping")
    src.start()
    r = b.recv(w)
    assert r.status == "OK", dict(r)
    a = src.engine()
    assert a.fetch("k") == kvf.pattern(size)
    assert a.ok("stats")["counters"]["pushed"] == 1
    b.ok("free", buffer=buf["buffer"])


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
    seed = time.time_ns()
    print("seed", seed)
    rng = random.Random(seed)
    for i in range(12):
        data = kvf.pattern(size, i)
        want[tcp_pair.a.put("k", data, ttl_ms=100 if i % 3 == 2 else 60000)
             ["generation"]] = data
        w = tcp_pair.b.send("get", key="k", mode="copy", timeout_ms=4000)
        time.sleep(rng.random() * 0.01)  # the moment is what is random
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
