"""The `kvferry` command against real daemons: files in and out, looking,
administration, doctor, bench, exit statuses and what it says when it fails."""
import json
import os
import re
import resource
import socket
import stat
import subprocess

import pytest

import kvf
from kvf_base import BUILD, MIB, SLOW, STATUSES, ini, pattern, until, xxh3

KVFERRY = os.environ.get("KVFERRY") or os.path.join(BUILD, "src", "cli",
                                                    "kvferry")
CODE = {name: i for i, name in enumerate(STATUSES)}
USAGE, IO = 64, 74
SUBCOMMANDS = ("put get ls status fail cleanup peer drain doctor bench "
               "version").split()


class Done:
    def __init__(self, p):
        self.rc, self.out = p.returncode, p.stdout
        self.err = p.stderr.decode(errors="replace")
        self.text = p.stdout.decode(errors="replace")


def run(*args, rc=0, input_=b"", env=None, preexec=None, seconds=20):
    p = subprocess.run([KVFERRY, *map(str, args)], input=input_,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       env={**kvf.sanitizer_env(), **(env or {})},
                       preexec_fn=preexec, timeout=seconds * SLOW,
                       check=False)
    done = Done(p)
    assert done.rc == rc, (args, done.rc, done.text[-2000:], done.err)
    assert not kvf.SANITIZER.search(done.err), done.err
    return done


def at(daemon, sub, *args, **kw):
    return run(sub, "--endpoint", daemon.endpoint, *args, **kw)


def start(daemon, sub, *args):
    return subprocess.Popen(
        [KVFERRY, sub, "--endpoint", daemon.endpoint, *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=kvf.sanitizer_env())


def parked(daemon):
    return daemon.stats()["keys"]["parked"]


def source(daemon):
    return f"{daemon.peer_host}:{daemon.peer_port}"


# ---- put and get ----------------------------------------------------------

@pytest.mark.parametrize("size", [1, 65536, 65537, 5 * MIB])
def test_files_go_through(pair, tmp_path, size):
    data = pattern(size, 3)
    (tmp_path / "in").write_bytes(data)
    p = at(pair.src, "put", "k:0_1", tmp_path / "in")
    assert re.fullmatch(rf"key=k:0_1 size={size} gen=\d+ source="
                        rf"127.0.0.1:{pair.src.peer_port}\n", p.text)
    g = at(pair.dst, "get", "k:0_1", "-o", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert g.text == "" and f"size={size} " in g.err


@pytest.mark.parametrize("size", [1, 65536, 5 * MIB])
def test_standard_input_and_output(pair, size):
    data = pattern(size, 4)
    at(pair.src, "put", "k", "-", input_=data)
    assert at(pair.dst, "get", "k").out == data
    at(pair.src, "put", "k", "-", input_=data)
    assert at(pair.dst, "get", "k", "-o", "-").out == data


@pytest.mark.parametrize("mode,said", [
    ("auto", "view"), ("view", "view"), ("copy", "copy"),
    ("inline", "inline")])
def test_modes(pair, tmp_path, mode, said):
    data = pattern(40000 if mode == "inline" else 200000, 5)
    (tmp_path / "in").write_bytes(data)
    at(pair.src, "put", "k", tmp_path / "in")
    g = at(pair.dst, "get", "k", "--mode", mode)
    assert g.out == data and f"mode={said} " in g.err


def test_inline_too_large(pair):
    at(pair.src, "put", "k", "-", input_=pattern(70000))
    g = at(pair.dst, "get", "k", "--mode", "inline", rc=CODE["TOO_LARGE"])
    assert "TOO_LARGE" in g.err and g.out == b""
    assert at(pair.dst, "get", "k").out == pattern(70000)


def test_from_and_source(pair_of):
    pair = pair_of(dst_conf={"worker": {"rank": 0}})
    for who in (["--from", "0"], ["--from", "0.0"], ["--from", "0.0.0"],
                ["--source", source(pair.src)]):
        at(pair.src, "put", "k", "-", input_=b"abc")
        assert at(pair.dst, "get", "k", *who).out == b"abc"
    at(pair.dst, "get", "k2", "--source", "127.0.0.1:1", "--timeout",
       "100ms", rc=CODE["PEER_UNREACHABLE"])
    g = at(pair.dst, "get", "k2", "--from", "7", rc=CODE["INVALID"])
    assert "7.0.0" in g.err


def test_meta_reaches_the_reader(pair):
    at(pair.src, "put", "k", "-", "--meta", "shape=3x4", input_=b"abc")
    r = pair.b.ok("get", key="k")
    assert r["meta"] == b"shape=3x4"
    pair.b.ok("release", buffer=r["buffer"])


def test_ttl(pair):
    at(pair.src, "put", "k", "-", "--ttl", "100ms", input_=b"abc")
    until(lambda: '"expired"' in at(pair.src, "ls", "--json").text, "expired")
    at(pair.dst, "get", "k", rc=CODE["EXPIRED"])
    at(pair.src, "put", "k", "-", "--ttl", "0", rc=USAGE)


def test_readers(pair):
    at(pair.src, "put", "k", "-", "--readers", "2", input_=b"abc")
    assert at(pair.dst, "get", "k").out == b"abc"
    assert at(pair.dst, "get", "k").out == b"abc"
    at(pair.dst, "get", "k", "--timeout", "2s", rc=CODE["CONSUMED"])
    at(pair.src, "put", "k", "-", "--readers", "0", input_=b"xyz")
    for _ in range(4):
        assert at(pair.dst, "get", "k").out == b"xyz"


def test_reject(pair):
    at(pair.src, "put", "k", "-", "--reject", input_=b"one")
    p = at(pair.src, "put", "k", "-", "--reject", input_=b"two",
           rc=CODE["EXISTS"])
    assert "EXISTS" in p.err
    at(pair.src, "put", "k", "-", input_=b"three")
    assert at(pair.dst, "get", "k").out == b"three"


@pytest.mark.parametrize("mode", ["view", "copy", "inline"])
def test_checksum_and_verify(pair, mode):
    data = pattern(50000, 6)
    at(pair.src, "put", "k", "-", "--checksum", input_=data)
    assert at(pair.dst, "get", "k", "--verify", "--mode", mode).out == data
    at(pair.src, "put", "k", "-", input_=data)  # none to verify: no failure
    assert at(pair.dst, "get", "k", "--verify", "--mode", mode).out == data


def test_verify_finds_a_changed_byte(pair):
    data = pattern(200000, 6)
    buf = pair.a.filled(data)
    pair.a.ok("put", key="k", segments=[{"buffer": buf["buffer"]}],
              checksum=True, readers=0)
    pair.a.fill(buf, b"\xff\xfe", at=777)  # what an engine must not do
    r = at(pair.dst, "get", "k", "--verify", "--mode", "view",
           rc=CODE["CORRUPT"])
    assert r.out == b"" and "CORRUPT" in r.err
    assert xxh3(data) != xxh3(pair.a.peek(buf))


def test_no_wait_and_timeout(pair):
    pair.meet()
    at(pair.dst, "get", "k", "--no-wait", rc=CODE["NOT_FOUND"])
    g = at(pair.dst, "get", "k", "--timeout", "100ms", rc=CODE["TIMEOUT"])
    assert "TIMEOUT" in g.err
    at(pair.src, "put", "k", "-", input_=b"abc")
    assert at(pair.dst, "get", "k", "--no-wait").out == b"abc"


def test_generation(pair):
    p = at(pair.src, "put", "k", "-", input_=b"one")
    gen = int(re.search(r"gen=(\d+)", p.text).group(1))
    at(pair.src, "put", "k", "-", "--readers", "0", input_=b"two")
    at(pair.dst, "get", "k", "--generation", gen, rc=CODE["STALE"])
    at(pair.dst, "get", "k", "--generation", gen + 10 ** 6, "--timeout",
       "100ms", rc=CODE["TIMEOUT"])
    assert at(pair.dst, "get", "k").out == b"two"


def test_get_that_waits(pair):
    pair.meet()
    g = start(pair.dst, "get", "late")
    until(lambda: parked(pair.src) == 1, "parked")
    at(pair.src, "put", "late", "-", input_=b"here")
    out, err = g.communicate(timeout=20 * SLOW)
    assert (g.returncode, out) == (0, b"here"), err


def test_wait_retired(pair):
    p = start(pair.src, "put", "k", __file__, "--wait-retired")
    until(lambda: "published" in at(pair.src, "ls").text, "published")
    at(pair.dst, "get", "k")
    out, err = p.communicate(timeout=20 * SLOW)
    assert p.returncode == 0, err
    event = json.loads(out.decode().splitlines()[-1])
    assert (event["event"], event["key"], event["reason"],
            event["readers_done"]) == ("retired", "k", "consumed", 1)


def test_push_wait_retired(pair):
    pair.src.knows(pair.dst)
    p = start(pair.src, "put", "k", __file__, "--wait-retired", "--to", "1")
    until(lambda: "published" in at(pair.dst, "ls").text, "published")
    at(pair.dst, "get", "k", "--source", source(pair.dst))
    out, err = p.communicate(timeout=20 * SLOW)
    assert p.returncode == 0, err
    event = json.loads(out.decode().splitlines()[-1])
    assert (event["event"], event["key"], event["reason"],
            event["readers_done"]) == ("retired", "k", "consumed", 1)


@pytest.mark.parametrize("size", [5, 3 * MIB])
def test_push(pair, tmp_path, size):
    """The bytes lie at the other daemon: a get that may not wait has them."""
    data = pattern(size, 9)
    (tmp_path / "in").write_bytes(data)
    for file in (tmp_path / "in", "-"):
        p = at(pair.src, "put", "k", file, "--target", source(pair.dst),
               "--timeout", "5s", input_=data)
        assert re.fullmatch(rf"key=k size={size} gen=\d+ transport=\w+ "
                            r"attempts=\d\n", p.text)
        assert at(pair.dst, "get", "k", "--no-wait", "--source",
                  source(pair.dst)).out == data
        assert json.loads(at(pair.src, "ls", "--json").text) == []
    pair.src.knows(pair.dst)
    at(pair.src, "put", "k", tmp_path / "in", "--to", "1")
    assert at(pair.dst, "get", "k", "--no-wait", "--source",
              source(pair.dst)).out == data
    at(pair.src, "put", "k", "-", "--timeout", "1s", rc=USAGE)
    at(pair.src, "put", "k", "-", "--target", "nowhere", rc=USAGE)
    at(pair.src, "put", "k", "-", "--target", "127.0.0.1:1", "--timeout",
       "300ms", input_=b"x", rc=CODE["PEER_UNREACHABLE"])


def test_file_errors(daemon, tmp_path):
    p = at(daemon, "put", "k", tmp_path / "none", rc=IO)
    assert "No such file" in p.err
    at(daemon, "put", "k", "-", input_=b"abc")
    g = at(daemon, "get", "k", "-o", tmp_path / "no" / "dir", rc=IO)
    assert "No such file" in g.err
    at(daemon, "put", "k", "-", input_=b"", rc=CODE["INVALID"])
    (tmp_path / "empty").write_bytes(b"")
    at(daemon, "put", "k", tmp_path / "empty", rc=CODE["INVALID"])
    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", 65 * MIB)
    at(daemon, "put", "k", tmp_path / "big", rc=CODE["TOO_LARGE"])


def test_a_get_that_cannot_be_written_consumes_nothing(daemon, tmp_path):
    at(daemon, "put", "k", "-", input_=b"abc")
    for out in (tmp_path / "no" / "file", tmp_path):
        at(daemon, "get", "k", "-o", out, rc=IO)
    old = tmp_path / "old"
    old.write_bytes(b"long before")
    at(daemon, "get", "none", "-o", old, "--no-wait", "--from", "0",
       rc=CODE["NOT_FOUND"])
    assert old.read_bytes() == b"long before"
    at(daemon, "get", "none", "-o", tmp_path / "new", "--no-wait", "--from",
       "0", rc=CODE["NOT_FOUND"])
    assert not (tmp_path / "new").exists()
    at(daemon, "get", "k", "-o", old)
    assert old.read_bytes() == b"abc"


@pytest.mark.parametrize("cmd", [["get", "k"], ["get", "k", "-o", "/dev/full"],
                                 ["ls"], ["status"], ["status", "--json"],
                                 ["--help"], ["--version"], ["help", "get"]])
def test_a_full_disk_is_told(daemon, cmd):
    if not stat.S_ISCHR(os.stat("/dev/full").st_mode):
        pytest.skip("no /dev/full here")
    daemon.engine().ok("put", b"abc", key="k")
    where = [] if cmd[0] in ("--help", "--version", "help") else [
        "--endpoint", daemon.endpoint]
    with open("/dev/full", "wb") as full:
        p = subprocess.run([KVFERRY] + cmd + where, stdout=full,
                           stderr=subprocess.PIPE, timeout=60, check=False)
    assert p.returncode == IO
    assert b"standard output: " in p.stderr or b"/dev/full: " in p.stderr


# ---- looking and administration -------------------------------------------

def test_ls(daemon):
    assert len(at(daemon, "ls").text.splitlines()) == 1
    assert json.loads(at(daemon, "ls", "--json").text) == []
    for key in ("a:0_1", "a:1_2", "b:0_1", "\u00fc \"q\""):
        at(daemon, "put", key, "-", input_=b"12345")
    lines = at(daemon, "ls").text.splitlines()
    assert lines[0].split()[0] == "STATE" and len(lines) == 5
    keys = json.loads(at(daemon, "ls", "--json").text)
    assert {k["key"] for k in keys} == {"a:0_1", "a:1_2", "b:0_1",
                                        "\u00fc \"q\""}
    assert all(k["size"] == 5 and k["state"] == "published" for k in keys)
    assert len(at(daemon, "ls", "a:").text.splitlines()) == 3
    assert len(json.loads(at(daemon, "ls", "--json", "--limit", "2").text)) \
        == 2


def test_status(pair):
    pair.meet()
    at(pair.src, "put", "k", "-", input_=b"12345")
    s = json.loads(at(pair.src, "status", "--json").text)
    assert s["health"]["health"] == "healthy"
    assert s["stats"]["pool"]["size"] == 64 * MIB
    assert s["stats"]["pool"]["published"] > 0
    text = at(pair.src, "status").text
    assert re.search(r'health +"healthy"', text)
    assert re.search(r"^pool$", text, re.M)
    assert re.search(r"free +\d+", text)


def test_fail(pair):
    pair.meet()
    g = start(pair.dst, "get", "bad")
    until(lambda: parked(pair.src) == 1, "parked")
    at(pair.src, "fail", "bad", "prefill aborted")
    _, err = g.communicate(timeout=20 * SLOW)
    assert g.returncode == CODE["FAILED"] and b"prefill aborted" in err
    at(pair.src, "fail", "other")
    at(pair.dst, "get", "other", rc=CODE["FAILED"])


def test_cleanup(daemon):
    for key in ("r:0_1", "r:1_2", "r:2_3", "s:0_1"):
        at(daemon, "put", key, "-", input_=b"x")
    assert at(daemon, "cleanup", "r", "1", "2").text == "1\n"
    assert at(daemon, "cleanup", "r").text == "2\n"
    assert at(daemon, "cleanup", "r").text == "0\n"
    assert [k["key"] for k in json.loads(at(daemon, "ls", "--json").text)] \
        == ["s:0_1"]


def test_peer(make):
    src, dst = make(0), make(1, rank=0)
    at(dst, "peer", "0.0", source(src))
    at(src, "put", "k", "-", input_=b"abc")
    assert at(dst, "get", "k", "--from", "0").out == b"abc"


def test_drain(make):
    d = make()
    at(d, "drain", "--timeout", "1s")
    assert d.proc.wait(10 * SLOW) == 0
    at(d, "status", "--answer", "500ms", rc=CODE["PEER_UNREACHABLE"])


# ---- which daemon ---------------------------------------------------------

def test_config_names_the_daemon(daemon):
    run("put", "--config", daemon.ini, "k", "-", input_=b"abc")
    assert run("get", "--config", daemon.ini, "k").out == b"abc"


def test_default_endpoint(make):
    d = make(2, rank=3, conf={"worker": {"cluster": "cli",
                                         "engine_endpoint": "auto"}})
    who = ["--cluster", "cli", "--stage", 2, "--rank", 3, "--replica", 0]
    env = {"XDG_RUNTIME_DIR": d.run}
    run("put", *who, "k", "-", input_=b"abc", env=env)
    assert run("get", *who, "k", env=env).out == b"abc"


def test_nobody_answers(tmp_path):
    e = f"ipc://{tmp_path}/none"
    for args in (["get", "k"], ["put", "k", __file__], ["ls"], ["status"],
                 ["fail", "k"], ["drain"], ["bench"]):
        p = run(args[0], "--endpoint", e, "--answer", "300ms", *args[1:],
                rc=CODE["PEER_UNREACHABLE"])
        assert "PEER_UNREACHABLE" in p.err, p.err
        assert "no daemon answers" in p.err or "not answer" in p.err, p.err


# ---- doctor ---------------------------------------------------------------

def doctor(*args, rc=0, **kw):
    found = [json.loads(line) for line in
             run("doctor", "--json", *args, rc=rc, **kw).text.splitlines()]
    for f in found:
        assert set(f) == {"level", "check", "finding", "remedy"}
        assert f["level"] == "ok" or f["remedy"], f
    return {f["check"]: f for f in found}


def test_doctor_of_a_good_setup(pair_of):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        base = s.getsockname()[1] - 100
    pair = pair_of(conf={"connector": {"zmq_port": base},
                         "edge 0->1": {"window_size": -1}})
    found = doctor("--config", pair.src.ini)
    assert found["config"]["level"] == "ok"
    assert found["daemon"]["level"] == "ok"
    assert "worker 0.0.0 of test" in found["daemon"]["finding"]
    assert found["port"]["level"] == "ok"
    text = run("doctor", "--config", pair.src.ini).text
    assert re.search(r"^\d+ ok, \d+ warn, 0 FAIL$", text, re.M)


def test_doctor_without_a_daemon(make):
    d = make()
    d.kill()
    found = doctor("--config", d.ini)
    assert found["daemon"]["level"] == "warn"
    assert "start kvferryd" in found["daemon"]["remedy"]


def test_doctor_low_memlock(daemon):
    def low():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    found = doctor("--config", daemon.ini, preexec=low)
    assert found["memlock"]["level"] == "warn"
    assert "ulimit -l" in found["memlock"]["remedy"]


def test_doctor_few_fds(daemon):
    def low():
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    assert doctor("--config", daemon.ini,
                  preexec=low)["fd limit"]["level"] == "warn"


def test_doctor_port_of_somebody_else(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        conf = kvf.daemon_conf(tmp_path, conf={"connector": {
            "zmq_port": s.getsockname()[1] - 100}})
        conf["edge 0->1"] = {"window_size": -1}
        (tmp_path / "d.ini").write_text(ini(conf))
        found = doctor("--config", tmp_path / "d.ini", rc=1)
    assert found["port"]["level"] == "FAIL"
    assert "ss -ltnp" in found["port"]["remedy"]


def test_doctor_peer_that_is_away(daemon, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    conf = dict(daemon.conf)
    conf["peer 1.0"] = {"host": "127.0.0.1", "port": port}
    (tmp_path / "d.ini").write_text(ini(conf))
    found = doctor("--config", tmp_path / "d.ini")
    assert found["peer 1.0.0"]["level"] == "warn"
    assert "refused" in found["peer 1.0.0"]["finding"]


def test_doctor_moves_bytes_to_a_peer_and_back(pair):
    peer = f"{pair.dst.peer_host}:{pair.dst.peer_port}"
    found = doctor("--config", pair.src.ini, "--peer", peer)
    back = [f for c, f in found.items() if c.startswith("peer, ")]
    assert [f["level"] for f in back] == ["ok", "ok"], back
    assert all("came back whole by" in f["finding"] for f in back), back


def test_doctor_of_a_peer_that_is_away(daemon):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    found = doctor("--config", daemon.ini, "--peer", f"127.0.0.1:{port}", rc=1)
    bad = next(f for c, f in found.items() if c.startswith("peer, "))
    assert bad["level"] == "FAIL" and "PEER_UNREACHABLE" in bad["finding"], bad


def test_doctor_without_a_device_when_rdma_is_asked_for(tmp_path):
    conf = kvf.daemon_conf(tmp_path, conf={"connector": {"protocol": "rdma"}})
    conf["edge 0->1"] = {"window_size": -1}
    (tmp_path / "d.ini").write_text(ini(conf))
    found = doctor("--config", tmp_path / "d.ini",
                   rc=0 if os.path.isdir("/sys/class/infiniband") else 1)
    if not os.path.isdir("/sys/class/infiniband"):
        assert found["rdma"]["level"] == "FAIL"
        assert "no verbs device" in found["rdma"]["finding"]


def test_doctor_bad_config(tmp_path):
    (tmp_path / "bad.ini").write_text("[worker]\nstagee = 1\n")
    found = doctor("--config", tmp_path / "bad.ini", rc=1)
    assert found["config"]["level"] == "FAIL"
    text = run("doctor", "--config", tmp_path / "bad.ini", rc=1).text
    assert "FAIL  config" in text


# ---- bench ----------------------------------------------------------------

def bench(pair, *args, rc=0):
    out = run("bench", "--json", "--from-endpoint", pair.src.endpoint,
              "--to-endpoint", pair.dst.endpoint, "--count", 20, "--warmup",
              2, "--keys", 4, *args, rc=rc, seconds=40)
    return [json.loads(line) for line in out.text.splitlines()]


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("workload", ["get", "put", "put+get", "parked",
                                      "ping", "mget"])
def test_bench_workloads(pair, workload, depth):
    sizes = [4096] if workload == "ping" else [4096, 100001]
    rows = bench(pair, "--workload", workload, "--size", "4KiB,100001",
                 "--depth", depth, "--verify")
    assert [r["size"] for r in rows] == sizes
    for r in rows:
        assert (r["workload"], r["depth"], r["count"], r["failed"]) == (
            workload, depth, 20, 0)
        assert 0 < r["p50_us"] <= r["p90_us"] <= r["p99_us"] <= r["max_us"]
        assert r["req_per_s"] > 0
        keys = depth if workload == "mget" else 1
        if workload != "ping":
            assert r["MBps"] == pytest.approx(
                r["req_per_s"] * r["size"] * keys / 1e6, rel=0.02, abs=0.1)
        # Only what is timed counts: the clock never runs longer than all
        # the latencies together.
        assert 1e6 / r["req_per_s"] <= r["max_us"] * 1.01


@pytest.mark.parametrize("workload", ["get", "parked", "mget"])
@pytest.mark.parametrize("mode", ["auto", "view", "copy", "into", "inline"])
def test_bench_modes(pair, workload, mode):
    if (workload, mode) == ("mget", "into"):
        bench(pair, "--workload", workload, "--mode", mode, rc=USAGE)
        return
    for more in (["--verify"], ["--view-read"]):
        row, = bench(pair, "--workload", workload, "--mode", mode, "--size",
                     "40000", "--depth", 2, *more)
        assert (row["mode"], row["failed"], row["count"]) == (mode, 0, 20)


def test_bench_text_and_one_daemon(daemon):
    text = at(daemon, "bench", "--size", "4KiB", "--count", 5).text
    head, row = text.splitlines()
    assert head.split()[5:8] == ["p50_us", "p90_us", "p99_us"]
    assert row.split()[:5] == ["get", "auto", "4096", "1", "5"]


def test_bench_failure_is_told(pair):
    out = run("bench", "--from-endpoint", pair.src.endpoint, "--to-endpoint",
              pair.dst.endpoint, "--mode", "inline", "--size", "1MiB",
              "--count", 5, "--warmup", 0, rc=CODE["FAILED"])
    assert "TOO_LARGE" in out.err
    out = run("bench", "--endpoint", pair.src.endpoint, "--workload",
              "parked", "--size", "65MiB", "--count", 1, "--warmup", 0,
              rc=CODE["FAILED"])
    assert "TOO_LARGE" in out.err


def test_bench_copy():
    rows = [json.loads(x) for x in run("bench", "--copy", "--json",
                                       seconds=60).text.splitlines()]
    assert rows[0]["size"] == 4096 and all(r["nt_MBps"] > 0 for r in rows)


# ---- help, version, usage -------------------------------------------------

def test_version():
    for args in (["version"], ["--version"]):
        assert re.fullmatch(r"kvferry \d+\.\d+\.\d+\n", run(*args).text)


@pytest.mark.parametrize("sub", SUBCOMMANDS)
def test_help_of(sub):
    a, b = run("help", sub).text, run(sub, "--help").text
    assert a == b and a.startswith(f"usage: kvferry {sub}")
    assert "--endpoint" in a


def test_help():
    text = run("help").text
    assert text == run("--help").text
    for sub in SUBCOMMANDS:
        assert re.search(rf"^  {sub} ", text, re.M)


def test_what_is_installed_fits_together(tmp_path):
    """The unit starts the program that was installed with it."""
    subprocess.run(["meson", "install", "-C", BUILD, "--no-rebuild",
                    "--destdir", tmp_path], check=True, capture_output=True)
    files = {f.name: f for f in tmp_path.rglob("*") if f.is_file()}
    for name in ("kvferry", "kvferryd", "libkvferry.pc", "kvferry.h",
                 "kvferry.1", "kvferry.3", "kvferryd.8", "kvferryd.ini"):
        assert name in files
    unit = files["kvferryd@.service"].read_text(encoding="utf-8")
    program = re.search(r"^ExecStart=(\S+)", unit, re.M).group(1)
    assert str(tmp_path) + program == str(files["kvferryd"])


def test_help_and_manual_name_the_same_options():
    option = re.compile(r"--([a-z][a-z-]+)")
    said = set()
    for sub in SUBCOMMANDS + ["plan", "help"]:
        said |= set(option.findall(run("help", sub).text))
    with open(os.path.join(kvf.ROOT, "docs", "man", "kvferry.1"),
              encoding="utf-8") as f:
        manual = f.read().replace("\\-", "-")
    # The manual also has the other way to say no, for one of them.
    assert set(option.findall(manual)) - {"nouse-vram"} == said


@pytest.mark.parametrize("args,word", [
    (["get", "k", "--mode", "fast"], "--mode fast"),
    (["get", "k", "--mode=fast"], "--mode=fast"),
    (["put", "k", "f", "--ttl", "soon"], "--ttl soon"),
    (["ls", "--limit", "x"], "--limit x"),
    (["status", "--watch", "0"], "--watch 0"),
    (["drain", "--timeout", "x"], "--timeout x"),
    (["bench", "--depth", "0"], "--depth 0"),
    (["get", "k", "--what"], "--what")])
def test_a_wrong_option_is_named(args, word):
    assert word in run(*args, rc=USAGE).err


@pytest.mark.parametrize("args", [
    [], ["nonsense"], ["help", "nonsense"], ["put"], ["put", "k"],
    ["put", "k", "f", "g"], ["put", "--ttl", "soon", "k", "f"],
    ["put", "--readers", "-1", "k", "f"], ["get"], ["get", "a", "b"],
    ["get", "k", "--mode", "fast"], ["get", "k", "--from", "x"],
    ["get", "k", "--source", "nohost"], ["get", "k", "--what"],
    ["get", "k", "--timeout", "-1"], ["ls", "a", "b"],
    ["ls", "--limit", "x"], ["status", "--watch", "0"], ["status", "x"],
    ["fail"], ["fail", "a", "b", "c"], ["cleanup"], ["cleanup", "r", "1"],
    ["cleanup", "r", "a", "b"], ["peer", "0", "h:1"], ["peer", "0.0", "h"],
    ["drain", "--timeout", "x"], ["drain", "x"], ["doctor", "--what"],
    ["doctor", "x"], ["bench", "--workload", "w"], ["bench", "--depth", "0"],
    ["bench", "x"], ["get", "k", "--stage", "9999"],
    ["get", "k", "--answer", "0"], ["version", "x"],
])
def test_wrong_usage(args):
    p = run(*args, rc=USAGE)
    assert p.text == "" and "kvferry" in p.err


def test_bad_size_of_bench(daemon):
    at(daemon, "bench", "--size", "huge", rc=USAGE)
