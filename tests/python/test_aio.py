"""AsyncClient."""
import asyncio
import gc
import time

import kvf
import numpy as np
import pytest

import kvferry
from kvferry import AsyncClient


def test_many_at_once(two):
    a, b = two

    async def main():
        async with AsyncClient(a.daemon.endpoint) as x, \
                AsyncClient(b.daemon.endpoint) as y:
            async def one(i):
                data = kvf.pattern(1 + i * 3571 % 100_000, seed=i)
                waiting = asyncio.create_task(y.get(f"k{i}", 0, timeout=20))
                await asyncio.sleep(0)
                await x.put(f"k{i}", data)
                with await waiting as p:
                    assert p.to_bytes() == data
            await asyncio.gather(*(one(i) for i in range(200)))
            with pytest.raises(kvferry.Timeout):
                await y.get("no", 0, timeout=0.1)
            got = await y.mget(["no"], timeout=0)
            assert isinstance(got[0], kvferry.NotFound)
    asyncio.run(main())


def test_memory(one):
    async def main():
        async with AsyncClient(one.daemon.endpoint) as c:
            buffer = await c.alloc(1 << 20)
            buffer.numpy("float32")[:] = 3
            await c.put("k", buffer)
            with await c.get("k") as p:
                assert (p.numpy("float32") == 3).all()
            region = await c.region(100)
            region.view[:] = b"r" * 100
            await c.put("r", region, notify=True)
            assert bytes(await c.get("r", mode="copy")) == b"r" * 100
            event = await asyncio.wait_for(c.next_event(), 5)
            assert event["key"] == "r"
            await c.unregister(region)
            await c.fail("f", "because")
            assert await c.cleanup("nothing") == 0
            assert (await c.health())["health"] == "healthy"
            assert await c.list("zz") == []
            assert np.isscalar((await c.stats())["pool"]["size"])
            gc.collect()
    asyncio.run(main())


async def parked(one):
    """Until a get waits at the daemon."""
    while not one.daemon.stats()["keys"]["parked"]:
        await asyncio.sleep(0.005)


def test_cancelled_task_cancels_the_get(one):
    async def main():
        async with AsyncClient(one.daemon.endpoint) as c:
            task = asyncio.create_task(c.get("k", one.me, timeout=30))
            await parked(one)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(c.get("k", one.me, timeout=30), 0.1)
            await c.put("k", b"1")
            assert bytes(await c.get("k", timeout=5)) == b"1"
    asyncio.run(main())


def test_restart(one):
    async def main():
        async with AsyncClient(one.daemon.endpoint,
                               connect_timeout=0.3) as c:
            task = asyncio.create_task(c.get("k", one.me, timeout=30))
            await parked(one)
            one.daemon.kill()
            with pytest.raises(kvferry.ConnectionLost):
                await task
            began = time.monotonic()
            with pytest.raises(kvferry.ConnectionLost):
                await c.ping()
            assert time.monotonic() - began < 3 * kvf.SLOW
            one.daemon.restart()
            await c.wait_for_daemon(10)
            await c.put("k", b"x" * 10000)
            assert bytes(await c.get("k")) == b"x" * 10000
    asyncio.run(main())


def test_closed(one):
    async def main():
        c = AsyncClient(one.daemon.endpoint)
        await c.ping()
        task = asyncio.create_task(c.get("k", one.me, timeout=30))
        await parked(one)
        await c.close()
        await c.close()
        with pytest.raises(kvferry.ClientClosed):
            await task
    asyncio.run(main())


def test_loop_closed_before_the_client(one):
    """Nothing is left behind at the daemon, and close() works elsewhere."""
    async def work(c):
        await c.open()
        return await c.get("k")
    one.put("k", b"x" * 100000, readers=0)
    for ends in ("close", "collected"):
        c = kvferry.AsyncClient(one.daemon.endpoint)
        loop = asyncio.new_event_loop()
        payload = loop.run_until_complete(work(c))
        loop.close()
        with pytest.raises(RuntimeError):
            asyncio.run(c.ping())
        payload.release()
        if ends == "close":
            asyncio.run(c.close())
        del c, loop
        gc.collect()
        kvf.until(lambda: one.stats()["engines"]["sessions"] == 1,
                  "its session has ended")
