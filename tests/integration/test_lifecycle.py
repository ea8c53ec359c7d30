"""fail, cleanup, cancel, tombstones, mget, drain, stats: section 5's rules."""
import os
import signal
import time

import pytest

import kvf
from kvf import MIB, until

# -- fail, cleanup, tombstones --------------------------------------------


def test_fail_answers_waiting_and_later_gets_with_its_reason(pair):
    w = pair.b.send("get", key="k")
    pair.b.ok("ping")
    pair.a.ok("fail", key="k", reason="prefill ran out of paper")
    r = pair.b.recv(w)
    assert r.status == "FAILED"
    assert "prefill ran out of paper" in r["message"]
    r = pair.b.want("FAILED", "get", key="k")
    assert "prefill ran out of paper" in r["message"]


def test_fail_retires_a_live_generation(daemon, engine):
    engine.put("k", b"x" * 100000, notify=True)
    engine.ok("fail", key="k")
    assert engine.event(event="retired")["reason"] == "failed"
    daemon.assert_all_free()


def test_put_lifts_a_failure(pair):
    pair.a.ok("fail", key="k")
    pair.b.want("FAILED", "get", key="k")
    pair.a.put("k", b"after all")
    assert pair.b.fetch("k", mode="inline") == b"after all"


@pytest.mark.parametrize("how,status", [
    ("consumed", "CONSUMED"), ("expired", "EXPIRED"), ("failed", "FAILED")])
def test_tombstone_is_told_and_lifted_by_a_put(pair, how, status):
    pair.a.put("k", b"x", notify=True, ttl_ms=1500)
    if how == "consumed":
        pair.b.fetch("k", mode="inline")
    elif how == "failed":
        pair.a.ok("fail", key="k")
    pair.a.event(event="retired", reason=how)
    pair.b.want(status, "get", key="k", mode="inline")
    states = {k["key"]: k["state"] for k in pair.a.ok("list")["keys"]}
    assert states.get("k") == how
    pair.a.put("k", b"again")
    assert pair.b.fetch("k", mode="inline") == b"again"


def test_get_of_a_newer_generation_passes_a_tombstone(pair):
    g = pair.a.put("k", b"x", notify=True)["generation"]
    pair.b.fetch("k", mode="inline")
    pair.a.event(event="retired")
    pair.b.want("TIMEOUT", "get", key="k", generation=g + 1, timeout_ms=200)


def test_tombstone_goes_after_its_ttl(pair):
    pair.meet()
    pair.a.put("k", b"x", ttl_ms=300)
    pair.b.fetch("k", mode="inline")
    until(lambda: pair.b.request("get", key="k", wait=False,
                                 mode="inline").status == "NOT_FOUND",
          "forgotten")


def test_replace_and_cleanup_leave_no_tombstone(pair):
    pair.a.put("r:0_1", b"x")
    pair.b.request("get", key="nope", timeout_ms=100)
    pair.a.ok("cleanup", request_id="r")
    pair.b.want("NOT_FOUND", "get", key="r:0_1", wait=False)


def test_parked_get_beyond_the_readers_is_answered_consumed(pair):
    pair.a.put("k", kvf.pattern(MIB))
    g = pair.b.ok("get", key="k", mode="view")
    w = pair.b.send("get", key="k")
    pair.b.ok("ping")
    assert w not in pair.b.replies
    pair.b.ok("release", buffer=g["buffer"])
    assert pair.b.recv(w).status == "CONSUMED"


def test_cleanup_takes_every_edge_of_the_request(daemon, engine):
    for key in ("r:0_1", "r:0_2", "r:1_2", "rr:0_1", "r"):
        engine.put(key, b"x" * 5000)
    assert engine.ok("cleanup", request_id="r")["count"] == 3
    assert sorted(k["key"] for k in engine.ok("list")["keys"]) == [
        "r", "rr:0_1"]


def test_cleanup_of_one_edge(engine):
    for key in ("r:0_1", "r:0_2"):
        engine.put(key, b"x")
    assert engine.ok("cleanup", request_id="r", from_=0, to=1)["count"] == 1
    assert [k["key"] for k in engine.ok("list")["keys"]] == ["r:0_2"]


def test_cleanup_of_nothing_counts_nothing(engine):
    assert engine.ok("cleanup", request_id="no such")["count"] == 0


def test_cleanup_cancels_parked_gets(pair):
    pair.meet()
    w = pair.b.send("get", key="r:0_1")
    until(lambda: (pair.a.ok("cleanup", request_id="r"),
                   pair.b.sock.poll(10))[1], "cancelled")
    assert pair.b.recv(w).status == "CANCELLED"


def test_cleanup_of_a_claimed_key_waits_for_its_reader(pair):
    data = kvf.pattern(MIB)
    pair.a.put("r:0_1", data)
    g = pair.b.ok("get", key="r:0_1", mode="view")
    assert pair.a.ok("cleanup", request_id="r")["count"] == 1
    p = pair.src.pool()
    assert p["free"] <= p["size"] - kvf.HEADER - MIB
    assert pair.b.bytes_of(g) == data
    pair.b.ok("release", buffer=g["buffer"])
    pair.src.assert_all_free()


def test_any_session_may_replace_fail_or_clean_up(daemon, engine):
    other = daemon.engine()
    engine.put("r:0_1", b"x")
    other.put("r:0_1", b"y")
    other.ok("fail", key="r:0_1")
    engine.put("r:0_1", b"z")
    assert other.ok("cleanup", request_id="r")["count"] == 1


# -- cancel ---------------------------------------------------------------
def cancel(c, w):
    assert c.ok("cancel", target=w)["cancelled"] == 1
    assert c.recv(w).status == "CANCELLED"


def test_cancel_while_connecting(make):
    b = make(1).engine()
    w = b.send("get", key="k", source={"host": "127.0.0.1", "port": 1})
    cancel(b, w)


def test_cancel_while_parked_consumes_nothing(pair):
    pair.meet()
    w = pair.b.send("get", key="k")
    pair.b.ok("ping")
    cancel(pair.b, w)
    pair.a.put("k", b"still here")
    assert pair.b.fetch("k", mode="inline") == b"still here"


def test_cancel_while_the_owner_stands_still(pair):
    pair.meet()
    pair.src.stop()
    try:
        w = pair.b.send("get", key="k")
        pair.b.ok("ping")
        cancel(pair.b, w)
    finally:
        pair.src.cont()


def test_cancel_during_the_transfer(tcp_pair):
    """Whichever comes first, the reply is one, and nothing is lost."""
    data = kvf.pattern(24 * MIB)
    tcp_pair.a.put("k", data, readers=0)
    tcp_pair.b.fetch("k", mode="copy")
    for delay in (0, 0.0005, 0.001, 0.002, 0.004, 0.008):
        buf = tcp_pair.b.alloc(len(data))
        w = tcp_pair.b.send("get", key="k", into=[{"buffer": buf["buffer"]}])
        time.sleep(delay)  # the moment is what varies
        n = tcp_pair.b.ok("cancel", target=w)["cancelled"]
        r = tcp_pair.b.recv(w)
        assert r.status == ("CANCELLED" if n else "OK")
        # Nothing more is written to `into` once the reply is here.
        tcp_pair.b.fill(buf, b"\x5a" * len(data))
        tcp_pair.b.ok("ping")
        assert tcp_pair.b.peek(buf) == b"\x5a" * len(data)
        tcp_pair.b.ok("free", buffer=buf["buffer"])
    assert tcp_pair.b.fetch("k", mode="copy") == data
    tcp_pair.dst.assert_all_free()


def test_cancel_of_nothing_counts_nothing(engine):
    assert engine.ok("cancel", target=424242)["cancelled"] == 0


def test_cancel_takes_all_of_that_id_in_the_session(daemon, engine):
    for _ in range(3):
        engine.send_map({"op": "get", "key": "k", "id": "same",
                         "source": engine.me})
    second = daemon.client()
    second.hello(session=engine.session)
    second.send_map({"op": "get", "key": "k", "id": "same",
                     "source": engine.me})
    engine.ok("ping")
    second.ok("ping")
    assert engine.ok("cancel", target="same")["cancelled"] == 4
    assert {engine.recv("same").status for _ in range(3)} == {"CANCELLED"}
    assert second.recv("same").status == "CANCELLED"


def test_cancel_of_another_session_is_not_possible(daemon, engine):
    w = engine.send("get", key="k", source=engine.me)
    engine.ok("ping")
    assert daemon.engine().ok("cancel", target=w)["cancelled"] == 0
    cancel(engine, w)


def test_cancel_of_an_mget(pair):
    w = pair.b.send("mget", gets=[{"key": f"k{i}"} for i in range(5)])
    pair.b.ok("ping")
    assert pair.b.ok("cancel", target=w)["cancelled"] == 1
    r = pair.b.recv(w)
    assert r.status == "CANCELLED" or all(
        x["status"] == "CANCELLED" for x in r["results"])


# -- mget -----------------------------------------------------------------
def test_mget_has_one_result_a_get(pair):
    for i in range(100):
        pair.a.put(f"k{i}", kvf.pattern(2000 + i, i))
    r = pair.b.ok("mget", gets=[{"key": f"k{i}", "mode": "copy"}
                                for i in range(100)])
    assert len(r["results"]) == 100
    for i, g in enumerate(r["results"]):
        assert g["status"] == "OK"
        assert pair.b.bytes_of(kvf.Reply(g)) == kvf.pattern(2000 + i, i)
        pair.b.ok("release", buffer=g["buffer"])


def test_mget_results_are_independent(pair):
    pair.meet()
    pair.a.put("there", b"x")
    pair.a.ok("fail", key="failed")
    r = pair.b.ok("mget", timeout_ms=300, gets=[
        {"key": "there", "mode": "inline"}, {"key": "failed"},
        {"key": "never"}, {"key": "no", "wait": False}])
    assert [g["status"] for g in r["results"]] == [
        "OK", "FAILED", "TIMEOUT", "NOT_FOUND"]
    assert r.payload == b"x"


def test_mget_inline_payloads_are_concatenated_in_order(pair):
    sizes = [5, 1000, 1, 60000, 17]
    for i, n in enumerate(sizes):
        pair.a.put(f"k{i}", kvf.pattern(n, i))
    r = pair.b.ok("mget", gets=[{"key": f"k{i}", "mode": "inline"}
                                for i in range(5)])
    assert [g["size"] for g in r["results"]] == sizes
    assert r.payload == b"".join(kvf.pattern(n, i)
                                 for i, n in enumerate(sizes))


def test_mget_inline_of_more_than_a_frame_is_too_large(pair_of):
    """Each for itself: what does not fit is not read either."""
    p = pair_of(conf={"connector": {"max_frame": "256KiB"}})
    for i in range(6):
        p.a.put(f"k{i}", kvf.pattern(60000, i))
    r = p.b.ok("mget", gets=[{"key": f"k{i}", "mode": "inline"}
                             for i in range(6)])
    said = [g["status"] for g in r["results"]]
    assert sorted(said) == ["OK"] * 4 + ["TOO_LARGE"] * 2
    assert r.payload == b"".join(kvf.pattern(60000, i) for i in range(6)
                                 if said[i] == "OK")
    for i in range(6):
        if said[i] == "TOO_LARGE":
            assert p.b.fetch(f"k{i}") == kvf.pattern(60000, i)


@pytest.mark.parametrize("where", ["peer", "own"])
def test_mget_all_or_nothing_too_large_consumes_nothing(pair_of, where):
    p = pair_of(conf={"connector": {"max_frame": "256KiB"}})
    owner = p.a if where == "peer" else p.b
    for i in range(6):
        owner.put(f"k{i}", kvf.pattern(60000, i))
    r = p.b.want("TOO_LARGE", "mget", all_or_nothing=True, timeout_ms=5000,
                 gets=[{"key": f"k{i}", "mode": "inline"} for i in range(6)])
    assert "OK" not in [g["status"] for g in r["results"]]
    assert r.payload is None
    for i in range(6):
        assert p.b.fetch(f"k{i}", timeout_ms=5000) == kvf.pattern(60000, i)


def test_mget_all_or_nothing_succeeds_as_a_whole(pair):
    for i in range(4):
        pair.a.put(f"k{i}", kvf.pattern(200000, i))
    r = pair.b.ok("mget", all_or_nothing=True,
                  gets=[{"key": f"k{i}", "mode": "copy"} for i in range(4)])
    for i, g in enumerate(r["results"]):
        assert g["status"] == "OK"
        assert pair.b.bytes_of(kvf.Reply(g)) == kvf.pattern(200000, i)
        pair.b.ok("release", buffer=g["buffer"])


def test_mget_all_or_nothing_fails_as_a_whole(pair):
    data = kvf.pattern(200000)
    pair.a.put("good", data)
    pair.a.ok("fail", key="bad")
    r = pair.b.want("FAILED", "mget", all_or_nothing=True, timeout_ms=3000,
                    gets=[{"key": "good", "mode": "copy"}, {"key": "bad"}])
    assert [g["status"] for g in r["results"]] == ["CANCELLED", "FAILED"]
    assert pair.b.fetch("good") == data  # nothing consumed


def test_mget_all_or_nothing_waits_for_the_last(pair):
    pair.a.put("k0", b"a" * 100)
    w = pair.b.send("mget", all_or_nothing=True, gets=[
        {"key": "k0", "mode": "inline"}, {"key": "k1", "mode": "inline"}])
    pair.b.ok("ping")
    assert w not in pair.b.replies
    pair.a.put("k1", b"b" * 100)
    r = pair.b.recv(w)
    assert r.status == "OK" and r.payload == b"a" * 100 + b"b" * 100


def test_mget_all_or_nothing_names_what_did_not_come(pair):
    """Not the one that waits for it, though its deadline is the same."""
    pair.a.put("k0", b"a" * 100000)
    for keys in (["k0", "k1"], ["k1", "k0"]):
        r = pair.b.want("TIMEOUT", "mget", all_or_nothing=True,
                        timeout_ms=200, gets=[{"key": k} for k in keys])
        got = {k: x["status"] for k, x in zip(keys, r["results"])}
        assert got == {"k0": "CANCELLED", "k1": "TIMEOUT"}, r
    r = pair.b.want("TIMEOUT", "mget", all_or_nothing=True, gets=[
        {"key": "k0", "timeout_ms": 200}, {"key": "k1"}])
    assert r["results"][0]["status"] == "TIMEOUT", r


def test_empty_mget_is_answered(engine):
    assert engine.request("mget", gets=[]).status in ("OK", "INVALID")


# -- stats, health, peer --------------------------------------------------
def find(x, name):
    """Every value under that name in a nested map."""
    out = []
    if isinstance(x, dict):
        for k, v in x.items():
            out += ([v] if k == name else []) + find(v, name)
    return out


def test_stats_count_every_status(engine):
    engine.want("INVALID", "put", b"", key="k")
    engine.ok("ping")
    s = engine.ok("stats")
    for status in kvf.STATUSES:
        got = [v for v in find(s, status) if isinstance(v, int)]
        assert got, f"no counter of {status}"
    assert max(v for v in find(s, "INVALID") if isinstance(v, int)) >= 1


def test_pool_figures_always_add_up(daemon, engine):
    def whole():
        p = daemon.pool()
        return sum(p[k] for k in ("free", "filling", "published", "claimed",
                                  "draining", "receiving", "held"))
    size = engine.info["pool"]["size"] - kvf.HEADER
    engine.alloc(100000)
    assert whole() == size
    engine.put("k", b"x" * 200000)
    assert daemon.pool()["published"] >= 200000
    assert whole() == size
    g = engine.ok("get", key="k", mode="view")
    assert daemon.pool()["claimed"] >= 200000
    assert whole() == size
    engine.ok("release", buffer=g["buffer"])
    assert whole() == size


def test_health_of_a_well_daemon(client):
    """Once it is not kept waiting: a loop that lagged just now is a reason."""
    def well():
        r = client.ok("health")
        return r["health"] == "healthy" and r["reasons"] == []
    until(well, "healthy")


def test_peer_sets_and_replaces(make):
    src, dst = make(0), make(1)
    b = dst.engine()
    b.ok("peer", stage=0, rank=0, host="127.0.0.1", port=1)
    dst.knows(src)
    src.engine().put("k", b"x")
    assert b.fetch("k", mode="inline") == b"x"


# -- drain ----------------------------------------------------------------
def test_drain_stops_puts_and_exits_with_0(daemon, engine):
    engine.put("k", kvf.pattern(200000))
    g = engine.ok("get", key="k", mode="view")
    engine.send("drain", timeout_ms=5000)
    engine.want("SHUTTING_DOWN", "put", b"x", key="new")
    engine.ok("release", buffer=g["buffer"])
    assert daemon.proc.wait(kvf.WAIT) == 0


def test_drain_ends_at_its_timeout(daemon, engine):
    engine.put("k", kvf.pattern(200000))
    engine.ok("get", key="k", mode="view")
    began = time.monotonic()
    engine.send("drain", timeout_ms=500)
    assert daemon.proc.wait(kvf.WAIT) == 0
    assert 0.4 <= time.monotonic() - began <= 0.5 + 2 * kvf.SLOW


def test_sigterm_lets_a_reader_finish(pair):
    data = kvf.pattern(MIB)
    pair.a.put("k", data)
    g = pair.b.ok("get", key="k", mode="view")
    pair.src.proc.send_signal(signal.SIGTERM)
    assert pair.b.bytes_of(g) == data
    pair.b.ok("release", buffer=g["buffer"])
    assert pair.src.proc.wait(kvf.WAIT) == 0


def test_drain_answers_at_once_who_waits_for_a_put(pair_of):
    """No put is taken any more, so nothing is left to wait for. Who waits for a
    reader of what is there waits on."""
    p = pair_of(conf={"connector": {"drain_ms": 30000}})
    p.meet()
    p.a.put("k", kvf.pattern(200000))
    g = p.b.ok("get", key="k", mode="copy", timeout_ms=60000)
    p.b.ok("release", buffer=g["buffer"])
    p.a.put("claimed", kvf.pattern(200000))
    g = p.b.ok("get", key="claimed", mode="view")
    own = p.a.send("get", key="never", source=p.a.me, timeout_ms=0)
    far = p.b.send("get", key="never", timeout_ms=60000)
    reader = p.b.send("get", key="claimed", mode="copy", timeout_ms=60000)
    until(lambda: p.src.stats()["keys"]["parked"] == 3, "three wait")
    p.src.proc.send_signal(signal.SIGTERM)
    for c, w, status in ((p.a, own, "SHUTTING_DOWN"),
                         (p.b, far, "PEER_UNREACHABLE")):
        r = c.recv(w)
        assert r.status == status and "draining" in r["message"], dict(r)
    p.b.want("PEER_UNREACHABLE", "get", key="later", timeout_ms=60000)
    p.b.want("NOT_FOUND", "get", key="later", wait=False)
    p.b.ok("release", buffer=g["buffer"])
    assert p.b.recv(reader).status == "CONSUMED"
    assert p.src.proc.wait(kvf.WAIT) == 0


def test_draining_getter_still_gets_what_comes(pair_of):
    """Its own gets wait at an owner that does take puts."""
    p = pair_of(conf={"connector": {"drain_ms": 30000}})
    p.meet()
    w = p.b.send("get", key="k", mode="inline", timeout_ms=60000)
    until(lambda: p.src.stats()["keys"]["parked"] == 1, "it waits")
    p.b.ok("drain")
    p.b.want("SHUTTING_DOWN", "get", key="k")
    p.a.put("k", b"late")
    assert p.b.recv(w).payload == b"late"
    assert p.dst.proc.wait(kvf.WAIT) == 0


def test_sigterm_lets_an_engine_look_at_its_view(pair_of):
    """Also at one of another daemon's memory."""
    p = pair_of(conf={"connector": {"drain_ms": 30000}})
    p.meet()
    p.a.put("k", kvf.pattern(MIB))
    g = p.b.ok("get", key="k", mode="view")
    assert p.b.bytes_of(g) == kvf.pattern(MIB)
    p.dst.proc.send_signal(signal.SIGTERM)
    p.dst.wait_log("DRAIN. begun")
    p.b.quiet()
    assert p.dst.alive()
    p.b.ok("release", buffer=g["buffer"])
    assert p.dst.proc.wait(kvf.WAIT) == 0
    p.src.assert_all_free()


def test_view_outlives_the_daemon_that_drains(pair_of):
    """Its engine reads on, so the owner keeps the bytes until that process has
    unmapped them or ended."""
    p = pair_of(conf={"connector": {"drain_ms": 100}})
    p.meet()
    p.a.put("k", kvf.pattern(MIB), ttl_ms=60000)
    p.b.ok("get", key="k", mode="view")
    old = p.dst.incarnation
    assert p.dst.terminate() == 0
    p.src.wait_log(r"KVF PEER\] \S+ down \(getter\)")
    p.a.ok("ping")
    pool = p.src.pool()
    assert pool["claimed"] >= MIB, pool
    p.a.ok("fail", key="k")
    assert p.src.pool()["draining"] >= MIB
    p.getter_comes_back_without_views(old)
    p.src.assert_all_free()


def test_sigterm_of_an_idle_daemon_is_quick(make):
    d = make(conf={"connector": {"drain_ms": 30000}})
    assert d.terminate(5) == 0


def test_clean_stop_leaves_no_socket_file(daemon):
    path = daemon.endpoint[len("ipc://"):]
    assert os.path.exists(path)
    assert daemon.terminate() == 0
    assert not os.path.exists(path)


def test_what_comes_while_it_goes_away_makes_nothing_new(pair):
    """A getter that stands still does not answer the daemon's BYE, so half a
    second is left for requests that nobody can serve any more."""
    pair.meet()
    pair.dst.stop()
    c = pair.src.client()
    c.ok("ping")
    pair.src.stop()
    asked = [c.send("ping") for _ in range(700)] + [c.send("hello", version=1)]
    pair.src.proc.send_signal(signal.SIGTERM)
    pair.src.cont()
    assert pair.src.proc.wait(kvf.WAIT) == 0
    got = []
    try:
        while len(got) < len(asked):
            got.append(c.recv(timeout=1).status)
    except kvf.NoReply:
        pass  # the half second was over
    assert "SHUTTING_DOWN" in got and set(got) <= {"OK", "SHUTTING_DOWN"}
    pair.dst.cont()


def test_sigusr1_and_sighup_do_no_harm(daemon, engine):
    daemon.proc.send_signal(signal.SIGUSR1)
    daemon.proc.send_signal(signal.SIGHUP)
    engine.put("k", b"x")
    assert engine.fetch("k", mode="inline") == b"x"


def test_cancel_without_a_session_is_of_the_socket(daemon, engine):
    a, b = daemon.client(), daemon.client()
    for c in (a, b):
        c.send_map({"op": "get", "key": "k", "id": 77, "mode": "inline",
                    "source": engine.me})
        c.ok("ping")
    assert a.ok("cancel", target=77)["cancelled"] == 1
    assert a.recv(77).status == "CANCELLED"
    b.quiet()
    assert b.ok("cancel", target=77)["cancelled"] == 1
    assert b.recv(77).status == "CANCELLED"


def test_timeout_0_waits_for_ever(pair_of):
    p = pair_of(conf={"connector": {"get_sub_timeout_ms": 100}})
    p.meet()
    w = p.b.send("get", key="k", timeout_ms=0, mode="inline")
    p.b.want("TIMEOUT", "get", key="other")
    p.b.want("TIMEOUT", "get", key="other", timeout_ms=300)
    assert w not in p.b.replies
    p.a.put("k", b"x")
    assert p.b.recv(w).status == "OK"


def test_sighup_changes_when_a_peer_counts_as_dead(pair_of):
    """The reload reaches the peers and the tcp transport."""
    p = pair_of(conf={"connector": {"peer_timeout_ms": 60000,
                                    "protocol": "tcp"}})
    p.meet()
    p.dst.conf["connector"]["peer_timeout_ms"] = 400
    with open(p.dst.ini, "w", encoding="utf-8") as f:
        f.write(kvf.ini(p.dst.conf))
    p.dst.proc.send_signal(signal.SIGHUP)
    p.dst.wait_log(r"\[CONF\] reloaded")
    p.a.put("k", kvf.pattern(8 * MIB), readers=0)
    p.src.stop()
    try:
        began = time.monotonic()
        r = p.b.request("get", key="k", mode="copy", timeout_ms=30000)
        assert r.status == "PEER_UNREACHABLE", dict(r)
        assert time.monotonic() - began < 3 * kvf.SLOW
    finally:
        p.src.cont()
