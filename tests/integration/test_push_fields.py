"""push, expose, unexpose, write and read with every field missing, of another
type, out of range or huge: INVALID, nothing moves, and nothing is left."""
import time

import pytest

import kvf
from kvf import KIB, MIB, until

TO = {"stage": 0}
BIG = [2 ** 63 - 1, 2 ** 63, 2 ** 64 - 1]
TYPES = [None, True, -1, 1.5, "x", b"x", [], {}, [[]], 2 ** 64 - 1]

# op -> field -> values that are not INVALID as such (the rest of TYPES is)
FINE = {
    "push": {
        "key": ["x"], "ttl_ms": BIG, "readers": BIG, "meta": [b"x"],
        "on_duplicate": [], "checksum": [True], "notify": [True],
        "timeout_ms": BIG, "to": [], "target": [], "segments": []},
    "write": {
        "to": [], "target": [], "window": ["x"], "target_offset": [],
        "segments": [], "timeout_ms": BIG, "notify": [b"x"]},
    "read": {
        "to": [], "target": [], "window": ["x"], "target_offset": [],
        "segments": [], "timeout_ms": BIG, "notify": [b"x"]},
    "expose": {"name": ["x"], "size": [], "region": [], "writable": [True]},
    "unexpose": {"window": []},
}


@pytest.fixture
def far(pair_of):
    """Stage 1 (b) pushes to and writes at stage 0 (a)."""
    p = pair_of(conf={"connector": {"protocol": "tcp"}})
    p.w = p.a.ok("expose", name="w", size=64 * KIB, writable=True)
    p.src = p.b.filled(kvf.pattern(64 * KIB, 1))
    p.base = {
        "push": {"key": "k", "to": TO,
                 "segments": [{"buffer": p.src["buffer"]}]},
        "write": {"to": TO, "window": "w", "target_offset": 0,
                  "segments": [{"buffer": p.src["buffer"]}]},
        "expose": {"name": "e", "size": 100, "writable": True},
        "unexpose": {"window": 1}}
    p.base["read"] = dict(p.base["write"])
    return p


def is_in(value, some):
    return any(type(v) is type(value) and v == value for v in some)


@pytest.mark.parametrize("op", FINE)
def test_wrong_types(far, op):
    before = far.a.peek(far.w)
    n = 0
    for field, fine in FINE[op].items():
        for value in TYPES:
            if is_in(value, fine):
                continue
            if value == 2 ** 64 - 1 and (op, field) in (
                    ("expose", "size"), ("unexpose", "window"),
                    ("expose", "region")):
                continue  # in range: TOO_LARGE, or no such thing
            fields = {**far.base[op], field: value}
            r = far.b.request(op, **fields)
            # An absent optional field may be nil.
            assert r.status == "INVALID" or (
                value is None and field not in ("key", "segments", "window",
                                                "name", "writable")), (
                    field, value, dict(r))
            n += r.status == "INVALID"
    assert n > 8
    assert far.a.peek(far.w) == before or op == "write"
    assert far.dst.stats()["moves"]["running"] == 0


@pytest.mark.parametrize("op,field", [
    ("push", "key"), ("push", "to"), ("push", "segments"), ("write", "to"),
    ("write", "window"), ("write", "segments"), ("read", "to"),
    ("read", "window"), ("read", "segments"), ("expose", "name"),
    ("expose", "size"), ("expose", "writable"), ("unexpose", "window")])
def test_missing(far, op, field):
    fields = dict(far.base[op])
    del fields[field]
    r = far.b.want("INVALID", op, **fields)
    assert field in r["message"] or "give" in r["message"]


def test_bounds(far):
    b = far.b
    push, write = far.base["push"], far.base["write"]
    for v in ("", "x" * 1025, b"\xff".decode("latin-1") * 600):
        b.want("INVALID", "push", **{**push, "key": v})
        b.want("INVALID", "write", **{**write, "window": v})
        b.want("INVALID", "expose", name=v, size=1, writable=True)
    b.want("INVALID", "push", **push, ttl_ms=0)
    b.want("INVALID", "push", **push, on_duplicate="keep")
    b.want("INVALID", "push", **push, meta=b"x" * 65537)
    b.want("INVALID", "write", **write, notify=b"x" * 65537)
    for v in BIG:
        for op in ("write", "read"):
            b.want("INVALID", op, **{**write, "target_offset": v})
        b.ok("push", **push, timeout_ms=v, ttl_ms=v, readers=v)
        for op in ("push", "write", "read"):
            for seg in ({"offset": v}, {"length": v}, {"offset": v,
                                                       "length": v}):
                b.want("INVALID", op, **{**far.base[op], "segments": [
                    {"buffer": far.src["buffer"], **seg}]})
            b.want("INVALID", op, **{**far.base[op], "segments": [
                {"buffer": v}]})
    for to in ({}, {"stage": 99}, {"stage": 0, "rank": 2 ** 40},
               {"stage": 0, "replica": -1}, {"rank": 0}):
        b.want("INVALID", "push", **{**push, "to": to})
    for target in ({}, {"host": "127.0.0.1"}, {"port": 1},
                   {"host": "", "port": 1}, {"host": "127.0.0.1", "port": 0},
                   {"host": "127.0.0.1", "port": 65536},
                   {"host": "h" * 5000, "port": 1}):
        b.want("INVALID", "push", key="k", target=target,
               segments=push["segments"])
    b.want("INVALID", "expose", name="e", size=0, writable=True)
    b.want("INVALID", "expose", name="e", size=1, region=1, writable=True)
    for v in BIG:
        b.want("TOO_LARGE", "expose", name="e", size=v, writable=True)
        b.want("INVALID", "expose", name="e", region=v, writable=True)
        b.want("INVALID", "unexpose", window=v)
    until(lambda: far.dst.stats()["moves"]["running"] == 0, "nothing runs")


def test_segments_of_all_kinds(far):
    b, most = far.b, far.b.info["limits"]["max_segments"]
    seg = {"buffer": far.src["buffer"]}
    for op in ("push", "write", "read"):
        base = far.base[op]
        for n in (0, most + 1, 10000):
            b.want("INVALID", op, **{**base, "segments": [
                {**seg, "offset": i % 100, "length": 1} for i in range(n)]})
        b.want("INVALID", op, **{**base, "segments": [
            {**seg, "offset": 0, "length": 0}]})
        b.want("INVALID", op, **{**base, "segments": [
            {**seg, "offset": 1, "length": 10},
            {**seg, "offset": 64 * KIB, "length": 1}]})
    # Twice the same bytes: fine to read from, not to write into.
    twice = [{**seg, "offset": 5, "length": 10}, {**seg, "offset": 14,
                                                  "length": 10}]
    data = kvf.pattern(64 * KIB, 1)
    b.ok("write", **{**far.base["write"], "segments": twice})
    assert far.a.peek(far.w, 20) == data[5:15] + data[14:24]
    b.want("INVALID", "read", **{**far.base["read"], "segments": twice})
    b.ok("push", **{**far.base["push"], "segments": twice})
    assert far.a.fetch("k") == data[5:15] + data[14:24]
    # As many as there may be, backwards.
    one = 64 * KIB // most
    many = [{**seg, "offset": i * one, "length": one}
            for i in reversed(range(most))]
    b.ok("write", **{**far.base["write"], "segments": many})
    want = b"".join(data[i * one:(i + 1) * one] for i in reversed(range(most)))
    assert far.a.peek(far.w, len(want)) == want


def test_the_end_of_a_window(far):
    """Its last byte, one past it, and what would wrap around."""
    b, size = far.b, 64 * KIB
    one = [{"buffer": far.src["buffer"], "offset": 0, "length": 1}]
    for op in ("write", "read"):
        base = {"to": TO, "window": "w", "segments": one}
        b.ok(op, **base, target_offset=size - 1)
        for at in (size, size + 1, 2 ** 32, 2 ** 63 - 1, 2 ** 63 - 2):
            r = b.want("INVALID", op, **base, target_offset=at)
            assert r["attempts"] == 0 if "attempts" in r else True


@pytest.mark.parametrize("op", ["push", "write", "read"])
def test_a_worker_that_has_not_started(make, op):
    """Waited for up to the deadline; one that comes meanwhile is served."""
    d = make(1)
    b = d.engine()
    src = b.filled(b"x" * 100)
    fields = {"push": {"key": "k"}, "write": {"window": "w"},
              "read": {"window": "w"}}[op]
    fields = {**fields, "segments": [{"buffer": src["buffer"]}]}
    where = {"target": {"host": "127.0.0.1", "port": 1}}
    t0 = time.monotonic()
    b.want("PEER_UNREACHABLE", op, **fields, **where, timeout_ms=400)
    assert 0.39 < time.monotonic() - t0 < 5
    i = b.send(op, **fields, **where, timeout_ms=20000)
    b.ok("cancel", target=i)
    assert b.recv(i).status == "CANCELLED"
    b.ok("free", buffer=src["buffer"])


def test_a_worker_that_comes_late(make):
    first = make(0)
    host, port = first.peer_host, first.peer_port
    first.kill()
    d = make(1)
    b = d.engine()
    src = b.filled(b"late" * 1000)
    i = b.send("push", key="k", target={"host": host, "port": port},
               segments=[{"buffer": src["buffer"]}], timeout_ms=20000)
    first.conf["connector"]["zmq_port"] = port - 100
    first.restart()
    assert b.recv(i, timeout=20).status == "OK"
    assert first.engine().fetch("k") == b"late" * 1000


def test_the_engine_of_a_window_dies_in_a_write(pair_of, other_process):
    for protocol in ("shm", "tcp"):
        p = pair_of(conf={"connector": {"protocol": protocol}})
        src = p.b.filled(kvf.pattern(24 * MIB, 1))
        for _ in range(3):
            e = other_process(p.src)
            e.ok("expose", name="w", size=24 * MIB, writable=True)
            ids = [p.b.send("write", to=TO, window="w", segments=[
                {"buffer": src["buffer"]}]) for _ in range(4)]
            p.b.recv(ids[0])
            e.kill()
            got = {p.b.recv(i).status for i in ids[1:]}
            assert got <= {"OK", "STALE", "NOT_FOUND"}, got
            p.src.assert_all_free()
