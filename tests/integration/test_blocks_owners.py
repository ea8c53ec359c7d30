"""Owners of blocks that answer with something else, that lose a claim in the
middle, or that forget a session; layouts with words that nobody knows."""
import struct

import pytest

import kvf
import kvf_blocks
from kvf import until
from kvf_blocks import Fleet, plain_case
from kvf_peer import ASK, DENY, GRANT, HELLO, REFUSE, STALE, TOKEN, Owner
from test_blocks_lying import (BLOCKS_ASK, BLOCKS_GRANT, LAYOUT, LAYOUT_ASK,
                               LAYOUT_GONE, LAYOUT_IS)

RDMA_CONNECT = 32
END = {"id": 1, "qpn": 1, "psn": 1, "link_layer": 2, "lid": 0, "mtu": 1024,
       "rd_atomic": 1, "gids": [[bytes(16), 2]]}
TCP = {"connector": {"protocol": "tcp"}}


class FakeSender(Owner):
    """Rank 0 of a sender with the case's layout, which it tells before every
    grant. `on_blocks(owner, body)` answers a BLOCKS_ASK."""

    def __init__(self, case, on_blocks=None, on_key=None, on_runs=None):
        self.case, self.on_blocks = case, on_blocks
        self.on_runs = on_runs
        super().__init__(on_key or (lambda o, ask: None))

    def tell(self):
        s = self.case["P"]
        self.send(LAYOUT, number=55, tp=s["tp"], pp=1, rank=0, bs=s["bs"],
                  ppl=s["ppl"], nblocks=s["nblocks"], order=s["order"],
                  kv=s["kv"], shared=False,
                  groups=[{"kind": "full", "window": 0}],
                  layers=[{"name": x["name"], "group": 0, "kind": "attn",
                           "comps": [list(c) for c in x["comps"]]}
                          for x in s["layers"]],
                  views=[{"layer": i, "part": "kv", "region": v[0],
                          "off0": v[1], "stride": v[2], "page": v[3]}
                         for i, x in enumerate(s["layers"])
                         for v in x["views"].values()],
                  regions=s["regions"][0], spaces=[])

    def grant_blocks(self, ask, **kw):
        self.claims += 1
        (first, ids), = self.case["blocks"]["P"]
        self.send(BLOCKS_GRANT, **dict(dict(
            ask=ask["ask"], claim=(1 << 62) + self.claims, generation=1,
            layout=55, n_tokens=self.case["n"], token=TOKEN, tag=TOKEN,
            minted=False, shm=False, blocks=[[first, *ids]]), **kw))

    def run(self):
        seen = 0
        inner = self.sock.poll

        def poll(ms):
            nonlocal seen
            for type_, body in self.seen[seen:]:
                seen += 1
                if type_ == LAYOUT_ASK:
                    self.tell()
                    self.send(LAYOUT_IS, ask=body["ask"], layout=55)
                elif type_ == BLOCKS_ASK:
                    self.on_blocks(self, body)
            return inner(ms)
        real, self.sock = self.sock, Polled(self.sock, poll)
        super().run()
        self.sock = real

    def run_conn(self, conn):
        """Requests of many runs, too: on_runs(claim, runs)."""
        conn.settimeout(kvf.WAIT)

        def take(n):
            got = b""
            while len(got) < n:
                part = conn.recv(n - len(got))
                if not part:
                    raise OSError
                got += part
            return got
        try:
            take(40)
            while not self.over:
                _, op, _, tag, claim, _, at, length = struct.unpack(
                    ">2sHIQQ16sQQ", take(56))
                runs = [(at, length)]
                if op == 3:
                    table = take(12 * at)
                    runs = list(struct.iter_unpack(">QI", table))
                status, data = self.on_runs(claim, runs)
                conn.sendall(struct.pack(">2sHIQQ", b"KR", 0, status, tag,
                                         len(data)) + data)
        except OSError:
            conn.close()

    def heard(self, type_):
        return [b for t, b in self.seen if t == type_]


class Polled:
    """A socket whose poll() is another one."""

    def __init__(self, sock, poll):
        self.sock, self.poll = sock, poll

    def __getattr__(self, name):
        return getattr(self.sock, name)


@pytest.fixture
def fleet():
    f = Fleet(TCP)
    f.grow(0, 1)
    yield f
    f.close()


@pytest.fixture
def sender(fleet):
    made = []

    def start(*args, **kw):
        o = FakeSender(*args, **kw)
        made.append(o)
        fleet.d[0].client().ok("peer", stage=0, rank=0, host="127.0.0.1",
                               port=o.port)
        return o
    yield start
    for o in made:
        o.close()


def pull(d, **kw):
    return d.pull(request_id="r", from_={"stage": 0}, **kw)


def malformed(fleet):
    return fleet.d[0].stats()["counters"]["peer_malformed"]


def test_grants_of_the_other_kind(fleet, sender):
    """A claim on a key for who asked for blocks, and the other way round."""
    case = plain_case(n=12)
    o = sender(case, lambda o, ask: o.grant(ask, 100),
               lambda o, ask: (o.tell(), o.grant_blocks(ask)))
    d = kvf_blocks.Rank(fleet.d[0], case, "D", 0)
    d.clear()
    assert pull(d, timeout_ms=500).status == "TIMEOUT"
    d.check_untouched()
    for mode in ("copy", "inline"):
        r = d.client.request("get", key="k", mode=mode, source=o.source,
                             timeout_ms=300)
        assert r.status == "TIMEOUT"
    assert malformed(fleet) >= 3
    assert o.heard(BLOCKS_ASK) and o.heard(ASK) and not o.heard(DENY)


def test_a_claim_that_is_granted_again_with_its_layout(fleet, sender):
    """The engine of the sender leaves, the claim is lost: the new one comes
    with the layout told anew, and the transfer goes on."""
    case = plain_case(n=12)

    def on_blocks(o, ask):
        o.tell()
        o.grant_blocks(ask)

    def on_runs(claim, runs):
        if claim == (1 << 62) + 1:
            o.send(LAYOUT_GONE, number=55)
            return STALE, b""
        return 0, b"".join(b"%c" % (i % 251) * n
                           for i, (_, n) in enumerate(runs))
    o = sender(case, on_blocks, on_runs=on_runs)
    d = kvf_blocks.Rank(fleet.d[0], case, "D", 0)
    d.clear()
    got = pull(d)
    assert got.status == "OK", dict(got)
    assert o.claims == 2 and got["attempts"] == 2
    d.check_foreign()


def test_another_layout_the_second_time_is_another_publication(fleet, sender):
    case = plain_case(n=12)
    other = plain_case(n=12)
    other["P"]["regions"] = {s: [n * 2 for n in x]
                             for s, x in other["P"]["regions"].items()}

    def on_blocks(o, ask):
        if o.claims == 1:
            o.case = other
        o.tell()
        o.grant_blocks(ask)

    def on_runs(claim, runs):
        o.send(LAYOUT_GONE, number=55)
        return STALE, b""
    o = sender(case, on_blocks, on_runs=on_runs)
    d = kvf_blocks.Rank(fleet.d[0], case, "D", 0)
    d.clear()
    assert pull(d).status == "STALE"
    d.check_untouched()


def test_layouts_are_told_again_when_a_session_is_renewed(fleet, sender):
    """The owner had given the session up, and with it our layouts."""
    case = plain_case(n=12)

    def on_blocks(o, ask):
        o.tell()
        o.grant_blocks(ask)
    o = sender(case, on_blocks,
               on_runs=lambda c, runs: (0, b"x" * sum(n for _, n in runs)))
    d = kvf_blocks.Rank(fleet.d[0], case, "D", 0)
    assert pull(d).status == "OK"
    assert len(o.heard(LAYOUT)) == 1
    hellos = len(o.heard(HELLO))
    o.send(REFUSE, status=STALE, text="no session: say HELLO")
    until(lambda: len(o.heard(HELLO)) > hellos, "renewed")
    assert pull(d).status == "OK"
    assert len(o.heard(LAYOUT)) == 2


def test_an_owner_that_connects(fleet, sender):
    """Only who dials may say RDMA_CONNECT."""
    case = plain_case(n=12)
    o = sender(case, lambda o, ask: o.send(RDMA_CONNECT, **END))
    d = kvf_blocks.Rank(fleet.d[0], case, "D", 0)
    before = malformed(fleet)
    assert pull(d, timeout_ms=400).status == "TIMEOUT"
    assert malformed(fleet) == before + 1
    assert o.heard(BLOCKS_ASK)


def test_a_layer_of_another_stage_with_an_unknown_kind(fleet):
    case = plain_case(pp_d=2, n=12)
    d = kvf_blocks.Rank(fleet.d[0], case, "D", 0)
    fields = d.fields()
    theirs = next(i for i, x in enumerate(case["D"]["layers"])
                  if x["stage"] == 1)
    fields["layers"][theirs]["kind"] = "mamba"
    r = d.client.request("layout", **fields)
    assert r.status == "INVALID" and "E_LAYERS" in r["message"]


def test_a_group_whose_meeting_point_is_not_there():
    """Rank 0 of the sender has none of our bytes and is dead."""
    f = Fleet(TCP)
    try:
        case = plain_case(2, 2, n=12)
        senders, receivers = f.ranks(case)
        for r in senders:
            r.fill()
        receivers[1].clear()
        handle = senders[1].publish("r")
        f.p[0].kill()
        got = receivers[1].pull(handle=handle, timeout_ms=700,
                                together={"name": "g", "size": 2})
        assert got.status == "PEER_UNREACHABLE", dict(got)
        assert "together" in got["message"]
    finally:
        f.close()


# ---- more layouts than one daemon keeps of another --------------------------

LAYOUTS_KEPT = 256


def counter(daemon, name):
    return daemon.engine().ok("stats")["counters"][name]


def test_more_layouts_of_receivers_than_an_owner_keeps():
    """Those that nothing uses make room, and are told again when named."""
    fleet = Fleet()
    try:
        case = plain_case()
        (p,), (d,) = fleet.ranks(case)
        p.fill()
        layouts = [d.layout] + [d.declare() for _ in range(LAYOUTS_KEPT + 4)]
        for n, layout in enumerate(layouts + layouts[:3]):
            d.clear()
            d.layout = layout
            handle = p.publish(f"r{n}")
            got = d.pull(handle=handle)
            assert got.status == "OK", (n, dict(got))
            d.check()
        assert counter(fleet.p[0], "layouts_evicted") >= 5
        assert counter(fleet.p[0], "layouts_refused") == 0
    finally:
        fleet.close()


def test_more_layouts_of_a_sender_than_a_receiver_keeps():
    fleet = Fleet()
    try:
        case = plain_case()
        (p,), (d,) = fleet.ranks(case)
        p.fill()
        layouts = [p.layout] + [p.declare() for _ in range(LAYOUTS_KEPT + 4)]
        for n, layout in enumerate(layouts + layouts[:3]):
            d.clear()
            p.layout = layout
            handle = p.publish(f"r{n}")
            got = d.pull(handle=handle)
            assert got.status == "OK", (n, dict(got))
            d.check()
        assert counter(fleet.d[0], "layouts_evicted") >= 5
    finally:
        fleet.close()


def test_as_many_layouts_in_use_as_an_owner_keeps():
    """The next one is refused clearly, counted and logged; the others, whose
    pulls wait for their request, get it."""
    fleet = Fleet()
    try:
        case = plain_case()
        (p,), (d,) = fleet.ranks(case)
        p.fill()
        d.clear()
        assert d.pull(handle=p.publish("first")).status == "OK"
        asked = []
        for _ in range(LAYOUTS_KEPT):
            d.layout = d.declare()
            asked.append(d.send_pull(request_id="r", from_={"stage": 0}))
        until(lambda: counter(fleet.p[0], "layouts_evicted") == 1,
              "room made")
        d.layout = d.declare()
        got = d.pull(request_id="r", from_={"stage": 0})
        assert got.status == "BUSY" and "256" in got["message"], dict(got)
        assert counter(fleet.p[0], "layouts_refused") == 1
        fleet.p[0].wait_log(r"\[KVF LAYOUT\] .* receiver refused: 256 layouts")
        p.publish("r")
        for a in asked:
            assert d.client.recv(a).status in ("OK", "CONSUMED")
        d.check()
        # There is room again.
        got = d.pull(handle=p.publish("last"))
        assert got.status == "OK", dict(got)
    finally:
        fleet.close()
