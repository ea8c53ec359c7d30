/* What all transports share: checks before a post, the way an op comes back,
 * and the turn of those who wait for room.
 *
 * Happy path: kvf_link_post checks and hands the op to the transport, which
 * calls kvf_op_finish once nothing touches the memory; a posted task then calls
 * done. Failure: a closed link leaves its ops with link NULL, so that neither a
 * late completion nor a cancel touches a link that was freed. */
#include "transport/transport.h"

#include <string.h>

static void deliver(struct kvf_task *task)
{
    struct kvf_transport *t =
        kvf_container_of(task, struct kvf_transport, deliver);

    /* What the callbacks post and finish waits for the next turn. */
    for (unsigned n = t->n_completed; n > 0; n--) {
        struct kvf_list *node = kvf_list_pop(&t->completed);
        struct kvf_transfer_op *op;

        if (node == NULL)
            break;
        op = kvf_container_of(node, struct kvf_transfer_op, node);
        t->n_completed--;
        kvf_op_complete(op, op->status, op->status != 0 ? &op->why : NULL);
    }
    if (t->n_completed > 0)
        kvf_task_post(t->sched, &t->deliver);
}

void kvf_transport_init(struct kvf_transport *t,
                        const struct kvf_transport_ops *ops,
                        struct kvf_sched *sched, struct kvf_stats *stats)
{
    *t = (struct kvf_transport){.ops = ops, .sched = sched, .stats = stats};
    kvf_list_init(&t->completed);
    kvf_task_init(&t->deliver, deliver);
}

void kvf_transport_fini(struct kvf_transport *t)
{
    while (t->n_completed > 0)
        deliver(&t->deliver);
    kvf_task_cancel(&t->deliver);
}

void kvf_transport_destroy(struct kvf_transport *t)
{
    if (t != NULL)
        t->ops->destroy(t);
}

int kvf_link_open(struct kvf_transport *t, struct kvf_link *link,
                  const struct kvf_link_addr *addr, struct kvf_why *why)
{
    int rc;

    link->transport = t;
    link->state = KVF_LINK_CONNECTING;
    link->own_will = false;
    link->inflight = 0;
    link->impl = NULL;
    kvf_list_init(&link->waiting);
    rc = t->ops->link_open(t, link, addr, why);
    if (rc != 0) {
        link->state = KVF_LINK_DOWN;
        link->impl = NULL;
    }
    return rc;
}

static int runs_check(const struct kvf_link *link,
                      const struct kvf_transfer_op *op, struct kvf_why *why)
{
    uint64_t size = op->remote->size, sum = 0;

    if ((link->transport->ops->caps & KVF_CAP_RUNS) == 0)
        return kvf_fail(why, KVF_UNSUPPORTED, "%s takes no scattered ops",
                        link->transport->ops->name);
    if (op->n_runs > KVF_OP_RUNS)
        return kvf_fail(why, KVF_INVALID, "%u runs are more than %u",
                        op->n_runs, KVF_OP_RUNS);
    for (unsigned i = 0; i < op->n_runs; i++) {
        const struct kvf_run *r = &op->runs[i];

        if (r->length == 0 || r->offset > size || r->length > size - r->offset)
            return kvf_fail(why, KVF_INVALID,
                            "run %u of %llu bytes at %llu is outside the "
                            "payload of %llu",
                            i, (unsigned long long)r->length,
                            (unsigned long long)r->offset,
                            (unsigned long long)size);
        if (r->length > op->length - sum)
            return kvf_fail(why, KVF_INVALID, "runs have more than %llu bytes",
                            (unsigned long long)op->length);
        sum += r->length;
    }
    if (sum != op->length)
        return kvf_fail(why, KVF_INVALID, "runs have %llu bytes, not %llu",
                        (unsigned long long)sum,
                        (unsigned long long)op->length);
    return 0;
}

static int op_check(const struct kvf_link *link,
                    const struct kvf_transfer_op *op, struct kvf_why *why)
{
    unsigned need = op->write ? KVF_CAP_WRITE : KVF_CAP_READ;
    uint64_t sum = 0;

    if ((link->transport->ops->caps & need) == 0)
        return kvf_fail(why, KVF_UNSUPPORTED, "%s cannot %s",
                        link->transport->ops->name,
                        op->write ? "write" : "read");
    if (op->n_runs > 0)
        return runs_check(link, op, why);
    if (op->length == 0 || op->n_iov == 0 || op->n_iov > KVF_OP_IOV ||
        op->offset > op->remote->size ||
        op->length > op->remote->size - op->offset)
        return kvf_fail(why, KVF_INVALID,
                        "piece of %llu bytes at %llu is outside the payload "
                        "of %llu",
                        (unsigned long long)op->length,
                        (unsigned long long)op->offset,
                        (unsigned long long)op->remote->size);
    for (unsigned i = 0; i < op->n_iov; i++)
        sum += op->iov[i].iov_len;
    if (sum != op->length)
        return kvf_fail(
            why, KVF_INVALID, "local pieces have %llu bytes, not %llu",
            (unsigned long long)sum, (unsigned long long)op->length);
    return 0;
}

int kvf_link_post(struct kvf_link *link, struct kvf_transfer_op *op,
                  struct kvf_why *why)
{
    int rc;

    if (link->impl == NULL || link->state == KVF_LINK_DOWN)
        return kvf_fail(why, KVF_PEER_UNREACHABLE, "the link is down");
    rc = op_check(link, op, why);
    if (rc != 0)
        return rc;
    op->link = link;
    op->cancelled = false;
    op->moved = 0;
    op->cur_iov = op->cur_seg = op->last_seg = 0;
    op->cur_iov_off = op->cur_seg_off = 0;
    op->status = 0;
    kvf_list_init(&op->node);
    rc = link->transport->ops->post(link, op, why);
    if (rc == 0)
        link->inflight++;
    return rc;
}

void kvf_link_cancel(struct kvf_link *link, struct kvf_transfer_op *op)
{
    if (link == NULL || link->impl == NULL || op->link != link || op->cancelled)
        return;
    op->cancelled = true;
    link->transport->ops->cancel(link, op);
}

void kvf_link_close(struct kvf_link *link)
{
    struct kvf_transport *t = link->transport;

    if (t == NULL || link->impl == NULL)
        return;
    link->state = KVF_LINK_DOWN;
    t->ops->link_close(link);
    link->impl = NULL;
    link->inflight = 0;
    kvf_list_for_each (n, &t->completed) {
        struct kvf_transfer_op *op =
            kvf_container_of(n, struct kvf_transfer_op, node);

        if (op->link == link)
            op->link = NULL;
    }
    /* Their posts fail now; they report that from tasks of their own. */
    for (struct kvf_list *n; (n = kvf_list_pop(&link->waiting)) != NULL;) {
        struct kvf_room_wait *w =
            kvf_container_of(n, struct kvf_room_wait, node);

        w->fn(w);
    }
}

void kvf_op_finish(struct kvf_transport *t, struct kvf_transfer_op *op,
                   int status, const struct kvf_why *why)
{
    op->status = status;
    op->cancelled = true; /* a cancel from now on has nothing to do */
    if (status != 0) {
        if (why != NULL)
            op->why = *why;
        else
            kvf_fail(&op->why, (enum kvf_status) - status, "%s",
                     kvf_status_text((enum kvf_status) - status));
    }
    kvf_list_push_back(&t->completed, &op->node);
    t->n_completed++;
    kvf_task_post(t->sched, &t->deliver);
}

void kvf_op_complete(struct kvf_transfer_op *op, int status,
                     const struct kvf_why *why)
{
    if (op->link != NULL)
        op->link->inflight--;
    op->done(op, status, why);
}

void kvf_link_room(struct kvf_link *link)
{
    bool down = link->state == KVF_LINK_DOWN;
    struct kvf_list *n;

    /* Whoever is told BUSY again queues behind the others and ends the round,
     * so that the next room is the next one's. */
    while ((n = kvf_list_pop(&link->waiting)) != NULL) {
        struct kvf_room_wait *w =
            kvf_container_of(n, struct kvf_room_wait, node);

        if (!w->fn(w) && !down)
            break;
    }
    if (!down && link->on_room != NULL)
        link->on_room(link);
}
