"""Makes the wheel: the package's files and their list, nothing to compile.

A build backend of its own (PEP 517, 660), so that `pip install ./src/python`
works on machines that reach no package index. What it writes is what
pyproject.toml says; a test compares them.
"""
import base64
import hashlib
import os
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
VERSION = "0.1.0"
DIST = f"kvferry-{VERSION}"
METADATA = f"""Metadata-Version: 2.1
Name: kvferry
Version: {VERSION}
Summary: Client of kvferryd, the KV-cache transfer daemon
Requires-Python: >=3.9
Requires-Dist: pyzmq>=22
Requires-Dist: msgpack>=1.0
Provides-Extra: numpy
Requires-Dist: numpy; extra == "numpy"
Provides-Extra: checksum
Requires-Dist: xxhash; extra == "checksum"
"""
WHEEL = """Wheel-Version: 1.0
Generator: kvferry
Root-Is-Purelib: true
Tag: py3-none-any
"""


def _write(folder, files):
    name = f"{DIST}-py3-none-any.whl"
    info = f"{DIST}.dist-info"
    files = {**files, f"{info}/METADATA": METADATA.encode(),
             f"{info}/WHEEL": WHEEL.encode()}
    record = ""
    with zipfile.ZipFile(os.path.join(folder, name), "w",
                         zipfile.ZIP_DEFLATED) as z:
        for path, data in files.items():
            z.writestr(path, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
            record += (f"{path},sha256={digest.decode().rstrip('=')},"
                       f"{len(data)}\n")
        z.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return name


def build_wheel(wheel_directory, config_settings=None,
                metadata_directory=None):
    files = {}
    package = os.path.join(HERE, "kvferry")
    for name in sorted(os.listdir(package)):
        if name.endswith(".py") or name == "py.typed":
            with open(os.path.join(package, name), "rb") as f:
                files[f"kvferry/{name}"] = f.read()
    return _write(wheel_directory, files)


def build_editable(wheel_directory, config_settings=None,
                   metadata_directory=None):
    return _write(wheel_directory, {"kvferry.pth": HERE.encode() + b"\n"})
