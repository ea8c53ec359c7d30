"""Test guests: Debian's kernel under QEMU's software emulation, with Soft-RoCE.

A Guest boots in some seconds and then runs shell commands that the host sends
over a virtio-serial port; its serial console goes to a file. Two guests can be
joined by a network: datagrams between two sockets in a folder of their own, so
no port of the machine is used. KVM is never used.
Every wait has a deadline, and a guest ends with the process that started it.
"""
import base64
import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import image

BOOT_S = 90  # two guests on two busy cores have been seen to take 40


class GuestError(Exception):
    """A command that failed, a guest that is gone, a deadline."""


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def clock_words():
    """By itself the guest's kernel takes its emulated processors' TSCs for
    unsynchronised, and every look at the clock goes to an emulated device.
    They are the host's, which knows whether they can be trusted."""
    try:
        with open("/sys/devices/system/clocksource/clocksource0/"
                  "current_clocksource", encoding="ascii") as f:
            host = f.read().strip()
    except OSError:
        return []
    return ["tsc=reliable"] if host == "tsc" else []


class Guest:
    """`wire`: (own, other) socket paths of the network between two guests."""

    def __init__(self, files, name="guest", addr="10.0.0.1", wire=None,
                 memory=2048, cpus=2):
        self.name, self.addr = name, addr
        self.dir = tempfile.mkdtemp(prefix="kvf-vm.", dir="/tmp")
        self.console = os.path.join(self.dir, "console")
        self.buf, self.n, self.sock, self.frozen = b"", 0, None, False
        kernel, initrd = files
        agent = self.dir + "/agent"
        words = ["console=ttyS0", "quiet", "panic=1", f"kvf.addr={addr}",
                 f"kvf.name={name}",
                 "kvf.link=" + ("eth" if wire else "dummy")] + clock_words()
        cmd = [image.which("qemu-system-x86_64"), "-machine", "q35,accel=tcg",
               "-cpu", "max", "-m", str(memory), "-smp", str(cpus),
               "-display", "none", "-nodefaults", "-no-reboot",
               "-serial", "file:" + self.console, "-kernel", kernel,
               "-initrd", initrd, "-append", " ".join(words),
               "-qmp", f"unix:{self.dir}/qmp,server=on,wait=off",
               "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
               "-chardev", f"socket,id=agent,path={agent},server=on,wait=off",
               "-device", "virtserialport,chardev=agent,name=kvf"]
        if wire:
            mac = "52:54:00:00:00:%02x" % int(addr.rsplit(".", 1)[1])
            cmd += ["-netdev", "dgram,id=n0,local.type=unix,"
                    f"local.path={wire[0]},remote.type=unix,"
                    f"remote.path={wire[1]}",
                    "-device", "virtio-net-pci,id=nic0,netdev=n0,"
                    f"host_mtu=4200,romfile=,mac={mac}"]
        self.log = open(self.dir + "/qemu.log", "wb")
        self.proc = subprocess.Popen(
            cmd, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            preexec_fn=_die_with_parent)

    # ---- the agent ----------------------------------------------------------

    def _gone(self, what):
        with open(self.dir + "/qemu.log", encoding="utf-8",
                  errors="replace") as f:
            log = f.read()
        return GuestError(f"{self.name}: {what}\n{log[-2000:]}"
                          f"{self.console_text()[-3000:]}")

    def _connect(self, path, until):
        while True:
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(path)
                return s
            except OSError:
                s.close()
            if self.proc.poll() is not None:
                raise self._gone(f"qemu ended with {self.proc.returncode}")
            if time.monotonic() > until:
                raise self._gone("qemu did not open its socket")
            time.sleep(0.02)

    def _read(self, rx, until, show=None):
        """The match of `rx` and what came before it."""
        done = 0
        while True:
            m = rx.search(self.buf)
            end = m.start() if m else max(0, len(self.buf) - 64)
            if show and end > done:
                show(self.buf[done:end])
                done = end
            if m:
                text, self.buf = self.buf[:m.start()], self.buf[m.end():]
                return m, text
            left = until - time.monotonic()
            if left <= 0:
                raise self._gone("deadline passed; the last output:\n"
                                 + self.buf[-3000:].decode(errors="replace"))
            if select.select([self.sock], [], [], min(left, 1.0))[0]:
                got = self.sock.recv(1 << 16)
                if not got:
                    raise self._gone("the guest ended")
                self.buf += got

    def boot(self, seconds=BOOT_S):
        """Waits until the agent answers."""
        until = time.monotonic() + seconds
        self.sock = self._connect(self.dir + "/agent", until)
        self._read(re.compile(rb"\x1eKVF READY\n"), until)
        return self

    def run(self, command, seconds=60, show=None):
        """(status, output) of a shell command; stdout and stderr together.
        Background jobs of it must not keep its output open."""
        self.n += 1
        line = base64.b64encode(command.encode()).decode()
        self.sock.sendall(f"{self.n} {line}\n".encode())
        m, text = self._read(re.compile(rb"\n\x1eKVF %d (\d+)\n" % self.n),
                             time.monotonic() + seconds, show)
        return int(m.group(1)), text.decode(errors="replace")

    def sh(self, command, seconds=60):
        """The output of a command that must succeed."""
        status, text = self.run(command, seconds)
        if status != 0:
            raise GuestError(f"{self.name}: exit {status}: {command}\n{text}")
        return text.strip()

    # ---- the machine ------------------------------------------------------------

    def qmp(self, execute, **arguments):
        until = time.monotonic() + 20
        with contextlib.closing(self._connect(self.dir + "/qmp", until)) as s:
            s.settimeout(20)
            f = s.makefile("rw", encoding="utf-8")
            f.readline()
            for cmd in ({"execute": "qmp_capabilities"},
                        {"execute": execute, "arguments": arguments}):
                f.write(json.dumps(cmd) + "\n")
                f.flush()
                answer = {"event": ""}
                while "event" in answer:
                    answer = json.loads(f.readline())
            if "error" in answer:
                raise GuestError(f"{self.name}: {execute}: {answer['error']}")
            return answer["return"]

    def link(self, up):
        """The carrier of the network between the guests."""
        self.qmp("set_link", name="nic0", up=up)

    def freeze(self):
        """The whole machine stands still, its clock included or not."""
        self.frozen = True
        os.kill(self.proc.pid, signal.SIGSTOP)

    def thaw(self):
        self.frozen = False
        os.kill(self.proc.pid, signal.SIGCONT)

    def console_text(self):
        try:
            with open(self.console, encoding="utf-8", errors="replace") as f:
                return f.read()
        except OSError:
            return ""

    def kill(self):
        """As if the power failed."""
        self.proc.kill()
        self.proc.wait()

    def close(self):
        if self.proc.poll() is None:
            self.kill()
        if self.sock:
            self.sock.close()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextlib.contextmanager
def one(build, extra=(), **kw):
    """A guest with a dummy network device and rxe0, booted."""
    with image.initrd(build, extra) as files, Guest(files, **kw) as g:
        yield g.boot()


class Pair:
    """Two guests, 10.0.0.1 and 10.0.0.2, joined by a network."""

    def __init__(self, files, **kw):
        self.files, self.kw = files, kw
        self.dir = tempfile.mkdtemp(prefix="kvf-net.", dir="/tmp")
        self.guests = [None, None]
        for i in range(2):
            self.start(i)
        for g in self.guests:
            g.boot()

    def start(self, i):
        """Starts guest i, anew if it was killed; boot() waits for it."""
        if self.guests[i]:
            self.guests[i].close()
        ends = [f"{self.dir}/{i}", f"{self.dir}/{1 - i}"]
        self.guests[i] = Guest(self.files, name=f"g{i + 1}",
                               addr=f"10.0.0.{i + 1}", wire=ends, **self.kw)
        return self.guests[i]

    def close(self):
        for g in self.guests:
            if g:
                g.close()
        shutil.rmtree(self.dir, ignore_errors=True)


@contextlib.contextmanager
def two(build, extra=(), **kw):
    with image.initrd(build, extra) as files:
        p = Pair(files, **kw)
        try:
            yield p
        finally:
            p.close()


def stream(data):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
