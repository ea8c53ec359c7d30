"""One guest: memory that engines registered, over rdma."""
import pytest
import vm_daemon
from vm_daemon import ENV, TRANSPORT, SLOW, until

pytestmark = pytest.mark.sanitized


def move(a, b):
    text = a.g.sh(f"{ENV}regions {a.endpoint} {b.endpoint} {TRANSPORT}",
                  60 * SLOW)
    assert "REGIONS OK" in text, text


def test_regions_as_soon_as_the_daemons_are_there(ab):
    """Nothing has gone over the link yet, and it is the only transport: gets,
    writes and reads wait for it and for what is being registered."""
    a, b = ab
    move(a, b)
    assert b.counter("retries") == 0


def test_regions_are_read_and_written_in_place(ab):
    a, b = ab
    a.g.sh("head -c 200000 /dev/urandom >/tmp/in")
    a.put("warm", "/tmp/in")
    assert b.get("warm", "/tmp/out")["transport"] == TRANSPORT
    before = vm_daemon.snapshot(a, b)
    move(a, b)
    # What was registered for them is registered no more.
    until(lambda: vm_daemon.snapshot(a, b) == before, "the objects of before")
