"""Faults of the machine around the daemon: clocks that jump, processes that are
stopped, too little memory. (`/dev/shm` full: nothing of kvferry lies there; the
pool is a memfd, which only memory itself can refuse.)"""
import os
import shutil
import struct
import subprocess
import time

import pytest

import kvf
from kvf import MIB, until
from test_sessions import SESSION_TIMEOUT, tcp_conf

DAY = 86400

# Adds the seconds that the file $KVF_CLOCK holds to the real time that the
# daemon sees. CLOCK_REALTIME of the machine is not for a test to set.
SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *jump;

__attribute__((constructor)) static void init(void)
{
    int fd = open(getenv("KVF_CLOCK"), O_RDONLY | O_CLOEXEC);
    void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

    if (fd < 0 || p == MAP_FAILED)
        abort();
    close(fd);
    jump = p;
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    int rc = (int)syscall(SYS_clock_gettime, id, t);

    if (rc == 0 && jump != NULL &&
        (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        t->tv_sec += *jump;
    return rc;
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
    struct timespec t;

    (void)tz;
    clock_gettime(CLOCK_REALTIME, &t);
    tv->tv_sec = t.tv_sec;
    tv->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    if (out != NULL)
        *out = t.tv_sec;
    return t.tv_sec;
}
"""


class Clock:
    """The wall clock of the daemons that get `env`."""

    def __init__(self, tmp):
        cc = shutil.which("cc") or shutil.which("gcc")
        if cc is None:
            pytest.skip("needs a C compiler for the clock's shim")
        self.path, so = str(tmp / "clock"), str(tmp / "clock.so")
        with open(self.path, "wb") as f:
            f.write(b"\0" * 4096)
        src = tmp / "clock.c"
        src.write_text(SHIM)
        subprocess.run([cc, "-shared", "-fPIC", "-o", so, str(src)],
                       check=True)
        asan = kvf.sanitizer_env()["ASAN_OPTIONS"]
        self.env = {"LD_PRELOAD": so, "KVF_CLOCK": self.path,
                    "ASAN_OPTIONS": asan + ":verify_asan_link_order=0"}

    def jump(self, seconds):
        with open(self.path, "r+b") as f:
            f.write(struct.pack("<q", seconds))


@pytest.mark.parametrize("to", [30 * DAY, -30 * DAY])
def test_clock_jump_changes_nothing_but_the_log(make, tmp_path, to):
    """All deadlines run on CLOCK_MONOTONIC."""
    clock = Clock(tmp_path)
    src, dst = (make(i, env=clock.env) for i in (0, 1))
    dst.knows(src)
    a, b = src.engine(), dst.engine()
    a.put("long", kvf.pattern(MIB), ttl_ms=60000, readers=0)
    assert b.fetch("long", mode="copy") == kvf.pattern(MIB)
    held = b.ok("get", key="long", mode="view")
    waits = b.send("get", key="later", timeout_ms=60000)
    times_out = b.send("get", key="never", timeout_ms=1500)
    b.ok("ping")
    began = time.monotonic()
    clock.jump(to)
    before = a.put("before", b"x")["generation"]
    a.put("later", b"y")
    r = b.recv(waits)
    assert r.status == "OK" and r["timing"]["total_us"] < 60e6
    assert b.recv(times_out).status == "TIMEOUT"
    assert 1.4 <= time.monotonic() - began < 1.5 + 5 * kvf.SLOW
    b.ok("release", buffer=r["buffer"])
    a.put("short", b"z", ttl_ms=300)
    until(lambda: b.request("get", key="short", mode="inline", wait=False,
                            from_={"stage": 0}).status in (
        "EXPIRED", "CONSUMED"), "ended in its time")
    assert b.fetch("long", mode="copy") == kvf.pattern(MIB)
    assert b.bytes_of(held) == kvf.pattern(MIB)
    b.ok("release", buffer=held["buffer"])
    clock.jump(0)
    assert a.put("after", b"x")["generation"] > before
    assert b.fetch("long", mode="copy") == kvf.pattern(MIB)
    for d in (src, dst):
        assert " down" not in d.log(), d.log()
        a_day = time.strftime("%Y-%m-%d", time.gmtime(time.time() + to))
        assert a_day in d.log() or d is dst, "the shim was not there"


def test_generations_grow_though_the_clock_went_back(make, tmp_path):
    """A restart at an earlier time: ids of memory and generations may lie
    below the old ones, so the incarnation tells them apart."""
    clock = Clock(tmp_path)
    d = make(env=clock.env)
    e = d.engine()
    old = e.put("k", b"x", readers=0)["metadata"]
    buf = e.alloc(4096)["buffer"]
    d.kill()
    clock.jump(-30 * DAY)
    d.restart()
    e = d.engine()
    e.put("k", b"y", readers=0)
    e.want("STALE", "get", key="k", mode="inline", timeout_ms=500,
           metadata={"incarnation": old["incarnation"]})
    e.want("INVALID", "free", buffer=buf)


def test_generations_grow_over_quick_restarts(daemon):
    """A supervisor starts it anew within the same second."""
    last = 0
    for _ in range(4):
        e = daemon.engine()
        for _ in range(3):
            g = e.put("k", b"x", readers=0)["generation"]
            assert g > last
            last = g
        daemon.kill()
        daemon.restart()


# -- stopped and continued ------------------------------------------------
def test_stopped_daemon_does_not_end_its_sessions(make):
    """Its engines spoke all the time; it could not listen."""
    d = make(conf=tcp_conf())
    c = d.client()
    c.hello()
    c.ok("put", b"x", key="k", readers=0)
    for _ in range(2):
        d.stop()
        time.sleep(2.4 * SESSION_TIMEOUT)  # what it must not count
        c.send("ping")
        d.cont()
        c.recv()
        c.ok("list")
        assert "ended" not in d.log(), d.log()
    assert c.fetch("k", mode="inline") == b"x"


@pytest.mark.parametrize("seconds", [1.0, 3.5])
def test_getters_own_daemon_stopped_and_continued(pair, seconds):
    """Below peer_timeout_ms nobody notices; above it the owner gives it up,
    and all is well again soon after. Its sessions live on."""
    pair.meet()
    pair.a.put("k", kvf.pattern(MIB), readers=0)
    view = pair.b.ok("get", key="k", mode="view")
    parked = pair.b.send("get", key="later", timeout_ms=20000)
    pair.b.ok("ping")
    began = time.monotonic()
    pair.dst.stop()
    time.sleep(seconds)  # how long it stands still is what is tested
    pair.dst.cont()
    pair.b.ok("ping")
    seconds = time.monotonic() - began  # a busy machine adds to it
    pair.a.put("later", b"y", readers=0)
    r = pair.b.recv(parked)
    if seconds < 2 / 1.25:
        assert r.status == "OK", dict(r)
        assert " down" not in pair.src.log() + pair.dst.log()
    assert r.status in ("OK", "PEER_UNREACHABLE"), dict(r)
    if r.status == "OK" and r.get("buffer"):
        pair.b.ok("release", buffer=r["buffer"])
    assert pair.b.fetch("later") == b"y"
    assert pair.b.bytes_of(view) == kvf.pattern(MIB)
    pair.b.ok("release", buffer=view["buffer"])
    assert pair.b.fetch("k", mode="copy") == kvf.pattern(MIB)
    assert "session=" not in "".join(
        x for x in pair.dst.log().splitlines() if " ended " in x)


# -- too little memory ----------------------------------------------------
def refuses(d):
    with pytest.raises(kvf.DaemonExited) as e:
        d.start()
    d.close(check=False)
    assert e.value.status == 1, e.value.text
    return e.value.text


def test_pool_larger_than_the_machine_is_refused():
    d = kvf.Daemon(conf={"connector": {"memory_pool_size": "15TiB"}},
                   start=False)
    text = refuses(d)
    assert "cannot start" in text and "memory_pool_size" in text, text


def test_pool_larger_than_the_cgroup_is_refused():
    with open("/proc/self/cgroup", encoding="utf-8") as f:
        own = [x.strip().split("::")[1] for x in f if x.startswith("0::")]
    top = f"/sys/fs/cgroup{own[0] if own else ''}"
    if not os.path.exists(f"{top}/memory.max") and not os.path.exists(
            f"{top}/cgroup.subtree_control"):
        pytest.skip("this machine has no cgroup v2")
    group = f"{top}/kvf-test-{os.getpid()}"
    try:
        os.mkdir(group)
        with open(f"{group}/memory.max", "r+", encoding="ascii") as f:
            f.write(str(64 * MIB))
    except OSError as e:
        if os.path.isdir(group):
            os.rmdir(group)
        pytest.skip(f"no cgroup of its own to be had here: {e}")

    def enter():
        with open(f"{group}/cgroup.procs", "w", encoding="ascii") as f:
            f.write(str(os.getpid()))
    try:
        d = kvf.Daemon(conf={"connector": {"memory_pool_size": "256MiB"}},
                       start=False, preexec=enter)
        text = refuses(d)
        assert "cgroup" in text and "memory_pool_size" in text, text
    finally:
        until(lambda: not open(f"{group}/cgroup.procs").read(), "empty")
        os.rmdir(group)


def test_address_space_too_small_for_the_pool_is_refused():
    import resource

    def small():
        resource.setrlimit(resource.RLIMIT_AS, (512 * MIB, 512 * MIB))
    if "asan" in kvf.BUILD:
        pytest.skip("AddressSanitizer needs terabytes of address space")
    d = kvf.Daemon(conf={"connector": {"memory_pool_size": "768MiB"}},
                   start=False, preexec=small)
    text = refuses(d)
    assert "cannot start" in text and "768" in text, text


# -- engines that keep writing --------------------------------------------
@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_engine_that_writes_after_put_harms_only_that_key(pair_of, protocol):
    """What was given away is the daemon's; the checksum tells."""
    p = pair_of(conf={"connector": {"protocol": protocol}})
    good = kvf.pattern(MIB, 2)
    p.a.put("good", good, readers=0, checksum=True)
    buf = p.a.filled(kvf.pattern(MIB, 1))
    seg = [{"buffer": buf["buffer"]}]
    p.a.ok("put", key="bad", segments=seg, checksum=True)
    p.a.fill(buf, b"scribble", at=4321)
    for _ in range(2):  # a failed get consumes no reader
        p.b.want("CORRUPT", "get", key="bad", mode="copy", timeout_ms=4000)
    assert p.a.request("put", key="again", segments=seg).status in (
        "BUSY", "INVALID")
    p.a.want("BUSY", "free", buffer=buf["buffer"])
    assert p.b.fetch("good", mode="copy") == good
    p.a.fill(buf, kvf.pattern(MIB, 1))
    assert p.b.fetch("bad", mode="copy") == kvf.pattern(MIB, 1)
    p.a.want("INVALID", "free", buffer=buf["buffer"])


def test_engine_that_writes_where_it_freed_harms_nobody_who_checks(engine):
    """The pool is shared within one uid (the trust boundary): a stale pointer
    of an engine can spoil bytes, but not what the daemon believes."""
    old = engine.alloc(MIB)
    engine.ok("free", buffer=old["buffer"])
    new = engine.filled(kvf.pattern(MIB, 1))
    assert new["offset"] == old["offset"]
    engine.want("INVALID", "put", key="k",
                segments=[{"buffer": old["buffer"]}])
    engine.ok("put", key="k", segments=[{"buffer": new["buffer"]}],
              checksum=True)
    engine.fill(old, b"late")
    engine.want("CORRUPT", "get", key="k", mode="copy", timeout_ms=3000)
    engine.ok("cleanup", request_id="none")
    engine.ok("fail", key="k")


# -- getters' daemons that die --------------------------------------------
@pytest.mark.parametrize("protocol", ["auto", "tcp"])
@pytest.mark.parametrize("step", ["parked", "claimed", "transfer", "held"])
def test_getters_daemon_killed_at(pair_of, other_process, step, protocol):
    p = pair_of(conf={"connector": {"protocol": protocol}})
    data = kvf.pattern(24 * MIB, 3)
    p.a.put("k", data, readers=0)
    e = other_process(p.dst)
    if step == "parked":
        e.send("get", key="never", timeout_ms=0)
        e.ok("ping")
    elif step == "claimed":
        e.send("get", key="k", mode="copy")
    elif step == "transfer":
        e.send("get", key="k", mode="copy")
        until(lambda: p.src.pool()["claimed"] or p.dst.pool()["held"],
              "under way")
    else:
        e.ok("get", key="k", mode="copy")
    p.dst.kill()
    until(lambda: p.src.pool()["claimed"] == 0, "claims ended")
    assert p.a.fetch("k", mode="copy") == data
    e.kill()
    p.b.close(bye=False)
    p.dst.restart()
    p.dst.knows(p.src)
    assert p.dst.engine().fetch("k", mode="copy") == data
