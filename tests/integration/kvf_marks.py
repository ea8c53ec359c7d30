"""Bytes that tell whose they are, and memory of an engine that shows when
somebody writes into it who should not."""
import collections
import fcntl
import mmap
import os
import struct
import time

from kvf import KIB

LINE = 64
SIZES = [LINE, 4 * KIB, 60 * KIB, 64 * KIB + 8, 200 * KIB + 40, 1024 * KIB]
SLOTS = SIZES * 3


class Wrong(AssertionError):
    """A promise of the protocol was broken."""


def payload(side, key, uid, size):
    """The bytes of put `uid`."""
    n = -(-size // LINE)
    out = bytearray(n * LINE)
    head = struct.pack("<QQQ", (side + 1) << 32 | key, uid, size)
    for i, byte in enumerate(head + head + head[8:16]):
        if byte:
            out[i::LINE] = bytes([byte]) * n
    for i in range(4):
        out[56 + i::LINE] = bytes(x >> 8 * i & 0xff for x in range(n))
    return bytes(out[:size])


def compare(got, want, what):
    if got == want:
        return
    bad = [i for i in range(0, max(len(got), len(want)), LINE)
           if got[i:i + LINE] != want[i:i + LINE]]
    lines = [f"  at {i}: {bytes(got[i:i + LINE]).hex()}\n"
             f"  instead of {bytes(want[i:i + LINE]).hex()}"
             for i in bad[:3] + bad[-2:]]
    raise Wrong(f"{what}: {len(got)} bytes instead of {len(want)}, "
                f"{len(bad)} lines are wrong, from {bad[0]} to {bad[-1]}\n"
                + "\n".join(lines))


class Slot:
    """A range of a region that one request at a time uses."""
    count = 0

    def __init__(self, region, at, size):
        self.m, self.at, self.size = region.m, at, size
        self.history = collections.deque(maxlen=12)

    def canary(self, what):
        """Words that no payload has, anew each time."""
        Slot.count += 1
        word = b"CANARY" + struct.pack("<Q", Slot.count) + b"\xee\xee"
        self.want = bytearray((word * (self.size // 16 + 1))[:self.size])
        self.m[self.at:self.at + self.size] = bytes(self.want)
        self.history.append((round(time.monotonic(), 4), what))

    def fill(self, data):
        self.m[self.at:self.at + len(data)] = data

    def read(self, at, size):
        return self.m[self.at + at:self.at + at + size]

    def check(self, what):
        compare(self.read(0, self.size), bytes(self.want),
                f"{what}; range {self.at}+{self.size}, {list(self.history)}")


class Region:
    """A memfd of an engine, in slots of the payloads' sizes."""

    def __init__(self, rng):
        sizes = list(SLOTS)
        rng.shuffle(sizes)
        self.size = sum(sizes) + 8 * len(sizes)
        self.size += -self.size % 4096
        self.fd = os.memfd_create("traffic", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.m = mmap.mmap(self.fd, self.size)
        self.id = None
        self.free, at = [], 0
        for size in sizes:
            self.free.append(Slot(self, at, size))
            at += size + 8

    def take(self, rng, size):
        fits = [s for s in self.free if s.size >= size]
        if not fits:
            return None
        slot = rng.choice(fits)
        self.free.remove(slot)
        return slot

    def close(self):
        os.close(self.fd)
