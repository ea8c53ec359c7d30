"""Pushes and windows as a daemon sees them whose sender is out of order: what
is asked twice is done once, what is not its own is refused, and memory that it
may still touch is not given away."""
import os
import socket
import struct

import pytest

import kvf
from kvf import KIB, MIB, until
from kvf_peer import ABORT, APPLIED, COMMIT, DENY, ENDED, GRANT, NOTIFY, PING
from kvf_peer import PONG, REVOKED, ROOM_ASK, UNASK, WINDOW_ASK, Getter

STATUS = {"INVALID": 1, "NOT_FOUND": 3, "STALE": 11, "NO_SPACE": 12,
          "TOO_LARGE": 13, "EXISTS": 15, "DENIED": 18}


@pytest.fixture
def getter(daemon):
    made = []

    def start(**kw):
        g = Getter(daemon, **kw)
        made.append(g)
        g.info = g.hello()
        return g
    yield start
    for g in made:
        g.close()


def room(g, key, size, push=None, **kw):
    g.asks += 1
    body = {"meta": b"", "readers": 1, "reject": False,
            "shm": g.pool is not None, **kw}
    push = push or os.urandom(16)
    g.send(ROOM_ASK, ask=g.asks, push=push, key=key, size=size, **body)
    return push, g.recv(GRANT, DENY, APPLIED)


def commit(g, push, grant, **kw):
    g.asks += 1
    g.send(COMMIT, ask=g.asks, push=push, claim=grant["claim"],
           token=grant["token"], **kw)
    type_, body, _ = g.recv(APPLIED, DENY)
    assert body["ask"] == g.asks
    return type_, body


def access(g, name, write=True, **kw):
    g.asks += 1
    g.send(WINDOW_ASK, ask=g.asks, name=name, write=write,
           shm=g.pool is not None, **{"offset": 0, "length": 1, **kw})
    type_, body, _ = g.recv(GRANT, DENY)
    return type_, body


class Bulk:
    """A bulk connection of the getter's."""

    def __init__(self, g):
        self.s = socket.create_connection((g.info["tcp_host"],
                                           g.info["tcp_port"]))
        self.s.sendall(b"KVFB" + struct.pack(">HH", 1, 0) + g.info["secret"])
        self.tag = 0

    def request(self, op, grant, offset, length, data=b"", token=None):
        self.tag += 1
        self.s.sendall(struct.pack(">2sHIQQ16sQQ", b"KQ", op, 0, self.tag,
                                   grant["claim"], token or grant["token"],
                                   offset, length) + data)

    def answer(self):
        got = b""
        while len(got) < 24:
            part = self.s.recv(24 - len(got))
            assert part, "closed"
            got += part
        status, tag, length = struct.unpack(">4xIQQ", got)
        data = b""
        while len(data) < length:
            data += self.s.recv(length - len(data))
        return status, data

    def write(self, grant, data, offset=0, **kw):
        self.request(2, grant, offset, len(data), data, **kw)
        return self.answer()[0]


def test_push_step_by_step_and_each_step_twice(daemon, engine, getter):
    g = getter()
    data = kvf.pattern(100 * KIB, 3)
    push, (type_, first, _) = room(g, "k", len(data))
    assert type_ == GRANT and first["size"] == len(data)
    # Asked again: another room, and the first is worth nothing.
    push, (type_, grant, _) = room(g, "k", len(data), push=push)
    assert type_ == GRANT and grant["claim"] != first["claim"]
    b = Bulk(g)
    assert b.write(first, data) == STATUS["STALE"]
    assert b.write(grant, data) == 0
    engine.want("NOT_FOUND", "get", key="k", wait=False, source=engine.me)
    type_, body = commit(g, push, first)
    assert (type_, body["status"]) == (DENY, STATUS["STALE"])
    type_, body = commit(g, push, grant)
    assert type_ == APPLIED and body["generation"]
    # The answers of the past are given again, and nothing is done.
    assert commit(g, push, grant)[1]["generation"] == body["generation"]
    again = room(g, "k", len(data), push=push)[1]
    assert again[0] == APPLIED
    assert again[1]["generation"] == body["generation"]
    assert daemon.stats()["counters"]["pushed"] == 1
    assert b.write(grant, data) == STATUS["STALE"]
    assert engine.fetch("k") == data


def test_a_commit_before_the_bytes_end_waits_for_them(daemon, engine, getter):
    g = getter()
    data = kvf.pattern(100 * KIB, 5)
    push, (_, grant, _) = room(g, "k", len(data))
    b = Bulk(g)
    b.request(2, grant, 0, len(data), data[:50 * KIB])
    until(lambda: daemon.stats()["transports"]["tcp"]["in_conns"] == 1, "in")
    # Half of a write lies there: not quiet, so not published.
    until(lambda: daemon.stats()["pool"]["receiving"] > 0, "receiving")
    g.asks += 1
    g.send(COMMIT, ask=g.asks, push=push, claim=grant["claim"],
           token=grant["token"])
    g.send(PING, seq=1)
    g.recv(PONG)
    b.s.sendall(data[50 * KIB:])
    assert b.answer()[0] == 0
    assert g.recv(APPLIED, DENY)[0] == APPLIED
    assert engine.fetch("k") == data


def test_a_wrong_checksum_publishes_nothing(daemon, engine, getter):
    g = getter()
    push, (_, grant, _) = room(g, "k", 70000)
    assert Bulk(g).write(grant, b"x" * 70000) == 0
    type_, body = commit(g, push, grant, checksum=12345)
    assert type_ == DENY and body["status"] == 17
    engine.want("NOT_FOUND", "get", key="k", wait=False, source=engine.me)
    daemon.assert_all_free()


def test_what_a_push_may_not(daemon, engine, getter):
    g, other = getter(), getter(worker=(2, 0, 0))
    push, (_, grant, _) = room(g, "k", 70000)
    b = Bulk(other)
    assert b.write(grant, b"x") == STATUS["DENIED"]
    b = Bulk(g)
    assert b.write(grant, b"x", token=b"?" * 16) == STATUS["DENIED"]
    assert b.write(grant, b"xx", offset=69999) == STATUS["INVALID"]
    b.request(1, grant, 0, 1)
    assert b.answer()[0] == STATUS["DENIED"]  # a room is not for reading
    type_, body = commit(other, push, grant)
    assert (type_, body["status"]) == (DENY, STATUS["STALE"])
    type_, (_, body, _) = None, room(other, "k", 70000, push=push)[1]
    assert body["status"] == STATUS["DENIED"]
    big = room(g, "x", 2 ** 50)[1]
    assert (big[0], big[1]["status"]) == (DENY, STATUS["TOO_LARGE"])
    full = room(g, "x", 64 * MIB - 65536)[1]
    assert (full[0], full[1]["status"]) == (DENY, STATUS["NO_SPACE"])
    assert full[1]["needed"] == 64 * MIB - 65536 > full[1]["free"]
    engine.put("taken", b"1" * 10)
    taken = room(g, "taken", 5000, reject=True)[1]
    assert (taken[0], taken[1]["status"]) == (DENY, STATUS["EXISTS"])
    g.send(ABORT, claim=grant["claim"], token=grant["token"])
    g.recv(ENDED)
    until(lambda: daemon.stats()["peers"]["rooms"] == 0, "the room is gone")
    assert daemon.pool()["receiving"] == 0


def test_a_sender_over_tcp_that_falls_silent(daemon, getter):
    g = getter()
    _, (_, grant, _) = room(g, "k", 70000)
    b = Bulk(g)
    b.request(2, grant, 0, 70000, b"x" * 1000)
    until(lambda: daemon.stats()["peers"]["guests_up"] == 0, "down", 10)
    daemon.assert_all_free()


def test_a_sender_over_shm_keeps_its_room_until_it_ends(daemon, getter):
    g = getter(shm=True)
    assert g.info["shm"], g.info["shm_why"]
    _, (_, grant, _) = room(g, "k", 70000)
    assert grant["shm"]
    until(lambda: daemon.stats()["peers"]["guests_up"] == 0, "down", 10)
    assert daemon.pool()["receiving"] >= 70000
    g.pool.proc.kill()
    g.pool.proc.wait()
    daemon.assert_all_free()


def test_unask_of_a_room_that_waits(make):
    d = make(conf={"edge 1->0": {"max_inflight": 1}})
    g = Getter(d)
    g.info = g.hello()
    room(g, "a", 70000)
    g.asks += 1
    g.send(ROOM_ASK, ask=g.asks, push=os.urandom(16), key="b", size=70000,
           meta=b"", readers=1, reject=False, shm=False)
    until(lambda: d.stats()["peers"]["rooms"] == 2, "waits")
    g.send(UNASK, ask=g.asks)
    until(lambda: d.stats()["peers"]["rooms"] == 1, "taken back")
    g.close()
    until(lambda: d.stats()["peers"]["rooms"] == 0, "gone", 10)


def test_windows_of_a_stranger(daemon, engine, getter):
    g, other = getter(), getter(worker=(2, 0, 0))
    w = engine.ok("expose", name="w", size=8192, writable=True)
    engine.ok("expose", name="ro", size=8192, writable=False)
    assert access(g, "no")[1]["status"] == STATUS["NOT_FOUND"]
    assert access(g, "ro")[1]["status"] == STATUS["DENIED"]
    assert access(g, "w", offset=8192)[1]["status"] == STATUS["INVALID"]
    _, read = access(g, "ro", write=False)
    _, grant = access(g, "w")
    b = Bulk(g)
    assert b.write(read, b"x") == STATUS["DENIED"]
    assert b.write(grant, b"x", offset=8192) == STATUS["INVALID"]
    assert Bulk(other).write(grant, b"x") == STATUS["DENIED"]
    assert b.write(grant, b"hello", offset=100) == 0
    assert engine.peek(w, 5, 100) == b"hello"
    notice = os.urandom(16)
    for _ in range(3):
        g.asks += 1
        g.send(NOTIFY, ask=g.asks, notice=notice, claim=grant["claim"],
               token=grant["token"], write=True, data=b"n")
        assert g.recv(APPLIED, DENY)[0] == APPLIED
    assert engine.event(event="written")["notify"] == b"n"
    engine.quiet()
    other.send(NOTIFY, ask=9, notice=os.urandom(16), claim=grant["claim"],
               token=grant["token"], write=True, data=b"n")
    assert other.recv(APPLIED, DENY)[1]["status"] == STATUS["DENIED"]
    engine.ok("unexpose", window=w["window"])
    assert g.recv(REVOKED)[1]["claim"] == grant["claim"]
    assert b.write(grant, b"x") == STATUS["STALE"]
    g.send(NOTIFY, ask=99, notice=os.urandom(16), claim=grant["claim"],
           token=grant["token"], write=True, data=b"n")
    assert g.recv(APPLIED, DENY)[1]["status"] == STATUS["STALE"]


def test_a_window_over_shm_is_not_free_before_its_writer_lets_go(daemon,
                                                                engine,
                                                                getter):
    g = getter(shm=True)
    w = engine.ok("expose", name="w", size=MIB, writable=True)
    _, grant = access(g, "w")
    engine.ok("unexpose", window=w["window"])
    g.recv(REVOKED)
    assert daemon.pool()["draining"] == MIB
    # Told again after a reconnection, as often as it takes.
    g.connect()
    g.hello(live=[grant["claim"]])
    assert g.recv(REVOKED)[1]["claim"] == grant["claim"]
    assert daemon.pool()["draining"] == MIB
    g.send(ABORT, claim=grant["claim"], token=grant["token"])
    daemon.assert_all_free()
