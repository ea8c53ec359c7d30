"""A key goes from one daemon to another: waiting, addressing, several at once.
The ways its bytes take are in test_modes.py."""
import re
import socket
import time

import pytest

import kvf
from kvf import MIB, SLOW, until

TCP = {"connector": {"protocol": "tcp"}}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fixed_port(port, stage=0, rank=0):
    """Configuration by which that worker's metadata port is `port`."""
    return {"connector": {"zmq_port": port - 100 - 16 * rank - stage}}


def ms(began):
    return (time.monotonic() - began) * 1000


# -- waiting --------------------------------------------------------------
@pytest.mark.parametrize("mode", ["inline", "copy", "view"])
def test_get_before_put_is_answered_by_the_put(pair, mode):
    w = pair.b.send("get", key="k", mode=mode)
    pair.b.ok("ping")
    data = kvf.pattern(200000 if mode != "inline" else 2000)
    pair.a.put("k", data)
    g = pair.b.recv(w)
    assert g.status == "OK" and pair.b.bytes_of(g) == data
    if g.get("buffer"):
        pair.b.ok("release", buffer=g["buffer"])


def test_parked_get_is_answered_at_once(pair):
    pair.meet()
    took = []
    for i in range(20):
        w = pair.b.send("get", key=f"k{i}", mode="inline")
        pair.b.ok("ping")
        began = time.monotonic()
        pair.a.send("put", b"x", key=f"k{i}")
        assert pair.b.recv(w).status == "OK"
        took.append(ms(began))
        pair.a.recv()
    assert sorted(took)[10] < 10 * kvf.SLOW


def test_key_that_does_not_come_is_a_timeout(pair):
    pair.meet()
    began = time.monotonic()
    pair.b.want("TIMEOUT", "get", key="never", timeout_ms=300)
    assert 290 <= ms(began) <= 300 + 500 * kvf.SLOW


def test_default_timeout_comes_from_the_configuration(pair_of):
    p = pair_of(conf={"connector": {"get_sub_timeout_ms": 250}})
    began = time.monotonic()
    p.b.want("TIMEOUT", "get", key="never")
    assert 240 <= ms(began) <= 250 + 1000 * kvf.SLOW


def test_owner_that_is_not_there_is_unreachable_at_the_deadline(make):
    d = make(1)
    began = time.monotonic()
    d.engine().want("PEER_UNREACHABLE", "get", key="k", timeout_ms=400,
                    source={"host": "127.0.0.1", "port": free_port()})
    assert 390 <= ms(began) <= 400 + 1000 * kvf.SLOW


def test_get_whose_owner_has_not_started_yet(make):
    port = free_port()
    dst = make(1)
    b = dst.engine()
    b.ok("peer", stage=0, rank=0, host="127.0.0.1", port=port)
    w = b.send("get", key="k", timeout_ms=30000, mode="inline")
    b.ok("ping")
    src = make(0, conf=fixed_port(port))
    assert src.peer_port == port
    src.engine().ok("put", b"here", key="k")
    g = b.recv(w, timeout=20 * kvf.SLOW)
    assert g.status == "OK" and g.payload == b"here"


def test_wait_false_before_any_session_is_not_found_then_connects(pair):
    pair.a.ok("put", b"x", key="k", readers=0)
    pair.b.want("NOT_FOUND", "get", key="k", wait=False, mode="inline")
    until(lambda: pair.b.request("get", key="k", wait=False,
                                 mode="inline").status == "OK", "session up")


def test_wait_false_of_a_missing_key_is_not_found(pair):
    pair.meet()
    pair.b.want("NOT_FOUND", "get", key="k", wait=False)


def test_wait_false_with_all_readers_claimed_is_busy(pair):
    pair.meet()
    pair.a.put("k", kvf.pattern(MIB))
    g = pair.b.ok("get", key="k", mode="view")
    pair.b.want("BUSY", "get", key="k", wait=False)
    pair.b.ok("release", buffer=g["buffer"])


def test_wait_false_with_the_owner_down_is_unreachable(pair):
    pair.meet()
    pair.src.kill()
    pair.dst.wait_log(r"\[KVF PEER\] .* down")
    pair.b.want("PEER_UNREACHABLE", "get", key="k", wait=False)


def test_an_owner_that_goes_in_order_says_so(pair_of):
    """Nobody has to wait for its silence; libzmq drops what was not read yet
    when a connection ends, so it must not end behind the word."""
    p = pair_of(conf={"connector": {"peer_timeout_ms": 120000}})
    for i in range(12):
        p.meet()
        w = p.b.send("get", key="parked")
        until(lambda: p.src.stats()["peers"]["guest_asks"] == 1, "it parks")
        assert p.src.terminate() == 0
        r = p.b.recv(w)
        assert r.status == "PEER_UNREACHABLE"
        assert "draining" in r["message"]
        until(lambda: p.dst.log().count("went away: shutting down") > i,
              "its last word")
        p.src.restart()
        p.dst.knows(p.src)
        p.a = p.src.engine()


# -- generations ----------------------------------------------------------
def test_older_metadata_is_stale(pair):
    old = pair.a.put("k", b"x" * 100)["metadata"]
    pair.a.put("k", b"y" * 100)
    pair.b.want("STALE", "get", key="k", metadata=old)
    pair.b.want("STALE", "get", key="k", generation=old["generation"])
    assert pair.b.fetch("k", mode="inline") == b"y" * 100


def test_metadata_of_another_incarnation_is_stale(pair):
    m = pair.a.put("k", b"x" * 100)["metadata"]
    pair.b.want("STALE", "get", key="k",
                metadata=dict(m, incarnation=b"\x05" * 16))
    pair.b.ok("get", key="k", metadata=m, mode="inline")


def test_newer_generation_waits(pair):
    g = pair.a.put("k", b"x", readers=0)["generation"]
    w = pair.b.send("get", key="k", generation=g + 1, mode="inline")
    pair.b.ok("ping")
    assert w not in pair.b.replies
    g2 = pair.a.put("k", b"y")["generation"]
    r = pair.b.recv(w)
    assert r.status == ("OK" if g2 == g + 1 else "STALE")


# -- naming the sender ----------------------------------------------------
def test_whole_metadata_is_enough(make):
    src, dst = make(0), make(1)
    m = src.engine().put("k", b"x" * 1000)["metadata"]
    assert dst.engine().fetch(m["key"], metadata=m) == b"x" * 1000


def test_partial_metadata_is_enough(make):
    src, dst = make(0), make(1)
    m = src.engine().put("k", b"x" * 1000)["metadata"]
    assert dst.engine().fetch("k", metadata={
        "source_host": m["source_host"],
        "source_port": m["source_port"]}) == b"x" * 1000


@pytest.mark.parametrize("junk", [
    {}, {"source_host": 5}, {"source_host": "", "source_port": 0},
    {"source_port": 70000, "source_host": "127.0.0.1"},
    {"source_host": None, "source_port": None}, {"what": [1, {"a": 2}]}],
    ids=str)
def test_metadata_that_cannot_be_used_counts_as_absent(pair, junk):
    pair.a.put("k", b"x" * 1000)
    assert pair.b.fetch("k", metadata=junk) == b"x" * 1000


@pytest.mark.parametrize("metadata", [[1], "text", 7, b"bytes"])
def test_metadata_that_is_no_map_counts_as_absent(pair, metadata):
    pair.a.put("k", b"x")
    assert pair.b.fetch("k", mode="inline", metadata=metadata) == b"x"


def test_source_names_host_and_port(make):
    src, dst = make(0), make(1)
    src.engine().put("k", b"x" * 1000)
    assert dst.engine().fetch("k", source={
        "host": "127.0.0.1", "port": src.peer_port}) == b"x" * 1000


def test_from_names_the_worker(make):
    src, dst = make(0, rank=3), make(1)
    dst.knows(src)
    src.engine().put("k", b"x" * 1000)
    assert dst.engine().fetch("k", from_={"stage": 0, "rank": 3}) == (
        b"x" * 1000)


def test_from_goes_before_source_and_metadata(pair):
    m = pair.a.put("k", b"x" * 1000)["metadata"]
    dead = {"host": "127.0.0.1", "port": free_port()}
    assert pair.b.fetch("k", from_={"stage": 0}, source=dead, metadata=dict(
        m, source_port=dead["port"])) == b"x" * 1000


def test_request_id_names_key_and_stage(pair):
    pair.a.ok("put", b"x", request_id="r", from_=0, to=1)
    g = pair.b.ok("get", request_id="r", from_=0, to=1, mode="inline")
    assert g.payload == b"x"


def test_peer_section_tells_where_a_worker_is(make):
    src = make(0)
    dst = make(1, conf={"peer 0.0": {"host": "127.0.0.1",
                                     "port": src.peer_port}})
    src.engine().put("k", b"x" * 1000)
    assert dst.engine().fetch("k") == b"x" * 1000


@pytest.mark.parametrize("from_tp,to_tp,rank,owner", [
    (2, 4, 0, 0), (2, 4, 1, 0), (2, 4, 2, 1), (2, 4, 3, 1), (4, 4, 2, 2)])
def test_ranks_are_mapped_by_the_edge(make, from_tp, to_tp, rank, owner):
    edge = {"edge 0->1": {"from_tp": from_tp, "to_tp": to_tp}}
    src = make(0, rank=owner, conf=edge)
    dst = make(1, rank=rank, conf=edge)
    dst.knows(src)
    src.engine().put("k", b"x" * 1000, readers=2)
    assert dst.engine().fetch("k") == b"x" * 1000
    assert dst.engine().fetch("k", from_={"stage": 0}) == b"x" * 1000


def test_two_senders_by_tp_need_a_name(make):
    d = make(1, conf={"edge 0->1": {"from_tp": 4, "to_tp": 2}})
    r = d.engine().want("INVALID", "get", key="k", timeout_ms=500)
    assert "from" in r["message"]


def test_no_or_two_predecessors_need_a_name(make):
    r = make(0).engine().want("INVALID", "get", key="k", timeout_ms=500)
    assert "from" in r["message"]
    d = make(2, conf={"edge 0->2": {"from_tp": 1},
                      "edge 1->2": {"from_tp": 1}})
    r = d.engine().want("INVALID", "get", key="k", timeout_ms=500)
    assert "from" in r["message"]


def test_other_cluster_is_refused_with_a_reason_on_both_sides(make):
    src = make(0, conf={"worker": {"cluster": "red"}})
    dst = make(1, conf={"worker": {"cluster": "blue"}})
    dst.knows(src)
    src.engine().put("k", b"x")
    r = dst.engine().request("get", key="k", timeout_ms=700)
    assert r.status in ("PEER_UNREACHABLE", "MISMATCH", "DENIED")
    for d in (src, dst):
        d.wait_log("cluster")


# -- several at once ------------------------------------------------------
@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_a_thousand_pipelined_gets(pair_of, protocol):
    p = pair_of(conf={"connector": {"protocol": protocol}})
    n = 1000
    for i in range(n):
        p.a.send("put", f"value {i}".encode() * 20, key=f"k{i}")
    for i in range(n):
        assert p.a.recv().status == "OK"
    ids = {p.b.send("get", key=f"k{i}", mode="inline"): i for i in range(n)}
    for w, i in ids.items():
        assert p.b.recv(w).payload == f"value {i}".encode() * 20


def test_many_large_gets_at_once(tcp_pair):
    n, size = 30, MIB
    for i in range(n):
        tcp_pair.a.put(f"k{i}", kvf.pattern(size, i))
    ids = {tcp_pair.b.send("get", key=f"k{i}", mode="copy"): i
           for i in range(n)}
    for w, i in ids.items():
        g = tcp_pair.b.recv(w)
        assert g.status == "OK", dict(g)
        assert tcp_pair.b.bytes_of(g) == kvf.pattern(size, i)
        tcp_pair.b.ok("release", buffer=g["buffer"])


def test_both_directions_at_once(pair):
    pair.src.knows(pair.dst)
    for i in range(10):
        pair.a.put(f"a{i}", kvf.pattern(300000, i))
        pair.b.put(f"b{i}", kvf.pattern(300000, 50 + i))
    for i in range(10):
        assert pair.b.fetch(f"a{i}", mode="copy") == kvf.pattern(300000, i)
        assert pair.a.fetch(f"b{i}", mode="copy", from_={"stage": 1}) == (
            kvf.pattern(300000, 50 + i))


def test_window_size_and_inflight_bound_but_do_not_block(pair_of):
    edge = {"edge 0->1": {"window_size": "1MiB", "max_inflight": 2}}
    p = pair_of(conf=kvf.merge(edge, TCP))
    for i in range(12):
        p.a.put(f"k{i}", kvf.pattern(700000, i))
    ids = {p.b.send("get", key=f"k{i}", mode="copy"): i for i in range(12)}
    for w, i in ids.items():
        g = p.b.recv(w)
        assert g.status == "OK" and p.b.bytes_of(g) == kvf.pattern(700000, i)
        p.b.ok("release", buffer=g["buffer"])


# -- log lines ------------------------------------------------------------
def test_log_line_of_a_put(pair):
    r = pair.a.put("my key=\"1\"", b"x" * 100, readers=3, ttl_ms=5000)
    m = pair.src.wait_log(r"\[KVF PUT\] key=(\S+) gen=(\d+) size=100 "
                          r"readers=3 ttl_ms=5000 segments=1$")
    assert int(m[2]) == r["generation"]
    assert not re.search(r"[\s=\"]", m[1])


def test_log_line_of_a_view_says_zero_copy(pair):
    pair.a.put("k", kvf.pattern(MIB))
    pair.b.fetch("k", mode="view")
    pair.dst.wait_log(
        r"\[KVF GET\] key=k gen=\d+ size=1048576 transport=shm mode=view "
        r"attempts=\d+ lookup_us=\d+ wait_us=\d+ transfer_us=\d+ "
        r"total_us=\d+ MBps=[\d.]+ \(fast_path, zero-copy\)$")


def test_log_line_of_a_copy_does_not(tcp_pair):
    tcp_pair.a.put("k", kvf.pattern(MIB))
    tcp_pair.b.fetch("k", mode="copy")
    tcp_pair.dst.wait_log(
        r"\[KVF GET\] key=k gen=\d+ size=1048576 transport=tcp mode=copy "
        r"attempts=1 lookup_us=\d+ wait_us=\d+ transfer_us=\d+ "
        r"total_us=\d+ MBps=[\d.]+$")
    assert "zero-copy" not in tcp_pair.dst.log()


def test_log_lines_of_a_timeout(pair):
    pair.meet()
    pair.b.want("TIMEOUT", "get", key="k", timeout_ms=150)
    pair.dst.wait_log(r"\[KVF TIMEOUT\] key=k waited_ms=\d+ phase=wait "
                      r"owner=\S+")
    pair.dst.wait_log(r"\[KVF GET\] key=k failed status=TIMEOUT "
                      r"attempts=\d+ after_ms=\d+: .+")


def test_log_line_of_a_retirement(pair):
    pair.a.put("k", b"x" * 100)
    pair.b.fetch("k", mode="inline")
    pair.src.wait_log(r"\[KVF RETIRE\] key=k gen=\d+ reason=consumed "
                      r"readers_done=1 age_ms=\d+")


def test_log_lines_of_a_peer(pair):
    pair.meet()
    pair.dst.wait_log(r"\[KVF PEER\] \S+ up")
    pair.src.kill()
    pair.dst.wait_log(r"\[KVF PEER\] \S+ down")
    pair.src.start()
    pair.dst.knows(pair.src)
    a = pair.src.engine()
    a.put("again", b"y")
    until(lambda: pair.b.request("get", key="again", mode="inline",
                                 timeout_ms=2000).status == "OK", "back")


# -- names ----------------------------------------------------------------
def test_source_by_name(make):
    src, dst = make(0), make(1)
    src.engine().put("k", b"x" * 1000)
    assert dst.engine().fetch("k", source={
        "host": "localhost", "port": src.peer_port}) == b"x" * 1000


def test_name_that_does_not_resolve_blocks_nobody(make):
    d = make(1)
    b = d.engine()
    w = b.send("get", key="k", timeout_ms=1000,
               source={"host": "no-such-host.invalid", "port": 5555})
    for _ in range(50):
        began = time.monotonic()
        b.ok("ping")
        assert ms(began) < 500 * kvf.SLOW
    assert b.recv(w).status == "PEER_UNREACHABLE"


# -- fan-out --------------------------------------------------------------
def test_one_key_for_two_daemons(make):
    edge = {"edge 0->1": {"to_tp": 2}}
    src = make(0, conf=edge)
    dsts = [make(1, rank=r, conf=edge) for r in (0, 1)]
    a = src.engine()
    data = kvf.pattern(2 * MIB)
    ids = []
    for d in dsts:
        d.knows(src)
        e = d.engine()
        ids.append((e, e.send("get", key="k", mode="copy")))
        e.ok("ping")
    a.put("k", data, readers=2, notify=True)
    for e, w in ids:
        g = e.recv(w)
        assert g.status == "OK" and e.bytes_of(g) == data
        e.ok("release", buffer=g["buffer"])
    assert a.event(event="retired")["readers_done"] == 2


def test_two_parked_gets_of_one_reader(pair):
    pair.meet()
    first = pair.b.send("get", key="k", mode="inline")
    second = pair.b.send("get", key="k", mode="inline")
    pair.b.ok("ping")
    pair.a.put("k", b"x" * 100)
    got = sorted(pair.b.recv(w).status for w in (first, second))
    assert got == ["CONSUMED", "OK"]


def test_the_same_key_at_two_daemons(pair):
    pair.a.put("same", b"at src", readers=0)
    pair.b.put("same", b"at dst", readers=0)
    pair.src.knows(pair.dst)
    assert pair.a.fetch("same", mode="inline") == b"at src"
    assert pair.b.fetch("same", mode="inline") == b"at dst"


# -- one owner, two addresses ----------------------------------------------
@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_two_names_of_one_owner_do_not_end_each_others_claims(pair_of,
                                                              protocol):
    p = pair_of(conf={"connector": {"protocol": protocol,
                                    "peer_timeout_ms": int(500 * SLOW)}})
    other = {"host": "localhost", "port": p.src.peer_port}
    data = kvf.pattern(2 * MIB)
    p.a.put("k", data, notify=True)
    p.a.ok("put", b"y", key="other", readers=0)
    if protocol == "auto":
        g = p.b.ok("get", key="k", mode="view")
    parked = p.b.send("get", key="later", mode="inline", timeout_ms=8000)
    for _ in range(6):  # longer than peer_timeout_ms: pings of both
        assert p.b.ok("get", key="other", mode="inline",
                      source=other).payload == b"y"
        time.sleep(0.15 * SLOW)
    assert " reconnect " not in p.dst.log()
    assert " down" not in p.src.log()
    if protocol == "auto":
        assert p.src.pool()["claimed"] >= 2 * MIB
        assert p.b.bytes_of(g) == data
        p.b.ok("release", buffer=g["buffer"])
    else:
        assert p.b.fetch("k") == data
    assert p.a.event(event="retired")["reason"] == "consumed"
    p.a.ok("put", b"z", key="later")
    assert p.b.recv(parked).payload == b"z"


@pytest.mark.parametrize("owner, getter", [(0.5, 10), (10, 0.5)])
def test_different_peer_timeouts_do_not_make_sessions_flap(pair_of, owner,
                                                           getter):
    """The smaller is still more than a busy machine keeps a daemon waiting."""
    p = pair_of(conf={"connector": {
                    "peer_timeout_ms": int(1000 * SLOW * owner)}},
                dst_conf={"connector": {
                    "peer_timeout_ms": int(1000 * SLOW * getter)}})
    p.meet()
    time.sleep(2 * SLOW)  # four times the smaller, nothing but pings
    for d in (p.src, p.dst):
        assert " down" not in d.log() and " reconnect " not in d.log()
