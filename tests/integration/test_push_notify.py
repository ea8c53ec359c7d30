"""push with notify: the pushing engine is told once, after the reply, how what
it pushed ended at the receiver."""
import os

import pytest
import zmq

import kvf
from kvf import KIB, MIB, until
from kvf_peer import APPLIED, DENY, Getter, RETIRED, RETIRED_SEEN, ROOM_ASK

TO = {"stage": 0}
SMALL, LARGE = 1000, 300 * KIB


@pytest.fixture(params=["shm", "tcp"])
def npair(request, pair_of):
    """Stage 1 (b, dst) pushes to stage 0 (a, src)."""
    return pair_of(conf={"connector": {"protocol": request.param}})


def push(p, key="k", size=SMALL, **fields):
    buf = p.b.filled(kvf.pattern(size, 1))
    r = p.b.ok("push", key=key, to=TO, notify=True,
               segments=[{"buffer": buf["buffer"]}], **fields)
    p.b.ok("free", buffer=buf["buffer"])
    return r["generation"]


def told(p, generation, reason, readers_done=0, key="k", left=0):
    e = p.b.event(event="retired")
    assert e == {"event": "retired", "key": key, "generation": generation,
                 "reason": reason, "readers_done": readers_done}
    p.b.quiet()
    assert p.dst.stats()["peers"]["watches"] == left
    until(lambda: p.src.stats()["peers"]["pushed"] == left, "seen")


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_each_reason(npair, size):
    p = npair
    g = push(p, size=size)
    p.b.quiet()
    p.a.fetch("k")
    told(p, g, "consumed", 1)
    g = push(p, size=size, readers=3)
    p.a.fetch("k")
    again = push(p, size=size)
    told(p, g, "replaced", 1, left=1)
    p.a.ok("fail", key="k")
    told(p, again, "failed")
    g = push(p, size=size, ttl_ms=50)
    told(p, g, "expired")
    g = push(p, "r:1_0", size=size)
    p.a.ok("cleanup", request_id="r")
    told(p, g, "cleanup", key="r:1_0")
    # Without it nothing comes.
    p.b.ok("push", b"x", key="k", to=TO)
    p.a.fetch("k")
    p.b.quiet()


def test_a_get_that_waited_does_not_overtake_the_reply(npair):
    """Retired before its own reply could be sent: still told after it."""
    p = npair
    for size in (SMALL, LARGE):
        src = p.b.filled(kvf.pattern(size, 2))
        for i in range(20):
            key = f"k{size}.{i}"
            get = p.a.send("get", key=key, source=p.a.me, mode="copy")
            until(lambda: p.src.stats()["keys"]["parked"] == 1, "parked")
            ask = p.b.send("push", key=key, to=TO, notify=True,
                           segments=[{"buffer": src["buffer"]}])
            first = p.b.recv_any(5)
            assert first["id"] == ask and first["status"] == "OK"
            e = p.b.event(event="retired")
            assert (e["key"], e["reason"]) == (key, "consumed")
            assert e["generation"] == first["generation"]
            p.a.ok("release", buffer=p.a.recv(get)["buffer"])
    assert p.dst.stats()["peers"]["watches"] == 0


def test_to_itself(engine, daemon):
    for size in (SMALL, LARGE):
        src = engine.filled(kvf.pattern(size, 1))
        r = engine.ok("push", key="k", to={"stage": 0}, notify=True,
                      segments=[{"buffer": src["buffer"]}])
        engine.fetch("k")
        e = engine.event(event="retired")
        assert e["generation"] == r["generation"]
        assert (e["reason"], e["readers_done"]) == ("consumed", 1)
    engine.quiet()


def test_a_push_that_is_not_ok_has_no_end(npair):
    p = npair
    keep = push(p)
    p.b.want("EXISTS", "push", b"x", key="k", to=TO, notify=True,
             on_duplicate="reject")
    p.a.alloc(40 * MIB)
    p.b.want("NO_SPACE", "push", key="big", to=TO, notify=True, segments=[
        {"buffer": p.b.alloc(40 * MIB)["buffer"]}])
    p.src.stop()
    try:
        p.b.want("TIMEOUT", "push", b"x", key="t:1_0", to=TO, notify=True,
                 timeout_ms=100)
    finally:
        p.src.cont()
    p.meet()
    p.a.ok("cleanup", request_id="t")  # its bytes had gone with the question
    p.b.quiet()
    assert p.dst.stats()["peers"]["watches"] == 1
    p.a.fetch("k")
    told(p, keep, "consumed", 1)


def test_a_req_socket_cannot_be_told(daemon):
    c = daemon.client(kind=zmq.REQ)
    c.want("INVALID", "push", b"x", key="k", to={"stage": 0}, notify=True)


def test_the_receiver_dies(npair):
    """What it had is gone, and that is told when it is known for sure: its
    next start says so."""
    p = npair
    g = push(p)
    port = p.src.peer_port
    p.src.kill()
    until(lambda: p.dst.stats()["peers"]["peers_up"] == 0, "down", 10)
    p.b.quiet()
    p.src.conf["connector"]["zmq_port"] = port - 100
    p.src.restart()
    told(p, g, "failed")


def test_the_receiver_goes_in_order(npair):
    p = npair
    g = push(p)
    p.a.send("drain", timeout_ms=100)
    assert p.src.proc.wait(10) == 0
    e = p.b.event(event="retired")
    assert (e["generation"], e["reason"]) == (g, "failed")


def test_the_pusher_dies(npair):
    """Nobody is left to be told; the key does not mind."""
    p = npair
    push(p)
    p.dst.kill()
    until(lambda: p.src.stats()["peers"]["guests_up"] == 0, "down", 10)
    p.a.fetch("k")


def test_the_pushers_engine_leaves(npair, other_process):
    p = npair
    e = other_process(p.dst)
    e.ok("push", key="k", to=TO, notify=True, segments=[
        {"buffer": e.ok("alloc", size=SMALL)["buffer"]}])
    e.kill()
    p.a.fetch("k")
    until(lambda: p.dst.stats()["peers"]["watches"] == 0, "told to nobody")


def test_retired_while_the_pusher_stands_still(npair):
    """The session is lost meanwhile; it is told when it is back."""
    p = npair
    g = push(p)
    p.dst.stop()
    try:
        until(lambda: p.src.stats()["peers"]["guests_up"] == 0, "down", 10)
        p.a.fetch("k")
    finally:
        p.dst.cont()
    told(p, g, "consumed", 1)


# ---- a sender of the test's own ---------------------------------------------


def ask(g, key, push_id, **kw):
    g.asks += 1
    g.send(ROOM_ASK, ask=g.asks, push=push_id, key=key, size=1, meta=b"",
           readers=1, reject=False, shm=False, bytes=b"x", **kw)
    type_, body, _ = g.recv(APPLIED, DENY)
    assert type_ == APPLIED
    return body["generation"]


def test_told_until_it_was_seen(daemon, engine):
    g, one = Getter(daemon), os.urandom(16)
    g.hello()
    generation = ask(g, "k", one, notify=True)
    assert ask(g, "k", one, notify=True) == generation
    engine.fetch("k")
    want = {"push": one, "generation": generation, "reason": 0,
            "readers_done": 1}
    assert g.recv(RETIRED)[1] == want
    # Not seen: with each new connection again.
    for _ in range(3):
        g.connect()
        g.hello()
        assert g.recv(RETIRED)[1] == want
    # What is not its own, or not so, is not forgotten.
    other = Getter(daemon, worker=(2, 0, 0))
    other.hello()
    bad = daemon.stats()["counters"]["peer_malformed"]
    other.send(RETIRED_SEEN, push=one, generation=generation)
    g.send(RETIRED_SEEN, push=os.urandom(16), generation=generation)
    g.send(RETIRED_SEEN, push=one, generation=generation + 1)
    until(lambda: daemon.stats()["counters"]["peer_malformed"] == bad + 2,
          "refused")
    assert daemon.stats()["peers"]["pushed"] == 1
    for _ in range(2):
        g.send(RETIRED_SEEN, push=one, generation=generation)
    until(lambda: daemon.stats()["peers"]["pushed"] == 0, "forgotten")
    # Seen before it ended: a lie.
    two = os.urandom(16)
    generation = ask(g, "k2", two, notify=True)
    g.send(RETIRED_SEEN, push=two, generation=generation)
    until(lambda: daemon.stats()["counters"]["peer_malformed"] == bad + 3,
          "refused")
    engine.fetch("k2")
    assert g.recv(RETIRED)[1]["push"] == two
    g.close()
    other.close()
