"""libkvferry's push and windows against real daemons: each case of
lib_push.c, over shm, over tcp, and within one daemon."""
import os
import subprocess

import pytest

import kvf
from kvf_base import BUILD, SLOW

LIB_PUSH = os.environ.get("LIB_PUSH") or os.path.join(
    BUILD, "tests", "integration", "lib_push")


@pytest.mark.parametrize("case", ["push", "push_segments", "windows",
                                  "region", "many"])
@pytest.mark.parametrize("how", ["shm", "tcp", "local"])
def test_case(pair_of, case, how):
    pair = pair_of(conf={"connector": {"protocol": "tcp"}}
                   if how == "tcp" else None)
    writer = pair.dst if how == "local" else pair.src
    p = subprocess.run(
        [LIB_PUSH, case, writer.endpoint, pair.dst.endpoint,
         pair.dst.peer_host, str(pair.dst.peer_port)],
        capture_output=True, text=True, env=kvf.sanitizer_env(),
        timeout=40 * SLOW, check=False)
    assert p.returncode == 0 and p.stdout == "", p.stdout + p.stderr
    assert not kvf.SANITIZER.search(p.stderr), p.stderr
