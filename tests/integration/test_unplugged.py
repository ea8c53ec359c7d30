"""A wire between two daemons in namespaces of their own: cut, slow, lossy.

The cut is silent: no reset, no unreachable, only silence. What waits then must
be told within peer_timeout_ms, and all must work again once it is joined."""
import re
import time

import pytest

import kvf
import wire
from kvf_base import MIB, SLOW, until

PEER_TIMEOUT = 2.0
GRACE = 1.0 * SLOW


@pytest.fixture(scope="module")
def possible():
    why = wire.why_not()
    if why:
        pytest.skip(why)


@pytest.fixture
def wired(possible, make):
    """A wire and a pair over it, tcp only: shm does not mind a cut."""
    made = []

    def build(conf=None, **kw):
        w = wire.Wire(**kw)
        made.append(w)
        sides = []
        for side in (0, 1):
            sides.append(make(side, wrapper=w.inside(side), conf=kvf.merge(
                {"connector": {"host": wire.HOSTS[side], "protocol": "tcp",
                               "memory_pool_size": "160MiB"}}, conf)))
        src, dst = sides
        dst.knows(src)
        a, b = src.engine(), dst.engine()
        a.ok("put", b"x", key="kvf-meet")
        assert b.fetch("kvf-meet") == b"x"
        return w, src, dst, a, b
    yield build
    for d in make.made:
        d.close_clients()
    for d in make.made:  # SIGKILL would do; but a daemon must end cut off too
        if d.alive():
            d.terminate()
    for w in made:
        w.close()


def told_in(client, ids, began):
    """Every one of these is answered PEER_UNREACHABLE in time."""
    for i in ids:
        r = client.recv(i, timeout=20 * SLOW)
        took = time.monotonic() - began
        assert r.status == "PEER_UNREACHABLE", dict(r)
        assert took < PEER_TIMEOUT + GRACE, (took, dict(r))


def test_parked_gets_when_it_is_cut(wired):
    w, src, dst, a, b = wired()
    ids = [b.send("get", key=f"late{i}", timeout_ms=60000) for i in range(5)]
    until(lambda: src.stats()["keys"]["parked"] == 5, "parked")
    w.cut()
    told_in(b, ids, time.monotonic())
    b.want("PEER_UNREACHABLE", "get", key="late0", wait=False)
    # The owner lets go of them too.
    until(lambda: src.stats()["keys"]["parked"] == 0, "the owner forgot them")
    w.join()
    until(lambda: b.request("get", key="late1", wait=False).status ==
          "NOT_FOUND", "the peers have found each other again", 20)
    again = b.send("get", key="late1", timeout_ms=20000)
    until(lambda: src.stats()["keys"]["parked"] == 1, "parked again")
    a.ok("put", b"now", key="late1")
    r = b.recv(again, timeout=20 * SLOW)
    assert r.status == "OK" and b.bytes_of(r) == b"now"
    b.ok("release", buffer=r["buffer"])
    src.assert_all_free()
    dst.assert_all_free()


def test_a_transfer_when_it_is_cut(wired):
    w, src, dst, a, b = wired(rate=40e6)
    data = kvf.pattern(48 * MIB, 3)
    a.put("k", data)
    before = w.bytes
    get = b.send("get", key="k", mode="copy", timeout_ms=60000)
    until(lambda: w.bytes - before > 8 * MIB, "the bytes are moving")
    w.cut()
    told_in(b, [get], time.monotonic())
    assert w.bytes - before < len(data)  # it was in the middle
    w.join()
    # Nothing was consumed, and nothing of the half is left.
    until(lambda: b.request("get", key="none", wait=False).status ==
          "NOT_FOUND", "the peers have found each other again", 20)
    assert b.fetch("k", mode="copy", timeout_ms=20000) == data
    src.assert_all_free()
    dst.assert_all_free()


def test_short_cut_is_not_noticed(wired):
    """Less than peer_timeout_ms: the transfer goes on where it was."""
    w, src, dst, a, b = wired(rate=40e6)
    data = kvf.pattern(24 * MIB, 4)
    a.put("k", data)
    before = w.bytes
    get = b.send("get", key="k", mode="copy", timeout_ms=30000)
    until(lambda: w.bytes - before > 4 * MIB, "the bytes are moving")
    w.cut()
    time.sleep(0.5)  # the length of the cut is what is tested
    w.join()
    r = b.recv(get, timeout=30 * SLOW)
    assert r.status == "OK", dict(r)
    assert b.bytes_of(r) == data
    b.ok("release", buffer=r["buffer"])


@pytest.mark.slow
def test_slow_and_lossy(wired):
    """64 MiB over 5 ms each way and one packet in 300 lost: the bytes are
    right, and what the reply says of attempts is in the log."""
    seed = int(time.time())
    print("seed", seed)
    w, src, dst, a, b = wired(delay=0.005, loss=1 / 300, seed=seed,
                              conf={"log": {"level": "debug"}})
    data = kvf.pattern(64 * MIB, 5)
    a.put("k", data, checksum=True)
    lost = w.lost
    r = b.ok("get", key="k", mode="copy", timeout_ms=120000,
             timeout=150 * SLOW)
    assert b.bytes_of(r) == data
    assert w.lost > lost
    b.ok("release", buffer=r["buffer"])
    retries = len(re.findall(r"\[KVF RETRY\] key=k ", dst.log()))
    assert r["attempts"] == retries + 1
