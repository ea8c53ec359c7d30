/* A move looks for the other side, asks it for room or access, and tells it
 * when all bytes are there. */
#include "request/moves_private.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* ---- finding the other side --------------------------------------------- */

static void check_worker_and_ask(struct kvf_move *m)
{
    struct kvf_why why;

    kvf_timer_cancel(m->ms->env.sched, &m->pause);
    if (m->has_expect && kvf_peer_check_worker(m->peer, &m->expect, &why) < 0) {
        kvf_move_stop(m, &why);
        return;
    }
    kvf_move_feed(m, KVF_MOVE_EV_ASK);
}

static void on_peer_up(struct kvf_peer_user *u)
{
    struct kvf_move *m = kvf_container_of(u, struct kvf_move, user);

    if (m->m.state == KVF_MOVE_CONNECTING) {
        check_worker_and_ask(m);
    } else if (m->m.state == KVF_MOVE_CONFIRMING && m->confirm_waits) {
        m->confirm_waits = false;
        kvf_timer_cancel(m->ms->env.sched, &m->pause);
        kvf_move_confirm(m);
    }
}

static void on_peer_down(struct kvf_peer_user *u, const struct kvf_why *why)
{
    struct kvf_move *m = kvf_container_of(u, struct kvf_move, user);

    /* Only a refusal is final while we wait for a session. */
    if (m->m.state == KVF_MOVE_CONNECTING &&
        kvf_peer_state(m->peer) == KVF_PEER_REFUSED)
        kvf_move_stop(m, why);
}

/* One that was there before gets a moment to come back. */
static void await_peer(struct kvf_move *m)
{
    struct kvf_moves_env *env = &m->ms->env;

    if (kvf_peer_was_up(m->peer))
        kvf_timer_set(env->sched, &m->pause,
                      m->t_start + env->conf->peer_timeout_ms * KVF_NS_PER_MS);
    kvf_move_feed(m, KVF_MOVE_EV_WAIT_PEER);
}

void kvf_move_begin(struct kvf_move *m)
{
    struct kvf_moves_env *env = &m->ms->env;
    struct kvf_why why;

    if (m->self) {
        kvf_move_feed(m, KVF_MOVE_EV_ASK);
        return;
    }
    if (kvf_peer_at(env->peers, m->host, m->port, &m->peer, &why) < 0) {
        kvf_move_stop(m, &why);
        return;
    }
    m->user.on_up = on_peer_up;
    m->user.on_down = on_peer_down;
    kvf_peer_join(m->peer, &m->user);
    if (kvf_peer_state(m->peer) == KVF_PEER_UP) {
        check_worker_and_ask(m);
        return;
    }
    if (kvf_peer_state(m->peer) == KVF_PEER_REFUSED) {
        kvf_move_stop(m, kvf_peer_why(m->peer));
        return;
    }
    await_peer(m);
}

/* ---- asking ------------------------------------------------------------- */

static void take_grant(struct kvf_move *m, struct kvf_grant *g)
{
    bool same = m->kind != KVF_MOVE_PUSH && m->grant != NULL &&
                m->grant->generation == g->generation;

    m->t_granted = kvf_sched_clock(m->ms->env.sched);
    if (m->grant != NULL)
        kvf_grant_abort(m->grant);
    /* What is in place is in place in the memory of the grant before; in the
     * same window still (its id) it stays there. */
    if (m->has_xfer && !same)
        kvf_xfer_reset(&m->xfer);
    m->grant = g;
    g->user = m;
    g->on_lost = kvf_move_on_lost;
    kvf_move_feed(m, KVF_MOVE_EV_GRANT);
}

static void on_grant(struct kvf_ask *a, struct kvf_grant *g)
{
    struct kvf_move *m = kvf_container_of(a, struct kvf_move, ask);
    struct kvf_why why;

    m->from_idle = false;
    if (m->kind == KVF_MOVE_PUSH ? g->size != m->size
                                 : m->target_offset > g->size ||
                                       m->size > g->size - m->target_offset) {
        kvf_grant_abort(g);
        kvf_fail(&why, KVF_INVALID,
                 "%llu bytes at %llu are outside of what %s granted",
                 (unsigned long long)m->size,
                 (unsigned long long)m->target_offset, kvf_move_peer_name(m));
        kvf_move_stop(m, &why);
        return;
    }
    take_grant(m, g);
}

static void on_applied(struct kvf_ask *a, uint64_t generation)
{
    struct kvf_move *m = kvf_container_of(a, struct kvf_move, ask);

    /* Also when the commit of an earlier try had come through. */
    m->t_granted = kvf_sched_clock(m->ms->env.sched);
    m->generation = generation;
    if (m->eager)
        m->transport = "eager";
    kvf_move_feed(m, KVF_MOVE_EV_APPLIED);
}

static void on_deny(struct kvf_ask *a, const struct kvf_why *why,
                    uint64_t generation, uint64_t size)
{
    struct kvf_move *m = kvf_container_of(a, struct kvf_move, ask);

    (void)generation;
    (void)size;
    /* It was down already when this came, and knows nothing of it. */
    if (a->unheard && kvf_peer_state(m->peer) != KVF_PEER_REFUSED) {
        await_peer(m);
        return;
    }
    if (m->eager && why->status == KVF_TOO_LARGE && !m->eager_refused) {
        m->eager_refused = true; /* it takes fewer bytes so than we do */
        kvf_move_feed(m, KVF_MOVE_EV_ASK);
        return;
    }
    m->has_space = a->needed != 0;
    m->free = a->free;
    m->largest_free = a->largest_free;
    m->needed = a->needed;
    kvf_move_stop(m, why);
}

static void on_again(struct kvf_ask *a)
{
    kvf_move_ask(kvf_container_of(a, struct kvf_move, ask));
}

/* A small payload goes with the question. */
static void make_eager(struct kvf_move *m)
{
    uint8_t *at;

    m->eager = !m->eager_refused && m->size <= m->ms->env.conf->inline_max;
    if (!m->eager)
        return;
    if (m->bytes == NULL) {
        at = m->bytes = malloc(m->size);
        m->eager = at != NULL;
        for (unsigned i = 0; at != NULL && i < m->n_iov; i++) {
            memcpy(at, m->iov[i].iov_base, m->iov[i].iov_len);
            at += m->iov[i].iov_len;
        }
    }
    if (m->eager && m->checksum && !m->summed) {
        m->sum_value = XXH3_64bits(m->bytes, m->size);
        m->summed = true;
    }
}

static int ask_room(struct kvf_move *m, struct kvf_why *why)
{
    struct kvf_peer_room_ask body = {
        .push = m->id,
        .key = {m->name, m->name_len},
        .size = m->size,
        .meta = m->extra,
        .meta_len = m->extra_len,
        .has_ttl = m->has_ttl,
        .ttl_ms = m->ttl_ms,
        .readers = m->readers,
        .reject_duplicate = m->reject_duplicate,
        .want_shm = kvf_peer_has_shm(m->peer),
        .notify = m->wants_end,
    };

    if (m->wants_end && m->watch == NULL &&
        kvf_watch_new(m->peer, &m->id, m->name, m->name_len, &m->publisher,
                      &m->watch, why) < 0)
        return -(int)why->status;
    make_eager(m);
    if (m->eager) {
        body.bytes = m->bytes;
        body.bytes_len = m->size;
        body.has_checksum = m->checksum;
        body.checksum = m->sum_value;
    }
    m->ask.write = true;
    return kvf_peer_ask_room(m->peer, &m->ask, &body, why);
}

static int ask_window(struct kvf_move *m, struct kvf_why *why)
{
    struct kvf_peer_window_ask body = {
        .name = {m->name, m->name_len},
        .write = m->kind == KVF_MOVE_WRITE,
        .want_shm = kvf_peer_has_shm(m->peer),
        .offset = m->target_offset,
        .length = m->size,
    };

    m->ask.write = body.write;
    return kvf_peer_ask_window(m->peer, &m->ask, &body, why);
}

void kvf_move_ask(struct kvf_move *m)
{
    struct kvf_grant *kept = NULL;
    struct kvf_why why;
    int ret;

    m->t_asked = kvf_sched_clock(m->ms->env.sched);
    if (m->self) {
        kvf_move_ask_self(m);
        return;
    }
    if (m->kind != KVF_MOVE_PUSH && m->m.attempts == 0)
        kept = kvf_idle_find(m);
    m->cuts = m->ms->cuts;
    if (kept != NULL) {
        m->from_idle = true;
        take_grant(m, kept);
        return;
    }
    m->ask.on_grant = on_grant;
    m->ask.on_deny = on_deny;
    m->ask.on_again = on_again;
    m->ask.on_applied = m->kind == KVF_MOVE_PUSH ? on_applied : NULL;
    ret = m->kind == KVF_MOVE_PUSH ? ask_room(m, &why) : ask_window(m, &why);
    if (ret < 0)
        kvf_move_stop(m, &why);
}

/* ---- confirming --------------------------------------------------------- */

static void on_confirmed(struct kvf_ask *a, uint64_t generation)
{
    struct kvf_move *m = kvf_container_of(a, struct kvf_move, ask);

    m->generation = generation;
    kvf_move_feed(m, KVF_MOVE_EV_CONFIRMED);
}

static void on_refused(struct kvf_ask *a, const struct kvf_why *why,
                       uint64_t generation, uint64_t size)
{
    struct kvf_move *m = kvf_container_of(a, struct kvf_move, ask);
    const struct kvf_moves_env *env = &m->ms->env;

    (void)generation;
    (void)size;
    if (kvf_peer_state(m->peer) == KVF_PEER_DOWN) {
        /* It may have heard us and published: it is asked again when it is
         * back, and answers the same. */
        m->confirm_waits = true;
        kvf_timer_set(env->sched, &m->pause,
                      env->sched->now_ns +
                          env->conf->peer_timeout_ms * KVF_NS_PER_MS);
        return;
    }
    if (why->status != KVF_STALE) {
        kvf_move_stop(m, why);
        return;
    }
    free(m->cause);
    m->cause = strdup(why->text);
    if (m->m.attempts >= m->m.max_attempts)
        kvf_move_because(m, KVF_STALE, "%s", why->text);
    kvf_move_feed(m, KVF_MOVE_EV_LOST);
}

static void confirm_again(struct kvf_ask *a)
{
    kvf_move_confirm(kvf_container_of(a, struct kvf_move, ask));
}

static int commit(struct kvf_move *m, struct kvf_why *why)
{
    struct kvf_peer_commit body = {.push = m->id,
                                   .claim = m->grant->remote.claim,
                                   .token = m->grant->remote.token,
                                   .has_checksum = m->checksum,
                                   .checksum = m->sum_value};

    return kvf_peer_commit(m->peer, &m->ask, &body, why);
}

static int notify(struct kvf_move *m, struct kvf_why *why)
{
    struct kvf_peer_notify body = {.id = m->id,
                                   .claim = m->grant->remote.claim,
                                   .token = m->grant->remote.token,
                                   .write = m->kind == KVF_MOVE_WRITE,
                                   .data = m->extra,
                                   .len = m->extra_len};

    return kvf_peer_notify(m->peer, &m->ask, &body, why);
}

static void on_checksum(struct kvf_checksum *c, uint64_t value)
{
    struct kvf_move *m = kvf_container_of(c, struct kvf_move, sum);

    m->summing = false;
    m->summed = true;
    m->sum_value = value;
    kvf_move_confirm(m);
}

void kvf_move_confirm(struct kvf_move *m)
{
    struct kvf_why why;
    int ret = 0;

    if (m->checksum && !m->summed) {
        if (!m->summing)
            ret = kvf_checksum_start(&m->sum, m->ms->env.sched, m->iov,
                                     m->n_iov, on_checksum, &why);
        m->summing = ret == 0;
        if (ret < 0)
            kvf_move_stop(m, &why);
        return;
    }
    if (m->self) {
        kvf_move_confirm_self(m);
        return;
    }
    m->ask.on_grant = NULL;
    m->ask.on_deny = on_refused;
    m->ask.on_again = confirm_again;
    m->ask.on_applied = on_confirmed;
    ret = m->kind == KVF_MOVE_PUSH ? commit(m, &why) : notify(m, &why);
    if (ret < 0)
        on_refused(&m->ask, &why, 0, 0);
}
