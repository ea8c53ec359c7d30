"""Constants and small helpers of the integration tests."""
import os
import re
import struct
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.abspath(os.environ.get("KVF_BUILD",
                                       os.path.join(ROOT, "build-release")))
PLACES = [os.path.join(BUILD, *x, "kvferryd")
          for x in (["src", "daemon"], ["src"], [])]
KVFERRYD = os.environ.get("KVFERRYD") or next(
    (p for p in PLACES if os.path.exists(p)), PLACES[0])
# A sanitized build is slower; deadlines that bound a wait are stretched.
SLOW = float(os.environ.get("KVF_SLOW", "3" if "asan" in BUILD else "1"))
WAIT = 10 * SLOW
HEADER = 4096
KIB = 1024
MIB = 1024 * KIB
STATUSES = ("OK INVALID UNSUPPORTED NOT_FOUND TIMEOUT TRANSFER_TIMEOUT "
            "PEER_UNREACHABLE EXPIRED CONSUMED FAILED CANCELLED STALE "
            "NO_SPACE TOO_LARGE BUSY EXISTS MISMATCH CORRUPT DENIED "
            "TRANSPORT SHUTTING_DOWN INTERNAL").split()
SANITIZER = re.compile(r"ERROR: (Address|Leak)Sanitizer|runtime error:|"
                       r"AddressSanitizer:DEADLYSIGNAL")


class NoReply(Exception):
    pass


def until(check, what, seconds=None):
    """Calls check() until it returns something true; that is returned."""
    end = time.monotonic() + (WAIT if seconds is None else seconds * SLOW)
    while True:
        got = check()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"did not happen in time: {what}")
        time.sleep(0.01)


def pattern(size, seed=1):
    """Bytes that tell a shift, a mix or a hole from the right thing."""
    word = bytes((i * 7 + seed * 131) & 0xff for i in range(256))
    out = bytearray()
    n = 0
    while len(out) < min(size, 1 << 20):
        out += struct.pack("<QQ", seed, n) + word
        n += 1
    block = bytes(out[:1 << 20])
    return (block * (size // len(block) + 1))[:size] if size else b""


def xxh3(data):
    import xxhash
    return xxhash.xxh3_64_intdigest(data, seed=0)


def ini(sections):
    lines = []
    for name, keys in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{k} = {v}" for k, v in keys.items()]
    return "\n".join(lines) + "\n"


def merge(*dicts):
    out = {}
    for d in dicts:
        for section, keys in (d or {}).items():
            out.setdefault(section, {}).update(keys)
    return out


def short_tmp():
    base = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="kvf-",
                            dir=base if len(base) < 50 else "/tmp")
