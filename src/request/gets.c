/* Gets of this daemon's engines: the table, and the loop that performs what the
 * machine says. */
#include "request/gets_private.h"

#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int kvf_gets_create(const struct kvf_gets_env *env, struct kvf_gets **out,
                    struct kvf_why *why)
{
    struct kvf_gets *gs = calloc(1, sizeof *gs);
    int ret;

    if (gs == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory");
    gs->env = *env;
    kvf_list_init(&gs->all);
    ret = kvf_link_open(env->shm, &gs->local_link, NULL, why);
    if (ret < 0) {
        free(gs);
        return ret;
    }
    *out = gs;
    return 0;
}

void kvf_gets_destroy(struct kvf_gets *gs)
{
    struct kvf_view *v, *next;

    if (gs == NULL)
        return;
    HASH_ITER (hh, gs->views, v, next)
        kvf_view_abort(v);
    kvf_link_close(&gs->local_link);
    free(gs);
}

/* ---- performing --------------------------------------------------------- */

static void trace(const struct kvf_get *g, enum kvf_get_state before,
                  enum kvf_get_event e)
{
    char key[128];

    if (kvf_log_on(KVF_LOG_TRACE))
        kvf_log(KVF_LOG_TRACE, "GET", "key=%s %s -> %s (%s)",
                kvf_log_key(key, sizeof key, g->key, g->key_len),
                kvf_get_state_name(before), kvf_get_state_name(g->m.state),
                kvf_get_event_name(e));
}

/* Actions come in the order of their bits; the last one may be the end of g. */
static void perform(struct kvf_get *g, unsigned actions)
{
    if (actions & KVF_GET_DO_UNASK)
        kvf_get_unask(g);
    if (actions & KVF_GET_DO_GIVE_UP)
        kvf_get_because(g, KVF_TRANSPORT, "%s failed %u times",
                        g->transport != NULL ? g->transport : "transfer",
                        g->m.attempts);
    if (actions & KVF_GET_DO_ASK)
        kvf_get_ask(g);
    else if (actions & KVF_GET_DO_ADMIT)
        kvf_get_admit(g);
    else if (actions & KVF_GET_DO_PULL)
        kvf_get_pull(g);
    else if (actions & KVF_GET_DO_CANCEL)
        kvf_get_cancel_pull(g);
    else if (actions & KVF_GET_DO_BACKOFF)
        kvf_get_backoff(g);
    else if (actions & KVF_GET_DO_VERIFY)
        kvf_get_verify(g);
    else if (actions & KVF_GET_DO_HOLD)
        g->ops->on_held(g->arg, g);
    else if (actions & KVF_GET_DO_FINISH)
        kvf_get_finish(g);
    else if (actions & KVF_GET_DO_FAIL)
        kvf_get_fail(g);
}

void kvf_get_feed(struct kvf_get *g, enum kvf_get_event e)
{
    enum kvf_get_state before = g->m.state;
    uint64_t odd = g->m.unexpected;
    unsigned actions = kvf_get_step(&g->m, e);

    trace(g, before, e);
    if (g->m.unexpected != odd)
        g->gs->env.stats->unexpected++;
    perform(g, actions);
}

void kvf_get_because(struct kvf_get *g, enum kvf_status status, const char *fmt,
                     ...)
{
    struct kvf_why why;
    va_list ap;

    if (g->text != NULL)
        return;
    va_start(ap, fmt);
    vsnprintf(why.text, sizeof why.text, fmt, ap);
    va_end(ap);
    g->status = status;
    g->text = strdup(why.text);
}

void kvf_get_stop(struct kvf_get *g, const struct kvf_why *why)
{
    kvf_get_because(g, why->status, "%s", why->text);
    kvf_get_feed(g, KVF_GET_EV_STOP);
}

/* ---- time --------------------------------------------------------------- */

#define HELD_GRACE_NS (20 * KVF_NS_PER_MS)

static void on_deadline(struct kvf_timer *t)
{
    struct kvf_get *g = kvf_container_of(t, struct kvf_get, deadline);
    unsigned long long ms =
        (g->gs->env.sched->now_ns - g->t_start) / KVF_NS_PER_MS;
    const char *owner = kvf_get_owner_name(g);

    switch ((unsigned)g->m.state) {
    case KVF_GET_HELD:
        /* It waits for others of its mget. They have the same deadline, and
         * what they say is the cause: they come first. */
        if (!g->overdue) {
            g->overdue = true;
            kvf_timer_set(g->gs->env.sched, t,
                          g->gs->env.sched->now_ns + HELD_GRACE_NS);
            return;
        }
        kvf_get_because(g, KVF_TIMEOUT,
                        "waited %llu ms for the other keys of the mget; this "
                        "one had come",
                        ms);
        break;
    case KVF_GET_ACCEPTED:
    case KVF_GET_CONNECTING:
        kvf_get_because(
            g, KVF_PEER_UNREACHABLE,
            "owner %s was not reached within %llu ms: %s", owner, ms,
            g->peer != NULL ? kvf_peer_why(g->peer)->text : "not connected");
        break;
    case KVF_GET_ASKING:
        kvf_get_because(g, KVF_TIMEOUT,
                        "waited %llu ms; owner %s lives, the key did not come",
                        ms, owner);
        break;
    default:
        kvf_get_because(
            g, KVF_TRANSFER_TIMEOUT,
            "%llu of %llu bytes had come from %s after %llu ms%s",
            (unsigned long long)(g->pull != NULL ? g->pull->xfer.bytes_done
                                                 : 0),
            (unsigned long long)(g->grant != NULL ? g->grant->size : 0), owner,
            ms, kvf_way_awaited(&g->retry));
        break;
    }
    kvf_get_feed(g, KVF_GET_EV_STOP);
}

static void on_pause(struct kvf_timer *t)
{
    struct kvf_get *g = kvf_container_of(t, struct kvf_get, pause);

    if (g->m.state == KVF_GET_CONNECTING)
        kvf_get_stop(g, kvf_peer_why(g->peer)); /* it did not come back */
    else
        kvf_get_feed(g, KVF_GET_EV_BACKOFF);
}

static void on_task(struct kvf_task *t)
{
    struct kvf_get *g = kvf_container_of(t, struct kvf_get, task);

    if (g->stopping)
        kvf_get_feed(g, KVF_GET_EV_STOP);
    else
        kvf_get_begin(g);
}

/* ---- start -------------------------------------------------------------- */

static int check(const struct kvf_gets *gs, const struct kvf_get_params *p,
                 struct kvf_why *why)
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
    (void)gs;
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
        return kvf_fail(why, KVF_NO_SPACE, "out of memory");
    return 0;
}

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

int kvf_get_start(struct kvf_gets *gs, const struct kvf_get_params *p,
                  const struct kvf_get_ops *ops, void *arg,
                  struct kvf_get **out, struct kvf_why *why)
{
    struct kvf_sched *s = gs->env.sched;
    struct kvf_get *g;
    int ret = check(gs, p, why);

    if (ret < 0)
        return ret;
    g = calloc(1, sizeof *g);
    if (g == NULL)
        return kvf_fail(why, KVF_BUSY, "out of memory");
    g->gs = gs;
    g->ops = ops;
    g->arg = arg;
    g->m.max_attempts = gs->env.conf->attempts;
    kvf_list_init(&g->node);
    kvf_edge_wait_init(&g->edge, kvf_get_on_enter);
    kvf_list_init(&g->user.node);
    kvf_list_init(&g->waiter.node);
    kvf_list_init(&g->waiter.asker_node);
    kvf_timer_init(&g->deadline, on_deadline);
    kvf_timer_init(&g->pause, on_pause);
    kvf_task_init(&g->task, on_task);
    kvf_retry_init(&g->retry, kvf_get_on_link);
    ret = copy_request(g, p) < 0 ? kvf_fail(why, KVF_BUSY, "out of memory")
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

/* ---- from above --------------------------------------------------------- */

void kvf_get_cancel(struct kvf_get *g, enum kvf_status status, const char *text)
{
    if (kvf_get_over(&g->m) || g->m.state == KVF_GET_DRAINING)
        return;
    kvf_get_because(g, status, "%s", text);
    g->stopping = true;
    kvf_task_post(g->gs->env.sched, &g->task);
}

void kvf_get_commit(struct kvf_get *g)
{
    kvf_get_feed(g, KVF_GET_EV_COMMIT);
}

uint64_t kvf_get_inline_bytes(const struct kvf_get *g)
{
    return g->got == KVF_MODE_INLINE && g->grant != NULL ? g->grant->size : 0;
}

void kvf_gets_drop_owner(struct kvf_gets *gs, const void *owner)
{
    kvf_list_for_each (n, &gs->all) {
        struct kvf_get *g = kvf_container_of(n, struct kvf_get, node);

        if (g->owner != owner)
            continue;
        g->silent = true;
        g->owner_list = NULL;
        g->view_list = NULL;
        kvf_get_cancel(g, KVF_CANCELLED, "its session has ended");
    }
}

void kvf_gets_cancel_all(struct kvf_gets *gs, enum kvf_status status,
                         const char *text)
{
    kvf_list_for_each (n, &gs->all) {
        kvf_get_cancel(kvf_container_of(n, struct kvf_get, node), status, text);
    }
}

unsigned kvf_gets_running(const struct kvf_gets *gs)
{
    return gs->running;
}

void kvf_gets_gauges(const struct kvf_gets *gs, struct kvf_gets_gauges *out)
{
    struct kvf_gets_gauges g = {.running = gs->running,
                                .views = HASH_COUNT(gs->views)};

    kvf_list_for_each (n, &gs->all) {
        const struct kvf_get *get = kvf_container_of(n, struct kvf_get, node);

        g.waiting += get->m.state == KVF_GET_ASKING ||
                     get->m.state == KVF_GET_CONNECTING;
        g.pulling += get->m.state == KVF_GET_PULLING;
        g.draining += get->m.state == KVF_GET_DRAINING;
        g.queued += get->m.state == KVF_GET_CLAIMED;
        g.pull_bytes += get->edge.admitted ? get->edge.bytes : 0;
    }
    *out = g;
}
