/* Virtual-time transport. Happy path: each op has a timer; at half time half of
 * its bytes are moved, at the end the rest. Failure modes are the plan's. */
#include "sim_transport.h"

#include <stdlib.h>

struct sim {
    struct kvf_transport t;
    struct kvf_sim_plan *plan;
};

struct sim_link {
    struct kvf_link *link;
    struct sim *sim;
    struct kvf_list ops;
    struct kvf_task up, down, room;
    bool starved;
};

struct sim_op {
    struct kvf_list node;
    struct kvf_timer timer;
    struct kvf_transfer_op *op;
    struct sim_link *sl;
    bool half, fail, cut, stuck;
};

static void move(struct kvf_sim_plan *plan, bool write, uint8_t *far,
                 uint8_t *near)
{
    if (write)
        *far = *near;
    else
        *near = *far;
    plan->bytes++;
}

static void copy_runs(struct sim_op *so, uint64_t end)
{
    struct kvf_transfer_op *op = so->op;
    struct kvf_sim_plan *plan = so->sl->sim->plan;

    for (; op->moved < end; op->moved++) {
        const struct kvf_run *r = &op->runs[op->cur_iov];

        move(plan, op->write, plan->payload + r->offset + op->cur_iov_off,
             (uint8_t *)r->local + op->cur_iov_off);
        if (++op->cur_iov_off == r->length) {
            op->cur_iov++;
            op->cur_iov_off = 0;
        }
    }
}

static void copy_some(struct sim_op *so, uint64_t end)
{
    struct kvf_transfer_op *op = so->op;
    struct kvf_sim_plan *plan = so->sl->sim->plan;

    if (op->n_runs > 0) {
        copy_runs(so, end);
        return;
    }
    while (op->moved < end) {
        uint8_t *far = plan->payload + op->offset + op->moved;
        uint8_t *near = (uint8_t *)op->iov[op->cur_iov].iov_base;

        if (op->cur_iov_off == op->iov[op->cur_iov].iov_len) {
            op->cur_iov++;
            op->cur_iov_off = 0;
            continue;
        }
        near += op->cur_iov_off;
        move(plan, op->write, far, near);
        op->moved++;
        op->cur_iov_off++;
    }
}

static void op_end(struct sim_op *so, int status)
{
    struct sim_link *sl = so->sl;
    struct kvf_sched *s = sl->sim->t.sched;

    kvf_timer_cancel(s, &so->timer);
    kvf_list_unlink(&so->node);
    kvf_op_finish(&sl->sim->t, so->op, status, NULL);
    free(so);
    if (sl->starved) {
        sl->starved = false;
        kvf_task_post(s, &sl->room);
    }
}

static void end_all(struct sim_link *sl, int status)
{
    kvf_list_for_each_safe (n, &sl->ops)
        op_end(kvf_container_of(n, struct sim_op, node), status);
}

static void step(struct kvf_timer *t)
{
    struct sim_op *so = kvf_container_of(t, struct sim_op, timer);
    struct sim_link *sl = so->sl;
    struct kvf_sched *s = sl->sim->t.sched;

    if (!so->half) {
        so->half = true;
        copy_some(so, so->op->length / 2);
        if (!so->stuck)
            kvf_timer_set(s, t, s->now_ns + sl->sim->plan->delay_ns / 2);
        return;
    }
    if (so->cut) {
        sl->link->state = KVF_LINK_DOWN;
        kvf_task_post(s, &sl->down);
        end_all(sl, -KVF_TRANSPORT);
        return;
    }
    if (!so->fail)
        copy_some(so, so->op->length);
    op_end(so, so->fail ? -KVF_TRANSPORT : 0);
}

static void up(struct kvf_task *t)
{
    struct sim_link *sl = kvf_container_of(t, struct sim_link, up);

    if (sl->link->state == KVF_LINK_CONNECTING)
        sl->link->state = KVF_LINK_UP;
    if (sl->link->on_up != NULL)
        sl->link->on_up(sl->link);
}

static void down(struct kvf_task *t)
{
    struct sim_link *sl = kvf_container_of(t, struct sim_link, down);
    struct kvf_why why;

    kvf_fail(&why, KVF_TRANSPORT, "cut");
    kvf_link_room(sl->link);
    if (sl->link->on_down != NULL)
        sl->link->on_down(sl->link, &why);
}

static void room(struct kvf_task *t)
{
    kvf_link_room(kvf_container_of(t, struct sim_link, room)->link);
}

static int link_open(struct kvf_transport *t, struct kvf_link *link,
                     const struct kvf_link_addr *addr, struct kvf_why *why)
{
    struct sim_link *sl = calloc(1, sizeof *sl);

    (void)addr;
    if (sl == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory");
    sl->link = link;
    sl->sim = kvf_container_of(t, struct sim, t);
    kvf_list_init(&sl->ops);
    kvf_task_init(&sl->up, up);
    kvf_task_init(&sl->down, down);
    kvf_task_init(&sl->room, room);
    link->impl = sl;
    kvf_task_post(t->sched, &sl->up);
    return 0;
}

static void link_close(struct kvf_link *link)
{
    struct sim_link *sl = link->impl;

    end_all(sl, -KVF_CANCELLED);
    kvf_task_cancel(&sl->up);
    kvf_task_cancel(&sl->down);
    kvf_task_cancel(&sl->room);
    free(sl);
}

static int post(struct kvf_link *link, struct kvf_transfer_op *op,
                struct kvf_why *why)
{
    struct sim_link *sl = link->impl;
    struct kvf_sim_plan *plan = sl->sim->plan;
    struct kvf_sched *s = sl->sim->t.sched;
    struct sim_op *so;

    if (plan->room != 0 && link->inflight >= plan->room) {
        sl->starved = true;
        return kvf_fail(why, KVF_BUSY, "no room");
    }
    plan->posted++;
    if (plan->refuse_nth == plan->posted)
        return kvf_fail(why, KVF_MISMATCH, "refused");
    so = calloc(1, sizeof *so);
    if (so == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory");
    so->op = op;
    so->sl = sl;
    so->fail = plan->fail_nth == plan->posted;
    so->cut = plan->cut_nth == plan->posted;
    so->stuck = plan->stuck_nth == plan->posted;
    op->priv = so;
    kvf_timer_init(&so->timer, step);
    kvf_timer_set(s, &so->timer, s->now_ns + plan->delay_ns / 2);
    kvf_list_push_back(&sl->ops, &so->node);
    return 0;
}

static void cancel(struct kvf_link *link, struct kvf_transfer_op *op)
{
    (void)link;
    op_end(op->priv, -KVF_CANCELLED);
}

static struct kvf_sim_plan *plan_of(const struct kvf_link *link)
{
    struct sim_link *sl = link->impl;

    return sl->sim->plan;
}

static uint64_t chunk(const struct kvf_link *link)
{
    uint64_t n = plan_of(link)->chunk;

    return n != 0 ? n : 1ull << 20;
}

static unsigned depth(const struct kvf_link *link, uint64_t size)
{
    unsigned n = plan_of(link)->depth;

    (void)size;
    return n != 0 ? n : 4;
}

static void destroy(struct kvf_transport *t)
{
    kvf_transport_fini(t);
    free(kvf_container_of(t, struct sim, t));
}

static const struct kvf_transport_ops sim_ops = {
    .name = "sim",
    .caps = KVF_CAP_READ | KVF_CAP_WRITE | KVF_CAP_RUNS,
    .destroy = destroy,
    .link_open = link_open,
    .post = post,
    .cancel = cancel,
    .link_close = link_close,
    .chunk = chunk,
    .depth = depth,
};

int kvf_sim_create(struct kvf_sched *sched, struct kvf_stats *stats,
                   struct kvf_sim_plan *plan, struct kvf_transport **out,
                   struct kvf_why *why)
{
    struct sim *sim = calloc(1, sizeof *sim);

    if (sim == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory");
    kvf_transport_init(&sim->t, &sim_ops, sched, stats);
    sim->plan = plan;
    *out = &sim->t;
    return 0;
}
