"""Layouts, published blocks and pulls; windows and pushes: of both clients."""
import asyncio

import kvf
import numpy as np
import pytest

import kvferry

HEADS, TOKENS, DIM, BLOCKS = 4, 4, 8, 16


class Side:
    """A rank's cache of one layer: `pages` is [k or v, block, head, token,
    byte], whatever the order in memory."""

    def __init__(self, client, tp=1, rank=0, order="HND", region=None):
        self.client = client
        h = HEADS // tp
        page = h * TOKENS * DIM
        self.region = region or client.region(2 * BLOCKS * page)
        shape = (2, BLOCKS, h, TOKENS, DIM) if order == "HND" else \
            (2, BLOCKS, TOKENS, h, DIM)
        pages = self.region.numpy().reshape(shape)
        self.pages = pages if order == "HND" else \
            pages.transpose(0, 1, 3, 2, 4)
        self.fields = {
            "tp": tp, "rank": rank, "bs": TOKENS, "nblocks": BLOCKS,
            "order": order, "groups": [{"kind": "full"}],
            "layers": [{"name": "l0", "group": 0, "kind": "attn",
                        "comps": [["k", HEADS, DIM], ["v", HEADS, DIM]]}],
            "views": [{"layer": 0, "part": "kv"[i], "region": self.region,
                       "off0": i * BLOCKS * page, "stride": page,
                       "page": page} for i in (0, 1)]}

    def declare(self):
        self.layout = self.client.layout(**self.fields)
        return self


@pytest.fixture
def sides(two):
    a, b = two
    return Side(a).declare(), Side(b, order="NHD").declare()


def fill(pages, seed=1):
    pages[...] = np.random.default_rng(seed).integers(
        0, 256, pages.shape, "uint8")


def test_publish_and_pull(sides):
    p, d = sides
    fill(p.pages)
    before = d.pages.copy()
    handle = p.client.publish(p.layout, "req", 7, [(0, 0, [3, 1])],
                              notify=True)
    assert handle["request_id"] == "req" and len(handle["tag"]) == 16
    got = d.client.pull(d.layout, handle,
                        [kvferry.Blocks(0, 0, np.array([9, 4]))], timeout=10)
    assert isinstance(got, kvferry.Pulled) and got.transport == "shm"
    assert got.sources == ["0.0"] and got.timing["total_us"] > 0
    assert got.filled == [{"group": 0, "first_token": 0, "tokens": 7}]
    assert np.array_equal(d.pages[:, 9], p.pages[:, 3])
    assert np.array_equal(d.pages[:, 4, :, :3], p.pages[:, 1, :, :3])
    rest = [b for b in range(BLOCKS) if b not in (9, 4)]
    assert np.array_equal(d.pages[:, rest], before[:, rest])
    event = p.client.next_event(10)
    assert (event["event"], event["request_id"], event["reason"]) == (
        "retired", "req", "consumed")
    assert event["tag"] == handle["tag"] and event["consumers_done"] == 1
    with pytest.raises(kvferry.Consumed):
        d.client.pull(d.layout, handle, [(0, 0, [9, 4])], timeout=10)


def test_two_ranks_into_one(make, connect):
    ranks = [make(0, r) for r in range(2)]
    dst = make(1)
    for r in ranks:
        dst.knows(r)
    senders = [Side(connect(r), 2, i).declare() for i, r in enumerate(ranks)]
    d = Side(connect(dst)).declare()
    for i, s in enumerate(senders):
        fill(s.pages, i)
        handle = s.client.publish(s.layout, "req", 4, [(0, 0, [i])],
                                  tag=b"0123456789abcdef")
    got = d.client.pull(d.layout, handle, [(0, 0, [5])], timeout=10)
    assert sorted(got.sources) == ["0.0", "0.1"]
    whole = np.concatenate([s.pages[:, i] for i, s in enumerate(senders)],
                           axis=1)
    assert np.array_equal(d.pages[:, 5], whole)


def test_together(make, connect):
    """Both ranks of the receiver get it, or neither does."""
    src = make(0)
    dsts = [make(1, r) for r in range(2)]
    for d in dsts:
        d.knows(src)
    for d, other in (dsts, dsts[::-1]):
        d.knows(other)
    p = Side(connect(src)).declare()
    ds = [Side(connect(d), 2, i).declare() for i, d in enumerate(dsts)]
    fill(p.pages)

    def pull(i, name, blocks, timeout):
        return ds[i].client.start_pull(
            ds[i].layout, "req", [(0, 0, blocks)], from_=0, timeout=timeout,
            together=(name, 2))
    p.client.publish(p.layout, "req", 4, [(0, 0, [3])])
    first = pull(0, "a", [1], 1)  # the other one never asks
    with pytest.raises(kvferry.KvferryError):
        first.result()
    both = [pull(i, "b", [2 + i], 20) for i in range(2)]
    for i, x in enumerate(both):
        assert x.result().bytes == 2 * HEADS // 2 * TOKENS * DIM
        assert np.array_equal(ds[i].pages[:, 2 + i],
                              p.pages[:, 3, 2 * i:2 * i + 2])


def test_pull_waits_and_is_cancelled(sides):
    p, d = sides
    waiting = d.client.start_pull(d.layout, "late", [(0, 0, [1])], from_=0,
                                  timeout=30)
    kvf.until(lambda: p.client.stats()["blocks"]["parked"] == 1, "it waits")
    assert not waiting.done()
    p.client.publish(p.layout, "late", 4, [(0, 0, [2])])
    assert waiting.result().bytes > 0
    again = d.client.start_pull(d.layout, "never", [(0, 0, [1])], from_=0,
                                timeout=30)
    kvf.until(lambda: p.client.stats()["blocks"]["parked"] == 1, "it waits")
    again.cancel()
    with pytest.raises(kvferry.Cancelled):
        again.result()
    failing = d.client.start_pull(d.layout, "bad", [(0, 0, [1])], from_=0,
                                  timeout=30)
    kvf.until(lambda: p.client.stats()["blocks"]["parked"] == 1, "it waits")
    p.client.fail_request("bad", 0, 1, "out of memory")
    with pytest.raises(kvferry.Failed, match="out of memory"):
        failing.result()


def test_pull_errors(sides):
    p, d = sides
    with pytest.raises(kvferry.Timeout):
        d.client.pull(d.layout, "no", [(0, 0, [1])], from_=0, timeout=0.2)
    with pytest.raises(ValueError):
        d.client.pull(d.layout, "no", [(0, 0, [1])], timeout=1)
    with pytest.raises(ValueError):
        d.client.pull(d.layout, "no", [(0, 0, [1])], from_=0, timeout=0)
    with pytest.raises(kvferry.Invalid, match="layout"):
        d.client.pull(d.layout + 99, "no", [(0, 0, [1])], from_=0, timeout=1)
    with pytest.raises(kvferry.Invalid, match="E_BLOCK"):
        p.client.publish(p.layout, "r", 4, [(0, 0, [BLOCKS])])
    with pytest.raises(kvferry.Invalid):
        p.client.layout(**{**p.fields, "order": "XYZ"})
    handle = p.client.publish(p.layout, "r", 4, [(0, 0, [1])], ttl=0.1)
    kvf.until(lambda: p.client.stats()["blocks"]["published"] == 0, "expired")
    with pytest.raises(kvferry.Expired):
        d.client.pull(d.layout, handle, [(0, 0, [1])], timeout=5)


def test_a_new_daemon_needs_a_new_layout(sides):
    p, d = sides
    p.client.daemon.kill()
    p.client.daemon.restart()
    p.client.wait_for_daemon()
    with pytest.raises((kvferry.Stale, kvferry.Invalid)):
        p.client.publish(p.layout, "r", 4, [(0, 0, [1])])
    p.client.register(p.region)
    p.declare()
    p.client.publish(p.layout, "r", 4, [(0, 0, [1])])


def test_async(make):
    src, dst = make(0), make(1)
    dst.knows(src)

    async def go():
        async with kvferry.AsyncClient(src.endpoint) as a, \
                kvferry.AsyncClient(dst.endpoint) as b:
            p = Side(a, region=await a.region(4096))
            d = Side(b, region=await b.region(4096))
            fill(p.pages)
            p.layout = await a.layout(**p.fields)
            d.layout = await b.layout(**d.fields)
            task = asyncio.create_task(b.pull(
                d.layout, "r", [(0, 0, [2])], from_=0, timeout=10))
            await a.publish(p.layout, "r", 4, [(0, 0, [7])], notify=True)
            assert (await task).bytes == 2 * HEADS * TOKENS * DIM
            assert np.array_equal(d.pages[:, 2], p.pages[:, 7])
            event = await asyncio.wait_for(a.next_event(), 10)
            assert event["event"] == "retired"
            window = await b.expose("w", 64)
            to = (dst.peer_host, dst.peer_port)
            await a.write(to, "w", b"async", notify=b"n")
            assert bytes(window.view[:5]) == b"async"
            event = await asyncio.wait_for(b.next_event(), 10)
            assert (event["event"], event["notify"]) == ("written", b"n")
            assert (await a.push("k", b"x" * 9999, to)).size == 9999
            with await b.get("k") as payload:
                assert payload.size == 9999
    asyncio.run(go())


# ---- windows and pushes ------------------------------------------------------

def test_push(two):
    a, b = two
    to = (b.daemon.peer_host, b.daemon.peer_port)
    x = np.arange(50000, dtype="int32")
    moved = a.push("k", x, to, meta=b"i4", timeout=10)
    assert isinstance(moved, kvferry.Moved) and moved.size == x.nbytes
    with b.get("k") as p:
        assert np.array_equal(p.numpy("int32"), x) and p.meta == b"i4"
        assert p.generation == moved.generation
    with a.alloc(100) as buffer:
        buffer.view[:] = b"y" * 100
        a.push("k2", buffer, to)
        buffer.view[:1] = b"z"  # still this client's
        a.put("own", buffer)
    assert b.get("k2").to_bytes() == b"y" * 100
    assert a.get("own", 0).to_bytes() == b"z" + b"y" * 99
    a.push("small", b"s", to)
    with pytest.raises(kvferry.Exists):
        a.push("small", b"t", to, replace=False)
    with pytest.raises(kvferry.TooLarge):
        a.push("large", a.region(80 << 20), to)
    assert b.get("small").to_bytes() == b"s"
    moved = a.push("told", b"t", to, notify=True)
    assert b.get("told").to_bytes() == b"t"
    assert a.next_event(10) == {
        "event": "retired", "key": "told", "generation": moved.generation,
        "reason": "consumed", "readers_done": 1}


def test_windows(two):
    a, b = two
    to = (b.daemon.peer_host, b.daemon.peer_port)
    window = b.expose("box", 1000)
    assert len(window) == 1000 and "box" in repr(window)
    window.view[:] = bytes(1000)
    moved = a.write(to, "box", np.full(100, 7, "uint8"), 200, notify=b"here")
    assert moved.size == 100
    assert window.to_bytes() == bytes(200) + b"\7" * 100 + bytes(700)
    event = b.next_event(10)
    assert (event["event"], event["name"], event["notify"]) == (
        "written", "box", b"here")
    with a.read(to, "box", 50, 280) as got:
        assert got.to_bytes() == b"\7" * 20 + bytes(30)
    with a.alloc(30) as buffer:
        a.read(to, "box", offset=199, into=buffer.segment(10, 4))
        assert buffer.to_bytes()[10:14] == b"\0\7\7\7"
    for call, error in (
            (lambda: a.write(to, "box", b"x", 1000), kvferry.Invalid),
            (lambda: a.write(to, "other", b"x"), kvferry.NotFound),
            (lambda: b.expose("box", 10), kvferry.Exists),
            (lambda: a.read(to, "box"), TypeError),
            (lambda: a.write(to, "box", b"x", timeout=0), ValueError)):
        with pytest.raises(error):
            call()
    b.unexpose(window)
    with pytest.raises(ValueError):
        window.view
    with pytest.raises(kvferry.NotFound):
        a.write(to, "box", b"x")


def test_window_of_a_region(two):
    a, b = two
    region = b.region(4096)
    region.view[:4] = b"data"
    b.expose("ro", region, writable=False)
    to = (b.daemon.peer_host, b.daemon.peer_port)
    with a.read(to, "ro", 4) as got:
        assert bytes(got) == b"data"
    with pytest.raises(kvferry.Denied):
        a.write(to, "ro", b"x")
