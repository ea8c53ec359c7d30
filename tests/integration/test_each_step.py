"""kill -9 of either daemon at every step that a get passes, as its trace lines
name them: exactly at that line (kill_at.c).

Whatever the step: the engine has exactly one reply, never wrong bytes; the
survivor has every byte FREE in the end; and the key is either still to be had
or was read."""
import os

import pytest

import kvf
from kvf_base import BUILD, MIB, SLOW, until

KILL_AT = os.environ.get("KILL_AT_SO") or os.path.join(
    BUILD, "tests", "integration", "kill_at.so")
STEPS = ["accepted -> connecting", "connecting -> asking",
         "asking -> claimed", "claimed -> pulling", "pulling -> done"]
SIZES = {"shm": 8 * MIB, "tcp": 8 * MIB, "eager": 1000}

pytestmark = [pytest.mark.release_only, pytest.mark.skipif(
    SLOW != 1, reason="a sanitizer's runtime must be the first preloaded")]


def conf(how):
    return {"connector": {"protocol": "tcp" if how == "tcp" else "auto",
                          "peer_timeout_ms": 500},
            "log": {"level": "trace"}}


def steps(how):
    """An eager get has its bytes with the grant."""
    return STEPS[:2] if how == "eager" else STEPS


CASES = [(how, step) for how in SIZES for step in steps(how)]


@pytest.fixture
def armed(make, tmp_path):
    """src, dst; dst kills `victim` when it comes to a step of key k."""
    def build(how, step, victim):
        pid = tmp_path / "pid"
        env = {"LD_PRELOAD": KILL_AT, "KILL_AT": f"key=k {step} (",
               "KILL_PID": "self" if victim == "getter" else str(pid)}
        src = make(0, conf=conf(how))
        dst = make(1, conf=conf(how), env=env)
        pid.write_text(str(src.pid))
        dst.knows(src)
        return src, dst
    return build


@pytest.mark.parametrize("how,step", CASES)
def test_owner_dies(armed, how, step):
    src, dst = armed(how, step, "owner")
    data = kvf.pattern(SIZES[how], 3)
    a, b = src.engine(), dst.engine()
    a.put("k", data)
    # An owner that was never reached is waited for to the deadline.
    get = b.send("get", key="k", mode="copy", timeout_ms=2000)
    assert src.proc.wait(20) == -9
    r = b.recv(get, timeout=30)
    assert r.status in ("OK", "PEER_UNREACHABLE", "TRANSPORT"), dict(r)
    if r.status == "OK":
        assert b.bytes_of(r) == data
        b.ok("release", buffer=r["buffer"])
    b.ok("ping")
    b.quiet()  # no second reply
    dst.assert_all_free()
    src.clients = []
    src.restart()
    dst.knows(src)
    src.engine().put("k", data[::-1])
    until(lambda: b.request("get", key="none", wait=False).status ==
          "NOT_FOUND", "they have found each other again", 20)
    assert b.fetch("k", mode="copy", timeout_ms=15000) == data[::-1]


@pytest.mark.parametrize("how,step", CASES)
def test_getter_dies(armed, how, step):
    src, dst = armed(how, step, "getter")
    data = kvf.pattern(SIZES[how], 4)
    a, b = src.engine(), dst.engine()
    a.put("k", data, readers=1)
    b.send("get", key="k", mode="copy", timeout_ms=15000)
    assert dst.proc.wait(20) == -9
    # The claim of the dead is given back, or its reader was done.
    until(lambda: src.pool()["claimed"] == 0 and src.pool()["draining"] == 0,
          "no claim is left", 20)
    a.ok("ping")
    dst.clients = []
    dst.env = {k: v for k, v in dst.env.items() if k != "LD_PRELOAD"}
    dst.restart()
    dst.knows(src)
    b = dst.engine()
    r = b.request("get", key="k", mode="copy", timeout_ms=15000)
    assert r.status in ("OK", "CONSUMED"), dict(r)
    if r.status == "CONSUMED":
        assert step == STEPS[-1]
    else:
        assert b.bytes_of(r) == data
        b.ok("release", buffer=r["buffer"])
    src.assert_all_free()
    dst.assert_all_free()


# -- the owner's own lines ---------------------------------------------------
@pytest.mark.parametrize("line", ["[KVF PUT] key=k ", "[KVF RETIRE] key=k "])
@pytest.mark.parametrize("how", list(SIZES))
def test_owner_dies_at_its_own_line(make, how, line):
    """In a put, and when the reader was done: a get that waited for the key
    is answered once, and nothing of the dead owner is left."""
    src = make(0, conf=conf(how), env={
        "LD_PRELOAD": KILL_AT, "KILL_AT": line, "KILL_PID": "self"})
    dst = make(1, conf=conf(how))
    dst.knows(src)
    data = kvf.pattern(SIZES[how], 5)
    a, b = src.engine(), dst.engine()
    get = b.send("get", key="k", mode="copy", timeout_ms=15000)
    until(lambda: src.stats()["keys"]["parked"] == 1, "parked")
    a.send("put", key="k", segments=[{
        "buffer": a.filled(data)["buffer"]}])
    assert src.proc.wait(20) == -9
    r = b.recv(get, timeout=30)
    if line.startswith("[KVF RETIRE]"):
        assert r.status == "OK", dict(r)
    assert r.status in ("OK", "PEER_UNREACHABLE", "TRANSPORT"), dict(r)
    if r.status == "OK":
        assert b.bytes_of(r) == data
        b.ok("release", buffer=r["buffer"])
    b.quiet()
    dst.assert_all_free()
    src.clients = []


@pytest.mark.parametrize("how", list(SIZES))
def test_receiver_dies_when_a_push_is_published(make, how):
    """The sender is told once; its memory is its own again; pushed anew to the
    receiver's next start, the key is there whole."""
    src = make(0, conf=conf(how))
    dst = make(1, conf=conf(how), env={
        "LD_PRELOAD": KILL_AT, "KILL_AT": "[KVF PUT] key=k ",
        "KILL_PID": "self"})
    data = kvf.pattern(SIZES[how], 6)
    a = src.engine()
    buf = a.filled(data)
    push = {"key": "k", "segments": [{"buffer": buf["buffer"]}],
            "timeout_ms": 5000}
    w = a.send("push", target={"host": dst.peer_host,
                               "port": dst.peer_port}, **push)
    assert dst.proc.wait(20) == -9
    r = a.recv(w, timeout=30)
    assert r.status in ("PEER_UNREACHABLE", "TRANSPORT"), dict(r)
    a.quiet()
    dst.env = {k: v for k, v in dst.env.items() if k != "LD_PRELOAD"}
    dst.restart()
    a.ok("push", target={"host": dst.peer_host, "port": dst.peer_port},
         timeout=30, **push)
    assert dst.engine().fetch("k", mode="copy", wait=False) == data
    a.ok("free", buffer=buf["buffer"])
    src.assert_all_free()


MOVES = ["connecting -> asking", "asking -> moving", "moving -> confirming",
         "confirming -> done"]


@pytest.mark.parametrize("victim", ["sender", "receiver"])
@pytest.mark.parametrize("step", MOVES)
@pytest.mark.parametrize("how", ["shm", "tcp"])
def test_push_when_one_dies(make, tmp_path, how, step, victim):
    """At each step of a push that moves bytes: told once, whole or not there
    at the receiver, and its room is free again."""
    pid = tmp_path / "pid"
    src = make(0, conf=conf(how), env={
        "LD_PRELOAD": KILL_AT, "KILL_AT": f"push=k {step} (",
        "KILL_PID": "self" if victim == "sender" else str(pid)})
    dst = make(1, conf=conf(how))
    pid.write_text(str(dst.pid))
    a, b = src.engine(), dst.engine()
    data = kvf.pattern(SIZES[how], 7)
    buf = a.filled(data)
    w = a.send("push", key="k", segments=[{"buffer": buf["buffer"]}],
               target={"host": dst.peer_host, "port": dst.peer_port},
               timeout_ms=3000)
    if victim == "receiver":
        assert dst.proc.wait(20) == -9
        r = a.recv(w, timeout=30)
        assert r.status in ("OK", "PEER_UNREACHABLE", "TRANSPORT"), dict(r)
        assert r.status != "OK" or step == MOVES[-1]
        a.quiet()
        a.ok("free", buffer=buf["buffer"])
        src.assert_all_free()
        dst.clients = []
        return
    assert src.proc.wait(20) == -9
    src.clients = []
    # Its room, if it got some, is given back: what is left is the key.
    until(lambda: dst.pool()["receiving"] == 0 and
          dst.pool()["draining"] == 0, "no room is kept for the dead", 20)
    r = b.request("get", key="k", mode="copy", wait=False,
                  source={"host": dst.peer_host, "port": dst.peer_port})
    assert r.status in ("OK", "NOT_FOUND"), dict(r)
    if r.status == "OK":
        assert b.bytes_of(r) == data
        b.ok("release", buffer=r["buffer"])
    assert r.status == "OK" or step != MOVES[-1]
    dst.assert_all_free()
