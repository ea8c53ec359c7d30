"""libkvferry against real daemons: each case of lib_e2e.c, and the moments of
a restart that only the daemons' side can see."""
import os
import subprocess

import pytest

import kvf
from kvf_base import BUILD, SLOW, until

LIB_E2E = os.environ.get("LIB_E2E") or os.path.join(
    BUILD, "tests", "integration", "lib_e2e")


def start(pair, case):
    return subprocess.Popen(
        [LIB_E2E, case, pair.src.endpoint, pair.dst.endpoint],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=kvf.sanitizer_env())


def finish(p):
    out, err = p.communicate(timeout=40 * SLOW)
    assert p.returncode == 0 and out == "", out + err
    assert not kvf.SANITIZER.search(err), err


@pytest.mark.parametrize("case", ["regions", "cancel", "mget", "pipeline",
                                  "threads", "closing"])
def test_case(pair, case):
    finish(start(pair, case))


@pytest.mark.parametrize("case", ["cancel", "mget", "pipeline", "threads"])
def test_case_over_tcp(tcp_pair, case):
    """The same where a view of the peer's pool is not to be had."""
    finish(start(tcp_pair, case))


def word(p, want):
    assert (got := p.stdout.readline()) == want + "\n", got + p.stderr.read()


def go(p):
    p.stdin.write("\n")
    p.stdin.flush()


def again(pair):
    """Kills the receiver's daemon and starts it anew."""
    pair.dst.kill()
    pair.dst.clients = []
    pair.dst.restart()
    pair.dst.knows(pair.src)


def busy(daemon):
    pool = daemon.pool()
    return pool["size"] - kvf.HEADER - pool["free"]


def test_restart_under_a_view(pair):
    p = start(pair, "restart")
    word(p, "ready")
    again(pair)
    go(p)
    word(p, "held")
    assert busy(pair.src) >= 300000
    go(p)
    word(p, "released")
    until(lambda: busy(pair.src) == 0, "the sender has freed it")
    go(p)
    finish(p)


def test_first_call_after_a_restart(pair):
    p = start(pair, "first_call")
    for _ in range(5):
        word(p, "ready")
        again(pair)
        go(p)
    finish(p)
