"""Fixtures. Every daemon that a fixture made is ended at the end of the test
and must then have all bytes FREE, exit with 0 and a log without sanitizer
reports; a test that killed its daemon is spared the first two."""
import os
import signal
import sys
import zlib

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kvf  # noqa: E402

LIMIT = 60  # seconds a test may take; `slow` ones get four times that


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than some seconds")
    config.addinivalue_line(
        "markers", "release_only: measures, or preloads: not on a sanitized build")


def pytest_sessionstart(session):
    if not session.config.option.collectonly and not os.path.exists(
            kvf.KVFERRYD):
        pytest.exit(f"there is no {kvf.KVFERRYD}: build first, or name the "
                    "build folder in KVF_BUILD", returncode=3)


def pytest_collection_modifyitems(config, items):
    shard = os.environ.get("KVF_SHARD")
    if not shard:
        return
    me, of = (int(x) for x in shard.split("/"))
    mine = [i for i in items if zlib.crc32(i.nodeid.encode()) % of == me]
    config.hook.pytest_deselected(items=[i for i in items if i not in mine])
    items[:] = mine


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """A test that hangs fails by itself."""
    def ring(signum, frame):
        raise TimeoutError(f"{item.nodeid} took too long")
    slow = item.get_closest_marker("slow") is not None
    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(int(LIMIT * (4 if slow else 1) * min(kvf.SLOW, 2)))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    out = yield
    if call.when == "call":
        item.failed_call = out.get_result().failed


@pytest.fixture
def make(request):
    """Starts daemons (arguments as kvf.Daemon's); all are ended and checked."""
    made = []

    def start(*args, **kw):
        d = kvf.Daemon(*args, start=False, **kw)
        made.append(d)
        return d.start()
    start.made = made
    yield start
    failed = getattr(request.node, "failed_call", False)
    for d in made:
        d.close_clients()
    errors = []
    for d in reversed(made):
        if failed and d.proc is not None:
            print(f"--- log of daemon {d.stage}.{d.rank}\n"
                  f"{d.log()[-6000:]}")
        try:
            d.close(check=not failed)
        except BaseException as e:
            errors.append(e)
    if errors:
        raise errors[0]


@pytest.fixture
def daemon(make):
    return make()


@pytest.fixture
def client(daemon):
    """A DEALER without a session."""
    return daemon.client()


@pytest.fixture
def engine(daemon):
    """A DEALER with a session."""
    return daemon.engine()


class Pair:
    """Stage 0 (src) and stage 1 (dst), which knows where stage 0 is, with an
    engine at each."""

    def __init__(self, make, conf=None, dst_conf=None):
        self.src = make(0, conf=conf)
        self.dst = make(1, conf=kvf.merge(conf, dst_conf))
        self.dst.knows(self.src)
        self.a, self.b = self.src.engine(), self.dst.engine()

    def meet(self):
        """Both daemons have a session with each other."""
        self.a.ok("put", b"x", key="kvf-meet")
        assert self.b.fetch("kvf-meet") == b"x"

    def getter_comes_back_without_views(self, old):
        """The daemon of stage 1, ended before, starts again, and its engine
        has unmapped what it saw through that one (incarnation old)."""
        self.dst.restart()
        self.dst.knows(self.src)
        b = self.dst.client()
        b.request("get", key="no", mode="inline", timeout_ms=300)  # meet
        b.hello(unmapped=old)


@pytest.fixture
def pair_of(make):
    return lambda **kw: Pair(make, **kw)


@pytest.fixture
def pair(pair_of):
    return pair_of()


@pytest.fixture
def tcp_pair(pair_of):
    """The same with tcp only, and nothing small enough to be eager."""
    return pair_of(conf={"connector": {"protocol": "tcp"}})


@pytest.fixture
def other_process(request):
    """Starts engines in processes of their own."""
    made = []

    def start(daemon, **kw):
        e = kvf.Engine(daemon.endpoint, **kw)
        made.append(e)
        return e
    yield start
    for e in made:
        e.close()
