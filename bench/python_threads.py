#!/usr/bin/python3
"""Threads that share one Python client, against the C client with as many
requests in flight.

Starts two daemons (KVF_BUILD names the build folder). For each size and kind
of work, and in turns, each contestant works for a while in a process of its
own:

  C       libkvferry, one handle per daemon and thread (called with ctypes)
  client  kvferry.Client, one per daemon for all threads
  floor   a bare loop of pyzmq and msgpack, one socket per daemon and thread:
          what any client in Python pays for these messages
  NAME    the client of another checkout: --against NAME=DIR (with src/python)

and the medians are printed, with the CPU time an operation took in the
process, in both daemons, and their sum, and how often a thread of the process
slept for it.

  put   of an array, the key replaced each time
  get   of a key that is never used up, as a view, with its release
  pair  a put, and its get at the other daemon
"""
import argparse
import ctypes
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGE = os.environ.get("KVF_PACKAGE", os.path.join(ROOT, "src", "python"))
sys.path[:0] = [PACKAGE, os.path.join(ROOT, "tests", "integration"),
                os.path.dirname(os.path.abspath(__file__))]
import kvferry  # noqa: E402  (before python_client, which has its own path)
import msgpack  # noqa: E402
import numpy as np  # noqa: E402
import python_client  # noqa: E402
import zmq  # noqa: E402

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text):
    unit = UNITS.get(text[-1:].upper(), 1)
    return int(text if unit == 1 else text[:-1]) * unit


# ---- a contestant ------------------------------------------------------------

class WithClient:
    def __init__(self, ends, n):
        self.a, self.b = (kvferry.Client(e) for e in ends)

    def work(self, what, i, data):
        a, b, key = self.a, self.b, f"{i}"

        def put():
            a.put(key, data)

        def get():
            b.get(key, timeout=10).release()

        def pair():
            a.put(key, data)
            b.get(key, timeout=10).release()
        return {"put": put, "get": get, "pair": pair}[what]

    def close(self):
        self.a.close()
        self.b.close()


class WithC:
    def __init__(self, ends, n):
        if not python_client.C.load():
            raise SystemExit("libkvferry is not built: KVF_BUILD")
        self.handles = [[python_client.C(e) for e in ends] for _ in range(n)]

    def work(self, what, i, data):
        (a, b), key = self.handles[i], b"%d" % i
        at, size = data.ctypes.data_as(ctypes.c_void_p), data.nbytes

        def put():
            a.put(key, at, size)

        def get():
            b.get(key)

        def pair():
            a.put(key, at, size)
            b.get(key)
        return {"put": put, "get": get, "pair": pair}[what]

    def close(self):
        for pair in self.handles:
            for h in pair:
                h.close()


class Socket:
    """A session and what asks in it, with nothing around."""

    def __init__(self, ctx, end):
        self.sock, self.pack = ctx.socket(zmq.DEALER), msgpack.Packer().pack
        self.sock.linger, self.n = 0, 0
        self.send, self.recv = (f.__get__(self.sock) for f in (
            zmq.backend.Socket.send, zmq.backend.Socket.recv))
        self.sock.connect(end)
        pool = self.ask({"op": "hello", "version": 1})["pool"]
        fd = os.open(pool["path"], os.O_RDWR)
        self.pool = np.frombuffer(mmap.mmap(fd, pool["size"]), np.uint8)
        os.close(fd)

    def post(self, m, payload=None):
        self.n += 1
        m["id"] = self.n
        if payload is None:
            self.send(self.pack(m))
        else:
            self.send(self.pack(m), zmq.SNDMORE)
            self.send(payload)

    def ask(self, m, payload=None):
        self.post(m, payload)
        while True:
            r = msgpack.unpackb(self.recv())
            if r["id"] == self.n:
                assert r["status"] == "OK", r
                return r


class WithSockets:
    def __init__(self, ends, n):
        ctx = zmq.Context()
        self.sockets = [[Socket(ctx, e) for e in ends] for _ in range(n)]

    def work(self, what, i, data):
        (a, b), key, size = self.sockets[i], f"{i}", data.nbytes

        def put():
            if size <= 4096:
                a.ask({"op": "put", "key": key}, data.tobytes())
                return
            r = a.ask({"op": "alloc", "size": size})
            np.copyto(a.pool[r["offset"]:r["offset"] + size], data)
            a.ask({"op": "put", "key": key, "segments": [
                {"buffer": r["buffer"], "offset": 0, "length": size}]})

        def get():
            r = b.ask({"op": "get", "key": key, "timeout_ms": 10000})
            b.post({"op": "release", "buffer": r["buffer"]})

        def pair():
            put()
            get()
        return {"put": put, "get": get, "pair": pair}[what]

    def close(self):
        os._exit(0)  # the sockets go with the process


KINDS = {"C": WithC, "floor": WithSockets}


def contestant(kind, ends, n):
    """Reads `what size seconds` lines, answers each with a line of JSON."""
    side = KINDS.get(kind, WithClient)(ends, n)
    for line in sys.stdin:
        what, size, seconds = line.split()
        data = np.ones(int(size), "uint8")
        work = [side.work(what, i, data) for i in range(n)]
        before = resource.getrusage(resource.RUSAGE_SELF)
        rate = run_threads(work, float(seconds))
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu, sleeps = (
            sum(getattr(after, f) - getattr(before, f) for f in fields)
            for fields in (("ru_utime", "ru_stime"), ("ru_nvcsw",)))
        print(json.dumps({"rate": rate, "cpu": cpu, "sleeps": sleeps}),
              flush=True)
    side.close()


def run_threads(work, seconds):
    """Operations a second of all threads together."""
    done = [0] * len(work)
    gate = threading.Barrier(len(work) + 1)
    span = [0.0] * len(work)

    def run(i):
        f = work[i]
        gate.wait()
        began = now = time.perf_counter()
        while now < began + seconds:
            f()
            done[i] += 1
            now = time.perf_counter()
        span[i] = now - began
    threads = [threading.Thread(target=run, args=(i,))
               for i in range(len(work))]
    for t in threads:
        t.start()
    gate.wait()
    for t in threads:
        t.join()
    return sum(d / s for d, s in zip(done, span))


# ---- the comparison ----------------------------------------------------------

class Contestant:
    def __init__(self, name, package, ends, threads):
        env = dict(os.environ, KVF_PACKAGE=package)
        self.name = name
        self.proc = subprocess.Popen(
            [sys.executable, __file__, "--contestant",
             name, "--threads", str(threads), *ends], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
            text=True)

    def ask(self, what, size, seconds):
        self.proc.stdin.write(f"{what} {size} {seconds}\n")
        self.proc.stdin.flush()
        line = self.proc.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended")
        return json.loads(line)

    def close(self):
        self.proc.stdin.close()
        self.proc.wait(30)


def cpu_of(daemons):
    """Seconds of both processes, all their threads."""
    tick = os.sysconf("SC_CLK_TCK")
    return sum(int(d.stat_field(13)) + int(d.stat_field(14))
               for d in daemons) / tick


def prepare(ends, what, size, n):
    """Room and keys for the next kind of work: nothing of the last stays."""
    with kvferry.Client(ends[0]) as c:
        for i in range(n):
            if what == "get":
                c.put(f"{i}", np.ones(size, "uint8"), readers=0)
            else:
                c.fail(f"{i}", "the next round")


def compare(sides, daemons, what, size, args):
    ends = [d.endpoint for d in daemons]
    rows = {s.name: [] for s in sides}
    prepare(ends, what, size, args.threads)
    for r in range(args.rounds):
        for s in sides if r % 2 == 0 else sides[::-1]:
            s.ask(what, size, args.seconds / 10)
            before = cpu_of(daemons)
            got = s.ask(what, size, args.seconds)
            got["daemons"] = cpu_of(daemons) - before
            rows[s.name].append(got)
    prepare(ends, "put", size, args.threads)
    base = rows.get("C") or rows[sides[0].name]
    for name, got in rows.items():
        rate = statistics.median(g["rate"] for g in got)
        ratio = statistics.median(g["rate"] / b["rate"]
                                  for g, b in zip(got, base))
        us = [statistics.median(g[k] / g["rate"] for g in got) * 1e6 /
              args.seconds for k in ("cpu", "daemons")]
        sleeps = statistics.median(g["sleeps"] / g["rate"] for g in got) / \
            args.seconds
        spread = [g["rate"] / b["rate"] for g, b in zip(got, base)]
        print(f"{what:4} {size:9} B {name:10} {rate:9.0f}/s "
              f"{rate * size / 1e9:6.2f} GB/s  {ratio:5.2f} of "
              f"{'C' if 'C' in rows else sides[0].name} "
              f"({min(spread):.2f} to {max(spread):.2f})  CPU us: "
              f"{us[0]:.0f} + {us[1]:.0f} daemons = {sum(us):.0f}, "
              f"{sleeps:.1f} sleeps",
              flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sizes", default="100,64K,1M,4M,16M,64M")
    p.add_argument("--what", default="put,get,pair")
    p.add_argument("--threads", type=int, default=8)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=0.7)
    p.add_argument("--pool", default="2GiB")
    p.add_argument("--against", action="append", default=[],
                   metavar="NAME=DIR")
    p.add_argument("--floor", action="store_true")
    p.add_argument("--no-c", action="store_true")
    p.add_argument("--contestant", help=argparse.SUPPRESS)
    p.add_argument("ends", nargs="*", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.contestant:
        return contestant(args.contestant, args.ends, args.threads)
    import kvf
    conf = {"connector": {"memory_pool_size": args.pool},
            "log": {"level": "warn"}}
    daemons = [kvf.Daemon(0, conf=conf), kvf.Daemon(1, conf=conf)]
    sides = []
    try:
        daemons[1].knows(daemons[0])
        ends = [d.endpoint for d in daemons]
        names = [] if args.no_c else [("C", PACKAGE)]
        names.append(("client", PACKAGE))
        if args.floor:
            names.append(("floor", PACKAGE))
        for a in args.against:
            name, _, where = a.partition("=")
            names.append((name, os.path.join(where, "src", "python")))
        sides += [Contestant(n, d, ends, args.threads) for n, d in names]
        for size in args.sizes.split(","):
            for what in args.what.split(","):
                compare(sides, daemons, what, parse_size(size), args)
    finally:
        for s in sides:
            s.close()
        for d in daemons:
            d.close(check=False)


if __name__ == "__main__":
    main()
