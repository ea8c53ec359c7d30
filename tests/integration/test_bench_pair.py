"""kvferry bench --mode target and --mode initiator: real pairs over shm and
tcp, wrong bytes that --verify must see, a target that dies, wrong options."""
import json
import os
import re
import signal
import subprocess
import threading
import time

import pytest

import kvf
from kvf_base import BUILD, NoReply, SLOW, STATUSES, short_tmp, until

KVFERRY = os.environ.get("KVFERRY") or os.path.join(BUILD, "src", "cli",
                                                    "kvferry")
CODE = {name: i for i, name in enumerate(STATUSES)}
USAGE = 64
LINE = re.compile(
    r"kvferry-bench target=(\S+:\d+) window=(\S+) size=(\d+) offset=(\d+) "
    r"engine=(\S+) daemon_pid=(\d+) pid=(\d+)\n")


def popen(*args, **kw):
    env = {**kvf.sanitizer_env(), "KVFERRYD": kvf.KVFERRYD}
    return subprocess.Popen(
        [KVFERRY, "bench", "--kvferryd", kvf.KVFERRYD, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        **kw)


def finish(p, seconds=40):
    out, err = p.communicate(timeout=seconds * SLOW)
    assert not kvf.SANITIZER.search(err), err
    return p.returncode, out, err


def run(*args, rc=0):
    got, out, err = finish(popen(*args))
    assert got == rc, (args, got, out, err)
    return out, err


class Target:
    def __init__(self, *args):
        self.proc = popen("--mode", "target", *args)
        self.line = self.proc.stdout.readline()
        m = LINE.fullmatch(self.line)
        assert m, self.line + self.proc.stderr.read()
        self.at, self.window, self.engine = m[1], m[2], m[5]
        self.size, self.offset = int(m[3]), int(m[4])
        self.daemon_pid = int(m[6])
        self.own = "--engine" not in args

    def end(self):
        self.proc.send_signal(signal.SIGTERM)
        return finish(self.proc)


@pytest.fixture
def target(make):
    made = []

    def start(*args):
        made.append(Target(*args))
        return made[-1]
    yield start
    for t in made:
        if t.proc.poll() is None:
            rc, out, err = t.end()
            assert (rc, out) == (0, ""), out + err
        if t.own:
            until(lambda: not os.path.exists(f"/proc/{t.daemon_pid}"),
                  "its daemon has ended with it")
            assert not os.path.exists(os.path.dirname(t.engine[6:]))


def initiate(t, *args, rc=0, warmup=2):
    out, err = run("--mode", "initiator", "--segment-id", t.at, "--json",
                   "--warmup", warmup, *args, rc=rc)
    return json.loads(out), err


@pytest.mark.parametrize("protocol", ["shm", "tcp"])
@pytest.mark.parametrize("operation", ["read", "write"])
def test_pair(target, protocol, operation):
    t = target("--protocol", protocol)
    for depth, more in ((1, []), (3, []), (2, ["--cold"])):
        r, _ = initiate(t, "--operation", operation, "--protocol", protocol,
                        "--count", 12, "--depth", depth, "--batch-size", 16,
                        *more)
        assert (r["operation"], r["transport"], r["requests"], r["blocks"],
                r["bytes"]) == (operation, protocol, 12, 192, 192 * 65536)
        assert 0 < r["p50_us"] <= r["p90_us"] <= r["p99_us"] <= r["p999_us"]
        assert r["p999_us"] <= r["max_us"]
        assert 0 < r["transfer_us"] <= r["daemon_us"] <= r["max_us"]
        assert 0 <= r["ask_us"] <= r["daemon_us"]
        assert r["GBps"] == pytest.approx(r["bytes"] / r["seconds"] / 1e9,
                                          rel=0.01)
        assert r["ops_per_s"] == pytest.approx(r["req_per_s"] * 16, rel=0.01)
        assert r["initiator_cpu_s_per_GB"] > 0
        assert r["target_cpu_s_per_GB"] >= 0
        assert (r["failed_blocks"], r["retries"], r["wrong_blocks"]) == (
            0, 0, 0)


@pytest.mark.parametrize("protocol", ["shm", "tcp"])
@pytest.mark.parametrize("block", [1, 4096, 65536 + 7])
def test_verify(target, protocol, block):
    """Also one after the other on one target: a write leaves nothing that a
    read would take for wrong."""
    t = target("--protocol", protocol)
    for operation in ("write", "read", "write"):
        r, _ = initiate(t, "--operation", operation, "--protocol", protocol,
                        "--verify", "--count", 6, "--depth", 2,
                        "--batch-size", 5, "--block-size", block)
        assert (r["verified_blocks"], r["wrong_blocks"], r["failed_blocks"]) \
            == (8 * 5, 0, 0)  # the warm-up is verified too
        assert r["target_cpu_s_per_GB"] is None


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_batch_of_many_requests(target, operation):
    """The daemon takes 1024 segments a request: 2500 blocks are three of
    them, and still one batch."""
    t = target("--protocol", "shm", "--buffer-size", "64MiB")
    args = ["--operation", operation, "--protocol", "shm", "--batch-size",
            2500, "--block-size", 4096, "--depth", 2, "--count", 4]
    r, _ = initiate(t, "--verify", *args)
    assert (r["requests"], r["blocks"], r["bytes"]) == (4, 10000, 40960000)
    assert (r["verified_blocks"], r["wrong_blocks"], r["failed_blocks"]) == \
        (6 * 2500, 0, 0)
    r, _ = initiate(t, "--cold", *args)
    assert (r["requests"], r["blocks"], r["failed_blocks"]) == (4, 10000, 0)
    assert r["req_per_s"] == pytest.approx(r["ops_per_s"] / 2500, rel=0.01)


class Owner:
    """A target of the test's own: it obeys orders as it likes."""

    def __init__(self, daemon, size=1 << 20, says=None):
        self.c = daemon.engine()
        self.data = self.c.ok("expose", name="bench", size=size,
                              writable=True)
        self.ctl = self.c.ok("expose", name="bench.ctl", size=8192,
                             writable=True)
        self.pool = self.c.pool()
        self.at = f"{daemon.peer_host}:{daemon.peer_port}"
        self.poke(self.ctl, 0, (0x6b76622d70616972, says or size, 0, 0))
        self.over = False
        self.orders = []

    def poke(self, win, at, numbers):
        for i, n in enumerate(numbers):
            o = win["offset"] + at + 8 * i
            self.pool[o:o + 8] = n.to_bytes(8, "little")

    def serve(self, wrong):
        while not self.over:
            try:
                e = self.c.event(timeout=0.2, event="written")
            except NoReply:
                continue
            o = [int.from_bytes(e["notify"][i:i + 8], "big")
                 for i in range(0, 56, 8)]
            self.orders.append(o)
            self.poke(self.ctl, 32 + 512 + 8 * o[1], [wrong(o)])
            self.poke(self.ctl, 32 + 8 * o[1], [o[2]])


def owned(daemon, args, wrong=lambda o: 0, rc=0, says=None):
    owner = Owner(daemon, says=says)
    t = threading.Thread(target=owner.serve, args=(wrong,))
    t.start()
    try:
        r, err = initiate(owner, "--count", 3, "--batch-size", 4, *args, rc=rc,
                          warmup=0)
    finally:
        owner.over = True
        t.join()
        owner.c.ok("unexpose", window=owner.data["window"])
        owner.c.ok("unexpose", window=owner.ctl["window"])
    return owner, r, err


CLUSTER = {"worker": {"cluster": "kvferry-bench"}}


def test_wrong_bytes_of_a_read_are_seen(make):
    """This target does not fill its window."""
    _, r, err = owned(make(conf=CLUSTER), ["--verify"], rc=CODE["CORRUPT"])
    assert (r["verified_blocks"], r["wrong_blocks"]) == (12, 12)
    assert "wrong bytes" in err


def test_wrong_bytes_of_a_write_are_told(make):
    """A check that finds one bad block makes the run CORRUPT."""
    owner, r, _ = owned(make(conf=CLUSTER), ["--verify", "--operation",
                                             "write"],
                        wrong=lambda o: o[0] == 2 and o[2] % 2,
                        rc=CODE["CORRUPT"])
    assert r["verified_blocks"] == 12 and 1 <= r["wrong_blocks"] <= 2
    checks = [o for o in owner.orders if o[0] == 2]
    assert [o[4] for o in checks] == [4 * 65536] * 3


@pytest.mark.parametrize("verify", [False, True])
def test_a_request_of_a_batch_fails_with_its_own_blocks(make, verify):
    """The window is smaller than it says: of two requests a batch the second
    is out of its bounds."""
    owner, r, err = owned(
        make(conf=CLUSTER), ["--operation", "write", "--batch-size", 1500,
                             "--block-size", 1024] + ["--verify"] * verify,
        rc=CODE["FAILED"], says=1 << 21)
    assert (r["requests"], r["blocks"], r["failed_blocks"]) == (
        0, 3 * 1024, 3 * 476)
    assert (r["verified_blocks"], r["wrong_blocks"]) == (
        3 * 1024 * verify, 0)
    checks = [o for o in owner.orders if o[0] == 2]
    assert [(o[3], o[4]) for o in checks] == [(0, 1 << 20)] * 3 * verify
    assert "3 requests failed" in err and "INVALID" in err


def test_a_byte_broken_at_the_target_is_seen(target, make):
    """The target fills its window, one byte is changed behind its back, and
    its own eyes find the block."""
    d = make(conf=CLUSTER)
    t = target("--engine", d.endpoint, "--buffer-size", "16MiB")
    host, port = t.at.rsplit(":", 1)
    c = make(1, conf=CLUSTER).engine()
    where = {"target": {"host": host, "port": int(port)}}
    buf = c.alloc(8192)
    seqs = iter(range(1, 100))

    def order(what, offset, length):
        seq = next(seqs)
        o = (what, 5, seq, offset, length, 65536, 4711)
        c.ok("write", window="bench.ctl", target_offset=4096,
             segments=[{"buffer": buf["buffer"], "offset": 4096,
                        "length": 8}],
             notify=b"".join(n.to_bytes(8, "big") for n in o), **where)

        def answered():
            c.ok("read", window="bench.ctl", segments=[
                {"buffer": buf["buffer"], "length": 4096}], **where)
            n = [int.from_bytes(c.peek(buf, 8, 32 + o), "little")
                 for o in (8 * 5, 512 + 8 * 5)]
            return [n[1]] if n[0] == seq else None
        return until(answered, "answered")[0]
    order(1, 0, 1 << 20)
    assert order(2, 0, 1 << 20) == 0
    pool = d.engine().pool()
    at = t.offset + 3 * 65536 + 12345
    pool[at] ^= 1
    assert order(2, 0, 1 << 20) == 1
    assert order(2, 0, 3 * 65536) == 0
    assert order(2, 3 * 65536, 65536) == 1
    pool[at] ^= 1
    assert order(2, 0, 1 << 20) == 0
    c.ok("write", window="bench.ctl", target_offset=4096, segments=[
        {"buffer": buf["buffer"], "length": 8}], notify=b"nonsense", **where)
    assert order(2, 0, 1 << 20) == 0


def test_target_killed_in_the_run(target):
    """The run goes on, counts what failed and says so."""
    t = target("--protocol", "tcp")
    i = popen("--mode", "initiator", "--segment-id", t.at, "--json",
              "--protocol", "tcp", "--duration", "4", "--timeout", "1")
    line = i.stderr.readline()  # the first progress line: it is running
    assert re.search(r"GB/s .* 0 failed", line), line
    t.proc.kill()
    until(lambda: not os.path.exists(f"/proc/{t.daemon_pid}"),
          "its daemon goes with it")
    t.proc.communicate()
    os.system(f"rm -rf {os.path.dirname(t.engine[6:])}")
    rc, out, err = finish(i)
    r = json.loads(out)
    assert rc == CODE["FAILED"], err
    assert r["requests"] > 0 and r["failed_blocks"] >= 128
    assert r["failed_blocks"] <= 128 * 100  # it paused between attempts
    assert r["target_cpu_s_per_GB"] is None
    # STALE: the daemon saw the target's engine go before it went itself.
    assert re.search("PEER_UNREACHABLE|NOT_FOUND|TIMEOUT|TRANSPORT|STALE", err)


def test_initiator_is_interrupted(target):
    t = target()
    i = popen("--mode", "initiator", "--segment-id", t.at, "--duration",
              "600")
    i.stderr.readline()
    i.send_signal(signal.SIGINT)
    rc, out, _ = finish(i)
    assert rc == 0 and "Test completed: duration" in out


def test_target_ends_while_its_ping_is_unanswered(target, make):
    """The answer's place must outlive the loop: closing fails what is open."""
    d = make(conf=CLUSTER)
    t = target("--engine", d.endpoint, "--buffer-size", "16MiB")
    d.proc.send_signal(signal.SIGSTOP)
    try:
        time.sleep(1.5)  # it pings once a second
        rc, out, err = t.end()
    finally:
        d.proc.send_signal(signal.SIGCONT)
    assert (rc, out, err) == (0, "", "")


def test_two_initiators_and_running_daemons(target, make):
    d = make(conf=CLUSTER)
    t = target("--engine", d.endpoint, "--window", "other", "--buffer-size",
               "16MiB")
    other = make(1, conf=CLUSTER)
    args = ["--mode", "initiator", "--segment-id", t.at, "--window", "other",
            "--duration", "1", "--json"]
    both = [popen(*args), popen(*args, "--operation", "write", "--engine",
                                other.endpoint)]
    for p in both:
        rc, out, err = finish(p)
        assert rc == 0 and json.loads(out)["failed_blocks"] == 0, err
    _, err = run("--mode", "target", "--engine", d.endpoint, "--window",
                 "other", "--buffer-size", "16MiB", rc=CODE["EXISTS"])
    assert "EXISTS" in err


def test_words_of_mooncakes_tools(target):
    out_dir = short_tmp()
    ready = os.path.join(out_dir, "ready")
    t = target("--local_server_name=127.0.0.1", "--operation=read",
               "--metadata_server=P2PHANDSHAKE", "--protocol=tcp",
               "--device_name=mlx5_0", "--use_vram=false", "--threads=2",
               "--buffer_size=33554432", f"--ready_file={ready}",
               "--auto_discovery=false", "--backend=classic")
    with open(ready, encoding="utf-8") as f:
        assert f.read() == t.line
    os.unlink(ready)
    os.rmdir(out_dir)
    assert t.size == 33554432
    out, err = run(
        "-mode=initiator", "--metadata_server=P2PHANDSHAKE", "--threads=2",
        f"--segment_id={t.at}", "--local_server_name=127.0.0.1:12346",
        "--operation=write", "--protocol=tcp", "--block_size=65536",
        "--batch_size=128", "--duration=1", "--report_unit=MiB",
        "--report_precision=1", "--init_mem=false")
    last = out.splitlines()[-1]
    assert re.fullmatch(r"Test completed: duration \d+\.\d\d, batch count \d+"
                        r", throughput \d+\.\d MiB/s", last)
    assert "depth 2" in out


def matrix(tmp_path, text):
    path = tmp_path / "matrix.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize("args", [
    # transfer_engine_bench and rdma_transport_test, as their users write it:
    # no --mode is an initiator, every boolean of gflags, one dash or two.
    ["--metadata_server=P2PHANDSHAKE", "--operation=read", "--duration=1",
     "--protocol=tcp", "--block_size=65536", "--batch_size=128",
     "--buffer_size=1073741824", "--threads=1", "--report_unit=GiB",
     "--report_precision=3", "--backend=classic", "--use_vram=false",
     "--init_mem=true", "--auto_discovery=false"],
    ["-metadata_server", "P2PHANDSHAKE", "-operation", "write", "-duration",
     "1", "-protocol", "tcp", "-device_name", "erdma_0,erdma_1",
     "-nouse_vram", "-noauto_discovery", "-logtostderr"],
    ["--metadata_server=P2PHANDSHAKE", "--protocol=tcp", "--duration=1",
     "--use_vram=0", "--auto_discovery", "--device_name=mlx5_2",
     "--nic_priority_matrix=", "--backend=tent", "--noinit_mem"],
    ["--metadata_server=P2PHANDSHAKE", "--protocol=tcp", "--duration=1",
     "--use_vram", "no", "--auto_discovery", "true",
     "--nic_priority_matrix=/nonexistent", "--init_mem", "false"],
])
def test_command_lines_of_mooncakes_tools(target, args):
    t = target("--protocol=tcp")
    out, _ = run("--segment_id=" + t.at, "--local_server_name=127.0.0.1",
                 *args)
    unit = "GiB" if "--report_unit=GiB" in args else "GB"
    digits = 3 if "--report_precision=3" in args else 2
    assert re.fullmatch(rf"Test completed: duration \d+\.\d\d, batch count \d+"
                        rf", throughput \d+\.\d{{{digits}}} {unit}/s",
                        out.splitlines()[-1])


@pytest.mark.parametrize("text,device", [
    ('{"cpu:0": [["mlx9_7", "b"], ["c"]], "cpu:1": [["d"], []]}', "mlx9_7"),
    ('{"cpu:0": [[], ["mlx9_8"]]}', "mlx9_8"),
    ('{"cpu:0": [[], []]}', None), ("{", None), ('{"cpu:0": 7}', None),
    ('{"cpu:0": [[7]]}', None)])
def test_nic_priority_matrix(tmp_path, text, device):
    """The daemon is asked for that device, which is not here; without one it
    says that there is none at all, or starts."""
    p = popen("--mode", "target", "--protocol", "rdma",
              f"--nic_priority_matrix={matrix(tmp_path, text)}",
              "--device_name=mlx9_1")
    line = p.stdout.readline()
    if line:
        p.send_signal(signal.SIGTERM)
    _, out, err = finish(p)
    assert ("names no device" in err) == (device is None)
    assert line or (device or "mlx9_1") in err or "verbs" in err, err


def test_target_on_a_port_in_use(target):
    t = target()
    port = t.at.rsplit(":", 1)[1]
    out, err = run("--mode", "target", "--local_server_name",
                   f"127.0.0.1:{port}", rc=CODE["PEER_UNREACHABLE"])
    assert out == "" and "kvferryd did not start" in err and port in err


def test_no_daemon_at_that_port(target):
    """Something listens there that is no kvferryd, or does not answer."""
    import socket
    for answer in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            i = popen("--mode", "initiator", "--timeout", "700ms",
                      "--segment-id", f"127.0.0.1:{s.getsockname()[1]}")
            c, _ = s.accept()
            c.sendall(answer)
            rc, out, err = finish(i)
            c.close()
        assert (rc, out) == (CODE["PEER_UNREACHABLE"], ""), err


def test_port_of_the_target(target):
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    t = target("--local-server-name", f"127.0.0.1:{port}")
    assert t.at == f"127.0.0.1:{port}"


@pytest.mark.parametrize("args,says", [
    ([], "needs --segment-id"),
    (["--segment-id", "nowhere"], "bad value nowhere of --segment-id"),
    (["--segment-id", "h:1", "--block-size", "0"], "bad value 0"),
    (["--segment-id", "h:1", "--batch-size", "x"], "bad value x"),
    (["--segment-id", "h:1", "--report_unit=XB"], "bad value XB"),
    (["--segment-id", "h:1", "--operation", "erase"], "bad value erase"),
    (["--segment-id", "h:1", "--block-size", "1TiB"], "above 1TiB"),
    (["--segment-id", "h:1", "--metadata-server", "10.0.0.1:2379"],
     "only P2PHANDSHAKE"),
    (["--segment-id", "h:1", "--use-vram", "true"], "not supported yet"),
    (["--segment-id", "h:1", "--use_vram"], "not supported yet"),
    (["--segment-id", "h:1", "--npu-id", "1"], "not supported yet"),
    (["--segment-id", "h:1", "--gpu_id=0"], "not supported yet"),
    (["--segment-id", "h:1", "--use_vram=T"], "not supported yet"),
    (["--segment-id", "h:1", "--use_vram=1"], "not supported yet"),
    (["--segment-id", "h:1", "--use_vram=perhaps"], "bad value perhaps"),
    (["--segment-id", "h:1", "--auto_discovery=2"], "bad value 2"),
    (["--segment-id", "h:1", "--backend=new"], "bad value new"),
    (["--segment-id", "h:1", "--protocol=nvlink"], "not supported yet"),
    (["--segment-id", "h:1", "--protocol=barex"], "not supported yet"),
    (["--segment-id", "h:1", "--nonsense"], "bad option"),
    (["--segment-id", "h:1", "extra"], "takes no argument"),
])
def test_wrong_options(args, says):
    out, err = run("--mode", "initiator", *args, rc=USAGE)
    assert says in err and out == ""


def test_nobody_there_and_too_small(target):
    out, err = run("--mode", "initiator", "--segment-id", "127.0.0.1:1",
                   "--timeout", "500ms", rc=CODE["PEER_UNREACHABLE"])
    assert out == "" and "127.0.0.1:1" in err
    t = target("--buffer-size", "8MiB")
    _, err = run("--mode", "initiator", "--segment-id", t.at, "--depth", 2,
                 rc=CODE["INVALID"])
    assert "give it --buffer-size" in err
    _, err = run("--mode", "initiator", "--segment-id", t.at, "--batch-size",
                 60000, "--block-size", 1, "--depth", 300, rc=USAGE)
    assert "17700 requests at once, the daemon takes 16384" in err


def test_daemon_that_cannot_start():
    _, err = run("--mode", "target", "--protocol", "carrier-pigeon",
                 rc=CODE["PEER_UNREACHABLE"])
    assert "kvferryd did not start" in err and "carrier-pigeon" in err
    _, err = run("--mode", "target", "--kvferryd", "/nonexistent",
                 rc=CODE["PEER_UNREACHABLE"])
    assert "/nonexistent" in err
