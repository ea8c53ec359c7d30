"""kvferry bench as a pair, each side with a daemon of its own, over rdma."""
import json
import re

from vm_daemon import ENV, SLOW, TRANSPORT

OWN = (f"--protocol {TRANSPORT} --device-name rxe0 --local-server-name "
       "10.0.0.1")


def initiator(g, target, operation):
    text = g.sh(f"{ENV}kvferry bench --mode initiator {OWN} --operation "
                f"{operation} --segment-id {target} --block-size 65536 "
                "--batch-size 4 --depth 2 --warmup 2 --count 8 --duration 30s "
                "--verify --json 2>/tmp/pair.err || { cat /tmp/pair.err; "
                "exit 1; }", 60 * SLOW)
    return json.loads(text.splitlines()[-1])


def test_a_pair_moves_and_verifies_over_rdma(guest):
    line = guest.sh(
        f"{ENV}(kvferry bench --mode target {OWN} --buffer-size 1MiB "
        "--ready-file /tmp/pair >/tmp/pair.log 2>&1; echo $? >/tmp/pair.rc) & "
        "until [ -s /tmp/pair ] || [ -s /tmp/pair.rc ]; do sleep 0.1; done; "
        "cat /tmp/pair /tmp/pair.log", 60 * SLOW)
    target = re.search(r"target=(\S+)", line).group(1)
    pid = re.search(r" pid=(\d+)", line).group(1)
    got = [initiator(guest, target, verb) for verb in ("write", "read")]
    guest.sh(f"kill {pid}; until [ -s /tmp/pair.rc ]; do sleep 0.1; done", 30)
    rc = guest.sh("cat /tmp/pair.rc; cat /tmp/pair.log >&2; rm -f /tmp/pair*")
    for one in got:
        assert one["transport"] == TRANSPORT, got
        assert (one["requests"], one["blocks"]) == (8, 32), got
        assert one["verified_blocks"] >= 32, got
        assert (one["failed_blocks"], one["wrong_blocks"]) == (0, 0), got
    assert rc.splitlines()[0] == "0", rc
