/* How a get ends: its one reply, its log line, and what is given back. */
#include "request/gets_private.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

const char *kvf_get_owner_name(const struct kvf_get *g)
{
    return g->self ? "self" : g->peer != NULL ? kvf_peer_name(g->peer) : "?";
}

static void fill_timing(const struct kvf_get *g, struct kvf_get_result *r)
{
    uint64_t now = kvf_sched_clock(g->gs->env.sched);

    r->lookup_us =
        kvf_us_between(g->t_start, g->t_asked != 0 ? g->t_asked : now);
    r->wait_us =
        kvf_us_between(g->t_asked, g->t_granted != 0 ? g->t_granted : now);
    r->transfer_us = kvf_us_between(g->t_granted, now);
    r->total_us = kvf_us_between(g->t_start, now);
}

/* ---- OK ----------------------------------------------------------------- */

static unsigned fill_segs(const struct kvf_get *g, struct kvf_result_seg *out)
{
    const struct kvf_grant *gr = g->grant;

    switch (g->got) {
    case KVF_MODE_VIEW:
        for (unsigned i = 0; i < gr->remote.n_segs; i++)
            out[i] = (struct kvf_result_seg){
                .path = gr->paths[i][0] != '\0' ? gr->paths[i] : NULL,
                .offset = gr->remote.segs[i].offset,
                .length = gr->remote.segs[i].length};
        return gr->remote.n_segs;
    case KVF_MODE_INTO:
        for (unsigned i = 0; i < g->n_into; i++)
            out[i] = (struct kvf_result_seg){
                .is_region = g->into[i].region != NULL,
                .region = g->into[i].region != NULL ? g->into[i].region->id : 0,
                .offset = g->into[i].offset,
                .length = g->into[i].length};
        return g->n_into;
    case KVF_MODE_COPY:
        out[0] = (struct kvf_result_seg){.offset = g->buffer->offset,
                                         .length = gr->size};
        return 1;
    case KVF_MODE_INLINE:
    case KVF_MODE_AUTO:
        break;
    }
    return 0;
}

static void log_ok(const struct kvf_get *g, const struct kvf_get_result *r)
{
    char key[512];
    uint64_t us = r->total_us != 0 ? r->total_us : 1;

    if (!kvf_log_on(KVF_LOG_INFO))
        return;
    kvf_log(KVF_LOG_INFO, "KVF GET",
            "key=%s gen=%llu size=%llu transport=%s mode=%s attempts=%u "
            "lookup_us=%llu wait_us=%llu transfer_us=%llu total_us=%llu "
            "MBps=%.1f%s",
            kvf_log_key(key, sizeof key, g->key, g->key_len),
            (unsigned long long)r->generation, (unsigned long long)r->size,
            r->transport, kvf_mode_name(r->mode), r->attempts,
            (unsigned long long)r->lookup_us, (unsigned long long)r->wait_us,
            (unsigned long long)r->transfer_us, (unsigned long long)r->total_us,
            (double)r->size / (double)us,
            r->mode == KVF_MODE_VIEW ? " (fast_path, zero-copy)" : "");
}

static void count_ok(const struct kvf_get *g, const struct kvf_get_result *r)
{
    struct kvf_stats *st = g->gs->env.stats;

    st->gets++;
    st->get_bytes += r->size;
    st->view_gets += r->mode == KVF_MODE_VIEW;
    st->local_gets += strcmp(r->transport, "local") == 0;
    st->eager_gets += strcmp(r->transport, "eager") == 0;
    st->shm_gets += strcmp(r->transport, "shm") == 0;
    st->tcp_gets += strcmp(r->transport, "tcp") == 0;
    st->rdma_gets += strcmp(r->transport, "rdma") == 0;
    kvf_hist_add(&st->lookup_us, r->lookup_us);
    kvf_hist_add(&st->wait_us, r->wait_us);
    kvf_hist_add(&st->transfer_us, r->transfer_us);
    kvf_hist_add(&st->total_us, r->total_us);
}

/* The client is gone: what the reply would have given is taken back, and the
 * reader too, so that somebody else may have it. */
static void undo(struct kvf_get *g, struct kvf_view *v)
{
    struct kvf_buffer *b = g->buffer;

    if (v != NULL)
        kvf_view_abort(v);
    else
        kvf_grant_abort(g->grant);
    kvf_get_pull_free(g);
    if (b != NULL)
        kvf_buffer_retire(b);
    g->buffer = NULL;
}

static void log_refused(const struct kvf_get *g, const struct kvf_get_result *r)
{
    char key[512];

    g->gs->env.stats->get_failed++;
    kvf_log(KVF_LOG_DEBUG, "KVF GET",
            "key=%s failed status=CANCELLED attempts=%u after_ms=%llu: the "
            "client was gone when the reply was ready",
            kvf_log_key(key, sizeof key, g->key, g->key_len), r->attempts,
            (unsigned long long)r->total_us / 1000);
}

static void settle(struct kvf_get *g, struct kvf_view *v)
{
    struct kvf_buffer *b = g->buffer;

    if (v == NULL)
        kvf_grant_done(g->grant);
    kvf_get_pull_free(g);
    if (b == NULL)
        return;
    kvf_buffer_set_state(b, KVF_BUF_HELD);
    if (g->owner_list != NULL)
        kvf_list_push_back(g->owner_list, &b->owner_node);
    g->buffer = NULL;
}

void kvf_get_finish(struct kvf_get *g)
{
    const struct kvf_grant *gr = g->grant;
    struct kvf_view *v = NULL;
    struct kvf_get_result r = {.status = KVF_OK,
                               .text = "",
                               .has_size = true,
                               .size = gr->size,
                               .has_generation = true,
                               .generation = gr->generation,
                               .meta = gr->meta,
                               .meta_len = gr->meta_len,
                               .mode = g->got,
                               .transport = g->transport,
                               .has_checksum = gr->has_checksum,
                               .checksum = gr->checksum,
                               .attempts = g->m.attempts};
    unsigned room =
        gr->remote.n_segs > g->n_into ? gr->remote.n_segs : g->n_into;
    struct kvf_result_seg *segs;

    if (g->stopping) {
        /* Whoever stopped it was told that it would be stopped. */
        kvf_get_fail(g);
        return;
    }
    segs = calloc(room + 1u, sizeof *segs);
    if (g->got == KVF_MODE_VIEW && segs != NULL)
        v = kvf_view_new(g);
    if (segs == NULL || (g->got == KVF_MODE_VIEW && v == NULL)) {
        free(segs);
        kvf_get_because(g, KVF_BUSY, "out of memory for the reply");
        kvf_get_fail(g);
        return;
    }
    fill_timing(g, &r);
    r.segs = segs;
    r.n_segs = fill_segs(g, segs);
    r.buffer = v != NULL ? v->id : g->buffer != NULL ? g->buffer->id : 0;
    if (g->got == KVF_MODE_INLINE) {
        r.payload = g->payload != NULL ? g->payload : g->stash;
        r.payload_len = gr->size;
    }
    if (g->silent || g->ops->reply(g->arg, g, &r) < 0) {
        log_refused(g, &r);
        undo(g, v);
    } else {
        /* The engine and the owner first, then the books. */
        settle(g, v);
        log_ok(g, &r);
        count_ok(g, &r);
    }
    free(segs);
    g->grant = NULL;
    kvf_get_release(g);
}

/* ---- not OK ------------------------------------------------------------- */

static void log_failure(const struct kvf_get *g, const struct kvf_get_result *r)
{
    char key[512];
    unsigned long long ms = r->total_us / 1000;

    kvf_log_key(key, sizeof key, g->key, g->key_len);
    if (r->status == KVF_TIMEOUT || r->status == KVF_TRANSFER_TIMEOUT)
        kvf_log(KVF_LOG_WARN, "KVF TIMEOUT",
                "key=%s waited_ms=%llu phase=%s owner=%s", key, ms,
                r->status == KVF_TIMEOUT ? "wait" : "transfer",
                kvf_get_owner_name(g));
    else if (r->status == KVF_PEER_UNREACHABLE && g->t_asked == 0 && g->wait)
        kvf_log(KVF_LOG_WARN, "KVF TIMEOUT",
                "key=%s waited_ms=%llu phase=connect owner=%s", key, ms,
                kvf_get_owner_name(g));
    kvf_log(r->status == KVF_NOT_FOUND || r->status == KVF_CANCELLED
                ? KVF_LOG_DEBUG
                : KVF_LOG_WARN,
            "KVF GET", "key=%s failed status=%s attempts=%u after_ms=%llu: %s",
            key, kvf_status_name(r->status), r->attempts, ms, r->text);
}

void kvf_get_fail(struct kvf_get *g)
{
    struct kvf_stats *st = g->gs->env.stats;
    struct kvf_buffer_gauges pool;
    struct kvf_get_result r = {
        .status = g->status != KVF_OK ? g->status : KVF_INTERNAL,
        .text = g->text != NULL ? g->text : "no cause was recorded",
        .has_size = g->has_size,
        .size = g->size,
        .mode = g->mode,
        .transport = g->transport != NULL ? g->transport : "",
        .attempts = g->m.attempts,
        .has_space = g->has_space,
        .needed = g->needed};

    fill_timing(g, &r);
    if (g->has_space) {
        kvf_buffers_gauges(g->gs->env.buffers, &pool);
        r.free = pool.free;
        r.largest_free = pool.largest_free;
    }
    st->get_failed++;
    st->timeouts += r.status == KVF_TIMEOUT || r.status == KVF_TRANSFER_TIMEOUT;
    log_failure(g, &r);
    /* Memory first, so that who reads the reply finds the room that it needs
     * to try again. */
    kvf_get_pull_free(g);
    if (g->buffer != NULL)
        kvf_buffer_retire(g->buffer);
    g->buffer = NULL;
    if (g->grant != NULL)
        kvf_grant_abort(g->grant);
    g->grant = NULL;
    if (!g->silent)
        g->ops->reply(g->arg, g, &r);
    kvf_get_release(g);
}
