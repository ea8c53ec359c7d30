"""Each status code of section 3 is reachable; INTERNAL is not tried for.

One test a code, the shortest way there; other files test the rules."""
import os
import socket

import pytest

import kvf
from kvf import MIB


def dead():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return {"host": "127.0.0.1", "port": s.getsockname()[1]}


def test_ok(engine):
    engine.want("OK", "ping")


def test_invalid(engine):
    engine.want("INVALID", "alloc", size=0)


def test_unsupported(tcp_pair):
    tcp_pair.a.put("k", kvf.pattern(MIB))
    tcp_pair.b.want("UNSUPPORTED", "get", key="k", mode="view")


def test_not_found(pair):
    pair.b.want("NOT_FOUND", "get", key="k", wait=False)


def test_timeout(pair):
    pair.meet()
    pair.b.want("TIMEOUT", "get", key="k", timeout_ms=100)


def test_transfer_timeout(pair_of):
    """The bytes stop in the middle: the owner stands still and does not
    count as dead before the deadline."""
    p = pair_of(conf={"connector": {"protocol": "tcp",
                                    "peer_timeout_ms": 20000}})
    data = kvf.pattern(40 * MIB)
    p.a.put("k", data, readers=0)
    p.b.fetch("k", mode="copy")
    for _ in range(20):
        w = p.b.send("get", key="k", mode="copy", timeout_ms=700)
        kvf.until(lambda: p.dst.pool()["receiving"] or p.b.sock.poll(0),
                  "under way")
        p.src.stop()
        r = p.b.recv(w)
        p.src.cont()
        if r.status == "OK":  # it was faster than the signal
            p.b.ok("release", buffer=r["buffer"])
            continue
        assert r.status == "TRANSFER_TIMEOUT", dict(r)
        return
    pytest.skip("every transfer was over before SIGSTOP took hold")


def test_peer_unreachable(make):
    make(1).engine().want("PEER_UNREACHABLE", "get", key="k", timeout_ms=200,
                          source=dead())


def test_expired(engine):
    engine.put("k", b"x", ttl_ms=500, notify=True)
    engine.event(event="retired")
    engine.want("EXPIRED", "get", key="k", source=engine.me)


def test_consumed(engine):
    engine.put("k", b"x")
    engine.fetch("k", mode="inline")
    engine.want("CONSUMED", "get", key="k", source=engine.me)


def test_failed(engine):
    engine.ok("fail", key="k")
    engine.want("FAILED", "get", key="k", source=engine.me)


def test_cancelled(engine):
    w = engine.send("get", key="k", source=engine.me)
    engine.ok("cancel", target=w)
    assert engine.recv(w).status == "CANCELLED"


def test_stale(client):
    client.want("STALE", "alloc", size=1)


def test_no_space(engine):
    for _ in range(2):
        r = engine.request("alloc", size=40 * MIB)
    assert r.status == "NO_SPACE"
    assert {"free", "largest_free", "needed"} <= set(r)


def test_no_space_of_a_get(pair):
    data = kvf.pattern(30 * MIB)
    pair.a.put("k", data)
    hog = pair.b.alloc(40 * MIB)
    r = pair.b.want("NO_SPACE", "get", key="k", mode="copy", timeout_ms=2000)
    assert {"free", "largest_free", "needed"} <= set(r)
    pair.b.ok("free", buffer=hog["buffer"])
    assert pair.b.fetch("k", mode="copy") == data


def test_too_large(engine):
    engine.want("TOO_LARGE", "alloc", size=1 << 50)


def test_busy(engine):
    buf = engine.filled(b"x")["buffer"]
    engine.ok("put", key="k", segments=[{"buffer": buf}])
    engine.want("BUSY", "free", buffer=buf)


def test_exists(engine):
    engine.ok("put", b"x", key="k")
    engine.want("EXISTS", "put", b"y", key="k", on_duplicate="reject")


def test_mismatch(engine):
    engine.put("k", b"x" * 10)
    buf = engine.alloc(9)["buffer"]
    r = engine.want("MISMATCH", "get", key="k", into=[{"buffer": buf}])
    assert r["size"] == 10


def test_corrupt(engine):
    buf = engine.filled(b"x" * 10)
    engine.ok("put", key="k", checksum=True,
              segments=[{"buffer": buf["buffer"]}])
    engine.fill(buf, b"y")
    engine.want("CORRUPT", "get", key="k", mode="copy")


def test_denied(client):
    client.want("DENIED", "hello", version=1, pid=os.getppid())


def test_shutting_down(daemon, engine):
    engine.put("k", kvf.pattern(MIB))
    engine.ok("get", key="k", mode="view")
    engine.send("drain", timeout_ms=1000)
    engine.want("SHUTTING_DOWN", "put", b"x", key="new")
    daemon.proc.wait(kvf.WAIT)


def test_transport(pair_of):
    """The owner allows only shm and lives in another PID namespace, or the
    bulk connections are cut whenever they come up."""
    from test_faults import TcpCutter
    p = pair_of(conf={"connector": {"protocol": "tcp"},
                      "retry": {"attempts": 2, "backoff_ms": 1}})
    data = kvf.pattern(40 * MIB)
    p.a.put("k", data, readers=0)
    p.b.fetch("k", mode="copy")
    cutter = TcpCutter(p.dst, p.src)
    for _ in range(30):
        w = p.b.send("get", key="k", mode="copy")
        while not p.b.sock.poll(0):
            cutter.cut()
        r = p.b.recv(w)
        if r.status == "TRANSPORT":
            assert "tcp" in r["message"]
            return
        assert r.status == "OK", dict(r)
        p.b.ok("release", buffer=r["buffer"])
    pytest.skip("the retries outran the cutting")


def test_every_string_is_documented():
    path = os.path.join(kvf.ROOT, "docs", "PROTOCOL.md")
    if not os.path.exists(path):
        pytest.skip("docs/PROTOCOL.md does not exist yet")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    assert not [s for s in kvf.STATUSES if s not in text]
