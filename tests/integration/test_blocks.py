"""layout, publish, pull over real daemons, bytes compared with the model."""
import os
import random
import signal
import time

import pytest

import kvf
import kvf_blocks
from kvf import until
from kvf_blocks import Fleet, gen, plain_case

TCP = {"connector": {"protocol": "tcp"}}
ID = bytes(range(16))


def event(rank, **want):
    return rank.client.event(event="retired", **want)


@pytest.fixture(params=["shm", "tcp"])
def fleet(request):
    f = Fleet(TCP if request.param == "tcp" else None)
    f.kind = request.param
    yield f
    f.close()


@pytest.fixture
def shm():
    f = Fleet()
    yield f
    f.close()


def run_case(fleet, case, name, use_handle):
    senders, receivers = fleet.ranks(case)
    for s in senders:
        s.fill()
    tag = os.urandom(16)
    for r in receivers:
        r.clear()
    handles = [s.publish(name, tag=tag, notify=True) for s in senders]
    asked = [r.send_pull(**({"handle": handles[0]} if use_handle else
                            {"request_id": name, "from_": {"stage": 0}}))
             for r in receivers]
    for r, id_ in zip(receivers, asked):
        got = r.client.recv(id_)
        assert got.status == "OK", (dict(got), gen.text(case))
        r.check()
    for s in senders:
        e = event(s, request_id=name)
        assert e["reason"] == "consumed" and e["tag"] == tag
    for x in senders + receivers:
        x.close()


def test_one_to_one(fleet):
    case = plain_case()
    (p,), (d,) = fleet.ranks(case)
    p.fill()
    d.clear()
    handle = p.publish("r", notify=True, ttl_ms=60000)
    assert handle["request_id"] == "r" and len(handle["tag"]) == 16
    assert handle["incarnation"] == fleet.p[0].incarnation
    got = d.pull(handle=handle)
    assert got.status == "OK", dict(got)
    d.check()
    size = 2 * 40 * 4 * 2 * 8
    assert got["bytes"] == size and got["sources"] == ["0.0"]
    assert got["filled"] == [{"group": 0, "first_token": 0, "tokens": 40}]
    # the ids of D fall while those of P rise: nothing merges
    assert got["reads"] == 2 * 10
    e = event(p, request_id="r")
    assert e["reason"] == "consumed" and e["consumers_done"] == 1
    assert e["tag"] == handle["tag"] and "key" not in e
    assert d.pull(handle=handle).status == "CONSUMED"
    line = fleet.d[0].wait_log(r"\[KVF PULL\] request=r .*").group(0)
    assert f"bytes={size} " in line and f"transport={fleet.kind} " in line


@pytest.mark.parametrize("tp_p,tp_d,pp_p,pp_d", [
    (2, 1, 1, 1), (1, 2, 1, 1), (4, 2, 1, 1), (2, 2, 2, 1), (1, 1, 1, 2)])
def test_ranks(fleet, tp_p, tp_d, pp_p, pp_d):
    case = plain_case(tp_p, tp_d, pp_p=pp_p, pp_d=pp_d, n=23)
    run_case(fleet, case, "many", use_handle=True)


def test_random_cases(fleet):
    """Whatever the generator makes of at most 4 by 4 ranks. KVF_CASES=SECONDS
    for more of them."""
    seed = int(os.environ.get("KVF_SEED", random.randrange(1 << 30)))
    print("KVF_SEED", seed)
    rng = random.Random(seed)
    seconds = float(os.environ.get("KVF_CASES", 8))
    signal.alarm(int(60 * kvf.SLOW + 2 * seconds))  # instead of the usual one
    end = time.monotonic() + seconds
    done = 0
    while time.monotonic() < end or done < 5:
        case = gen.make(rng)
        if any(case[w]["tp"] * case[w]["pp"] > 4
               or case[w]["pp"] > len(case[w]["layers"]) for w in "PD"):
            continue
        run_case(fleet, case, f"case{done}", use_handle=rng.random() < 0.5)
        done += 1
    print(done, "cases")


def test_pull_before_publish_waits(shm):
    (p,), (d,) = shm.ranks(plain_case())
    p.fill()
    d.clear()
    id_ = d.send_pull(request_id="later", from_={"stage": 0, "rank": 0})
    d.client.quiet(0.3)
    p.publish("later")
    assert d.client.recv(id_).status == "OK"
    d.check()


def test_pull_before_layout_waits(shm):
    case = plain_case()
    shm.grow(1, 1)
    d = kvf_blocks.Rank(shm.d[0], case, "D", 0)
    d.clear()
    id_ = d.send_pull(request_id="r", from_={"stage": 0})
    d.client.quiet(0.3)
    p = kvf_blocks.Rank(shm.p[0], case, "P", 0)
    p.fill()
    p.publish("r")
    assert d.client.recv(id_).status == "OK"
    d.check()


def test_timeout_and_cancel_free_everything(shm):
    (p,), (d,) = shm.ranks(plain_case())
    t = time.monotonic()
    assert d.pull(request_id="never", from_={"stage": 0},
                  timeout_ms=200).status == "TIMEOUT"
    assert time.monotonic() - t < 2 * kvf.SLOW
    id_ = d.send_pull(request_id="never", from_={"stage": 0})
    d.client.quiet(0.1)
    assert d.client.ok("cancel", target=id_)["cancelled"] == 1
    assert d.client.recv(id_).status == "CANCELLED"
    until(lambda: shm.p[0].stats()["peers"]["guest_asks"] == 0, "unasked")
    assert p.client.ok("ping")


def test_full_hit_tells_everybody(fleet):
    case = plain_case(2, 1)
    case["blocks"]["D"] = [(10, [])]
    senders, (d,) = fleet.ranks(case)
    for s in senders:
        s.fill()
        s.publish("hit", tag=ID, notify=True)
    d.clear()
    got = d.pull(request_id="hit", from_={"stage": 0})
    assert got.status == "OK" and got["bytes"] == 0 and got["sources"] == []
    for s in senders:
        assert event(s, request_id="hit")["reason"] == "consumed"
    d.check_untouched()


def test_cached_prefix_is_not_pulled(fleet):
    case = plain_case(n=40)
    case["blocks"]["D"] = [(6, [3, 1, 2, 9])]
    (p,), (d,) = fleet.ranks(case)
    p.fill()
    d.clear()
    p.publish("r")
    got = d.pull(request_id="r", from_={"stage": 0})
    assert got.status == "OK"
    assert got["filled"] == [{"group": 0, "first_token": 24, "tokens": 16}]
    d.check()


def test_each_receiver_counts_once(shm):
    case = plain_case(1, 2)
    (p,), (a, b) = shm.ranks(case)
    p.fill()
    p.publish("r", notify=True)
    for _ in range(3):
        a.clear()
        assert a.pull(request_id="r", from_={"stage": 0}).status == "OK"
        a.check()
    p.client.quiet(0.3)
    b.clear()
    assert b.pull(request_id="r", from_={"stage": 0}).status == "OK"
    assert event(p, request_id="r")["consumers_done"] == 2


def test_handles_are_bound(shm):
    case = plain_case(2, 1)
    (p, q), (d,) = shm.ranks(case)
    d.clear()
    handle = p.publish("r", tag=ID)
    q.publish("r", tag=ID)
    bad = dict(handle, tag=b"x" * 16)
    assert d.pull(handle=bad).status == "STALE"
    bad = dict(handle, incarnation=b"x" * 16)
    assert d.pull(handle=bad).status == "STALE"
    q.publish("r", tag=b"y" * 16)
    assert d.pull(handle=handle).status == "STALE"
    r = d.pull(request_id="r", from_={"stage": 0})
    assert r.status == "MISMATCH" and "tag" in r["message"]
    q.publish("r", tag=ID, n_tokens=39)
    r = d.pull(handle=handle)
    assert r.status == "MISMATCH" and "n_tokens" in r["message"]
    d.check_untouched()


def test_layouts_that_do_not_fit(shm):
    case = plain_case()
    case["D"]["layers"][1]["comps"] = [("k", 4, 4), ("v", 4, 4)]
    (p,), (d,) = shm.ranks(case)
    p.publish("r")
    d.clear()
    r = d.pull(request_id="r", from_={"stage": 0})
    assert r.status == "MISMATCH" and "E_GEOMETRY" in r["message"], dict(r)
    d.check_untouched()
    for x in (shm.p[0], shm.d[0]):
        x.wait_log(r"\[KVF LAYOUT\] .* layers\[1\].comps\[0\].bytes: 8 on P, "
                   r"4 on D")


@pytest.mark.parametrize("change,kind", [
    (dict(tp=0), "E_TP"), (dict(rank=7), "E_TP"),
    (dict(order="XYZ"), "E_LAYOUT"), (dict(kv="other"), "E_LAYOUT"),
    (dict(layers=[]), "E_LAYERS"), (dict(groups=[]), "E_GROUPS"),
    (dict(tp=3), "E_HEADS"), (dict(bs=0), "E_"), (dict(nblocks=17), "E_REGION"),
    (dict(nblocks=1 << 60), "E_")])
def test_bad_layouts(shm, change, kind):
    case = plain_case()
    shm.grow(1, 0)
    p = kvf_blocks.Rank(shm.p[0], case, "P", 0)
    fields = dict(p.fields(), **change)
    if "layers" in change:
        fields["views"] = []
    r = p.client.request("layout", **fields)
    assert r.status == "INVALID" and kind in r["message"], dict(r)


def test_bad_requests(shm):
    case = plain_case()
    (p,), (d,) = shm.ranks(case)
    f = p.fields()
    for change in (dict(views=[dict(f["views"][0], region=5)]),
                   dict(views=f["views"] + f["views"][:1]),
                   dict(views=[dict(f["views"][0], layer=9)]),
                   dict(views=[dict(f["views"][0], part="q")]),
                   dict(tp="1"), dict(shared=1),
                   dict(layers=[{"name": "x"}])):
        assert p.client.request("layout", **dict(f, **change)).status == \
            "INVALID", change
    bad = [dict(group=0, first=0, ids=[1, 1]), dict(group=0, first=0, ids=[16]),
           dict(group=1, first=0, ids=[1]), dict(group=0, first=-1, ids=[1]),
           dict(group=0, first=1 << 62, ids=[1]), dict(group=0, ids=[1])]
    for b in bad:
        assert p.client.request("publish", layout=p.layout, request_id="r",
                                n_tokens=4, blocks=[b]).status == "INVALID", b
        assert d.pull(request_id="r", from_={"stage": 0},
                      blocks=[b]).status == "INVALID", b
    assert d.pull(request_id="r").status == "INVALID"
    assert p.client.request("publish", layout=99, request_id="r", n_tokens=4,
                            blocks=p.blocks()).status == "INVALID"
    assert p.client.request("unregister",
                            region=p.regions[0]).status == "BUSY"
    p.publish("r")
    r = d.pull(request_id="r", from_={"stage": 0},
               blocks=[{"group": 0, "first": 0, "ids": [1, 2]}])
    assert r.status == "INVALID" and "E_LOCAL_SHORT" in r["message"]
    p.publish("r", n_tokens=44)
    r = d.pull(request_id="r", from_={"stage": 0}, blocks=[
        {"group": 0, "first": 0, "ids": list(range(11))}])
    assert r.status == "MISMATCH" and "E_BLOCKS_SHORT" in r["message"]


def test_ends_of_a_publication(shm):
    (p,), (d,) = shm.ranks(plain_case())
    ask = dict(request_id="r", from_={"stage": 0})
    p.publish("r", notify=True, ttl_ms=100)
    assert event(p, request_id="r")["reason"] == "expired"
    assert d.pull(**ask).status == "EXPIRED"
    p.publish("r", notify=True)
    p.publish("r", notify=True)
    assert event(p, request_id="r")["reason"] == "replaced"
    p.client.ok("fail", request_id="r", from_=0, to=1, reason="no luck")
    assert event(p, request_id="r")["reason"] == "failed"
    r = d.pull(**ask)
    assert r.status == "FAILED" and "no luck" in r["message"]
    p.publish("r", notify=True)
    assert p.client.ok("cleanup", request_id="r")["count"] == 1
    e = event(p, request_id="r")
    assert e["reason"] == "cleanup" and e["consumers_done"] == 0
    id_ = d.send_pull(**ask)
    d.client.quiet(0.2)
    p.client.ok("cleanup", request_id="r")
    assert d.client.recv(id_).status == "CANCELLED"


def test_owner_dies(fleet):
    (p, q), (d,) = fleet.ranks(plain_case(2, 1))
    p.publish("r", tag=ID)
    d.clear()
    id_ = d.send_pull(request_id="r", from_={"stage": 0})
    d.client.quiet(0.2)
    fleet.p[1].kill()
    t = time.monotonic()
    assert d.client.recv(id_).status == "PEER_UNREACHABLE"
    assert time.monotonic() - t < 3 * kvf.SLOW
    # the claim at the rank that lives was given back
    until(lambda: fleet.p[0].stats()["peers"]["guest_claims"] == 0, "aborted",
          2)
    d.check_foreign()


def test_receiver_dies(fleet):
    (p,), (a, b) = fleet.ranks(plain_case(1, 2))
    p.publish("r", notify=True)
    fleet.d[0].kill()
    p.fill()
    b.clear()
    assert b.pull(request_id="r", from_={"stage": 0}).status == "OK"
    b.check()
    p.client.ok("cleanup", request_id="r")
    assert event(p, request_id="r")["consumers_done"] == 1


def test_owner_restarts(shm):
    case = plain_case()
    (p,), (d,) = shm.ranks(case)
    handle = p.publish("r")
    shm.p[0].kill()
    shm.p[0].close_clients()
    shm.p[0].conf["connector"]["zmq_port"] = shm.p[0].peer_port - 100
    shm.p[0].restart()
    d.clear()
    assert d.pull(handle=handle, timeout_ms=8000).status in (
        "STALE", "PEER_UNREACHABLE")
    p = kvf_blocks.Rank(shm.p[0], case, "P", 0)
    p.fill()
    handle = p.publish("r")
    assert d.pull(handle=handle).status == "OK"
    d.check()


def test_publication_outlives_its_session(shm):
    (p,), (d,) = shm.ranks(plain_case())
    p.fill()
    p.publish("r")
    p.close()
    d.clear()
    assert d.pull(request_id="r", from_={"stage": 0}).status == "OK"
    d.check()


def test_same_daemon_on_both_sides(shm):
    case = plain_case()
    shm.grow(1, 0)
    p = kvf_blocks.Rank(shm.p[0], case, "P", 0)
    d = kvf_blocks.Rank(shm.p[0], case, "D", 0)
    p.fill()
    d.clear()
    assert d.pull(handle=p.publish("r", notify=True)).status == "OK"
    d.check()
    assert event(p, request_id="r")["reason"] == "consumed"


def together(size=2, name="all"):
    return {"name": name, "size": size}


def test_together_waits_for_all(shm):
    case = plain_case(1, 2)
    (p,), (a, b) = shm.ranks(case)
    p.fill()
    p.publish("r", notify=True)
    for x in (a, b):
        x.clear()
    ask = dict(request_id="r", from_={"stage": 0}, together=together())
    first = a.send_pull(**ask)
    a.client.quiet(0.3)  # the bytes are there, the other rank is not
    p.client.quiet(0)
    assert b.pull(**ask).status == "OK"
    assert a.client.recv(first).status == "OK"
    a.check()
    b.check()
    assert event(p, request_id="r")["consumers_done"] == 2


def test_together_fails_for_all(shm):
    case = plain_case(1, 2)
    (p,), (a, b) = shm.ranks(case)
    p.fill()
    p.publish("r", notify=True)
    for x in (a, b):
        x.clear()
    ask = dict(request_id="r", from_={"stage": 0}, together=together())
    short = [{"group": 0, "first": 0, "ids": [1]}]
    first = a.send_pull(**ask)
    a.client.quiet(0.2)
    r = b.pull(blocks=short, **ask)
    assert r.status == "INVALID" and "E_LOCAL_SHORT" in r["message"]
    r = a.client.recv(first, timeout=2 * kvf.SLOW)
    assert r.status == "INVALID" and "rank 1 of the group" in r["message"]
    # the first failure reaches those who come later, too
    assert b.pull(blocks=short, **ask).status == "INVALID"
    r = a.pull(**ask, timeout_ms=300)
    assert r.status != "OK"
    p.client.quiet(0.2)  # nobody has read it
    ask["together"] = together(name="again")
    first = a.send_pull(**ask)
    assert b.pull(**ask).status == "OK"
    assert a.client.recv(first).status == "OK"
    assert event(p, request_id="r")["consumers_done"] == 2


def test_together_when_one_goes_away(shm):
    case = plain_case(1, 2)
    (p,), (a, b) = shm.ranks(case)
    p.publish("r")
    ask = dict(request_id="r", from_={"stage": 0}, together=together())
    first = a.send_pull(**ask)
    a.client.quiet(0.2)
    # the same name of another request is another group
    assert b.pull(**dict(ask, request_id="other"),
                  timeout_ms=100).status == "TIMEOUT"
    assert b.pull(**dict(ask, together=together(3))).status == "MISMATCH"
    assert a.client.recv(first).status == "MISMATCH"
    ask["together"] = together(name="cancelled")
    first = a.send_pull(**ask)
    a.client.quiet(0.2)
    a.client.ok("cancel", target=first)
    assert a.client.recv(first).status == "CANCELLED"
    assert b.pull(**ask).status == "CANCELLED"
    ask["together"] = together(name="late")
    assert a.pull(timeout_ms=300, **ask).status == "TIMEOUT"
    assert b.pull(**ask).status == "TIMEOUT"
    first = a.send_pull(**dict(ask, together=together(name="twice")))
    a.client.quiet(0.1)
    r = a.pull(**dict(ask, together=together(name="twice")))
    assert r.status == a.client.recv(first).status == "MISMATCH"


def test_together_when_a_daemon_dies(shm):
    case = plain_case(1, 2)
    (p,), (a, b) = shm.ranks(case)
    ask = dict(request_id="r", from_={"stage": 0}, together=together())
    first = a.send_pull(**ask)
    b.send_pull(**ask)
    until(lambda: shm.p[0].stats()["peers"]["guest_asks"] == 2, "parked")
    shm.d[1].kill()
    r = a.client.recv(first, timeout=4 * kvf.SLOW)
    assert r.status == "PEER_UNREACHABLE", dict(r)
    assert p.client.ok("ping")


def big_case(n_blocks=2048, bs=16, heads=8, e=128):
    """128 MiB: long enough to be stopped in the middle."""
    ids = list(range(n_blocks))
    random.Random(1).shuffle(ids)
    case = plain_case(1, 1, n=n_blocks * bs, heads=heads, e=e, bs=bs,
                      n_layers=2, nblocks=n_blocks, ids_p=ids,
                      ids_d=ids[::-1])
    return case


class Big(kvf_blocks.Rank):
    """Without labels: too many bytes for the model."""

    def __init__(self, *args):
        real = kvf_blocks.model.label_memory
        kvf_blocks.model.label_memory = lambda *a: {}
        try:
            super().__init__(*args)
        finally:
            kvf_blocks.model.label_memory = real


def big_ranks(fleet):
    case = big_case()
    fleet.grow(1, 1)
    return Big(fleet.p[0], case, "P", 0), Big(fleet.d[0], case, "D", 0)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["owner", "cancel", "session"])
def test_stopped_in_the_middle(fleet, victim):
    """Whatever stops it, both sides are free again within a second or two,
    and nothing is written after the answer."""
    p, d = big_ranks(fleet)
    p.publish("r", notify=True)
    id_ = d.send_pull(request_id="r", from_={"stage": 0})
    until(lambda: fleet.d[0].stats()["blocks"]["moving"] == 1, "moving")
    if victim == "owner":
        fleet.p[0].kill()
        r = d.client.recv(id_)
        # over shm it may have been done by then
        assert r.status in ("PEER_UNREACHABLE", "OK"), dict(r)
    elif victim == "cancel":
        d.client.ok("cancel", target=id_)
        r = d.client.recv(id_, timeout=2 * kvf.SLOW)
        assert r.status in ("CANCELLED", "OK")
        before = [bytes(m[:1 << 20]) for m in d.maps.values()]
        time.sleep(0.2)  # late bytes would come now
        assert before == [bytes(m[:1 << 20]) for m in d.maps.values()]
    else:
        d.client.send("bye")
    until(lambda: fleet.d[0].stats()["blocks"]["pulls"] == 0, "given up", 3)
    if victim != "owner":
        until(lambda: fleet.p[0].stats()["blocks"]["claims"] == 0, "freed", 2)
        p.client.ok("cleanup", request_id="r")


def test_one_at_a_time_on_an_edge():
    """max_inflight = 1: others wait for room, and groups that pull in opposite
    orders do not wait for each other."""
    fleet = Fleet({"edge 0->1": {"max_inflight": 1}})
    try:
        p, d = big_ranks(fleet)
        names = [f"r{i}" for i in range(3)]
        for name in names:
            p.publish(name)
        asked = [d.send_pull(request_id=n, from_={"stage": 0}) for n in names]
        until(lambda: fleet.d[0].stats()["blocks"]["moving"] == 3, "planned")
        d.client.ok("cancel", target=asked[1])
        got = [d.client.recv(i) for i in asked]
        assert [g.status for g in got] == ["OK", "CANCELLED", "OK"]
        p.client.ok("cleanup", request_id="r1")
        for x in (p, d):
            x.close()
        case = plain_case(1, 2)
        (p,), (a, b) = fleet.ranks(case)
        for name in "xy":
            p.publish(name)
        asked = [(r, r.send_pull(request_id=n, from_={"stage": 0},
                                 together=together()))
                 for r, n in ((a, "x"), (b, "y"), (a, "y"), (b, "x"))]
        for r, id_ in asked:
            assert r.client.recv(id_).status == "OK"
    finally:
        fleet.close()


def test_log_and_stats(shm):
    (p,), (d,) = shm.ranks(plain_case())
    p.publish("a b")
    assert d.pull(request_id="a b", from_={"stage": 0}).status == "OK"
    st = shm.d[0].stats()
    assert st["counters"]["pulls"] == 1 and st["counters"]["pull_bytes"] > 0
    assert st["blocks"]["pulls"] == 0 and st["blocks"]["layouts"] == 1
    st = shm.p[0].stats()["blocks"]
    assert st["publishes"] == 1 and st["published"] == 0
    shm.p[0].wait_log(r"\[KVF PUBLISH\] request=\S+ rank=0 .* tokens=40 ")
