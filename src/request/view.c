/* Zero-copy views: a claim that lives until the engine lets go of the bytes. */
#include "request/gets_private.h"

#include <stdlib.h>

static void on_lost(struct kvf_grant *gr, const struct kvf_why *why)
{
    /* The engine's mapping keeps the bytes as they are, whatever became of the
     * owner; release will find nobody to tell. */
    (void)gr;
    (void)why;
}

struct kvf_view *kvf_view_new(struct kvf_get *g)
{
    struct kvf_gets *gs = g->gs;
    struct kvf_view *v = calloc(1, sizeof *v);

    if (v == NULL)
        return NULL;
    v->id = kvf_buffers_next_id(gs->env.buffers);
    v->owner = g->owner;
    v->gets = gs;
    v->grant = g->grant;
    v->grant->user = v;
    v->grant->on_lost = on_lost;
    kvf_list_init(&v->owner_node);
    if (g->view_list != NULL)
        kvf_list_push_back(g->view_list, &v->owner_node);
    HASH_ADD(hh, gs->views, id, sizeof v->id, v);
    return v;
}

struct kvf_view *kvf_view_find(const struct kvf_gets *gs, uint64_t id)
{
    struct kvf_view *v;

    HASH_FIND(hh, gs->views, &id, sizeof id, v);
    return v;
}

static void view_end(struct kvf_view *v, bool done)
{
    HASH_DEL(v->gets->views, v);
    kvf_list_unlink(&v->owner_node);
    if (done)
        kvf_grant_done(v->grant);
    else
        kvf_grant_abort(v->grant);
    free(v);
}

/* The daemon goes, the engine may look on: the owner is told nothing and waits
 * for that process, as it does when a daemon is killed. */
void kvf_view_leave(struct kvf_view *v)
{
    HASH_DEL(v->gets->views, v);
    kvf_list_unlink(&v->owner_node);
    kvf_grant_forget(v->grant);
    free(v);
}

unsigned kvf_views_elsewhere(const struct kvf_gets *gs)
{
    unsigned n = 0;

    for (const struct kvf_view *v = gs->views; v != NULL; v = v->hh.next)
        n += v->grant->local == NULL;
    return n;
}

void kvf_view_release(struct kvf_view *v)
{
    view_end(v, true);
}

void kvf_view_abort(struct kvf_view *v)
{
    view_end(v, false);
}
