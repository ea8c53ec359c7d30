"""A daemon and the verbs transport on a machine without a verbs device. (With
one: tests/rdma.)"""
import os
import re

import pytest

import kvf

pytestmark = pytest.mark.skipif(
    os.path.isdir("/sys/class/infiniband") and
    bool(os.listdir("/sys/class/infiniband")),
    reason="this machine has a verbs device")


def test_auto_goes_on_and_says_so_once(make):
    d = make(conf={"connector": {"protocol": "auto"}})
    e = d.engine()
    e.ok("put", b"bytes", key="k")
    assert e.fetch("k") == b"bytes"
    assert len(re.findall(r"\[RDMA\] off: ", d.log())) == 1
    stats = e.ok("stats")
    rdma = stats["transports"]["rdma"]
    assert rdma["on"] is False and rdma["device"] == ""
    assert all(rdma[k] == 0 for k in ("qps", "cqs", "mrs", "links"))


@pytest.mark.parametrize("protocol", ["rdma", "rdma, tcp"])
def test_naming_it_is_an_error_at_start(make, protocol):
    with pytest.raises(kvf.DaemonExited) as x:
        make(conf={"connector": {"protocol": protocol}})
    text = str(x.value.args)
    assert "protocol names rdma" in text and "no verbs device" in text, text


def test_a_device_that_is_not_there_is_named(make):
    with pytest.raises(kvf.DaemonExited) as x:
        make(conf={"connector": {"protocol": "rdma",
                                 "device_name": "mlx5_7:1"}})
    assert "verbs device" in str(x.value.args)
