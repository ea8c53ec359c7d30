"""The buffer protocol for a Python class.

`@exports` makes memoryview(obj), numpy.frombuffer(obj) and the like work for
a class whose `_export()` returns a memoryview. From Python 3.12 on that is
__buffer__. Before, CPython's heap types have the two slots of the protocol but
no Python way to fill them; they are filled here with a function that passes
the request on to that memoryview (the "redirect" of the C API's manual). So an
export counts as one of that memoryview, and its release() refuses while any
is alive.

On interpreters that have neither, the class works without it, and its `view`
does the same.
"""
from __future__ import annotations

import ctypes
import pickle
import struct
import sys
from typing import Any, List, Type, TypeVar

T = TypeVar("T")

# struct _typeobject: ob_base (24 bytes), then tp_as_buffer is the 18th word.
_AS_BUFFER = 24 + 17 * 8
_keep: List[Any] = []


def tracked(view: memoryview) -> memoryview:
    """A memoryview that counts as an export of `view`, slices of it too.

    memoryview(view) and view[:] would be siblings of `view`, which its
    release() does not see.
    """
    return memoryview(pickle.PickleBuffer(view))


def _slots_known() -> bool:
    return (sys.implementation.name == "cpython" and struct.calcsize("P") == 8
            and (3, 8) <= sys.version_info[:2] < (3, 12)
            and not hasattr(sys, "gettotalrefcount"))


def _getbuffer(exporter: Any, out: int, flags: int) -> int:
    # An exception cannot leave a callback of ctypes: without one set, -1
    # becomes a SystemError, so what was released exports an empty buffer.
    try:
        view = exporter._export()
    except ValueError:
        view = memoryview(b"")
    try:
        return ctypes.pythonapi.PyObject_GetBuffer(
            ctypes.py_object(view), ctypes.c_void_p(out), ctypes.c_int(flags))
    except BufferError:  # asked to write what is read-only
        return -1


def exports(cls: Type[T]) -> Type[T]:
    """Class decorator, see above."""
    if sys.version_info >= (3, 12):
        def __buffer__(self: Any, flags: int) -> memoryview:
            return tracked(self._export())

        def __release_buffer__(self: Any, view: memoryview) -> None:
            """Nothing to do, but numpy looks whether it is there."""
        setattr(cls, "__buffer__", __buffer__)
        setattr(cls, "__release_buffer__", __release_buffer__)
    elif _slots_known():
        slots = ctypes.c_void_p.from_address(id(cls) + _AS_BUFFER).value or 0
        if not id(cls) < slots < id(cls) + cls.__sizeof__(cls):
            return cls  # not the layout that we know: leave it alone
        proto = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object,
                                  ctypes.c_void_p, ctypes.c_int)
        function = proto(_getbuffer)
        _keep.append(function)
        ctypes.c_void_p.from_address(slots).value = ctypes.cast(
            function, ctypes.c_void_p).value
        # Never called, as exports are the memoryview's. But where a type has
        # none, numpy keeps the object instead of the export.
        done = ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.c_void_p)(
            lambda exporter, view: None)
        _keep.append(done)
        ctypes.c_void_p.from_address(slots + 8).value = ctypes.cast(
            done, ctypes.c_void_p).value
    return cls
