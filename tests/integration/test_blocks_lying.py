"""Blocks and peers that do not keep to the protocol: what a getter may read,
messages that come twice or late, connections that break."""
import os
import socket
import struct
import threading

import pytest

import kvf
import kvf_blocks
from kvf import until
from kvf_blocks import Fleet, plain_case
from kvf_peer import ABORT, DENY, DONE, ENDED, Getter

LAYOUT, LAYOUT_GONE, LAYOUT_ASK, LAYOUT_IS, BLOCKS_ASK, BLOCKS_GRANT, \
    TOGETHER, VERDICT = range(16, 24)
OK, INVALID, NOT_FOUND, STALE, DENIED = (kvf.STATUSES.index(x) for x in
                              ("OK", "INVALID", "NOT_FOUND", "STALE",
                               "DENIED"))
PAGE = 4 * 4 * 2 * 8  # of plain_case: heads, tokens, k and v, bytes


@pytest.fixture
def fleet():
    f = Fleet()
    yield f
    f.close()


class FakeReceiver(Getter):
    """Rank 0 of a receiver: its layout is that of the case."""

    def __init__(self, daemon, case, **kw):
        super().__init__(daemon, **kw)
        self.welcome = self.hello()
        self.tell(case)
        self.bulk = None

    def tell(self, case, number=77, **change):
        s = case["D"]
        lengths = s["regions"][0]
        fields = dict(
            number=number, tp=s["tp"], pp=1, rank=0, bs=s["bs"], ppl=s["ppl"],
            nblocks=s["nblocks"], order=s["order"], kv=s["kv"], shared=False,
            groups=[{"kind": "full", "window": 0}],
            layers=[{"name": x["name"], "group": 0, "kind": "attn",
                     "comps": [list(c) for c in x["comps"]]}
                    for x in s["layers"]],
            views=[{"layer": i, "part": "kv", "region": v[0], "off0": v[1],
                    "stride": v[2], "page": v[3]}
                   for i, x in enumerate(s["layers"])
                   for v in x["views"].values()],
            regions=lengths, spaces=[])
        self.send(LAYOUT, **dict(fields, **change))

    def ask_blocks(self, request_id="r", **kw):
        self.asks += 1
        self.send(BLOCKS_ASK, **dict(dict(
            ask=self.asks, layout=77, rank=0, request_id=request_id,
            shm=False), **kw))

    def claim_blocks(self, **kw):
        self.ask_blocks(**kw)
        type_, body, _ = self.recv(BLOCKS_GRANT, DENY)
        assert type_ == BLOCKS_GRANT, body
        return body

    def read(self, grant, runs, op=1, token=None, claim=None):
        """(status, bytes) of a READ (one run) or READ_RUNS."""
        if self.bulk is None:
            self.bulk = socket.create_connection(
                (self.welcome["tcp_host"], self.welcome["tcp_port"]), kvf.WAIT)
            self.bulk.sendall(b"KVFB" + struct.pack(">HH", 1, 0)
                              + self.welcome["secret"])
        length = sum(n for _, n in runs)
        frame = struct.pack(
            ">2sHIQQ16sQQ", b"KQ", op, 0, 5,
            grant["claim"] if claim is None else claim,
            token or grant["token"],
            runs[0][0] if op == 1 else len(runs), length)
        if op == 3:
            frame += b"".join(struct.pack(">QI", o, n) for o, n in runs)
        self.bulk.sendall(frame)
        head = self.take(24)
        _, _, status, tag, n = struct.unpack(">2sHIQQ", head)
        assert tag == 5
        return status, self.take(n)

    def take(self, n):
        got = b""
        while len(got) < n:
            part = self.bulk.recv(n - len(got))
            if not part:
                break
            got += part
        return got

    def close(self):
        if self.bulk:
            self.bulk.close()
        super().close()


def published(fleet, case, **kw):
    fleet.grow(1, 0)
    p = kvf_blocks.Rank(fleet.p[0], case, "P", 0)
    p.fill()
    p.publish("r", notify=True, **kw)
    return p


def test_only_published_blocks_can_be_read(fleet):
    """Over tcp, byte for byte at the edges of each block."""
    case = plain_case(n=12, ids_p=[3, 1, 9])
    p = published(fleet, case)
    d = FakeReceiver(fleet.p[0], case)
    g = d.claim_blocks()
    region = 16 * PAGE  # two of them in the payload
    mine = {3, 1, 9}
    for r in range(2):
        for block in range(16):
            at = r * region + block * PAGE
            status, data = d.read(g, [(at, PAGE)])
            assert (status == OK) == (block in mine), block
            if block in mine:
                assert data == p.maps[r][block * PAGE:(block + 1) * PAGE]
            for off, n in ((at - 1, 2), (at + PAGE - 1, 2)):
                if off < 0 or off + n > 2 * region:
                    continue
                status, _ = d.read(g, [(off, n)])
                both = {off // PAGE % 16, (off + 1) // PAGE % 16}
                assert (status == OK) == (both <= mine), (off, n)
    good = [(3 * PAGE + 5, 9), (region + PAGE, PAGE)]
    status, data = d.read(g, good, op=3)
    assert status == OK and len(data) == 9 + PAGE
    assert d.read(g, good + [(0, 1)], op=3)[0] != OK
    d.close()


def test_claims_are_bound(fleet):
    case = plain_case(n=12)
    published(fleet, case)
    d = FakeReceiver(fleet.p[0], case)
    g = d.claim_blocks()
    assert d.read(g, [(0, 8)], token=b"x" * 16)[0] == DENIED
    assert d.read(g, [(0, 8)], claim=g["claim"] + 1)[0] == STALE
    assert d.read(g, [(0, 8)])[0] == OK
    other = FakeReceiver(fleet.p[0], case, worker=(1, 1, 0))
    assert other.read(g, [(0, 8)])[0] == DENIED
    other.send(DONE, claim=g["claim"], token=g["token"])
    other.recv(ENDED)
    assert d.read(g, [(0, 8)])[0] == OK
    d.send(ABORT, claim=g["claim"], token=g["token"])
    d.recv(ENDED)
    assert d.read(g, [(0, 8)])[0] == STALE
    other.close()
    d.close()


def test_done_twice_and_late(fleet):
    case = plain_case(1, 2, n=12)
    p = published(fleet, case)
    d = FakeReceiver(fleet.p[0], case)
    g = d.claim_blocks()
    for _ in range(3):
        d.send(DONE, claim=g["claim"], token=g["token"])
        d.recv(ENDED)
    g = d.claim_blocks()  # the same rank once more
    d.send(DONE, claim=g["claim"], token=g["token"])
    d.recv(ENDED)
    d.send(DONE, claim=g["claim"] + 50, token=g["token"])
    d.recv(ENDED)
    p.client.quiet(0.3)  # the other rank has not read
    p.client.ok("cleanup", request_id="r")
    e = p.client.event(event="retired")
    assert e["consumers_done"] == 1 and e["reason"] == "cleanup"
    d.close()


def test_bad_messages_change_nothing(fleet):
    case = plain_case(n=12)
    published(fleet, case)
    d = FakeReceiver(fleet.p[0], case)
    before = fleet.p[0].stats()["counters"]["peer_malformed"]
    bad = [dict(tp=0), dict(rank=9), dict(regions=[1]), dict(bs=-1),
           dict(order="X"), dict(regions=[1 << 63, 1]), dict(layers=[]),
           dict(views=[{"layer": 0, "part": "kv", "region": 1, "off0": 0,
                        "stride": 1, "page": 1}])]
    for i, change in enumerate(bad):
        d.tell(case, 100 + i, **change)
    d.send(BLOCKS_ASK, ask=1)
    d.send(LAYOUT_ASK, ask="x", layout=1)
    d.send(TOGETHER, ask=1, member=0, size=0, request_id="", name="",
           phase=9, status=0, text="")
    d.send(BLOCKS_GRANT, ask=1)
    d.ask_blocks(layout=100)  # one that was not taken
    type_, body, _ = d.recv(DENY)
    assert body["status"] == NOT_FOUND
    d.ask_blocks(rank=5, request_id="r")  # parks: nobody is rank 5
    d.tell(case)  # once more: ignored
    d.send(LAYOUT_GONE, number=12345)
    assert d.claim_blocks()["n_tokens"] == 12
    assert fleet.p[0].stats()["counters"]["peer_malformed"] >= before + 8
    # a layout that is not ours to read with: refused, and only that
    other = plain_case(n=12, heads=8)
    d.tell(other, 500)
    d.ask_blocks(layout=500)
    type_, body, _ = d.recv(DENY)
    assert "E_GEOMETRY" in body["text"]
    d.close()
    until(lambda: fleet.p[0].stats()["blocks"]["claims"] == 0, "ended")


def test_layout_is_told_again_after_a_reconnection(fleet):
    case = plain_case(n=12)
    published(fleet, case)
    d = FakeReceiver(fleet.p[0], case)
    d.ask_blocks()
    assert d.recv(LAYOUT, BLOCKS_GRANT)[0] == LAYOUT
    g = d.recv(BLOCKS_GRANT)[1]
    d.ask_blocks()
    assert d.recv(LAYOUT, BLOCKS_GRANT)[0] == BLOCKS_GRANT
    d.connect()
    d.hello(live=[g["claim"]])
    d.ask_blocks()
    assert d.recv(LAYOUT, BLOCKS_GRANT)[0] == LAYOUT
    # the first claim has lived on, the second was not listed
    until(lambda: fleet.p[0].stats()["blocks"]["claims"] == 2, "two claims")
    d.close()


class Proxy:
    """Passes bytes on; cut() breaks every connection."""

    def __init__(self, port):
        self.port_to = port
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.conns = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                a = self.server.accept()[0]
            except OSError:
                return
            b = socket.create_connection(("127.0.0.1", self.port_to))
            self.conns += [a, b]
            for x, y in ((a, b), (b, a)):
                threading.Thread(target=self.pump, args=(x, y),
                                 daemon=True).start()

    @staticmethod
    def pump(x, y):
        try:
            while True:
                data = x.recv(65536)
                if not data:
                    break
                y.sendall(data)
        except OSError:
            pass
        for s in (x, y):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        for s in self.conns:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.conns = []

    def close(self):
        self.server.close()
        self.cut()


def test_pull_survives_a_broken_connection(fleet):
    """It waits on, whatever it was waiting for, and both layouts are told
    again."""
    case = plain_case(n=12)
    fleet.grow(1, 1)
    proxy = Proxy(fleet.p[0].peer_port)
    fleet.d[0].client().ok("peer", stage=0, rank=0, host="127.0.0.1",
                           port=proxy.port)
    d = kvf_blocks.Rank(fleet.d[0], case, "D", 0)
    d.clear()
    id_ = d.send_pull(request_id="r", from_={"stage": 0})
    d.client.quiet(0.2)  # for a layout
    proxy.cut()
    p = kvf_blocks.Rank(fleet.p[0], case, "P", 0)
    until(lambda: fleet.p[0].stats()["peers"]["guest_asks"] == 1, "asks")
    proxy.cut()
    d.client.quiet(0.2)
    p.fill()
    p.publish("r", notify=True)
    assert d.client.recv(id_).status == "OK"
    d.check()
    assert p.client.event(event="retired")["reason"] == "consumed"
    proxy.cut()
    p.publish("s", tag=os.urandom(16))
    d.clear()
    assert d.pull(request_id="s", from_={"stage": 0}).status == "OK"
    d.check()
    proxy.close()
