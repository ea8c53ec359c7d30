"""Many requests of mixed sizes between several ranks, at once, with aborts,
failures, engines that leave and daemons that are killed and come back; some
receivers by shm, some by tcp. Afterwards every gauge is zero.

KVF_SOAK=SECONDS makes it long, KVF_SEED repeats a run (as far as time allows).
"""
import os
import random
import signal
import time

import kvf
import kvf_blocks
from kvf import until
from kvf_blocks import FILL, gen, model, plain_case

SECONDS = float(os.environ.get("KVF_SOAK", 8))
TCP = {"connector": {"protocol": "tcp"}}
# All slots have senders of the same tp: a worker is cut in one way.
N_P, N_D = 4, 2
SALTS = [bytes((b + s) & 0xff for b in range(256)) for s in range(256)]


def number(b):
    return int.from_bytes(b, "little")


class Image:
    """What a region's bytes must be: a value, and whether it is wanted, or one
    of the request's own at all."""

    def __init__(self, size):
        self.value = bytearray(size)
        self.own, self.wanted = bytearray(size), bytearray(size)

    def put(self, at, data, wanted):
        self.value[at:at + len(data)] = data
        self.own[at:at + len(data)] = b"\xff" * len(data)
        if wanted:
            self.wanted[at:at + len(data)] = b"\xff" * len(data)

    def done(self):
        self.n_own, self.n_wanted = number(self.own), number(self.wanted)
        self.rest = number(bytes([FILL]) * len(self.own)) & ~self.n_own

    def sent(self, salt):
        return bytes(self.value.translate(SALTS[salt]))

    def check(self, got, salt, what):
        have = number(got)
        want = (number(self.value.translate(SALTS[salt])) & self.n_wanted
                | have & (self.n_own & ~self.n_wanted) | self.rest)
        if want != have:
            at = next(i for i, (a, b) in enumerate(
                zip(want.to_bytes(len(got), "little"), got)) if a != b)
            raise AssertionError(f"{what}: byte {at} is {got[at]:#x}")


def labelled(case, which, rank):
    """Images of any small case, by the model."""
    side = case[which]
    stage, tp_rank = divmod(rank, side["tp"])
    images = {i: Image(max(1, n))
              for i, n in enumerate(side["regions"][stage])}
    want = {i: model.wanted(case, x) for i, x in enumerate(side["layers"])}
    labels = model.label_memory(case, which, tp_rank, stage)
    for (region, at), label in labels.items():
        images[region].put(at, bytes([kvf_blocks.value(label)]),
                           label[3] in want[label[0]])
    return images


def large(case, which, rank):
    """Images of a plain_case (HND, packed, one stage), head by head."""
    side = case[which]
    hand = model.deal(side["layers"][0]["comps"][0][1], side["tp"])[rank]
    e, bs = side["layers"][0]["comps"][0][2], side["bs"]
    ids = case["blocks"][which][0][1]
    images = {}
    for li in range(len(side["layers"])):
        image = images[li] = Image(side["regions"][0][li])
        for nth, bid in enumerate(ids):
            at = bid * len(hand) * bs * 2 * e
            for head in hand:
                for token in range(nth * bs, (nth + 1) * bs):
                    seed = (li * 7919 + head * 131 + token * 2 + 1) & 0xffff
                    data = (seed.to_bytes(2, "little") * e)[:2 * e]
                    image.put(at, data, token < case["n"])
                    at += 2 * e
    return images


class Rank(kvf_blocks.Rank):
    """Keeps its images; can be built anew after a restart."""

    def __init__(self, daemon, case, which, rank, images):
        self.images = images
        super().__init__(daemon, case, which, rank)

    def make_labels(self):
        return {}

    def send_bytes(self, salt):
        for i, m in self.maps.items():
            m[:] = self.images[i].sent(salt)

    def check_bytes(self, salt, what):
        for i, m in self.maps.items():
            self.images[i].check(bytes(m), salt, f"{what} region {i}")

    def snapshot(self):
        return [bytes(m) for m in self.maps.values()]


class Slot:
    """One case with its engines on the fleet; one request at a time."""

    def __init__(self, fleet, case, images_of, name):
        self.fleet, self.case, self.name = fleet, case, name
        self.size = {w: case[w]["tp"] * case[w]["pp"] for w in "PD"}
        self.images = {(w, r): images_of(case, w, r)
                       for w in "PD" for r in range(self.size[w])}
        for table in self.images.values():
            for image in table.values():
                image.done()
        self.ranks = {}
        self.turn = 0
        self.build()

    def build(self):
        """Engines that are missing, or whose daemon is a new one."""
        for (w, r), images in self.images.items():
            daemon = (self.fleet.p if w == "P" else self.fleet.d)[r]
            old = self.ranks.get((w, r))
            if old is not None and old.incarnation == daemon.incarnation:
                continue
            rank = Rank(daemon, self.case, w, r, images)
            rank.incarnation = daemon.incarnation
            self.ranks[w, r] = rank

    def drop(self, w, r):
        self.ranks.pop((w, r)).close()

    def side(self, w):
        return [x for (s, _), x in sorted(self.ranks.items()) if s == w]

    def start(self, rng, mode):
        self.turn += 1
        self.mode, self.salt = mode, rng.randrange(256)
        self.request = f"{self.name}-{self.turn}"
        senders, receivers = self.side("P"), self.side("D")
        todo = [lambda s=s: self.publish(s) for s in senders]
        self.tied = len(receivers) > 1 and rng.random() < 0.5
        if mode == "missing":
            todo.pop(rng.randrange(len(todo)))
        self.published, self.asked = [], []
        for r in receivers:
            r.clear()
            todo.append(lambda r=r: self.ask(r, mode))
        rng.shuffle(todo)
        for f in todo:
            f()
        if mode == "cancel":
            time.sleep(rng.choice([0, 0.0005, 0.002]))  # any moment
            r, id_ = rng.choice(self.asked)
            r.client.send("cancel", target=id_)
        elif mode == "fail":
            time.sleep(rng.choice([0, 0.0005, 0.002]))  # any moment
            rng.choice(senders).client.send("fail", request_id=self.request,
                                            from_=0, to=1, reason="soak")
        elif mode == "leave":
            r, _ = self.asked.pop(rng.randrange(len(self.asked)))
            self.drop("D", r.rank)

    def publish(self, s):
        s.send_bytes(self.salt)
        s.publish(self.request, tag=self.request.encode().rjust(16)[-16:],
                  notify=True)
        self.published.append(s)

    def ask(self, r, mode):
        more = {}
        if self.tied:
            more["together"] = {"name": self.request, "size": self.size["D"]}
        id_ = r.send_pull(request_id=self.request, from_={"stage": 0},
                          timeout_ms=300 if mode == "missing" else
                          2000 if self.tied else 20000,
                          **more)
        self.asked.append((r, id_))

    LEGAL = {"plain": {"OK"}, "missing": {"OK", "TIMEOUT"}, "leave": {"OK"},
             "cancel": {"OK", "CANCELLED"},
             "fail": {"OK", "FAILED"}}
    # What the leaver's pull ended with is what the others are told; one that
    # left before it had joined is waited for.
    TIED = {**LEGAL, "leave": {"OK", "CANCELLED", "TIMEOUT"},
            "cancel": {"OK", "CANCELLED", "TIMEOUT"}}

    def finish(self, killed):
        """Collects what was started. After a kill anything that is no lie."""
        self.frozen, failed, seen = [], 0, set()
        legal = (self.TIED if self.tied else self.LEGAL)[self.mode]
        for r, id_ in self.asked:
            if not self.current(r):
                assert killed
                continue
            try:
                got = r.client.recv(id_)
            except kvf.NoReply:
                raise AssertionError(f"no reply: {self.request} {self.mode} "
                                     f"tied={self.tied} rank {r.rank}") \
                    from None
            seen.add(got.status)
            if got.status == "OK":
                r.check_bytes(self.salt, f"{self.request} rank {r.rank}")
            else:
                failed += 1
                self.frozen.append((r, r.snapshot()))
                assert killed or got.status in legal, (self.mode, dict(got))
        # All of them, or none.
        assert killed or not self.tied or "OK" not in seen or len(seen) == 1, \
            (self.mode, seen)
        for s in self.published:
            if self.current(s):
                self.retire(s, killed)
        return failed

    def current(self, rank):
        daemon = rank.daemon
        return rank.incarnation == daemon.incarnation and daemon.alive()

    def retire(self, s, killed):
        """Each publication is retired exactly once."""
        if self.mode != "plain" or killed:
            s.client.ok("cleanup", request_id=self.request)
        e = s.client.event(event="retired", request_id=self.request)
        if self.mode == "plain" and not killed and e["reason"] != "consumed":
            raise AssertionError(dict(e))

    def settle(self):
        """Who was told a failure is left alone from then on."""
        for r, was in self.frozen:
            assert r.snapshot() == was, f"{self.request}: written afterwards"
        for s in self.side("P"):
            again = [e for e in s.client.events if e["event"] == "retired"]
            assert not again, again


def recover(slot, rng):
    """After a restart the peers find each other again; a request that meets
    the old session may be told so."""
    def all_good():
        slot.start(rng, "plain")
        failed = slot.finish(True)
        slot.settle()
        return failed == 0
    until(all_good, "recovered", 5)


class Fleet(kvf_blocks.Fleet):
    """Half of the receivers have tcp only. Fixed ports, for restarts."""

    def grow(self, n_p, n_d):
        super().grow(n_p, n_d - 1)
        self.conf = TCP
        super().grow(n_p, n_d)

    def all(self):
        return self.p + self.d

    def restart(self, d):
        d.kill()
        d.close_clients()
        d.conf["connector"]["zmq_port"] = (d.peer_port - 100 - 16 * d.rank
                                           - d.stage)
        d.restart()
        if d.stage == 1:
            self.introduce(self.p, [d])
        else:
            self.introduce([d], self.d)


def slots(fleet, rng):
    out = []
    for tp_d in (1, 2, 2):
        n = rng.randint(300, 900)
        nblocks = n // 16 + 9
        case = plain_case(N_P, tp_d, n=n, heads=4, e=64, bs=16, n_layers=3,
                          nblocks=nblocks)
        for w in "PD":
            ids = rng.sample(range(nblocks), -(-n // 16))
            case["blocks"][w] = [(0, ids)]
        out.append(Slot(fleet, case, large, f"large{len(out)}"))
    while len(out) < 8:
        case = gen.make(rng)
        if (case["P"]["tp"] == N_P and case["P"]["pp"] == 1
                and case["D"]["tp"] * case["D"]["pp"] <= N_D
                and all(case[w]["pp"] <= len(case[w]["layers"])
                        for w in "PD")):
            out.append(Slot(fleet, case, labelled, f"small{len(out)}"))
    return out


def zero(daemon):
    st = daemon.stats()
    left = {k: st["blocks"][k] for k in ("published", "parked", "claims",
                                         "pulls")}
    left.update({k: st["peers"][k] for k in ("guest_asks", "guest_claims")})
    return left


def assert_idle(fleet):
    for d in fleet.all():
        until(lambda d=d: not any(zero(d).values()),
              f"{d.stage}.{d.rank} idle: {zero(d)}")


def test_soak():
    signal.alarm(int(60 * kvf.SLOW + 3 * SECONDS))  # instead of the usual one
    seed = int(os.environ.get("KVF_SEED", random.randrange(1 << 30)))
    print("KVF_SEED", seed)
    rng = random.Random(seed)
    fleet = Fleet()
    try:
        fleet.grow(N_P, N_D)
        all_slots = slots(fleet, rng)
        kills, count, statuses = 0, 0, {}
        began = time.monotonic()
        while time.monotonic() - began < SECONDS:
            some = rng.sample(all_slots, rng.randint(1, 5))
            for s in some:
                mode = rng.choice(["plain"] * 4 + ["cancel", "fail", "missing",
                                                   "leave"])
                statuses[mode] = statuses.get(mode, 0) + 1
                s.start(rng, mode)
            # Two or so in the short run, at moments of their own.
            kill = (time.monotonic() - began > (kills + 1) * 3
                    and rng.random() < 0.5)
            if kill:
                kills += 1
                fleet.restart(rng.choice(fleet.all()))
            for s in some:
                s.finish(kill)
            for s in some:
                s.settle()
            for s in all_slots:
                s.build()
            if kill:
                recover(all_slots[1], rng)  # it has all ranks
            count += len(some)
            if rng.random() < 0.05 or kill:
                assert_idle(fleet)
        assert_idle(fleet)
        print(f"{count} requests, {kills} restarts, {statuses}")
        assert count >= 10 and (kills > 0 or SECONDS < 6)
        for s in all_slots:
            for w, r in list(s.ranks):
                s.drop(w, r)
        for d in fleet.all():
            until(lambda d=d: d.stats()["blocks"]["layouts"] == 0, "layouts")
    except BaseException:
        for d in fleet.all():
            print(f"--- log of {d.stage}.{d.rank}\n{d.log()[-3000:]}")
        raise
    finally:
        fleet.close()
