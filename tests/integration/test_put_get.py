"""Section 5 on one daemon: put, get in every mode, generations, readers."""
import pytest

import kvf
from kvf import KIB, MIB, until


def test_payload_put_and_inline_get(engine):
    r = engine.ok("put", b"hello world", key="k")
    assert r["size"] == 11 and r["generation"] >= 1
    g = engine.ok("get", key="k", mode="inline")
    assert g.payload == b"hello world" and g["size"] == 11
    assert g["generation"] == r["generation"]
    assert g["mode"] == "inline" and g["transport"] == "local"
    assert "buffer" not in g or g["buffer"] in (None, 0)


def test_put_reply_has_the_metadata(daemon, engine):
    r = engine.ok("put", b"abc", key="some key")
    m = r["metadata"]
    assert m == {"source_host": "127.0.0.1",
                 "source_port": daemon.peer_port, "data_size": 3,
                 "key": "some key", "generation": r["generation"],
                 "incarnation": daemon.incarnation}


def test_get_reply_has_every_field(engine):
    engine.put("k", b"x" * 100000, meta=b"\x01\x02")
    g = engine.ok("get", key="k", mode="copy")
    assert g["size"] == 100000 and g["meta"] == b"\x01\x02"
    assert g["mode"] == "copy" and g["transport"] == "local"
    assert g["attempts"] >= 1
    t = g["timing"]
    assert set(t) >= {"lookup_us", "wait_us", "transfer_us", "total_us"}
    assert all(isinstance(v, int) and v >= 0 for v in t.values())
    assert t["total_us"] >= t["transfer_us"]
    assert sum(s["length"] for s in g["segments"]) == 100000
    engine.ok("release", buffer=g["buffer"])


@pytest.mark.parametrize("mode", ["auto", "copy", "view", "inline"])
@pytest.mark.parametrize("size", [1, 4095, 4097, 65536])
def test_local_get_of_every_mode(engine, mode, size):
    data = kvf.pattern(size, 5)
    engine.put("k", data)
    assert engine.fetch("k", mode=mode) == data


@pytest.mark.parametrize("mode", ["auto", "copy", "view"])
@pytest.mark.parametrize("size", [65537, MIB + 1, 9 * MIB])
def test_local_get_of_larger_ones(engine, mode, size):
    data = kvf.pattern(size, 6)
    engine.put("k", data)
    assert engine.fetch("k", mode=mode) == data


def test_local_get_into_buffers(engine):
    data = kvf.pattern(300000, 7)
    engine.put("k", data)
    a, b = engine.alloc(200000), engine.alloc(150000)
    r = engine.ok("get", key="k", into=[
        {"buffer": a["buffer"]},
        {"buffer": b["buffer"], "offset": 50000}])
    assert r["size"] == 300000
    assert engine.peek(a) + engine.peek(b, 100000, 50000) == data
    for x in (a, b):
        engine.ok("free", buffer=x["buffer"])


def test_multi_segment_put_is_one_payload(engine):
    data = kvf.pattern(500000, 8)
    a, b = engine.filled(data[:300000]), engine.filled(b"??" + data[300000:])
    r = engine.ok("put", key="k", segments=[
        {"buffer": a["buffer"]}, {"buffer": b["buffer"], "offset": 2}])
    assert r["size"] == 500000
    assert engine.fetch("k") == data


def test_part_of_a_buffer(engine):
    data = kvf.pattern(10000)
    b = engine.filled(data)
    engine.ok("put", key="k", segments=[
        {"buffer": b["buffer"], "offset": 123, "length": 4567}])
    assert engine.fetch("k", mode="copy") == data[123:123 + 4567]


def test_empty_payload_is_invalid(engine):
    engine.want("INVALID", "put", b"", key="k")


def test_payload_above_inline_max_is_too_large(engine):
    most = engine.info["limits"]["inline_max"]
    engine.want("TOO_LARGE", "put", b"x" * (most + 1), key="k")
    engine.ok("put", b"x" * most, key="k")
    assert engine.fetch("k", mode="inline") == b"x" * most


def test_inline_get_of_more_is_too_large_and_consumes_nothing(engine):
    most = engine.info["limits"]["inline_max"]
    data = kvf.pattern(most + 1)
    engine.put("k", data)
    engine.want("TOO_LARGE", "get", key="k", mode="inline")
    assert engine.fetch("k") == data


def test_into_of_wrong_length_is_mismatch_with_the_size(engine):
    engine.put("k", b"x" * 5000)
    for n in (4999, 5001):
        b = engine.alloc(n)["buffer"]
        r = engine.want("MISMATCH", "get", key="k", into=[{"buffer": b}])
        assert r["size"] == 5000
        engine.ok("free", buffer=b)
    assert engine.fetch("k") == b"x" * 5000


def test_into_naming_a_byte_twice_is_invalid(engine):
    engine.put("k", b"x" * 5000)
    b = engine.alloc(5000)["buffer"]
    engine.want("INVALID", "get", key="k", into=[
        {"buffer": b, "offset": 0, "length": 2501},
        {"buffer": b, "offset": 2500, "length": 2499}])
    assert engine.fetch("k") == b"x" * 5000
    engine.ok("free", buffer=b)


def test_meta_comes_back_and_is_bounded(engine):
    most = engine.info["limits"]["max_meta"]
    engine.ok("put", b"x", key="k", meta=b"m" * most)
    assert engine.ok("get", key="k", mode="inline")["meta"] == b"m" * most
    r = engine.request("put", b"x", key="k", meta=b"m" * (most + 1))
    assert r.status in ("INVALID", "TOO_LARGE")


@pytest.mark.parametrize("key", [
    "a", "k" * 1024, "ключ", "with space = \" \\ quote", "\x01\x02\n\t",
    "\0", "é" * 512, "req-1:0_1"], ids=lambda k: repr(k[:12]))
def test_any_utf8_key_of_1_to_1024_bytes(engine, key):
    engine.ok("put", b"x", key=key)
    assert engine.fetch(key, mode="inline") == b"x"


def test_longer_or_broken_keys_are_invalid(engine):
    engine.want("INVALID", "put", b"x", key="k" * 1025)
    engine.want("INVALID", "put", b"x", key="")
    # A str that is not UTF-8: {"op":"put","id":3,"key":"\xff\xfe"}
    engine.send_raw(b"\x83\xa2op\xa3put\xa2id\x03\xa3key\xa2\xff\xfe", b"x")
    assert engine.recv().status == "INVALID"


def test_key_by_request_id_and_stages(engine):
    engine.ok("put", b"x", request_id="r1", from_=0, to=1)
    assert [k["key"] for k in engine.ok("list")["keys"]] == ["r1:0_1"]
    g = engine.ok("get", request_id="r1", from_=0, to=1, mode="inline")
    assert g.payload == b"x"
    engine.ok("put", b"y", key="r2:0_1")
    engine.ok("fail", request_id="r2", from_=0, to=1)
    engine.want("FAILED", "get", key="r2:0_1", mode="inline",
                source=engine.me)


def test_a_request_id_as_long_as_its_key_may_be(engine):
    rid = "r" * 1020
    engine.ok("put", b"x", request_id=rid, from_=0, to=1)
    assert engine.fetch(rid + ":0_1", mode="inline") == b"x"
    engine.want("INVALID", "put", b"x", request_id=rid, from_=0, to=10)
    engine.want("INVALID", "put", b"x", request_id=rid + "r", from_=0, to=1)
    engine.ok("put", b"x", request_id=rid, from_=0, to=1)
    assert engine.ok("cleanup", request_id=rid)["count"] == 1


def test_checksum_is_xxh3_of_the_payload(engine):
    data = kvf.pattern(100000, 2)
    engine.put("k", data, checksum=True, readers=3)
    for mode in ("copy", "view", "auto"):
        g = engine.ok("get", key="k", mode=mode)
        assert g["checksum"] == kvf.xxh3(data)
        engine.ok("release", buffer=g["buffer"])


def test_checksum_over_several_segments(engine):
    data = kvf.pattern(200001, 2)
    a, b = engine.filled(data[:77777]), engine.filled(data[77777:])
    engine.ok("put", key="k", checksum=True, segments=[
        {"buffer": a["buffer"]}, {"buffer": b["buffer"]}])
    g = engine.ok("get", key="k", mode="copy")
    assert g["checksum"] == kvf.xxh3(data)
    engine.ok("release", buffer=g["buffer"])


def test_bytes_changed_after_a_checksummed_put_are_corrupt(engine):
    b = engine.filled(b"x" * 5000)
    engine.ok("put", key="k", checksum=True,
              segments=[{"buffer": b["buffer"]}])
    engine.fill(b, b"!", at=2500)
    engine.want("CORRUPT", "get", key="k", mode="copy")
    engine.want("CORRUPT", "get", key="k", mode="inline")
    engine.fill(b, b"x", at=2500)
    assert engine.fetch("k", mode="copy") == b"x" * 5000


# -- generations ----------------------------------------------------------
def test_generations_increase(engine):
    gens = [engine.ok("put", b"x", key=k)["generation"]
            for k in ("a", "b", "a", "c", "a")]
    assert gens == sorted(set(gens))


def test_replace_serves_the_newer(engine):
    engine.put("k", b"old" * 3000)
    g = engine.put("k", b"new" * 3000)["generation"]
    r = engine.ok("get", key="k", mode="inline")
    assert r.payload == b"new" * 3000 and r["generation"] == g


def test_reject_of_a_duplicate_is_exists(engine):
    engine.put("k", b"old")
    b = engine.filled(b"new")["buffer"]
    engine.want("EXISTS", "put", key="k", on_duplicate="reject",
                segments=[{"buffer": b}])
    engine.ok("free", buffer=b)
    assert engine.fetch("k", mode="inline") == b"old"


def test_reject_without_a_duplicate_is_ok(engine):
    engine.ok("put", b"x", key="k", on_duplicate="reject")


def test_generation_of_a_get(engine):
    g = engine.ok("put", b"x", key="k", readers=0)["generation"]
    assert engine.ok("get", key="k", generation=g,
                     mode="inline").payload == b"x"
    engine.want("STALE", "get", key="k", generation=g - 1, mode="inline")


def test_get_of_a_newer_generation_waits_for_it(engine):
    g = engine.ok("put", b"x", key="k", readers=0)["generation"]
    w = engine.send("get", key="k", generation=g + 1, mode="inline",
                    source=engine.me, timeout_ms=10000)
    engine.ok("ping")
    assert w not in engine.replies
    g2 = engine.ok("put", b"z", key="k")["generation"]
    r = engine.recv(w)
    if g2 == g + 1:
        assert r.status == "OK" and r.payload == b"z"
    else:
        assert r.status == "STALE"


def test_replace_lets_a_reader_finish_on_the_old_bytes(daemon, engine):
    old, new = kvf.pattern(200000, 1), kvf.pattern(200000, 2)
    engine.put("k", old)
    g = engine.ok("get", key="k", mode="view")
    engine.put("k", new)
    assert engine.bytes_of(g) == old
    assert daemon.pool()["draining"] + daemon.pool()["claimed"] >= 200000
    engine.ok("release", buffer=g["buffer"])
    assert engine.fetch("k") == new


# -- readers --------------------------------------------------------------
@pytest.mark.parametrize("readers", [1, 2, 5])
def test_n_readers_then_consumed(engine, readers):
    engine.ok("put", b"x", key="k", readers=readers)
    for _ in range(readers):
        assert engine.fetch("k", mode="inline") == b"x"
    engine.want("CONSUMED", "get", key="k", mode="inline", source=engine.me)


def test_any_number_of_readers_with_0(daemon, engine):
    engine.ok("put", b"x", key="k", readers=0)
    for _ in range(50):
        assert engine.fetch("k", mode="inline") == b"x"
    assert engine.ok("list")["keys"][0]["state"] == "published"


def test_view_counts_at_release(engine):
    engine.put("k", b"x" * 100000, notify=True)
    g = engine.ok("get", key="k", mode="view")
    engine.ok("ping")
    assert not engine.events
    engine.ok("release", buffer=g["buffer"])
    assert engine.event(event="retired")["reason"] == "consumed"


def test_all_readers_claimed_and_wait_false_is_busy(engine):
    m = engine.put("k", b"x" * 100000)["metadata"]
    g = engine.ok("get", key="k", mode="view")
    engine.want("BUSY", "get", key="k", wait=False, metadata=m)
    engine.ok("release", buffer=g["buffer"])


def test_parked_get_takes_the_reader_of_a_dead_claim(daemon, engine,
                                                     other_process):
    engine.put("k", b"x" * 100000)
    e = other_process(daemon)
    e.ok("get", key="k", mode="view")
    w = engine.send("get", key="k", mode="copy", timeout_ms=20000,
                    source=engine.me)
    engine.ok("ping")
    assert w not in engine.replies
    e.kill()
    r = engine.recv(w)
    # The engine died with its view: the reader was not done.
    assert r.status in ("OK", "CONSUMED")
    if r.status == "OK":
        assert engine.bytes_of(r) == b"x" * 100000
        engine.ok("release", buffer=r["buffer"])


def test_parked_local_get_is_answered_by_the_put(engine):
    w = engine.send("get", key="soon", source=engine.me, mode="inline")
    engine.ok("ping")
    assert w not in engine.replies
    engine.ok("put", b"here", key="soon")
    r = engine.recv(w)
    assert r.status == "OK" and r.payload == b"here"


# -- ttl and events -------------------------------------------------------
def test_ttl_passes(daemon, engine):
    engine.put("k", b"x" * 5000, ttl_ms=1000, notify=True)
    e = engine.event(event="retired")
    assert e["reason"] == "expired" and e["readers_done"] == 0
    engine.want("EXPIRED", "get", key="k", mode="inline", source=engine.me)


def test_ttl_does_not_take_bytes_from_a_reader(daemon, engine):
    data = kvf.pattern(300000, 3)
    engine.put("k", data, ttl_ms=150, notify=True)
    g = engine.ok("get", key="k", mode="view")
    until(lambda: daemon.pool()["draining"] > 0
          or engine.ok("list")["keys"][0]["state"] != "published",
          "expired under the reader")
    assert engine.bytes_of(g) == data
    other = engine.filled(b"\xee" * 1000000)
    assert engine.bytes_of(g) == data
    engine.ok("free", buffer=other["buffer"])
    engine.ok("release", buffer=g["buffer"])
    assert engine.event(event="retired")["reason"] in ("expired", "consumed")


def retire(engine, reason):
    if reason == "consumed":
        engine.fetch("r:0_1", mode="inline")
    elif reason == "cleanup":
        engine.ok("cleanup", request_id="r")
    elif reason == "replaced":
        engine.ok("put", b"new", key="r:0_1")
    elif reason == "failed":
        engine.ok("fail", key="r:0_1", reason="no")


@pytest.mark.parametrize("reason,done", [
    ("consumed", 1), ("expired", 0), ("cleanup", 0), ("replaced", 0),
    ("failed", 0)])
def test_notify_tells_why(engine, reason, done):
    ttl = {"ttl_ms": 100} if reason == "expired" else {}
    g = engine.put("r:0_1", b"x" * 100, notify=True, **ttl)["generation"]
    retire(engine, reason)
    e = engine.event(event="retired")
    assert e == {"event": "retired", "key": "r:0_1", "generation": g,
                 "reason": reason, "readers_done": done}


def test_without_notify_there_is_no_event(engine):
    engine.put("k", b"x")
    engine.fetch("k", mode="inline")
    engine.quiet()


def test_list_tells_readers_claims_and_sizes(engine):
    engine.put("a", b"x" * 5000, readers=3, ttl_ms=60000)
    engine.put("b", b"y" * 70000)
    g = engine.ok("get", key="a", mode="view")
    keys = {k["key"]: k for k in engine.ok("list")["keys"]}
    a = keys["a"]
    assert set(a) >= {"key", "state", "size", "generation", "readers",
                      "claims", "age_ms", "ttl_ms"}
    assert a["state"] == "published" and a["size"] == 5000
    assert a["readers"] == 3 and a["claims"] == 1
    assert keys["b"]["size"] == 70000
    engine.ok("release", buffer=g["buffer"])
    assert [k["key"] for k in engine.ok("list", prefix="b")["keys"]] == ["b"]
    assert len(engine.ok("list", limit=1)["keys"]) == 1


def test_put_does_not_wait_for_readers(engine):
    for i in range(200):
        engine.put(f"k{i}", bytes([i]) * (4 * KIB))
    for i in range(200):
        assert engine.fetch(f"k{i}") == bytes([i]) * (4 * KIB)
