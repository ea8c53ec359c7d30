"""Bounds: what is refused past them, and what waiting and idling cost."""
import time

import pytest

import kvf
from kvf import MIB, until


def test_busy_past_max_outstanding_and_served_again(daemon, engine):
    most = engine.info["limits"]["max_outstanding"]
    ids = [engine.send("get", key=f"k{i}", source=engine.me, timeout_ms=60000,
                       mode="inline") for i in range(most + 50)]
    # Those past the limit are refused; those within wait.
    for _ in range(50):
        r = engine.recv(timeout=30 * kvf.SLOW)
        assert r.status == "BUSY", r
    daemon.engine().ok("ping")
    other = daemon.client()
    for i in range(200):
        other.ok("put", b"x", key=f"k{i}")
    for i in ids[:200]:
        assert engine.recv(i).status == "OK"
    engine.ok("ping")
    engine.ok("bye")


def test_no_space_then_recovery_at_the_sender(daemon, engine):
    puts = 0
    while True:
        r = engine.request("alloc", size=4 * MIB)
        if r.status != "OK":
            break
        engine.ok("put", key=f"k{puts}", segments=[{"buffer": r["buffer"]}])
        puts += 1
    assert r.status == "NO_SPACE" and r["needed"] >= 4 * MIB
    assert r["largest_free"] <= r["free"] < 8 * MIB
    assert puts == 15
    engine.fetch("k0", mode="view")
    until(lambda: engine.request("alloc", size=4 * MIB).status == "OK",
          "room again")


def test_payload_put_into_a_full_pool_is_no_space(engine):
    engine.alloc(engine.info["pool"]["size"] - kvf.HEADER)
    r = engine.want("NO_SPACE", "put", b"x" * 5000, key="k")
    assert {"free", "largest_free", "needed"} <= set(r)


def test_key_and_meta_bounds_hold_as_told(engine):
    lim = engine.info["limits"]
    engine.ok("put", b"x", key="k" * lim["max_key"],
              meta=b"m" * lim["max_meta"])
    most = lim["max_segments"]
    buf = engine.filled(bytes(i % 251 for i in range(most)))
    engine.ok("put", key="s", segments=[
        {"buffer": buf["buffer"], "offset": i, "length": 1}
        for i in reversed(range(most))])
    assert engine.fetch("s", mode="copy") == bytes(
        i % 251 for i in reversed(range(most)))


@pytest.mark.slow
def test_ten_thousand_parked_gets(pair):
    n = 10000
    pair.meet()
    # Warm what grows once, so that the difference is the gets'.
    for i in range(200):
        pair.b.request("get", key=f"warm{i}", timeout_ms=1)
    before = pair.src.rss_anon(), pair.dst.rss_anon()
    ids = [pair.b.send("get", key=f"k{i}", mode="inline", timeout_ms=120000)
           for i in range(n)]
    pair.b.ok("ping", timeout=60)
    # One that is put last and asked last: all before it are parked.
    pair.a.ok("put", b"x", key=f"k{n - 1}")
    assert pair.b.recv(ids[-1], timeout=60).status == "OK"
    if kvf.SLOW == 1:
        for d, was in zip((pair.src, pair.dst), before):
            assert d.rss_anon() - was < 2048 * n, (d.rss_anon() - was) / n
    cpu = pair.src.cpu_ns(), pair.dst.cpu_ns()
    time.sleep(2)  # what is measured: two seconds of waiting
    for d, was in zip((pair.src, pair.dst), cpu):
        assert d.cpu_ns() - was < 40e6 * kvf.SLOW
    for i in range(n - 1):
        pair.a.send("put", f"{i}".encode(), key=f"k{i}")
    for _ in range(n - 1):
        assert pair.a.recv(timeout=60).status == "OK"
    for i in range(n - 1):
        r = pair.b.recv(ids[i], timeout=60)
        assert r.status == "OK" and r.payload == f"{i}".encode()


@pytest.mark.release_only
def test_idle_daemon_uses_no_cpu(pair):
    pair.meet()
    cpu = pair.src.cpu_ns(), pair.dst.cpu_ns()
    time.sleep(3)  # what is measured: three seconds of nothing
    for d, was in zip((pair.src, pair.dst), cpu):
        assert d.cpu_ns() - was < 3e9 * 0.001 + 2e6


@pytest.mark.slow
@pytest.mark.release_only
def test_ping_stays_quick_beside_a_big_copy(make):
    conf = {"connector": {"memory_pool_size": "320MiB"}}
    src, dst = make(0, conf=conf), make(1, conf=conf)
    dst.knows(src)
    a, b, p = src.engine(), dst.engine(), dst.client()
    buf = a.alloc(256 * MIB)
    a.ok("put", key="k", segments=[{"buffer": buf["buffer"]}], readers=0)

    def pings(while_):
        took = []
        while while_(len(took)):
            began = time.monotonic()
            p.ok("ping")
            took.append(time.monotonic() - began)
        return sorted(took)
    idle = pings(lambda n: n < 300)
    busy = []
    for _ in range(3):
        w = b.send("get", key="k", mode="copy", timeout_ms=60000)
        busy += pings(lambda n: not b.sock.poll(0))
        g = b.recv(w)
        assert g.status == "OK"
        b.ok("release", buffer=g["buffer"])
    busy.sort()
    assert len(busy) > 10
    # The goal is 1 ms over idle at p99; a shared machine gets some slack.
    assert busy[int(len(busy) * .9)] < idle[int(len(idle) * .9)] + 0.005


def test_tombstones_are_bounded_and_the_oldest_goes_first(make):
    d = make(conf={"limits": {"max_tombstones": 1000}})
    c = d.engine()
    for i in range(3000):
        c.ok("fail", key=f"k{i}")
    states = [c.request("get", key=f"k{i}", source=c.me, wait=False,
                        mode="inline").status for i in (0, 500, 2999)]
    assert states == ["NOT_FOUND", "NOT_FOUND", "FAILED"]


def test_memory_does_not_grow_with_traffic(pair):
    def work(n, tag):
        for i in range(n):
            pair.a.put(f"{tag}{i % 50}", b"x" * 70000)
            pair.b.fetch(f"{tag}{i % 50}", mode="copy" if i % 2 else "view")
    work(200, "a")
    before = pair.src.rss_anon(), pair.dst.rss_anon()
    fds = pair.src.fds(), pair.dst.fds()
    work(400, "a")
    if kvf.SLOW == 1:
        for d, was in zip((pair.src, pair.dst), before):
            assert d.rss_anon() - was < 2 * MIB
    for d, was in zip((pair.src, pair.dst), fds):
        assert d.fds() <= was + 4
