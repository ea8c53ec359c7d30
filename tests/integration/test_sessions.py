"""Section 2: sessions, who may join them, and how they end."""
import os
import time

import pytest
import zmq

import kvf
from kvf import SLOW, Client, until

SESSION_TIMEOUT = 0.5 * SLOW


def tcp_conf():
    return {"worker": {"engine_endpoint": "tcp://127.0.0.1:*"},
            "connector": {"session_timeout_ms": int(1000 * SESSION_TIMEOUT)}}


def test_hello_tells_who_the_daemon_is(daemon, client):
    r = client.hello(client="pytest")
    assert r["version"] == 1 and r["cluster"] == "test"
    assert (r["stage"], r["rank"], r["replica"]) == (0, 0, 0)
    assert isinstance(r["server"], str)
    assert len(r["session"]) == 16 and len(r["incarnation"]) == 16
    assert r["incarnation"] == daemon.incarnation
    assert set(r["pool"]) >= {"path", "size", "alignment", "device"}
    assert r["pool"]["size"] == 64 * kvf.MIB
    assert r["pool"]["device"] == "cpu"
    assert {"shm", "tcp"} <= set(r["transports"])
    assert set(r["limits"]) >= {"max_key", "max_meta", "max_segments",
                                "max_frame", "max_outstanding", "inline_max"}
    assert r["limits"]["max_key"] == 1024
    assert r["limits"]["inline_max"] == 64 * kvf.KIB


def test_unknown_protocol_version_is_refused(client):
    r = client.request("hello", version=99)
    assert r.status in ("MISMATCH", "UNSUPPORTED", "INVALID")


def test_two_sessions_differ(daemon):
    assert daemon.engine().session != daemon.engine().session


def test_a_second_socket_joins_by_the_session(daemon, engine):
    buf = engine.alloc(5000)
    other = daemon.client()
    other.hello(session=engine.session)
    assert other.session == engine.session
    other.ok("free", buffer=buf["buffer"])


def test_unknown_session_is_stale(client):
    client.want("STALE", "hello", version=1, session=b"\x17" * 16)


def test_right_pid_is_accepted(client):
    client.ok("hello", version=1, pid=os.getpid())


def test_wrong_pid_is_denied(client):
    client.want("DENIED", "hello", version=1, pid=1)
    client.want("DENIED", "hello", version=1, pid=os.getppid())


def test_joining_the_session_of_another_process_is_denied(
        daemon, engine, other_process):
    e = other_process(daemon, hello=False)
    r = e.request("hello", version=1, session={"hex": engine.session.hex()})
    assert r["status"] == "DENIED"


@pytest.mark.parametrize("op,fields", [
    ("alloc", {"size": 4096}), ("free", {"buffer": 1}),
    ("register", {"fd": 0, "size": 4096}), ("unregister", {"region": 1}),
    ("release", {"buffer": 1}),
    ("put", {"key": "k", "segments": [{"buffer": 1}]}),
    ("get", {"key": "k", "mode": "copy", "timeout_ms": 50}),
    ("get", {"key": "k", "mode": "view", "timeout_ms": 50}),
    ("get", {"key": "k", "into": [{"buffer": 1}], "timeout_ms": 50}),
], ids=lambda x: str(x)[:30])
def test_memory_without_a_session_is_stale(client, op, fields):
    client.want("STALE", op, **fields)


def test_operations_without_memory_need_no_hello(client):
    for op in ("ping", "stats", "health", "list"):
        client.ok(op)
    client.ok("put", b"abc", key="k")
    assert client.ok("get", key="k", mode="inline").payload == b"abc"


def test_session_of_the_daemon_before_is_stale(daemon):
    old = daemon.engine()
    session, incarnation = old.session, old.info["incarnation"]
    buf = old.alloc(4096)["buffer"]
    daemon.kill()
    daemon.restart()
    old.want("STALE", "alloc", size=4096, timeout=kvf.WAIT)
    old.want("STALE", "free", buffer=buf)
    old.want("STALE", "hello", version=1, session=session)
    new = old.hello()
    assert new["session"] != session
    assert new["incarnation"] != incarnation
    old.ok("free", buffer=old.alloc(4096)["buffer"])


def test_bye_frees_what_the_session_held(daemon, engine):
    for _ in range(3):
        engine.alloc(kvf.MIB)
    assert daemon.pool()["filling"] >= 3 * kvf.MIB
    engine.ok("bye")
    daemon.assert_all_free()


def test_after_bye_memory_is_stale(engine):
    engine.ok("bye")
    engine.want("STALE", "alloc", size=4096)
    engine.hello()
    engine.alloc(4096)


def test_what_was_published_stays_after_bye(daemon, engine):
    engine.put("k", b"stays")
    engine.ok("bye")
    assert daemon.engine().fetch("k") == b"stays"


def test_process_exit_frees_all(daemon, other_process):
    e = other_process(daemon)
    e.ok("alloc", size=3 * kvf.MIB)
    e.put("seen", 200000)
    e.kill()
    until(lambda: daemon.pool()["filling"] == 0, "freed")
    assert daemon.engine().fetch("seen") == kvf.pattern(200000)
    daemon.assert_all_free()


def test_process_exit_frees_a_view(daemon, other_process):
    e = other_process(daemon)
    daemon.engine().put("k", kvf.pattern(200000))
    assert e.do("get", seed=1, fields={"key": "k", "mode": "view"})["good"]
    e.kill()
    daemon.assert_all_free()


def test_process_exit_ends_its_pending_get(daemon, other_process):
    e = other_process(daemon)
    e.send("get", key="never", timeout_ms=0,
           source={"host": "127.0.0.1", "port": 1})
    e.ok("ping")
    e.kill()
    daemon.assert_all_free()


def test_newcomer_with_an_old_routing_id_has_no_session(daemon,
                                                        other_process):
    first = other_process(daemon, routing_id="same")
    first.ok("alloc", size=4096)
    second = other_process(daemon, hello=False, routing_id="same")
    assert second.request("ping")["status"] == "OK"
    assert second.request("alloc", size=4096)["status"] == "STALE"
    second.close()
    first.close()
    daemon.assert_all_free()


def stuck(daemon, **kw):
    """A socket whose replies wait in the daemon, since it reads nothing."""
    c = Client(daemon.endpoint, **kw)
    c.sock.disconnect(daemon.endpoint)
    c.sock.setsockopt(zmq.RCVHWM, 1)
    c.sock.connect(daemon.endpoint)
    return c


def jam(c, look):
    """Fills the way to c; returns when replies wait in the daemon."""
    def waiting():
        for _ in range(500):
            c.send("get", key="big", mode="inline")
        look.ok("ping")
        return look.ok("stats")["engines"]["replies_waiting"] > 500
    until(waiting, "replies that wait for room")


def test_replies_that_wait_for_a_socket_that_went_are_undone(pair):
    """What a get and an mget gave goes back although the session lives."""
    b = pair.b
    b.put("big", kvf.pattern(2000), readers=0)
    for i in range(3):
        pair.a.put(f"k{i}", kvf.pattern(100000, i), readers=0)
    lazy = stuck(pair.dst)
    lazy.send("hello", version=1, session=b.session)
    jam(lazy, b)
    lazy.send("mget", gets=[{"key": f"k{i}", "mode": "copy"}
                            for i in range(3)])
    lazy.send("get", key="k0", mode="copy")
    lazy.send("mget", gets=[{"key": f"k{i}", "mode": "view"}
                            for i in range(3)])
    until(lambda: pair.dst.pool()["held"] >= 400000
          and b.ok("stats")["gets"]["views"] == 3, "given")
    assert b.ok("stats")["engines"]["replies_waiting"] > 500
    lazy.sock.close(0)
    until(lambda: b.ok("stats")["engines"]["replies_waiting"] == 0, "dropped")
    until(lambda: pair.dst.pool()["held"] == 0, "buffers given back")
    until(lambda: b.ok("stats")["gets"]["views"] == 0, "views given back")
    b.ok("ping")


def test_newcomer_gets_no_replies_of_the_old_one(daemon, engine,
                                                 other_process):
    engine.put("big", kvf.pattern(2000), readers=0)
    lazy = stuck(daemon, routing_id=b"same")
    jam(lazy, engine)
    new = other_process(daemon, hello=False, routing_id="same")
    for i in range(20):
        r = new.request("ping")
        assert r["status"] == "OK" and "size" not in r and r["id"] == i + 1
    assert engine.ok("stats")["engines"]["replies_waiting"] == 0
    lazy.sock.close(0)


def test_socket_that_moves_to_another_session(daemon, engine):
    """What it asked stays with the session it asked in."""
    c = daemon.client()
    c.hello(session=engine.session)
    never = {"key": "never", "mode": "copy", "timeout_ms": 0,
             "source": {"host": "127.0.0.1", "port": 1}}
    c.send("get", **never)
    w = c.send("get", **never)
    c.ok("ping")
    second = daemon.engine()
    c.hello(session=second.session)
    mine = c.send("get", **never)
    c.ok("ping")
    assert second.ok("cancel", target=w)["cancelled"] == 0
    assert c.ok("cancel", target=w)["cancelled"] == 1
    assert c.recv(w).status == "CANCELLED"
    engine.ok("bye")
    assert c.recv(w - 1).status == "CANCELLED"
    assert mine not in c.replies
    assert second.ok("cancel", target=mine)["cancelled"] == 1
    assert c.recv(mine).status == "CANCELLED"


def test_two_engines_using_the_same_ids(daemon, other_process):
    one, two = other_process(daemon), other_process(daemon)
    for e, n in ((one, 1), (two, 2)):
        e.put(f"k{n}", 100000, seed=n)
    for e, n in ((one, 2), (two, 1)):
        r = e.do("get", seed=n, fields={"key": f"k{n}", "mode": "copy"})
        assert r["good"]
        e.ok("release", buffer=r["buffer"])


def test_one_engine_cannot_free_or_put_the_buffer_of_another(daemon):
    a, b = daemon.engine(), daemon.engine()
    buf = a.alloc(4096)["buffer"]
    assert b.request("free", buffer=buf).status in ("INVALID", "DENIED")
    assert b.request("put", key="k", segments=[{"buffer": buf}]).status in (
        "INVALID", "DENIED")
    a.ok("free", buffer=buf)


def test_unmapped_incarnation_is_accepted(client):
    client.ok("hello", version=1, unmapped=b"\x01" * 16)


# -- tcp ------------------------------------------------------------------
def test_tcp_session_has_no_memory(make):
    c = make(conf=tcp_conf()).client()
    c.hello(pid=1)  # ignored there
    c.want("UNSUPPORTED", "alloc", size=4096)
    c.want("UNSUPPORTED", "register", fd=0, size=4096)
    c.ok("put", b"abc", key="k")
    c.want("UNSUPPORTED", "get", key="k", mode="view")
    c.want("UNSUPPORTED", "get", key="k", into=[{"buffer": 1}])
    assert c.ok("get", key="k", mode="inline").payload == b"abc"


def test_tcp_session_ends_without_requests_and_ping_counts(make):
    d = make(conf=tcp_conf())
    c = d.client()
    c.hello()
    # Pings at a third of the timeout keep it for three times as long.
    end = time.monotonic() + 3 * SESSION_TIMEOUT
    while time.monotonic() < end:
        c.ok("ping")
        time.sleep(0.3 * SESSION_TIMEOUT)  # the pace that is tested
    d.client().ok("hello", version=1, session=c.session)
    # Silence is what is tested here: longer than the timeout.
    time.sleep(2.4 * SESSION_TIMEOUT)
    d.client().want("STALE", "hello", version=1, session=c.session)


def test_events_reach_who_asked(daemon, make):
    c = daemon.client()
    c.hello(events=True)
    other = make(1)
    daemon.knows(other)
    daemon.engine().request("get", key="x", from_={"stage": 1},
                            timeout_ms=300, mode="inline")
    e = c.event()
    assert isinstance(e["event"], str)


def test_process_that_goes_away_with_replies_unread(daemon, other_process):
    for _ in range(5):
        e = other_process(daemon)
        for _ in range(50):
            e.send("alloc", size=4096)
        e.kill()
    daemon.assert_all_free()


def test_req_and_dealer_clients_side_by_side(daemon):
    cs = [Client(daemon.endpoint, kind=zmq.REQ if i % 2 else zmq.DEALER)
          for i in range(20)]
    try:
        for i, c in enumerate(cs):
            c.hello()
            c.ok("put", bytes([i]) * 100, key=f"k{i}")
        for i, c in enumerate(cs):
            j = (i + 7) % 20
            assert c.ok("get", key=f"k{j}",
                        mode="inline").payload == bytes([j]) * 100
    finally:
        for c in cs:
            c.close()
