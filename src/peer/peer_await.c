/* Who waits for the rdma link to a peer.
 *
 * Happy path: the link is being set up, and when it is up those who waited are
 * told. Failure modes: it fails, or the session ends: they are told that; it
 * failed before: it is set up again when its pause is over, as long as somebody
 * waits. Callbacks come from a task, never from inside. */
#include "peer/peers_private.h"

static void on_task(struct kvf_task *t)
{
    struct kvf_peer *p = kvf_container_of(t, struct kvf_peer, await_task);
    struct kvf_list batch;
    struct kvf_list *n;

    kvf_list_init(&batch);
    kvf_list_splice(&batch, &p->await_told);
    while ((n = kvf_list_pop(&batch)) != NULL) {
        struct kvf_link_wait *w =
            kvf_container_of(n, struct kvf_link_wait, node);

        w->fn(w, p->await_up);
    }
}

static void on_timer(struct kvf_timer *t)
{
    struct kvf_peer *p = kvf_container_of(t, struct kvf_peer, await_timer);

    if (!kvf_list_empty(&p->awaiting))
        kvf_peer_rdma_again(p);
}

void kvf_peer_await_init(struct kvf_peer *p)
{
    kvf_list_init(&p->awaiting);
    kvf_list_init(&p->await_told);
    kvf_task_init(&p->await_task, on_task);
    kvf_timer_init(&p->await_timer, on_timer);
}

void kvf_peer_await_end(struct kvf_peer *p)
{
    struct kvf_list *n;

    kvf_timer_cancel(p->ps->env.sched, &p->await_timer);
    kvf_task_cancel(&p->await_task);
    while ((n = kvf_list_pop(&p->awaiting)) != NULL ||
           (n = kvf_list_pop(&p->await_told)) != NULL)
        continue; /* who is in none need not leave */
}

void kvf_peer_await_tell(struct kvf_peer *p, bool up)
{
    kvf_timer_cancel(p->ps->env.sched, &p->await_timer);
    if (kvf_list_empty(&p->awaiting))
        return;
    /* Who begins to wait from now on waits for the next news. */
    kvf_list_splice(&p->await_told, &p->awaiting);
    p->await_up = up;
    kvf_task_post(p->ps->env.sched, &p->await_task);
}

enum kvf_peer_rdma kvf_peer_rdma_state(const struct kvf_peer *p)
{
    if (!p->has_rdma || p->state != KVF_PEER_UP)
        return KVF_PEER_RDMA_OFF;
    return p->rdma.state == KVF_LINK_UP ? KVF_PEER_RDMA_UP
                                        : KVF_PEER_RDMA_COMING;
}

const struct kvf_why *kvf_peer_rdma_why(const struct kvf_peer *p)
{
    return &p->rdma_why;
}

bool kvf_peer_await_rdma(struct kvf_peer *p, struct kvf_link_wait *w)
{
    struct kvf_sched *s = p->ps->env.sched;

    kvf_list_unlink(&w->node);
    if (kvf_peer_rdma_state(p) != KVF_PEER_RDMA_COMING)
        return false;
    kvf_list_push_back(&p->awaiting, &w->node);
    if (p->rdma.state == KVF_LINK_CONNECTING)
        return true;
    /* From the loop in any case: opening it may fail at once. */
    kvf_timer_set(s, &p->await_timer,
                  p->rdma_again_ns > s->now_ns ? p->rdma_again_ns : s->now_ns);
    return true;
}
