/* The bytes of a get: when they may move, how they move, what happens when they
 * do not, and whether they are the right ones. */
#include "request/gets_private.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

/* ---- admission ---------------------------------------------------------- */

void kvf_get_on_enter(struct kvf_edge_wait *w)
{
    kvf_get_feed(kvf_container_of(w, struct kvf_get, edge), KVF_GET_EV_ADMIT);
}

void kvf_get_admit(struct kvf_get *g)
{
    const struct kvf_worker *w =
        g->peer != NULL ? kvf_peer_worker(g->peer) : NULL;
    const struct kvf_gets_env *env = &g->gs->env;
    struct kvf_edge *e = kvf_peers_edge(
        env->peers, w != NULL ? w->stage : env->conf->self.stage);

    /* Asked again after a lost claim, it has kept its place. */
    if (kvf_edge_enter(e, env->conf, &g->edge, g->grant->size))
        kvf_get_feed(g, KVF_GET_EV_ADMIT);
}

/* ---- pulling ------------------------------------------------------------ */

static void on_xfer_done(struct kvf_xfer *x, int status,
                         const struct kvf_why *why);

/* The local memory in payload order; out has room for max(1, n_into). */
static unsigned local_iov(const struct kvf_get *g, uint64_t size,
                          struct iovec *out)
{
    if (g->got == KVF_MODE_COPY) {
        out[0].iov_base = kvf_buffer_ptr(g->buffer);
        out[0].iov_len = size;
        return 1;
    }
    if (g->got == KVF_MODE_INLINE) {
        out[0].iov_base = g->stash;
        out[0].iov_len = size;
        return 1;
    }
    for (unsigned i = 0; i < g->n_into; i++) {
        out[i].iov_base = kvf_seg_ptr(&g->into[i]);
        out[i].iov_len = g->into[i].length;
    }
    return g->n_into;
}

static int pull_init(struct kvf_get *g, struct kvf_why *why)
{
    struct kvf_get_pull *p;
    int ret;

    if (g->pull != NULL)
        return 0;
    p = calloc(1, sizeof *p);
    if (p == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    p->get = g;
    p->iov = calloc(g->n_into + 1u, sizeof *p->iov);
    if (g->got == KVF_MODE_INLINE && g->stash == NULL)
        g->stash = malloc(g->grant->size);
    if (p->iov == NULL || (g->got == KVF_MODE_INLINE && g->stash == NULL)) {
        free(p->iov);
        free(p);
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    }
    p->n_iov = local_iov(g, g->grant->size, p->iov);
    ret = kvf_xfer_init(&p->xfer, g->gs->env.sched, false, g->grant->size,
                        p->iov, p->n_iov, on_xfer_done, why);
    if (ret < 0) {
        free(p->iov);
        free(p);
        return ret;
    }
    if (g->buffer != NULL)
        kvf_buffer_pin(g->buffer);
    g->pull = p;
    return 0;
}

void kvf_get_pull_free(struct kvf_get *g)
{
    struct kvf_get_pull *p = g->pull;

    if (p == NULL)
        return;
    kvf_checksum_stop(&p->checksum);
    kvf_xfer_fini(&p->xfer);
    if (g->buffer != NULL)
        kvf_buffer_unpin(g->buffer);
    free(p->iov);
    free(p);
    g->pull = NULL;
}

/* From inside PULLING: the attempt is over and memory is quiet. */
static void broken(struct kvf_get *g, const struct kvf_why *why)
{
    const struct kvf_peer *p = g->peer;
    struct kvf_retry_facts f = {
        .attempts = g->m.attempts,
        .max = g->m.max_attempts,
        .remote = p != NULL,
        .up = p != NULL && kvf_peer_state(p) == KVF_PEER_UP,
        .heard_ns = p != NULL ? kvf_peer_heard_ns(p) : 0,
        .now_ns = g->gs->env.sched->now_ns};

    if (f.remote && !f.up)
        kvf_get_because(g, kvf_peer_why(p)->status, "%s",
                        kvf_peer_why(p)->text);
    g->m.attempts = kvf_retry_failed(&g->retry, g->gs->env.conf, &f,
                                     &g->gs->env.stats->fallbacks);
    if (g->m.attempts >= g->m.max_attempts)
        kvf_get_because(g, KVF_TRANSPORT, "%s from %s failed %u times: %s",
                        g->transport != NULL ? g->transport : "transfer",
                        kvf_get_owner_name(g), g->m.attempts, why->text);
    free(g->cause);
    g->cause = strdup(why->text);
    kvf_get_feed(g, g->grant->lost ? KVF_GET_EV_LOST : KVF_GET_EV_BROKEN);
}

static void on_xfer_done(struct kvf_xfer *x, int status,
                         const struct kvf_why *why)
{
    struct kvf_get_pull *p = kvf_container_of(x, struct kvf_get_pull, xfer);
    struct kvf_get *g = p->get;
    struct kvf_why lost;

    if (g->m.state == KVF_GET_DRAINING) {
        kvf_get_feed(g, KVF_GET_EV_QUIET);
        return;
    }
    if (g->grant->shm && g->grant->revoked)
        kvf_xfer_reset(x); /* who knows what was copied since */
    if (status == 0 && g->grant->lost &&
        (!g->grant->shm || g->grant->revoked)) {
        /* The last byte came, but the claim had ended before it. Over shm only
         * the owner's word counts: a dead owner leaves its memory as it is. */
        kvf_fail(&lost, KVF_STALE, "the claim ended during the transfer");
        broken(g, &lost);
        return;
    }
    if (status < 0 && -status == KVF_STALE)
        g->grant->lost = true; /* the owner does not know the claim any more */
    if (status < 0)
        broken(g, why);
    else
        kvf_get_feed(g, KVF_GET_EV_PULLED);
}

static enum kvf_way find_way(struct kvf_get *g, struct kvf_link **link,
                             struct kvf_why *why)
{
    enum kvf_way way;

    if (g->grant->local != NULL) {
        g->transport = "local";
        *link = &g->gs->local_link;
        return KVF_WAY_LINK;
    }
    way = kvf_way_find(&g->retry, g->gs->env.conf, g->peer, g->grant, 0, link,
                       why);
    if (way == KVF_WAY_LINK)
        g->transport = g->retry.transport;
    return way;
}

void kvf_get_pull(struct kvf_get *g)
{
    struct kvf_link *link;
    struct kvf_why why;

    if (pull_init(g, &why) < 0) {
        /* Nothing runs yet, so nothing has to be drained. */
        kvf_get_because(g, why.status, "%s", why.text);
        g->m.attempts = g->m.max_attempts;
        kvf_get_feed(g, KVF_GET_EV_BROKEN);
        return;
    }
    switch (find_way(g, &link, &why)) {
    case KVF_WAY_LINK:
        if (g->m.attempts > 1)
            g->gs->env.stats->retries++;
        kvf_xfer_start(&g->pull->xfer, link, &g->grant->remote);
        return;
    case KVF_WAY_WAIT: /* nothing was tried */
        g->m.attempts--;
        kvf_get_feed(g, g->grant->lost ? KVF_GET_EV_LOST : KVF_GET_EV_BROKEN);
        return;
    case KVF_WAY_NONE:
        broken(g, &why);
        return;
    }
}

void kvf_get_cancel_pull(struct kvf_get *g)
{
    kvf_xfer_cancel(&g->pull->xfer);
}

/* ---- retrying ----------------------------------------------------------- */

void kvf_get_on_link(struct kvf_retry *r)
{
    kvf_get_feed(kvf_container_of(r, struct kvf_get, retry),
                 KVF_GET_EV_BACKOFF);
}

static void log_retry(const struct kvf_get *g, uint64_t ns)
{
    const struct kvf_conf *c = g->gs->env.conf;
    unsigned at = g->retry.proto_at;
    char key[512];

    kvf_log(
        KVF_LOG_WARN, "KVF RETRY",
        "key=%s attempt=%u/%u transport=%s backoff_ms=%llu "
        "done=%llu/%llu: %s",
        kvf_log_key(key, sizeof key, g->key, g->key_len), g->m.attempts + 1,
        g->m.max_attempts,
        at < c->n_protocol && c->protocol[at] == KVF_PROTO_TCP ? "tcp"
                                                               : g->transport,
        (unsigned long long)(ns / KVF_NS_PER_MS),
        (unsigned long long)(g->pull != NULL ? g->pull->xfer.bytes_done : 0),
        (unsigned long long)g->grant->size, g->cause != NULL ? g->cause : "");
}

void kvf_get_backoff(struct kvf_get *g)
{
    struct kvf_sched *s = g->gs->env.sched;
    uint64_t ns;

    if (!kvf_way_pause(&g->retry, g->gs->env.conf, g->gs->env.rng, g->peer,
                       g->m.attempts, &ns))
        return;
    if (g->retry.pause == KVF_PAUSE_BACKOFF)
        log_retry(g, ns);
    kvf_timer_set(s, &g->pause, s->now_ns + ns);
}

/* ---- verifying ---------------------------------------------------------- */

static void on_checksum(struct kvf_checksum *c, uint64_t value)
{
    struct kvf_get_pull *p = kvf_container_of(c, struct kvf_get_pull, checksum);
    struct kvf_get *g = p->get;

    if (value == g->grant->checksum) {
        kvf_get_feed(g, KVF_GET_EV_VERIFIED);
        return;
    }
    g->gs->env.stats->checksum_failed++;
    kvf_get_because(g, KVF_CORRUPT,
                    "the bytes from %s do not have the checksum of the put",
                    kvf_get_owner_name(g));
    kvf_get_feed(g, KVF_GET_EV_STOP);
}

void kvf_get_verify(struct kvf_get *g)
{
    struct kvf_why why;

    if (kvf_checksum_start(&g->pull->checksum, g->gs->env.sched, g->pull->iov,
                           g->pull->n_iov, on_checksum, &why) < 0)
        kvf_get_stop(g, &why);
}
