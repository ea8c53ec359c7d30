"""What bench/compare measures: the rows of its table.

A case measures kvferry and what it is held against, one after the other, and
returns lines (name, kvferry, beside, unit, how the ratio must be). A round runs
all cases once; the table has medians over the rounds.
"""
import shutil
import time
from collections import namedtuple
from contextlib import contextmanager

from . import machine as m
from . import pair

K, M, G = 1 << 10, 1 << 20, 1 << 30
SIZES = (M, 16 * M, 256 * M, G)

# `ours` and `beside` are figures, or None when there is none. The comparison is
# ours / beside ("ratio") or ours - beside ("less"), or `ours` itself ("alone");
# it must be at least `least` or at most `most`.
Line = namedtuple("Line", "name ours beside unit kind least most")


def text_of(size):
    for unit, name in ((G, "GiB"), (M, "MiB"), (K, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def line(name, ours, beside, unit, least=None, most=None, kind="ratio"):
    return Line(name, ours, beside, unit, kind, least, most)


class Bench:
    """The daemons and servers, started when a case first needs them."""

    def __init__(self):
        self.open = {}

    def pair(self, protocol):
        return self._get(protocol, lambda: m.Pair(protocol))

    def redis(self):
        return self._get("redis", m.Redis)

    def _get(self, key, make):
        if key not in self.open:
            self.open[key] = make()
        return self.open[key]

    def close(self):
        for thing in self.open.values():
            thing.close()
        self.open = {}


def has(name):
    return shutil.which(name) is not None


def raw_redis():
    return has("redis-server") and shutil.which(m.program("raw_redis"))


def peers_of(bench, tls, size, ucx_tests):
    """Name -> GB/s of the peers that are here."""
    out = {"ZMQ": m.figures("raw_zmq", "ipc" if tls == "posix" else "tcp",
                            "pull", size)[0]["GBps"]}
    if has("ucx_perftest"):
        out["UCX"] = max(m.ucx(t, tls, size) for t in ucx_tests)
    if raw_redis() and size < 512 * M:  # the largest value it takes
        out["redis GET"] = bench.redis().measure("get", size)[1]["GBps"]
    return out


def round_trips(size, pace="rtt"):
    """ZMQ round trips over ipc (64 bytes) and over tcp (`size`), which are the
    four messages of a get: us of each, and CPU seconds of both."""
    ipc, tcp = (m.figures("raw_zmq", how, pace, n)[0]
                for how, n in (("ipc", 64), ("tcp", size)))
    cpu = ipc["cpu_s_per_GB"] * 64 + tcp["cpu_s_per_GB"] * size
    return ipc["p50_us"], tcp["p50_us"], cpu / 1e9


def beside_bare_get(name, size, ours, bare):
    """What the same messages and the same bytes take without kvferry: where
    one get at a time cannot be faster."""
    if size > 16 * M:
        return
    ipc, tcp, cpu = round_trips(256)
    what = "four ZMQ messages, then the bytes, bare"
    yield line(f"{name}: the whole get / {what}", ours["us"],
               ipc + tcp + size / bare["GBps"] / 1e3, "us")
    yield line(f"{name}: CPU / {what}", ours["cpu_s_per_GB"],
               cpu / size * 1e9 + bare["cpu_s_per_GB"], "s/GB")


def shm_copy(size, cold):
    def run(bench):
        name = f"shm copy {text_of(size)} {'cold' if cold else 'hot'}"
        temp = "cold" if cold else "hot"
        ours = bench.pair("auto").measure(
            "get", size, "into" if cold else "copy", temp, 1)[0]
        bare = [m.figures("raw_copy", size, how, temp)[0]
                for how in ("memcpy", "nt")]
        best = max(bare, key=lambda x: x["GBps"])
        what = "best of memcpy and non-temporal"
        yield line(f"{name}: moving the bytes / {what}", ours["move_GBps"],
                   best["GBps"], "GB/s", least=0.95)
        yield line(f"{name}: the whole get / {what}", ours["GBps"],
                   best["GBps"], "GB/s", least=0.95)
        yield line(f"{name}: CPU / {what}", ours["cpu_s_per_GB"],
                   best["cpu_s_per_GB"], "s/GB")
        yield from beside_bare_get(name, size, ours, best)
        if cold:
            return
        for peer, gbps in peers_of(bench, "posix", size, ["ucp_get"]).items():
            yield line(f"{name}: the whole get / {peer}", ours["GBps"], gbps,
                       "GB/s", least=0.95 if peer == "UCX" else 1)
    return run


def shm_view(size):
    def run(bench):
        pair = bench.pair("auto")
        bare = m.figures("raw_copy", size, "read", "cold")[0]
        what = "get, read, release / reading what is mapped"
        ours = pair.measure("get", size, "view", "cold", 1)[0]
        yield line(f"shm view {text_of(size)}: {what}", ours["us"], bare["us"],
                   "us", most=1.1 if size >= 16 * M else None)
        if size > 16 * M:
            return
        ours = pair.measure("get", size, "view", "cold", 2)[0]
        yield line(f"shm view {text_of(size)}, the next get under way while "
                   f"one is read: {what}", ours["us"], bare["us"], "us")
    return run


def raw_sockets(size, streams, temp):
    """With the system's congestion control, and with the one that kvferry
    takes within a host."""
    for name, args in (("", []), (" with reno", [1, "reno"])):
        yield (f"raw sockets x{streams}{name}",
               m.figures("raw_tcp", size, streams, "spin", temp, *args)[0])


def tcp_get(size, streams):
    def run(bench):
        name = f"tcp get {text_of(size)}"
        ours = bench.pair("tcp").measure("get", size, "copy", "hot", 1)[0]
        for what, bare in raw_sockets(size, streams(size), "hot"):
            yield line(f"{name}: the whole get / {what}", ours["GBps"],
                       bare["GBps"], "GB/s", least=0.9)
            yield line(f"{name}: moving the bytes / {what}", ours["move_GBps"],
                       bare["GBps"], "GB/s", least=0.9)
            yield line(f"{name}: CPU / {what}", ours["cpu_s_per_GB"],
                       bare["cpu_s_per_GB"], "s/GB", most=1.15)
        yield from beside_bare_get(name, size, ours, bare)
        tests = ["ucp_get", "tag_bw", "ucp_put_bw"]
        for peer, gbps in peers_of(bench, "tcp", size, tests).items():
            yield line(f"{name}: the whole get / {peer}", ours["GBps"], gbps,
                       "GB/s", least=1 if peer == "UCX" else 1.5)
        if has("iperf3") and size == 16 * M:
            yield line(f"{name}: the whole get / iperf3 x1", ours["GBps"],
                       m.iperf3(), "GB/s")
    return run


def latency(bench):
    pair = bench.pair("auto")
    rows = {x["how"]: x["p50_us"]
            for x in pair.measure("latency", 4 * K, 2000)}
    get = rows["get inline"]
    trips = sum(round_trips(4 * K)[:2])
    yield line("get of 4 KiB, inline / ZMQ ipc + tcp round trip, p50", get,
               trips, "us", most=1.25)
    yield line("get of 4 KiB, copy / ZMQ ipc + tcp round trip, p50",
               rows["get copy"], trips, "us")
    parked, paced = (x["p50_us"] for x in pair.measure("parked", 4 * K, 500))
    yield line("parked get, from put to reply / that get at the same pace, p50",
               parked, paced, "us", most=0.75)
    ipc, tcp, _ = round_trips(4 * K, "paced")
    yield line("parked get, from put to reply / its three ZMQ messages bare, "
               "at the same pace, p50", parked, ipc + tcp / 2, "us")
    yield line("get at that pace / its four ZMQ messages bare, at the same "
               "pace, p50", paced, ipc + tcp, "us")
    yield line("parked get, from put to reply / gets one after the other, p50",
               parked, get, "us")


def batch(protocol):
    """Where one get at a time is bound by the messages on its way."""
    def run(bench):
        rows = {x["how"]: x["GBps"] for x in
                bench.pair(protocol).measure("many", M, 64)}
        if protocol == "tcp":
            bare = [(what, x["GBps"])
                    for what, x in raw_sockets(M, 1, "cold")]
        else:
            bare = [("best of memcpy and non-temporal, cold", max(
                m.figures("raw_copy", M, how, "cold")[0]["GBps"]
                for how in ("memcpy", "nt")))]
        for what, gbps in bare:
            yield line(f"64 x 1 MiB in one mget, "
                       f"{'tcp' if protocol == 'tcp' else 'shm copy'} / {what}",
                       rows["mget"], gbps, "GB/s")
    return run


def many(bench):
    rows = {x["how"]: x["per_s"] for x in
            bench.pair("auto").measure("many", 64 * K, 1000)}
    for how in ("mget", "pipelined"):
        yield line(f"1000 x 64 KiB, {how} / one after the other", rows[how],
                   rows["sequential"], "1/s", least=5)
    if raw_redis():
        redis = {x["how"]: x["per_s"] for x in
                 bench.redis().measure("pipe", 64 * K, 1000)}
        for how in ("mget", "pipelined"):
            yield line(f"1000 x 64 KiB, {how} / redis pipelined", rows[how],
                       redis["pipelined"], "1/s", least=1 / 1.5)


def ping(bench):
    for protocol, who, what in (("auto", "receiver", "copying"),
                                ("tcp", "sender", "sending"),
                                ("tcp", "receiver", "receiving")):
        pair = bench.pair(protocol)
        idle = pair.measure("ping", who, 1000)[0]["p99_us"]
        busy = pair.measure("ping", who, 1000, G)[0]["p99_us"]
        yield line(f"ping p99 while {what} 1 GiB - idle", busy, idle, "us",
                   most=1000, kind="less")


def blocks(protocol, what):
    """1 GiB of KV blocks in 16 KiB runs, ids random on both sides."""
    def run(_bench):
        with fresh(protocol) as pair:
            got = m.figures("pull_blocks", *pair.endpoints, 16 * K, 64, 1024,
                            1)[0]
        name = f"{got['transport']}: pull of 1 GiB in 16 KiB runs"
        if what == "copy":
            yield line(f"{name} / the faster of memcpy and non-temporal copies "
                       "of these runs", got["GBps"],
                       max(got["memcpy_GBps"], got["nt_GBps"]), "GB/s",
                       least=0.9)
        else:
            yield line(f"{name} / a contiguous get of as much", got["GBps"],
                       got["get_GBps"], "GB/s", least=0.7)
    return run


def descriptors(protocol):
    """Time a descriptor by the size of the plan, from planning to the last
    byte; always over the same 1 GB of memory."""
    def run(_bench):
        first = None
        with fresh(protocol) as pair:
            for n in (1000, 10000, 100000, 1000000):
                got = m.figures("pull_blocks", *pair.endpoints, K, 10, 100000,
                                3, n // 10)
                got = min(got, key=lambda x: x["ns_per_read"])
                first = first or got["ns_per_read"]
                yield line(f"{got['transport']}: pull, time a run of 1 KiB: "
                           f"{n} runs / 1000 runs", got["ns_per_read"], first,
                           "ns")
    return run


@contextmanager
def fresh(protocol="auto"):
    """Two daemons that have done nothing yet: memory that was used before and
    given back inside the process would not show."""
    pair = m.Pair(protocol, "64MiB")
    try:
        yield pair
    finally:
        pair.close()


def crowd(_bench):
    with fresh() as pair:
        got = pair.measure("crowd", 10000)[0]
    for who in ("owner", "getter"):
        yield line(f"10,000 parked gets: memory each, {who}",
                   got[f"{who}_bytes"], None, "B", most=2048, kind="alone")
        yield line(f"10,000 parked gets: CPU while they wait, {who}",
                   got[f"{who}_cpu_percent"], None, "%", most=0.1,
                   kind="alone")


def idle(_bench):
    with fresh() as pair:
        pair.measure("latency", 4 * K, 10)  # so that the two have met
        time.sleep(1)
        before = [m.activity(pid) for pid in pair.pids()]
        t0 = time.monotonic()
        time.sleep(5)
        took = time.monotonic() - t0
        after = [m.activity(pid) for pid in pair.pids()]
    for who, was, (cpu, wakes) in zip(("sender's", "receiver's"), before,
                                      after):
        yield line(f"idle daemon ({who}): CPU", (cpu - was[0]) / took / 1e7,
                   None, "%", most=0.1, kind="alone")
        yield line(f"idle daemon ({who}): wake-ups of all threads",
                   (wakes - was[1]) / took, None, "1/s", kind="alone")


def all_cases(streams):
    """(name, function) in the order of the table."""
    out = []
    for cold in (False, True):
        for size in SIZES:
            out.append((f"shm-copy-{'cold' if cold else 'hot'}-"
                        f"{text_of(size).replace(' ', '')}",
                        shm_copy(size, cold)))
    for size in SIZES:
        out.append((f"shm-view-{text_of(size).replace(' ', '')}",
                    shm_view(size)))
    for size in SIZES:
        out.append((f"tcp-{text_of(size).replace(' ', '')}",
                    tcp_get(size, streams)))
    out += [("blocks-shm", blocks("auto", "copy")),
            ("blocks-tcp", blocks("tcp", "get")),
            ("descriptors-shm", descriptors("auto")),
            ("descriptors-tcp", descriptors("tcp"))]
    out += pair.cases(line)
    out += [("batch-shm", batch("auto")), ("batch-tcp", batch("tcp"))]
    out += [("latency", latency), ("many", many), ("ping", ping),
            ("crowd", crowd), ("idle", idle)]
    return out
