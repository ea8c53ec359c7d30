"""KV blocks over real daemons: ranks with memory of their own, cases of the
planner's generator carried out byte by byte.

A case is what tests/layout/gen.py makes; every byte of a request's blocks has
a label (tests/layout/model.py) and so a value, the same on every rank that has
it. Afterwards a receiver must have the right value in every wanted byte, and
nothing but its own blocks may have changed.
"""
import fcntl
import mmap
import os
import sys
import zlib

import kvf

sys.path.insert(0, os.path.join(kvf.ROOT, "tests", "layout"))
import gen  # noqa: E402
import model  # noqa: E402

FILL = 0xEE


def value(label):
    return zlib.crc32(repr(label).encode()) & 0xff


class Rank:
    """One rank's engine: registered regions, a layout, a session."""

    def __init__(self, daemon, case, which, rank):
        self.daemon, self.case = daemon, case
        self.which, self.rank = which, rank
        self.side = case[which]
        self.stage, self.tp_rank = divmod(rank, self.side["tp"])
        self.client = daemon.engine()
        self.maps, self.regions = {}, {}
        for i, length in enumerate(self.side["regions"][self.stage]):
            if any(v[0] == i for x in self.mine()
                   for v in x["views"].values()):
                self.add_region(i, max(1, length))
        self.labels = self.make_labels()
        self.layout = self.declare()

    def make_labels(self):
        return model.label_memory(self.case, self.which, self.tp_rank,
                                  self.stage)

    def mine(self):
        return [x for x in self.side["layers"] if x["stage"] == self.stage]

    def add_region(self, i, length):
        fd = os.memfd_create("kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, length)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.maps[i] = mmap.mmap(fd, length)
        self.regions[i] = self.client.ok("register", fd=fd,
                                         size=length)["region"]
        os.close(fd)

    def fields(self):
        s = self.side
        return dict(
            tp=s["tp"], pp=s["pp"], rank=self.rank, bs=s["bs"], ppl=s["ppl"],
            nblocks=s["nblocks"], order=s["order"], kv=s["kv"],
            shared=bool(s["shared"]),
            groups=[{"kind": k, "window": w} if k == "swa" else {"kind": k}
                    for k, w in s["groups"]],
            layers=[{"name": x["name"], "group": x["group"],
                     "kind": x["kind"], "comps": [list(c) for c in x["comps"]]}
                    for x in s["layers"]],
            views=[{"layer": i, "part": part, "region": self.regions[v[0]],
                    "off0": v[1], "stride": v[2], "page": v[3]}
                   for i, x in enumerate(s["layers"])
                   if x["stage"] == self.stage
                   for part, v in x["views"].items()])

    def declare(self):
        return self.client.ok("layout", **self.fields())["layout"]

    def blocks(self):
        return [{"group": g, "first": first, "ids": list(ids)}
                for g, (first, ids) in enumerate(self.case["blocks"]
                                                 [self.which])]

    # -- sender ------------------------------------------------------------
    def fill(self):
        for m in self.maps.values():
            m[:] = bytes([FILL ^ 0xff]) * len(m)
        for (region, at), label in self.labels.items():
            self.maps[region][at] = value(label)

    def publish(self, request_id, **fields):
        fields.setdefault("n_tokens", self.case["n"])
        fields.setdefault("blocks", self.blocks())
        return self.client.ok("publish", layout=self.layout,
                              request_id=request_id, **fields)["handle"]

    # -- receiver ----------------------------------------------------------
    def clear(self):
        for m in self.maps.values():
            m[:] = bytes([FILL]) * len(m)

    def send_pull(self, **fields):
        fields.setdefault("blocks", self.blocks())
        return self.client.send("pull", layout=self.layout, **fields)

    def pull(self, **fields):
        return self.client.recv(self.send_pull(**fields))

    def check(self):
        want = {i: model.wanted(self.case, x)
                for i, x in enumerate(self.side["layers"])}
        for (region, at), label in self.labels.items():
            if label[3] in want[label[0]]:
                got = self.maps[region][at]
                assert got == value(label), \
                    f"rank {self.rank} region {region} byte {at}: {label}"
        self.check_foreign()

    def check_foreign(self):
        """Nothing but the request's own blocks was written."""
        for i, m in self.maps.items():
            own = {at for region, at in self.labels if region == i}
            for at, b in enumerate(bytes(m)):
                assert b == FILL or at in own, \
                    f"rank {self.rank} region {i} byte {at} was written"

    def check_untouched(self):
        for m in self.maps.values():
            assert bytes(m) == bytes([FILL]) * len(m)

    def close(self):
        self.client.close()


class Fleet:
    """Daemons of both stages, started when first needed, told about each
    other."""

    def __init__(self, conf=None):
        self.conf = conf
        self.p, self.d = [], []

    def grow(self, n_p, n_d):
        while len(self.p) < n_p:
            self.p.append(kvf.Daemon(stage=0, rank=len(self.p),
                                     conf=self.conf))
            self.introduce([self.p[-1]], self.d)
        while len(self.d) < n_d:
            self.d.append(kvf.Daemon(stage=1, rank=len(self.d),
                                     conf=self.conf))
            self.introduce(self.p, [self.d[-1]])

    @staticmethod
    def introduce(senders, receivers):
        for d in receivers:
            for p in senders:
                d.knows(p)

    def ranks(self, case):
        P, D = case["P"], case["D"]
        n_p, n_d = P["tp"] * P["pp"], D["tp"] * D["pp"]
        self.grow(n_p, n_d)
        return ([Rank(self.p[r], case, "P", r) for r in range(n_p)],
                [Rank(self.d[r], case, "D", r) for r in range(n_d)])

    def close(self):
        for x in self.d + self.p:
            x.close()


def plain_case(tp_p=1, tp_d=1, n=40, heads=4, e=8, bs=4, n_layers=2, ids_p=None,
               ids_d=None, pp_p=1, pp_d=1, nblocks=16):
    """Dense attention, HND, packed, a region for each layer."""
    case = {"n": n, "groups": [("full", 0)], "blocks": {}}
    for w, tp, pp in (("P", tp_p, pp_p), ("D", tp_d, pp_d)):
        side = {"tp": tp, "pp": pp, "bs": bs, "ppl": 1, "order": "HND",
                "kv": "packed", "shared": False, "nblocks": nblocks,
                "groups": case["groups"], "regions": {}}
        own = max(1, heads // tp)
        page = own * bs * 2 * e
        stages = gen.cut(n_layers, pp)
        side["layers"] = [
            {"name": f"l{i}", "kind": "attn", "group": 0, "stage": stages[i],
             "comps": [("k", heads, e), ("v", heads, e)], "views": {}}
            for i in range(n_layers)]
        for s in range(pp):
            mine = [x for x in side["layers"] if x["stage"] == s]
            for i, x in enumerate(mine):
                x["views"]["kv"] = (i, 0, page, page)
            side["regions"][s] = [page * nblocks] * len(mine)
        case[w] = side
    need = -(-n // bs)
    case["blocks"]["P"] = [(0, ids_p or list(range(need)))]
    case["blocks"]["D"] = [(0, ids_d or [nblocks - 1 - i
                                         for i in range(need)])]
    return case
