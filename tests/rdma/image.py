"""The test guest's kernel, modules and files, made from Debian packages.

Happy path: the kernel that `linux-image-amd64` depends on lies in the cache
(else it is downloaded, unpacked and never installed), and payload() packs the
programs of a build with their libraries into a cpio archive. No root is needed:
the archive is written here, device nodes included.
Failure mode: Unavailable, with the reason; the suite is skipped with it.
"""
import contextlib
import fcntl
import glob
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
META = "linux-image-amd64"
# crc32_generic: without it rxe only says "failed to add".
MODULES = ["crc32_generic", "rdma_rxe", "ib_uverbs", "rdma_ucm", "virtio_pci",
           "virtio_net", "virtio_console", "virtio_rng", "dummy", "veth",
           "sch_ingress", "sch_netem", "cls_u32", "act_gact"]
# Programs of the host that the guest has, too; the second list when there.
TOOLS = ["ip", "rdma", "tc"]
EXTRA = ["ibv_devinfo", "ibv_rc_pingpong", "ib_read_bw", "ib_write_bw", "ss",
         "strace", "gdbserver"]
SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"
LAYOUT = "2"  # of the cached archive; another number makes it anew


class Unavailable(Exception):
    """The guest cannot be had here; str() says why."""


def cache_dir():
    d = os.environ.get("KVF_GUEST_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
        "kvferry-guest")
    try:
        os.makedirs(d, exist_ok=True)
    except OSError as e:
        raise Unavailable(f"{d}: {e.strerror} (KVF_GUEST_CACHE names "
                          "another folder)") from None
    return d


def which(name, needed=True):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":" + SBIN)
    if path is None and needed:
        raise Unavailable(f"{name} is not installed (tests/deps)")
    return path


def run(cmd, cwd=None):
    try:
        p = subprocess.run(cmd, cwd=cwd, capture_output=True, text=True,
                           check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable(f"{cmd[0]}: {e}") from None
    if p.returncode != 0:
        text = (p.stderr or p.stdout).strip().splitlines()
        raise Unavailable(f"{' '.join(cmd[:6])}: "
                          f"{text[-1] if text else p.returncode}")
    return p.stdout


class Cpio:
    """An archive of the "newc" kind, which the kernel unpacks at boot."""

    def __init__(self, path):
        self.path, self.ino, self.made = path, 1, set()
        self.f = open(path, "wb")

    def _entry(self, name, mode, data=b"", major=0, minor=0):
        head = "070701" + "".join(f"{v:08X}" for v in (
            self.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor,
            len(name) + 1, 0))
        self.ino += 1
        raw = head.encode() + name.encode() + b"\0"
        self.f.write(raw + b"\0" * (-len(raw) % 4))
        self.f.write(data)
        self.f.write(b"\0" * (-len(data) % 4))

    def dir(self, name):
        if name and name not in self.made:
            self.dir(os.path.dirname(name))
            self.made.add(name)
            self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        name = name.lstrip("/")
        if name in self.made:
            return
        self.dir(os.path.dirname(name))
        self.made.add(name)
        self._entry(name, stat.S_IFREG | mode, data)

    def copy(self, src, name=None):
        with open(src, "rb") as f:
            self.file(name or src, f.read(),
                      0o755 if os.access(src, os.X_OK) else 0o644)

    def link(self, name, target):
        name = name.lstrip("/")
        if name not in self.made:
            self.dir(os.path.dirname(name))
            self.made.add(name)
            self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def node(self, name, major, minor):
        self.dir(os.path.dirname(name))
        self._entry(name, stat.S_IFCHR | 0o600, b"", major, minor)

    def close(self):
        self._entry("TRAILER!!!", 0)
        self.f.write(b"\0" * (-self.f.tell() % 512))
        self.f.close()


# ---- the kernel --------------------------------------------------------------

def package_of(text):
    got = re.findall(r"Depends: (linux-image-[0-9]\S*)", text)
    if not got:
        raise Unavailable(f"apt knows no {META}")
    return got[0]


def download(into):
    """A .deb of the kernel in `into`; the package lists are fetched into a
    folder of our own when the machine's are not there."""
    own = os.path.join(into, "apt")
    os.makedirs(os.path.join(own, "lists/partial"))
    private = ["-o", f"Dir::State::lists={own}/lists",
               "-o", f"Dir::Cache={own}", "-o", "Debug::NoLocking=1"]
    first = None
    for options in ([], private):
        try:
            if options:
                run(["apt-get", *options, "update"])
            package = package_of(run(["apt-cache", *options, "depends", META]))
            run(["apt-get", *options, "download", package], cwd=into)
            return glob.glob(os.path.join(into, "linux-image-*.deb"))[0]
        except Unavailable as e:
            first = first or e
    raise Unavailable(f"the kernel package cannot be had: {first}")


def modules_in_order(tree, release):
    """Paths, each after what it needs."""
    run([which("depmod"), "-b", tree, release])
    order = []
    for m in MODULES:
        out = run([which("modprobe"), "-d", tree, "-S", release,
                   "--show-depends", m])
        for line in out.splitlines():
            word = line.split()
            if word and word[0] == "insmod" and word[1] not in order:
                order.append(word[1])
    return order


def unpacked(path):
    if path.endswith(".xz"):
        return lzma.open(path).read()
    if path.endswith(".gz"):
        return gzip.open(path).read()
    with open(path, "rb") as f:
        return f.read()


def make_kernel(target):
    tmp = tempfile.mkdtemp(dir=cache_dir(), prefix="tmp.")
    try:
        deb = os.environ.get("KVF_GUEST_KERNEL") or download(tmp)
        tree = os.path.join(tmp, "tree")
        run(["dpkg-deb", "-x", deb, tree])
        if not os.path.islink(tree + "/lib") and os.path.isdir(
                tree + "/usr/lib/modules"):
            os.makedirs(tree + "/lib", exist_ok=True)
            os.symlink("../usr/lib/modules", tree + "/lib/modules")
        kernels = glob.glob(tree + "/boot/vmlinuz-*")
        if not kernels:
            raise Unavailable(f"{os.path.basename(deb)} holds no kernel")
        release = os.path.basename(kernels[0])[len("vmlinuz-"):]
        out = os.path.join(tmp, "out")
        os.mkdir(out)
        order = modules_in_order(tree, release)
        c = Cpio(os.path.join(out, "modules.cpio"))
        names = []
        for m in order:
            name = re.sub(r"\.ko.*", ".ko", os.path.basename(m))
            c.file("modules/" + name, unpacked(m))
            names.append(name)
        c.file("modules/order", ("\n".join(names) + "\n").encode())
        c.close()
        shutil.copy(kernels[0], os.path.join(out, "vmlinuz"))
        with open(os.path.join(out, "release"), "w", encoding="utf-8") as f:
            f.write(f"{release}\n")
        shutil.rmtree(target, ignore_errors=True)
        os.rename(out, target)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def kernel():
    """The folder with vmlinuz, modules.cpio and release."""
    if os.uname().machine != "x86_64":
        raise Unavailable(f"the guest is made for x86_64, this is "
                          f"{os.uname().machine}")
    for tool in ("qemu-system-x86_64", "busybox", "dpkg-deb", "depmod",
                 "modprobe", "apt-get", *TOOLS):
        which(tool)
    d = os.path.join(cache_dir(), "kernel-" + LAYOUT)
    with open(os.path.join(cache_dir(), "lock"), "w",
              encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(os.path.join(d, "release")):
            make_kernel(d)
    return d


# ---- the files -----------------------------------------------------------------

def libraries(path):
    """What ldd resolves, the loader included."""
    p = subprocess.run(["ldd", path], capture_output=True, text=True,
                       check=False)
    if "not found" in p.stdout:
        raise Unavailable(f"{path}: a library is missing:\n{p.stdout}")
    return re.findall(r"(/\S+) \(0x", p.stdout)


def is_elf(path):
    with open(path, "rb") as f:
        return f.read(4) == b"\x7fELF"


def add_program(c, path, name=None):
    c.copy(path, name)
    if is_elf(path):
        for lib in libraries(path):
            c.copy(os.path.realpath(lib), lib)


def add_driver(c):
    """libibverbs finds rxe by a file in /etc and a plug-in by its name."""
    plugins = glob.glob("/usr/lib/*/libibverbs/librxe-*.so")
    if not plugins or not os.path.exists("/etc/libibverbs.d/rxe.driver"):
        raise Unavailable("ibverbs-providers is not installed (tests/deps)")
    for p in plugins:
        add_program(c, p)
    c.copy("/etc/libibverbs.d/rxe.driver")


def in_build(build, patterns):
    """Files of a build folder that match, without those meson makes."""
    found = []
    for p in patterns:
        got = [x for x in glob.glob(os.path.join(build, p))
               if os.path.isfile(x) and not x.endswith((".a", ".p", ".json"))]
        found += sorted(got)
    return found


PAYLOAD = ["src/daemon/kvferryd", "src/cli/kvferry", "src/client/*.so*",
           "tests/conformance/test_*", "tests/rdma/*", "bench/*"]


def payload(build, path, extra=()):
    """Writes the archive: /bin, the init script, and below /b the programs
    of the build folder at their places. `extra`: more files, as SOURCE or
    SOURCE=NAME."""
    c = Cpio(path)
    for d in ("proc", "sys", "dev", "tmp", "run", "root", "etc", "var"):
        c.dir(d)
    c.node("dev/console", 5, 1)
    c.node("dev/null", 1, 3)
    add_program(c, os.path.realpath(which("busybox")), "/bin/busybox")
    c.link("/usr/bin/busybox", "/bin/busybox")
    c.link("/bin/sh", "busybox")
    for t in TOOLS:
        add_program(c, os.path.realpath(which(t)), "/bin/" + t)
    for t in EXTRA:
        at = which(t, needed=False)
        if at is not None:
            add_program(c, os.path.realpath(at), "/bin/" + t)
    add_driver(c)
    c.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    c.file("/etc/group", b"root:x:0:\n")
    c.file("/etc/hosts", b"127.0.0.1 localhost\n")
    c.file("/etc/nsswitch.conf", b"hosts: files\n")
    c.copy(os.path.join(HERE, "init"), "/init")
    if build is not None:
        for p in in_build(build, PAYLOAD):
            add_program(c, p, "/b/" + os.path.relpath(p, build))
            if ".so" in p:
                c.copy(p)  # where an RPATH of the build may look
    for x in extra:
        src, _, name = x.partition("=")
        add_program(c, src, name or "/x/" + os.path.basename(src))
    c.close()


@contextlib.contextmanager
def initrd(build, extra=()):
    """A file with everything; gone at the end."""
    k = kernel()
    fd, path = tempfile.mkstemp(prefix="kvf-initrd.")
    os.close(fd)
    try:
        payload(build, path + ".p", extra)
        with open(path, "wb") as out:
            for part in (os.path.join(k, "modules.cpio"), path + ".p"):
                with open(part, "rb") as f:
                    shutil.copyfileobj(f, out, io.DEFAULT_BUFFER_SIZE * 64)
        yield os.path.join(k, "vmlinuz"), path
    finally:
        for p in (path, path + ".p"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(p)
