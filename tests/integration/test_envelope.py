"""Section 1: what an engine's message looks like and how it is answered."""
import os
import random
import subprocess
import sys
import time

import msgpack
import pytest
import zmq

import kvf
from kvf import Client, pack


def raw(c, *frames, timeout=None):
    c.send_raw(*frames)
    return c.recv(timeout=timeout)


def test_req_socket_is_answered(daemon):
    with Client(daemon.endpoint, kind=zmq.REQ) as c:
        assert c.ok("ping").status == "OK"
        c.ok("hello", version=1)
        c.ok("put", b"abc", key="k")
        assert c.ok("get", key="k", mode="inline").payload == b"abc"


def test_dealer_without_delimiter_gets_none_back(client):
    client.send("ping")
    assert len(client.recv_raw()) == 1


def test_dealer_with_delimiter_gets_it_back(daemon):
    with Client(daemon.endpoint, delimiter=True) as c:
        c.send("ping")
        frames = c.recv_raw()
        assert frames[0] == b"" and len(frames) == 2


def test_delimiter_and_payload_in_one_message(daemon):
    with Client(daemon.endpoint, delimiter=True) as c:
        c.hello()
        c.ok("put", b"payload", key="k")
        assert c.ok("get", key="k", mode="inline").payload == b"payload"


@pytest.mark.parametrize("id_", [
    0, 1, -1, 2 ** 63, 2 ** 64 - 1, -2 ** 63, 1.5, "text", "", b"\0\xffbin",
    None, True, False, "x" * 1000], ids=repr)
def test_any_scalar_id_comes_back_unchanged(client, id_):
    client.send_map({"op": "ping", "id": id_})
    r = client.recv()
    assert r.status == "OK"
    assert r["id"] == id_ and type(r["id"]) is type(id_)


def test_request_without_id_has_nil_in_the_reply(client):
    client.send_map({"op": "ping"})
    r = client.recv()
    assert r.status == "OK" and r["id"] is None


def test_ids_are_not_checked_for_uniqueness(client):
    for _ in range(3):
        client.send_map({"op": "ping", "id": 7})
    assert [client.recv_any()["id"] for _ in range(3)] == [7, 7, 7]


def test_an_id_of_another_type_than_scalar_is_invalid(client):
    client.send_map({"op": "ping", "id": [1]})
    assert client.recv().status == "INVALID"


def test_huge_id_is_answered(client):
    client.send_map({"op": "ping", "id": "x" * (1 << 20)})
    assert client.recv().status in ("OK", "INVALID")
    client.ok("ping")


def test_lone_empty_frame_is_invalid(client):
    r = raw(client, b"")
    assert r.status == "INVALID" and r["id"] is None


def test_bytes_after_the_map_are_invalid_and_id_is_echoed(client):
    r = raw(client, pack({"op": "ping", "id": 5}) + b"\0")
    assert r.status == "INVALID" and r["id"] in (5, None)


@pytest.mark.parametrize("delimiter", [False, True])
def test_extra_frames_are_invalid(daemon, delimiter):
    with Client(daemon.endpoint, delimiter=delimiter) as c:
        r = raw(c, pack({"op": "put", "id": 5, "key": "k"}), b"a", b"b")
        assert r.status == "INVALID" and r["id"] == 5
        c.want("NOT_FOUND", "get", key="k", mode="inline", wait=False,
               source={"host": "127.0.0.1", "port": 1})


@pytest.mark.parametrize("frame", [
    b"\xc1", b"hello", b"\x81", b"\xdf\xff\xff\xff\xff",
    b"\x81\xa2op\xdb\xff\xff\xff\xff", b"\xc0", pack([1, 2]), pack(5),
    pack("op"), b"\x91" * 5000, b"\x81\xa1x" * 5000], ids=lambda f: f[:6].hex())
def test_not_a_map_is_invalid(client, frame):
    assert raw(client, frame).status == "INVALID"
    client.ok("ping")


@pytest.mark.parametrize("m", [
    {"id": 1}, {"op": 1, "id": 1}, {"op": None, "id": 1},
    {"op": b"ping", "id": 1}, {"op": ["ping"], "id": 1}, {"op": "", "id": 1}],
    ids=repr)
def test_op_missing_or_of_wrong_type_is_invalid(client, m):
    client.send_map(m)
    r = client.recv()
    assert r.status == "INVALID" and r["id"] == 1


@pytest.mark.parametrize("op", ["nope", "PING", "ping ", "x" * 5000,
                                "p\0ing", "layouts"])
def test_unknown_op_is_refused(client, op):
    r = client.request(op)
    assert r.status in ("INVALID", "UNSUPPORTED")


def test_unknown_keys_are_ignored(client):
    client.ok("ping", colour="blue", deep={"a": [1, {"b": None}]}, n=-5)


def test_non_string_keys_do_no_harm(client):
    for key in (1, b"\xff", None, True, 1.5):
        client.send_raw(msgpack.packb({"op": "ping", "id": 9, key: 1},
                                      use_bin_type=True))
        assert client.recv().status in ("OK", "INVALID")


def test_keys_that_are_not_utf8_do_no_harm(client):
    # {"op": "ping", "\xff\xfe": 1}
    client.send_raw(b"\x82\xa2op\xa4ping\xa2\xff\xfe\x01")
    assert client.recv().status in ("OK", "INVALID")
    client.ok("ping")


WRONG = [
    ("hello", {"version": "1"}), ("hello", {"version": -1}), ("hello", {}),
    ("hello", {"version": 1, "events": 1}),
    ("hello", {"version": 1, "session": "text"}),
    ("hello", {"version": 1, "client": 7}),
    ("put", {}), ("put", {"key": 5}), ("put", {"key": ""}),
    ("put", {"key": "k", "ttl_ms": -1}), ("put", {"key": "k", "ttl_ms": 0}),
    ("put", {"key": "k", "readers": "1"}), ("put", {"key": "k", "meta": 5}),
    ("put", {"key": "k", "checksum": 1}),
    ("put", {"key": "k", "on_duplicate": "keep"}),
    ("put", {"key": "k", "notify": "yes"}),
    ("get", {}), ("get", {"key": None}), ("get", {"key": "k", "mode": "fly"}),
    ("get", {"key": "k", "timeout_ms": -1}),
    ("get", {"key": "k", "timeout_ms": "1s"}),
    ("get", {"key": "k", "wait": 0}), ("get", {"key": "k", "from": "0"}),
    ("get", {"key": "k", "from": {"rank": 0}}),
    ("get", {"key": "k", "source": {"host": "x"}}),
    ("get", {"key": "k", "source": {"host": 1, "port": 1}}),
    ("get", {"key": "k", "generation": "1"}),
    ("get", {"key": "k", "into": {}}),
    ("alloc", {}), ("alloc", {"size": 0}), ("alloc", {"size": -4096}),
    ("alloc", {"size": 1.5}), ("alloc", {"size": "1MiB"}),
    ("free", {}), ("free", {"buffer": "1"}), ("free", {"buffer": -1}),
    ("register", {}), ("register", {"fd": 3}), ("register", {"size": 5}),
    ("unregister", {}), ("unregister", {"region": None}),
    ("release", {}), ("release", {"buffer": b"1"}),
    ("mget", {}), ("mget", {"gets": {}}), ("mget", {"gets": [1]}),
    ("cancel", {}), ("cancel", {"target": {}}),
    ("fail", {}), ("fail", {"key": 1}), ("fail", {"key": "k", "reason": 5}),
    ("cleanup", {}), ("cleanup", {"request_id": 5}),
    ("cleanup", {"request_id": "r", "from": "a"}),
    ("list", {"prefix": 5}), ("list", {"limit": -1}),
    ("peer", {}), ("peer", {"stage": 0, "rank": 0, "host": "x"}),
    ("peer", {"stage": 0, "rank": 0, "host": "127.0.0.1", "port": 70000}),
    ("peer", {"stage": 0, "rank": 0, "host": "127.0.0.1", "port": 0}),
    ("drain", {"timeout_ms": "soon"}),
]


@pytest.mark.parametrize("op,fields", WRONG,
                         ids=[f"{o}-{f}"[:60] for o, f in WRONG])
def test_wrong_field_is_invalid_and_changes_nothing(engine, op, fields):
    payload = b"x" if op == "put" else None
    if op == "get":
        fields = dict({"timeout_ms": 100, "source": engine.me}, **fields)
    engine.want("INVALID", op, payload, **fields)
    engine.ok("ping")
    assert engine.ok("list")["keys"] == []


HUGE = 2**64 - 1


def test_the_largest_values_are_values(daemon, engine):
    """u is any unsigned int, s any text."""
    engine.ok("hello", version=1, client="c" * 5000)
    engine.ok("put", b"x", key="k", ttl_ms=HUGE, readers=HUGE)
    assert engine.ok("list")["keys"][0]["readers"] == HUGE
    for _ in range(2):
        assert engine.fetch("k", timeout_ms=HUGE) == b"x"
    assert engine.ok("list", limit=HUGE, prefix="k")["keys"]
    assert engine.ok("list", limit=0)["keys"] == []
    assert engine.ok("list", prefix="k" * 5000)["keys"] == []
    for pid in (0, os.getpid() + 1, HUGE):
        engine.want("DENIED", "hello", version=1, pid=pid)
    reason = "\u00e9" * 5000
    engine.ok("fail", key="k", reason=reason)
    r = engine.want("FAILED", "get", key="k", source=engine.me)
    assert reason.startswith(r["message"]) and len(r["message"]) >= 100


@pytest.mark.parametrize("indent", range(3))
def test_a_message_cut_within_a_character_can_be_read(daemon, engine, indent):
    """So can the stats and the log, in which the same words stand."""
    host = "x" * indent + "\u20ac" * 83
    engine.want("PEER_UNREACHABLE", "get", key="k", timeout_ms=100,
                source={"host": host, "port": 9})
    assert host[:50] in str(engine.ok("stats")["peers"])
    with open(daemon.log_path, encoding="utf-8") as f:
        assert host[:50] in f.read()


@pytest.mark.parametrize("id_,target", [
    (b"\x05", b"\xcf\0\0\0\0\0\0\0\x05"), (b"\xd1\0\x05", b"\xcc\x05"),
    (b"\xff", b"\xd2\xff\xff\xff\xff"), (b"\xa1x", b"\xda\0\1x"),
    (b"\xc5\0\1x", b"\xc4\1x")])
def test_a_cancel_means_the_value_of_an_id(engine, id_, target):
    """However many bytes the client took to write it."""
    get = pack({"op": "get", "key": "k", "source": engine.me})
    engine.send_raw(bytes([get[0] + 1]) + get[1:] + b"\xa2id" + id_)
    engine.send_raw(b"\x83\xa2op\xa6cancel\xa2id\xa1c\xa6target" + target)
    got = [engine.recv_any() for _ in range(2)]
    assert sorted(r.status for r in got) == ["CANCELLED", "OK"]
    assert [r["cancelled"] for r in got if r.status == "OK"] == [1]


def test_payload_where_none_belongs_is_answered(client):
    assert client.request("ping", b"junk").status in ("OK", "INVALID")


def test_bad_input_is_counted(daemon, client):
    def total(x):
        if isinstance(x, dict):
            return sum(total(v) for k, v in x.items() if k == "malformed")\
                + sum(total(v) for v in x.values() if isinstance(v, dict))
        return x if isinstance(x, int) else 0
    before = total(client.ok("stats"))
    for _ in range(10):
        raw(client, b"\xc1")
    assert total(client.ok("stats")) >= before + 10


def test_events_asked_with_a_delimiter_are_invalid(daemon):
    with Client(daemon.endpoint, kind=zmq.REQ) as c:
        c.want("INVALID", "hello", version=1, events=True)
        c.hello()
        c.want("INVALID", "put", b"x", key="k", notify=True)
    with Client(daemon.endpoint, delimiter=True) as c:
        c.want("INVALID", "hello", version=1, events=True)


def test_frame_above_max_frame_hurts_only_its_sender(daemon, client):
    limit = client.hello()["limits"]["max_frame"]
    with Client(daemon.endpoint) as big:
        big.send_raw(pack({"op": "ping", "id": 1}), b"\0" * (limit + 1))
        try:
            assert big.recv(timeout=0.5).status in ("INVALID", "TOO_LARGE")
        except kvf.NoReply:
            pass
    client.ok("ping")
    with Client(daemon.endpoint) as c:
        c.ok("ping")


def test_many_outstanding_requests_on_one_socket(client):
    ids = [client.send("ping") for _ in range(5000)]
    assert sorted(client.recv()["id"] for _ in ids) == ids


def test_every_request_gets_exactly_one_reply(client):
    ids = [client.send(op) for op in ("ping", "nope", "put", "stats",
                                      "list") * 20]
    got = sorted(client.recv()["id"] for _ in ids)
    assert got == ids
    client.quiet()


def test_replies_may_overtake_a_waiting_get(engine):
    waiting = engine.send("get", key="late", mode="inline", timeout_ms=20000,
                          source={"host": "127.0.0.1", "port": 1})
    engine.ok("ping")
    engine.ok("cancel", target=waiting)
    assert engine.recv(waiting).status == "CANCELLED"


@pytest.mark.parametrize("seconds", [
    2, pytest.param(10, marks=pytest.mark.slow)])
def test_malformed_messages_beside_a_working_client(daemon, seconds):
    """More than 1,000 a second while another client's bytes stay right."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    good = daemon.engine()
    n = 0
    with subprocess.Popen(
            [sys.executable, os.path.join(kvf.HERE, "fuzz_client.py"),
             daemon.endpoint, str(seed)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True) as bad:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            n += 1
            data = kvf.pattern(100 * 1024, n)
            good.put(f"good{n}", data)
            assert good.fetch(f"good{n}") == data
        sent = int(bad.communicate(timeout=kvf.WAIT)[0])
    assert sent >= 1000 * seconds / kvf.SLOW
    assert daemon.alive()


def test_flood_past_twice_the_limit_leaves_others_served(daemon, client):
    limit = client.hello()["limits"]["max_outstanding"]
    assert limit >= 16384
    with Client(daemon.endpoint) as flood:
        for i in range(limit * 2 + 500):
            flood.send("get", key=f"k{i}", timeout_ms=30000, mode="inline",
                       source={"host": "127.0.0.1", "port": 1})
        client.ok("ping")
        first = flood.recv()
        assert first.status == "BUSY", first
    client.ok("ping")
