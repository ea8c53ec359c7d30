"""The command line, and bad configuration: exit status 2 and a line that
names file, line, key and what is allowed; nothing is started."""
import os
import re
import stat
import subprocess

import pytest

import kvf


def run(*args, timeout=20):
    return subprocess.run([kvf.KVFERRYD, *args], capture_output=True,
                          text=True, timeout=timeout, check=False,
                          env=kvf.sanitizer_env())


@pytest.fixture
def write(tmp_path):
    def w(text):
        path = tmp_path / "kvf.ini"
        path.write_text(text, encoding="utf-8")
        return str(path)
    return w


def test_version():
    r = run("--version")
    assert r.returncode == 0 and re.search(r"\d+\.\d+", r.stdout)


def test_help_names_every_option():
    r = run("--help")
    assert r.returncode == 0
    for option in ("--check", "--dump-config", "--ready-file", "--version",
                   "--help"):
        assert option in r.stdout


@pytest.mark.parametrize("args", [[], ["--nope"], ["/no/such/file.ini"],
                                  ["--check", "/no/such/file.ini"]])
def test_bad_command_line_is_status_2(args):
    r = run(*args)
    assert r.returncode == 2 and r.stderr.strip()


@pytest.mark.parametrize("base,said", [
    ("50051", "metadata port 50184"), ("auto", "any free metadata port")])
def test_check_tells_the_port(write, base, said):
    r = run("--check", write("[worker]\ncluster = c\nstage = 1\nrank = 2\n"
                             f"[connector]\nzmq_port = {base}\n"))
    assert r.returncode == 0 and r.stderr == ""
    assert f" is valid: worker 1.2.0 of cluster c, {said}" in r.stdout


def test_check_of_a_good_file(write, tmp_path):
    r = run("--check", write(kvf.ini(kvf.daemon_conf(str(tmp_path), conf={
        "edge 0->1": {"from_tp": 2, "to_tp": 2}}))))
    assert r.returncode == 0, r.stderr


def test_dump_reads_back_the_same(write):
    first = run("--dump-config", write("[worker]\nstage = 3\n[edge 3->4]\n"
                                       "to_tp = 2\n[peer 4.1]\n"
                                       "host = 10.0.0.7\nport = 50183\n"
                                       "[connector]\n"
                                       "memory_pool_size = 1GiB\n"))
    assert first.returncode == 0, first.stderr
    second = run("--dump-config", write(first.stdout))
    assert second.returncode == 0 and second.stdout == first.stdout


@pytest.mark.parametrize("key,value", [
    ("stage", "3"), ("memory_pool_size", "1073741824"),
    ("get_sub_timeout_ms", "30000"), ("put_ttl_ms", "3600000"),
    ("peer_timeout_ms", "2000"), ("session_timeout_ms", "30000"),
    ("drain_ms", "5000"), ("attempts", "5"), ("backoff_ms", "20"),
    ("backoff_max_ms", "2000"), ("zmq_port", "50051"),
    ("cluster", "default"), ("level", "info")])
def test_defaults_of_the_dump(write, key, value):
    out = run("--dump-config", write("[worker]\nstage = 3\n")).stdout
    got = re.search(rf"^{key}\s*=\s*([^\s;]+)", out, re.M)
    assert got, out
    same = {"1073741824": ("1073741824", "1GiB"), "30000": ("30000", "30s"),
            "3600000": ("3600000", "1h", "3600s"), "2000": ("2000", "2s"),
            "5000": ("5000", "5s"), "20": ("20", "20ms")}
    assert got[1] in same.get(value, (value,))


BAD = [
    ("worker", "stage", "-1"), ("worker", "stage", "one"),
    ("worker", "stage", "99999999999"), ("worker", "rank", "1.5"),
    ("worker", "replica", "x"), ("worker", "engine_endpoint", "udp://x"),
    ("worker", "engine_endpoint", "ipc://" + "/x" * 60),
    ("connector", "zmq_port", "70000"), ("connector", "zmq_port", "-5"),
    ("connector", "zmq_port", "port"), ("connector", "rpc_port", "65536"),
    ("connector", "protocol", "udp"), ("connector", "protocol", "tcp,udp"),
    ("connector", "memory_pool_size", "0"),
    ("connector", "memory_pool_size", "-1"),
    ("connector", "memory_pool_size", "12XB"),
    ("connector", "memory_pool_size", "99999999999999999999999"),
    ("connector", "memory_pool_device", "toaster"),
    ("connector", "memory_pool_device", "cuda"),
    ("connector", "get_sub_timeout_ms", "-1"),
    ("connector", "get_sub_timeout_ms", "soon"),
    ("connector", "put_ttl_ms", "0"), ("connector", "peer_timeout_ms", "0"),
    ("connector", "session_timeout_ms", "x"),
    ("connector", "drain_ms", "-1"), ("connector", "inline_max", "big"),
    ("connector", "max_frame", "x"), ("edge 0->1", "window_size", "-2"),
    ("edge 0->1", "max_inflight", "0"), ("edge 0->1", "from_tp", "0"),
    ("edge 0->1", "to_tp", "-1"), ("peer 0.0", "port", "0"),
    ("peer 0.0", "port", "99999"), ("retry", "attempts", "0"),
    ("retry", "backoff_ms", "x"), ("retry", "backoff_max_ms", "-3"),
    ("log", "level", "loud"), ("worker", "colour", "blue"),
    ("connector", "memory_pool_sise", "1GiB"),
]


@pytest.mark.parametrize("section,key,value", BAD,
                         ids=[f"{k}={v[:20]}" for _, k, v in BAD])
@pytest.mark.parametrize("how", ["--check", None])
def test_bad_value_names_file_line_and_key(write, tmp_path, section, key,
                                           value, how):
    head = "; a comment, so that the line number means something\n\n"
    more = "host = 127.0.0.1\n" if section.startswith("peer") else ""
    path = write(f"{head}[{section}]\n{more}{key} = {value}\n")
    ready = tmp_path / "ready"
    r = run(*([how, path] if how else [path, "--ready-file", str(ready)]))
    assert r.returncode == 2, r
    line = 5 if more else 4
    hits = [x for x in r.stderr.splitlines()
            if f"{path}:{line}" in x and key in x]
    assert hits, r.stderr
    assert not ready.exists()


@pytest.mark.parametrize("text,line", [
    ("[worker]\nstage\n", 2), ("[nonsense]\na = 1\n", None),
    ("[edge 0-1]\nfrom_tp = 1\n", None), ("[peer x]\nport = 5\n", None),
    ("stage = 0\n", 1), ("[worker\nstage = 0\n", 1),
    ("\0\xff\x01 junk", 1)], ids=lambda x: repr(x)[:30])
def test_bad_structure_is_status_2(write, text, line):
    path = write(text)
    r = run("--check", path)
    assert r.returncode == 2
    assert path + (f":{line}" if line else ":") in r.stderr


def test_unknown_key_suggests_the_nearest(write):
    r = run("--check", write("[connector]\nmemory_pool_sise = 1GiB\n"))
    assert "memory_pool_size" in r.stderr


def test_every_error_is_reported(write):
    r = run("--check", write("[worker]\nstage = x\nrank = y\n[log]\n"
                             "level = z\n"))
    for key in ("stage", "rank", "level"):
        assert key in r.stderr


def test_port_rule_overflow_is_refused(write):
    assert run("--check", write("[worker]\nstage = 1\nrank = 1000\n"
                                "[connector]\nzmq_port = 60000\n")
               ).returncode == 2


def test_ports_follow_the_rule(make):
    from test_two_daemons import free_port
    port = free_port()
    base = port - 100 - 16 * 2 - 1
    d = make(1, rank=2, conf={"connector": {"zmq_port": base}})
    assert d.peer_port == port


def test_sizes_and_durations_have_units(make):
    d = make(conf={"connector": {"memory_pool_size": "32MiB",
                                 "get_sub_timeout_ms": "300ms"}})
    assert d.engine().info["pool"]["size"] == 32 * kvf.MIB


def test_ready_line_is_printed_and_parseable(daemon):
    r = daemon.ready
    assert daemon.ready_line.startswith("kvferryd ready ")
    assert set(r) >= {"engine", "peer", "bulk", "pid", "incarnation"}
    assert int(r["pid"]) == daemon.proc.pid
    assert re.fullmatch(r"\S+:\d+", r["bulk"])
    assert daemon.ready_line in daemon.log()


@pytest.mark.parametrize("what", ["fifo", "folder", "link"])
def test_the_ready_file_replaces_only_a_file(write, tmp_path, what):
    """Not /dev/stdout of a daemon that root runs."""
    path = tmp_path / "ready"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("elsewhere")
    before = os.lstat(path)
    conf = write(f"[worker]\nengine_endpoint = ipc://{tmp_path}/e\n"
                 "[connector]\nhost = 127.0.0.1\nzmq_port = auto\n"
                 "memory_pool_size = 16MiB\n")
    p = run(conf, "--ready-file", str(path))
    assert p.returncode == 1 and "no regular file" in p.stdout + p.stderr
    assert os.lstat(path).st_ino == before.st_ino


def test_socket_and_its_directory_are_private(daemon):
    path = daemon.endpoint[len("ipc://"):]
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_runtime_directory_is_private(make):
    run_dir = kvf.short_tmp()
    d = make(run=run_dir, conf={"worker": {"engine_endpoint": "auto"}},
             env={"XDG_RUNTIME_DIR": run_dir})
    assert d.endpoint == f"ipc://{run_dir}/kvferry-test-s0-r0-p0.ipc"
    assert os.stat(run_dir).st_mode & 0o777 == 0o700


def test_other_address_than_loopback_is_warned_about_once(make):
    own = [a for a in subprocess.run(
        ["hostname", "-I"], capture_output=True, text=True,
        check=False).stdout.split() if ":" not in a]
    if not own:
        pytest.skip("this machine has no address but loopback")
    d = make(conf={"connector": {"host": own[0]}})
    assert len(re.findall("not authenticated", d.log())) == 1


def test_loopback_is_not_warned_about(daemon):
    assert "not authenticated" not in daemon.log()


def test_the_runtime_directory_is_made_for_its_user_alone(tmp_path):
    """In an own mount namespace, where /run is empty."""
    ns = ["unshare", "--mount", "--kill-child", "--fork"]
    if subprocess.run([*ns, "true"], capture_output=True,
                      check=False).returncode:
        pytest.skip("unshare --mount is not permitted here")
    ini = tmp_path / "c.ini"
    ini.write_text("[connector]\nhost = 127.0.0.1\nzmq_port = auto\n"
                   "memory_pool_size = 1MiB\n")
    env = {k: v for k, v in os.environ.items() if k != "XDG_RUNTIME_DIR"}
    p = subprocess.Popen(
        [*ns, "sh", "-c", 'mount -t tmpfs none /run && exec "$0" "$1"',
         kvf.KVFERRYD, str(ini)], env=env, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True)
    try:
        ready = dict(w.split("=", 1) for w in p.stdout.readline().split()[2:])
        run = os.path.join("/proc", ready["pid"], "root", "run/kvferry")
        assert ready["engine"].startswith("ipc:///run/kvferry/")
        assert stat.S_IMODE(os.stat(run).st_mode) == 0o700
        sock = os.path.join(run, os.path.basename(ready["engine"]))
        assert stat.S_IMODE(os.stat(sock).st_mode) == 0o600
    finally:
        p.kill()
        p.wait()
