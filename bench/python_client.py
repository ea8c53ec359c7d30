#!/usr/bin/python3
"""What the Python client costs, against a plain loop of pyzmq and msgpack and
against the daemon's own time.

Starts two daemons (KVF_BUILD names the build folder) and prints, for each case,
the median and the 99th percentile in microseconds over all rounds. The cases
take turns, so a busy machine hits all of them alike.

  bare   one request and reply by hand: what pyzmq, msgpack and the daemon need
  client the same through kvferry.Client
  C      the same through libkvferry (called with ctypes, about a microsecond);
         the overhead that is printed is the client's above that, or above bare
         where the library is not built

Threads that share a client: bench/python_threads.py.
"""
import argparse
import ctypes
import os
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "src", "python"),
                os.path.join(ROOT, "tests", "integration")]
import kvf  # noqa: E402
import kvferry  # noqa: E402
import msgpack  # noqa: E402
import numpy as np  # noqa: E402
import zmq  # noqa: E402

CONF = {"connector": {"memory_pool_size": "1GiB"}, "log": {"level": "warn"}}


def show(name, seconds, extra=""):
    us = sorted(s * 1e6 for s in seconds)
    print(f"{name:34} p50 {statistics.median(us):9.1f} us   "
          f"p99 {us[int(len(us) * 0.99)]:9.1f} us {extra}")


def bare(d):
    """A function that does one request by hand."""
    sock = zmq.Context.instance().socket(zmq.DEALER)
    sock.linger = 0
    sock.connect(d.endpoint)

    def call(m, payload=None):
        m["id"] = 1
        if payload is None:
            sock.send(msgpack.packb(m))
        else:
            sock.send(msgpack.packb(m), zmq.SNDMORE)
            sock.send(payload)
        parts = sock.recv_multipart()
        r = msgpack.unpackb(parts[0])
        assert r["status"] == "OK", r
        return r, parts[-1]
    call({"op": "hello", "version": 1})
    return call


class C:
    """libkvferry, blocking calls; one handle per thread."""

    class Options(ctypes.Structure):
        _fields_ = [("endpoint", ctypes.c_char_p),
                    ("cluster", ctypes.c_char_p), ("stage", ctypes.c_uint32),
                    ("rank", ctypes.c_uint32), ("replica", ctypes.c_uint32),
                    ("client", ctypes.c_char_p),
                    ("timeout_ms", ctypes.c_uint32),
                    ("flags", ctypes.c_uint), ("on_event", ctypes.c_void_p),
                    ("user", ctypes.c_void_p)]

    lib = None

    @classmethod
    def load(cls):
        path = os.path.join(kvf.BUILD, "src", "client", "libkvferry.so")
        if os.path.exists(path):
            cls.lib = ctypes.CDLL(path)
        return cls.lib is not None

    def __init__(self, endpoint):
        self.h = ctypes.c_void_p()
        o = C.Options(endpoint=endpoint.encode())
        err = ctypes.create_string_buffer(200)
        if C.lib.kvferry_open(ctypes.byref(self.h), ctypes.byref(o), err,
                              ctypes.c_size_t(200)) != 0:
            raise SystemExit(f"libkvferry: {err.value!r}")

    def ping(self):
        assert C.lib.kvferry_ping(self.h) == 0

    def put(self, key, data, size):
        rc = C.lib.kvferry_put(self.h, key, data, ctypes.c_size_t(size), None,
                               None)
        assert rc == 0, rc

    def get(self, key):
        p = ctypes.c_void_p()
        rc = C.lib.kvferry_get(self.h, key, None, ctypes.byref(p))
        assert rc == 0, rc
        C.lib.kvferry_release(ctypes.byref(p))

    def close(self):
        C.lib.kvferry_close(self.h)


def timed(f, *args, **kw):
    began = time.perf_counter()
    got = f(*args, **kw)
    return time.perf_counter() - began, got


def small(d, c, rounds):
    raw = bare(d)
    lib = C(d.endpoint) if C.lib else None
    data = b"x" * 100
    t = {k: [] for k in ("bare ping", "client ping", "bare put 100 B",
                         "client put 100 B", "bare get 100 B inline",
                         "client get 100 B inline",
                         "client get 100 B view+release")}

    def add(name, f, *args, **kw):
        s, got = timed(f, *args, **kw)
        t[name].append(s)
        return got

    def view():
        c.get("k").release()
    if lib:
        t.update({"C ping": [], "C put 100 B": [],
                  "C get 100 B view+release": []})
    for _ in range(rounds):
        add("bare ping", raw, {"op": "ping"})
        add("client ping", c.ping)
        add("bare put 100 B", raw, {"op": "put", "key": "k"}, data)
        add("bare get 100 B inline", raw,
            {"op": "get", "key": "k", "mode": "inline"})
        add("client put 100 B", c.put, "k", data)
        add("client get 100 B inline", c.get, "k", mode="inline")
        c.put("k", data)
        add("client get 100 B view+release", view)
        if lib:
            add("C ping", lib.ping)
            add("C put 100 B", lib.put, b"k", data, 100)
            add("C get 100 B view+release", lib.get, b"k")
    if lib:
        lib.close()
    for name, s in t.items():
        base = t.get(name.replace("client", "C"),
                     t.get(name.replace("client", "bare")))
        extra = ""
        if base is not None and base is not s:
            extra = "overhead p50 %.1f us" % (
                (statistics.median(s) - statistics.median(base)) * 1e6)
        show(name, s, extra)


def large(a, b, rounds, mib):
    x = np.arange(mib << 17, dtype="float64")
    t = {k: [] for k in ("memcpy alone", "put array (one copy) + get view",
                         "put in place (none) + get view")}
    y = np.empty_like(x)
    y[:] = 0
    for _ in range(rounds):
        t["memcpy alone"].append(timed(np.copyto, y, x)[0])
        began = time.perf_counter()
        a.put("k", x)
        with b.get("k", 0, timeout=10) as p:
            got = p.numpy("float64")
            t["put array (one copy) + get view"].append(
                time.perf_counter() - began)
            assert p.transport == "shm" and got[-1] == x[-1]
            del got
        with a.alloc(x.nbytes) as buffer:
            np.copyto(buffer.numpy("float64"), x)  # the engine's own work
            began = time.perf_counter()
            a.put("k", buffer)
        with b.get("k", 0, timeout=10) as p:
            t["put in place (none) + get view"].append(
                time.perf_counter() - began)
            assert p.mode == "view" and p.numpy("float64")[-1] == x[-1]
    for name, s in t.items():
        show(f"{mib} MiB {name}", s,
             f"{x.nbytes / statistics.median(s) / 1e9:.1f} GB/s")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=1000)
    p.add_argument("--mib", type=int, default=64)
    args = p.parse_args()
    C.load()
    daemons = [kvf.Daemon(0, conf=CONF), kvf.Daemon(1, conf=CONF)]
    try:
        daemons[1].knows(daemons[0])
        with kvferry.Client(daemons[0].endpoint) as a, \
                kvferry.Client(daemons[1].endpoint) as b:
            a.put("warm", b"1")
            b.get("warm", 0, timeout=10).release()
            small(daemons[0], a, args.rounds)
            large(a, b, max(5, args.rounds // 50), args.mib)
    finally:
        for d in daemons:
            d.close(check=False)


if __name__ == "__main__":
    main()
