/* A get comes into being from what the engine asked, and goes.
 *
 * Happy path: the request is copied, the owner chosen, the memory it names
 * pinned; its task is posted. Failure modes: refused before anything exists. */
#include "request/gets_private.h"

#include <stdlib.h>
#include <string.h>

/* ---- what was asked ----------------------------------------------------- */

static int check(const struct kvf_get_params *p, struct kvf_why *why)
{
    const struct kvf_req_get *r = p->req;

    if (r->has_generation && r->has_meta_generation &&
        r->generation != r->meta_generation)
        return kvf_fail(why, KVF_STALE,
                        "generation %llu is asked for, but the metadata is of "
                        "%llu",
                        (unsigned long long)r->generation,
                        (unsigned long long)r->meta_generation);
    if (r->mode == KVF_MODE_VIEW && !p->can_map)
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "this session cannot map memory: use mode inline");
    if (!p->has_session && r->mode != KVF_MODE_INLINE)
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "only mode inline works without a session that can map "
                        "memory");
    return 0;
}

static int copy_request(struct kvf_get *g, const struct kvf_get_params *p)
{
    const struct kvf_req_get *r = p->req;

    g->key = malloc(r->key.len + 1);
    if (g->key == NULL)
        return -1;
    memcpy(g->key, r->key.p, r->key.len);
    g->key[r->key.len] = '\0';
    g->key_len = r->key.len;
    if (p->n_into != 0) {
        g->into = malloc(p->n_into * sizeof *g->into);
        if (g->into == NULL)
            return -1;
        memcpy(g->into, p->into, p->n_into * sizeof *g->into);
        g->n_into = p->n_into;
    }
    g->has_generation = r->has_generation || r->has_meta_generation;
    g->generation = r->has_generation ? r->generation : r->meta_generation;
    g->has_incarnation = r->has_incarnation;
    g->incarnation = r->incarnation;
    g->wait = r->wait;
    g->mode = r->mode;
    g->can_map = p->can_map;
    g->pid = p->pid;
    g->start = p->start;
    g->owner = p->owner;
    g->owner_list = p->owner_list;
    g->view_list = p->view_list;
    g->m.hold = p->hold;
    return 0;
}

/* ---- the owner ---------------------------------------------------------- */

/* Which owner the request names, as far as the request alone tells. */
static int copy_target(struct kvf_get *g, const struct kvf_req_get *r,
                       struct kvf_why *why)
{
    const struct kvf_endpoint *e = r->has_source          ? &r->source
                                   : r->has_meta_endpoint ? &r->meta_endpoint
                                                          : NULL;
    char host[KVF_CONF_TEXT];
    const char *h = host;
    int ret;

    if (r->has_from || e == NULL) {
        ret = kvf_directory_map(g->gs->env.peers, r->has_from,
                                (uint32_t)r->from.stage, r->from.has_rank,
                                (uint32_t)r->from.rank, r->from.has_replica,
                                (uint32_t)r->from.replica, &g->expect, why);
        if (ret == 0)
            ret = kvf_directory_find(g->gs->env.peers, &g->expect, host,
                                     sizeof host, &g->port, why);
        if (ret < 0)
            return ret;
        g->has_expect = true;
    } else {
        h = e->host;
        g->port = e->port;
    }
    g->self =
        kvf_peer_is_self(g->gs->env.peers, h, g->port) ||
        (g->has_expect && kvf_worker_equal(&g->expect, &g->gs->env.conf->self));
    g->host = strdup(h);
    if (g->host == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    return 0;
}

/* True when a live generation of this daemon serves the request. */
static bool is_local(const struct kvf_get *g)
{
    const struct kvf_gen *gen =
        kvf_store_live(g->gs->env.store, g->key, g->key_len);

    if (gen == NULL)
        return false;
    if (g->has_incarnation &&
        !kvf_id_equal(&g->incarnation, &g->gs->env.incarnation))
        return false;
    return !g->has_generation || gen->generation == g->generation;
}

static int choose_owner(struct kvf_get *g, const struct kvf_req_get *r,
                        struct kvf_why *why)
{
    bool here = kvf_store_live(g->gs->env.store, g->key, g->key_len) != NULL;
    int ret;

    g->self = here && is_local(g);
    if (g->self)
        return 0;
    ret = copy_target(g, r, why);
    /* Nobody else is named, and the key is here in another generation: our own
     * store answers for it. */
    if (ret < 0 && here && !r->has_from && !r->has_source &&
        !r->has_meta_endpoint) {
        g->self = true;
        return 0;
    }
    return ret;
}

/* ---- its life ----------------------------------------------------------- */

static void get_free(struct kvf_get *g)
{
    free(g->key);
    free(g->host);
    free(g->cause);
    free(g->text);
    free(g->into);
    free(g->stash);
    free(g);
}

static void pin_into(const struct kvf_get *g)
{
    for (unsigned i = 0; i < g->n_into; i++)
        kvf_seg_pin(&g->into[i]);
}

static void unpin_into(const struct kvf_get *g)
{
    for (unsigned i = 0; i < g->n_into; i++)
        kvf_seg_unpin(&g->into[i]);
}

int kvf_get_start(struct kvf_gets *gs, const struct kvf_get_params *p,
                  const struct kvf_get_ops *ops, void *arg,
                  struct kvf_get **out, struct kvf_why *why)
{
    struct kvf_sched *s = gs->env.sched;
    struct kvf_get *g;
    int ret = check(p, why);

    if (ret < 0)
        return ret;
    g = calloc(1, sizeof *g);
    if (g == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    g->gs = gs;
    g->ops = ops;
    g->arg = arg;
    g->m.max_attempts = gs->env.conf->attempts;
    kvf_list_init(&g->node);
    kvf_edge_wait_init(&g->edge, kvf_get_on_enter);
    kvf_list_init(&g->user.node);
    kvf_list_init(&g->waiter.node);
    kvf_list_init(&g->waiter.asker_node);
    kvf_get_init_time(g);
    kvf_retry_init(&g->retry, kvf_get_on_link);
    ret = copy_request(g, p) < 0 ? kvf_fail(why, KVF_INTERNAL, "out of memory")
                                 : choose_owner(g, p->req, why);
    if (ret < 0) {
        get_free(g);
        return ret;
    }
    pin_into(g);
    g->t_start = s->now_ns;
    g->deadline_ns = p->timeout_ms == 0
                         ? KVF_NEVER
                         : g->t_start + p->timeout_ms * KVF_NS_PER_MS;
    kvf_timer_set(s, &g->deadline, g->deadline_ns);
    kvf_list_push_back(&gs->all, &g->node);
    gs->running++;
    kvf_task_post(s, &g->task);
    *out = g;
    return 0;
}

/* The last step of every get, after its reply. */
void kvf_get_release(struct kvf_get *g)
{
    struct kvf_gets *gs = g->gs;

    kvf_timer_cancel(gs->env.sched, &g->deadline);
    kvf_timer_cancel(gs->env.sched, &g->pause);
    kvf_task_cancel(&g->task);
    kvf_way_leave(&g->retry);
    kvf_peer_leave(&g->user);
    kvf_edge_leave(&g->edge);
    kvf_get_pull_free(g);
    unpin_into(g);
    kvf_list_unlink(&g->node);
    gs->running--;
    get_free(g);
}
