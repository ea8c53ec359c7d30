/* How a link ends, and what it tells its owner.
 *
 * There is one way down for every failure, a cancelled transfer that does not
 * end, and link_close of a link with something under way: its connection goes
 * down (conn.c), and the ops come back when nothing can touch their memory any
 * more. A link with nothing under way that shares its connection with a guest
 * only leaves it. Callbacks are made from tasks, never from here. */
#include "transport/rdma/rdma_priv.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- telling the owner of the link -------------------------------------- */

static bool gone(const struct kvf_rdma_link *l)
{
    return l->state == KVF_RDMA_DYING || l->state == KVF_RDMA_DEAD;
}

void kvf_rdma_link_event(struct kvf_task *t)
{
    struct kvf_rdma_link *l = kvf_container_of(t, struct kvf_rdma_link, event);
    struct kvf_link *link = l->link;

    if (link == NULL)
        return;
    if (l->was_up && !l->told_up) {
        l->told_up = true;
        if (gone(l))
            kvf_task_post(l->r->t.sched, &l->event);
        if (link->on_up != NULL)
            link->on_up(link); /* may close the link */
        return;
    }
    if (gone(l) && link->state != KVF_LINK_DOWN) {
        struct kvf_why why = l->why;

        link->state = KVF_LINK_DOWN;
        if (link->on_down != NULL)
            link->on_down(link, &why); /* may close the link */
    }
}

void kvf_rdma_link_roomy(struct kvf_task *t)
{
    struct kvf_rdma_link *l = kvf_container_of(t, struct kvf_rdma_link, room);

    if (l->link != NULL)
        kvf_link_room(l->link);
}

/* ---- the page of the probe ---------------------------------------------- */

void kvf_rdma_scratch_give(struct kvf_rdma_link *l)
{
    struct kvf_rdma *r = l->r;

    if (l->scratch < 0)
        return;
    r->scratch_used &= ~(1ull << l->scratch);
    l->scratch = -1;
    kvf_list_for_each (n, &r->links) {
        struct kvf_rdma_link *next =
            kvf_container_of(n, struct kvf_rdma_link, node);

        if (next->state != KVF_RDMA_JOINING || !next->wants_page)
            continue;
        kvf_rdma_job_start(r, &next->job);
        return;
    }
}

bool kvf_rdma_scratch_take(struct kvf_rdma_link *l)
{
    struct kvf_rdma *r = l->r;

    l->wants_page = r->scratch_used == UINT64_MAX;
    if (l->wants_page)
        return false;
    l->scratch = __builtin_ctzll(~r->scratch_used);
    r->scratch_used |= 1ull << l->scratch;
    memset(r->scratch + (size_t)l->scratch * KVF_RDMA_PROBE, 0, KVF_RDMA_PROBE);
    return true;
}

/* ---- the way down ------------------------------------------------------- */

void kvf_rdma_link_free(struct kvf_rdma_link *l)
{
    kvf_rdma_job_stop(&l->job);
    kvf_timer_cancel(l->r->t.sched, &l->timer);
    kvf_task_cancel(&l->event);
    kvf_task_cancel(&l->room);
    kvf_task_cancel(&l->ring);
    kvf_list_unlink(&l->node);
    free(l->pool);
    free(l);
}

/* Nothing touches their memory any more. */
static void give_back(struct kvf_rdma_link *l)
{
    struct kvf_list *n;

    while ((n = kvf_list_pop(&l->flying)) != NULL ||
           (n = kvf_list_pop(&l->queued)) != NULL)
        kvf_rdma_op_end(l, kvf_container_of(n, struct kvf_transfer_op, node),
                        -(int)l->why.status, &l->why);
    l->n_cancelled = 0;
}

/* Ops of which no work request was posted can go at once. */
static void give_back_unposted(struct kvf_rdma_link *l)
{
    kvf_list_for_each_safe (n, &l->queued) {
        struct kvf_transfer_op *op =
            kvf_container_of(n, struct kvf_transfer_op, node);

        if (op->tag != 0)
            continue;
        kvf_list_unlink(n);
        kvf_rdma_op_end(l, op, -(int)l->why.status, &l->why);
    }
}

/* Nothing is begun any more; the other side and the own one hear of it. */
static void begin_end(struct kvf_rdma_link *l, const struct kvf_why *why)
{
    struct kvf_rdma *r = l->r;

    l->why = *why;
    l->parked = false;
    kvf_rdma_job_stop(&l->job);
    kvf_task_cancel(&l->ring);
    kvf_timer_cancel(r->t.sched, &l->timer);
    if (l->was_up && l->link != NULL)
        r->t.stats->rdma_errors++;
    if (l->asked && l->link != NULL)
        r->hooks->disconnect(r->hooks_arg, l->link, l->id, l->why.text);
    l->state = KVF_RDMA_DYING;
    if (l->link != NULL) {
        l->link->own_will = l->c != NULL && l->c->own_will;
        kvf_task_post(r->t.sched, &l->event);
        kvf_task_post(r->t.sched, &l->room);
    }
    give_back_unposted(l);
    kvf_log(KVF_LOG_DEBUG, "RDMA",
            "%s: link ends wrs_in_flight=%" PRIu64 " ops=%u: %s", l->host,
            l->posted - l->done, l->n_ops, why->text);
}

/* Without a connection (any more). */
static void finish(struct kvf_rdma_link *l)
{
    l->c = NULL;
    l->state = KVF_RDMA_DEAD;
    l->posted = l->done;
    kvf_rdma_scratch_give(l);
    give_back(l);
}

void kvf_rdma_link_abort(struct kvf_rdma_link *l, const struct kvf_why *why)
{
    if (gone(l))
        return;
    begin_end(l, why);
    if (l->c != NULL)
        kvf_rdma_conn_down(l->c, why);
    else
        finish(l);
    kvf_rdma_guests_wake(l->r);
}

void kvf_rdma_link_leave(struct kvf_rdma_link *l, const struct kvf_why *why)
{
    struct kvf_rdma_conn *c = l->c;

    if (c == NULL || c->guest == NULL || c->down || l->posted != l->done) {
        kvf_rdma_link_abort(l, why);
        return;
    }
    if (gone(l))
        return;
    begin_end(l, why);
    c->link = NULL;
    finish(l);
    kvf_rdma_guests_wake(l->r);
}

void kvf_rdma_link_quiet(struct kvf_rdma_link *l)
{
    give_back(l);
}

void kvf_rdma_link_dead(struct kvf_rdma_link *l)
{
    kvf_log(KVF_LOG_DEBUG, "RDMA", "%s: QP gone wrs=%" PRIu64, l->host,
            l->done);
    finish(l);
    if (l->link == NULL)
        kvf_rdma_link_free(l);
}

/* Connecting: the deadline. Up: no completion while work requests are in
 * flight. */
void kvf_rdma_link_timer(struct kvf_timer *t)
{
    struct kvf_rdma_link *l = kvf_container_of(t, struct kvf_rdma_link, timer);
    struct kvf_sched *s = l->r->t.sched;
    uint64_t limit = kvf_rdma_stall_ns(l);
    struct kvf_why why;

    if (l->state != KVF_RDMA_UP) {
        kvf_fail(&why, KVF_PEER_UNREACHABLE,
                 "rdma to %s: not up within %llu ms", l->host,
                 (unsigned long long)l->r->conf.connect_ms);
        kvf_rdma_link_leave(l, &why);
        return;
    }
    if (l->posted == l->done)
        return;
    if (s->stalled) /* we were stopped, not the device */
        l->last_progress = s->now_ns;
    if (s->now_ns - l->last_progress < limit) {
        kvf_timer_set(s, t, l->last_progress + limit);
        return;
    }
    kvf_fail(&why, KVF_TRANSPORT, "rdma to %s: no completion for %llu ms",
             l->host, (unsigned long long)(limit / KVF_NS_PER_MS));
    kvf_rdma_link_abort(l, &why);
}

void kvf_rdma_link_close(struct kvf_link *link)
{
    struct kvf_rdma_link *l = link->impl;
    struct kvf_why why;

    kvf_fail(&why, KVF_TRANSPORT, "rdma to %s: the link was closed", l->host);
    kvf_list_for_each (n, &l->flying)
        kvf_container_of(n, struct kvf_transfer_op, node)->link = NULL;
    kvf_list_for_each (n, &l->queued)
        kvf_container_of(n, struct kvf_transfer_op, node)->link = NULL;
    if (l->asked && !gone(l))
        l->r->hooks->disconnect(l->r->hooks_arg, link, l->id, why.text);
    l->link = NULL;
    kvf_rdma_link_leave(l, &why);
    kvf_task_cancel(&l->event);
    kvf_task_cancel(&l->room);
    if (l->state == KVF_RDMA_DEAD)
        kvf_rdma_link_free(l);
}

void kvf_rdma_links_destroy(struct kvf_rdma *r)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&r->links)) != NULL) {
        struct kvf_rdma_link *l =
            kvf_container_of(n, struct kvf_rdma_link, node);

        l->link = NULL;
        kvf_fail(&l->why, KVF_SHUTTING_DOWN, "the transport was closed");
        give_back(l);
        kvf_rdma_link_free(l);
    }
}
