/* A get has its claim: does it fit, where do the bytes go, are they here
 * already?
 *
 * Happy path: memory is reserved, and the machine hears GRANT (bytes have to
 * move) or READY (a view, or a few bytes that came along). Failure modes: the
 * payload does not fit what was asked for; no memory; a checksum; the claim is
 * lost before, and asked for again. */
#include "request/gets_private.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* ---- where the bytes go ------------------------------------------------- */

static uint64_t into_size(const struct kvf_get *g)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < g->n_into; i++)
        n += g->into[i].length;
    return n;
}

/* What a grant must fit before anything is consumed. */
static int check_size(struct kvf_get *g, const struct kvf_grant *gr,
                      struct kvf_why *why)
{
    uint64_t inline_max = g->gs->env.conf->inline_max;

    g->has_size = true;
    g->size = gr->size;
    if (g->mode == KVF_MODE_INLINE && gr->size > inline_max)
        return kvf_fail(why, KVF_TOO_LARGE,
                        "%llu bytes do not fit inline (inline_max %llu): use "
                        "mode copy or view",
                        (unsigned long long)gr->size,
                        (unsigned long long)inline_max);
    if (g->mode == KVF_MODE_INTO && into_size(g) != gr->size)
        return kvf_fail(
            why, KVF_MISMATCH, "`into` names %llu bytes, the payload has %llu",
            (unsigned long long)into_size(g), (unsigned long long)gr->size);
    return 0;
}

static int reserve(struct kvf_get *g, uint64_t size, struct kvf_why *why)
{
    int ret;

    if (g->got != KVF_MODE_COPY || g->buffer != NULL)
        return 0;
    ret = kvf_buffer_alloc(g->gs->env.buffers, size, KVF_BUF_RECEIVING,
                           g->owner, &g->buffer, why);
    if (ret == -(int)KVF_NO_SPACE) {
        g->has_space = true;
        g->needed = size;
    }
    return ret;
}

static void scatter(const struct kvf_get *g, const void *src, uint64_t size)
{
    const uint8_t *p = src;

    if (g->got == KVF_MODE_COPY)
        memcpy(kvf_buffer_ptr(g->buffer), src, size);
    for (unsigned i = 0; g->got == KVF_MODE_INTO && i < g->n_into; i++) {
        memcpy(kvf_seg_ptr(&g->into[i]), p, g->into[i].length);
        p += g->into[i].length;
    }
}

static enum kvf_mode resolve_mode(const struct kvf_get *g,
                                  const struct kvf_grant *gr)
{
    if (g->mode != KVF_MODE_AUTO)
        return g->mode;
    return gr->eager == NULL && gr->shm && g->can_map ? KVF_MODE_VIEW
                                                      : KVF_MODE_COPY;
}

/* ---- bytes that are here already ---------------------------------------- */

/* A small payload of this daemon is one short copy: no transfer for it. */
static const void *small_local(struct kvf_get *g, const struct kvf_grant *gr)
{
    const void *bytes;
    void *scratch;

    if (gr->local == NULL || gr->size > g->gs->env.conf->inline_max)
        return NULL;
    bytes = kvf_gen_bytes(gr->local->gen, &scratch);
    if (scratch != NULL) {
        free(g->stash);
        g->stash = scratch;
    }
    return bytes;
}

static bool take_small(struct kvf_get *g, const void *bytes,
                       struct kvf_why *why)
{
    const struct kvf_grant *gr = g->grant;

    /* Hashed where the bytes came to rest, except inline, which are sent from
     * where they lie. */
    scatter(g, bytes, gr->size);
    if (gr->has_checksum && XXH3_64bits(bytes, gr->size) != gr->checksum) {
        g->gs->env.stats->checksum_failed++;
        kvf_fail(why, KVF_CORRUPT,
                 "the bytes from %s do not have the checksum of the put",
                 kvf_get_owner_name(g));
        return false;
    }
    g->m.verify = false;
    g->payload = bytes;
    if (g->got == KVF_MODE_INLINE && g->m.hold && g->stash == NULL) {
        g->stash = malloc(gr->size);
        if (g->stash == NULL) {
            kvf_fail(why, KVF_INTERNAL, "out of memory");
            return false;
        }
        memcpy(g->stash, bytes, gr->size);
        g->payload = g->stash;
    }
    return true;
}

/* ---- the grant ---------------------------------------------------------- */

static void on_lost(struct kvf_grant *gr, const struct kvf_why *why)
{
    struct kvf_get *g = gr->user;

    switch ((unsigned)g->m.state) {
    case KVF_GET_PULLING:
    case KVF_GET_DRAINING:
        return; /* the transfer ends by itself and finds it lost */
    case KVF_GET_CLAIMED:
    case KVF_GET_RETRYING:
        /* It queues again with its next claim. */
        if (!g->edge.admitted)
            kvf_edge_leave(&g->edge);
        if (g->peer != NULL && kvf_peer_state(g->peer) == KVF_PEER_UP) {
            kvf_get_feed(g, KVF_GET_EV_LOST);
            return;
        }
        kvf_get_stop(g, why);
        return;
    case KVF_GET_HELD:
        kvf_get_stop(g, why);
        return;
    default:
        return; /* every byte came while it was live */
    }
}

/* Another grant for the same get (the first was lost): what is in place, and
 * the memory that was reserved for it, count only if it is the same payload. */
static void compare_with_previous(struct kvf_get *g, const struct kvf_grant *gr,
                                  const struct kvf_grant *before)
{
    if (before->generation == gr->generation && before->size == gr->size)
        return;
    kvf_get_pull_free(g);
    if (g->buffer != NULL) {
        kvf_buffer_retire(g->buffer);
        g->buffer = NULL;
    }
    free(g->stash);
    g->stash = NULL;
}

void kvf_get_on_grant(struct kvf_get *g, struct kvf_grant *gr)
{
    struct kvf_why why;
    const void *small;
    int ret;

    g->t_granted = kvf_sched_clock(g->gs->env.sched);
    if (g->grant != NULL) {
        compare_with_previous(g, gr, g->grant);
        kvf_grant_abort(g->grant);
    }
    g->grant = gr;
    gr->user = g;
    gr->on_lost = on_lost;
    g->got = resolve_mode(g, gr);
    g->m.verify = gr->has_checksum && g->got != KVF_MODE_VIEW;
    ret = check_size(g, gr, &why);
    if (ret == 0 && g->got == KVF_MODE_VIEW && !gr->shm)
        ret = kvf_fail(&why, KVF_UNSUPPORTED,
                       "the owner's memory could not be mapped here");
    if (ret == 0)
        ret = reserve(g, gr->size, &why);
    if (ret < 0) {
        kvf_get_stop(g, &why);
        return;
    }
    g->transport = gr->local != NULL   ? "local"
                   : gr->eager != NULL ? "eager"
                                       : "shm";
    if (g->got == KVF_MODE_VIEW) {
        kvf_get_feed(g, KVF_GET_EV_READY);
        return;
    }
    small = gr->eager != NULL ? gr->eager : small_local(g, gr);
    if (small == NULL) {
        kvf_get_feed(g, KVF_GET_EV_GRANT);
        return;
    }
    if (take_small(g, small, &why))
        kvf_get_feed(g, KVF_GET_EV_READY);
    else
        kvf_get_stop(g, &why);
}
