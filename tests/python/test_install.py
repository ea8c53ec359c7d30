"""The wheel that pip builds from the tree."""
import importlib.util
import os
import re
import zipfile

import kvf

import kvferry

HERE = os.path.join(kvf.ROOT, "src", "python")


def backend():
    spec = importlib.util.spec_from_file_location(
        "wheel_of_tree", os.path.join(HERE, "wheel_of_tree.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wheel_has_the_package(tmp_path):
    name = backend().build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / name) as z:
        names = z.namelist()
        record = z.read("kvferry-0.1.0.dist-info/RECORD").decode()
    want = {f"kvferry/{n}" for n in os.listdir(f"{HERE}/kvferry")
            if n.endswith(".py")} | {"kvferry/py.typed"}
    assert want == {n for n in names if n.startswith("kvferry/")}
    assert all(n + "," in record for n in names)


def test_wheel_and_pyproject_agree():
    with open(f"{HERE}/pyproject.toml", encoding="utf-8") as f:
        text = f.read()
    meta = backend().METADATA
    assert f'version = "{kvferry.__version__}"' in text
    assert f"Version: {kvferry.__version__}\n" in meta
    wants = re.findall(r'"(\w+>=[\d.]+)"',
                       re.search(r"\ndependencies = (.*)", text).group(1))
    assert wants == re.findall(r"Requires-Dist: (\S+)\n", meta)
    python = re.search(r'requires-python = "(.*)"', text).group(1)
    assert f"Requires-Python: {python}\n" in meta
