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
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
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
        kvf_view_leave(v);
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

void kvf_get_init_time(struct kvf_get *g)
{
    kvf_timer_init(&g->deadline, on_deadline);
    kvf_timer_init(&g->pause, on_pause);
    kvf_task_init(&g->task, on_task);
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
