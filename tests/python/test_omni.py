"""The connector contract of vLLM-Omni, point by point (the numbers are those
of its description)."""
import hashlib
import importlib
import inspect
import json
import logging
import sys
import threading
import time
import types

import kvf
import msgpack
import numpy as np
import pytest

import kvferry
from kvferry import omni
from kvferry.omni import KvferryConnector
from together import in_threads


@pytest.fixture
def connector():
    made = []

    def start(daemon, **config):
        made.append(KvferryConnector(
            {"engine_endpoint": daemon.endpoint, **config}))
        return made[-1]
    yield start
    for c in made:
        c.close()


@pytest.fixture
def ends(make, connector):
    """Sender at stage 0 and receiver at stage 1, which have met."""
    src, dst = make(0), make(1)
    s = connector(src, role="sender", stage_id=0)
    r = connector(dst, role="receiver", stage_id=1,
                  sender_host=src.peer_host, sender_zmq_port=src.peer_port)
    s.put("0", "1", "meet", b"x")
    r.get_with_deadline("0", "1", "meet", timeout=10)[0].release()
    s.daemon, r.daemon = src, dst
    return s, r


def take(r, key, metadata=None, timeout=10):
    data, size = r.get_with_deadline("0", "1", key, metadata,
                                      deadline=time.monotonic() + timeout)
    out = data.to_bytes()
    assert size == len(out)
    data.release()
    return out


def test_1_signatures_and_config(make, connector):
    def names(f):
        return list(inspect.signature(f).parameters)[1:]
    assert names(KvferryConnector.put) == ["from_stage", "to_stage",
                                           "put_key", "data"]
    assert names(KvferryConnector.get) == ["from_stage", "to_stage",
                                           "get_key", "metadata"]
    c = connector(make(0), device="mlx5_0", memory_pool_size=1 << 30,
                  something_new=[1])
    assert c.config["something_new"] == [1]
    ok, size, metadata = c.put(from_stage="0", to_stage="1", put_key="k",
                               data=b"abc")
    assert ok and size == 3
    got = c.get(from_stage="0", to_stage="1", get_key="k", metadata=metadata)
    assert got[0].to_bytes() == b"abc" and got[1] == 3
    with pytest.raises(ValueError):
        KvferryConnector({"role": "nothing"})


def test_1_subclass_of_the_base_when_there_is_one(monkeypatch, make):
    class Base:
        def __del__(self):
            self.close()
    name = "vllm_omni"
    for part in ("", ".distributed", ".omni_connectors", ".connectors",
                 ".base"):
        name += part
        module = types.ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    module.OmniConnectorBase = Base
    try:
        importlib.reload(omni)
        assert issubclass(omni.KvferryConnector, Base)
        c = omni.KvferryConnector({"engine_endpoint": make(0).endpoint})
        assert c.put("0", "1", "k", b"1")[0]
        c.close()
    finally:
        monkeypatch.undo()
        importlib.reload(omni)


def test_2_receive_buffer(ends):
    s, r = ends
    assert s.supports_raw_data and KvferryConnector.supports_raw_data is True
    x = np.arange(100000, dtype="float32")
    s.put("0", "1", "k", x)
    buffer, size = r.get_with_deadline("0", "1", "k")
    assert size == x.nbytes
    view = buffer.as_tensor(np.float32, (100, 1000))
    assert np.array_equal(view.ravel(), x)
    assert memoryview(buffer).nbytes == size == len(buffer.to_bytes())
    buffer.release()
    buffer.release()
    assert np.array_equal(view.ravel(), x)  # pinned as long as it lives
    assert s.daemon.pool()["claimed"] > 0
    del view
    r.health()
    kvf.until(lambda: s.daemon.pool()["claimed"] == 0, "unpinned")
    with pytest.raises(ValueError):
        buffer.to_bytes()


def test_3_put_does_not_raise(ends, caplog):
    s, r = ends
    for data in (b"", np.zeros(0), b"x" * (1 << 27), object(), {1: object()}):
        assert s.put("0", "1", "k", data) == (False, 0, None)
    assert s.put("0", "1", "k" * 2000, b"1") == (False, 0, None)
    assert s.health()["errors"] == 6 and "[KVF PUT]" in caplog.text
    source = bytearray(b"a" * 100000)
    ok, _, metadata = s.put("0", "1", "k", source)
    source[:] = b"b" * 100000  # may be reused at once
    assert ok and take(r, "k", metadata) == b"a" * 100000
    s.close()
    with pytest.raises(RuntimeError):
        s.put("0", "1", "k", b"1")
    with pytest.raises(RuntimeError):
        s.get("0", "1", "k")


def test_4_absent_is_none_at_once(ends):
    s, r = ends
    times = []
    for i in range(50):
        began = time.perf_counter()
        assert r.get("0", "1", f"absent{i}") is None
        times.append(time.perf_counter() - began)
    assert sorted(times)[25] < 0.010 * kvf.SLOW
    assert r.health()["errors"] == 0 and r.health()["timeouts"] == 0
    assert r.get("0", "1", "k", {"source_host": "127.0.0.1",
                                 "source_port": 9}) is None


def test_4_the_first_get_from_a_sender(make, connector, monkeypatch):
    """One get is enough, also when the two daemons have never met; nothing
    else waits."""
    monkeypatch.setattr(omni, "_MEET", 60.0)
    src = make(0)
    s = connector(src)
    metadata = s.put("0", "1", "k", b"data")[2]
    r = connector(make(1))
    data, size = r.get("0", "1", "k", metadata)
    assert data.to_bytes() == b"data" and size == 4
    data.release()
    began = time.monotonic()
    assert r.get("0", "1", "absent", metadata) is None
    # The session is begun with the constructor, or when a sender is named:
    # a first get then is as any other.
    named = connector(make(1, 1), rank=1, sender_host=src.peer_host,
                      sender_zmq_port=src.peer_port)
    told = connector(make(1, 2), rank=2)
    told.update_sender_info(src.peer_host, src.peer_port)
    for c in named, told:
        kvf.until(lambda: c._client.stats()["peers"]["peers_up"] == 1, "up")
        assert c.get("0", "1", "absent") is None
    assert time.monotonic() - began < 50
    assert [c.health()["errors"] for c in (r, named, told)] == [0, 0, 0]


def test_4_a_sender_that_is_not_there(make, connector, monkeypatch):
    r = connector(make(1))
    nobody = {"source_host": "127.0.0.1", "source_port": 9}
    monkeypatch.setattr(omni, "_MEET", 0.05)
    assert r.get("0", "1", "k", nobody) is None
    monkeypatch.setattr(omni, "_MEET", 60.0)
    began = time.monotonic()
    assert r.get("0", "1", "k", nobody) is None  # that was once
    assert time.monotonic() - began < 50
    assert r.health()["errors"] == 0


def test_4_a_sender_that_comes_later(make, connector):
    """The daemon goes on dialling it, so no second get has to wait for it."""
    src = make(0)
    there = {"source_host": src.peer_host, "source_port": src.peer_port}
    src.conf["connector"]["zmq_port"] = src.peer_port - 100
    src.terminate()
    r = connector(make(1))
    assert r.get("0", "1", "k", there) is None
    src.restart()
    connector(src).put("0", "1", "k", b"data")
    data, size = kvf.until(lambda: r.get("0", "1", "k", there), "the data")
    assert data.to_bytes() == b"data" and size == 4
    data.release()
    assert r.health()["errors"] == 0


def test_4_a_daemon_that_is_away(ends):
    s, r = ends
    r.daemon.kill()
    r.get("0", "1", "k")  # the one that finds out
    times = []
    for _ in range(10):
        began = time.perf_counter()
        assert r.get("0", "1", "k") is None
        times.append(time.perf_counter() - began)
    assert sorted(times)[5] < 0.012 * kvf.SLOW
    assert r.health()["status"] == "unhealthy"
    r.daemon.restart()
    kvf.until(lambda: r.health()["status"] == "healthy", "back")
    s.put("0", "1", "k", b"1")
    assert take(r, "k") == b"1"


def test_5_one_consumer_and_failed_gets(ends):
    s, r = ends
    s.put("0", "1", "k", b"1" * 100000)
    assert r.get("0", "2", "k") is None  # another edge
    assert take(r, "k") == b"1" * 100000
    assert r.get("0", "1", "k") is None
    assert s.daemon.pool()["published"] == 0
    s._client.put("bad:0_1", b"\xc1", meta=msgpack.packb(
        {"content": "pickle"}))
    assert r.get("0", "1", "bad") is None and r.health()["errors"] > 0


def test_5_a_failed_get_can_be_tried_again(make, connector):
    """The receiver's pool is full; later it is not."""
    tcp = {"connector": {"protocol": "tcp"}}
    src = make(0, conf=tcp)
    dst = make(1, conf=kvf.merge(tcp, {"connector": {
        "memory_pool_size": "4MiB"}}))
    s = connector(src)
    r = connector(dst, sender_host=src.peer_host,
                  sender_zmq_port=src.peer_port)
    data = kvf.pattern(3 << 20)
    s.put("0", "1", "first", data)
    s.put("0", "1", "second", data)
    held, _ = r.get_with_deadline("0", "1", "first")
    for _ in range(2):
        assert r.get_with_deadline("0", "1", "second", timeout=1) is None
    assert r.health()["errors"] == 2
    held.release()
    assert take(r, "second") == data


@pytest.mark.parametrize("travel", [
    lambda m: m, lambda m: json.loads(json.dumps(m)),
    lambda m: msgpack.unpackb(msgpack.packb(m)),
    lambda m: {"source_host": m["source_host"],
               "source_port": m["source_port"]},
    lambda m: {"k": m}, lambda m: None, lambda m: {}, lambda m: "garbage",
    lambda m: {"source_host": 5, "source_port": "x"}, lambda m: [1]])
def test_6_metadata(ends, travel):
    s, r = ends
    _, size, metadata = s.put("0", "1", "k", b"data")
    assert metadata["data_size"] == size == 4
    assert metadata["is_fast_path"] is True
    assert take(r, "k", travel(metadata)) == b"data"


def test_7_senders(make, connector):
    src, other, dst = make(0), make(0, 1), make(1)
    a, b = connector(src), connector(other, rank=1)
    r = connector(dst)
    info = a.get_connection_info()
    assert (info["host"], info["zmq_port"]) == (src.peer_host, src.peer_port)
    assert src.stats()["keys"]["live"] == 0
    r.update_sender_info(info["host"], info["zmq_port"])
    a.put("0", "1", "k", b"of a")
    m = b.put("0", "1", "k", b"of b")[2]
    assert take(r, "k", {"source_host": m["source_host"],
                         "source_port": m["source_port"]}) == b"of b"
    assert take(r, "k") == b"of a"  # that call changed nothing
    r.update_sender_info(m["source_host"], m["source_port"], sender_rank=0)
    b.put("0", "1", "k", b"again b")
    assert take(r, "k") == b"again b"
    with pytest.raises(ValueError):
        r.update_sender_info("", 1)


def test_8_construction_fails_without_a_daemon(tmp_path, make):
    with pytest.raises(ConnectionError):
        KvferryConnector({"engine_endpoint": f"ipc://{tmp_path}/none",
                          "connect_timeout_seconds": 0.2})
    with pytest.raises(ValueError, match="stage"):
        KvferryConnector({"engine_endpoint": make(0).endpoint,
                          "stage_id": 3})


def test_8_port_formula(make, connector):
    base = 30000 + (id(make) >> 6) % 10000
    d = make(1, 2, conf={"connector": {"zmq_port": base}})
    info = connector(d).get_connection_info()
    assert info["zmq_port"] == base + 100 + 16 * 2 + 1
    assert (info["stage_id"], info["rank"], info["replica"]) == (1, 2, 0)


def test_9_roles(ends, make, connector):
    s, r = ends
    assert (s.stage_id, r.stage_id) == (0, 1)
    assert r.put("1", "2", "k", b"1") == (False, 0, None)
    assert s.get("0", "1", "k") is None
    both = connector(s.daemon, role="dual")
    both.put("0", "1", "k", b"1")
    assert both.get("0", "1", "k")[0].to_bytes() == b"1"


@pytest.mark.parametrize("key", [
    "r@0_1", "r:0_1", "a/b c=d\"e\n", "schl\u00fcssel \u9375 \U0001f511",
    "x" * 512, "@:/_"])
def test_10_opaque_keys(ends, key):
    s, r = ends
    assert s.put("0", "1", key, b"of 1")[0]
    assert s.put("0", "2", key, b"of 2")[0]
    assert take(r, key) == b"of 1"
    s.cleanup(key)
    assert r.get("0", "2", key) is None


def test_11_objects(ends):
    s, r = ends
    x = {"n": [1, 2.5, None, True, "s", b"b"], "t": (1, (2, 3)), 5: -1,
         "a": np.arange(6, dtype="int16").reshape(2, 3), "f": np.float32(1)}
    ok, size, metadata = s.put("0", "1", "k", x)
    assert ok and metadata["is_fast_path"] is False
    got, n = r.get_with_deadline("0", "1", "k", metadata)
    assert n == size and got["t"] == (1, (2, 3)) and got[5] == -1
    assert got["n"] == x["n"] and got["f"] == 1.0
    assert np.array_equal(got["a"], x["a"]) and got["a"].dtype == np.int16
    got["a"][0] = 9  # its own memory
    for other in ("text", 5, None, [1], (1, 2), 2.5):
        s.put("0", "1", "k", other)
        assert r.get_with_deadline("0", "1", "k")[0] == other
    assert s.daemon.pool()["published"] == 0  # nothing left pinned


def test_11_serializer_of_omni(ends, monkeypatch):
    class Serializer:
        serialize = staticmethod(lambda o: json.dumps(o).encode())
        deserialize = staticmethod(json.loads)
    s, r = ends
    monkeypatch.setattr(omni.omni_data, "omni_serializer", lambda: Serializer)
    s.put("0", "1", "k", {"a": [1]})
    assert r.get_with_deadline("0", "1", "k")[0] == {"a": [1]}
    s.put("0", "1", "k", {"a": [1]})
    monkeypatch.setattr(omni.omni_data, "omni_serializer", lambda: None)
    assert r.get_with_deadline("0", "1", "k") is None  # clearly, not wrongly


def test_12_threads_and_ranks(make, connector):
    sources = [make(0, i) for i in range(2)]
    dst = make(1)
    senders = [connector(d, rank=i) for i, d in enumerate(sources)]
    r = connector(dst)

    def work(i):
        for n in range(25):
            s = senders[i % 2]
            data = kvf.pattern(1 + n * 5000, seed=i)
            m = s.put("0", "1", f"{i}/{n}", data)[2]
            assert take(r, f"{i}/{n}", m) == data
    in_threads(6, work)
    assert r.health()["gets"] == 150


def test_12_one_sender_for_two_receivers(make, connector):
    """from_tp < to_tp: a key for each of the receiver's ranks."""
    edge = {"edge 0->1": {"from_tp": 1, "to_tp": 2}}
    src = make(0, conf=edge)
    s = connector(src)
    receivers = [connector(make(1, r, conf=edge), rank=r, stage_id=1)
                 for r in range(2)]
    for r in receivers:
        r.update_sender_info(src.peer_host, src.peer_port)
    waiting = [[], []]

    def wait(i):
        waiting[i] = [take(receivers[i], f"req_{i}_{n}") for n in range(20)]
    threads = [threading.Thread(target=wait, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    want = [[kvf.pattern(10 + 3000 * n, seed=i) for n in range(20)]
            for i in range(2)]
    for n in reversed(range(20)):
        for i in range(2):
            assert s.put("0", "1", f"req_{i}_{n}", want[i][n])[0]
    for t in threads:
        t.join(40)
    assert waiting == want


@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_13_sizes(make, connector, protocol):
    conf = {"connector": {"memory_pool_size": "256MiB",
                          "protocol": protocol}}
    src, dst = make(0, conf=conf), make(1, conf=conf)
    s, r = connector(src), connector(dst)
    r.update_sender_info(src.peer_host, src.peer_port)
    for size in (1, 2, 4095, 65537, 100_000_000):
        x = np.frombuffer(kvf.pattern(size), "uint8")
        s.put("0", "1", "k", x)
        buffer, n = r.get_with_deadline("0", "1", "k")
        assert n == size
        assert hashlib.md5(buffer.view).digest() == hashlib.md5(x).digest()
        buffer.release()


def test_14_lifetime(ends, connector):
    s, r = ends
    s.put("0", "1", "k", b"old" * 50000)
    s.put("0", "1", "k", b"new" * 50000)
    held, _ = r.get_with_deadline("0", "1", "k")
    s.cleanup("k")
    s.put("0", "1", "k", b"3rd" * 50000)
    assert held.to_bytes() == b"new" * 50000  # pinned while it is read
    held.release()
    assert take(r, "k") == b"3rd" * 50000
    brief = connector(s.daemon, buffer_ttl_seconds=0.2)
    brief.put("0", "1", "t", b"1")
    kvf.until(lambda: not [k for k in s._client.list("t:")
                           if k["state"] == "published"], "expired")
    assert r.get("0", "1", "t") is None


def test_14_cleanup_and_full_pool(ends):
    s, r = ends
    names = ["req", "req@0_1", "req:0_1", "req_chunk0", "kv_cache/req",
             "request", "xreq", "req-2"]
    for n in names:
        assert s.put("0", "1", n, b"1")[0]
    s.put("0", "2", "req", b"1")
    assert s.cleanup("req", "0", "2") is True
    assert s.cleanup("nothing") is False
    assert len(s._client.list()) >= len(names)
    s.cleanup("req")
    left = {k["key"] for k in s._client.list() if k["state"] == "published"}
    assert left == {"request:0_1", "xreq:0_1", "req-2:0_1"}
    n = 0
    while s.put("0", "1", f"full:{n}", b"x" * (8 << 20))[0]:
        n += 1
    assert n >= 5
    s.cleanup("full")
    assert s.put("0", "1", "after", b"x" * (8 << 20))[0]
    s.close()
    s.close()


def test_15_health_and_log(ends, caplog):
    s, r = ends
    caplog.set_level(logging.INFO, "kvferry.omni")
    s.put("0", "1", "k", b"12345")
    take(r, "k")
    h = r.health()
    assert h["status"] == "healthy" and h["gets"] == 2
    assert h["bytes_transferred"] == 6 and h["puts"] == 0
    line = [x for x in caplog.messages if x.startswith("[KVF GET] key=k:0_1")]
    assert "size=5" in line[0] and "total_ms=" in line[0]
    assert r.get_with_deadline("0", "1", "no", timeout=0.1) is None
    assert r.health()["timeouts"] == 1
    r.close()
    assert r.health()["status"] == "closed"


def test_15_deadline_and_abandon(ends):
    s, r = ends
    got = []
    t = threading.Thread(target=lambda: got.append(
        r.get_with_deadline("0", "1", "k", timeout=30)))
    t.start()
    kvf.until(lambda: r.abandon_get("k"), "waiting")
    t.join(10)
    assert got == [None] and not r.abandon_get("k")
    timer = threading.Timer(0.2, s.put, ("0", "1", "k", b"late"))
    timer.start()
    assert take(r, "k") == b"late"
    timer.join()
    assert isinstance(kvferry.__version__, str)
