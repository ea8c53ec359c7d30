"""A getter gone mad, in a process of its own: says HELLO as it should, then
sends valid messages, mutated ones and nonsense until its stdin is closed, then
prints how many.
  fuzz_peer.py PORT INCARNATION SEED"""
import os
import random
import select
import sys
import types

import msgpack

from fuzz_client import mutate
from kvf_peer import (ABORT, ASK, BYE, COMMIT, DONE, GRANT, HELLO, NOTIFY, PING,
                      RETIRED_SEEN, ROOM_ASK, TOKEN, UNASK, UNMAPPED,
                      WINDOW_ASK, ZERO, Getter)

KEYS = [f"fuzz{i}" for i in range(4)]
WRONG = [None, -1, 2 ** 64 - 1, 2 ** 63, 0, "", "x" * 2000, b"", b"\xff" * 100,
         [], {}, [[]] * 50, 1e308, True, ZERO, [1, 2], "tcp"]


def bodies(rng):
    """A valid body for each message that a getter may send."""
    n, id_ = rng.randrange(1 << 16), os.urandom(16)
    claim = {"claim": n, "token": TOKEN}
    return {
        HELLO: {"pool": {"path": "", "size": 0, "pid": 0, "start": 0},
                "peer_timeout_ms": 2000, "live": [], "gone": []},
        PING: {"seq": n},
        ASK: {"ask": n, "key": rng.choice(KEYS), "wait": rng.random() < .5,
              "wait_ms": rng.choice([0, 50]), "shm": rng.random() < .3,
              "mode": rng.choice(["copy", "view", "auto", "inline"]),
              "eager_max": rng.choice([0, 65536]), "view_pid": 0,
              "view_start": 0},
        UNASK: {"ask": n}, DONE: claim, ABORT: claim,
        UNMAPPED: {"incarnation": ZERO, "pid": 1, "start": 1},
        BYE: {"text": "bye"},
        WINDOW_ASK: {"ask": n, "name": "w", "write": True, "shm": False,
                     "offset": 0, "length": 5},
        ROOM_ASK: {"ask": n, "push": id_, "key": "fuzz-room",
                   "size": rng.choice([1, 5000, 1 << 40]), "meta": b"m",
                   "readers": 1, "reject": False, "shm": False, "ttl_ms": 50},
        COMMIT: {"ask": n, "push": id_, **claim},
        NOTIFY: {"ask": n, "notice": id_, **claim, "write": True,
                 "data": b"d"},
        RETIRED_SEEN: {"push": id_, "generation": n},
    }


def send_one(g, rng, claims):
    made = bodies(rng)
    type_ = rng.choice(list(made) + [ASK] * 4)
    body = made[type_]
    kind = rng.random()
    if type_ in (DONE, ABORT) and claims and rng.random() < .7:
        body = claims.pop()
    if kind < .3:
        g.send(type_, **body)
    elif kind < .55:
        g.send(type_, **{**body, rng.choice(list(body)): rng.choice(WRONG)})
    elif kind < .65:
        g.send(rng.randrange(80), **body)
    elif kind < .95:
        g.sock.send(mutate(rng, g.pack(type_, g.to, **body)))
    else:
        g.sock.send_multipart([rng.randbytes(rng.randint(0, 200))
                               for _ in range(rng.randint(1, 3))])


def receive(g, claims):
    """Claims that are granted can be ended in earnest."""
    while g.sock.poll(0):
        m = msgpack.unpackb(g.sock.recv_multipart()[0], raw=False,
                            strict_map_key=False)
        if m[1] == GRANT and "token" in m[8]:
            claims.append({k: m[8][k] for k in ("claim", "token")})


def main():
    at = types.SimpleNamespace(peer_port=int(sys.argv[1]),
                               incarnation=bytes.fromhex(sys.argv[2]))
    rng = random.Random(int(sys.argv[3]))
    g = Getter(at, worker=(1, 5, 0))
    g.hello()
    n, claims = 0, []
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        for _ in range(50):
            send_one(g, rng, claims)
        n += 50
        receive(g, claims)
        if rng.random() < .01:
            g.connect()  # and as somebody new
    print(n)


if __name__ == "__main__":
    main()
