"""Two network namespaces and a wire between them that can be slow, lossy or
cut.

The wire is this process: it moves packets between two TUN devices, so it needs
no kernel module (sch_netem is not everywhere), and a cut is silent, as when a
cable is pulled somewhere in between. Everything has the process' id in its
name and is gone after close(). `why_not()` tells why there can be none here.
"""
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
CLONE_NEWNET = 0x40000000
HOSTS = ("10.201.77.1", "10.201.77.2")
MTU = 9000
made = 0


def ip(*args):
    return subprocess.run(["ip", *args], check=True, capture_output=True,
                          text=True)


def why_not():
    """None, or the reason why there can be no wire."""
    name = f"kvf{os.getpid()}probe"
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as e:
        return f"no network namespaces: {getattr(e, 'stderr', '') or e}"
    try:
        ip("-n", name, "link", "show")  # needs a / that is a mount: no chroot
        os.close(tun_in(name, "kvfprobe"))
    except subprocess.CalledProcessError as e:
        return f"no network namespaces: {e.stderr.strip()}"
    except OSError as e:
        return f"no TUN device: {e}"
    finally:
        ip("netns", "del", name)
    return None


def tun_in(ns, name):
    """A TUN device in a namespace; a namespace is entered by one thread, which
    ends with it."""
    out = []

    def run():
        libc = ctypes.CDLL(None, use_errno=True)
        ns_fd = os.open(f"/run/netns/{ns}", os.O_RDONLY)
        try:
            if libc.setns(ns_fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, TUNSETIFF,
                        struct.pack("16sH22x", name.encode(),
                                    IFF_TUN | IFF_NO_PI))
            out.append(fd)
        except OSError as e:
            out.append(e)
        finally:
            os.close(ns_fd)
    t = threading.Thread(target=run)
    t.start()
    t.join()
    if isinstance(out[0], OSError):
        raise out[0]
    return out[0]


class Wire:
    """delay in seconds one way, loss as a fraction, rate in bytes a second;
    all may be changed while it runs."""

    def __init__(self, delay=0.0, loss=0.0, rate=None, seed=1):
        global made
        made += 1
        self.delay, self.loss, self.rate = delay, loss, rate
        self.up = True
        self.bytes = self.lost = 0
        self.rng = random.Random(seed)
        self.ns = [f"kvf{os.getpid()}n{made}{side}" for side in "ab"]
        self.fds = []
        self.over = False
        self.wake = os.pipe()
        try:
            for ns, host, peer in zip(self.ns, HOSTS, reversed(HOSTS)):
                ip("netns", "add", ns)
                self.fds.append(tun_in(ns, "kvf0"))
                ip("-n", ns, "addr", "add", host, "peer", peer, "dev", "kvf0")
                ip("-n", ns, "link", "set", "dev", "kvf0", "mtu", str(MTU),
                   "up")
                ip("-n", ns, "link", "set", "dev", "lo", "up")
        except BaseException:
            self.remove()
            raise
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def inside(self, side):
        """What a command begins with to run on side 0 or 1."""
        return ["ip", "netns", "exec", self.ns[side]]

    def cut(self):
        self.up = False

    def join(self):
        self.up = True

    def run(self):
        queue, order, free_at = [], 0, [0.0, 0.0]
        while not self.over:
            wait = 0.2
            if queue:
                wait = max(0.0, queue[0][0] - time.monotonic())
            ready = select.select([*self.fds, self.wake[0]], [], [], wait)[0]
            now = time.monotonic()
            for side, fd in enumerate(self.fds):
                for _ in range(64 if fd in ready else 0):
                    try:
                        packet = os.read(fd, 65536)
                    except BlockingIOError:
                        break
                    if not self.up or (self.loss and
                                       self.rng.random() < self.loss):
                        self.lost += 1
                        continue
                    due = max(now, free_at[side])
                    if self.rate:
                        due += len(packet) / self.rate
                        free_at[side] = due
                    order += 1
                    heapq.heappush(queue, (due + self.delay, order, side,
                                           packet))
            while queue and queue[0][0] <= time.monotonic():
                _, _, side, packet = heapq.heappop(queue)
                if not self.up:
                    continue
                self.bytes += len(packet)
                try:
                    os.write(self.fds[1 - side], packet)
                except OSError:
                    self.lost += 1  # as a full queue would

    def remove(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        for ns in self.ns:
            subprocess.run(["ip", "netns", "del", ns], check=False,
                           capture_output=True)

    def close(self):
        self.over = True
        os.write(self.wake[1], b"x")
        self.thread.join()
        self.remove()
        for fd in self.wake:
            os.close(fd)
