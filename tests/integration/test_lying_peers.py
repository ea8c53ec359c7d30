"""Daemons that speak the peer protocol and lie in what they say."""
import os
import time

import pytest
import zmq

import kvf
from kvf import MIB, until
from kvf_peer import (ABORT, BUSY, BYE, DENY, DONE, ENDED, GRANT, PING,
                      REVOKED, STALE, TOKEN, UNMAPPED, ZERO, Getter, Owner,
                      sleeper, start_of)


@pytest.fixture
def owner():
    made = []

    def start(*args, **kw):
        made.append(Owner(*args, **kw))
        return made[-1]
    yield start
    for o in made:
        o.close()


@pytest.fixture
def getter():
    made = []

    def start(*args, **kw):
        made.append(Getter(*args, **kw))
        return made[-1]
    yield start
    for g in made:
        g.close()


def growing(sizes, generations=None):
    """Grants of other sizes each time; the claim before is then unknown."""
    n = [0]

    def on_ask(o, ask):
        i = min(n[0], len(sizes) - 1)
        n[0] += 1
        o.grant(ask, sizes[i],
                generation=generations[i] if generations else i + 1)
    return on_ask


def only(claim):
    def on_read(c, offset, length):
        return (0, b"y" * length) if c == claim else (STALE, b"")
    return on_read


# -- owners that lie ------------------------------------------------------
@pytest.mark.parametrize("mode", ["copy", "inline"])
@pytest.mark.parametrize("generations", [(1, 2), (1, 1)])
def test_a_second_grant_of_another_size(daemon, owner, mode, generations):
    b = daemon.engine()
    fake = owner(growing([100, 60000], generations), only(2))
    r = b.request("get", key="k", mode=mode, source=fake.source)
    if r.status == "OK":
        assert r["size"] == 60000
        assert b.bytes_of(r) == b"y" * 60000


def test_a_second_grant_of_another_size_while_queued(make, owner):
    """The get waits for its edge with a buffer reserved for the first
    grant."""
    d = make(1, conf={"edge 0->1": {"max_inflight": 1}})
    b = d.engine()
    free = [False]

    def on_read(claim, offset, length):
        until(lambda: free[0], "released")
        return 0, b"y" * length

    def on_ask(o, ask):
        if ask["key"] == "first":
            o.grant(ask, 5000)
        elif o.claims == 1:
            o.send(REVOKED, claim=o.grant(ask, 100), text="replaced")
        else:
            o.grant(ask, 300000, generation=2)
            free[0] = True
    fake = owner(on_ask, on_read)
    w = b.send("get", key="first", mode="copy", source=fake.source)
    until(lambda: fake.claims == 1, "the first is asked for")
    w2 = b.send("get", key="k", mode="copy", source=fake.source)
    until(lambda: fake.claims == 2, "the second is granted")
    after = b.filled(kvf.pattern(200000))
    assert b.recv(w).status == "OK"
    r = b.recv(w2)
    assert r.status == "OK" and b.bytes_of(r) == b"y" * 300000
    assert b.peek(after) == kvf.pattern(200000)


def test_a_claim_over_shm_that_is_revoked_during_the_copy(daemon, owner):
    """The copy takes a millisecond: where the machine is busy REVOKED may come
    after it, and OK is right then. Not every time, though."""
    b = daemon.engine()

    def on_ask(o, ask):
        claim = o.grant(ask, 24 * MIB, segs=[(0, kvf.HEADER, 24 * MIB)])
        o.send(REVOKED, claim=claim, text="replaced")
    fake = owner(on_ask, only(0), shm_size=32 * MIB, fill=b"z")
    for i in range(20):
        r = b.request("get", key=f"k{i}", mode="copy", source=fake.source,
                      timeout_ms=2000)
        if r.status != "OK":
            return
        b.ok("release", buffer=r["buffer"])
    assert False, "REVOKED was never heeded"


@pytest.mark.parametrize("segs", [
    [(0, 0, 8192)], [(0, kvf.HEADER, 1 << 40)], [(0, (1 << 64) - 4096, 8192)],
    [(0, (1 << 20) - 4096, 8192)], [(1, 0, 8192)], [(64, 0, 8192)],
    [(0, kvf.HEADER, 4096), (0, kvf.HEADER, 4096)],
    [(0, kvf.HEADER, 0), (0, kvf.HEADER, 8192)]])
@pytest.mark.parametrize("mode", ["view", "copy", "inline", "auto"])
def test_segments_that_lie_elsewhere(daemon, owner, segs, mode):
    b = daemon.engine()
    fake = owner(lambda o, ask: o.grant(ask, 8192, segs=segs),
                 lambda c, at, n: (0, b"y" * n), shm_size=MIB, fill=b"y")
    r = b.request("get", key="k", mode=mode, source=fake.source,
                  timeout_ms=1000)
    if r.status == "OK":
        assert b.bytes_of(r) == b"y" * 8192


@pytest.mark.parametrize("mode", ["view", "copy", "inline", "auto", "into"])
def test_eager_bytes_that_were_not_asked_for(daemon, owner, mode):
    b = daemon.engine()
    fake = owner(lambda o, ask: o.grant(ask, 2 * MIB, b"y" * (2 * MIB)))
    into = {}
    if mode == "into":
        into["into"] = [{"buffer": b.alloc(4096)["buffer"]}]
    else:
        into["mode"] = mode
    r = b.request("get", key="k", source=fake.source, timeout_ms=1000, **into)
    assert r.status == {"view": "UNSUPPORTED", "inline": "TOO_LARGE",
                        "into": "MISMATCH"}.get(mode, "OK"), dict(r)


@pytest.mark.parametrize("bytes_", [
    lambda n: b"", lambda n: b"y" * (n - 1), lambda n: b"y" * (n + 1),
    lambda n: b"y" * (2 * n)])
@pytest.mark.parametrize("status", [0, 21, 22, 1 << 31])
def test_bulk_answers_of_another_length(daemon, owner, bytes_, status):
    b = daemon.engine()
    fake = owner(lambda o, ask: o.grant(ask, 100000),
                 lambda c, at, n: (status, bytes_(n)))
    r = b.request("get", key="k", mode="copy", source=fake.source,
                  timeout_ms=1500)
    assert r.status in ("TRANSPORT", "TRANSFER_TIMEOUT", "PEER_UNREACHABLE",
                        "INTERNAL"), dict(r)


def test_one_claim_for_two_gets(daemon, owner):
    b = daemon.engine()
    # A slow owner, so that the gets are under way at the same time.
    fake = owner(lambda o, ask: o.grant(ask, 100000, claim=1),
                 lambda c, at, n: (time.sleep(0.05), (0, b"y" * n))[1])
    ws = [b.send("get", key=f"k{i}", mode="copy", source=fake.source,
                 timeout_ms=1000) for i in range(8)]
    got = [b.recv(w).status for w in ws]
    assert set(got) <= {"OK", "TIMEOUT"} and "OK" in got, got


def test_grants_and_denials_of_asks_that_are_not_there(daemon, owner):
    b = daemon.engine()

    def on_ask(o, ask):
        for i in range(50):
            o.grant({"ask": ask["ask"] + i - 25 if i != 25 else 1 << 60}, 10)
            o.send(DENY, ask=(1 << 63) + i, status=9, generation=0, size=0,
                   text="")
        for i in range(20):
            o.send(REVOKED, claim=i * 7, text="x")
        o.send(DENY, ask=ask["ask"], status=9, generation=0, size=0, text="no")
    fake = owner(on_ask)
    for i in range(5):
        assert b.request("get", key=f"k{i}", source=fake.source,
                         timeout_ms=1000).status == "FAILED"


# -- getters that lie -----------------------------------------------------
def test_unmapped_of_a_daemon_that_lives_but_is_silent(daemon, getter):
    """Silence of the getter's daemon proves nothing about its engine."""
    a = daemon.engine()
    a.put("k", kvf.pattern(100000), readers=1, ttl_ms=600000)
    victim, liar = getter(daemon, shm=True), getter(daemon, worker=(1, 1, 0))
    engine = sleeper()
    try:
        victim.hello()
        liar.hello()
        g = victim.claim("k", mode="view", view_pid=engine.pid)
        assert g["shm"]
        daemon.wait_log(r"1\.0 down \(getter\)|1\.0.* down")
        liar.hello()
        liar.send(UNMAPPED, incarnation=victim.incarnation, pid=engine.pid,
                  start=start_of(engine.pid))
        liar.hello(gone=[victim.incarnation + engine.pid.to_bytes(8, "big")
                         + start_of(engine.pid).to_bytes(8, "big")])
        assert daemon.pool()["claimed"] >= 100000, daemon.pool()
        victim.hello(live=[g["claim"]])
        assert daemon.pool()["claimed"] >= 100000, daemon.pool()
        victim.send(DONE, claim=g["claim"], token=g["token"])
        daemon.assert_all_free()
    finally:
        engine.kill()
        engine.wait()


def test_claims_of_others(daemon, getter):
    a = daemon.engine()
    a.put("k", kvf.pattern(100000), readers=1)
    victim, liar = getter(daemon), getter(daemon, worker=(1, 1, 0))
    victim.hello()
    liar.hello()
    g = victim.claim("k")
    for token in (ZERO, g["token"]):
        for type_ in (DONE, ABORT):
            liar.send(type_, claim=g["claim"], token=token)
    victim.send(DONE, claim=g["claim"], token=ZERO)
    liar.hello(live=[g["claim"]])
    assert daemon.pool()["claimed"] >= 100000
    victim.send(DONE, claim=g["claim"], token=g["token"])
    daemon.assert_all_free()


def test_acknowledgements_come_together(daemon, getter):
    """Nothing waits for one, so none stands before a GRANT."""
    a = daemon.engine()
    a.put("k", b"x" * 100, readers=0)
    g = getter(daemon)
    g.hello()
    claims, between = [], []
    for _ in range(3):
        g.ask("k", eager_max=1000)
        type_, body, _ = g.recv(GRANT, ENDED)
        between.append(type_)
        claims.append(body.get("claim"))
        g.send(DONE, claim=body["claim"], token=body.get("token"))
    assert between == [GRANT] * 3
    body = g.recv(ENDED)[1]
    assert [body["claim"]] + body["more"] == claims
    # One that is asked for again goes at once.
    g.send(DONE, claim=claims[0], token=TOKEN)
    assert g.recv(ENDED, seconds=0.09)[1] == {"claim": claims[0]}


def test_a_getter_that_never_reads(daemon, getter):
    """What it is owed is bounded: its session ends."""
    a = daemon.engine()
    g = getter(daemon)
    g.connect(rcvhwm=1)
    g.hello()

    def flood():
        for i in range(1000):
            try:
                g.sock.send(g.pack(PING, g.to, seq=i), zmq.NOBLOCK)
            except zmq.Again:
                break
        return "does not read" in daemon.log()
    until(flood, "its session ends", 30)
    assert a.ok("ping")
    while g.sock.poll(200):
        g.sock.recv_multipart()
    until(lambda: g.hello()["tcp"], "a new session")


def test_eager_bytes_that_are_not_read_are_bounded(daemon, getter):
    """Past 64 MiB in grants that were not ended bytes go by the bulk
    connection, whose reader sets the pace; those ended make room again."""
    a = daemon.engine()
    a.ok("put", b"x" * 65536, key="k", readers=0)
    g = getter(daemon)
    assert g.hello()["tcp"]
    for _ in range(1100):
        g.ask("k", mode="inline", eager_max=65536)
    grants = [g.recv(GRANT, DENY) for _ in range(1100)]
    assert all(type_ == GRANT for type_, _, _ in grants)
    eager = [body for _, body, payload in grants if payload is not None]
    assert len(eager) == (64 << 20) // 65536
    assert all(body["eager"] == (payload is not None)
               for _, body, payload in grants)
    g.send(DONE, claim=eager[0]["claim"], token=eager[0]["token"])
    assert g.claim("k", mode="inline", eager_max=65536)["eager"]
    assert not g.claim("k", mode="inline", eager_max=65536)["eager"]


def test_meta_that_is_not_read_is_bounded(daemon, getter):
    """Past 128 MiB in grants that were not ended the answer is BUSY, and the
    reader that was claimed is free again."""
    a = daemon.engine()
    full = (128 << 20) // 65536
    a.ok("put", b"x", key="k", readers=full + 1, meta=bytes(65536))
    g = getter(daemon)
    g.hello()
    for _ in range(full + 20):
        g.ask("k")
    grants = []
    for i in range(full + 20):
        type_, body, _ = g.recv(GRANT, DENY)
        if i < full:
            assert type_ == GRANT and len(body.pop("meta")) == 65536
        else:
            assert type_ == DENY and body["status"] == BUSY
        grants.append(body)
    assert daemon.engine().fetch("k", mode="inline") == b"x"
    g.send(ABORT, claim=grants[0]["claim"], token=grants[0]["token"])
    g.claim("k")


def test_many_incarnations_on_one_connection(daemon, getter):
    """Each takes the routing id over from the one before."""
    a = daemon.engine()
    a.put("k", b"x" * 100000, readers=0)
    g = getter(daemon)
    for i in range(300):
        g.incarnation = os.urandom(16)
        g.hello()
        g.ask("never", wait=True)
        g.claim("k")
    until(lambda: daemon.pool()["claimed"] <= 100096, "old claims end")
    assert daemon.stats()


def test_a_getter_that_comes_and_goes_fills_no_log(daemon, getter):
    """Its lines are counted instead; those of another worker are there."""
    g = getter(daemon)
    for _ in range(200):
        g.hello()
        g.send(BYE, text="again")
        g.incarnation = os.urandom(16)
    daemon.engine().ok("ping")
    other = getter(daemon, worker=(2, 0, 0))
    other.hello()
    daemon.wait_log(r"KVF PEER\] 2\.0\.0 up \(getter\)")
    for line in "1.0.0 up (getter)", "1.0.0 down (getter)":
        assert 1 <= daemon.log().count(line) < 100
    time.sleep(1.1)  # the limit is per second
    g.hello()
    daemon.wait_log(r"KVF PEER\] \d+ lines like the next were left out")
