"""Section 4: the pool, buffers, regions, and who may do what with them."""
import errno
import fcntl
import mmap
import os
import random
import signal
import tempfile

import pytest

import kvf
from kvf import HEADER, KIB, MIB, until

F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEAL_SHRINK, SEAL_GROW = 2, 4


class Memfd:
    """Memory of this process, sealed against shrinking unless told not."""

    def __init__(self, size, seal=True):
        self.fd = os.memfd_create("engine",
                                  os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        if seal:
            fcntl.fcntl(self.fd, F_ADD_SEALS, SEAL_SHRINK)
        self.map = mmap.mmap(self.fd, size)
        self.size = size

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.close(self.fd)
        self.map.close()


# -- the pool -------------------------------------------------------------
def test_header_page_names_magic_version_incarnation_and_size(engine):
    magic, version, head, inc, size = kvf.header(engine.pool())
    assert magic == b"KVFPOOL1" and version == 1 and head == HEADER
    assert inc == engine.info["incarnation"]
    assert size == engine.info["pool"]["size"]


def test_pool_file_has_the_told_size_and_is_sealed(engine):
    fd = os.open(engine.info["pool"]["path"], os.O_RDWR)
    try:
        size = engine.info["pool"]["size"]
        assert os.fstat(fd).st_size == size
        seals = fcntl.fcntl(fd, F_GET_SEALS)
        assert seals & SEAL_SHRINK and seals & SEAL_GROW
        for to in (size - HEADER, size + HEADER, 0):
            with pytest.raises(OSError) as e:
                os.ftruncate(fd, to)
            assert e.value.errno == errno.EPERM
    finally:
        os.close(fd)


def test_each_incarnation_makes_a_new_inode(daemon):
    c = daemon.engine()
    st = os.stat(c.info["pool"]["path"])
    old_map = c.pool()
    inc = kvf.header(old_map)[3]
    daemon.kill()
    daemon.restart()
    d = daemon.engine()
    now = os.stat(d.info["pool"]["path"])
    assert (st.st_dev, st.st_ino) != (now.st_dev, now.st_ino)
    assert kvf.header(old_map)[3] == inc != d.info["incarnation"]


def test_daemon_holds_no_capabilities_once_ready(daemon):
    with open(f"/proc/{daemon.pid}/status", encoding="utf-8") as f:
        caps = dict(x.split(":\t") for x in f.read().splitlines()
                    if x.startswith("Cap"))
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(caps[name], 16) == 0, caps


def test_fresh_pool_is_free_but_for_the_header(daemon):
    p = daemon.pool()
    assert p["free"] == p["size"] - HEADER == p["largest_free"]
    assert set(p) >= {"size", "free", "largest_free", "filling",
                      "published", "claimed", "draining", "receiving",
                      "held"}


# -- alloc and free -------------------------------------------------------
def test_alloc_gives_a_place_in_the_pool(engine):
    b = engine.alloc(10000)
    assert b["size"] == 10000
    assert b["offset"] >= HEADER
    assert b["offset"] % engine.info["pool"]["alignment"] == 0
    assert b["offset"] + 10000 <= engine.info["pool"]["size"]


def test_buffers_do_not_overlap(engine):
    rng = random.Random(4)
    bufs = [engine.alloc(rng.randint(1, 200000)) for _ in range(200)]
    spans = sorted((b["offset"], b["offset"] + b["size"]) for b in bufs)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))


def test_free_gives_the_bytes_back(daemon, engine):
    b = engine.alloc(MIB)
    p = daemon.pool()
    assert p["filling"] >= MIB
    assert p["free"] + p["filling"] == p["size"] - HEADER
    engine.ok("free", buffer=b["buffer"])
    daemon.assert_all_free()


def test_double_free_is_invalid(engine):
    b = engine.alloc(100)["buffer"]
    engine.ok("free", buffer=b)
    engine.want("INVALID", "free", buffer=b)


@pytest.mark.parametrize("buffer", [0, 1, 12345, 2 ** 32, 2 ** 64 - 1])
def test_free_of_what_never_was_is_invalid(engine, buffer):
    engine.want("INVALID", "free", buffer=buffer)


def test_ids_never_repeat_even_after_a_restart(daemon):
    seen = set()
    for _ in range(2):
        c = daemon.engine()
        for _ in range(300):
            b = c.alloc(100)["buffer"]
            assert b not in seen
            seen.add(b)
            c.ok("free", buffer=b)
        daemon.kill()
        daemon.restart()
    c = daemon.engine()
    for b in list(seen)[:50]:
        c.want("INVALID", "free", buffer=b)


def test_full_pool_is_no_space_with_figures(daemon, engine):
    size = engine.info["pool"]["size"]
    a = engine.alloc(size // 2)
    r = engine.want("NO_SPACE", "alloc", size=size // 2 + MIB)
    p = daemon.pool()
    assert r["free"] == p["free"] and r["largest_free"] == p["largest_free"]
    assert r["needed"] >= size // 2 + MIB
    engine.ok("free", buffer=a["buffer"])
    engine.ok("free", buffer=engine.alloc(size // 2 + MIB)["buffer"])


def test_more_than_the_pool_is_too_large(engine):
    for size in (engine.info["pool"]["size"], 2 ** 40, 2 ** 63, 2 ** 64 - 1):
        engine.want("TOO_LARGE", "alloc", size=size)


def test_whole_pool_can_be_had_at_once(engine):
    b = engine.alloc(engine.info["pool"]["size"] - HEADER)
    engine.want("NO_SPACE", "alloc", size=1)
    engine.ok("free", buffer=b["buffer"])


def test_random_alloc_and_free_ends_all_free(daemon, engine):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    live = []
    for _ in range(1500):
        if live and rng.random() < 0.5:
            engine.ok("free", buffer=live.pop(rng.randrange(len(live))))
            continue
        r = engine.request("alloc", size=rng.choice([1, 4096, 4097, 70000,
                                                     MIB, 5 * MIB]))
        assert r.status in ("OK", "NO_SPACE")
        if r.status == "OK":
            live.append(r["buffer"])
    for b in live:
        engine.ok("free", buffer=b)
    daemon.assert_all_free()
    assert daemon.pool()["largest_free"] == daemon.pool()["free"]


# -- put and ownership ----------------------------------------------------
def test_free_of_a_published_buffer_is_busy(engine):
    b = engine.filled(b"x" * 5000)
    engine.ok("put", key="k", segments=[{"buffer": b["buffer"]}])
    engine.want("BUSY", "free", buffer=b["buffer"])


def test_one_buffer_backs_one_put(engine):
    b = engine.filled(b"x" * 5000)["buffer"]
    engine.ok("put", key="k", segments=[{"buffer": b}])
    r = engine.request("put", key="k2", segments=[{"buffer": b}])
    assert r.status in ("INVALID", "BUSY")
    assert engine.fetch("k") == b"x" * 5000


def test_put_that_failed_leaves_the_buffer_with_the_client(engine):
    b = engine.filled(b"y" * 5000)["buffer"]
    engine.want("INVALID", "put", key="k", segments=[{"buffer": b}],
                ttl_ms=0)
    engine.want("INVALID", "put", key="k",
                segments=[{"buffer": b}, {"buffer": 999999}])
    engine.ok("put", key="k", segments=[{"buffer": b}])
    assert engine.fetch("k") == b"y" * 5000


def test_retired_buffer_is_free_and_its_id_stale(daemon, engine):
    b = engine.filled(b"z" * 5000)["buffer"]
    engine.ok("put", key="k", segments=[{"buffer": b}])
    engine.fetch("k")
    until(lambda: daemon.pool()["published"] == 0, "retired")
    engine.want("INVALID", "free", buffer=b)
    engine.want("INVALID", "put", key="k", segments=[{"buffer": b}])


@pytest.mark.parametrize("seg", [
    {"offset": 0, "length": 5001}, {"offset": 5000, "length": 1},
    {"offset": 5001}, {"offset": 2 ** 63, "length": 2 ** 63},
    {"offset": 1, "length": 2 ** 64 - 1}, {"length": 0},
    {"offset": 5000}, {"offset": 4096, "length": 4096}],
    ids=str)
def test_segment_outside_its_buffer_is_invalid(engine, seg):
    b = engine.filled(b"x" * 5000)["buffer"]
    engine.want("INVALID", "put", key="k", segments=[dict(seg, buffer=b)])
    engine.want("INVALID", "get", key="k", into=[dict(seg, buffer=b)],
                timeout_ms=100)
    engine.ok("free", buffer=b)


def test_segments_empty_or_too_many_are_invalid(engine):
    engine.want("INVALID", "put", key="k", segments=[])
    most = engine.info["limits"]["max_segments"]
    b = engine.alloc(most + 1)["buffer"]
    engine.want("INVALID", "put", key="k", segments=[
        {"buffer": b, "offset": i, "length": 1} for i in range(most + 1)])
    engine.ok("free", buffer=b)


def test_put_needs_segments_or_payload_not_both(engine):
    b = engine.filled(b"x" * 100)["buffer"]
    engine.want("INVALID", "put", key="k")
    engine.want("INVALID", "put", b"pay", key="k", segments=[{"buffer": b}])
    engine.ok("free", buffer=b)


# -- regions --------------------------------------------------------------
def test_region_can_be_put_and_is_free_after_retired(daemon, engine):
    data = kvf.pattern(300000, 3)
    with Memfd(1 << 20) as m:
        m.map[4096:4096 + len(data)] = data
        region = engine.ok("register", fd=m.fd, size=m.size)["region"]
        engine.ok("put", key="k", notify=True, segments=[
            {"region": region, "offset": 4096, "length": len(data)}])
        engine.want("BUSY", "unregister", region=region)
        assert engine.fetch("k", mode="copy") == data
        e = engine.event(event="retired")
        assert e["key"] == "k" and e["reason"] == "consumed"
        engine.ok("unregister", region=region)
        engine.want("INVALID", "unregister", region=region)


def test_put_of_a_region_needs_notify(engine):
    with Memfd(8192) as m:
        region = engine.ok("register", fd=m.fd, size=8192)["region"]
        engine.want("INVALID", "put", key="k", segments=[
            {"region": region, "offset": 0, "length": 8192}])
        engine.ok("unregister", region=region)


def test_get_into_a_region(engine):
    data = kvf.pattern(200000, 9)
    engine.put("k", data)
    with Memfd(1 << 20) as m:
        region = engine.ok("register", fd=m.fd, size=m.size)["region"]
        r = engine.ok("get", key="k", into=[
            {"region": region, "offset": 100, "length": 150000},
            {"region": region, "offset": 200000, "length": 50000}])
        assert r["size"] == len(data)
        assert m.map[100:150100] + m.map[200000:250000] == data
        assert m.map[:100] == bytes(100)
        assert m.map[150100:200000] == bytes(49900)
        engine.ok("unregister", region=region)


@pytest.mark.parametrize("seg", [
    {"offset": 0, "length": 8193}, {"offset": 8192, "length": 1},
    {"offset": 2 ** 64 - 1, "length": 2}, {"offset": 0}, {"length": 5},
    {"offset": 0, "length": 0}], ids=str)
def test_segment_outside_its_region_is_invalid(engine, seg):
    with Memfd(8192) as m:
        region = engine.ok("register", fd=m.fd, size=8192)["region"]
        engine.want("INVALID", "put", key="k", notify=True,
                    segments=[dict(seg, region=region)])
        engine.ok("unregister", region=region)


def test_unsealed_memfd_is_denied(engine):
    with Memfd(8192, seal=False) as m:
        engine.want("DENIED", "register", fd=m.fd, size=8192)


def test_register_of_more_than_the_file_is_refused(engine):
    with Memfd(8192) as m:
        r = engine.request("register", fd=m.fd, size=8193)
        assert r.status in ("DENIED", "INVALID", "MISMATCH")
        engine.want("INVALID", "register", fd=m.fd, size=0)


def test_what_is_not_a_memfd_is_denied(engine):
    r, w = os.pipe()
    with tempfile.TemporaryFile() as f, open("/dev/zero", "rb") as z:
        f.truncate(8192)
        for fd in (r, w, f.fileno(), z.fileno()):
            engine.want("DENIED", "register", fd=fd, size=8192)
    os.close(r)
    os.close(w)
    engine.want("DENIED", "register", fd=1000000, size=8192)


def test_the_pool_is_no_region(daemon, engine):
    pool = os.open(engine.info["pool"]["path"], os.O_RDWR)
    engine.want("DENIED", "register", fd=pool, size=8192)
    os.close(pool)


def test_region_of_another_session_is_unknown(daemon, engine):
    with Memfd(8192) as m:
        region = engine.ok("register", fd=m.fd, size=8192)["region"]
        other = daemon.engine()
        assert other.request("put", key="k", notify=True, segments=[
            {"region": region, "offset": 0, "length": 5}]).status in (
                "INVALID", "DENIED")
        assert other.request("unregister", region=region).status in (
            "INVALID", "DENIED")
        engine.ok("unregister", region=region)


def test_registering_leaves_no_fd_behind(daemon, engine):
    def once():
        with Memfd(8192) as m:
            engine.ok("unregister",
                      region=engine.ok("register", fd=m.fd,
                                       size=8192)["region"])
            engine.request("register", fd=m.fd, size=1 << 30)
    once()
    before = daemon.fds()
    for _ in range(60):
        once()
    until(lambda: daemon.fds() <= before + 40, "fds stay")


# -- the helper that opens what the daemon may not ------------------------
@pytest.fixture
def broker(daemon):
    """Stopped, so that a register waits for it."""
    pid = daemon.broker()
    if pid is None:
        pytest.skip("no capabilities here, so the daemon needs no helper "
                    "and has none")
    os.kill(pid, signal.SIGSTOP)
    yield pid
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


def test_a_silent_helper_delays_nothing_but_the_register(daemon, engine,
                                                         broker):
    with Memfd(8192) as m:
        waits = [engine.send("register", fd=m.fd, size=8192)
                 for _ in range(3)]
        engine.ok("ping")
        assert engine.ok("cancel", target=waits[0])["cancelled"] == 1
        assert engine.recv(waits[0]).status == "CANCELLED"
        data = kvf.pattern(5000, 1)
        engine.put("k", data)
        assert engine.fetch("k") == data
        assert not engine.replies, "a register was answered by nobody"
        os.kill(broker, signal.SIGCONT)
        for w in waits[1:]:
            r = engine.recv(w)
            assert r.status == "OK", dict(r)
            engine.ok("unregister", region=r["region"])


def test_a_register_that_waits_ends_with_its_session(daemon, broker):
    gone = kvf.Engine(daemon.endpoint)
    gone.send("register", fd=1, size=8192)
    until(lambda: daemon.stats()["engines"]["pending"] == 1, "it waits")
    gone.kill()
    with Memfd(8192) as m:
        other = daemon.engine()
        until(lambda: daemon.stats()["engines"]["sessions"] == 1, "it ends")
        w = other.send("register", fd=m.fd, size=8192)
        os.kill(broker, signal.SIGCONT)
        r = other.recv(w)
        assert r.status == "OK", dict(r)
        other.ok("unregister", region=r["region"])


def test_a_helper_that_ended_refuses_and_harms_nothing_else(daemon, engine,
                                                            broker):
    with Memfd(8192) as m:
        waits = [engine.send("register", fd=m.fd, size=8192)
                 for _ in range(2)]
        engine.ok("ping")
        os.kill(broker, signal.SIGKILL)
        for w in waits:
            assert engine.recv(w).status == "DENIED"
        engine.want("DENIED", "register", fd=m.fd, size=8192)
    daemon.wait_log("kvferryd-fd has ended")
    engine.put("k", b"x" * 5000)
    assert engine.fetch("k") == b"x" * 5000


def test_release_is_idempotent(engine):
    engine.put("k", b"x" * 5000)
    b = engine.ok("get", key="k", mode="copy")["buffer"]
    assert engine.ok("release", buffer=b)["released"] is True
    assert engine.ok("release", buffer=b)["released"] is False


def test_fragmented_pool_reports_the_largest_extent(daemon, engine):
    bufs = [engine.alloc(MIB)["buffer"] for _ in range(60)]
    for b in bufs[::2]:
        engine.ok("free", buffer=b)
    r = engine.want("NO_SPACE", "alloc", size=20 * MIB)
    assert r["free"] >= 30 * MIB and r["largest_free"] < 20 * MIB
    for b in bufs[1::2]:
        engine.ok("free", buffer=b)
    engine.ok("free", buffer=engine.alloc(60 * MIB + 1 * KIB)["buffer"])


def test_buffer_of_a_waiting_into_is_not_freed(engine):
    b = engine.alloc(5000)["buffer"]
    w = engine.send("get", key="k", source=engine.me, into=[{"buffer": b}])
    engine.want("BUSY", "free", buffer=b)
    engine.ok("cancel", target=w)
    assert engine.recv(w).status == "CANCELLED"
    engine.ok("free", buffer=b)


def test_memory_outlives_one_socket_of_a_session(daemon, engine):
    other = kvf.Client(daemon.endpoint)
    other.hello(session=engine.session)
    b = other.alloc(5000)
    other.close(bye=False)
    engine.fill(b, b"x" * 5000)
    engine.ok("put", key="k", segments=[{"buffer": b["buffer"]}])
    assert engine.fetch("k") == b"x" * 5000
