"""The kvferryds of a deployment: their configuration, their start."""
import fcntl
import os
import re
import socket
import subprocess
import tempfile
import time

import process

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))


def find_kvferryd(build=None):
    """The program: of `build`, of KVF_BUILD, of build-release/, or installed."""
    for d in (build, os.environ.get("KVF_BUILD"),
              os.path.join(ROOT, "build-release")):
        path = d and os.path.join(d, "src", "daemon", "kvferryd")
        if path and os.path.exists(path):
            return os.path.abspath(path)
    for d in os.environ.get("PATH", "").split(":"):
        if os.access(os.path.join(d, "kvferryd"), os.X_OK):
            return os.path.join(d, "kvferryd")
    raise SystemExit("there is no kvferryd: build it first (bench/demo does), "
                     "or name the build folder with --build")


def port_of(base, stage, rank):
    return base + 100 + 16 * rank + stage


def free_base(workers):
    """A base port with which all workers' ports are free now, and will not be
    taken by another deployment of this user that starts at this moment: byte n
    of a file stands for port n, and is locked until the process ends."""
    path = os.path.join(tempfile.gettempdir(), f"kvf-serve-{os.getuid()}.ports")
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    span = max(port_of(0, *w) for w in workers) + 1
    for i in range(40):
        base = 20000 + (os.getpid() + i) % 40 * 300  # below the kernel's own
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, span, base)
        except OSError:
            continue
        try:
            for stage, rank in workers:
                with socket.socket() as s:
                    # As the daemon does: only a listener is in the way.
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    s.bind(("127.0.0.1", port_of(base, stage, rank)))
            return base
        except OSError:
            fcntl.lockf(fd, fcntl.LOCK_UN, span, base)
    raise SystemExit("no free ports: name some with --zmq-port")


class Loopback:
    """Both stages on 127.0.0.1."""
    hosts = ("127.0.0.1", "127.0.0.1")

    def command(self, stage):
        return []

    def close(self):
        pass


class SlowLink:
    """A network namespace for the daemons of each stage and a link of so many
    Mbit/s between them. Needs root."""
    hosts = ("10.99.0.1", "10.99.0.2")

    def __init__(self, mbit):
        self.names = [f"kvfserve{os.getpid()}-{i}" for i in (0, 1)]
        self.sweep()
        try:
            for name in self.names:
                self.ip("netns", "add", name)
            self.ip("link", "add", "kvf0", "netns", self.names[0], "type",
                    "veth", "peer", "name", "kvf1", "netns", self.names[1])
            burst = max(16384, int(mbit * 1e6 / 8 / 250))  # a tick's worth
            for i, name in enumerate(self.names):
                self.ip("-n", name, "addr", "add", f"{self.hosts[i]}/24",
                        "dev", f"kvf{i}")
                for dev in ("lo", f"kvf{i}"):
                    self.ip("-n", name, "link", "set", dev, "up")
                subprocess.run(
                    ["tc", "-n", name, "qdisc", "add", "dev", f"kvf{i}",
                     "root", "tbf", "rate", f"{mbit}mbit", "burst",
                     str(burst), "latency", "100ms"], check=True)
        except (OSError, subprocess.CalledProcessError) as e:
            self.close()
            raise SystemExit(f"no link with a limit: {e} (root, iproute2?)")

    @staticmethod
    def ip(*args, check=True):
        return subprocess.run(["ip", *args], check=check, text=True,
                              capture_output=not check).stdout

    def sweep(self):
        """What a killed one left."""
        for line in (self.ip("netns", "list", check=False) or "").split():
            m = re.fullmatch(r"kvfserve(\d+)-\d", line)
            if m and not os.path.exists(f"/proc/{m.group(1)}"):
                self.ip("netns", "del", line, check=False)

    def command(self, stage):
        return ["ip", "netns", "exec", self.names[stage]]

    def close(self):
        for name in self.names:
            self.ip("netns", "del", name, check=False)


class Daemon:
    """One kvferryd, in the folder `work`."""

    def __init__(self, program, work, stage, rank, args, base, net):
        self.command = net.command(stage)
        self.name = f"kvferryd-{stage}-{rank}"
        self.program, self.work = program, work
        self.endpoint = f"ipc://{work}/e{stage}-{rank}"
        self.ready = os.path.join(work, f"{self.name}.ready")
        self.log = os.path.join(work, f"{self.name}.log")
        self.ini = os.path.join(work, f"{self.name}.ini")
        self.pid = 0
        with open(self.ini, "w", encoding="utf-8") as f:
            f.write(f"""[worker]
cluster = serve
stage = {stage}
rank = {rank}
engine_endpoint = {self.endpoint}

[connector]
host = {net.hosts[stage]}
zmq_port = {base}
memory_pool_size = {args.pool}
protocol = {args.protocol}
drain_ms = 500

[edge 0->1]
from_tp = {args.prefill_tp}
to_tp = {args.decode_tp}
""")
            for r in range(args.prefill_tp):
                f.write(f"""
[peer 0.{r}]
host = {net.hosts[0]}
port = {port_of(base, 0, r)}
""")

    def start(self):
        if os.path.exists(self.ready):
            os.unlink(self.ready)
        parent = os.getpid()
        with open(self.log, "ab") as log:
            # Popen's child would otherwise outlive a supervisor that is killed.
            self.process = subprocess.Popen(
                [*self.command, self.program, self.ini, "--ready-file", self.ready],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=dict(os.environ, XDG_RUNTIME_DIR=self.work),
                preexec_fn=lambda: process.die_with_parent(parent))
        self.pid = self.process.pid

    def wait_ready(self, seconds=30):
        until = time.monotonic() + seconds
        while not (os.path.exists(self.ready)
                   and os.path.getsize(self.ready)):
            if self.process.poll() is not None or time.monotonic() > until:
                with open(self.log, encoding="utf-8") as f:
                    raise SystemExit(f"{self.name} did not start:\n"
                                     f"{f.read()[-1000:]}")
            time.sleep(0.01)
