"""Drives real kvferry daemons the way engines do: raw ZMQ and MessagePack.

Daemon starts a kvferryd from an INI file of its own and knows its log, its
open fds and its memory; Client speaks the engine protocol on one socket;
Engine is a Client in a process of its own, which can be killed or stopped.
Every wait has a deadline. Nothing here knows more than the protocol's page.
"""
import os
import re
import shutil
import signal
import subprocess
import time

from kvf_base import *  # noqa: F401,F403
from kvf_base import HEADER, KVFERRYD, SANITIZER, SLOW, WAIT
from kvf_base import ini, merge, short_tmp, until
from kvf_client import Client, Engine, Reply, header, pack  # noqa: F401


class DaemonExited(Exception):
    """The daemon ended before it was ready."""

    def __init__(self, status, text):
        super().__init__(f"exit {status}\n{text}")
        self.status, self.text = status, text


def sanitizer_env():
    env = dict(os.environ)
    env["ASAN_OPTIONS"] = "detect_leaks=1:exitcode=23:abort_on_error=0"
    env["LSAN_OPTIONS"] = "exitcode=23"
    env["UBSAN_OPTIONS"] = "halt_on_error=1:exitcode=23:print_stacktrace=1"
    return env


def daemon_conf(run, stage=0, rank=0, replica=0, conf=None):
    return merge({
        "worker": {"cluster": "test", "stage": stage, "rank": rank,
                   "replica": replica,
                   "engine_endpoint": f"ipc://{run}/e{stage}{rank}{replica}"},
        "connector": {"host": "127.0.0.1", "zmq_port": "auto",
                      "memory_pool_size": "64MiB",
                      "get_sub_timeout_ms": 10000, "drain_ms": 1000},
        "edge 0->1": {}, "log": {"level": "info", "file": "stderr"},
    }, conf)


class Daemon:
    """One kvferryd. `conf` (sections of keys) goes over the defaults."""

    def __init__(self, stage=0, rank=0, replica=0, conf=None, run=None,
                 env=None, wrapper=(), preexec=None, start=True):
        self.run = run or short_tmp()
        self.own_run = run is None
        self.stage, self.rank, self.replica = stage, rank, replica
        self.conf = daemon_conf(self.run, stage, rank, replica, conf)
        # "edge 0->1" with nothing in it would be an empty section.
        if not self.conf["edge 0->1"]:
            self.conf["edge 0->1"] = {"window_size": -1}
        tag = f"{stage}-{rank}-{replica}"
        self.ini = os.path.join(self.run, f"d{tag}.ini")
        self.ready_path = os.path.join(self.run, f"ready{tag}")
        self.log_path = os.path.join(self.run, f"log{tag}")
        self.env = {**sanitizer_env(), "XDG_RUNTIME_DIR": self.run,
                    **(env or {})}
        self.wrapper, self.preexec = list(wrapper), preexec
        self.proc = None
        self.clients = []
        self.checked_log = 0
        if start:
            self.start()

    def start(self, wait=True):
        with open(self.ini, "w", encoding="utf-8") as f:
            f.write(ini(self.conf))
        if os.path.exists(self.ready_path):
            os.unlink(self.ready_path)
        self.log_start = (os.path.getsize(self.log_path)
                          if os.path.exists(self.log_path) else 0)
        with open(self.log_path, "ab") as log:
            self.proc = subprocess.Popen(
                self.wrapper + [KVFERRYD, self.ini, "--ready-file",
                                self.ready_path],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.env, preexec_fn=self.preexec)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds=20):
        def ready():
            if self.proc.poll() is not None:
                raise DaemonExited(self.proc.returncode, self.log())
            try:
                with open(self.ready_path, encoding="utf-8") as f:
                    line = f.read()
            except FileNotFoundError:
                return None
            return line if line.endswith("\n") else None
        self.ready_line = until(ready, "ready file", seconds).strip()
        self.ready = dict(x.split("=", 1)
                          for x in self.ready_line.split() if "=" in x)
        self.endpoint = self.ready["engine"]
        self.peer_host, port = re.fullmatch(
            r"tcp://(.+):(\d+)", self.ready["peer"]).groups()
        self.peer_port = int(port)
        self.incarnation = bytes.fromhex(self.ready["incarnation"])
        self.pid = self.proc.pid if not self.wrapper else self.find_pid()
        self.fd_baseline = self.fds()

    def find_pid(self):
        """The daemon's pid as seen here, also behind unshare. (The daemon
        has a child of its own: the broker of file descriptors.)"""
        pid = self.proc.pid
        while True:
            with open(f"/proc/{pid}/comm", encoding="utf-8") as f:
                if f.read().strip() == "kvferryd":
                    return pid
            with open(f"/proc/{pid}/task/{pid}/children",
                      encoding="utf-8") as f:
                kids = f.read().split()
            if not kids:
                return pid
            pid = int(kids[0])

    def broker(self):
        """The pid of its broker, None when it has none."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children",
                  encoding="utf-8") as f:
            kids = f.read().split()
        for pid in kids:
            with open(f"/proc/{pid}/comm", encoding="utf-8") as f:
                if f.read().strip() == "kvferryd-fd":
                    return int(pid)
        return None

    def restart(self, **kw):
        return self.start(**kw)

    def alive(self):
        return self.proc is not None and self.proc.poll() is None

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.proc.wait(WAIT)

    def stop(self):
        """SIGSTOP; returns when it really stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: self.stat_field(2) == "T", "stopped")

    def cont(self):
        os.kill(self.pid, signal.SIGCONT)

    def stat_field(self, n):
        with open(f"/proc/{self.pid}/stat", encoding="utf-8") as f:
            text = f.read()
        rest = text[text.rindex(")") + 2:].split()
        return rest[n - 2]

    def terminate(self, seconds=10):
        """SIGTERM and the exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.proc.wait(seconds * SLOW)

    def log(self):
        try:
            with open(self.log_path, encoding="utf-8",
                      errors="replace") as f:
                f.seek(self.log_start)
                return f.read()
        except FileNotFoundError:
            return ""

    def wait_log(self, regex, seconds=None):
        """The first match of `regex` in the log of this run."""
        rx = re.compile(regex, re.M)
        try:
            return until(lambda: rx.search(self.log()), regex, seconds)
        except AssertionError:
            raise AssertionError(
                f"no log line like {regex!r} in:\n{self.log()}") from None

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss_anon(self):
        """Bytes of private memory (the pool is shared memory)."""
        with open(f"/proc/{self.pid}/status", encoding="utf-8") as f:
            return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB",
                                        f.read()).group(1))

    def cpu_ns(self):
        total = 0
        for t in os.listdir(f"/proc/{self.pid}/task"):
            with open(f"/proc/{self.pid}/task/{t}/schedstat",
                      encoding="utf-8") as f:
                total += int(f.read().split()[0])
        return total

    def client(self, **kw):
        c = Client(self.endpoint, **kw)
        self.clients.append(c)
        return c

    def engine(self):
        """A client with a session. `me` names this daemon as a get's
        source, so that the get may wait here and meets tombstones."""
        c = self.client()
        c.hello()
        c.me = {"host": self.peer_host, "port": self.peer_port}
        return c

    def stats(self):
        with Client(self.endpoint) as c:
            return c.ok("stats")

    def pool(self):
        return self.stats()["pool"]

    def knows(self, other):
        """Tells this daemon where `other` is."""
        with Client(self.endpoint) as c:
            c.ok("peer", stage=other.stage, rank=other.rank,
                 replica=other.replica, host=other.peer_host,
                 port=other.peer_port)

    def close_clients(self):
        for c in self.clients:
            c.close(bye=self.alive())
        self.clients = []

    def wipe(self):
        """Retires every key that is left."""
        with Client(self.endpoint) as c:
            end = time.monotonic() + WAIT
            while time.monotonic() < end:
                keys = [k["key"] for k in c.ok("list")["keys"]
                        if k["state"] == "published"]
                if not keys:
                    return
                for k in keys:
                    c.send("fail", key=k)
                for k in keys:
                    c.recv()

    def assert_all_free(self, seconds=10, fd_slack=None):
        """Every byte FREE again; no fds beyond the start's and `slack`."""
        last = {}

        def free():
            last.clear()
            last.update(self.pool())
            return last["free"] == last["size"] - HEADER
        try:
            until(free, "all free", seconds)
        except AssertionError:
            raise AssertionError(f"pool not all FREE: {last}\n"
                                 f"{self.log()[-4000:]}") from None
        for state in ("filling", "published", "claimed", "draining",
                      "receiving", "held"):
            assert last[state] == 0, last
        if fd_slack is not None:
            until(lambda: self.fds() <= self.fd_baseline + fd_slack,
                  f"fds {self.fds()} <= {self.fd_baseline} + {fd_slack}")

    def check_sanitizer(self):
        try:
            with open(self.log_path, encoding="utf-8",
                      errors="replace") as f:
                text = f.read()
        except FileNotFoundError:
            return
        bad = SANITIZER.search(text)
        assert not bad, text[max(0, bad.start() - 200):bad.start() + 4000]

    def close(self, check=True):
        """Ends it; a daemon that still runs must end well and clean."""
        try:
            if self.alive():
                if check:
                    self.close_clients()
                    self.wipe()
                    # Peers, bulk connections and cached mappings may stay.
                    self.assert_all_free(fd_slack=64)
                    assert self.terminate() == 0, self.log()[-4000:]
            if check:
                self.check_sanitizer()
        finally:
            self.close_clients()
            if self.alive():
                try:
                    os.kill(self.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                self.proc.kill()
                self.proc.wait(WAIT)
            if self.own_run:
                shutil.rmtree(self.run, ignore_errors=True)
