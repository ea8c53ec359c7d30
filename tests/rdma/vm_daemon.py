"""Real daemons inside a test guest, started, asked and ended from the host.

A Daemon knows its INI file, log, exit status, descriptors and statistics; put()
and get() are the kvferry command. snapshot() is what a fault must leave
behind as it was: the kernel's count of verbs objects, the daemon's own gauges,
pool bytes and descriptors.
"""
import concurrent.futures
import json
import os
import re
import sys
import time

import guest as vm

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))), "integration"))
import kvf_base  # noqa: E402
from kvf_base import HEADER, SANITIZER, SLOW, merge  # noqa: E402

# The suite can be tried with another transport where there is no guest's one.
TRANSPORT = os.environ.get("KVF_GUEST_TRANSPORT", "rdma")
ENV = ("export ASAN_OPTIONS=detect_leaks=1:exitcode=23:abort_on_error=0 "
       "LSAN_OPTIONS=exitcode=23 "
       "UBSAN_OPTIONS=halt_on_error=1:exitcode=23:print_stacktrace=1\n")
PORT = 6900  # + 100 + 16 * rank + stage: the port rule


def until(check, what, seconds=20):
    """Calls check() until it returns something true; that is returned."""
    end = time.monotonic() + seconds * SLOW
    while True:
        got = check()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"did not happen in time: {what}")
        time.sleep(0.05)


def counts(text):
    return {k: int(v) for k, v in re.findall(r"\b(qp|cq|mr|pd) (\d+)", text)}


def verbs_objects(g):
    """The kernel's count of qp, cq, mr, pd on rxe0; {} without the device."""
    return counts(g.sh("/bin/rdma res show"))


def beside(do, guests):
    """do(guest) for each, in all of them at the same time; the results."""
    with concurrent.futures.ThreadPoolExecutor(len(guests)) as pool:
        return list(pool.map(do, guests))


def random_file(g, path, size):
    """New bytes. Random ones are slow to make in a guest: from a megabyte on
    they repeat, after a number of bytes that divides nothing."""
    g.sh(f"head -c {min(size, 1_000_003)} /dev/urandom >/tmp/random; "
         f"n={size}; while [ $n -gt 0 ]; do cat /tmp/random; "
         f"n=$((n - 1000003)); done | head -c {size} >{path}")


class Daemon:
    def __init__(self, g, stage, conf=None, start=True, rank=0):
        self.g, self.stage, self.rank = g, stage, rank
        self.endpoint = f"ipc:///run/e{stage}.{rank}"
        self.base = f"/tmp/d{stage}.{rank}"
        self.runs = 0
        self.pid = None
        self.conf = merge({
            "worker": {"cluster": "vm", "stage": stage, "rank": rank,
                       "engine_endpoint": self.endpoint},
            "connector": {"host": g.addr, "zmq_port": PORT,
                          "protocol": TRANSPORT, "memory_pool_size": "96MiB",
                          "inline_max": 0, "drain_ms": 1000,
                          "get_sub_timeout_ms": 60000},
            "log": {"level": "info", "file": "stderr"}}, conf)
        if start:
            self.start()

    def knows(self, other):
        self.conf[f"peer {other.stage}.{other.rank}"] = {
            "host": other.g.addr,
            "port": PORT + 100 + 16 * other.rank + other.stage}
        return self

    # ---- its life -----------------------------------------------------------

    def spawn(self):
        """Starts it and does not wait."""
        self.runs += 1
        run = f"{self.base}.{self.runs}"
        self.log_path, self.rc, self.ready = run + ".log", run + ".rc", \
            run + ".ready"
        text = kvf_base.ini(self.conf)
        self.g.sh(ENV + f"rm -f {run}.*; cat >{self.base}.ini <<'INI'\n{text}INI\n"
                  f"(kvferryd {self.base}.ini --ready-file {self.ready} "
                  f">{self.log_path} 2>&1; echo $? >{self.rc}) "
                  ">/dev/null 2>&1 &")

    def start(self):
        self.spawn()
        return self.started()

    def started(self):
        """Waits until what was spawned is ready."""
        text = f"until [ -s {self.ready} ] || [ -s {self.rc} ]; do " \
               f"sleep 0.05; done; cat {self.ready}"
        status, line = self.g.run(text, 60 * SLOW)
        assert status == 0 and "ready" in line, \
            f"stage {self.stage} did not start:\n{self.log()}"
        self.pid = int(re.search(r"pid=(\d+)", line).group(1))
        return self

    def log(self):
        return self.g.run(f"cat {self.log_path}")[1]

    def wait_log(self, regex, seconds=20):
        rx = re.compile(regex, re.M)
        return until(lambda: rx.search(self.log()), regex, seconds)

    def signal(self, name):
        self.g.sh(f"kill -{name} {self.pid}")

    def kill(self):
        self.signal("KILL")
        self.wait_exit()

    def wait_exit(self, seconds=20):
        status, text = self.g.run(
            f"until [ -s {self.rc} ]; do sleep 0.05; done; cat {self.rc}",
            seconds * SLOW)
        assert status == 0
        self.pid = None
        return int(text)

    def end(self, check=True):
        """SIGTERM; exit status 0 and no sanitizer report."""
        if self.pid is None:
            return
        self.signal("TERM")
        self.ended(check)

    def ended(self, check=True):
        """Waits for one that was told to end."""
        status = self.wait_exit()
        if check:
            log = self.log()
            assert status == 0, f"exit {status}\n{log[-4000:]}"
            assert not SANITIZER.search(log), log[-6000:]

    # ---- what engines do -----------------------------------------------------------

    def cli(self, command, seconds=60):
        """(status, output) of a kvferry command at this daemon."""
        verb, _, rest = command.partition(" ")
        return self.g.run(f"{ENV}kvferry {verb} --endpoint {self.endpoint} "
                          f"--answer 20s {rest}", seconds * SLOW)

    def ok(self, command, seconds=60):
        status, text = self.cli(command, seconds)
        assert status == 0, f"kvferry {command}: {status}: {text}"
        return text

    def put(self, key, path, options=""):
        return self.ok(f"put {options} {key} {path}")

    def get_command(self, key, out, timeout="60s"):
        return (f"kvferry get --endpoint {self.endpoint} --mode copy "
                f"--answer 20s --from 0 --timeout {timeout} -o {out} {key}")

    def get(self, key, out, timeout="60s"):
        """The report line of a get as a map; transport, attempts, ..."""
        text = self.g.sh(ENV + self.get_command(key, out, timeout), 90 * SLOW)
        return dict(re.findall(r"(\w+)=(\S+)", text))

    def status(self):
        text = self.ok("status --json")
        return json.loads(text[text.index("{"):])["stats"]

    def counter(self, name):
        return self.status()["counters"][name]

    # ---- what must come back -------------------------------------------------------

    def held(self):
        """Descriptors, pool bytes and verbs objects, by itself and by its
        kernel."""
        text = self.g.sh(f"ls /proc/{self.pid}/fd | wc -l; /bin/rdma res show")
        status = self.status()
        return {"fds": int(text.split()[0]), "used": used(status),
                **gauges(status), **counts(text)}

    def cpu_ms(self):
        """CPU of all its threads, from the scheduler's nanoseconds."""
        text = self.g.sh(f"cat /proc/{self.pid}/task/*/schedstat")
        return sum(int(x.split()[0]) for x in text.splitlines()) / 1e6

    def all_free(self):
        return used(self.status()) == 0


def used(status):
    """Bytes of the pool that are not FREE."""
    p = status["pool"]
    return p["size"] - HEADER - p["free"]


def gauges(status):
    """The gauges of the rdma transport that count objects."""
    t = status["transports"].get("rdma", {})
    return {k: v for k, v in t.items() if isinstance(v, int)
            and not isinstance(v, bool)
            and k in ("qps", "cqs", "mrs", "pds", "links", "inflight")}


def start_all(*daemons):
    """At the same time: most of a start is the device's registration."""
    for d in daemons:
        d.spawn()
    for d in daemons:
        d.started()
    return daemons


def snapshot(*daemons):
    """By stage; what each holds."""
    guests = list({id(d.g): d.g for d in daemons}.values())
    parts = beside(lambda g: {d.stage: d.held() for d in daemons if d.g is g},
                   guests)
    return {stage: held for part in parts for stage, held in part.items()}


def settles(before, *daemons, seconds=20, more_fds=0):
    """Waits until the snapshot is that of before, every pool FREE; up to
    more_fds descriptors may have come: connections that are kept."""
    before = {k: dict(v, used=0) for k, v in before.items()}
    last = [None]

    def same():
        last[0] = snapshot(*daemons)
        for stage, now in last[0].items():
            extra = now["fds"] - before[stage]["fds"]
            if 0 < extra <= more_fds:
                now["fds"] -= extra
        return last[0] == before
    try:
        until(same, "the same objects as before", seconds)
    except AssertionError:
        raise AssertionError(f"before {before}\nnow    {last[0]}") from None


GuestError = vm.GuestError
