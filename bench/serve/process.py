"""Forking with a name in `ps` and an end with the parent."""
import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def die_with_parent(parent, sig=signal.SIGKILL):
    """Called in a child; `parent` is the pid that should be its parent's."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(sig))
    if os.getppid() != parent:
        os._exit(1)


def fork(name):
    """0 in the child, which is called `name` and ends with its parent."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with_parent(parent)
        _libc.prctl(_PR_SET_NAME, name.encode()[:15])
        for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(s, signal.SIG_DFL)
    return pid
