"""Two daemons that pull from each other: connects from both ends at once."""
import pytest
from vm_daemon import ENV, SLOW, TRANSPORT, until

pytestmark = pytest.mark.sanitized

SIZE = 300_000


def both_get(a, b):
    """Each gets the other's payload, in the same moment; bytes compared."""
    g = a.g
    g.sh("for i in 0 1; do head -c %d /dev/urandom >/tmp/in$i; done" % SIZE)
    a.put("from-a", "/tmp/in0")
    b.put("from-b", "/tmp/in1")
    mine = b.get_command("from-a", "/tmp/out0")
    theirs = a.get_command("from-b", "/tmp/out1").replace("--from 0",
                                                          "--from 1")
    text = g.sh(f"{ENV}{mine} >/tmp/got0 2>&1 & {theirs} >/tmp/got1 2>&1; "
                "wait; cat /tmp/got0 /tmp/got1", 90 * SLOW)
    g.sh("cmp /tmp/in0 /tmp/out0 && cmp /tmp/in1 /tmp/out1")
    assert text.count(f"transport={TRANSPORT} ") == 2, text


def one_qp(d):
    """A link out and one of the other's in over one QP, and nothing else."""
    t = d.status()["transports"]["rdma"]
    return (t["links"], t["links_up"], t["guests"], t["dying"],
            t["qps"]) == (1, 1, 1, 0, 1)


def test_connects_from_both_ends_make_one_link(guest, start):
    """Also when one end is new, gone without a word or back at once."""
    a, b = start(guest, 0), start(guest, 1)
    a.knows(b)
    b.knows(a)
    a.spawn()
    b.start()
    a.started()
    for again in (None, b.end, a.kill):
        if again is not None:
            d = again.__self__
            again()
            d.start()
        both_get(a, b)
        for d in (a, b):
            until(lambda d=d: one_qp(d), "one QP for both ways")
