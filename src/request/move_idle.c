/* Accesses to windows that are kept for the next write or read of the same
 * window.
 *
 * Happy path: kept when a move ends, taken by the next, given back when nobody
 * wants it for a while. Failure modes: lost meanwhile, or perhaps of a window
 * that has ended: given back at once. */
#include "request/moves_private.h"

#include <stdlib.h>
#include <string.h>

/* One that nobody uses is given back after so long. */
#define IDLE_NS (10 * KVF_NS_PER_S)

static struct kvf_grant *idle_take(struct kvf_idle *i)
{
    struct kvf_grant *g = i->grant;

    kvf_timer_cancel(i->ms->env.sched, &i->timer);
    kvf_list_unlink(&i->node);
    i->ms->n_idle--;
    free(i);
    return g;
}

static void idle_lost(struct kvf_grant *g, const struct kvf_why *why)
{
    (void)why;
    kvf_grant_abort(idle_take(g->user));
}

static void idle_over(struct kvf_timer *t)
{
    kvf_grant_abort(idle_take(kvf_container_of(t, struct kvf_idle, timer)));
}

static bool is_of(const struct kvf_idle *i, const struct kvf_move *m)
{
    return i->grant->peer == m->peer &&
           i->write == (m->kind == KVF_MOVE_WRITE) &&
           i->name_len == m->name_len &&
           memcmp(i->name, m->name, m->name_len) == 0;
}

void kvf_idle_keep(struct kvf_move *m)
{
    struct kvf_moves *ms = m->ms;
    struct kvf_idle *i = NULL;
    struct kvf_list *oldest;

    /* Over tcp the owner looks at every request, over shm the count in its
     * pool's header tells that a window has ended. Over rdma nothing would tell
     * in time: it is asked each time. */
    if (m->kind == KVF_MOVE_PUSH || m->grant == NULL || m->m.attempts != 1)
        return;
    if (m->over_shm ? m->windows == 0 : strcmp(m->transport, "tcp") != 0)
        return;
    if (!m->grant->lost)
        i = malloc(sizeof *i + m->name_len);
    if (i == NULL)
        return; /* given back with the move */
    oldest = kvf_list_first(&ms->idle);
    if (ms->n_idle >= KVF_IDLE_GRANTS && oldest != NULL)
        kvf_grant_abort(
            idle_take(kvf_container_of(oldest, struct kvf_idle, node)));
    i->ms = ms;
    i->grant = m->grant;
    i->write = m->kind == KVF_MOVE_WRITE;
    i->windows = m->windows;
    i->cuts = m->cuts;
    i->name_len = m->name_len;
    memcpy(i->name, m->name, m->name_len);
    kvf_list_init(&i->node);
    kvf_list_push_back(&ms->idle, &i->node);
    ms->n_idle++;
    kvf_timer_init(&i->timer, idle_over);
    kvf_timer_set(ms->env.sched, &i->timer, ms->env.sched->now_ns + IDLE_NS);
    m->grant->user = i;
    m->grant->on_lost = idle_lost;
    m->grant = NULL;
}

struct kvf_grant *kvf_idle_find(struct kvf_move *m)
{
    uint64_t windows = kvf_peer_windows(m->peer);

    m->windows = windows;
    kvf_list_for_each_safe (n, &m->ms->idle) {
        struct kvf_idle *i = kvf_container_of(n, struct kvf_idle, node);

        if (!is_of(i, m))
            continue;
        if (i->windows != windows || i->cuts != m->ms->cuts)
            kvf_grant_abort(idle_take(i)); /* may be of a window that ended */
        else if (m->target_offset <= i->grant->size &&
                 m->size <= i->grant->size - m->target_offset)
            return idle_take(i);
    }
    return NULL;
}

void kvf_idle_drop_all(struct kvf_moves *ms)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&ms->idle)) != NULL)
        kvf_grant_abort(idle_take(kvf_container_of(n, struct kvf_idle, node)));
}
