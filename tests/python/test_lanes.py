"""Lanes: the connections that waiting threads have for themselves."""
import gc
import os
import random
import signal
import threading
import time

import kvf
import pytest

import kvferry
from kvferry import engine, lane, lanes, ops, spares


def in_use(client):
    its = client._engine.lanes
    return len(its._open) - len(its._idle)


def waiting_gets(client, n, timeout=30):
    """n threads that wait for keys w0, w1, ...; join them."""
    got = [None] * n

    def wait(i):
        try:
            got[i] = client.get(f"w{i}", client.me, timeout=timeout).to_bytes()
        except kvferry.KvferryError as e:
            got[i] = e
    threads = [threading.Thread(target=wait, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    return threads, got


def joined(threads):
    for t in threads:
        t.join(kvf.WAIT)
        assert not t.is_alive()


def once(real, before=False):
    """real, with a KeyboardInterrupt after (before) its first call."""
    state = [True]

    def interrupted(*args, **kw):
        first, state[0] = state[0], False
        if first and before:
            raise KeyboardInterrupt
        result = real(*args, **kw)
        if first:
            raise KeyboardInterrupt
        return result
    return interrupted


@pytest.mark.parametrize("place, name, before", [
    (lane.Lane, "send", True), (lane.Lane, "send", False),
    (lane.Lane, "read", True), (lane.Lane, "read", False),
    (lane, "unpackb", False), (lane.Lane, "call", False),
    (lanes.Lanes, "run", False), (ops, "payload_of", True),
    (ops, "payload_of", False), (ops, "Lease", True), (ops, "Lease", False),
    (lane, "sock_send", False), (engine.Engine, "look", True)])
@pytest.mark.parametrize("what", ["alloc", "put", "get", "release"])
def test_interrupt(one, monkeypatch, what, place, name, before):
    """What an interrupted call was given goes back at once, and the next one
    works, by a lane."""
    def filling():
        pool = one.stats()["pool"]
        return pool["size"] - pool["free"] - kvf.HEADER
    data = b"1" * 10000
    one.put("k", data)
    payload = one.get("k") if what == "release" else None
    monkeypatch.setattr(place, name, once(getattr(place, name), before))
    try:
        if what == "alloc":
            one.alloc(10000).release()
        elif what == "put":
            one.put("k2", data)
        elif what == "get":
            one.get("k").release()
        else:
            payload.release()
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    del payload
    one.fail("k")
    one.fail("k2")
    kvf.until(lambda: filling() == 0, "all was given back")
    one.put("k", data)
    assert one.get("k").to_bytes() == data
    assert not one._engine.calls and in_use(one) == 0


@pytest.mark.parametrize("before", [True, False])
def test_interrupt_at_the_end_of_with(one, monkeypatch, before):
    """It is raised, not printed by the garbage collector."""
    one.put("k", b"1" * 10000)
    with pytest.raises(KeyboardInterrupt):
        with one.get("k"):
            monkeypatch.setattr(lanes.Lanes, "post",
                                once(lanes.Lanes.post, before))
    kvf.until(lambda: one.stats()["pool"]["buffers"] == 0, "given back")


def test_interrupts_at_random(one, monkeypatch):
    """By a signal, at any moment. One in a hundred may hit a moment at which
    the reply is nobody's yet."""
    monkeypatch.setattr(spares, "_KEEP", 0.0)  # these go back later
    def ring(*a):
        raise KeyboardInterrupt
    rng, hits = random.Random(5), 0
    old = signal.signal(signal.SIGALRM, ring)
    try:
        for n in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 6e-4))
                one.put("k", b"1" * 10000)
                one.get("k", timeout=5).release()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    one.fail("k")

    def buffers():
        gc.collect()
        return one.stats()["pool"]["buffers"]
    assert hits > 50
    try:
        kvf.until(lambda: buffers() == 0, "all was given back")
    except AssertionError:
        assert buffers() <= hits // 100 + 1


def test_a_lane_for_each_that_waits(one):
    """And the shared connection for those who find none."""
    n = len(one._engine.lanes._slots) + len(one._engine.lanes._open) + 4
    threads, got = waiting_gets(one, n)
    kvf.until(lambda: len(one._engine.calls) == 4 and in_use(one) == n - 4,
              "all wait")
    for i in range(n):
        one.put(f"w{i}", b"%d" % i)
    joined(threads)
    assert got == [b"%d" % i for i in range(n)]
    assert in_use(one) == 0
    one.ping()  # by a lane again
    assert not one._engine.calls


def test_who_waits_long_is_told_of_a_lost_daemon(one):
    threads, got = waiting_gets(one, 3)
    kvf.until(lambda: in_use(one) == 3, "all wait")
    time.sleep(0.1)  # past what is waited in one system call
    began = time.monotonic()
    one.daemon.kill()
    joined(threads)
    assert time.monotonic() - began < 2 * kvf.SLOW
    assert all(isinstance(e, kvferry.ConnectionLost) for e in got)
    one.daemon.restart()
    assert one.put("k", b"1").size == 1  # nothing was under way
    assert one.get("k").to_bytes() == b"1"


def test_many_restarts_beside_lanes(one):
    """A lane of an old session is not used."""
    for n in range(3):
        assert one.put("k", b"%d" % n * 5000).size == 5000
        assert one.get("k").to_bytes() == b"%d" % n * 5000
        one.daemon.kill()
        one.daemon.restart()
    one.ping()
    assert len(one._engine.lanes._open) <= 2


def test_given_back_before_what_another_thread_asks(make, connect):
    """A pool of which all is taken: what one thread gives back, the next one
    finds, whichever lanes they got."""
    c = connect(make(0, conf={"connector": {"memory_pool_size": "4MiB"}}))
    size = c.stats()["pool"]["largest_free"]
    turn, over, errors = threading.Barrier(2), threading.Event(), []

    def work(i):
        try:
            for n in range(50):
                turn.wait(kvf.WAIT)
                if n % 2 == i:
                    c.alloc(size).release()
        except BaseException as e:
            errors.append(e)
            turn.abort()

    def shuffle_lanes():
        while not over.is_set():
            c.ping()
    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    others = [threading.Thread(target=shuffle_lanes) for _ in range(3)]
    for t in workers + others:
        t.start()
    joined(workers)
    over.set()
    joined(others)
    assert not errors


def test_close_gives_descriptors_back(make, connect):
    d = make(0)

    def fds():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))
    def use():
        c = kvferry.Client(d.endpoint, name="test")
        c.me = (d.peer_host, d.peer_port)
        threads, got = waiting_gets(c, 4)
        kvf.until(lambda: in_use(c) == 4, "all wait")
        c.close()
        joined(threads)
        assert all(isinstance(e, kvferry.ClientClosed) for e in got)
    before = fds()
    use()
    assert fds() <= before


def test_not_after_a_fork(one):
    """A child has no part in its parent's lanes, and does not harm them."""
    one.ping()
    pid = os.fork()
    if pid == 0:
        try:
            one.ping()
        except kvferry.ClientClosed:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    one.put("k", b"1")
    assert one.get("k").to_bytes() == b"1"


def test_events_do_not_come_to_lanes(one):
    """What events may come of goes by the shared connection."""
    one.ping()
    one.put("k", b"1", notify=True)
    one.get("k").release()
    assert one.next_event(5)["reason"] == "consumed"
