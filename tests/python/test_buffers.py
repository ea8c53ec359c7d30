"""Lifetime: what lives while who looks at it."""
import gc
import subprocess
import sys
import threading

import kvf
import numpy as np
import pytest

import kvferry


def held(c):
    pool = c.stats()["pool"]
    return pool["filling"], pool["held"] + pool["claimed"]


def drops_to_zero(c):
    c.ping()
    kvf.until(lambda: held(c) == (0, 0), f"all given back: {held(c)}")


def test_release_is_idempotent(one):
    b = one.alloc(100)
    assert held(one)[0] > 0
    b.release()
    b.release()
    b.discard()
    drops_to_zero(one)
    for use in (lambda: b.view, lambda: b.numpy(), b.to_bytes, b.segment,
                lambda: one.put("k", b)):
        with pytest.raises(ValueError):
            use()
    assert "released" in repr(b)


def test_release_refuses_while_somebody_looks(two):
    a, b = two
    a.put("k", kvf.pattern(1 << 20))
    p = b.get("k", timeout=5)
    makers = [lambda: p.view, lambda: p.view[5:10], lambda: memoryview(p),
              lambda: memoryview(p)[3:], lambda: p.numpy(),
              lambda: np.frombuffer(p, "uint8")[2:], lambda: p.pieces]
    for make in makers:
        look = make()
        with pytest.raises(BufferError, match="still alive"):
            p.release()
        assert p.to_bytes() == kvf.pattern(1 << 20)  # as before
        del look
    p.release()
    kvf.until(lambda: a.stats()["pool"]["published"] == 0, "consumed")


def test_with_gives_back_when_the_last_look_is_gone(two):
    a, b = two
    data = kvf.pattern(1 << 20)
    a.put("k", data)
    with b.get("k", timeout=5) as p:
        x = p.numpy()
    with pytest.raises(ValueError):
        p.view
    assert a.stats()["pool"]["claimed"] > 0
    assert x.tobytes() == data  # still pinned
    part = x[10:20]
    del x
    assert a.stats()["pool"]["claimed"] > 0
    del part
    drops_to_zero(a)
    assert a.stats()["pool"]["published"] == 0


def test_garbage_is_given_back(one):
    b = one.alloc(1000)
    cycle = [b]
    cycle.append(cycle)
    del b, cycle
    gc.collect()
    drops_to_zero(one)
    x = one.alloc(1000).numpy()
    assert held(one)[0] > 0
    x[:] = 1
    del x
    drops_to_zero(one)


def test_read_only(two):
    a, b = two
    for mode in ("view", "copy"):
        a.put("k", b"x" * 100000)
        p = b.get("k", timeout=5, mode=mode)
        assert memoryview(p).readonly and not p.numpy().flags.writeable
        with pytest.raises((TypeError, ValueError)):
            p.view[0] = 1
        with pytest.raises(TypeError):
            open("/dev/zero", "rb").readinto(p)
        p.release()


def test_released_in_other_threads(one):
    """The collector may run anywhere, also while the lock is held."""
    def churn():
        for i in range(200):
            cycle = [one.alloc(64)]
            cycle.append(cycle)
            if i % 10 == 0:
                gc.collect()
    old = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        threads = [threading.Thread(target=churn) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
            assert not t.is_alive()
    finally:
        gc.set_threshold(*old)
    gc.collect()
    drops_to_zero(one)


def test_wrong_segments(one):
    b = one.alloc(100)
    for args in ((-1, 5), (0, 0), (0, 101), (100,), (50, 51)):
        with pytest.raises(ValueError):
            b.segment(*args)
    with pytest.raises(TypeError):
        one.put("k", [b, b"bytes"])
    b.release()


def test_tensor(one):
    one.put("k", b"\1\0\2\0")
    p = one.get("k")
    torch = pytest.importorskip("torch") if "torch" in sys.modules else None
    if torch is None:
        try:
            import torch
        except ImportError:
            with pytest.raises(ImportError, match="numpy"):
                p.tensor
            assert p.as_tensor("int16").tolist() == [1, 2]
            return
    assert p.tensor.dtype == torch.uint8 and p.tensor.dim() == 1
    assert p.as_tensor(torch.int16, (2, 1)).tolist() == [[1], [2]]
    one.put("t", torch.arange(6).reshape(2, 3).t())
    assert one.get("t").as_tensor(torch.int64, (3, 2)).tolist() == \
        [[0, 3], [1, 4], [2, 5]]


def test_stand_in_for_torch(one, monkeypatch):
    """The path of tensors, without torch: an object that has its methods."""
    class Tensor:
        def __init__(self, a):
            self.a = a

        def detach(self):
            return self

        cpu = contiguous = detach

        def reshape(self, n):
            return Tensor(self.a.reshape(n))

        def view(self, dtype):
            return Tensor(self.a.view(dtype))

        def numpy(self):
            return self.a
    Tensor.__module__ = "torch"
    fake = type(sys)("torch")
    fake.uint8, fake.from_numpy = np.uint8, Tensor
    monkeypatch.setitem(sys.modules, "torch", fake)
    x = np.arange(30, dtype="float64").reshape(5, 6)
    one.put("k", Tensor(x))
    p = one.get("k")
    assert np.array_equal(p.numpy("float64", (5, 6)), x)
    assert p.tensor.a.dtype == np.uint8 and p.tensor.a.shape == (240,)


EXIT = """
import sys
sys.path.insert(0, {path!r})
import kvferry
c = kvferry.Client({endpoint!r}, on_event=print)
held = c.alloc(1000)
x = held.numpy()
c.put("k", b"x" * 100000, readers=0)
got = c.get("k")
class Late:
    def __del__(self):
        got.discard()
        held.discard()
late = Late()
late.me = late
{end}
"""


@pytest.mark.parametrize("end", ["", "c.close()", "del c",
                                 "import os; os.fork() or os._exit(0)",
                                 "raise SystemExit(0)"])
def test_interpreter_exit(one, end):
    code = EXIT.format(path=kvf.ROOT + "/src/python",
                       endpoint=one.daemon.endpoint, end=end)
    got = subprocess.run([sys.executable, "-c", code], capture_output=True,
                         text=True, timeout=30)
    assert (got.returncode, got.stdout, got.stderr) == (0, "", "")
    drops_to_zero(one)


def test_fork(one):
    import os
    pid = os.fork()
    if pid == 0:
        try:
            one.ping()
        except kvferry.ClientClosed:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    one.ping()
