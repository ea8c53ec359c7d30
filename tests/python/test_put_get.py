"""Put and get of all kinds, one and two daemons."""
import math
import time

import kvf
import numpy as np
import pytest

import kvferry
from kvferry import Get, Worker


@pytest.mark.parametrize("size", [1, 100, 4096, 4097, 65537, 5 << 20])
@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_round_trip(one, size, mode):
    data = kvf.pattern(size)
    r = one.put("k", data)
    assert r.size == size and r.metadata["data_size"] == size
    with one.get("k", mode=mode) as p:
        assert p.to_bytes() == data and bytes(p) == data and len(p) == size
        assert memoryview(p) == data and p.view.readonly
        assert p.generation == r.generation
    assert one.daemon.stats()["pool"]["published"] == 0


@pytest.mark.parametrize("pair", ["two", "two_tcp"])
def test_across(pair, request):
    a, b = request.getfixturevalue(pair)
    for size in (10, 100_000, 3 << 20):
        data = kvf.pattern(size, seed=size)
        a.put("k", data, meta=b"about it", checksum=True)
        with b.get("k", timeout=5, verify=True) as p:
            assert p.to_bytes() == data and p.meta == b"about it"
            assert p.timing.total_us >= 0 and p.attempts >= 1
            if pair == "two" and size > 65536:
                assert (p.mode, p.transport) == ("view", "shm")


def test_bytes_like_sources(one):
    strided = np.arange(40000, dtype="int32").reshape(200, 200)[:, ::2]
    for data, want in [
            (bytearray(b"abc"), b"abc"), (memoryview(b"abcdef")[::2], b"ace"),
            (np.float16([1, 2]), np.float16([1, 2]).tobytes()),
            (strided, strided.tobytes()),
            (np.arange(3).astype(">i4"), b"\0\0\0\0\0\0\0\1\0\0\0\2"),
            (np.zeros((100, 100, 3)), bytes(240000))]:
        one.put("k", data)
        assert one.get("k").to_bytes() == want
    with pytest.raises(kvferry.Invalid):
        one.put("k", b"")
    with pytest.raises(TypeError):
        one.put("k", 5)
    with pytest.raises(TypeError):
        one.put("k", "text")


def test_fill_in_place(two):
    a, b = two
    buffer = a.alloc(8 << 20)
    x = buffer.numpy("float32", (2, -1))
    x[:] = np.arange(x.size, dtype="float32").reshape(x.shape)
    a.put("k", buffer)
    assert buffer.released
    with pytest.raises(ValueError):
        buffer.view
    with pytest.raises(ValueError):
        a.put("again", buffer)
    with b.get("k") as p:
        assert p.mode == "view"
        assert np.array_equal(p.numpy("float32", (2, -1)), x)
        assert p.as_tensor(np.float32).shape == (2 << 20,)


def test_segments(two):
    a, b = two
    x, y = a.alloc(10000), a.alloc(10000)
    x.view[:], y.view[:] = b"x" * 10000, b"y" * 10000
    a.put("k", [x.segment(0, 5000), y])
    with b.get("k") as p:
        assert p.to_bytes() == b"x" * 5000 + b"y" * 10000
        if len(p.pieces) == 2:
            with pytest.raises(ValueError):
                p.view
        out = bytearray(15000)
        assert p.copy_to(out) == 15000 and out == bytes(p)


def test_regions_and_into(two):
    a, b = two
    src, dst = a.region(1 << 20), b.region(1 << 20)
    src.numpy()[:] = 7
    r = a.put("k", src, notify=True)
    with pytest.raises(kvferry.Mismatch) as e:
        b.get("k", into=dst.segment(0, 100))
    assert e.value.reply["size"] == 1 << 20
    p = b.get("k", into=dst, timeout=5)
    assert bytes(dst) == b"\7" * (1 << 20) == p.to_bytes()
    p.release()
    event = a.next_event(5)
    assert event["event"] == "retired" and event["key"] == "k"
    assert event["generation"] == r.generation
    a.unregister(src)
    with pytest.raises(ValueError):
        src.view
    with pytest.raises(kvferry.Invalid):  # a region without notify
        b.put("k", dst)
    part = b.alloc(50)
    a.put("j", b"j" * 50)
    b.get("j", into=part, timeout=5)
    assert bytes(part) == b"j" * 50
    part.release()


def test_deadlines(one):
    began = time.monotonic()
    with pytest.raises(kvferry.NotFound):
        one.get("no", source=one.me, timeout=0)
    assert time.monotonic() - began < 0.5
    began = time.monotonic()
    with pytest.raises(kvferry.Timeout):
        one.get("no", source=one.me, timeout=0.2)
    assert 0.15 < time.monotonic() - began < 5 * kvf.SLOW
    pending = one.start_get("no", one.me, timeout=math.inf)
    assert not pending.done()
    pending.cancel()
    with pytest.raises(kvferry.Cancelled):
        pending.result()


def test_sources(two):
    a, b = two
    d = a.daemon
    for i, source in enumerate([
            0, Worker(0), Worker(0, 0, 0), (d.peer_host, d.peer_port),
            {"source_host": d.peer_host, "source_port": d.peer_port}, {},
            None]):
        r = a.put(f"k{i}", b"x")
        assert b.get(f"k{i}", source, timeout=5).to_bytes() == b"x"
        a.put(f"m{i}", b"x")
    r = a.put("k", b"1")
    assert b.get("k", r.metadata, timeout=5).to_bytes() == b"1"
    a.cleanup("nothing")


def test_options(one):
    one.put("k", b"1", readers=2, ttl=100)
    with pytest.raises(kvferry.Exists):
        one.put("k", b"2", replace=False)
    buffer = one.alloc(100)
    with pytest.raises(kvferry.Exists):
        one.put("k", buffer, replace=False)
    assert not buffer.released  # it stays ours
    buffer.release()
    assert [one.get("k").to_bytes() for _ in range(2)] == [b"1", b"1"]
    with pytest.raises(kvferry.Consumed):
        one.get("k", one.me, timeout=5)
    with pytest.raises(kvferry.Invalid):
        one.put("k", b"1", ttl=0)
    with pytest.raises(kvferry.TooLarge):
        one.alloc(1 << 40)
    r = one.put("k", b"3")
    with pytest.raises(kvferry.Stale):
        one.get("k", generation=r.generation - 1)


def test_inline_and_large_inline(one):
    one.put("k", b"x" * 70000)
    with pytest.raises(kvferry.TooLarge):
        one.get("k", mode="inline")
    one.put("k", b"x" * 5000)
    p = one.get("k", mode="inline")
    assert p.mode == "inline" and memoryview(p).readonly
    p.release()


def test_mget(two):
    a, b = two
    a.put("a", b"1"), a.put("b", b"22" * 5000), a.put("c", b"333")
    got = b.mget([Get("a", mode="inline"), "b", Get("c", mode="inline"),
                  Get("no", timeout=0)], timeout=5)
    assert [bytes(p) for p in got[:3]] == [b"1", b"22" * 5000, b"333"]
    assert isinstance(got[3], kvferry.NotFound)
    for p in got[:3]:
        p.release()
    a.put("a", b"1")
    with pytest.raises(kvferry.Timeout):
        b.mget(["a", "no"], timeout=0.2, all_or_nothing=True)
    assert b.get("a", timeout=5).to_bytes() == b"1"


def test_administration(two):
    a, b = two
    a.put(kvferry.key_for("r", 0, 1), b"1")
    a.put(kvferry.key_for("r", 0, 2), b"1")
    assert [k["key"] for k in a.list("r")] == ["r:0_1", "r:0_2"]
    assert len(a.list("r", limit=1)) == 1
    assert a.cleanup("r", 0, 2) == 1 and a.cleanup("r") == 1
    assert a.stats()["pool"]["size"] > 0
    assert a.health()["health"] == "healthy"
    assert a.info["stage"] == 0 and b.info["stage"] == 1
    pending = b.start_get("f", timeout=30)
    a.fail("f", "no reason")
    with pytest.raises(kvferry.Failed, match="no reason"):
        pending.result()
    b.peer(0, 1, "127.0.0.1", a.daemon.peer_port)
    b.ping()


def test_drain(one):
    one.drain(timeout=1)
    assert one.daemon.proc.wait(kvf.WAIT) == 0
    with pytest.raises(kvferry.ConnectionLost):
        one.ping()


def test_what_cannot_be_put(one):
    """An array of objects holds addresses, large or small."""
    for n in 1, 100000:
        with pytest.raises(TypeError, match="objects"):
            one.put("k", np.array([None] * n, dtype=object))
    with pytest.raises(TypeError):
        one.put("k", b"1", meta=5)
    with pytest.raises(TypeError):
        one.mget("abc")
    assert one.stats()["pool"]["filling"] == 0


def test_what_cannot_be_a_source(one):
    for source in "host", ("host",), ("host", 1, 2), 1.5:
        with pytest.raises(TypeError, match="host, port"):
            one.get("k", source, timeout=0)
        with pytest.raises(TypeError, match="host, port"):
            one.push("k", b"x", source)
    with pytest.raises(TypeError, match="keys and Gets"):
        one.mget(["k", 1])


def test_integers_of_numpy(one):
    """What was worked out with numpy need not be turned into an int."""
    with one.alloc(np.prod([50, 100])) as buffer:
        buffer.numpy()[:] = np.arange(5000) % 256
        one.put("k", buffer.segment(np.int64(256), np.uint8(3)),
                readers=np.int8(2))
    assert one.get("k", timeout=np.float32(1)).to_bytes() == b"\0\1\2"
    [pending] = one.mget([kvferry.Get("k", generation=np.uint64(1))],
                         timeout=0)
    assert isinstance(pending, kvferry.KvferryError)
    with pytest.raises(kvferry.Invalid, match="float32"):
        one.put("k", b"x", readers=np.float32(2))


def test_kept_for_ever(one):
    one.put("k", b"x", ttl=math.inf)
    assert one.list("k")[0]["ttl_ms"] == 365 * 24 * 3600 * 1000
