"""The package promises types (py.typed): they hold, strictly."""
import os
import shutil
import subprocess

import pytest

SOURCE = os.path.join(os.path.dirname(__file__), "..", "..", "src", "python")


def test_types_hold(tmp_path):
    mypy = shutil.which("mypy", path="/usr/bin")
    if mypy is None:
        pytest.skip("mypy is not installed")
    done = subprocess.run([mypy, "--cache-dir", str(tmp_path), "kvferry"],
                          cwd=SOURCE, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
