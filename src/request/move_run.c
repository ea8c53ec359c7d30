/* A move has its room or access: over which transport the bytes go, and what
 * happens when an attempt fails. */
#include "request/moves_private.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

/* ---- the grant ---------------------------------------------------------- */

void kvf_move_on_lost(struct kvf_grant *g, const struct kvf_why *why)
{
    struct kvf_move *m = g->user;

    switch ((unsigned)m->m.state) {
    case KVF_MOVE_MOVING:
        /* Unexposed: the owner waits for us to let go. Otherwise the transfer
         * ends by itself and finds it lost. An access kept from before may have
         * ended before this request came: the owner is asked. */
        if (g->revoked && m->kind != KVF_MOVE_PUSH && !m->from_idle)
            kvf_move_stop(m, why);
        else if (g->revoked)
            kvf_xfer_cancel(&m->xfer);
        return;
    case KVF_MOVE_RETRYING:
        if (m->peer != NULL && kvf_peer_state(m->peer) == KVF_PEER_UP)
            kvf_move_feed(m, KVF_MOVE_EV_LOST);
        else
            kvf_move_stop(m, why);
        return;
    default:
        return; /* what is being asked or told decides */
    }
}

/* ---- the transfer ------------------------------------------------------- */

/* An access that was kept from before is not there any more: that was no
 * attempt at what is there now. */
static bool kept_too_long(struct kvf_move *m, const struct kvf_why *why)
{
    if (!m->from_idle || m->grant == NULL || !m->grant->lost)
        return false;
    m->from_idle = false;
    m->m.attempts = 0;
    free(m->cause);
    m->cause = strdup(why->text);
    kvf_move_feed(m, KVF_MOVE_EV_LOST);
    return true;
}

/* A write over tcp did not end as it should: what was sent of it may lie in a
 * socket of the owner still, and be read when others have written there. So its
 * access ends before another is asked for, and none from before is used again.
 */
static void after_a_cut(struct kvf_move *m)
{
    if (m->kind != KVF_MOVE_WRITE || m->grant == NULL || m->transport == NULL ||
        strcmp(m->transport, "tcp") != 0)
        return;
    m->ms->cuts++;
    kvf_grant_give_back(m->grant);
}

/* From inside MOVING: the attempt is over and memory is quiet. */
static void broken(struct kvf_move *m, const struct kvf_why *why)
{
    const struct kvf_peer *p = m->peer;
    struct kvf_retry_facts f = {
        .attempts = m->m.attempts,
        .max = m->m.max_attempts,
        .remote = p != NULL,
        .up = p != NULL && kvf_peer_state(p) == KVF_PEER_UP,
        .heard_ns = p != NULL ? kvf_peer_heard_ns(p) : 0,
        .now_ns = m->ms->env.sched->now_ns};

    if ((f.up || !f.remote) && kept_too_long(m, why))
        return;
    after_a_cut(m);
    if (f.remote && !f.up)
        kvf_move_because(m, kvf_peer_why(p)->status, "%s",
                         kvf_peer_why(p)->text);
    m->m.attempts = kvf_retry_failed(&m->retry, m->ms->env.conf, &f,
                                     &m->ms->env.stats->fallbacks);
    if (m->m.attempts >= m->m.max_attempts)
        kvf_move_because(m, KVF_TRANSPORT, "%s to %s failed %u times: %s",
                         m->transport != NULL ? m->transport : "transfer",
                         kvf_move_peer_name(m), m->m.attempts, why->text);
    free(m->cause);
    m->cause = strdup(why->text);
    kvf_move_feed(m, m->grant != NULL && m->grant->lost ? KVF_MOVE_EV_LOST
                                                        : KVF_MOVE_EV_BROKEN);
}

static void on_xfer_done(struct kvf_xfer *x, int status,
                         const struct kvf_why *why)
{
    struct kvf_move *m = kvf_container_of(x, struct kvf_move, xfer);
    struct kvf_why lost;

    if (m->m.state == KVF_MOVE_DRAINING) {
        after_a_cut(m);
        kvf_move_feed(m, KVF_MOVE_EV_QUIET);
        return;
    }
    if (status == 0 && m->self && m->window_id != 0 &&
        kvf_window_find(m->ms->env.peers, m->window_id) == NULL) {
        m->m.attempts = m->m.max_attempts;
        kvf_move_because(m, KVF_STALE, "the window was unexposed");
        kvf_move_feed(m, KVF_MOVE_EV_BROKEN);
        return;
    }
    if (status == 0 && m->grant != NULL && m->over_shm &&
        !kvf_peer_alive(m->peer)) {
        /* The bytes went into the memory of a dead process. */
        m->grant->lost = true;
        kvf_fail(&lost, KVF_PEER_UNREACHABLE, "the process of %s has ended",
                 kvf_move_peer_name(m));
        broken(m, &lost);
        return;
    }
    if (status == 0 && m->from_idle && m->over_shm &&
        kvf_peer_windows(m->peer) != m->windows)
        m->grant->lost = true; /* perhaps: the owner is asked */
    if (status == 0 && m->grant != NULL && m->grant->lost) {
        /* The last byte went, but what was granted had ended before it. */
        kvf_fail(&lost, KVF_STALE, "the access ended during the transfer");
        broken(m, &lost);
        return;
    }
    if (status < 0 && -status == KVF_STALE && m->grant != NULL)
        m->grant->lost = true; /* the owner does not know it any more */
    if (status < 0)
        broken(m, why);
    else
        kvf_move_feed(m, KVF_MOVE_EV_MOVED);
}

static enum kvf_way find_way(struct kvf_move *m, struct kvf_link **link,
                             struct kvf_why *why)
{
    const struct kvf_conf *c = m->ms->env.conf;
    enum kvf_way way;

    if (m->self) {
        m->transport = "local";
        *link = &m->ms->local_link;
        return KVF_WAY_LINK;
    }
    way = kvf_way_find(&m->retry, c, m->peer, m->grant, 0, link, why);
    if (way == KVF_WAY_LINK) {
        m->over_shm = c->protocol[m->retry.proto_at] == KVF_PROTO_SHM;
        m->transport = m->retry.transport;
    }
    return way;
}

void kvf_move_run(struct kvf_move *m)
{
    struct kvf_link *link;
    struct kvf_why why;

    if (!m->has_xfer) {
        if (kvf_xfer_init(&m->xfer, m->ms->env.sched, m->kind != KVF_MOVE_READ,
                          m->size, m->iov, m->n_iov, on_xfer_done, &why) < 0) {
            kvf_move_because(m, why.status, "%s", why.text);
            m->m.attempts = m->m.max_attempts;
            kvf_move_feed(m, KVF_MOVE_EV_BROKEN);
            return;
        }
        m->has_xfer = true;
        m->xfer.part = !m->self && m->kind != KVF_MOVE_PUSH;
        m->xfer.base = m->xfer.part ? m->target_offset : 0;
    }
    switch (find_way(m, &link, &why)) {
    case KVF_WAY_LINK:
        if (m->m.attempts > 1)
            m->ms->env.stats->retries++;
        kvf_xfer_start(&m->xfer, link, m->self ? &m->local : &m->grant->remote);
        return;
    case KVF_WAY_WAIT: /* nothing was tried */
        m->m.attempts--;
        kvf_move_feed(m,
                      m->grant->lost ? KVF_MOVE_EV_LOST : KVF_MOVE_EV_BROKEN);
        return;
    case KVF_WAY_NONE:
        broken(m, &why);
        return;
    }
}

void kvf_move_xfer_free(struct kvf_move *m)
{
    if (m->summing)
        kvf_checksum_stop(&m->sum);
    m->summing = false;
    if (m->has_xfer)
        kvf_xfer_fini(&m->xfer);
    m->has_xfer = false;
}

/* ---- retrying ----------------------------------------------------------- */

void kvf_move_on_link(struct kvf_retry *r)
{
    kvf_move_feed(kvf_container_of(r, struct kvf_move, retry),
                  KVF_MOVE_EV_BACKOFF);
}

static void log_retry(const struct kvf_move *m, uint64_t ns)
{
    char key[512];

    kvf_log(KVF_LOG_WARN, "KVF RETRY",
            "key=%s attempt=%u/%u transport=%s backoff_ms=%llu "
            "done=%llu/%llu: %s",
            kvf_log_key(key, sizeof key, m->name, m->name_len),
            m->m.attempts + 1, m->m.max_attempts,
            m->transport != NULL ? m->transport : "none",
            (unsigned long long)(ns / KVF_NS_PER_MS),
            (unsigned long long)(m->has_xfer ? m->xfer.bytes_done : 0),
            (unsigned long long)m->size, m->cause != NULL ? m->cause : "");
}

void kvf_move_backoff(struct kvf_move *m)
{
    struct kvf_sched *s = m->ms->env.sched;
    uint64_t ns;

    if (!kvf_way_pause(&m->retry, m->ms->env.conf, m->ms->env.rng, m->peer,
                       m->m.attempts, &ns))
        return;
    if (m->retry.pause == KVF_PAUSE_BACKOFF)
        log_retry(m, ns);
    kvf_timer_set(s, &m->pause, s->now_ns + ns);
}
