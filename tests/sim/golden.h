/* What the scenarios of the golden traces share. Node 0 gets, node 1 owns; in
 * those of blocks 0 and 1 are the ranks that send, 2 and 3 those that
 * receive. */
#ifndef KVF_TESTS_GOLDEN_H
#define KVF_TESTS_GOLDEN_H

#include "blocks_world.h"
#include "sim.h"

/* X(name, over shm): s_<name>() is compared with golden/<name>.txt. */
#define GOLDEN_SCENARIOS(X)                                                    \
    X(eager, false)                                                            \
    X(pull, false)                                                             \
    X(into, false)                                                             \
    X(view, true)                                                              \
    X(view_refused, false)                                                     \
    X(get_before_put, false)                                                   \
    X(owner_late, false)                                                       \
    X(deadline_connect, false)                                                 \
    X(deadline_wait, false)                                                    \
    X(deadline_transfer, false)                                                \
    X(owner_dies_parked, false)                                                \
    X(owner_dies_pulling, false)                                               \
    X(owner_restarts, false)                                                   \
    X(renewed_parked, false)                                                   \
    X(renewed_pulling, false)                                                  \
    X(done_lost, false)                                                        \
    X(late_grant, false)                                                       \
    X(cancel, false)                                                           \
    X(hold, false)                                                             \
    X(replace_during_read, false)                                              \
    X(ttl_during_read, false)                                                  \
    X(retry_resumes, false)                                                    \
    X(attempts_run_out, false)                                                 \
    X(claim_lost, false)                                                       \
    X(claim_lost_replaced, false)                                              \
    X(claim_lost_same, false)                                                  \
    X(view_outlives_daemon, true)                                              \
    X(no_wait, false)                                                          \
    X(generation, false)                                                       \
    X(tombstones, false)                                                       \
    X(max_inflight, false)                                                     \
    X(window, false)                                                           \
    X(one_reader_two_gets, false)

/* The same for pulls of blocks. */
#define GOLDEN_BLOCKS(X)                                                       \
    X(blocks_shm, true)                                                        \
    X(blocks_tcp, false)                                                       \
    X(blocks_before_publish, false)                                            \
    X(blocks_on_one_rank, false)                                               \
    X(blocks_two_tags, false)                                                  \
    X(blocks_retry_resumes, false)                                             \
    X(blocks_sender_dies, false)                                               \
    X(blocks_sender_restarts, true)                                            \
    X(blocks_done_lost, false)                                                 \
    X(blocks_late_grant, false)                                                \
    X(blocks_ttl_during_pull, false)                                           \
    X(blocks_together, true)                                                   \
    X(blocks_together_one_fails, false)                                        \
    X(blocks_together_one_alone, true)

#define GOLDEN_DECLARE(name, shm) void s_##name(void);
GOLDEN_SCENARIOS(GOLDEN_DECLARE)
GOLDEN_BLOCKS(GOLDEN_DECLARE)
#undef GOLDEN_DECLARE

extern struct sim *sim; /* of the scenario that runs */
extern struct bw bw;    /* of one of blocks */
extern const struct sim_get_opts patient;

struct sim_get *get(const char *key, const struct sim_get_opts *o);
uint64_t put(const char *key, uint64_t size, uint64_t readers);
void run(uint64_t ms);
/* A line of its own in the trace. */
void note(const char *text);
/* The next n messages DONE are lost (golden_faults.c). */
void lose_dones(unsigned n);
/* Cancels a get of node 0 and lets 50 ms pass. */
void cancel(struct sim_get *g);
/* A session first, so that the trace begins with the get. */
void connect_first(void);
/* Releases what the gets so far were given, and forgets them. */
void finish_gets(void);

#endif
