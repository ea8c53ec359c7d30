"""The examples of the docstrings and of docs/PYTHON.md, against daemons."""
import asyncio
import doctest
import importlib
import re

import kvf
import numpy
import pytest

import kvferry

FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
MODULES = ["kvferry", "kvferry.aio", "kvferry.client", "kvferry.errors",
           "kvferry.ops", "kvferry.buffers", "kvferry.omni_data",
           "kvferry.blocks", "kvferry.windows"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, one):
    module = importlib.import_module(name)
    names = {**vars(kvferry), **vars(module), "client": one, "numpy": numpy,
             "asyncio": asyncio, "endpoint": one.daemon.endpoint}
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    n = 0
    for test in doctest.DocTestFinder(exclude_empty=True).find(
            module, globs=names):
        runner.run(test)
        n += len(test.examples)
    assert runner.failures == 0
    assert n > 0 or name == "kvferry.buffers"


def test_first_examples_of_the_page(make, monkeypatch, capsys):
    """As they are, with daemons as those of the README."""
    conf = {"worker": {"cluster": "demo", "engine_endpoint": "auto"}}
    src = make(0, conf=conf)
    make(1, conf=conf, run=src.run).knows(src)
    monkeypatch.setenv("XDG_RUNTIME_DIR", src.run)
    with open(f"{kvf.ROOT}/docs/PYTHON.md", encoding="utf-8") as f:
        put, get = re.findall(r"```python\n(.*?)```", f.read(), re.DOTALL)
    for example in put, get:
        exec(example, {})
    assert capsys.readouterr().out == "1.0\n"
