"""One class per status, as include/kvferry/status.h has them."""
import os
import re

import kvf
import pytest

import kvferry
from kvferry import errors


def table():
    with open(os.path.join(kvf.ROOT, "include", "kvferry", "status.h"),
              encoding="utf-8") as f:
        return re.findall(r'X\((\w+), (\d+), +"(.*?)"\)', f.read())


def test_table_is_that_of_the_header():
    rows = table()
    assert len(rows) == 22
    assert [r[0] for r in rows] == ["OK", *kvferry.BY_STATUS]
    for name, number, text in rows[1:]:
        cls = kvferry.BY_STATUS[name]
        assert cls.number == int(number)
        assert cls.__name__ == name.title().replace("_", "")
        assert getattr(kvferry, cls.__name__) is cls
        words = [w for w in re.findall(r"\w+", text.lower())]
        doc = re.findall(r"\w+", cls.__doc__.lower())
        assert [w for w in words if w in doc] == words, name


def test_classes():
    e = errors.error_for("NO_SPACE", "full", {"free": 3})
    assert isinstance(e, kvferry.NoSpace) and e.reply["free"] == 3
    assert str(e) == "NO_SPACE: full" and e.message == "full"
    assert isinstance(errors.error_for("NEW_ONE"), kvferry.Internal)
    assert issubclass(kvferry.ConnectionLost, kvferry.PeerUnreachable)
    assert issubclass(kvferry.Timeout, TimeoutError)
    with pytest.raises(ConnectionError):
        raise errors.error_for("PEER_UNREACHABLE")
