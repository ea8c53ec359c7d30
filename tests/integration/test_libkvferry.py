"""libkvferry against real daemons: each case of lib_e2e.c, and the moments of
a restart that only the daemons' side can see."""
import json
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


PULL_BLOCKS = os.path.join(BUILD, "bench", "pull_blocks")


@pytest.mark.parametrize("over", ["shm", "tcp"])
@pytest.mark.parametrize("run,layers,blocks", [(16384, 5, 300), (64, 3, 5000)])
def test_blocks(request, over, run, layers, blocks):
    """layout, publish and pull by the library: the benchmark compares every
    byte; two rounds with ids of their own."""
    pair = request.getfixturevalue("pair" if over == "shm" else "tcp_pair")
    p = subprocess.run([PULL_BLOCKS, pair.src.endpoint, pair.dst.endpoint,
                        str(run), str(layers), str(blocks), "2"],
                       capture_output=True, text=True, timeout=40 * SLOW,
                       env=kvf.sanitizer_env())
    assert p.returncode == 0, p.stderr
    assert not kvf.SANITIZER.search(p.stderr), p.stderr
    lines = [json.loads(x) for x in p.stdout.splitlines()]
    assert len(lines) == 2
    for x in lines:
        assert x["transport"] == over, x
        assert x["bytes"] == run * layers * blocks
        # Neighbours by chance merge, hardly ever more than some.
        assert 0.98 * layers * blocks < x["reads"] <= layers * blocks
