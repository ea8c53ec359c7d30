/* Pushes, writes and reads of this daemon's engines: the table, and the loop
 * that performs what the machine says. */
#include "request/moves_private.h"

#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *kvf_move_kind_name(enum kvf_move_kind kind)
{
    return kind == KVF_MOVE_PUSH    ? "push"
           : kind == KVF_MOVE_WRITE ? "write"
                                    : "read";
}

int kvf_moves_create(const struct kvf_moves_env *env, struct kvf_moves **out,
                     struct kvf_why *why)
{
    struct kvf_moves *ms = calloc(1, sizeof *ms);
    int ret;

    if (ms == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    ms->env = *env;
    kvf_list_init(&ms->all);
    kvf_list_init(&ms->idle);
    ret = kvf_link_open(env->shm, &ms->local_link, NULL, why);
    if (ret < 0) {
        free(ms);
        return ret;
    }
    *out = ms;
    return 0;
}

void kvf_moves_destroy(struct kvf_moves *ms)
{
    if (ms == NULL)
        return;
    kvf_idle_drop_all(ms);
    kvf_link_close(&ms->local_link);
    free(ms);
}

/* ---- performing --------------------------------------------------------- */

/* Actions come in the order of their bits; the last one may be the end of m. */
static void perform(struct kvf_move *m, unsigned actions)
{
    if (actions & KVF_MOVE_DO_UNASK)
        kvf_peer_unask(&m->ask);
    if (actions & KVF_MOVE_DO_ASK)
        kvf_move_ask(m);
    else if (actions & KVF_MOVE_DO_MOVE)
        kvf_move_run(m);
    else if (actions & KVF_MOVE_DO_CANCEL)
        kvf_xfer_cancel(&m->xfer);
    else if (actions & KVF_MOVE_DO_BACKOFF)
        kvf_move_backoff(m);
    else if (actions & KVF_MOVE_DO_CONFIRM)
        kvf_move_confirm(m);
    else if (actions & KVF_MOVE_DO_FINISH)
        kvf_move_finish(m);
    else if (actions & KVF_MOVE_DO_FAIL)
        kvf_move_fail(m);
}

void kvf_move_feed(struct kvf_move *m, enum kvf_move_event e)
{
    enum kvf_move_state before = m->m.state;
    uint64_t odd = m->m.unexpected;
    unsigned actions = kvf_move_step(&m->m, e);
    char name[128];

    if (kvf_log_on(KVF_LOG_TRACE))
        kvf_log(KVF_LOG_TRACE, "MOVE", "%s=%s %s -> %s (%s)",
                kvf_move_kind_name(m->kind),
                kvf_log_key(name, sizeof name, m->name, m->name_len),
                kvf_move_state_name(before), kvf_move_state_name(m->m.state),
                kvf_move_event_name(e));
    if (m->m.unexpected != odd)
        m->ms->env.stats->unexpected++;
    perform(m, actions);
}

void kvf_move_because(struct kvf_move *m, enum kvf_status status,
                      const char *fmt, ...)
{
    struct kvf_why why;
    va_list ap;

    if (m->text != NULL)
        return;
    va_start(ap, fmt);
    vsnprintf(why.text, sizeof why.text, fmt, ap);
    va_end(ap);
    m->status = status;
    m->text = strdup(why.text);
}

void kvf_move_stop(struct kvf_move *m, const struct kvf_why *why)
{
    kvf_move_because(m, why->status, "%s", why->text);
    kvf_move_feed(m, KVF_MOVE_EV_STOP);
}

const char *kvf_move_peer_name(const struct kvf_move *m)
{
    return m->self ? "self" : m->peer != NULL ? kvf_peer_name(m->peer) : "?";
}

/* ---- time --------------------------------------------------------------- */

static void on_deadline(struct kvf_timer *t)
{
    struct kvf_move *m = kvf_container_of(t, struct kvf_move, deadline);
    const char *name = kvf_move_peer_name(m);
    unsigned long long ms =
        (m->ms->env.sched->now_ns - m->t_start) / KVF_NS_PER_MS;

    switch ((unsigned)m->m.state) {
    case KVF_MOVE_ACCEPTED:
    case KVF_MOVE_CONNECTING:
        kvf_move_because(m, KVF_PEER_UNREACHABLE,
                         "%s was not reached within %llu ms: %s", name, ms,
                         m->peer != NULL ? kvf_peer_why(m->peer)->text
                                         : "not connected");
        break;
    case KVF_MOVE_ASKING:
        kvf_move_because(m, KVF_TIMEOUT,
                         "waited %llu ms; %s lives, but there was no room on "
                         "its edge or no answer",
                         ms, name);
        break;
    case KVF_MOVE_CONFIRMING:
        kvf_move_because(m, KVF_TRANSFER_TIMEOUT,
                         "all bytes had come to %s, its word had not, after "
                         "%llu ms",
                         name, ms);
        break;
    default:
        kvf_move_because(
            m, KVF_TRANSFER_TIMEOUT,
            "%llu of %llu bytes had moved (%s) after %llu ms%s",
            (unsigned long long)(m->has_xfer ? m->xfer.bytes_done : 0),
            (unsigned long long)m->size, name, ms, kvf_way_awaited(&m->retry));
        break;
    }
    kvf_move_feed(m, KVF_MOVE_EV_STOP);
}

static void on_pause(struct kvf_timer *t)
{
    struct kvf_move *m = kvf_container_of(t, struct kvf_move, pause);

    if (m->m.state == KVF_MOVE_RETRYING)
        kvf_move_feed(m, KVF_MOVE_EV_BACKOFF);
    else
        kvf_move_stop(m, kvf_peer_why(m->peer)); /* it did not come back */
}

static void on_task(struct kvf_task *t)
{
    struct kvf_move *m = kvf_container_of(t, struct kvf_move, task);

    if (m->stopping)
        kvf_move_feed(m, KVF_MOVE_EV_STOP);
    else
        kvf_move_begin(m);
}

void kvf_move_init_time(struct kvf_move *m)
{
    kvf_timer_init(&m->deadline, on_deadline);
    kvf_timer_init(&m->pause, on_pause);
    kvf_task_init(&m->task, on_task);
}

/* ---- from above --------------------------------------------------------- */

void kvf_move_cancel(struct kvf_move *m, enum kvf_status status,
                     const char *text)
{
    if (kvf_move_over(&m->m) || m->m.state == KVF_MOVE_DRAINING)
        return;
    kvf_move_because(m, status, "%s", text);
    m->stopping = true;
    kvf_task_post(m->ms->env.sched, &m->task);
}

void kvf_moves_cancel_all(struct kvf_moves *ms, enum kvf_status status,
                          const char *text)
{
    kvf_list_for_each (n, &ms->all) {
        kvf_move_cancel(kvf_container_of(n, struct kvf_move, node), status,
                        text);
    }
}

unsigned kvf_moves_running(const struct kvf_moves *ms)
{
    return ms->running;
}

void kvf_moves_gauges(const struct kvf_moves *ms, struct kvf_moves_gauges *out)
{
    struct kvf_moves_gauges g = {.running = ms->running,
                                 .idle_grants = ms->n_idle};

    kvf_list_for_each (n, &ms->all) {
        const struct kvf_move *m = kvf_container_of(n, struct kvf_move, node);

        g.waiting +=
            m->m.state == KVF_MOVE_CONNECTING || m->m.state == KVF_MOVE_ASKING;
        g.moving += m->m.state == KVF_MOVE_MOVING;
        g.confirming += m->m.state == KVF_MOVE_CONFIRMING;
        g.draining += m->m.state == KVF_MOVE_DRAINING;
        g.bytes += m->size;
    }
    *out = g;
}
