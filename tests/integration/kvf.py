"""Drives real kvferry daemons the way engines do: raw ZMQ and MessagePack.

Daemon starts a kvferryd from an INI file of its own and knows its log, its
open fds and its memory; Client speaks the engine protocol on one socket;
Engine is a Client in a process of its own, which can be killed or stopped.
Every wait has a deadline. Nothing here knows more than the protocol's page.
"""
import collections
import itertools
import json
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import msgpack
import zmq

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.abspath(os.environ.get("KVF_BUILD",
                                       os.path.join(ROOT, "build-release")))
KVFERRYD = os.environ.get("KVFERRYD",
                          os.path.join(BUILD, "src", "daemon", "kvferryd"))
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


class DaemonExited(Exception):
    """The daemon ended before it was ready."""

    def __init__(self, status, text):
        super().__init__(f"exit {status}\n{text}")
        self.status, self.text = status, text


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
        """The daemon's pid as seen here, also behind unshare."""
        pid = self.proc.pid
        while True:
            with open(f"/proc/{pid}/task/{pid}/children",
                      encoding="utf-8") as f:
                kids = f.read().split()
            if not kids:
                return pid
            pid = int(kids[0])

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
            c.close()
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
                    self.assert_all_free()
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


class Reply(dict):
    """A reply's map, with the raw frame that came with it (or None)."""
    payload = None

    @property
    def status(self):
        return self.get("status")


def pack(m):
    return msgpack.packb(m, use_bin_type=True)


class Client:
    """One socket of an engine. Keywords that Python reserves take a trailing
    underscore (from_=...)."""
    ctx = None

    def __init__(self, endpoint, kind=zmq.DEALER, delimiter=None,
                 routing_id=None, timeout=None):
        if Client.ctx is None or Client.ctx.closed:
            Client.ctx = zmq.Context()
        self.sock = Client.ctx.socket(kind)
        self.sock.linger = 0
        self.sock.setsockopt(zmq.SNDHWM, 0)
        self.sock.setsockopt(zmq.RCVHWM, 0)
        if routing_id is not None:
            self.sock.setsockopt(zmq.IDENTITY, routing_id)
        self.kind = kind
        self.delimiter = (delimiter if delimiter is not None else False)
        self.timeout = timeout or WAIT
        self.sock.connect(endpoint)
        self.ids = itertools.count(1)
        self.replies = collections.OrderedDict()
        self.events = []
        self.maps = {}
        self.info = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        # Views of these mappings may live on in a test's variables.
        self.maps = {}
        if not self.sock.closed:
            self.sock.close(0)

    # -- envelope ---------------------------------------------------------
    def send_raw(self, *frames):
        if self.delimiter and self.kind != zmq.REQ:
            frames = (b"",) + frames
        self.sock.send_multipart(frames)

    def send_map(self, m, payload=None):
        frames = [pack(m)]
        if payload is not None:
            frames.append(payload)
        self.send_raw(*frames)

    def send(self, op, payload=None, **fields):
        """Sends a request and returns its id."""
        m = {"op": op, "id": next(self.ids)}
        for k, v in fields.items():
            m[k.rstrip("_")] = v
        self.send_map(m, payload)
        return m["id"]

    def recv_raw(self, timeout=None):
        t = self.timeout if timeout is None else timeout
        if not self.sock.poll(int(t * 1000)):
            raise NoReply(f"nothing within {t} s")
        return self.sock.recv_multipart()

    def recv_any(self, timeout=None):
        frames = self.recv_raw(timeout)
        if self.delimiter and self.kind != zmq.REQ:
            assert frames[0] == b"", "the delimiter was not answered"
            frames = frames[1:]
        assert 1 <= len(frames) <= 2, f"{len(frames)} frames"
        m = Reply(msgpack.unpackb(frames[0], raw=False,
                                  strict_map_key=False))
        m.payload = frames[1] if len(frames) == 2 else None
        return m

    def recv(self, id_=None, timeout=None):
        """The reply to `id_`, or the next one; keeps others and events."""
        if id_ is None and self.replies:
            return self.replies.popitem(last=False)[1].pop(0)
        end = time.monotonic() + (self.timeout if timeout is None
                                  else timeout)
        while True:
            if id_ is not None and id_ in self.replies:
                got = self.replies[id_].pop(0)
                if not self.replies[id_]:
                    del self.replies[id_]
                return got
            m = self.recv_any(max(0.0, end - time.monotonic()))
            if "event" in m:
                assert "id" not in m, m
                self.events.append(m)
                continue
            check_reply(m)
            if id_ is None:
                return m
            self.replies.setdefault(m.get("id"), []).append(m)

    def event(self, timeout=None, **want):
        """The next event that has these values."""
        end = time.monotonic() + (self.timeout if timeout is None
                                  else timeout)
        while True:
            for i, e in enumerate(self.events):
                if all(e.get(k) == v for k, v in want.items()):
                    return self.events.pop(i)
            m = self.recv_any(max(0.0, end - time.monotonic()))
            if "event" in m:
                self.events.append(m)
            else:
                check_reply(m)
                self.replies.setdefault(m.get("id"), []).append(m)

    def quiet(self, seconds=0.15):
        """Nothing comes for a while."""
        assert not self.sock.poll(int(seconds * 1000)), self.recv_any()

    def request(self, op, payload=None, timeout=None, **fields):
        return self.recv(self.send(op, payload, **fields), timeout)

    def ok(self, op, payload=None, timeout=None, **fields):
        r = self.request(op, payload, timeout, **fields)
        assert r.status == "OK", f"{op}: {dict(r)}"
        return r

    def want(self, status, op, payload=None, timeout=None, **fields):
        r = self.request(op, payload, timeout, **fields)
        assert r.status == status, f"{op}: wanted {status}: {dict(r)}"
        return r

    # -- sessions and memory ----------------------------------------------
    def hello(self, **fields):
        self.info = self.ok("hello", version=1, **fields)
        self.session = self.info["session"]
        return self.info

    def map(self, path, write=False):
        """A mapping of the file at `path`; one per inode."""
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY)
                     | os.O_CLOEXEC)
        try:
            st = os.fstat(fd)
            at = (st.st_dev, st.st_ino, write)
            if at not in self.maps:
                prot = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
                self.maps[at] = mmap.mmap(fd, st.st_size, mmap.MAP_SHARED,
                                          prot)
            return self.maps[at]
        finally:
            os.close(fd)

    def pool(self):
        return self.map(self.info["pool"]["path"], write=True)

    def alloc(self, size):
        return self.ok("alloc", size=size)

    def fill(self, buf, data, at=0):
        self.pool()[buf["offset"] + at:buf["offset"] + at + len(data)] = data

    def filled(self, data):
        """A buffer of this pool with these bytes."""
        buf = self.alloc(len(data))
        self.fill(buf, data)
        return buf

    def peek(self, buf, size=None, at=0):
        size = buf["size"] if size is None else size
        return self.pool()[buf["offset"] + at:buf["offset"] + at + size]

    def put(self, key, data, **fields):
        """Publishes bytes out of the pool."""
        buf = self.filled(data)
        r = self.ok("put", key=key, segments=[{"buffer": buf["buffer"]}],
                    **fields)
        assert r["size"] == len(data)
        return r

    def bytes_of(self, reply):
        """The bytes that a get's reply points to (not for `into`)."""
        if reply.payload is not None:
            return reply.payload
        out = b""
        for s in reply["segments"]:
            m = self.map(s["path"]) if s.get("path") else self.pool()
            out += m[s["offset"]:s["offset"] + s["length"]]
        return out

    def fetch(self, key, **fields):
        """get, read, release; returns the bytes."""
        r = self.ok("get", key=key, **fields)
        data = self.bytes_of(r)
        assert len(data) == r["size"], dict(r)
        if r.get("buffer"):
            self.ok("release", buffer=r["buffer"])
        return data


def check_reply(m):
    assert "id" in m, f"a reply without id: {dict(m)}"
    assert m.get("status") in STATUSES, dict(m)
    if m["status"] != "OK":
        assert isinstance(m.get("message"), str) and m["message"], dict(m)


def header(m):
    """The pool's first page: magic, version, header size, incarnation,
    size."""
    return struct.unpack_from("<8sII16sQ", m, 0)


class Engine:
    """A Client in another process: kill it, stop it, let it exit."""

    def __init__(self, endpoint, hello=True, prefix=(), routing_id=None):
        self.proc = subprocess.Popen(
            list(prefix) + [sys.executable, os.path.join(HERE, "engine.py"),
                            endpoint] + ([routing_id] if routing_id else []),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.proc.pid
        if hello:
            self.ok("hello", version=1)

    def do(self, what, **args):
        """One command of engine.py; returns its answer."""
        self.proc.stdin.write(json.dumps(dict(args, do=what)) + "\n")
        self.proc.stdin.flush()
        line = self.proc.stdout.readline()
        if not line:
            raise NoReply("the engine process ended")
        got = json.loads(line)
        assert "error" not in got, got["error"]
        return got

    def request(self, op, **fields):
        return self.do("request", op=op, fields=fields)

    def ok(self, op, **fields):
        r = self.request(op, **fields)
        assert r["status"] == "OK", r
        return r

    def send(self, op, **fields):
        return self.do("send", op=op, fields=fields)

    def put(self, key, size, seed=1, **fields):
        return self.do("put", key=key, size=size, seed=seed, fields=fields)

    def kill(self):
        self.proc.kill()
        self.proc.wait(WAIT)

    def stop(self):
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self):
        os.kill(self.pid, signal.SIGCONT)

    def close(self):
        if self.proc.poll() is None:
            self.kill()
        self.proc.stdin.close()
        self.proc.stdout.close()
