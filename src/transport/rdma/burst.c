/* How many bytes one turn of the loop posts.
 *
 * Some devices (Soft-RoCE) move the bytes inside ibv_post_send, and whoever
 * asks the daemon something meanwhile waits for the turn. So it is learnt how
 * long posting takes, and a turn posts what some milliseconds move: few of
 * them for as long as somebody asks while bytes move, more when nobody does and
 * one link has all of the turn. On a real device both are conf.burst after some
 * turns. */
#include "transport/rdma/rdma_priv.h"

/* A short turn: others wait that long at most, which leaves a ping well within
 * twice what it takes when a daemon is idle, in a guest with Soft-RoCE. */
#define POST_NS (2000 * KVF_NS_PER_US)
/* Times as long while nobody asks: a doorbell takes some 0.3 ms there, whatever
 * it moves, so a short turn loses a sixth of the time and a long one little. */
#define ALONE 8u
#define BURST_MIN (32ull << 10) /* bytes; a multiple of it is posted */

/* Is something on its way? (Everything posted may be done, and of the first op
 * more to be posted.) */
static bool amid(struct kvf_rdma_link *l)
{
    struct kvf_list *n = kvf_list_first(&l->queued);

    return l->posted != l->done ||
           (n != NULL &&
            kvf_container_of(n, struct kvf_transfer_op, node)->tag != 0);
}

/* Turns of several links come one after the other. */
static bool only_one(const struct kvf_rdma *r)
{
    unsigned n_amid = 0;

    kvf_list_for_each (n, &r->links)
        n_amid += amid(kvf_container_of(n, struct kvf_rdma_link, node));
    return n_amid <= 1;
}

uint64_t kvf_rdma_turn_bytes(struct kvf_rdma_link *l)
{
    struct kvf_rdma *r = l->r;
    uint64_t bytes = r->burst;
    bool alone =
        kvf_turn_long(&r->turn, r->t.stats, r->t.sched->now_ns, amid(l));

    if (alone && r->burst_known && only_one(r))
        bytes *= ALONE;
    return bytes < r->conf.burst ? bytes : r->conf.burst;
}

void kvf_rdma_learn_burst(struct kvf_rdma *r, uint64_t bytes, uint64_t ns)
{
    uint64_t fits, least = r->burst / 4 * 3, most = r->burst * 2;

    /* Little that went fast says nothing about more. */
    if (bytes < BURST_MIN || (bytes < r->burst / 2 && ns < POST_NS))
        return;
    fits = bytes * POST_NS / (ns != 0 ? ns : 1);
    if (fits < least)
        fits = least;
    if (fits > most)
        fits = most;
    if (fits > r->conf.burst)
        fits = r->conf.burst;
    fits &= ~(BURST_MIN - 1);
    r->burst = fits < BURST_MIN ? BURST_MIN : fits;
    r->burst_known = true;
}
