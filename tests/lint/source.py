"""What the checks share: the files of the tree, C without its comments and
strings, and the way findings are printed.

Failure modes: outside git every file below the known folders is taken.
"""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
FOLDERS = ("bench", "config", "docs", "include", "python", "src", "tests")

_TOKEN = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S)


def tracked():
    """Paths relative to the root, sorted: what git knows and is there."""
    got = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"],
                         capture_output=True, check=False)
    if got.returncode == 0 and got.stdout:
        names = got.stdout.decode().split("\0")
    else:
        names = [os.path.relpath(os.path.join(d, f), ROOT)
                 for top in FOLDERS
                 for d, _, files in os.walk(os.path.join(ROOT, top))
                 for f in files]
    return sorted(n for n in set(names)
                  if n and os.path.isfile(os.path.join(ROOT, n)))


def read(path):
    """Text of a file; bytes that are not UTF-8 become surrogates."""
    with open(os.path.join(ROOT, path), encoding="utf-8",
              errors="surrogateescape") as f:
        return f.read()


def is_c(path):
    return path.endswith((".c", ".h"))


def code_only(text, keep_strings=False):
    """C with comments (and strings) blanked; lines keep their numbers."""
    def blank(m):
        t = m.group(0)
        if keep_strings and t[0] in "\"'":
            return t
        return re.sub(r"[^\n]", " ", t)
    return _TOKEN.sub(blank, text)


class Findings:
    def __init__(self):
        self.n = 0

    def add(self, path, line, text):
        self.n += 1
        print(f"{path}:{line}: {text}")

    def finish(self, what):
        """Exits: 1 when anything was found."""
        print(f"{what}: {self.n} finding{'' if self.n == 1 else 's'}")
        sys.exit(1 if self.n else 0)
