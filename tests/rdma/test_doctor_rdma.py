"""kvferry doctor where there is a verbs device."""
import json

import pytest
from vm_daemon import ENV, SLOW

pytestmark = pytest.mark.sanitized


def doctor(d, options=""):
    """Findings by check, and the exit status."""
    status, text = d.g.run(f"{ENV}kvferry doctor --json --config {d.base}.ini "
                           f"{options}", 60 * SLOW)
    found = [json.loads(x) for x in text.splitlines() if x.startswith("{")]
    return {f["check"]: f for f in found}, status


def test_doctor_tells_what_the_daemon_takes(guest, start):
    a = start(guest, 0).start()
    found, status = doctor(a)
    assert status == 0, found
    assert "the advertised address" in found["rdma rxe0:1"]["finding"]
    first = [c for c, f in found.items() if "<- first" in f["finding"]]
    assert first == ["rdma rxe0:1 gid 1"], found
    # The daemon's own choice, from its log.
    a.wait_log(r"device=rxe0:1 .* gid=1 \(10\.0\.0\.1, RoCE v2\)")
    assert found["rdma rxe0 memory"]["level"] == "ok"


def test_doctor_names_what_is_wrong_with_the_device(guest, start):
    a = start(guest, 0, {"connector": {"device_name": "mlx9_0"}})
    a.spawn()
    assert a.wait_exit() != 0
    assert "mlx9_0" in a.log() and "kvferry doctor" in a.log(), a.log()
    found, status = doctor(a)
    assert status == 1 and found["rdma"]["level"] == "FAIL", found
    assert "mlx9_0" in found["rdma"]["finding"]
