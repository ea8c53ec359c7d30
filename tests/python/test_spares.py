"""Buffers that are allocated ahead of the puts that will need them."""
import threading

import kvf
import pytest

import kvferry
from kvferry import lanes, spares
from together import in_threads

SIZE = 100_000
HELD = 102_400  # of the pool


def pool_of(client):
    return client.stats()["pool"]


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """None goes back because the machine is slow."""
    monkeypatch.setattr(spares, "_KEEP", 60.0)


@pytest.fixture
def small(make, connect):
    """A client of a daemon with 4 MiB."""
    return connect(make(0, conf={"connector": {"memory_pool_size": "4MiB"}}))


def test_the_second_of_a_size_asks_for_the_third(one):
    for n, held in enumerate((0, 1, 1, 1)):
        data = kvf.pattern(SIZE - n, seed=n)  # the same number of pages
        one.put("k", data)
        assert pool_of(one)["filling"] == held * HELD
        assert one.get("k").to_bytes() == data


def test_not_for_puts_that_are_far_apart(one, monkeypatch):
    monkeypatch.setattr(spares, "_KEEP", 0.0)
    for _ in range(4):
        one.put("k", b"x" * SIZE)
        assert pool_of(one)["filling"] == 0


def test_as_many_as_were_under_way_and_no_more(two):
    a, b = two
    limit = pool_of(a)["size"] // 16

    def work(i):
        for n in range(60):
            data = kvf.pattern(SIZE, seed=i * 100 + n)
            a.put(f"{i}", data)
            got = b.get(f"{i}", 0, timeout=20)
            assert got.to_bytes() == data
            got.release()
    in_threads(6, work)
    assert 0 < pool_of(a)["filling"] <= min(limit, 16 * HELD)


def put_at_once(client):
    pending = threading.Barrier(4)

    def work(i):
        for _ in range(10):
            pending.wait(kvf.WAIT)
            client.put(f"{i}", b"x" * SIZE)
    in_threads(4, work)


def test_never_more_than_a_sixteenth(small):
    """4 MiB / 16 are two of them."""
    put_at_once(small)
    assert pool_of(small)["filling"] <= 2 * HELD


@pytest.mark.parametrize("name, most", [("_BYTES", 2 * HELD), ("_COUNT", 2)])
def test_never_more_than_so_many(one, monkeypatch, name, most):
    monkeypatch.setattr(spares, name, most)
    put_at_once(one)
    assert 0 < pool_of(one)["filling"] <= 2 * HELD


def test_all_goes_back_when_the_pool_is_short(small):
    for n in range(3):
        small.put("k", b"x" * SIZE)
        small.get("k").release()
    assert pool_of(small)["filling"] == HELD
    size = pool_of(small)["size"] - kvf.HEADER
    with small.alloc(size) as buffer:
        assert buffer.size == size
        assert pool_of(small)["free"] == 0
        with pytest.raises(kvferry.NoSpace):
            small.put("k", b"x" * SIZE)
    small.put("k", b"x" * SIZE)
    assert pool_of(small)["filling"] == 0  # for a while none is asked for


def test_a_copy_that_finds_no_room_takes_theirs(make, connect):
    src = make(0)
    dst = make(1, conf={"connector": {"memory_pool_size": "4MiB"}})
    dst.knows(src)
    a, b = connect(src), connect(dst)
    for n in range(3):
        b.put("own", b"x" * SIZE)
        b.get("own").release()
    assert pool_of(b)["filling"] == HELD
    size = pool_of(b)["size"] - kvf.HEADER
    a.put("k", b"y" * size)
    with b.get("k", 0, mode="copy", timeout=10) as payload:
        assert payload.mode == "copy" and payload.size == size


def test_what_is_not_needed_goes_back(one, monkeypatch):
    for n in range(3):
        one.put("k", b"x" * SIZE)
    assert pool_of(one)["filling"] == HELD
    monkeypatch.setattr(spares, "_KEEP", 0.01)
    one._engine.spares.due = 0
    kvf.until(lambda: pool_of(one)["filling"] == 0, "gone when unused")
    kvf.until(lambda: one.ping() or not one._engine.spares._shelves, "all of it")


def test_with_the_client_all_goes_back(make, connect):
    d = make(0)
    c, other = connect(d), connect(d)
    for n in range(3):
        c.put("k", b"x" * SIZE)
    assert pool_of(other)["filling"] == HELD
    c.close()
    kvf.until(lambda: pool_of(other)["filling"] == 0, "given back")


def test_spares_of_a_daemon_that_was_restarted(one):
    """A put that has copied into one of them is not told."""
    for n in range(3):
        one.put("k", b"x" * SIZE)
    assert len(one._engine.spares._shelves[HELD].ready) == 1
    one.daemon.kill()
    one.daemon.restart()
    data = kvf.pattern(SIZE)
    assert one.put("k", data).size == SIZE
    assert one.get("k").to_bytes() == data


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupted_put_gives_its_spare_back(one, monkeypatch, before):
    for n in range(3):
        one.put("k", b"x" * SIZE)
    real = lanes.Lanes.run

    def interrupted(*args):
        if not before:
            real(*args)
        monkeypatch.undo()
        raise KeyboardInterrupt
    monkeypatch.setattr(lanes.Lanes, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.put("k2", b"x" * SIZE)
    one.fail("k")
    one.fail("k2")
    one._engine.spares.give_back()  # those that wait for the next put
    kvf.until(lambda: pool_of(one)["buffers"] == 0, "all is given back")
