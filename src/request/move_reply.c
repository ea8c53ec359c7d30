/* How a move ends: what is given back, its log line, and its one reply. */
#include "request/moves_private.h"

#include "base/log.h"

#include <string.h>

static void fill_timing(const struct kvf_move *m, struct kvf_move_result *r)
{
    uint64_t now = kvf_sched_clock(m->ms->env.sched);

    r->lookup_us =
        kvf_us_between(m->t_start, m->t_asked != 0 ? m->t_asked : now);
    r->wait_us =
        kvf_us_between(m->t_asked, m->t_granted != 0 ? m->t_granted : now);
    r->transfer_us = kvf_us_between(m->t_granted, now);
    r->total_us = kvf_us_between(m->t_start, now);
}

static const char *tag(const struct kvf_move *m)
{
    return m->kind == KVF_MOVE_PUSH    ? "KVF PUSH"
           : m->kind == KVF_MOVE_WRITE ? "KVF WRITE"
                                       : "KVF READ";
}

static void log_ok(const struct kvf_move *m, const struct kvf_move_result *r)
{
    bool push = m->kind == KVF_MOVE_PUSH;
    enum kvf_log_level level = push ? KVF_LOG_INFO : KVF_LOG_DEBUG;
    uint64_t us = r->total_us != 0 ? r->total_us : 1;
    char name[512];

    if (!kvf_log_on(level))
        return;
    kvf_log(level, tag(m),
            "%s=%s %s=%llu size=%llu transport=%s attempts=%u lookup_us=%llu "
            "wait_us=%llu transfer_us=%llu total_us=%llu MBps=%.1f",
            push ? "key" : "window",
            kvf_log_key(name, sizeof name, m->name, m->name_len),
            push ? "gen" : "offset",
            (unsigned long long)(push ? m->generation : m->target_offset),
            (unsigned long long)r->size, r->transport, r->attempts,
            (unsigned long long)r->lookup_us, (unsigned long long)r->wait_us,
            (unsigned long long)r->transfer_us, (unsigned long long)r->total_us,
            (double)r->size / (double)us);
}

static void count_ok(const struct kvf_move *m)
{
    struct kvf_stats *st = m->ms->env.stats;

    st->pushes += m->kind == KVF_MOVE_PUSH;
    st->push_bytes += m->kind == KVF_MOVE_PUSH ? m->size : 0;
    st->writes += m->kind == KVF_MOVE_WRITE;
    st->write_bytes += m->kind == KVF_MOVE_WRITE ? m->size : 0;
    st->reads += m->kind == KVF_MOVE_READ;
    st->read_bytes += m->kind == KVF_MOVE_READ ? m->size : 0;
}

/* Memory first: who reads the reply may use it, and finds the room free. What
 * becomes of a push is told after it. */
static void answer(struct kvf_move *m, struct kvf_move_result *r)
{
    kvf_move_reply *reply = m->reply;
    void *arg = m->arg;
    struct kvf_watch *watch = m->watch;
    char text[sizeof((struct kvf_why *)0)->text];

    if (r->text != NULL) {
        strncpy(text, r->text, sizeof text - 1);
        text[sizeof text - 1] = '\0';
        r->text = text;
    }
    kvf_move_release(m);
    reply(arg, r);
    if (watch != NULL && r->status == KVF_OK)
        kvf_watch_published(watch, r->generation);
    else if (watch != NULL)
        kvf_watch_drop(watch);
}

void kvf_move_finish(struct kvf_move *m)
{
    struct kvf_move_result r = {.kind = m->kind,
                                .status = KVF_OK,
                                .size = m->size,
                                .generation = m->generation,
                                .transport = m->transport != NULL ? m->transport
                                                                  : "eager",
                                .attempts = m->m.attempts};

    if (m->stopping && m->kind != KVF_MOVE_PUSH) {
        /* Whoever stopped it was told that it would be stopped. */
        kvf_move_fail(m);
        return;
    }
    fill_timing(m, &r);
    log_ok(m, &r);
    count_ok(m);
    if (m->grant != NULL && m->kind == KVF_MOVE_PUSH) {
        kvf_grant_done(m->grant);
        m->grant = NULL;
    }
    kvf_idle_keep(m);
    answer(m, &r);
}

void kvf_move_fail(struct kvf_move *m)
{
    struct kvf_stats *st = m->ms->env.stats;
    struct kvf_move_result r = {
        .kind = m->kind,
        .status = m->status != KVF_OK ? m->status : KVF_TRANSPORT,
        .text = m->text != NULL    ? m->text
                : m->cause != NULL ? m->cause
                                   : "no cause was recorded",
        .size = m->size,
        .transport = m->transport != NULL ? m->transport : "",
        .attempts = m->m.attempts,
        .has_space = m->has_space && m->status == KVF_NO_SPACE,
        .free = m->free,
        .largest_free = m->largest_free,
        .needed = m->needed};
    char name[512];

    fill_timing(m, &r);
    st->move_failed++;
    kvf_log(r.status == KVF_NOT_FOUND || r.status == KVF_CANCELLED
                ? KVF_LOG_DEBUG
                : KVF_LOG_WARN,
            tag(m), "%s=%s failed status=%s attempts=%u after_ms=%llu: %s",
            m->kind == KVF_MOVE_PUSH ? "key" : "window",
            kvf_log_key(name, sizeof name, m->name, m->name_len),
            kvf_status_name(r.status), r.attempts,
            (unsigned long long)(r.total_us / 1000), r.text);
    answer(m, &r);
}
