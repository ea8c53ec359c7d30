"""Random traffic of engines at two daemons that are killed, stopped and
restarted at any moment. Every 64 bytes of a payload name its key, its put, its
size and their place, so that a foreign, stale or torn byte is seen. Checked is:

* no OK answer carries wrong bytes, neither at the answer nor (views and copies)
  until they are released, also when the getter's own daemon has ended;
* the range of a get `into` is not written any more once the get has ended,
  whatever its status: a canary lies there for a while, or the next get at once;
* a get that was sent after a put's OK never brings an older generation;
* every request is answered while its daemon lives.

    python3 kvf_chaos.py [--seconds N] [--seed N] [--protocol auto|tcp]
"""
import argparse
import collections
import heapq
import random
import sys
import threading
import time

import zmq

import kvf
from kvf import SLOW
from kvf_marks import SIZES, Wrong
from kvf_traffic import KEYS, Worker, must

CONF = {"connector": {"peer_timeout_ms": 500, "drain_ms": 300,
                      "memory_pool_size": "64MiB"}}


class Chaos(threading.Thread):
    """What happens to one of the daemons."""

    def __init__(self, world, side, end):
        super().__init__()
        self.world, self.side, self.end = world, side, end
        self.rng = random.Random(f"{world.seed} chaos {side}")
        self.ends, self.up, self.failed = 0, True, None
        self.counts = collections.Counter()

    def pause(self, longest):
        time.sleep(min(self.rng.uniform(0, longest),
                       max(0.0, self.end - time.monotonic())))

    def run(self):
        try:
            while time.monotonic() < self.end:
                self.pause(2.0)
                self.harm()
        except BaseException as e:
            self.failed = e

    def harm(self):
        d = self.world.daemons[self.side]
        what = self.rng.choice(["kill", "kill", "stop", "stop", "short", "term"])
        self.counts[what] += 1
        if what in ("stop", "short"):
            d.stop()
            self.pause(1.5 if what == "stop" else 0.05)
            if self.rng.random() < 0.8:
                d.cont()
                return
        if what == "term":
            status = d.terminate(10)
            assert status == 0, f"exit {status}\n{d.log()[-3000:]}"
        else:
            d.kill()
        self.up = False
        self.ends += 1
        self.pause(0.3)
        d.start()
        self.up = True


class World:
    def __init__(self, daemons, seed, seconds, workers=3):
        self.seed, self.daemons = seed, daemons
        self.rng = random.Random(f"{seed} world")
        self.sizes = {(s, k): SIZES[k % len(SIZES)]
                      for s in (0, 1) for k in range(KEYS)}
        self.newest = collections.Counter()
        self.puts, self.timers, self.n = {}, [], 0
        self.counts = collections.Counter()
        self.mapped = [collections.Counter(), collections.Counter()]
        self.told, self.unmapped = [None, None], [{}, {}]
        self.began = time.monotonic()
        self.end = self.began + seconds
        self.chaos = [Chaos(self, s, self.end) for s in (0, 1)]
        self.seen = [0, 0]
        self.workers = [Worker(self, s, i)
                        for s in (0, 1) for i in range(workers)]

    def number(self):
        self.n += 1
        return self.n

    def later(self, seconds, worker, job):
        heapq.heappush(self.timers, (time.monotonic() + seconds, self.number(),
                                     worker, job))

    def of(self, side):
        return [w for w in self.workers if w.side == side]

    def follow(self, side):
        """Daemons that came and went, and what they have to be told."""
        chaos = self.chaos[side]
        if chaos.failed:
            raise chaos.failed
        if chaos.ends != self.seen[side]:
            self.seen[side] = chaos.ends
            for w in self.of(side):
                if w.c:
                    w.lost()
        if not chaos.up or chaos.ends != self.seen[side]:
            return
        for w in self.of(side):
            if w.c is None:
                w.join()
        w, other = self.of(side)[0], self.daemons[1 - side]
        if not w.ready:
            return
        place = w.incarnation, other.peer_port
        if place != self.told[side]:
            self.told[side] = place
            w.spawn(self.tell(w, other))
        for inc, n in self.mapped[side].items():
            if n == 0 and self.unmapped[side].get(inc, inc) != w.incarnation:
                # Also once more, if a daemon ended that was told: it may not
                # have passed it on.
                self.unmapped[side][inc] = w.incarnation
                w.spawn(self.tell_unmapped(w, inc))

    @staticmethod
    def tell(w, other):
        yield "peer", None, {"stage": other.stage, "rank": 0,
                             "host": other.peer_host, "port": other.peer_port}

    @staticmethod
    def tell_unmapped(w, inc):
        must((yield "hello", None, {"version": 1, "session": w.c.session,
                                    "unmapped": inc}))

    def turn(self):
        for side in (0, 1):
            self.follow(side)
        poller = zmq.Poller()
        for w in self.workers:
            if w.c:
                poller.register(w.c.sock, zmq.POLLIN)
        poller.poll(2)
        for w in self.workers:
            w.receive()
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            _, _, w, job = heapq.heappop(self.timers)
            w.advance(job, None)

    def run(self):
        """Raises Wrong, or AssertionError for what else is wrong."""
        for c in self.chaos:
            c.start()
        try:
            while time.monotonic() < self.end:
                self.turn()
                for w in self.workers:
                    w.step()
        finally:
            self.end = 0.0
            for c in self.chaos:
                c.end = 0.0
                c.join()
        give_up = time.monotonic() + 20 * SLOW
        while self.open():
            self.turn()
            if time.monotonic() > give_up:
                raise Wrong("no answer: " + "; ".join(
                    f"{w.name} {w.running} {[j[1] for j in w.jobs.values()]} "
                    f"{list(w.waiting)}" for w in self.workers))
        for w in self.workers:
            if w.c:
                w.c.close()

    def open(self):
        """Jobs that run, and views of before that nobody has called unmapped."""
        return any(w.running or w.c is None for w in self.workers) or any(
            self.unmapped[w.side].get(inc, inc) != w.incarnation
            for w in self.workers for inc in self.mapped[w.side])

    def story(self):
        did = [f"{'.'.join(map(str, k))}={n}"
               for k, n in sorted(self.counts.items())]
        harm = [dict(c.counts) for c in self.chaos]
        return (f"seed={self.seed} after {time.monotonic() - self.began:.1f} s: "
                f"{harm} {' '.join(did)}")


def run(daemons, seed, seconds):
    """Runs the traffic; the World, when all was well. Nothing is held or
    published for longer than two seconds then."""
    world = World(daemons, seed, seconds)
    try:
        world.run()
    except BaseException:
        print(world.story(), file=sys.stderr)
        raise
    return world


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--seed", type=int, default=int(time.time()))
    p.add_argument("--protocol", default="auto")
    p.add_argument("--level", default="info")
    args = p.parse_args()
    conf = kvf.merge(CONF, {"connector": {"protocol": args.protocol},
                            "log": {"level": args.level}})
    daemons = [kvf.Daemon(s, conf=conf) for s in (0, 1)]
    where = [d.log_path for d in daemons]
    print(f"seed={args.seed} {kvf.KVFERRYD} {where}", flush=True)
    good = False
    try:
        print(run(daemons, args.seed, args.seconds).story())
        good = True
    finally:
        for d in daemons:
            d.own_run = good  # its log stays otherwise
            d.close(check=good)


if __name__ == "__main__":
    main()
