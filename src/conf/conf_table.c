/* Every key of the configuration, once. Validation, the dump, the sample and
 * docs/CONFIG.md are made from these rows. */
#include "conf/conf_table.h"

#define C(field)                                                               \
    offsetof(struct kvf_conf, field), sizeof(((struct kvf_conf *)0)->field)
#define E(field)                                                               \
    offsetof(struct kvf_conf_edge, field),                                     \
        sizeof(((struct kvf_conf_edge *)0)->field)
#define GIB (1ull << 30)
#define MIB (1ull << 20)
#define DAY_MS 86400000ull

/* clang-format off */
const struct kvf_key kvf_keys[] = {
    {"worker", "cluster", KVF_KEY_NAME, KVF_IN_CONF, C(cluster), "default", 1, 63, false, "name of the cluster; daemons of another one are refused"},
    {"worker", "stage", KVF_KEY_U32, KVF_IN_CONF, C(self.stage), "0", 0, KVF_STAGE_MAX, false, "pipeline stage of this worker"},
    {"worker", "rank", KVF_KEY_U32, KVF_IN_CONF, C(self.rank), "0", 0, KVF_RANK_MAX, false, "rank of this worker in its stage"},
    {"worker", "replica", KVF_KEY_U32, KVF_IN_CONF, C(self.replica), "0", 0, KVF_REPLICA_MAX, false, "replica, when a stage runs several times"},
    {"worker", "engine_endpoint", KVF_KEY_ENDPOINT, KVF_IN_CONF, C(engine_endpoint), "auto", 0, 0, false, "where engines connect: auto, ipc://PATH or tcp://ADDRESS:PORT"},
    {"connector", "host", KVF_KEY_HOST, KVF_IN_CONF, C(host), "auto", 0, 0, false, "advertised address or name; auto = the one that routes out, else loopback"},
    {"connector", "zmq_port", KVF_KEY_PORT, KVF_IN_CONF, C(zmq_port), "50051", 1, 65535, false, "base of the port rule for metadata, or auto"},
    {"connector", "rpc_port", KVF_KEY_PORT, KVF_IN_CONF, C(rpc_port), "auto", 1, 65535, false, "port for bulk tcp, or auto"},
    {"connector", "protocol", KVF_KEY_PROTOCOL, KVF_IN_CONF, C(protocol), "auto", 0, 0, false, "auto, or shm, tcp, rdma in order of preference, separated by commas"},
    {"connector", "device_name", KVF_KEY_TEXT, KVF_IN_CONF, C(device_name), "auto", 0, 0, false, "verbs device, such as mlx5_0 or mlx5_0:1"},
    {"connector", "memory_pool_size", KVF_KEY_SIZE, KVF_IN_CONF, C(memory_pool_size), "1GiB", MIB, 1ull << 44, false, "bytes of the shared pool, its header included"},
    {"connector", "memory_pool_device", KVF_KEY_DEVICE, KVF_IN_CONF, C(memory_pool_device), "cpu", 0, 0, false, "where the pool lies; only cpu exists"},
    {"connector", "get_sub_timeout_ms", KVF_KEY_DURATION, KVF_IN_CONF, C(get_sub_timeout_ms), "30000", 0, DAY_MS, true, "how long a get waits; 0 = no timeout"},
    {"connector", "put_ttl_ms", KVF_KEY_DURATION, KVF_IN_CONF, C(put_ttl_ms), "3600000", 1, 30 * DAY_MS, true, "time to live of what is put"},
    {"connector", "peer_timeout_ms", KVF_KEY_DURATION, KVF_IN_CONF, C(peer_timeout_ms), "2000", 100, 600000, true, "silence after which a peer is down"},
    {"connector", "session_timeout_ms", KVF_KEY_DURATION, KVF_IN_CONF, C(session_timeout_ms), "30000", 100, DAY_MS, true, "silence after which an engine on tcp is gone"},
    {"connector", "drain_ms", KVF_KEY_DURATION, KVF_IN_CONF, C(drain_ms), "5000", 0, 600000, true, "how long SIGTERM waits for work under way"},
    {"connector", "inline_max", KVF_KEY_SIZE, KVF_IN_CONF, C(inline_max), "64KiB", 0, 16 * MIB, false, "payloads up to this travel inside messages"},
    {"connector", "linger_us", KVF_KEY_U32, KVF_IN_CONF, C(linger_us), "600", 0, 1000, false, "microseconds to stay awake for the next message while they come that close together; 0 = never"},
    {"connector", "max_frame", KVF_KEY_SIZE, KVF_IN_CONF, C(max_frame), "16MiB", 65536, GIB, false, "largest message frame taken"},
    {"edge", "window_size", KVF_KEY_WINDOW, KVF_IN_EDGE, E(window_size), "-1", 1, 1ull << 62, true, "bytes of claimed, unfinished pulls, and of pushes that come in; -1 = no limit"},
    {"edge", "max_inflight", KVF_KEY_U32, KVF_IN_EDGE, E(max_inflight), "64", 1, 65536, true, "pulls, and pushes that come in, at once on this edge"},
    {"edge", "from_tp", KVF_KEY_U32, KVF_IN_EDGE, E(from_tp), "1", 1, 64, false, "tensor parallel size of the sending stage"},
    {"edge", "to_tp", KVF_KEY_U32, KVF_IN_EDGE, E(to_tp), "1", 1, 64, false, "tensor parallel size of the receiving stage"},
    {"tcp", "streams", KVF_KEY_U32, KVF_IN_CONF, C(tcp_streams), "2", 1, 64, false, "connections per peer for large payloads"},
    {"tcp", "stream_min", KVF_KEY_SIZE, KVF_IN_CONF, C(tcp_stream_min), "64MiB", 1, 1ull << 40, false, "payload bytes from which several are used"},
    {"tcp", "chunk", KVF_KEY_SIZE, KVF_IN_CONF, C(tcp_chunk), "1MiB", 4096, 256 * MIB, false, "bytes of one read request"},
    {"tcp", "spin_us", KVF_KEY_U32, KVF_IN_CONF, C(tcp_spin_us), "50", 0, 1000, false, "microseconds to spin while bytes are in flight; 0 = never"},
    {"rdma", "gid_index", KVF_KEY_PORT, KVF_IN_CONF, C(rdma_gid_index), "auto", 0, 255, false, "GID of the verbs device; auto = by the route to each peer"},
    {"rdma", "mtu", KVF_KEY_U32, KVF_IN_CONF, C(rdma_mtu), "0", 0, 4096, false, "largest path MTU: 256, 512, 1024, 2048 or 4096; 0 = what the port has"},
    {"rdma", "timeout", KVF_KEY_U32, KVF_IN_CONF, C(rdma_timeout), "14", 1, 22, false, "4.096 us * 2^timeout until the device repeats a packet"},
    {"rdma", "retry", KVF_KEY_U32, KVF_IN_CONF, C(rdma_retry), "7", 0, 7, false, "repeats until the peer counts as dead"},
    {"rdma", "rnr_retry", KVF_KEY_U32, KVF_IN_CONF, C(rdma_rnr_retry), "7", 0, 7, false, "repeats when the peer is not ready; 7 = for ever"},
    {"rdma", "chunk", KVF_KEY_SIZE, KVF_IN_CONF, C(rdma_chunk), "1MiB", 4096, GIB, false, "bytes of one operation"},
    {"rdma", "burst", KVF_KEY_SIZE, KVF_IN_CONF, C(rdma_burst), "1MiB", 4096, GIB, false, "bytes that one turn of the loop posts to a peer at most"},
    {"rdma", "depth", KVF_KEY_U32, KVF_IN_CONF, C(rdma_depth), "8", 1, 256, false, "operations of one transfer in flight"},
    {"rdma", "queue", KVF_KEY_U32, KVF_IN_CONF, C(rdma_queue), "128", 8, 4096, false, "work requests in flight to one peer"},
    {"rdma", "signal_every", KVF_KEY_U32, KVF_IN_CONF, C(rdma_signal_every), "4", 1, 64, false, "operations from one signalled completion to the next"},
    {"rdma", "spin_us", KVF_KEY_U32, KVF_IN_CONF, C(rdma_spin_us), "50", 0, 1000, false, "microseconds to spin for a completion; 0 = never"},
    {"limits", "max_outstanding", KVF_KEY_U32, KVF_IN_CONF, C(max_outstanding), "16384", 16384, 1u << 20, true, "requests of one client at once"},
    {"limits", "max_keys", KVF_KEY_U32, KVF_IN_CONF, C(max_keys), "1048576", 1, 1u << 28, true, "live keys"},
    {"limits", "max_tombstones", KVF_KEY_U32, KVF_IN_CONF, C(max_tombstones), "65536", 1, 1u << 28, true, "keys remembered after their end"},
    {"limits", "max_parked", KVF_KEY_U32, KVF_IN_CONF, C(max_parked), "65536", 1, 1u << 24, true, "gets of peers waiting here"},
    {"limits", "max_claims", KVF_KEY_U32, KVF_IN_CONF, C(max_claims), "65536", 1, 1u << 24, true, "claims at once"},
    {"limits", "max_sessions", KVF_KEY_U32, KVF_IN_CONF, C(max_sessions), "4096", 1, 65536, true, "engine sessions"},
    {"limits", "max_peers", KVF_KEY_U32, KVF_IN_CONF, C(max_peers), "1024", 1, 65536, true, "peers"},
    {"retry", "attempts", KVF_KEY_U32, KVF_IN_CONF, C(attempts), "5", 1, 100, true, "attempts for a transfer, the first included"},
    {"retry", "backoff_ms", KVF_KEY_DURATION, KVF_IN_CONF, C(backoff_ms), "20", 1, 60000, true, "first pause between attempts"},
    {"retry", "backoff_max_ms", KVF_KEY_DURATION, KVF_IN_CONF, C(backoff_max_ms), "2000", 1, 600000, true, "longest pause between attempts"},
    {"log", "level", KVF_KEY_LEVEL, KVF_IN_CONF, C(log_level), "info", 0, 0, true, "error, warn, info, debug or trace"},
    {"log", "file", KVF_KEY_TEXT, KVF_IN_CONF, C(log_file), "stderr", 0, 0, true, "stderr, or a file that is appended to"},
};
/* clang-format on */
const unsigned kvf_n_keys = sizeof kvf_keys / sizeof *kvf_keys;
/* conf_section.c keeps one bit a key. */
_Static_assert(sizeof kvf_keys / sizeof *kvf_keys <= 64, "too many keys");
