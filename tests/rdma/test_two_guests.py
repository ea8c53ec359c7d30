"""Two guests with a network: faults in the middle of a transfer.

Owner in the first, getter in the second. The network is slowed so that a
transfer takes long enough to be disturbed; a fault comes when some of its bytes
have arrived. After each one the next get goes over rdma again, every byte is
right, and pools, descriptors and verbs objects are as they were before. The
same daemons go through one test after the other: what a fault leaves behind
would meet the next.
"""
import time

import bench_pair
import pytest
import vm_daemon
from vm_daemon import ENV, SLOW, TRANSPORT, until

MIB = 1 << 20
SIZE = 12 * MIB
RATE = "64mbit"  # 1.6 s for SIZE; below what two emulated machines manage
# What is under way fits the slow network: the daemons' own messages queue
# behind it.
RDMA = {"rdma": {"depth": 2, "chunk": "512KiB"},
        "connector": {"memory_pool_size": "40MiB"}}
RX = "/sys/class/net/eth0/statistics/rx_bytes"
ROCE = "u32 match ip protocol 17 0xff match ip dport 4791 0xffff"


class Stage:
    """The two daemons and what is done to them."""

    def __init__(self, pair, start, conf=None):
        self.net = pair
        self.g1, self.g2 = pair.guests
        self.fills = 0
        conf = vm_daemon.merge(RDMA, conf)
        self.a = start(self.g1, 0, conf)
        self.b = start(self.g2, 1, conf).knows(self.a)
        vm_daemon.start_all(self.a, self.b)
        self.warm()
        self.before = vm_daemon.snapshot(self.a, self.b)

    def fill(self, size=SIZE):
        """The payload: /tmp/in, and its sum. It is another each time, since
        pools still hold the bytes of earlier ones: random bytes, made once in
        this guest, from another place on."""
        self.fills += 1
        made = "/dev/shm/random"
        return self.g1.sh(
            f"[ -s {made} ] || head -c {SIZE + MIB} /dev/urandom >{made}; "
            f"tail -c +{self.fills * 4099} {made} | head -c {size} >/tmp/in; "
            "md5sum </tmp/in")

    def warm(self, transport=TRANSPORT, tries=1):
        """A get must come by `transport`, and whole."""
        for left in reversed(range(tries)):
            want = self.fill(200_000)
            self.a.put("warm", "/tmp/in")
            got = self.b.get("warm", "/tmp/out")
            assert self.g2.sh("md5sum </tmp/out") == want
            if got["transport"] == transport:
                return
            time.sleep(0.5)
        assert got["transport"] == transport, got

    def slow(self, rate=RATE):
        self.g1.sh(f"/bin/tc qdisc replace dev eth0 root netem rate {rate} "
                   "limit 20000")

    def fast(self):
        self.g1.run("/bin/tc qdisc del dev eth0 root")

    def begin(self, key="k", arrived=3 * MIB, timeout="60s", size=SIZE):
        """Starts a get and returns when `arrived` bytes are here."""
        self.want = self.fill(size)
        self.a.put(key, "/tmp/in")
        self.slow()
        command = self.b.get_command(key, "/tmp/out", timeout)
        text = (f"at=$(($(cat {RX}) + {arrived})); rm -f /tmp/rc /tmp/out\n"
                f"(timeout 100 {command} >/tmp/get 2>&1; echo $? >/tmp/rc) "
                ">/dev/null 2>&1 &\n"
                f"until [ $(cat {RX}) -gt $at ] || [ -s /tmp/rc ]; do :; done\n"
                "[ ! -s /tmp/rc ] || { cat /tmp/get; exit 1; }")
        self.g2.sh(ENV + text, 30 * SLOW)

    def result(self, seconds=60):
        """(status, output) of the get."""
        text = self.g2.sh("until [ -s /tmp/rc ]; do sleep 0.05; done; "
                          "cat /tmp/rc /tmp/get", seconds * SLOW)
        status, _, said = text.partition("\n")
        return int(status), said

    def arrives(self, transport=TRANSPORT, seconds=60):
        """The get succeeds, with the right bytes."""
        status, text = self.result(seconds)
        assert status == 0, text
        assert self.g2.sh("md5sum </tmp/out") == self.want
        assert transport is None or f"transport={transport} " in text, text
        return text

    def fails(self, seconds=60):
        status, text = self.result(seconds)
        assert status != 0, text
        return text

    def heals(self, transport=TRANSPORT, more_fds=0):
        """The next get goes over rdma, and nothing is left behind."""
        self.fast()
        self.a.cli("fail k")  # if its get failed it is still published
        self.warm(transport, tries=20)
        vm_daemon.settles(self.before, self.a, self.b, more_fds=more_fds)

    def block_roce(self):
        """Packets of rdma are lost on their way here; all others arrive."""
        self.g2.sh("/bin/tc qdisc add dev eth0 ingress; /bin/tc filter add "
                   f"dev eth0 parent ffff: protocol ip prio 1 {ROCE} "
                   "action drop")

    def unblock_roce(self):
        self.g2.sh("/bin/tc qdisc del dev eth0 ingress")


def calm(g):
    g.run("/bin/tc qdisc del dev eth0 root; /bin/tc qdisc del dev eth0 ingress")


@pytest.fixture
def stage_of(pair, kept):
    """stage_of(conf): with daemons of before if they had the same conf."""
    yield lambda conf=None: kept.get(
        repr(conf), lambda start: Stage(pair, start, conf))
    for g in pair.guests:
        if g.frozen:
            g.thaw()
    vm_daemon.beside(calm, pair.guests)
    pair.guests[1].link(True)


@pytest.fixture
def stage(stage_of):
    return stage_of()


@pytest.mark.slow
def test_a_short_loss_of_the_link_is_not_noticed(stage):
    stage.begin()
    stage.g2.link(False)
    time.sleep(0.3)
    stage.g2.link(True)
    stage.arrives()
    stage.heals()


@pytest.mark.slow
def test_a_long_loss_of_the_link_ends_and_heals(stage):
    """Longer than all retries: the getter may give up, but not hang."""
    stage.begin()
    stage.g2.link(False)
    time.sleep(8)
    stage.g2.link(True)
    status, text = stage.result()
    if status == 0:
        assert stage.g2.sh("md5sum </tmp/out") == stage.want
    stage.heals()


@pytest.mark.slow
def test_a_port_that_goes_down_and_up_heals(stage):
    stage.begin()
    stage.g2.sh("/bin/ip link set eth0 down; sleep 1; "
                "/bin/ip link set eth0 up")
    stage.result()
    stage.heals()


@pytest.mark.sanitized
def test_the_owner_is_killed(stage):
    stage.begin()
    stage.a.kill()
    text = stage.fails(20)
    assert "PEER_UNREACHABLE" in text or "peer" in text.lower(), text
    until(stage.b.all_free, "all free at the getter")
    stage.a.start()
    stage.heals()


@pytest.mark.slow
def test_the_owner_is_restarted(stage):
    stage.a.end()
    stage.a.start()
    stage.heals()
    stage.begin()
    stage.arrives()
    stage.heals()


@pytest.mark.slow
def test_the_owner_stands_still(stage):
    """Its memory can still be read: the get ends either way."""
    stage.begin()
    stage.a.signal("STOP")
    status, _ = stage.result(40)
    if status == 0:
        assert stage.g2.sh("md5sum </tmp/out") == stage.want
    stage.a.signal("CONT")
    stage.heals()


@pytest.mark.slow
def test_the_machine_of_the_owner_stands_still(stage):
    stage.begin()
    stage.g1.freeze()
    status, _ = stage.result(40)
    if status == 0:
        assert stage.g2.sh("md5sum </tmp/out") == stage.want
    stage.g1.thaw()
    stage.heals()


@pytest.mark.sanitized
def test_the_getter_is_killed(stage):
    """Its claim is given back: another get has the bytes."""
    stage.begin()
    stage.b.kill()
    stage.result()
    stage.b.start()
    stage.fast()
    stage.b.get("k", "/tmp/out")
    assert stage.g2.sh("md5sum </tmp/out") == stage.want
    stage.heals()


@pytest.mark.parametrize("how", [
    pytest.param("daemon", marks=pytest.mark.sanitized),
    pytest.param("machine", marks=pytest.mark.slow)])
def test_memory_is_taken_from_a_getter_that_stands_still(stage, how):
    """The owner does not wait for it: access is revoked, bytes are FREE, and
    what it reads afterwards is an error, not others' bytes."""
    stage.begin()
    if how == "daemon":
        stage.b.signal("STOP")
    else:
        stage.g2.freeze()
    stage.a.ok("fail k gone")
    until(stage.a.all_free, "all free at the owner")
    stage.g1.sh("head -c 36000000 /dev/zero >/tmp/zero")  # most of the pool
    stage.a.put("zero", "/tmp/zero")
    if how == "daemon":
        stage.b.signal("CONT")
    else:
        stage.g2.thaw()
    status, text = stage.result()
    if status == 0:
        assert stage.g2.sh("md5sum </tmp/out") == stage.want
    stage.a.ok("fail zero")
    stage.heals()


@pytest.mark.sanitized
def test_stress_over_a_network_that_loses_packets(stage):
    seed, count = 4001, 60 if SLOW == 1 else 30
    print(f"seed {seed}")
    stage.g1.sh("/bin/tc qdisc replace dev eth0 root netem loss 0.1% "
                "limit 20000")
    g, h = stage.g1, stage.g2
    g.sh(f"{ENV}(load put {stage.a.endpoint} {seed} {count} {MIB} 12 "
         ">/tmp/put 2>&1; echo $? >/tmp/put.rc) >/dev/null 2>&1 &")
    text = h.sh(f"{ENV}KVF_LOAD_RETRY_S=40 load get {stage.b.endpoint} {seed} "
                f"{count} {MIB} 8 {TRANSPORT} 10", 60 * SLOW)
    assert "LOAD OK" in text, text
    g.sh("until [ -s /tmp/put.rc ]; do sleep 0.05; done", 20 * SLOW)
    assert "LOAD OK" in g.sh("cat /tmp/put")
    stage.heals()


@pytest.mark.release_only
def test_a_getter_is_expelled_without_a_stall(stage_of, kept):
    """Packets for it are still in the network card's queue: the owner's loop
    does not wait for them in the device."""
    kept.end(False)  # the longest lag is that of a daemon's whole life
    stage = stage_of()
    stage.begin()
    stage.slow("1mbit")  # what is under way takes seconds
    stage.b.signal("STOP")
    stage.a.wait_log(r"down \(getter\)", 40)
    stage.a.ok("fail k gone")
    until(stage.a.all_free, "all free at the owner")
    lag = stage.a.status()["histograms"]["loop_lag_us"]
    print(f"loop lag of the owner: {lag}")
    stage.b.signal("CONT")
    stage.result()
    stage.heals()
    assert lag["max"] < 300_000, lag


@pytest.mark.sanitized
def test_doctor_reads_from_the_other_guest(stage_of):
    """The way there is tcp's here, the way back is RDMA READs."""
    stage = stage_of({"connector": {"protocol": "auto"}})
    text = stage.g2.sh(f"{ENV}kvferry doctor --config {stage.b.base}.ini "
                       f"--peer {stage.g1.addr}:7000", 60 * SLOW)
    assert text.count(f"came back whole by {TRANSPORT}") == 2, text
    stage.heals(more_fds=2)


@pytest.mark.sanitized
def test_tcp_takes_over_in_the_middle_and_rdma_comes_back(stage_of):
    stage = stage_of({"connector": {"protocol": "auto"}})
    stage.begin()
    stage.block_roce()
    stage.arrives("tcp")
    assert stage.b.counter("fallbacks") >= 1
    stage.unblock_roce()
    stage.heals(more_fds=2)  # the bulk connections of tcp stay


@pytest.mark.sanitized
def test_a_bench_pair_moves_and_verifies_between_guests(pair, kept):
    kept.end(False)  # each side has a daemon of its own
    bench_pair.moves_and_verifies(*pair.guests)
