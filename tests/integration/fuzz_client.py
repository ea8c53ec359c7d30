"""An engine gone mad, in a process of its own: sends random messages and
mutated valid ones until its stdin is closed, then prints how many.
  fuzz_client.py ENDPOINT SEED"""
import random
import select
import sys

from kvf_client import Client, pack


def mutate(rng, frame):
    b = bytearray(frame)
    for _ in range(rng.randint(1, 6)):
        what = rng.randrange(4)
        at = rng.randrange(len(b) + 1)
        if what == 0 and at < len(b):
            b[at] = rng.randrange(256)
        elif what == 1:
            b[at:at] = rng.randbytes(rng.randint(1, 8))
        elif what == 2:
            del b[at:at + rng.randint(1, 8)]
        elif at < len(b):
            b[at] ^= 1 << rng.randrange(8)
    return bytes(b)


VALID = [
    {"op": "hello", "version": 1, "client": "fuzz", "pid": 4},
    {"op": "alloc", "size": 100}, {"op": "free", "buffer": 3},
    {"op": "register", "fd": 0, "size": 4096},
    {"op": "unregister", "region": 1},
    {"op": "put", "key": "z", "segments": [{"buffer": 1, "offset": 0,
                                            "length": 5}], "ttl_ms": 50,
     "next": 4096},
    {"op": "get", "key": "z", "timeout_ms": 20, "mode": "inline",
     "from": {"stage": 0, "rank": 0}},
    {"op": "get", "key": "z", "timeout_ms": 20,
     "into": [{"buffer": 1}], "metadata": {"source_host": "127.0.0.1",
                                           "source_port": 1}},
    {"op": "release", "buffer": 9},
    {"op": "mget", "gets": [{"key": "z"}, {"key": "y"}], "timeout_ms": 20},
    {"op": "cancel", "target": 7}, {"op": "fail", "key": "q"},
    {"op": "cleanup", "request_id": "rr", "from": 0, "to": 1},
    {"op": "list", "prefix": "z"}, {"op": "stats"}, {"op": "health"},
]


def mutate_field(rng, m):
    m = dict(m)
    key = rng.choice(list(m))
    if key == "op":
        return m
    m[key] = rng.choice([None, -1, 2 ** 64 - 1, 2 ** 63, 0, "", "x" * 2000,
                         b"", b"\xff" * 100, [], {}, [[]] * 50, 1e308,
                         float("nan"), True, {"a": {"b": {"c": []}}}])
    return m


def send_one(c, rng, n):
    kind = rng.randrange(3)
    m = dict(rng.choice(VALID), id=n)
    if kind == 0:
        c.send_raw(rng.randbytes(rng.randint(0, 200)))
    elif kind == 1:
        c.send_raw(mutate(rng, pack(m)))
    else:
        c.send_map(mutate_field(rng, m), rng.choice([None, b"", b"pay"]))


def main():
    c = Client(sys.argv[1])
    rng = random.Random(int(sys.argv[2]))
    n = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        for _ in range(50):
            send_one(c, rng, n)
            n += 1
        # Some thousands a second, and never far ahead of the daemon.
        c.sock.poll(10)
        while c.sock.poll(0):
            c.sock.recv_multipart()
        select.select([sys.stdin], [], [], 0.01)
    print(n)


if __name__ == "__main__":
    main()
