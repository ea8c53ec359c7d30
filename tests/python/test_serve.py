"""bench/serve: a model over two stages gives the tokens of one process."""
import http.client
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time

import kvf
import numpy as np
import pytest

import kvferry

SERVE = os.path.join(kvf.ROOT, "bench", "serve")
PROMPT = "Nothing is copied that need not be. " * 3


def of_serve(name):
    """A module of bench/serve, by its own name."""
    path = os.path.join(SERVE, name + ".py")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    assert sys.modules[name].__file__ == path
    return sys.modules[name]


model = of_serve("model")
cache = of_serve("cache")
_weights = {}


def expected(prompt, n, **config):
    c = model.Config(**config)
    if c not in _weights:
        _weights[c] = model.weights(c)
    return model.reference(c, prompt, n, _weights[c])


class Serve:
    """bench/serve/run, and its HTTP."""

    def __init__(self, tmp, *args):
        self.state_path = os.path.join(tmp, "state.json")
        self.log_path = os.path.join(tmp, "log")
        with open(self.log_path, "wb") as log:
            self.proc = subprocess.Popen(
                [sys.executable, os.path.join(SERVE, "run"), "--port", "0",
                 "--prefill-port", "0", "--decode-port", "0", "--pool",
                 "16MiB", "--build", kvf.BUILD, "--state", self.state_path,
                 *args], stdout=log, stderr=log, env=kvf.sanitizer_env())

        def ready():
            assert self.proc.poll() is None, self.log()
            return os.path.exists(self.state_path)
        kvf.until(ready, "started", 30)

    def log(self):
        with open(self.log_path, encoding="utf-8") as f:
            return f.read()

    @property
    def state(self):
        with open(self.state_path, encoding="utf-8") as f:
            return json.load(f)

    def post(self, server, path, body, timeout=30):
        """(HTTP status, the answer: an object, or its lines)"""
        c = http.client.HTTPConnection(
            "127.0.0.1", self.state["ports"][server], timeout=timeout)
        c.request("POST", path, json.dumps(body))
        r = c.getresponse()
        lines = [json.loads(x) for x in r.read().splitlines()]
        c.close()
        return r.status, lines[0] if len(lines) == 1 else lines

    def complete(self, prompt=PROMPT, n=12):
        status, reply = self.post("proxy", "/v1/completions",
                                  {"prompt": prompt, "max_tokens": n})
        assert status == 200, (reply, self.log())
        self.last = reply["kvferry"]
        return reply["choices"][0]["token_ids"]

    def decode(self, kv, n=12):
        """Tokens of the decode server alone."""
        status, lines = self.post("decode", "/decode",
                                  {**kv, "max_tokens": n})
        assert status == 200, lines
        assert lines[-1]["done"]
        return [x["token"] for x in lines[:-1]]

    def kill(self, name):
        """SIGKILL; returns when it was started again."""
        old = self.state["pids"][name]
        os.kill(old, signal.SIGKILL)
        kvf.until(lambda: self.state["pids"][name] != old, name)

    def close(self):
        for name in os.listdir(self.state["dir"]):
            if name.endswith(".log"):
                with open(os.path.join(self.state["dir"], name),
                          encoding="utf-8") as f:
                    assert not kvf.SANITIZER.search(f.read()), name
        self.proc.send_signal(signal.SIGTERM)
        try:
            assert self.proc.wait(15) == 0
        finally:
            self.proc.kill()


@pytest.fixture
def serve(tmp_path):
    made = []

    def start(*args):
        made.append(Serve(str(tmp_path), *args))
        return made[-1]
    yield start
    for s in made:
        s.close()


@pytest.fixture(scope="module", params=["pull", "keys"])
def stages(request, tmp_path_factory):
    """A deployment that several tests use."""
    s = Serve(str(tmp_path_factory.mktemp("serve")), "--prefill-tp", "2",
              "--decode-tp", "2", "--timeout", "15", "--transfer",
              request.param)
    s.pull = request.param == "pull"
    yield s
    s.close()


def test_the_model_attends():
    """The output says something about the cache: many distinct tokens, and
    one token at the beginning changes them."""
    tokens = expected(PROMPT, 50)
    assert len(set(tokens)) >= 10
    assert expected("M" + PROMPT[1:], 50) != tokens


def test_sums_are_exact():
    """Any order of a sum, and any cut of a prompt, gives the same bits."""
    config = model.Config(layers=2)
    w = model.weights(config)
    order = np.random.default_rng(1).permutation(config.ffn)
    mixed = dict(w)
    for i in range(config.layers):
        mixed[f"{i}.gate"] = w[f"{i}.gate"][:, order]
        mixed[f"{i}.up"] = w[f"{i}.up"][:, order]
        mixed[f"{i}.down"] = w[f"{i}.down"][order]
    tokens = np.array(model.encode(PROMPT))
    states = []
    for weights, cuts in ((w, (0,)), (mixed, (0,)), (w, (0, 16, 32, 33, 80))):
        paged = cache.Cache(config, 1, 0, 16, 16)
        paged.open("s", reversed(range(16)))
        m = model.Model(config, weights)
        for a, b in zip(cuts, [*cuts[1:], len(tokens)]):
            out = m.forward([("s", a, tokens[a:b])], paged)
        states.append(out)
    assert np.array_equal(states[0], states[1])
    assert np.array_equal(states[0], states[2])


KEYS = ["--transfer", "keys"]


@pytest.mark.parametrize("p,d,more", [
    (1, 1, []),
    (1, 2, ["--overlap", "--chunk", "32"]),
    (2, 1, ["--protocol", "tcp", "--decode-block", "32"]),
    (4, 2, []),
    (2, 4, ["--overlap", "--chunk", "32", "--protocol", "tcp"]),
    (4, 2, ["--kv-heads", "2", "--decode-order", "NHD"]),
    (1, 4, ["--kv-heads", "2", "--block", "32", "--decode-block", "16"]),
    (4, 2, KEYS + ["--protocol", "tcp"]),
    (1, 2, KEYS + ["--overlap", "--chunk", "32", "--decode-block", "32"]),
    (4, 2, KEYS + ["--kv-heads", "2", "--decode-order", "NHD"])])
def test_same_tokens(serve, p, d, more):
    s = serve("--prefill-tp", str(p), "--decode-tp", str(d), *more)
    config = {"kv_heads": 2} if "--kv-heads" in more else {}
    assert s.complete() == expected(PROMPT, 12, **config)
    assert s.complete("a", 3) == expected("a", 3, **config)
    pids = s.state["pids"]
    assert len([x for x in pids if x.startswith("kvferryd")]) == p + d
    how = {"tcp", "eager"} if "tcp" in more else {"shm", "eager"}
    assert {h.split("/")[0] for h in s.last["how"]} <= how


def test_many_at_once(stages):
    """Requests are decoded together, and nothing of theirs mixes."""
    prompts = [f"{i} bottles of beer on the wall" * (i + 1) for i in range(5)]
    got = [None] * len(prompts)

    def ask(i):
        got[i] = stages.complete(prompts[i], 8 + i)
    threads = [threading.Thread(target=ask, args=(i,))
               for i in range(len(prompts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(40)
    assert got == [expected(p, 8 + i) for i, p in enumerate(prompts)]
    for name in ("prefill", "decode"):  # a retirement is told a bit later
        kvf.until(lambda n=name: stages.post(n, "/health", {})[1][
            "free_blocks"] == 512, "all blocks are free")


def test_two_signals_leave_nothing(tmp_path):
    s = Serve(tmp_path)
    work, pids = s.state["dir"], s.state["pids"].values()
    try:
        s.proc.send_signal(signal.SIGINT)
        s.proc.send_signal(signal.SIGTERM)
        assert s.proc.wait(15) == 0
    finally:
        s.proc.kill()
    assert not os.path.exists(work)
    kvf.until(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids),
              "all have ended")


def test_stream_of_tokens(stages):
    c = http.client.HTTPConnection(
        "127.0.0.1", stages.state["ports"]["proxy"], timeout=20)
    c.request("POST", "/v1/completions", json.dumps(
        {"prompt": PROMPT, "max_tokens": 6, "stream": True}))
    events = [x[6:] for x in c.getresponse().read().split(b"\n\n") if x]
    c.close()
    assert events.pop() == b"[DONE]"
    tokens = [json.loads(x)["choices"][0]["token_ids"][0] for x in events]
    assert tokens == expected(PROMPT, 6)


def flip_key(stages, key):
    """Bytes of a payload between its put and its get."""
    with kvferry.Client(stages.state["endpoints"][0][0]) as c:
        with c.get(key, source=0, timeout=0) as p:
            x = p.numpy("uint8").copy()
        x[1::2] ^= 0x40  # of a float16, an exponent bit
        c.put(key, x)


def flip_cache(stages):
    """The same in the pages of the prefill ranks."""
    for pid in stages.post("prefill", "/health", {})[1]["ranks"]:
        fds = f"/proc/{pid}/fd"
        region = next(f for f in os.listdir(fds) if os.readlink(
            f"{fds}/{f}") == "/memfd:kvferry (deleted)")
        with open(f"{fds}/{region}", "r+b") as f:
            x = np.fromfile(f, np.uint8)
            x[1::2] ^= 0x40
            f.seek(0)
            x.tofile(f)


def test_decode_knows_no_prompt(stages):
    """What the decode server is sent, and that flipped bytes of the cache
    change what it says: it has nothing else."""
    def prefill(rid):
        status, kv = stages.post("prefill", "/prefill", {
            "request_id": rid, "prompt": PROMPT})
        assert status == 200, kv
        return kv
    kv = prefill("plain")
    assert set(kv) == {"request_id", "n_tokens", "last_token", "chunk",
                       "groups", "handles", "bytes", "ms"}
    assert PROMPT[:10] not in json.dumps(kv)
    assert stages.decode(kv) == expected(PROMPT, 12)

    kv = prefill("flipped")
    if stages.pull:
        flip_cache(stages)
    else:
        flip_key(stages, "flipped/t0g0:0_1")
    assert stages.decode(kv) != expected(PROMPT, 12)

    kv = prefill("token")
    kv["last_token"] = 65
    assert stages.decode(kv) != expected(PROMPT, 12)


def test_prefill_server_dies_after_its_put(stages):
    status, kv = stages.post("prefill", "/prefill", {
        "request_id": "orphan", "prompt": PROMPT})
    assert status == 200
    stages.kill("prefill")
    assert stages.decode(kv) == expected(PROMPT, 12)
    assert stages.complete() == expected(PROMPT, 12)  # the new one


def test_decode_daemon_dies(stages):
    """The client of a request under way is told what happened; the next one
    is served."""
    got = []

    def ask():
        got.append(stages.post("decode", "/decode", {
            "request_id": "never", "n_tokens": 20, "last_token": 65,
            "chunk": 0, "groups": 1, "max_tokens": 2}))
    t = threading.Thread(target=ask)
    t.start()
    with kvferry.Client(stages.state["endpoints"][0][0]) as c:
        kvf.until(lambda: c.stats()["blocks" if stages.pull else "keys"]
                  ["parked"] > 0, "it waits")
    stages.kill("kvferryd-1-0")
    t.join(20)
    status, reply = got[0]
    assert status == 502, reply
    assert reply["error"]["type"] == "PEER_UNREACHABLE"
    assert "decode rank 0" in reply["error"]["message"]
    assert stages.complete() == expected(PROMPT, 12)
    stages.kill("kvferryd-0-1")
    assert stages.complete() == expected(PROMPT, 12)


def test_clear_errors(stages):
    for body, status, word in (
            ({"prompt": ""}, 400, "empty"), ({}, 400, "prompt"),
            ({"prompt": "x" * 5000}, 413, "4096"),
            ({"prompt": 5}, 400, "prompt"), ({"prompt": ["a"]}, 400, "prompt"),
            *(({"prompt": "x", "max_tokens": n}, 400, "max_tokens")
              for n in (0, -1, 10 ** 9, float("inf"), 2.5, "3", None))):
        got, reply = stages.post("proxy", "/v1/completions", body)
        assert got == status and word in reply["error"]["message"], reply
    for raw, size, status in ((b"[" * 100000, None, 400), (b"{", None, 400),
                              (b"", 10 ** 12, 413), (b"", -1, 400)):
        c = http.client.HTTPConnection(
            "127.0.0.1", stages.state["ports"]["proxy"], timeout=30)
        c.request("POST", "/v1/completions", raw,
                  {} if size is None else {"Content-Length": str(size)})
        r = c.getresponse()
        assert r.status == status and b'"error"' in r.read()
        c.close()
    got, reply = stages.post("decode", "/decode", {
        "request_id": "gone", "n_tokens": 20, "last_token": 65, "chunk": 0,
        "groups": 1, "max_tokens": 2, "timeout": 0.2})
    assert (got, reply["error"]["type"]) == (504, "TIMEOUT")


@pytest.mark.parametrize("transfer", ["pull", "keys"])
def test_prefill_that_cannot_send(serve, transfer):
    """The decode side, which waits already, hears it at once; the answer
    names the cause, not what followed."""
    s = serve("--overlap", "--pool", "1MiB", "--chunk", "768", "--groups",
              "1", "--prefill-tp", "2", "--decode-tp", "2", "--transfer",
              transfer, "--blocks", "64")
    began = time.monotonic()
    size = 800 if transfer == "keys" else 1100  # the pool; the blocks
    status, reply = s.post("proxy", "/v1/completions", {
        "prompt": "x" * size, "max_tokens": 3})
    assert status == 413, reply
    assert "prefill" in reply["error"]["message"]
    assert "TOO_LARGE" in reply["error"]["message"]
    assert time.monotonic() - began < 10 * kvf.SLOW  # not --timeout
    assert s.complete() == expected(PROMPT, 12)
    with kvferry.Client(s.state["endpoints"][0][0]) as c:
        assert c.stats()["pool"]["published"] == 0


@pytest.mark.parametrize("stages", ["pull"], indirect=True)
def test_dropped_request_frees_its_blocks(stages):
    """One that nobody decodes holds blocks until it is dropped."""
    status, kv = stages.post("prefill", "/prefill", {
        "request_id": "dropped", "prompt": PROMPT})
    assert status == 200

    def free():
        return stages.post("prefill", "/health", {})[1]["free_blocks"]
    assert free() < 512
    stages.post("prefill", "/drop", {"request_id": "dropped"})
    kvf.until(lambda: free() == 512, "free")


@pytest.mark.parametrize("stages", ["pull"], indirect=True)
def test_prefill_daemon_dies_with_blocks_published(stages):
    """What it had published is gone; the blocks are used again."""
    status, kv = stages.post("prefill", "/prefill", {
        "request_id": "lost", "prompt": PROMPT})
    stages.kill("kvferryd-0-0")
    status, reply = stages.post("decode", "/decode", {
        **kv, "max_tokens": 2, "timeout": 1})
    assert status >= 500, reply
    assert stages.complete() == expected(PROMPT, 12)
