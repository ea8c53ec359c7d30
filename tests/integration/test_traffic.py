"""Random gets and puts whose every byte tells whose it is, at two daemons that
are killed, stopped and restarted (kvf_chaos.py has what is checked).

KVF_SOAK=SECONDS makes it long, KVF_SEED repeats a run (as far as time allows).
"""
import os
import time

import pytest

import kvf
import kvf_chaos

SECONDS = float(os.environ.get("KVF_SOAK", 6))


@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_no_answer_carries_wrong_bytes(make, protocol):
    seed = int(os.environ.get("KVF_SEED", time.time_ns() // 1000))
    conf = kvf.merge(kvf_chaos.CONF, {"connector": {"protocol": protocol}})
    daemons = [make(s, conf=conf) for s in (0, 1)]
    world = kvf_chaos.run(daemons, seed, SECONDS)
    assert world.counts["get", "OK"] > 0, world.story()
