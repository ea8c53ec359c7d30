"""Fixtures: the guests, booted once a run, and daemons in them.

Where no guest can be had every test is skipped with the reason. A daemon that a
fixture made must end with 0, without a sanitizer report and with every
verbs object given back to the kernel. Starting and ending daemons takes most
tests longer than what they test: where it does not matter the tests of a module
share them, each leaves them as it found them, and after one that failed they
are new.
"""
import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import guest as vm  # noqa: E402
import image  # noqa: E402
import vm_daemon  # noqa: E402
from kvf_base import BUILD  # noqa: E402

LIMIT = 120  # seconds a test may take, the boot left aside
HELD = {}


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "slow: takes long; left out on the sanitized build")
    config.addinivalue_line(
        "markers", "release_only: measures, or preloads: not on a sanitized build")
    config.addinivalue_line(
        "markers", "sanitized: one build is enough; tests/run takes that one")


def files():
    """Kernel and initial file system; made once."""
    if "skip" in HELD:
        pytest.skip(HELD["skip"])
    if "files" not in HELD:
        HELD["initrd"] = image.initrd(BUILD)
        try:
            HELD["files"] = HELD["initrd"].__enter__()
        except image.Unavailable as e:
            HELD["skip"] = f"no test guest: {e}"
            pytest.skip(HELD["skip"])
    return HELD["files"]


def pytest_sessionfinish(session):
    for name in ("one", "pair"):
        if name in HELD:
            HELD.pop(name).close()
    if "files" in HELD:
        HELD["initrd"].__exit__(None, None, None)


@pytest.fixture(scope="session")
def guest():
    """One guest; two daemons in it reach each other over rxe0."""
    if "one" not in HELD:
        HELD["one"] = vm.Guest(files())
        HELD["one"].boot()
    return HELD["one"]


@pytest.fixture(scope="module")
def pair():
    """Two guests with a network; the single one is gone by then."""
    if "one" in HELD:
        HELD.pop("one").close()
    if "pair" not in HELD:
        HELD["pair"] = vm.Pair(files())
    return HELD["pair"]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """A test that hangs fails by itself."""
    def ring(signum, frame):
        raise TimeoutError(f"{item.nodeid} took too long")
    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(int(LIMIT * min(vm_daemon.SLOW, 2)))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    out = yield
    if call.when != "teardown" and out.get_result().failed:
        item.failed = True


def finish(failed, made, guests):
    """Ends daemons; what is wrong with one is raised after all are gone."""
    errors = []
    live = [d for d in made if d.pid is not None and not failed]
    for d in live:
        try:
            d.signal("TERM")  # all at once; then one is waited for
        except vm.GuestError as e:
            errors.append(e)
    for d in made:
        try:
            if failed:
                print(f"--- log of stage {d.stage}.{d.rank}\n{d.log()[-6000:]}")
            elif d in live:
                d.ended()
        except Exception as e:  # the others must be ended, too
            errors.append(e)
    for g in guests:
        try:
            # Whatever is left; all of it is inside the guest.
            g.run("killall -9 kvferryd kvferry load blocks; "
                  "while pidof kvferryd; do sleep 0.05; done; "
                  "rm -rf /tmp/* /run/*", 20)
            if not failed and not errors:
                assert vm_daemon.verbs_objects(g) == g.idle_objects
        except Exception as e:
            errors.append(e)
    if errors and not failed:
        raise errors[0]


class Starter:
    """start(guest, stage, conf, rank=...) makes a daemon; end() ends them."""

    def __init__(self):
        self.made, self.guests = [], []

    def __call__(self, g, stage, conf=None, **kw):
        if not hasattr(g, "idle_objects"):
            g.idle_objects = vm_daemon.verbs_objects(g)
        d = vm_daemon.Daemon(g, stage, conf, start=False, **kw)
        if g not in self.guests:
            self.guests.append(g)
        self.made.append(d)
        return d

    def end(self, failed):
        finish(failed, self.made, self.guests)


def has_failed(request):
    return getattr(request.node, "failed", False)


@pytest.fixture
def start(request):
    """Makes daemons for one test."""
    s = Starter()
    yield s
    s.end(has_failed(request))


class Kept:
    """What tests share; made anew for another key, and after end()."""

    def __init__(self):
        self.key = self.value = self.starter = None

    def get(self, key, make):
        """make(start), or what that was the last time."""
        if self.starter is None or self.key != key:
            self.end(False)
            self.key, self.starter = key, Starter()
            try:
                self.value = make(self.starter)
            except BaseException:
                self.end(True)
                raise
        return self.value

    def end(self, failed):
        if self.starter is not None:
            starter, self.starter = self.starter, None
            starter.end(failed)


@pytest.fixture(scope="module")
def kept_by_module():
    k = Kept()
    yield k
    k.end(False)


@pytest.fixture
def kept(request, kept_by_module):
    yield kept_by_module
    if has_failed(request):
        kept_by_module.end(True)


def two_that_know_each_other(g, start):
    a, b = start(g, 0), start(g, 1)
    return vm_daemon.start_all(a.knows(b), b.knows(a))


@pytest.fixture
def ab(request, guest, kept):
    """Two daemons in one guest; the tests of a module share them, and each
    leaves their pools free."""
    both = kept.get("ab", lambda s: two_that_know_each_other(guest, s))
    yield both
    for d in both if not has_failed(request) else ():
        vm_daemon.until(d.all_free, f"stage {d.stage} is left all free")
