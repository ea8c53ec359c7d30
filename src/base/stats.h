/* Counters and histograms of the daemon: plain fields that the modules bump,
 * listed once so that `stats`, the documentation and the tests agree.
 * Gauges (bytes per state, parked gets, ...) are computed where they live. */
#ifndef KVF_BASE_STATS_H
#define KVF_BASE_STATS_H

#include "base/hist.h"
#include "kvferry/status.h"

/* X(name, what is counted) */
#define KVF_COUNTERS(X)                                                        \
    X(requests, "requests taken from engines, also bad ones")                  \
    X(replies, "replies handed to the socket")                                 \
    X(replies_undone,                                                          \
      "replies whose client was gone; what they gave is freed")                \
    X(replies_queued, "replies that had to wait for room in the socket")       \
    X(events, "events sent to engines")                                        \
    X(malformed, "engine messages that could not be read")                     \
    X(flood_discarded, "engine messages discarded past twice the limit")       \
    X(puts, "payloads published")                                              \
    X(put_bytes, "their bytes")                                                \
    X(gets, "gets answered OK")                                                \
    X(get_bytes, "their bytes")                                                \
    X(get_failed, "gets answered with anything else")                          \
    X(pulls, "pulls of blocks answered OK")                                    \
    X(pull_bytes, "their bytes")                                               \
    X(pull_reads, "their runs of bytes")                                       \
    X(pull_failed, "pulls of blocks answered with anything else")              \
    X(parked, "lookups that had to wait for their key at this owner")          \
    X(retries, "attempts after the first")                                     \
    X(fallbacks, "attempts on another transport than the one before")          \
    X(timeouts, "TIMEOUT and TRANSFER_TIMEOUT replies to gets")                \
    X(shm_bytes, "bytes copied out of another daemon's pool")                  \
    X(shm_gets, "gets over shm, views included")                               \
    X(view_gets, "of these, views: no byte copied by a daemon")                \
    X(tcp_bytes, "bytes received by tcp pulls")                                \
    X(tcp_gets, "gets over tcp")                                               \
    X(tcp_sent_bytes, "bytes sent to tcp pulls")                               \
    X(local_gets, "gets of keys of this daemon")                               \
    X(eager_gets, "gets whose bytes came with the metadata reply")             \
    X(tcp_connects, "bulk connections opened")                                 \
    X(tcp_accepts, "bulk connections accepted")                                \
    X(tcp_rejected, "bulk connections dropped: wrong preface or secret")       \
    X(tcp_errors, "bulk connections lost")                                     \
    X(rdma_bytes, "bytes received by RDMA READ")                               \
    X(rdma_written_bytes, "bytes sent by RDMA WRITE")                          \
    X(rdma_gets, "gets over rdma")                                             \
    X(rdma_connects, "rdma links that came up")                                \
    X(rdma_accepts, "queue pairs made for getters")                            \
    X(rdma_errors, "rdma links lost")                                          \
    X(rdma_events, "asynchronous events of the verbs device")                  \
    X(rdma_wrs, "work requests posted")                                        \
    X(rdma_doorbells, "calls that posted them")                                \
    X(rdma_completions, "completions polled")                                  \
    X(rdma_registrations, "memory registrations, the pool's included")         \
    X(moves, "pushes, writes and reads begun")                                 \
    X(pushes, "pushes answered OK")                                            \
    X(push_bytes, "their bytes")                                               \
    X(pushed, "payloads of pushes of others published here")                   \
    X(writes, "writes into windows answered OK")                               \
    X(write_bytes, "their bytes")                                              \
    X(reads, "reads from windows answered OK")                                 \
    X(read_bytes, "their bytes")                                               \
    X(move_failed, "pushes, writes and reads answered with anything else")     \
    X(written_events, "notifications of writes and reads given to engines")    \
    X(claims, "claims granted, local ones included")                           \
    X(claims_done, "claims that ended as read")                                \
    X(claims_aborted, "claims that ended otherwise")                           \
    X(late_grants, "grants that came for a get already answered: aborted")     \
    X(retired, "generations retired")                                          \
    X(peer_up, "peer sessions that came up")                                   \
    X(peer_down, "peer sessions lost")                                         \
    X(layouts_evicted,                                                         \
      "layouts of other daemons' engines dropped for newer ones, unused")      \
    X(layouts_refused, "of these, refused: all that may be known are in use")  \
    X(peer_malformed, "peer messages that could not be read or believed")      \
    X(peer_refused, "peers refused: version or cluster")                       \
    X(peer_stale, "peer messages of another incarnation")                      \
    X(sessions_opened, "engine sessions opened")                               \
    X(sessions_died, "of these, ended because the process or socket was gone") \
    X(refused_no_fd,                                                           \
      "connections closed at once because no descriptor was left")             \
    X(unexpected, "events that a state machine did not expect")                \
    X(checksum_failed, "payloads whose checksum did not match")

struct kvf_stats {
#define KVF_COUNTER_FIELD(name, text) uint64_t name;
    KVF_COUNTERS(KVF_COUNTER_FIELD)
#undef KVF_COUNTER_FIELD
    uint64_t status[KVF_STATUS_COUNT]; /* replies by status */
    struct kvf_hist lookup_us, wait_us, transfer_us, total_us, loop_lag_us;
    struct kvf_hist_recent loop_lag_recent_us; /* for health */
};

#endif
