"""kvferry bench as a pair in one guest; test_two_guests.py has it in two."""
import bench_pair
import pytest

pytestmark = pytest.mark.sanitized


def test_a_pair_moves_and_verifies_over_rdma(guest):
    bench_pair.moves_and_verifies(guest, guest)
