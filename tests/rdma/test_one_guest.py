"""One guest: the contract of transports, daemons, bytes, resources."""
import re

import pytest
import vm_daemon
from vm_daemon import ENV, TRANSPORT, SLOW

MIB = 1 << 20
SIZES = [1, 2, 7, 4095, 4096, 4097, 65535, 65536, 65537, 262144, MIB - 1, MIB,
         MIB + 1, 5 * MIB + 13, 16 * MIB, 64 * MIB]
BEYOND = 9 * MIB + 1  # more than is under way at once: [rdma] chunk * depth


def test_the_conformance_suite_passes_on_the_device(guest):
    """With a device named its programs test that one only, and count on it.
    They wait for it most of the time: all of them run at once."""
    programs = ["test_transports", "test_runs"]
    guest.sh(f"{ENV}export KVF_RDMA_DEVICE=rxe0\n"
             f"for p in {' '.join(programs)}; do "
             "(/b/tests/conformance/$p >/tmp/$p 2>&1; echo $? >/tmp/$p.rc) & "
             "done; wait", 110 * SLOW)
    for p in programs:
        text = guest.sh(f"cat /tmp/{p}; echo; cat /tmp/{p}.rc; rm /tmp/{p}*")
        assert text.endswith("\n0"), text[-6000:]
        assert "[  PASSED  ]" in text and "SKIPPED" not in text, text
        assert "on the device rxe0" in text, text


def test_every_size_arrives_by_rdma(ab):
    a, b = ab
    line = rf"KVF GET\].*transport={TRANSPORT} "
    before = len(re.findall(line, b.log()))
    sizes = " ".join(str(s) for s in SIZES)
    text = a.g.sh(f"{ENV}load sizes {a.endpoint} {b.endpoint} {TRANSPORT} "
                  f"{sizes}", 60 * SLOW)
    assert f"{TRANSPORT}={len(SIZES)} " in text.splitlines()[-1], text
    assert len(re.findall(line, b.log())) - before == len(SIZES)


@pytest.mark.sanitized
@pytest.mark.parametrize("size", [1, 100_003, BEYOND])
def test_the_command_puts_and_gets(ab, size):
    a, b = ab
    vm_daemon.random_file(a.g, "/tmp/in", size)
    a.put("k", "/tmp/in")
    got = b.get("k", "/tmp/out")
    a.g.sh("cmp /tmp/in /tmp/out")
    assert (got["transport"], got["size"]) == (TRANSPORT, str(size))


def test_stress_leaves_nothing_behind(ab):
    """Sixteen gets at once, some cancelled on the way, every byte checked."""
    a, b = ab
    seed = 3001 if SLOW == 1 else 3002
    print(f"seed {seed}")
    warm(a, b)
    before = vm_daemon.snapshot(a, b)
    count = 150 if SLOW == 1 else 60
    text = a.g.sh(
        f"{ENV}load put {a.endpoint} {seed} {count} {2 * MIB} 24 >/tmp/put & "
        f"load get {b.endpoint} {seed} {count} {2 * MIB} 16 {TRANSPORT} 20 "
        ">/tmp/get; rc=$?; wait; cat /tmp/put /tmp/get; exit $rc", 60 * SLOW)
    assert text.count("LOAD OK") == 2, text
    vm_daemon.settles(before, a, b)


@pytest.mark.sanitized
@pytest.mark.parametrize("size", [1, 100_003, BEYOND])
def test_what_is_pushed_is_there_for_a_local_get(ab, size):
    """WRITE: nothing of the payload moves when it is asked for."""
    a, b = ab
    vm_daemon.random_file(a.g, "/tmp/in", size)
    a.ok("put --to 1 k /tmp/in")
    a.wait_log(rf"KVF PUSH\].*size={size} transport={TRANSPORT} ")
    assert b.get("k", "/tmp/out")["transport"] == "local"
    a.g.sh("cmp /tmp/in /tmp/out")


def warm(a, b):
    """A first get: the connection is there from now on."""
    a.g.sh("head -c 300000 /dev/urandom >/tmp/warm")
    a.put("warm", "/tmp/warm")
    assert b.get("warm", "/tmp/warm.out")["transport"] == TRANSPORT


@pytest.mark.release_only
def test_nothing_is_registered_on_the_data_path(ab):
    a, b = ab
    warm(a, b)
    before = vm_daemon.verbs_objects(a.g)
    for i in range(3):
        a.g.sh(f"head -c {(i + 1) * 700_000} /dev/urandom >/tmp/in")
        a.put("k", "/tmp/in")
        b.get("k", "/tmp/out")
    assert vm_daemon.verbs_objects(a.g) == before


@pytest.mark.release_only
def test_idle_costs_nothing(ab):
    """A daemon with an open connection and nothing to do sleeps."""
    a, b = ab
    warm(a, b)
    used = []
    for _ in range(6):
        before = a.cpu_ms(), b.cpu_ms()
        a.g.sh("sleep 1")
        used.append(max(a.cpu_ms() - before[0], b.cpu_ms() - before[1]))
        if used[-1] < 100:
            break
    # Timers of sessions and libzmq's. An emulated processor that waits for a
    # busy one of the host counts the wait as use, so one quiet second is
    # enough; a daemon that polls takes 1000 ms of each.
    assert min(used) < 100, used
