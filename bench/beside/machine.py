"""Processes of bench/compare: two daemons, peers' servers, bare programs.

Everything is started with a death signal, so that nothing outlives the script,
in a session of its own, so that ^C reaches the script alone, and binds 127.0.0.1
only. A program that fails raises Failed with its words.
"""
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BUILD = os.environ.get("KVF_BUILD", os.path.join(ROOT, "build-release"))
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class Failed(Exception):
    pass


def _die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(argv, env=None, output=subprocess.PIPE, cpu=None):
    def prepare():
        _die_with_parent()
        may = sorted(os.sched_getaffinity(0))
        if cpu is not None and len(may) > 1:
            os.sched_setaffinity(0, {may[cpu % len(may)]})
    return subprocess.Popen(argv, env={**os.environ, **(env or {})},
                            stdin=subprocess.DEVNULL, stdout=output,
                            stderr=subprocess.STDOUT, text=True,
                            start_new_session=True, preexec_fn=prepare)


def stop(proc, sig=signal.SIGTERM):
    """The exit status; killed after 10 s."""
    if proc.poll() is None:
        proc.send_signal(sig)
    try:
        return proc.wait(10)
    except subprocess.TimeoutExpired:
        proc.kill()
        return proc.wait()


def output_of(argv, env=None, cpu=None, timeout=120):
    proc = start(argv, env, cpu=cpu)
    try:
        text, _ = proc.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        proc.kill()
        proc.communicate()
        raise Failed(f"{os.path.basename(argv[0])}: no end after {timeout} s")
    if proc.returncode != 0:
        raise Failed(text.strip()[-300:] or f"{argv[0]} failed")
    return text


def program(name):
    return os.path.join(BUILD, "bench", name)


def figures(name, *args):
    """The JSON lines of one of our programs."""
    text = output_of([program(name), *map(str, args)])
    return [json.loads(x) for x in text.splitlines() if x.startswith("{")]


def free_port(span=1):
    """The first of `span` free ports in a row, below the ephemeral ones."""
    for port in range(21000 + os.getpid() % 4000, 30000, span):
        try:
            for p in range(port, port + span):
                with socket.socket() as s:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    s.bind(("127.0.0.1", p))
            return port
        except OSError:
            continue
    raise Failed("no free port")


def wait_for_port(port, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise Failed(f"nothing answers at port {port}")


class Pair:
    """Two daemons, made from config/examples/ with another protocol."""

    def __init__(self, protocol, pool="2304MiB"):
        self.dir = tempfile.mkdtemp(prefix="kvferry-compare.")
        self.procs = []
        self.endpoints = []
        base = free_port(2) - 100
        for stage in (0, 1):
            conf = self._conf(stage, protocol=protocol, zmq_port=base,
                              memory_pool_size=pool)
            self._start(stage, conf)
        for stage in (0, 1):
            self.endpoints.append(self._ready(stage))

    def _conf(self, stage, **keys):
        path = os.path.join(ROOT, "config", "examples", f"stage{stage}.ini")
        with open(path, encoding="utf-8") as f:
            text = f.read()
        for key in keys:
            text = re.sub(rf"(?m)^{key} *=.*\n", "", text)
        lines = "".join(f"{k} = {v}\n" for k, v in keys.items())
        text = text.replace("[connector]\n", "[connector]\n" + lines)
        text += "\n[log]\nlevel = warn\n"
        out = os.path.join(self.dir, f"stage{stage}.ini")
        with open(out, "w", encoding="utf-8") as f:
            f.write(text)
        return out

    def _start(self, stage, conf):
        with open(os.path.join(self.dir, f"log{stage}"), "w",
                  encoding="utf-8") as log:
            self.procs.append(start(
                [os.path.join(BUILD, "src", "daemon", "kvferryd"), conf,
                 "--ready-file", os.path.join(self.dir, f"ready{stage}")],
                {"XDG_RUNTIME_DIR": self.dir}, log))

    def _ready(self, stage, seconds=90):
        path = os.path.join(self.dir, f"ready{stage}")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.procs[stage].poll() is not None:
                with open(os.path.join(self.dir, f"log{stage}"),
                          encoding="utf-8") as f:
                    raise Failed("kvferryd: " + f.read().strip()[-300:])
            if os.path.exists(path):
                with open(path, encoding="utf-8") as f:
                    found = re.search(r" engine=(\S+)", f.read())
                if found:
                    return found.group(1)
            time.sleep(0.05)
        raise Failed("kvferryd is not ready")

    def measure(self, *args):
        return figures("pull_bench", *self.endpoints, *args)

    def pids(self):
        return [p.pid for p in self.procs]

    def close(self):
        status = [stop(p) for p in self.procs]
        shutil.rmtree(self.dir, ignore_errors=True)
        if any(status):
            raise Failed(f"daemons ended with {status}")


class Redis:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="kvferry-compare.")
        self.port = free_port()
        self.proc = start(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1",
             "--save", "", "--appendonly", "no", "--dir", self.dir,
             "--client-query-buffer-limit", "1gb",
             "--client-output-buffer-limit", "normal 0 0 0"],
            output=subprocess.DEVNULL, cpu=0)
        wait_for_port(self.port)

    def measure(self, *args):
        return figures("raw_redis", self.port, self.proc.pid, *args)

    def close(self):
        stop(self.proc)
        shutil.rmtree(self.dir, ignore_errors=True)


def ucx(test, tls, size):
    """GB/s of ucx_perftest."""
    port = str(free_port())
    env = {"UCX_TLS": tls, "UCX_WARN_UNUSED_ENV_VARS": "n",
           "UCX_LOG_LEVEL": "error"}
    if tls == "tcp":
        env["UCX_NET_DEVICES"] = "lo"
    n = max(4, min(1000, (1 << 30) // size))
    server = start(["ucx_perftest", "-p", port], env, subprocess.DEVNULL, 0)
    try:
        time.sleep(0.3)  # it prints nothing when it listens
        text = output_of(
            ["ucx_perftest", "-p", port, "127.0.0.1", "-t", test, "-s",
             str(size), "-n", str(n), "-w", str(max(1, n // 8)), "-f", "-v"],
            env, 1)
    finally:
        stop(server, signal.SIGKILL)
    rows = [x for x in text.splitlines() if re.match(r"\s*\d+,", x)]
    if not rows:
        raise Failed("ucx_perftest: " + text.strip()[-200:])
    return float(rows[-1].split(",")[5]) * (1 << 20) / 1e9


def iperf3():
    """GB/s of one stream."""
    port = str(free_port())
    server = start(["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port],
                   output=subprocess.DEVNULL)
    try:
        time.sleep(0.4)
        j = json.loads(output_of(["iperf3", "-c", "127.0.0.1", "-p", port,
                                  "-t", "2", "-J"]))
    finally:
        stop(server)
    return j["end"]["sum_received"]["bits_per_second"] / 8e9


def activity(pid):
    """Nanoseconds of CPU and voluntary switches of all threads so far."""
    cpu = wakes = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        at = f"/proc/{pid}/task/{task}"
        with open(f"{at}/schedstat", encoding="utf-8") as f:
            cpu += int(f.read().split()[0])
        with open(f"{at}/status", encoding="utf-8") as f:
            wakes += int(re.search(r"(?m)^voluntary_ctxt_switches:\s+(\d+)",
                                   f.read()).group(1))
    return cpu, wakes
