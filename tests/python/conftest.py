"""The daemons of the integration tests, and clients of the package."""
import importlib.util
import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
sys.path.insert(0, os.path.join(os.path.dirname(TESTS), "src", "python"))

_spec = importlib.util.spec_from_file_location(
    "kvf_fixtures", os.path.join(TESTS, "integration", "conftest.py"))
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)
globals().update({k: v for k, v in vars(_fixtures).items()
                  if not k.startswith("__")})

import kvf  # noqa: E402
import kvferry  # noqa: E402


@pytest.fixture
def connect():
    """Opens clients; all are closed before the daemons are."""
    made = []

    def start(daemon, **kw):
        c = kvferry.Client(daemon.endpoint, name="test", **kw)
        made.append(c)
        return c
    yield start
    for c in made:
        c.close()


@pytest.fixture
def one(make, connect):
    """A client of one daemon. `client.me` names the daemon as a source."""
    d = make(0)
    c = connect(d)
    c.daemon = d
    c.me = (d.peer_host, d.peer_port)
    return c


@pytest.fixture
def two(make, connect):
    """Clients of two daemons; the second knows the first."""
    src, dst = make(0), make(1)
    dst.knows(src)
    a, b = connect(src), connect(dst)
    a.daemon, b.daemon = src, dst
    return a, b


@pytest.fixture
def two_tcp(make, connect):
    conf = {"connector": {"protocol": "tcp"}}
    src, dst = make(0, conf=conf), make(1, conf=conf)
    dst.knows(src)
    a, b = connect(src), connect(dst)
    a.daemon, b.daemon = src, dst
    return a, b


__all__ = ["kvf", "kvferry"]
