"""push between real daemons: a key appears whole at the receiver, or not."""
import pytest

import kvf
from kvf import KIB, MIB, until

SIZES = [1, 4 * KIB, 65537, 5 * MIB + 3]


@pytest.fixture(params=["shm", "tcp"])
def ppair(request, pair_of):
    """Stage 1 (b, dst) pushes to stage 0 (a, src)."""
    p = pair_of(conf={"connector": {"protocol": request.param}})
    p.protocol = request.param
    return p


def seg(buf, **kw):
    return dict({"buffer": buf["buffer"]}, **kw)


TO = {"stage": 0}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("checksum", [False, True])
def test_push_then_a_local_get(ppair, size, checksum):
    data = kvf.pattern(size, 3)
    src = ppair.b.filled(data)
    r = ppair.b.ok("push", key="k", to=TO, segments=[seg(src)], meta=b"m",
                   checksum=checksum)
    small = size <= ppair.b.info["limits"]["inline_max"]
    assert r["transport"] == ("eager" if small else ppair.protocol)
    assert r["size"] == size and r["attempts"] == 1
    g = ppair.a.ok("get", key="k", mode="copy")
    assert g["generation"] == r["generation"] and g["meta"] == b"m"
    assert g["transport"] == "local" and ppair.a.bytes_of(g) == data
    assert ("checksum" in g) == checksum
    ppair.a.ok("release", buffer=g["buffer"])
    # The buffer is the client's again, and may be put, pushed or freed.
    ppair.b.ok("push", key="k2", to=TO, segments=[seg(src)])
    assert ppair.a.fetch("k2") == data
    ppair.b.ok("free", buffer=src["buffer"])
    ppair.src.assert_all_free()
    assert "[KVF PUSH] key=k " in ppair.dst.log()
    assert "[KVF PUT] key=k " in ppair.src.log()


def test_a_parked_get_is_answered(ppair):
    i = ppair.a.send("get", key="k", source=ppair.a.me, mode="copy")
    until(lambda: ppair.src.stats()["keys"]["parked"] == 1, "parked")
    data = kvf.pattern(MIB, 8)
    ppair.b.ok("push", key="k", to=TO, segments=[seg(ppair.b.filled(data))])
    g = ppair.a.recv(i)
    assert g.status == "OK" and ppair.a.bytes_of(g) == data


def test_payload_frame_and_request_id(ppair):
    ppair.b.ok("push", b"tiny", request_id="r", from_=1, to=0)
    assert ppair.a.fetch("r:1_0") == b"tiny"


def test_several_segments(ppair):
    data = kvf.pattern(900001, 4)
    one, two = ppair.b.filled(data[:400000]), ppair.b.filled(data[400000:])
    ppair.b.ok("push", key="k", to=TO, segments=[seg(one), seg(two)])
    assert ppair.a.fetch("k") == data


def test_to_itself(engine, daemon):
    data = kvf.pattern(MIB, 5)
    src = engine.filled(data)
    r = engine.ok("push", key="k", to={"stage": 0}, segments=[seg(src)],
                  checksum=True)
    assert r["transport"] == "local"
    engine.want("EXISTS", "push", key="k", to={"stage": 0},
                segments=[seg(src)], on_duplicate="reject")
    assert engine.fetch("k") == data
    engine.want("NO_SPACE", "push", key="k", to={"stage": 0}, segments=[
        seg(engine.alloc(40 * MIB))])


def test_generations_of_one_key(ppair):
    last = 0
    for i in range(5):
        src = ppair.b.filled(bytes([i]) * 100000)
        r = ppair.b.ok("push", key="k", to=TO, segments=[seg(src)], readers=0)
        assert r["generation"] > last
        last = r["generation"]
        ppair.b.ok("free", buffer=src["buffer"])
    src = ppair.b.filled(b"y" * 100000)
    ppair.b.want("EXISTS", "push", key="k", to=TO, segments=[seg(src)],
                 on_duplicate="reject")
    ppair.b.want("EXISTS", "push", b"small", key="k", to=TO,
                 on_duplicate="reject")
    g = ppair.a.ok("get", key="k", mode="copy")
    assert g["generation"] == last
    assert ppair.a.bytes_of(g) == bytes([4]) * 100000


def test_no_space_at_the_receiver_at_once(ppair):
    full = ppair.a.alloc(50 * MIB)
    src = ppair.b.alloc(20 * MIB)
    r = ppair.b.want("NO_SPACE", "push", key="k", to=TO, segments=[seg(src)])
    assert r["needed"] == 20 * MIB and r["free"] < 20 * MIB
    assert r["largest_free"] <= r["free"]
    ppair.a.ok("free", buffer=full["buffer"])
    ppair.b.ok("push", key="k", to=TO, segments=[seg(src)])
    ppair.a.want("NOT_FOUND", "get", key="no", source=ppair.a.me, wait=False)
    assert len(ppair.a.fetch("k")) == 20 * MIB


def test_what_is_refused(ppair):
    src = ppair.b.filled(b"x" * 100)
    s = [seg(src)]
    ppair.b.want("INVALID", "push", key="k", segments=s)
    ppair.b.want("INVALID", "push", key="k", to={"stage": 9}, segments=s)
    ppair.b.want("TOO_LARGE", "push", b"x" * (ppair.b.info["limits"]
                                              ["inline_max"] + 1),
                 key="k", to=TO)
    ppair.b.ok("put", key="mine", segments=s)
    ppair.b.want("INVALID", "push", key="k", to=TO, segments=s)


def test_smaller_inline_max_at_the_receiver(pair_of):
    p = pair_of(dst_conf={"connector": {"inline_max": "64KiB"}},
                conf={"connector": {"inline_max": "1KiB"}})
    p.b.ok("push", b"z" * 30000, key="k", to=TO)
    assert p.a.fetch("k", mode="copy") == b"z" * 30000


def test_the_edge_bounds_what_comes_in(pair_of):
    p = pair_of(conf={"connector": {"protocol": "tcp"},
                      "edge 1->0": {"max_inflight": 1}})
    src = p.b.filled(kvf.pattern(4 * MIB, 1))
    ids = [p.b.send("push", key=f"k{i}", to=TO, segments=[seg(src)])
           for i in range(6)]
    for i in ids:
        assert p.b.recv(i).status == "OK"
    for i in range(6):
        assert p.a.fetch(f"k{i}") == kvf.pattern(4 * MIB, 1)


def test_a_draining_receiver_says_so(ppair):
    ppair.meet()
    ppair.a.put("keep", b"x" * 100000)
    g = ppair.b.ok("get", key="keep", mode="auto")
    if g["mode"] != "view":
        pytest.skip("nothing keeps the receiver")
    ppair.a.ok("drain", timeout_ms=5000)
    ppair.b.want("SHUTTING_DOWN", "push", b"x", key="k", to=TO)
    ppair.b.ok("release", buffer=g["buffer"])
    assert ppair.src.proc.wait(10) == 0


@pytest.mark.parametrize("who", ["receiver", "sender"])
def test_one_side_dies_in_the_middle(ppair, who):
    ppair.meet()
    big = 16 * MIB
    src = ppair.b.filled(kvf.pattern(big, 6))
    ids = [ppair.b.send("push", key=f"k{i}", to=TO, segments=[seg(src)])
           for i in range(3)]
    if who == "receiver":
        ppair.src.kill()
        for i in ids:
            assert ppair.b.recv(i).status in ("OK", "PEER_UNREACHABLE")
        ppair.b.ok("free", buffer=src["buffer"])
        ppair.dst.assert_all_free()
        return
    ppair.dst.kill()

    def settled():
        s = ppair.src.stats()
        return s["peers"]["rooms"] == 0 and s["pool"]["receiving"] == 0
    until(settled, "rooms are gone")
    for i in range(3):
        g = ppair.a.request("get", key=f"k{i}", mode="copy", wait=False,
                            source=ppair.a.me)
        assert g.status in ("OK", "NOT_FOUND")
        if g.status == "OK":
            assert ppair.a.bytes_of(g) == kvf.pattern(big, 6)
            ppair.a.ok("release", buffer=g["buffer"])


def test_the_receiver_freezes_and_comes_back(ppair):
    ppair.meet()
    src = ppair.b.filled(kvf.pattern(8 * MIB, 6))
    ppair.src.stop()
    try:
        i = ppair.b.send("push", key="k", to=TO, segments=[seg(src)])
        ppair.b.want("TIMEOUT", "push", key="k2", to=TO, segments=[seg(src)],
                     timeout_ms=200)
    finally:
        ppair.src.cont()
    assert ppair.b.recv(i).status == "OK"
    assert ppair.a.fetch("k") == kvf.pattern(8 * MIB, 6)
    ppair.a.want("NOT_FOUND", "get", key="k2", wait=False,
                 source=ppair.a.me)


def test_cancel(ppair):
    ppair.meet()
    src = ppair.b.filled(kvf.pattern(16 * MIB, 6))
    ids = [ppair.b.send("push", key=f"k{i}", to=TO, segments=[seg(src)])
           for i in range(3)]
    for i in ids:
        ppair.b.ok("cancel", target=i)
    for i in ids:
        assert ppair.b.recv(i).status in ("OK", "CANCELLED")
    ppair.b.ok("free", buffer=src["buffer"])
    until(lambda: ppair.src.stats()["peers"]["rooms"] == 0, "rooms gone")


def test_the_buffer_is_busy_meanwhile(ppair):
    ppair.meet()
    src = ppair.b.filled(kvf.pattern(4 * MIB, 6))
    ppair.src.stop()
    try:
        i = ppair.b.send("push", key="k", to=TO, segments=[seg(src)])
        ppair.b.want("BUSY", "free", buffer=src["buffer"])
        ppair.b.want("BUSY", "put", key="x", segments=[seg(src)])
    finally:
        ppair.src.cont()
    assert ppair.b.recv(i).status == "OK"
    ppair.b.ok("put", key="x", segments=[seg(src)])
