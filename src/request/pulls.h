/* Pulls: the blocks of a request, from every P rank that has a part of them,
 * straight into an engine's own blocks.
 *
 *   locate   the sender's layout says how it is cut, and so which ranks
 *   ask      each of those ranks for the request; parks there until published
 *   plan     once all have granted: what to read from each
 *   move     one scattered transfer a rank, retried and resumed on its own
 *   done     one reply for all; DONE to every rank asked, read or not
 *
 * Any failure ends the whole: one status, ABORT to all, and not before nothing
 * writes any more. One thread, nothing blocks. */
#ifndef KVF_REQUEST_PULLS_H
#define KVF_REQUEST_PULLS_H

#include "peer/peers.h"

struct kvf_pulls;
struct kvf_pull;

struct kvf_pulls_env {
    struct kvf_sched *sched;
    struct kvf_stats *stats;
    struct kvf_rng *rng;
    const struct kvf_conf *conf; /* may change at reload */
    struct kvf_peers *peers;
};
int kvf_pulls_create(const struct kvf_pulls_env *env, struct kvf_pulls **out,
                     struct kvf_why *why);
void kvf_pulls_destroy(struct kvf_pulls *ps); /* none runs; NULL is fine */

struct kvf_filled {
    unsigned group;
    int64_t first_token, tokens;
};

struct kvf_pull_result { /* valid during the reply call */
    enum kvf_status status;
    const char *text;
    uint64_t bytes, reads;
    const struct kvf_worker *sources; /* that bytes were read from */
    unsigned n_sources;
    const struct kvf_filled *filled; /* as the request named its groups */
    unsigned n_filled;
    const char *transport; /* shm tcp rdma mixed none */
    unsigned attempts;     /* the most of any source */
    uint64_t lookup_us, plan_us, transfer_us, total_us;
};

struct kvf_pull_ops {
    /* The one answer; as kvf_get_ops.reply. The pull is over when it returns.
     * Never from inside kvf_pull_start. */
    int (*reply)(void *arg, const struct kvf_pull_result *res);
};

/* layout: the engine's own; held while the pull runs. req is copied (its blocks
 * are taken over: empty afterwards, also after a failure). -KVF_INVALID,
 * -KVF_NO_SPACE, with nothing started. */
int kvf_pull_start(struct kvf_pulls *ps, struct kvf_layout *layout,
                   struct kvf_req_pull *req, uint64_t timeout_ms,
                   const struct kvf_pull_ops *ops, void *arg,
                   struct kvf_pull **out, struct kvf_why *why);
/* As kvf_get_cancel. */
void kvf_pull_cancel(struct kvf_pull *p, enum kvf_status status,
                     const char *text);
void kvf_pulls_cancel_all(struct kvf_pulls *ps, enum kvf_status status,
                          const char *text);
unsigned kvf_pulls_running(const struct kvf_pulls *ps);

struct kvf_pulls_gauges {
    unsigned running, waiting, moving, draining;
    uint64_t bytes; /* planned, not in place yet */
};
void kvf_pulls_gauges(const struct kvf_pulls *ps, struct kvf_pulls_gauges *g);
#endif
