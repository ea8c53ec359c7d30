"""A put that brings the buffer for the next one, and memory that goes back
without an answer."""
import pytest

import kvf
from kvf import until
from test_sessions import jam, stuck

SIZE = 100_000
HELD = 102_400


def published(engine, key="k", **fields):
    buf = engine.filled(kvf.pattern(SIZE))
    return engine.ok("put", key=key, segments=[{"buffer": buf["buffer"]}],
                     **fields)


# ---- put with next -----------------------------------------------------------

@pytest.mark.parametrize("checksum", [False, True])
def test_next_is_as_from_alloc(daemon, engine, checksum):
    r = published(engine, next=SIZE, checksum=checksum)
    nxt = r["next"]
    assert set(nxt) == {"buffer", "offset", "size"} and nxt["size"] == SIZE
    assert nxt["offset"] >= kvf.HEADER and daemon.pool()["filling"] == HELD
    data = kvf.pattern(SIZE, 9)
    engine.fill(nxt, data)
    engine.ok("put", key="k2", segments=[{"buffer": nxt["buffer"]}])
    assert engine.fetch("k2", mode="view") == data
    assert daemon.pool()["filling"] == 0


def test_next_of_a_payload_put_may_be_freed(daemon, engine):
    nxt = engine.ok("put", b"small", key="k", next=1)["next"]
    assert nxt["size"] == 1
    engine.ok("free", buffer=nxt["buffer"])
    assert daemon.pool()["filling"] == 0


def test_next_may_be_what_the_put_replaced(engine):
    """A pool of which half is published has room for it all the same."""
    half = (engine.info["pool"]["size"] - kvf.HEADER) // 8192 * 4096
    engine.put("k", b"x" * half, readers=0)
    buf = engine.alloc(half)
    r = engine.ok("put", key="k", segments=[{"buffer": buf["buffer"]}],
                  next=half)
    assert r["next"]["size"] == half


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1])
def test_no_room_for_next_is_a_put_all_the_same(daemon, engine, size):
    assert "next" not in published(engine, next=size)
    assert engine.ok("get", key="k", mode="view")["size"] == SIZE
    assert daemon.pool()["filling"] == 0


def test_no_next_with_a_put_that_failed(daemon, engine):
    published(engine)
    buf = engine.filled(b"again")
    r = engine.want("EXISTS", "put", key="k", next=SIZE,
                    on_duplicate="reject", segments=[{"buffer": buf["buffer"]}])
    assert "next" not in r
    engine.ok("free", buffer=buf["buffer"])
    assert daemon.pool()["filling"] == 0


def test_no_next_without_a_session_of_memory(make):
    c = make(0, conf={"worker": {"engine_endpoint": "tcp://127.0.0.1:*"}}
             ).client()
    assert "next" not in c.ok("put", b"x", key="k", next=SIZE)
    c.hello()
    assert "next" not in c.ok("put", b"x", key="k", next=SIZE)
    assert c.ok("stats")["pool"]["filling"] == 0


@pytest.mark.parametrize("value", [
    0, -1, 1 << 63, (1 << 64) - 1, 1.0, True, "4096", b"4096", [], {},
    [4096], {"size": 4096}])
def test_no_number_for_next(daemon, engine, value):
    """Nothing is published, nothing taken."""
    buf = engine.filled(b"12345")
    r = engine.want("INVALID", "put", key="k", next=value,
                    segments=[{"buffer": buf["buffer"]}])
    assert "next" in r["message"]
    engine.want("NOT_FOUND", "get", key="k", wait=False,
                source={"host": "127.0.0.1", "port": daemon.peer_port})
    engine.ok("free", buffer=buf["buffer"])
    assert daemon.pool()["filling"] == 0


def test_next_that_nobody_reads_goes_back(daemon, engine):
    """The reply waits for a socket that goes away, the session lives on."""
    engine.put("big", kvf.pattern(2000), readers=0)
    lazy = stuck(daemon)
    lazy.send("hello", version=1, session=engine.session)
    jam(lazy, engine)
    for i in range(3):
        lazy.send("put", b"x", key=f"k{i}", next=SIZE, checksum=i == 1)
    until(lambda: daemon.pool()["filling"] == 3 * HELD, "given")
    lazy.sock.close(0)
    until(lambda: daemon.pool()["filling"] == 0, "given back")
    assert engine.ok("get", key="k2", mode="inline").payload == b"x"


def test_next_goes_with_its_session(daemon, engine):
    c = daemon.engine()
    published(c, next=SIZE)
    c.ok("bye")
    until(lambda: daemon.pool()["filling"] == 0, "given back")


# ---- quiet -------------------------------------------------------------------

def test_quiet_release_and_free(daemon, engine):
    published(engine, readers=0)
    for mode in "view", "copy":
        g = engine.ok("get", key="k", mode=mode)
        engine.send("release", buffer=g["buffer"], quiet=True)
        engine.send("release", buffer=g["buffer"], quiet=True)  # idempotent
    engine.send("free", buffer=engine.alloc(SIZE)["buffer"], quiet=True)
    n = engine.send("ping")
    assert engine.recv_any()["id"] == n  # the first that comes
    s = engine.ok("stats")
    assert s["gets"]["views"] == 0
    assert s["pool"]["held"] == s["pool"]["filling"] == 0


def test_quiet_is_about_ok_only(engine):
    buf = engine.alloc(SIZE)["buffer"]
    engine.want("INVALID", "release", buffer=buf, quiet=True)
    published(engine)
    engine.want("INVALID", "free", buffer=1, quiet=True)
    engine.ok("free", buffer=buf, quiet=False)
    engine.ok("release", buffer=buf, quiet=False)


def test_quiet_without_a_session_is_stale(daemon):
    c = daemon.client()
    c.want("STALE", "release", buffer=1, quiet=True)
    c.want("STALE", "free", buffer=1, quiet=True)


@pytest.mark.parametrize("value", [0, 1, 1.0, "yes", b"", [], {}])
@pytest.mark.parametrize("op", ["release", "free"])
def test_no_bool_for_quiet(daemon, engine, op, value):
    """Answered, and nothing is given back."""
    buf = engine.alloc(SIZE)["buffer"]
    r = engine.want("INVALID", op, buffer=buf, quiet=value)
    assert "quiet" in r["message"] and daemon.pool()["filling"] == HELD
    engine.ok("free", buffer=buf)
