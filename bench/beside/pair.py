"""Windows beside bare programs: `kvferry bench` as a pair, one direction after
the other on the same target, in the sizes of other engines' bench tools."""
import json
import os
import re
import subprocess

from . import machine as m

K, M = 1 << 10, 1 << 20
# Published loopback figures of Mooncake, and what the bare program made on that
# machine: memcpy of 64 KiB (hot), sockets that spin (1 MiB). GB/s.
MOONCAKE = {"shm": (26.2, 56.7), "tcp": (2.0, 7.15)}


def kvferry():
    return os.path.join(m.BUILD, "src", "cli", "kvferry")


class Target:
    def __init__(self, protocol, buffer):
        self.proc = m.start([kvferry(), "bench", "--mode", "target",
                             "--protocol", protocol, "--buffer-size",
                             str(buffer)])
        line = self.proc.stdout.readline()
        found = re.search(r" target=(\S+) ", line)
        if not found:
            m.stop(self.proc)
            raise m.Failed(line.strip() or "the target did not start")
        self.at = found[1]

    def close(self):
        m.stop(self.proc)
        self.proc.stdout.close()


def initiate(at, protocol, operation, block, batch, depth):
    p = subprocess.run(
        [kvferry(), "bench", "--mode", "initiator", "--segment-id", at,
         "--protocol", protocol, "--operation", operation, "--block-size",
         str(block), "--batch-size", str(batch), "--depth", str(depth),
         "--duration", "1500ms", "--json"], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False)
    if p.returncode != 0:
        raise m.Failed(p.stderr.strip()[-300:])
    return json.loads(p.stdout)


def sockets(size):
    """With the congestion control that the daemons take within a host: the
    system's own may pace what never leaves it."""
    return m.figures("raw_tcp", size, 1, "spin", "hot", 1, "reno")[0]


def bare(protocol, size):
    """The limit: the same bytes as one block."""
    if protocol == "tcp":
        return sockets(size), "raw sockets"
    both = [m.figures("raw_copy", size, how, "hot")[0]
            for how in ("memcpy", "nt")]
    return (max(both, key=lambda x: x["GBps"]),
            "best of memcpy and non-temporal")


def pair(line, protocol, block, batch, depth):
    """`line` makes a line of the table (cases.py)."""
    def run(_bench):
        size = block * batch * depth
        raw, what = bare(protocol, size)
        target = Target(protocol, max(size, 64 * M))
        try:
            got = {op: initiate(target.at, protocol, op, block, batch, depth)
                   for op in ("read", "write")}
        finally:
            target.close()
        name = (f"{protocol} pair, {block // K} KiB x {batch}, {depth} at "
                "once")
        for op, x in got.items():
            yield line(f"{name}: {op} / {what} of {size // M} MiB", x["GBps"],
                       raw["GBps"], "GB/s")
            yield line(f"{name}: {op}, CPU of all four processes / {what}",
                       x["initiator_cpu_s_per_GB"] + x["target_cpu_s_per_GB"],
                       raw["cpu_s_per_GB"], "s/GB")
        yield line(f"{name}: write / read", got["write"]["GBps"],
                   got["read"]["GBps"], "GB/s", least=0.95)
        if block == 64 * K:
            there, limit = MOONCAKE[protocol]
            here = (m.figures("raw_copy", block, "memcpy", "hot")[0]
                    if protocol == "shm" else sockets(M))["GBps"]
            for op, x in got.items():
                yield line(f"{name}: {op} / Mooncake's published figure x "
                           "this machine's bare one / that machine's",
                           x["GBps"], there * here / limit, "GB/s", least=1)
    return run


def cases(line):
    out = []
    for protocol in ("shm", "tcp"):
        for block, batch, depth in ((64 * K, 128, 1), (64 * K, 128, 4),
                                    (16 * M, 1, 2)):
            out.append((f"pair-{protocol}-{block // K}KiBx{batch}x{depth}",
                        pair(line, protocol, block, batch, depth)))
    return out
