"""expose, unexpose, write and read between real daemons."""
import fcntl
import os

import pytest

import kvf
from kvf import KIB, MIB, until

PROTOCOLS = ["shm", "tcp"]


@pytest.fixture(params=PROTOCOLS)
def wpair(request, pair_of):
    """Stage 1 (b) writes into windows of stage 0 (a)."""
    p = pair_of(conf={"connector": {"protocol": request.param}})
    p.protocol = request.param
    return p


def to_a(p):
    return {"stage": 0}


def expose(client, name, size, writable=True):
    return client.ok("expose", name=name, size=size, writable=writable)


def seg(buf, **kw):
    return dict({"buffer": buf["buffer"]}, **kw)


def test_write_then_read(wpair):
    size = 3 * MIB + 5
    w = expose(wpair.a, "w", size)
    assert w["size"] == size and wpair.a.peek(w, 4) == bytes(4)
    data = kvf.pattern(2 * MIB + 1, 7)
    src = wpair.b.filled(data)
    r = wpair.b.ok("write", to=to_a(wpair), window="w", target_offset=1000,
                   segments=[seg(src)])
    assert r["size"] == len(data) and r["transport"] == wpair.protocol
    assert r["attempts"] == 1 and set(r["timing"]) == {
        "lookup_us", "wait_us", "transfer_us", "total_us"}
    assert wpair.a.peek(w, len(data), 1000) == data
    assert wpair.a.peek(w, 1000) == bytes(1000)
    assert wpair.a.peek(w, 4, 1000 + len(data)) == bytes(4)
    dst = wpair.b.alloc(len(data))
    r = wpair.b.ok("read", to=to_a(wpair), window="w", target_offset=1000,
                   segments=[seg(dst)])
    assert r["transport"] == wpair.protocol
    assert wpair.b.peek(dst) == data
    for b in (src, dst):
        wpair.b.ok("free", buffer=b["buffer"])
    wpair.a.ok("unexpose", window=w["window"])
    wpair.src.assert_all_free()


def test_a_batch_of_many_small_blocks_is_one_request(wpair):
    n, block = 128, 64 * KIB
    w = expose(wpair.a, "w", n * block)
    data = kvf.pattern(n * block, 3)
    src = wpair.b.filled(data)
    order = [(i * 37) % n for i in range(n)]
    wpair.b.ok("write", to=to_a(wpair), window="w", segments=[
        seg(src, offset=i * block, length=block) for i in order])
    want = b"".join(data[i * block:(i + 1) * block] for i in order)
    assert wpair.a.peek(w) == want
    dst = wpair.b.alloc(n * block)
    wpair.b.ok("read", to=to_a(wpair), window="w", segments=[
        seg(dst, offset=i * block, length=block) for i in order])
    assert wpair.b.peek(dst) == data
    assert wpair.dst.stats()["counters"]["writes"] == 1


def test_what_is_refused_before_a_byte_moves(wpair):
    w = expose(wpair.a, "rw", 8192)
    expose(wpair.a, "ro", 8192, writable=False)
    src = wpair.b.filled(b"x" * 4097)
    s, b = [seg(src)], wpair.b
    dest = to_a(wpair)
    b.want("NOT_FOUND", "write", to=dest, window="no", segments=s)
    b.want("DENIED", "write", to=dest, window="ro", segments=s)
    b.ok("read", to=dest, window="ro", segments=s)
    b.fill(src, b"x" * 4097)
    for op in ("write", "read"):
        b.want("INVALID", op, to=dest, window="rw", target_offset=4096,
               segments=s)
        b.want("INVALID", op, to=dest, window="rw", target_offset=8193,
               segments=s)
        b.want("INVALID", op, to=dest, window="rw",
               target_offset=2 ** 63 - 1, segments=s)
    assert wpair.a.peek(w) == bytes(8192)
    b.ok("write", to=dest, window="rw", target_offset=4095, segments=s)
    # Access that is kept from before does not take the bounds away.
    b.want("INVALID", "write", to=dest, window="rw", target_offset=4096,
           segments=s)


def test_names_and_memory_of_windows(engine, daemon):
    e = engine
    w = e.ok("expose", name="w", size=10000, writable=True)
    e.want("EXISTS", "expose", name="w", size=1, writable=True)
    e.want("BUSY", "free", buffer=w["buffer"])
    e.want("BUSY", "put", key="k", segments=[seg(w)])
    e.want("INVALID", "unexpose", window=w["window"] + 1)
    other = daemon.engine()
    other.want("INVALID", "unexpose", window=w["window"])
    e.ok("unexpose", window=w["window"])
    e.want("INVALID", "unexpose", window=w["window"])
    e.want("INVALID", "free", buffer=w["buffer"])
    e.want("TOO_LARGE", "expose", name="x", size=2 ** 40, writable=True)
    e.want("INVALID", "expose", name="x", region=12345, writable=True)
    daemon.assert_all_free()


def test_no_space_has_its_figures(engine, daemon):
    b = engine.alloc(40 * MIB)
    r = engine.want("NO_SPACE", "expose", name="w", size=40 * MIB,
                    writable=True)
    assert r["needed"] == 40 * MIB and r["free"] < r["needed"]
    engine.ok("free", buffer=b["buffer"])


def test_a_region_is_a_window(wpair):
    fd = os.memfd_create("w", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    fcntl.fcntl(fd, 1033, 0x0002 | 0x0004)
    region = wpair.a.ok("register", fd=fd, size=MIB)["region"]
    w = wpair.a.ok("expose", name="r", region=region, writable=True)
    wpair.a.want("BUSY", "unregister", region=region)
    data = kvf.pattern(300 * KIB, 5)
    src = wpair.b.filled(data)
    wpair.b.ok("write", to=to_a(wpair), window="r", target_offset=4096,
               segments=[seg(src)])
    assert os.pread(fd, len(data), 4096) == data
    wpair.a.ok("unexpose", window=w["window"])
    until(lambda: wpair.a.request("unregister",
                                  region=region).status == "OK",
          "the region is quiet")
    os.close(fd)


def test_notify_comes_after_the_bytes_and_once(wpair):
    w = expose(wpair.a, "w", MIB)
    src = wpair.b.filled(kvf.pattern(MIB, 9))
    for i in range(20):
        wpair.b.fill(src, bytes([i + 1]) * MIB)
        wpair.b.ok("write", to=to_a(wpair), window="w", segments=[seg(src)],
                   notify=b"n%d" % i)
        e = wpair.a.event(event="written")
        assert e == {"event": "written", "window": w["window"], "name": "w",
                     "op": "write", "notify": b"n%d" % i}
        assert wpair.a.peek(w) == bytes([i + 1]) * MIB
    wpair.b.ok("read", to=to_a(wpair), window="w", segments=[seg(src)],
               notify=b"")
    assert wpair.a.event(event="written")["op"] == "read"
    wpair.a.quiet()


def test_into_the_own_daemon(engine, daemon):
    w = expose(engine, "w", MIB)
    src = engine.filled(kvf.pattern(MIB, 2))
    me = {"host": daemon.peer_host, "port": daemon.peer_port}
    r = engine.ok("write", target=me, window="w", segments=[seg(src)],
                  notify=b"here")
    assert r["transport"] == "local"
    assert engine.event(event="written")["notify"] == b"here"
    assert engine.peek(w) == engine.peek(src)
    dst = engine.alloc(MIB)
    engine.ok("read", to={"stage": 0}, window="w", segments=[seg(dst)])
    assert engine.peek(dst) == engine.peek(src)
    engine.want("NOT_FOUND", "read", target=me, window="x",
                segments=[seg(dst)])
    engine.want("INVALID", "read", target=me, window="w", target_offset=1,
                segments=[seg(dst)])


def test_unexpose_frees_the_memory_and_ends_the_access(wpair):
    w = expose(wpair.a, "w", MIB)
    src = wpair.b.filled(bytes(MIB))
    wpair.b.ok("write", to=to_a(wpair), window="w", segments=[seg(src)])
    wpair.a.ok("unexpose", window=w["window"])
    wpair.src.assert_all_free()
    wpair.b.want("NOT_FOUND", "write", to=to_a(wpair), window="w",
                 segments=[seg(src)])
    w = expose(wpair.a, "w", MIB)
    wpair.b.fill(src, b"2" * MIB)
    wpair.b.ok("write", to=to_a(wpair), window="w", segments=[seg(src)])
    assert wpair.a.peek(w) == b"2" * MIB


def test_unexpose_during_writes(wpair):
    b, big = wpair.b, 16 * MIB
    src = b.filled(kvf.pattern(big, 4))
    for _ in range(4):
        w = expose(wpair.a, "w", big)
        ids = [b.send("write", to=to_a(wpair), window="w",
                      segments=[seg(src)]) for _ in range(6)]
        b.recv(ids[0])
        wpair.a.ok("unexpose", window=w["window"])
        got = {b.recv(i).status for i in ids[1:]}
        assert got <= {"OK", "STALE", "NOT_FOUND"}, got
        wpair.src.assert_all_free()


@pytest.mark.parametrize("region", [False, True])
def test_over_shm_the_owner_is_asked_once(pair_of, region):
    p = pair_of(conf={"connector": {"protocol": "shm",
                                    "peer_timeout_ms": 60000}})
    if region:
        fd = os.memfd_create("w", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, MIB)
        fcntl.fcntl(fd, 1033, 0x0002 | 0x0004)
        number = p.a.ok("register", fd=fd, size=MIB)["region"]
        p.a.ok("expose", name="w", region=number, writable=True)
    else:
        w = expose(p.a, "w", MIB)
    src, dst = p.b.filled(bytes(MIB)), p.b.alloc(MIB)
    p.b.ok("write", to=to_a(p), window="w", segments=[seg(src)])
    p.b.ok("read", to=to_a(p), window="w", segments=[seg(dst)])
    p.src.stop()
    try:
        data = kvf.pattern(MIB, 8)
        p.b.fill(src, data)
        p.b.ok("write", to=to_a(p), window="w", segments=[seg(src)])
        assert (os.pread(fd, MIB, 0) if region else p.a.peek(w)) == data
        p.b.ok("read", to=to_a(p), window="w", segments=[seg(dst)])
        assert p.b.peek(dst) == data
    finally:
        p.src.cont()
    if region:
        os.close(fd)


def test_a_kept_access_ends_with_its_window(pair_of):
    """The writer's daemon is told while it stands still, and is asked to write
    again before it has heard of it or just after."""
    pair = pair_of(conf={"connector": {"peer_timeout_ms": 20000}})
    src = pair.b.alloc(MIB)
    for i in range(20):
        w = expose(pair.a, "w", MIB)
        pair.b.fill(src, bytes([i]) * MIB)
        pair.b.ok("write", to=to_a(pair), window="w", segments=[seg(src)])
        pair.dst.stop()
        pair.b.fill(src, bytes([100 + i]) * MIB)
        pair.a.ok("unexpose", window=w["window"])
        w = expose(pair.a, "w", MIB)
        n = pair.b.send("write", to=to_a(pair), window="w",
                        segments=[seg(src)])
        pair.dst.cont()
        assert pair.b.recv(n).status == "OK"
        assert pair.a.peek(w) == bytes([100 + i]) * MIB
        pair.a.ok("unexpose", window=w["window"])
    pair.src.assert_all_free()


def test_a_frozen_writer_over_shm_keeps_the_memory(pair):
    w = expose(pair.a, "w", 24 * MIB)
    src = pair.b.filled(bytes(24 * MIB))
    pair.b.ok("write", to={"stage": 0}, window="w", segments=[seg(src)])
    # In the middle of it or not: nobody but the writer's daemon can tell.
    i = pair.b.send("write", to={"stage": 0}, window="w", segments=[seg(src)])
    pair.dst.stop()
    try:
        assert pair.src.stats()["peers"]["accesses"] == 1
        pair.a.ok("unexpose", window=w["window"])
        until(lambda: pair.src.stats()["peers"]["guests_up"] == 0, "down", 10)
        assert pair.src.pool()["draining"] >= 24 * MIB
    finally:
        pair.dst.cont()
    assert pair.b.recv(i).status in ("OK", "STALE", "NOT_FOUND",
                                     "PEER_UNREACHABLE")
    pair.src.assert_all_free()


def test_the_owner_dies_and_comes_back(wpair):
    expose(wpair.a, "w", 16 * MIB)
    src = wpair.b.filled(kvf.pattern(16 * MIB, 4))
    wpair.b.ok("write", to=to_a(wpair), window="w", segments=[seg(src)])
    port = wpair.src.peer_port
    wpair.src.kill()
    wpair.b.want("PEER_UNREACHABLE", "write", to=to_a(wpair), window="w",
                 segments=[seg(src)], timeout_ms=8000)
    wpair.src.conf["connector"]["zmq_port"] = port - 100
    wpair.src.restart()
    assert wpair.src.peer_port == port
    r = until(lambda: [x for x in [wpair.b.request(
        "write", to=to_a(wpair), window="w", segments=[seg(src)])]
        if x.status != "PEER_UNREACHABLE"], "back", 10)[0]
    assert r.status == "NOT_FOUND"
    a = wpair.src.engine()
    w = expose(a, "w", 16 * MIB)
    wpair.b.ok("write", to=to_a(wpair), window="w", segments=[seg(src)])
    assert a.peek(w) == kvf.pattern(16 * MIB, 4)


def test_a_dead_writer_leaves_nothing_behind(wpair, other_process):
    w = expose(wpair.a, "w", 4 * MIB)
    src = wpair.b.filled(bytes(4 * MIB))
    wpair.b.ok("write", to=to_a(wpair), window="w", segments=[seg(src)])
    wpair.dst.kill()
    wpair.a.ok("unexpose", window=w["window"])
    wpair.src.assert_all_free()


def test_the_session_that_exposed_ends(wpair, other_process):
    e = other_process(wpair.src)
    e.ok("expose", name="w", size=MIB, writable=True)
    src = wpair.b.filled(bytes(MIB))
    wpair.b.ok("write", to=to_a(wpair), window="w", segments=[seg(src)])
    e.kill()
    until(lambda: wpair.src.stats()["peers"]["windows"] == 0, "closed")
    wpair.src.assert_all_free()
    wpair.b.want("NOT_FOUND", "write", to=to_a(wpair), window="w",
                 segments=[seg(src)])


def test_cancel_and_deadline(pair):
    pair.meet()
    expose(pair.a, "w", MIB)
    src = pair.b.filled(bytes(MIB))
    pair.src.stop()
    try:
        i = pair.b.send("write", to={"stage": 0}, window="w",
                        segments=[seg(src)])
        pair.b.ok("cancel", target=i)
        assert pair.b.recv(i).status == "CANCELLED"
        pair.b.want("TIMEOUT", "write", to={"stage": 0}, window="w",
                    segments=[seg(src)], timeout_ms=100)
    finally:
        pair.src.cont()
    pair.b.ok("free", buffer=src["buffer"])


def test_a_cancel_over_tcp_waits_for_nobody(pair_of):
    """Also where the owner stands still, and would count as down much later.
    What lies in its sockets is no matter to the write that follows."""
    p = pair_of(conf={"connector": {"protocol": "tcp",
                                    "peer_timeout_ms": 120000}})
    size = 16 * MIB
    w = expose(p.a, "w", size)
    old, new = p.b.filled(b"1" * size), p.b.filled(b"2" * size)
    p.b.ok("write", to={"stage": 0}, window="w",
           segments=[seg(old, length=MIB)])
    p.src.stop()
    try:
        i = p.b.send("write", to={"stage": 0}, window="w",
                     segments=[seg(old)])
        until(lambda: p.dst.stats()["moves"]["moving"] == 1, "it moves")
        p.b.ok("cancel", target=i)
        assert p.b.recv(i).status == "CANCELLED"
        p.b.fill(old, b"3" * size)  # ours again
    finally:
        p.src.cont()
    p.b.ok("write", to={"stage": 0}, window="w", segments=[seg(new)])
    assert p.a.peek(w) == b"2" * size
    for b in (old, new):
        p.b.ok("free", buffer=b["buffer"])


def test_nobody_there(engine):
    src = engine.filled(b"x")
    engine.want("PEER_UNREACHABLE", "write",
                target={"host": "127.0.0.1", "port": 1}, window="w",
                segments=[seg(src)], timeout_ms=200)
    engine.want("INVALID", "write", to={"stage": 5}, window="w",
                segments=[seg(src)])


def test_sessions_without_memory(daemon):
    c = daemon.client()
    c.want("STALE", "expose", name="w", size=1, writable=True)
    c.want("STALE", "write", to={"stage": 0}, window="w",
           segments=[{"buffer": 1}])
    c.want("STALE", "unexpose", window=1)
