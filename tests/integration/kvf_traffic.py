"""Engines that put and get at random and check every byte that they are given
(kvf_chaos.py has the daemons and what happens to them)."""
import random
import struct
import time

import kvf
from kvf import KIB
from kvf_marks import LINE, SIZES, Region, Wrong, compare, payload

KEYS = 8
JOBS = 10  # of one worker at once
WATCH = 0.7  # seconds that a canary is watched


class Lost(Exception):
    """The daemon that was asked has ended."""


def must(m):
    """OK, unless the daemon is going away."""
    if m["status"] == "SHUTTING_DOWN":
        raise Lost
    if m["status"] != "OK":
        raise Wrong(dict(m))


class Put:
    def __init__(self, side, key, size):
        self.side, self.key, self.size, self.generation = side, key, size, None


class Get:
    """One get: its fields, and what its answer is held against."""

    def __init__(self, w, side, key):
        rng = w.rng
        self.side, self.key = side, key
        self.floor = w.world.newest[side, key]
        self.mode = rng.choice(["into"] * 4 + ["copy", "view", "inline", "auto"])
        self.slot, self.buffer, self.pieces = None, None, []
        self.fields = {"key": name(side, key), "from": {"stage": side},
                       "timeout_ms": rng.choice([30, 300, 1500])}
        if rng.random() < 0.15:
            self.fields["wait"] = False
        if self.mode != "into":
            self.fields["mode"] = self.mode
        self.what = f"{self.mode} get of {self.fields['key']} at {w.name}"

    def aim(self, w):
        """Finds a place for a get `into`; False when there is none."""
        size = w.world.sizes[self.side, self.key]
        self.slot = w.region.take(w.rng, size)
        if self.slot is None:
            return False
        self.slot.canary(self.what)
        cuts = sorted(w.rng.randrange(1, size) for _ in range(w.rng.randrange(3)))
        cuts = sorted({0, size, *cuts})
        self.pieces = [(a, b - a) for a, b in zip(cuts, cuts[1:])]
        w.rng.shuffle(self.pieces)
        self.fields["into"] = [
            {"region": w.region.id, "offset": self.slot.at + a, "length": n}
            for a, n in self.pieces]
        return True


def name(side, key):
    return f"t{key}:{side}_{1 - side}"


class Worker:
    """An engine: one socket, one session, jobs that are generators. A job
    yields a request (op, payload, fields), seconds to wait, or a (key,
    generation) whose end it waits for."""

    def __init__(self, world, side, number):
        self.world, self.side = world, side
        self.name = f"engine {side}.{number}"
        self.rng = random.Random(f"{world.seed} {self.name}")
        self.c, self.jobs = None, {}
        self.waiting, self.retired = {}, set()
        self.running = 0
        self.region = self.source = self.incarnation = None
        self.ready = False

    # -- jobs -------------------------------------------------------------
    def spawn(self, job):
        self.running += 1
        self.advance(job, None)

    def advance(self, job, value):
        try:
            what = (job.throw(value) if isinstance(value, Lost)
                    else job.send(value))
            while isinstance(what, tuple) and self.c is None:
                what = job.throw(Lost())
        except (StopIteration, Lost):
            self.running -= 1
            return
        if isinstance(what, float):
            self.world.later(what, self, job)
        elif len(what) == 2:
            if what in self.retired:
                self.retired.remove(what)
                self.world.later(0.0, self, job)
            else:
                self.waiting[what] = job
        else:
            op, data, fields = what
            self.jobs[self.c.send(op, data, **fields)] = (
                job, op, time.monotonic())

    def receive(self):
        for _ in range(50):
            if self.c is None or not self.c.sock.poll(0):
                return
            m = self.c.recv_any(0)
            if "event" in m:
                if m["event"] == "retired":
                    at = (m["key"], m["generation"])
                    if at in self.waiting:
                        self.advance(self.waiting.pop(at), None)
                    else:
                        self.retired.add(at)
                continue
            job, op, _ = self.jobs.pop(m["id"])
            self.world.counts[op, m["status"]] += 1
            self.advance(job, m)

    def lost(self):
        """The daemon has ended; nobody writes for it any more."""
        self.c.close(bye=False)
        self.c = None
        jobs = [j[0] for j in self.jobs.values()] + list(self.waiting.values())
        self.jobs, self.waiting, self.retired = {}, {}, set()
        for job in jobs:
            self.advance(job, Lost())
        # Whether a peer still reads the put region nobody can tell us now.
        if self.source:
            self.source.close()
        self.source = None

    def join(self):
        self.c = kvf.Client(self.world.daemons[self.side].endpoint)
        self.spawn(self.open())

    def open(self):
        self.ready = False
        hello = yield "hello", None, {"version": 1}
        must(hello)
        self.c.info, self.c.session = hello, hello["session"]
        try:
            self.pool = self.c.pool()
        except OSError:  # killed by now
            raise Lost from None
        self.incarnation = hello["incarnation"]
        # Also if no view comes: an answer with one may be lost on its way.
        self.world.mapped[self.side][self.incarnation] += 0
        self.region = self.region or Region(self.rng)
        self.source = Region(self.rng)
        for r in (self.region, self.source):
            m = yield "register", None, {"fd": r.fd, "size": r.size}
            must(m)
            r.id = m["region"]
        self.ready = True

    def step(self):
        """Starts something."""
        if self.c is None or not self.ready or self.running >= JOBS:
            return
        x = self.rng.random()
        if x < 0.35:
            self.spawn(self.put())
        elif x < 0.83:
            self.spawn(self.get())
        elif x < 0.92:
            self.spawn(self.mget())
        elif x < 0.98:
            self.spawn(self.cancel())
        else:
            key = self.rng.randrange(KEYS)
            self.spawn(self.end(key))

    # -- puts -------------------------------------------------------------
    def put(self):
        rng, world = self.rng, self.world
        key = rng.randrange(KEYS)
        size = world.sizes[self.side, key]
        if rng.random() < 0.03:
            size = rng.choice(SIZES)
        uid = world.number()
        world.puts[uid] = put = Put(self.side, key, size)
        data = payload(self.side, key, uid, size)
        fields = {"key": name(self.side, key),
                  "ttl_ms": rng.choice([50, 300, 2000]),
                  "readers": rng.choice([1, 1, 2, 0]),
                  "checksum": rng.random() < 0.2}
        how = rng.choice(["pool", "pool", "region", "payload"])
        slot = buffer = None
        if how == "payload" and size <= 64 * KIB:
            pass
        elif how == "region" and (slot := self.source.take(rng, size)):
            slot.fill(data)
            fields["segments"] = [{"region": self.source.id, "offset": slot.at,
                                   "length": size}]
            fields["notify"], data = True, None
        else:
            m = yield "alloc", None, {"size": size}
            if m["status"] != "OK":
                return
            buffer = m["buffer"]
            self.pool[m["offset"]:m["offset"] + size] = data
            fields["segments"], data = [{"buffer": buffer}], None
        source = self.source
        m = yield "put", data, fields
        if m["status"] == "OK":
            self.published(put, uid, m["generation"])
            if slot:
                yield name(self.side, key), m["generation"]
        elif buffer:
            yield "free", None, {"buffer": buffer}
        if slot:
            slot.canary("put has ended")  # at once: whoever reads would see it
            source.free.append(slot)

    def published(self, put, uid, generation):
        if put.generation not in (None, generation):
            raise Wrong(f"put {uid} is generation {generation} for its engine, "
                        f"and was {put.generation} for a getter")
        put.generation = generation
        at = put.side, put.key
        self.world.newest[at] = max(self.world.newest[at], generation)

    def end(self, key):
        if self.rng.random() < 0.5:
            yield "fail", None, {"key": name(self.side, key)}
        else:
            yield "cleanup", None, {"request_id": f"t{key}"}

    # -- gets -------------------------------------------------------------
    def choose(self):
        side = self.side if self.rng.random() < 0.2 else 1 - self.side
        g = Get(self, side, self.rng.randrange(KEYS))
        return g if g.mode != "into" or g.aim(self) else None

    def get(self):
        g = self.choose()
        if g is None:
            return
        if g.mode == "copy" and self.rng.random() < 0.3:
            m = yield "alloc", None, {"size": self.world.sizes[g.side, g.key]}
            if m["status"] != "OK":
                return
            g.buffer, g.mode = m, "buffer"
            del g.fields["mode"]
            g.fields["into"] = [{"buffer": m["buffer"]}]
        try:
            m = yield "get", None, g.fields
        except Lost:
            m = None
        yield from self.ended(g, m, m and m.payload)

    def mget(self):
        gets = [g for g in (self.choose() for _ in range(3)) if g]
        if not gets:
            return
        fields = {"gets": [g.fields for g in gets], "timeout_ms": 1000,
                  "all_or_nothing": self.rng.random() < 0.4}
        try:
            m = yield "mget", None, fields
            results = m.get("results") or [{"status": m["status"]}] * len(gets)
            rest = m.payload or b""
        except Lost:
            results, rest = [None] * len(gets), b""
        for g, r in zip(gets, results):
            data = None
            if r and r["status"] == "OK" and r["mode"] == "inline":
                data, rest = rest[:r["size"]], rest[r["size"]:]
            self.spawn(self.ended(g, r, data))
        if rest:
            raise Wrong("more inline bytes than the results have")

    def ended(self, g, m, data):
        """What there is to be seen after an answer, None when lost."""
        status = m["status"] if m else "LOST"
        self.world.counts[g.mode, status] += 1
        if status != "OK":
            if g.slot:
                yield from self.watch(g, status)
            elif g.buffer and m:
                yield "free", None, {"buffer": g.buffer["buffer"]}
            return
        self.world.counts[g.mode, m["transport"]] += 1
        if g.slot:
            data = bytearray(m["size"])
            for (a, n), b in zip(g.pieces, starts(g.pieces)):
                data[b:b + n] = g.slot.read(a, n)
            want = self.expect(g, m, bytes(data))
            for (a, n), b in zip(g.pieces, starts(g.pieces)):
                g.slot.want[a:a + n] = want[b:b + n]
            g.slot.check(g.what + ", at the answer")
            yield from self.watch(g, status)
        elif g.buffer:
            at = g.buffer["offset"]
            self.expect(g, m, self.pool[at:at + m["size"]])
            yield "free", None, {"buffer": g.buffer["buffer"]}
        elif m["mode"] == "inline":
            self.expect(g, m, data)
        else:
            yield from self.hold(g, m)

    def expect(self, g, m, data):
        """Compares; returns the bytes that were put."""
        what = f"{g.what}: {dict(m)}"
        if len(data) < LINE:
            raise Wrong(f"{what}: {len(data)} bytes")
        uid = struct.unpack_from("<Q", data, 8)[0]
        put = self.world.puts.get(uid)
        if put is None:
            raise Wrong(f"{what}: begins with {data[:LINE].hex()}")
        compare(data, payload(g.side, g.key, uid, put.size), what)
        self.published(put, uid, m["generation"])
        if m["generation"] < g.floor or m["size"] != put.size:
            raise Wrong(f"{what}: of {m['generation']}, {g.floor} was there")
        return data

    def watch(self, g, status):
        """After the answer the range is the engine's: used again at once, or
        watched for a while."""
        region, slot = self.region, g.slot
        if self.rng.random() < 0.5:
            slot.canary(f"{status}, watched")
            yield self.rng.uniform(0.05, WATCH)
            slot.check(f"{g.what} wrote after its answer {status}")
        region.free.append(slot)

    def hold(self, g, m):
        """A view or copy, which stays what it is until it is released."""
        c, inc = self.c, self.incarnation
        try:
            look = [((c.map(s["path"]) if s.get("path") else self.pool),
                     s["offset"], s["length"]) for s in m["segments"]]
        except OSError:
            self.world.counts[g.mode, "owner gone"] += 1
            look = []
        mapped = self.world.mapped[self.side]
        mapped[inc] += 1
        want = None
        try:
            if look:
                data = b"".join(f[a:a + n] for f, a, n in look)
                want = self.expect(g, m, data)
            yield 0.8 * self.rng.random() ** 3
            if c is not self.c:
                g.what += ", its daemon gone,"
                yield self.rng.uniform(0.05, WATCH)
            if look:
                compare(b"".join(f[a:a + n] for f, a, n in look), want,
                        f"{g.what} before its release")
        finally:
            mapped[inc] -= 1
        if c is self.c:
            yield "release", None, {"buffer": m["buffer"]}

    def cancel(self):
        gets = [i for i, j in self.jobs.items() if j[1] in ("get", "mget")]
        if gets:
            yield "cancel", None, {"target": self.rng.choice(gets)}


def starts(pieces):
    at = 0
    for _, n in pieces:
        yield at
        at += n
