"""The examples of the docstrings, against a daemon."""
import asyncio
import doctest
import importlib

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
