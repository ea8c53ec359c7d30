"""Threads, lost daemons, events."""
import os
import threading
import time

import kvf
import pytest

import kvferry
from together import in_threads


def test_many_threads(two):
    a, b = two

    def work(i):
        for n in range(40):
            data = kvf.pattern(1 + (i * 997 + n * 7919) % 200_000, seed=n)
            key = f"{i}/{n}"
            if n % 2:
                a.put(key, data)
                p = b.get(key, 0, timeout=20)
            else:
                pending = b.start_get(key, 0, timeout=20)
                a.put(key, data)
                p = pending.result()
            assert p.to_bytes() == data
            p.release()
    in_threads(8, work)
    kvf.until(lambda: a.stats()["pool"]["published"] == 0, "consumed")


def test_gates_are_opened_once(one):
    """Also when another thread settles in the middle of it."""
    e, opened = one._engine, []

    class Gate:
        def release(self):
            opened.append(self)
            e.settle()
    gates = [Gate(), Gate(), Gate()]
    e.gates.extend(gates)
    e.settle()
    assert opened == gates and not e.gates


def test_the_leader_s_job_is_not_lost(one):
    """A thread to which the reading was handed on, and whose reply somebody
    else reads before it runs, hands it on in its turn."""
    e, pending, threads = one._engine, [], []

    def wait(p):
        with pytest.raises((kvferry.Cancelled, kvferry.ClientClosed)):
            p.result()
    one._leader, one._lead_until = object(), float("inf")  # so both follow
    for n in range(2):
        pending.append(one.start_get(f"k{n}", one.me, timeout=30))
        pending[n]._call.wake_at = float("inf")  # nothing else wakes them
        threads.append(threading.Thread(target=wait, args=(pending[n],),
                                        daemon=True))
        threads[n].start()
        kvf.until(lambda: len(one._followers) == n + 1, "it follows")
    first, second = (p._call for p in pending)
    with e.lock:
        one._leader = None
        one._hand_on()
        assert first.leads and list(one._followers) == [second]
        e._complete(first, None, kvferry.Cancelled("read by somebody else"))
    e.settle()
    kvf.until(lambda: one._leader is second, "the second one reads")
    one.close()
    for t in threads:
        t.join(kvf.WAIT)
        assert not t.is_alive()


def test_waiters_do_not_hold_up_others(one):
    """Many wait; one works; each gets its own."""
    def wait(i):
        assert one.get(f"k{i}", one.me, timeout=30).to_bytes() == b"%d" % i

    def work():
        for i in range(200):
            one.ping()
        for i in reversed(range(20)):
            one.put(f"k{i}", b"%d" % i)
    waiters = [threading.Thread(target=wait, args=(i,)) for i in range(20)]
    for t in waiters:
        t.start()
    began = time.monotonic()
    work()
    for t in waiters:
        t.join(20)
        assert not t.is_alive()
    assert time.monotonic() - began < 10 * kvf.SLOW


def test_restart(one):
    d = one.daemon
    one.put("k", b"x" * 100000, readers=0)
    old = one.alloc(1000)
    p = one.get("k")
    incarnation = one.info["incarnation"]
    pending = one.start_get("never", one.me, timeout=30)
    d.kill()
    with pytest.raises(kvferry.ConnectionLost):
        pending.result()
    assert p.to_bytes() == b"x" * 100000  # mapped until released
    began = time.monotonic()
    with pytest.raises(kvferry.ConnectionLost, match="is kvferryd running"):
        one.ping()
    assert 1 < time.monotonic() - began < 4 * kvf.SLOW
    d.restart()
    with pytest.raises((kvferry.Stale, kvferry.Invalid)):
        one.put("k", old)
        one.put("k", old)
    with pytest.raises(kvferry.NotFound):
        one.get("k", timeout=0, source=(d.peer_host, d.peer_port))
    assert one.info["incarnation"] != incarnation
    p.release()
    old.release()
    one.put("k", b"y" * 100000)
    assert one.get("k").to_bytes() == b"y" * 100000


def test_restart_while_idle(one):
    one.daemon.kill()
    one.daemon.restart()
    assert one.put("k", b"1").size == 1  # no error: nothing was under way
    assert one.get("k").to_bytes() == b"1"


def test_wait_for_daemon(one):
    one.daemon.kill()
    t = threading.Timer(0.5, one.daemon.restart)
    t.start()
    one.wait_for_daemon(20)
    t.join()
    with pytest.raises(kvferry.ConnectionLost):
        one.daemon.kill()
        one._engine.connect_timeout = 0.1
        one.wait_for_daemon(0.3)


def test_restart_under_threads(one):
    """Calls fail clearly or succeed; afterwards all is as before."""
    stop = threading.Event()
    lost, rounds = [], [0] * 4

    def work(i):
        n = 0
        while not stop.is_set():
            n += 1
            try:
                one.put(f"{i}", b"%d" % n * 3000)
                p = one.get(f"{i}", timeout=5)
                assert p.to_bytes() == b"%d" % n * 3000
                p.release()
                rounds[i] += 1
            except (kvferry.ConnectionLost, kvferry.Stale, kvferry.Invalid,
                    kvferry.NotFound, kvferry.Timeout) as e:
                lost.append(e)

    def all_at_work():
        """Each has done some rounds since now."""
        before = list(rounds)
        kvf.until(lambda: all(n >= b + 5 for n, b in zip(rounds, before)),
                  "everybody works", 20)

    def restart(i):
        try:
            all_at_work()
            one.daemon.kill()
            one.daemon.restart()
            all_at_work()
        finally:
            stop.set()
    in_threads(5, lambda i: restart(i) if i == 4 else work(i))
    assert any(isinstance(e, kvferry.ConnectionLost) for e in lost)
    one.cleanup("x")
    one.put("k", b"1")
    assert one.get("k").to_bytes() == b"1"


def test_views_of_a_restarted_owner(two):
    a, b = two
    a.put("k", b"v" * 200000)
    p = b.get("k", timeout=5)
    assert p.transport == "shm"
    b.daemon.kill()
    b.daemon.restart()
    b.daemon.knows(a.daemon)
    b.ping()
    assert p.to_bytes() == b"v" * 200000
    p.release()  # now b names the old incarnation in `unmapped`
    kvf.until(lambda: a.ping() or a.stats()["pool"]["claimed"] == 0,
              "the old claim ends")


def test_daemon_that_stands_still(one):
    one._engine.timeout = 0.5
    one.daemon.stop()
    try:
        began = time.monotonic()
        with pytest.raises(kvferry.ConnectionLost):
            one.ping()
        with pytest.raises(kvferry.ConnectionLost):
            one.get("k", timeout=float("inf"))
        assert time.monotonic() - began < 10
    finally:
        one.daemon.cont()
    one.wait_for_daemon(10)
    pending = one.start_get("k", one.me, timeout=float("inf"))
    one.daemon.stop()
    try:
        with pytest.raises(kvferry.ConnectionLost):
            pending.result()  # found by a ping
    finally:
        one.daemon.cont()
    one.wait_for_daemon(10)


def test_no_daemon(tmp_path):
    with pytest.raises(kvferry.ConnectionLost, match="nobody"):
        kvferry.Client(f"ipc://{tmp_path}/nobody", connect_timeout=0.2)
    with pytest.raises(kvferry.KvferryError):
        kvferry.Client("what://is.this", connect_timeout=0.2)


def test_closed(one):
    pending = one.start_get("k", one.me, timeout=30)
    buffer = one.alloc(10)
    one.close()
    one.close()
    with pytest.raises(kvferry.ClientClosed):
        pending.result()
    with pytest.raises(kvferry.ClientClosed):
        one.ping()
    buffer.release()


def test_close_wakes_waiters(one):
    got = []

    def wait():
        try:
            one.get("k", one.me, timeout=30)
        except kvferry.ClientClosed as e:
            got.append(e)
    threads = [threading.Thread(target=wait) for _ in range(3)]
    for t in threads:
        t.start()
    lanes = one._engine.lanes
    kvf.until(lambda: len(lanes._open) - len(lanes._idle) == 3, "waiting")
    one.close()
    for t in threads:
        t.join(5)
    assert len(got) == 3


def test_interrupt_gives_up(one):
    """A signal's exception ends the wait and the request at the daemon."""
    import signal

    def ring(*a):
        raise KeyboardInterrupt
    old = signal.signal(signal.SIGUSR1, ring)
    t = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    t.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            one.get("k", one.me, timeout=30)
    finally:
        t.join()
        signal.signal(signal.SIGUSR1, old)
    one.put("k", b"1")  # nobody takes it
    assert one.get("k", timeout=5).to_bytes() == b"1"


@pytest.mark.parametrize("function, nth", [
    ("_sock_send", 1), ("_sock_send", 2), ("_get", 1), ("_get", 2),
    ("_get", 3), ("_sock_recv", 1)])
def test_interrupt_inside_a_message(one, monkeypatch, function, nth):
    """What was half sent or half read is not taken for a message: the
    connection goes, and the next call has a new one."""
    from kvferry import engine
    real, calls = getattr(engine, function), []
    waiting = one.start_get("k2", one.me, timeout=30)

    def interrupted(*args):
        result = real(*args)
        calls.append(args)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return result
    monkeypatch.setattr(engine, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.put("k", b"1", notify=True)  # two frames; not by a lane
    monkeypatch.undo()
    assert one.put("k", b"2").size == 1
    assert one.get("k", timeout=5).to_bytes() == b"2"
    with pytest.raises(kvferry.ConnectionLost, match="interrupted"):
        waiting.result()


def test_interrupt_of_the_reader(one, monkeypatch):
    """It reads for the others, too: one of them takes over."""
    started = threading.Event()
    poll = one._poll

    def interrupted(me, poller, until):
        if threading.current_thread() is threading.main_thread():
            started.set()
            kvf.until(lambda: one._followers, "the other one follows")
            raise KeyboardInterrupt
        poll(me, poller, until)
    monkeypatch.setattr(one, "_poll", interrupted)
    pending = one.start_get("k", one.me, timeout=30)
    got = []

    def other():
        started.wait(kvf.WAIT)
        got.append(pending.result().to_bytes())
    t = threading.Thread(target=other)
    t.start()
    with pytest.raises(KeyboardInterrupt):
        one.start_get("k2", one.me, timeout=30).result()
    kvf.until(lambda: one._leader is pending._call, "the other one reads")
    monkeypatch.undo()
    one.put("k", b"1")
    t.join(kvf.WAIT)
    assert got == [b"1"]


def test_on_event(make, connect):
    d = make(0)
    got, here = [], threading.Event()

    def on_event(event):
        got.append((event, threading.current_thread().name))
        here.set()
        raise RuntimeError("logged, not fatal")
    c = connect(d, on_event=on_event)
    for i in range(3):
        here.clear()
        c.put("k", b"1", notify=True)
        c.get("k").release()
        assert here.wait(kvf.WAIT)
        event, thread = got[-1]
        assert event["event"] == "retired" and thread == "kvferry-events"
    assert len(got) == 3
    other = connect(d)
    other.drain(timeout=1)
    kvf.until(lambda: any(e["event"] == "drain" for e, _ in got), "drain")
    d.proc.wait(kvf.WAIT)


def test_next_event_beside_calls(one):
    seen = []

    def events(i):
        if i == 0:
            while len(seen) < 50:
                e = one.next_event(10)
                assert e is not None
                seen.append(e["key"])
        else:
            for n in range(50):
                one.put(f"k{n}", b"1", notify=True)
                one.get(f"k{n}").release()
    in_threads(2, events)
    assert seen == [f"k{n}" for n in range(50)]
    assert one.next_event(0.05) is None


@pytest.mark.parametrize("lane", [True, False])
def test_a_reply_is_about_the_pool_of_its_session(one, monkeypatch, lane):
    """Another thread may have a new session, with another pool, when it has
    come."""
    e, call = one._engine, one._call
    one.put("k", b"x" * 8192)

    def late(request):
        monkeypatch.undo()
        if not lane:
            monkeypatch.setattr(e.lanes, "run", lambda request: None)
        result = call(request)
        monkeypatch.setattr(e, "pool", None)
        return result
    for what in (lambda: one.get("k", one.me, timeout=5),
                 lambda: one.alloc(8192), lambda: one.expose("w", 8192)):
        monkeypatch.setattr(one, "_call", late)
        memory = what()
        monkeypatch.undo()
        assert len(memory) == 8192
        if isinstance(memory, kvferry.Payload):
            assert memory.to_bytes() == b"x" * 8192
        if isinstance(memory, kvferry.Window):
            one.unexpose(memory)
        else:
            memory.release()
