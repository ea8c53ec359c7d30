/* Admission on an edge. */
#include "peer/edge.h"

void kvf_edge_init(struct kvf_edge *e, uint32_t from)
{
    *e = (struct kvf_edge){.from = from};
    kvf_list_init(&e->queue);
}

void kvf_edge_wait_init(struct kvf_edge_wait *w,
                        void (*enter)(struct kvf_edge_wait *w))
{
    *w = (struct kvf_edge_wait){.enter = enter};
    kvf_list_init(&w->node);
}

static bool has_room(const struct kvf_edge_wait *w)
{
    const struct kvf_edge *e = w->edge;
    struct kvf_conf_edge c =
        kvf_conf_find_edge(w->conf, e->from, w->conf->self.stage);

    if (e->inflight == 0)
        return true; /* one may always go, however large */
    if (e->inflight >= c.max_inflight)
        return false;
    return c.window_size < 0 || e->bytes + w->bytes <= (uint64_t)c.window_size;
}

static void enter(struct kvf_edge_wait *w)
{
    w->edge->inflight++;
    w->edge->bytes += w->bytes;
    w->admitted = true;
}

bool kvf_edge_enter(struct kvf_edge *e, const struct kvf_conf *conf,
                    struct kvf_edge_wait *w, uint64_t bytes)
{
    if (w->admitted)
        return true;
    w->edge = e;
    w->conf = conf;
    w->bytes = bytes;
    if (kvf_list_empty(&e->queue) && has_room(w)) {
        enter(w);
        return true;
    }
    kvf_list_push_back(&e->queue, &w->node);
    return false;
}

void kvf_edge_leave(struct kvf_edge_wait *w)
{
    struct kvf_edge *e = w->edge;
    struct kvf_list *n;

    kvf_list_unlink(&w->node);
    if (!w->admitted)
        return;
    w->admitted = false;
    e->inflight--;
    e->bytes -= w->bytes;
    while ((n = kvf_list_first(&e->queue)) != NULL) {
        struct kvf_edge_wait *next =
            kvf_container_of(n, struct kvf_edge_wait, node);

        if (!has_room(next))
            break;
        kvf_list_unlink(n);
        enter(next);
        next->enter(next);
    }
}
