"""kvferry bench as a pair over rdma, each side with a daemon of its own."""
import json
import re

from vm_daemon import ENV, SLOW, TRANSPORT


def own(g):
    return (f"--protocol {TRANSPORT} --device-name rxe0 --local-server-name "
            f"{g.addr}")


def initiator(g, target, operation):
    text = g.sh(f"{ENV}kvferry bench --mode initiator {own(g)} --operation "
                f"{operation} --segment-id {target} --block-size 65536 "
                "--batch-size 4 --depth 2 --warmup 2 --count 8 --duration 30s "
                "--verify --json 2>/tmp/pair.err || { cat /tmp/pair.err; "
                "exit 1; }", 60 * SLOW)
    return json.loads(text.splitlines()[-1])


def moves_and_verifies(there, here):
    """A target in one guest, written and read from `here`."""
    line = there.sh(
        f"{ENV}(kvferry bench --mode target {own(there)} --buffer-size 1MiB "
        "--ready-file /tmp/pair >/tmp/pair.log 2>&1; echo $? >/tmp/pair.rc) & "
        "until [ -s /tmp/pair ] || [ -s /tmp/pair.rc ]; do sleep 0.1; done; "
        "cat /tmp/pair /tmp/pair.log", 60 * SLOW)
    target = re.search(r"target=(\S+)", line).group(1)
    pid = re.search(r" pid=(\d+)", line).group(1)
    got = [initiator(here, target, verb) for verb in ("write", "read")]
    there.sh(f"kill {pid}; until [ -s /tmp/pair.rc ]; do sleep 0.1; done", 30)
    rc = there.sh("cat /tmp/pair.rc; cat /tmp/pair.log >&2; rm -f /tmp/pair*")
    for one in got:
        assert one["transport"] == TRANSPORT, got
        assert (one["requests"], one["blocks"]) == (8, 32), got
        assert one["verified_blocks"] >= 32, got
        assert (one["failed_blocks"], one["wrong_blocks"]) == (0, 0), got
    assert rc.splitlines()[0] == "0", rc
