"""The ways of a key from one daemon to another: modes and transports."""
import time

import pytest

import kvf
from kvf import KIB, MIB
from test_two_daemons import ms


def test_small_key_travels_eagerly(pair):
    data = kvf.pattern(4 * KIB)
    pair.a.put("k", data)
    g = pair.b.ok("get", key="k")
    assert g["transport"] == "eager" and g["mode"] == "copy"
    assert pair.b.bytes_of(g) == data
    pair.b.ok("release", buffer=g["buffer"])


@pytest.mark.parametrize("mode", ["copy", "inline"])
@pytest.mark.parametrize("protocol,size,way", [
    ("auto", 16 * KIB, "eager"), ("auto", 16 * KIB + 1, "shm"),
    ("tcp", 64 * KIB, "eager")])
def test_a_mapped_pool_is_read_instead_of_sent(pair_of, protocol, size, way,
                                               mode):
    p = pair_of(conf={"connector": {"protocol": protocol}})
    data = kvf.pattern(size, 5)
    p.a.put("k", data)
    g = p.b.ok("get", key="k", mode=mode)
    assert g["transport"] == way and g["mode"] == mode
    if mode == "inline":
        assert g.payload == data
    else:
        assert p.b.bytes_of(g) == data
        p.b.ok("release", buffer=g["buffer"])
    p.src.assert_all_free()


def test_small_key_inline(pair):
    pair.a.ok("put", b"tiny", key="k", meta=b"m")
    g = pair.b.ok("get", key="k", mode="inline")
    assert g.payload == b"tiny" and g["meta"] == b"m"
    assert g["mode"] == "inline"


def test_auto_on_the_same_host_is_a_view(pair):
    data = kvf.pattern(3 * MIB + 5)
    pair.a.put("k", data)
    g = pair.b.ok("get", key="k")
    assert g["transport"] == "shm" and g["mode"] == "view"
    assert g["segments"][0]["path"]
    m = pair.b.map(g["segments"][0]["path"])
    assert kvf.header(m)[3] == pair.src.incarnation
    assert pair.b.bytes_of(g) == data
    assert pair.src.pool()["free"] < pair.src.pool()["size"] - 3 * MIB
    pair.b.ok("release", buffer=g["buffer"])
    pair.src.assert_all_free()


@pytest.mark.parametrize("size", [65537, MIB, 20 * MIB + 3])
def test_shm_copy(pair, size):
    data = kvf.pattern(size, 2)
    pair.a.put("k", data)
    g = pair.b.ok("get", key="k", mode="copy")
    assert g["transport"] == "shm" and g["mode"] == "copy"
    assert pair.dst.pool()["held"] >= size
    assert pair.b.bytes_of(g) == data
    pair.b.ok("release", buffer=g["buffer"])


@pytest.mark.parametrize("size", [65537, MIB, 20 * MIB + 3])
@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_tcp_copy(tcp_pair, size, mode):
    data = kvf.pattern(size, 3)
    tcp_pair.a.put("k", data)
    g = tcp_pair.b.ok("get", key="k", mode=mode)
    assert g["transport"] == "tcp" and g["mode"] == "copy"
    assert tcp_pair.b.bytes_of(g) == data
    tcp_pair.b.ok("release", buffer=g["buffer"])


@pytest.mark.parametrize("protocol", ["tcp", "shm", "auto"])
def test_get_into_segments_of_several_buffers(pair_of, protocol):
    p = pair_of(conf={"connector": {"protocol": protocol}})
    data = kvf.pattern(1000001, 4)
    half = [p.a.filled(data[:444444]), p.a.filled(data[444444:])]
    p.a.ok("put", key="k", segments=[{"buffer": x["buffer"]} for x in half])
    one, two = p.b.alloc(700000), p.b.alloc(300001)
    p.b.ok("get", key="k", into=[{"buffer": one["buffer"]},
                                 {"buffer": two["buffer"]}])
    assert p.b.peek(one) + p.b.peek(two) == data
    for x in (one, two):
        p.b.ok("free", buffer=x["buffer"])


def test_into_of_a_small_key(pair):
    pair.a.put("k", b"abc" * 100)
    b = pair.b.alloc(300)
    pair.b.ok("get", key="k", into=[{"buffer": b["buffer"]}])
    assert pair.b.peek(b) == b"abc" * 100
    pair.b.ok("free", buffer=b["buffer"])


def test_view_without_shm_is_unsupported_and_consumes_nothing(tcp_pair):
    data = kvf.pattern(200000)
    tcp_pair.a.put("k", data)
    tcp_pair.b.want("UNSUPPORTED", "get", key="k", mode="view")
    assert tcp_pair.b.fetch("k", mode="copy") == data


def test_remote_mismatch_consumes_nothing(pair):
    data = kvf.pattern(200000)
    pair.a.put("k", data)
    b = pair.b.alloc(199999)["buffer"]
    r = pair.b.want("MISMATCH", "get", key="k", into=[{"buffer": b}])
    assert r["size"] == 200000
    pair.b.ok("free", buffer=b)
    assert pair.b.fetch("k") == data


def test_remote_inline_too_large_consumes_nothing(pair):
    data = kvf.pattern(65537)
    pair.a.put("k", data)
    pair.b.want("TOO_LARGE", "get", key="k", mode="inline")
    assert pair.b.fetch("k") == data


@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_checksum_is_verified_by_the_receiver(pair_of, protocol):
    p = pair_of(conf={"connector": {"protocol": protocol}})
    for size in (5000, 300000):
        data = kvf.pattern(size)
        buf = p.a.filled(data)
        p.a.ok("put", key="k", checksum=True,
               segments=[{"buffer": buf["buffer"]}])
        p.a.fill(buf, b"\xff\xfe", at=size // 2)
        p.b.want("CORRUPT", "get", key="k", mode="copy")
        p.a.fill(buf, data[size // 2:size // 2 + 2], at=size // 2)
        g = p.b.ok("get", key="k", mode="copy")
        assert g["checksum"] == kvf.xxh3(data)
        assert p.b.bytes_of(g) == data
        p.b.ok("release", buffer=g["buffer"])


def test_timing_adds_up(pair):
    pair.a.put("k", kvf.pattern(4 * MIB))
    began = time.monotonic()
    g = pair.b.ok("get", key="k", mode="copy")
    took = ms(began) * 1000
    t = g["timing"]
    assert t["total_us"] <= took + 1000
    assert t["lookup_us"] + t["wait_us"] + t["transfer_us"] <= (
        t["total_us"] + 1000)
    pair.b.ok("release", buffer=g["buffer"])


def test_consumed_key_is_free_at_the_owner_after_the_get(pair):
    pair.a.put("k", kvf.pattern(MIB), notify=True)
    pair.b.fetch("k", mode="copy")
    e = pair.a.event(event="retired")
    assert e["reason"] == "consumed" and e["readers_done"] == 1
    pair.src.assert_all_free()


def test_local_key_wins_over_the_remote_one(pair):
    pair.a.put("k", b"remote")
    pair.b.put("k", b"local")
    g = pair.b.ok("get", key="k", mode="inline")
    assert g.payload == b"local" and g["transport"] == "local"
