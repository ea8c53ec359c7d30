/* Sessions. Happy path: opened by hello, joined by sockets, ended by bye.
 * Failure modes: the process exits (pidfd), or a tcp session falls silent; what
 * it held goes back either way, quiet memory first. */
#include "daemon/engine.h"

#include "daemon/procwatch.h"
#include "wire/engine_msg.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void on_gone(void *arg)
{
    struct kvf_session *ss = arg;

    kvf_session_end(ss, true, "its process has ended");
}

static void on_silence(struct kvf_timer *t)
{
    struct kvf_session *ss = kvf_container_of(t, struct kvf_session, timer);
    struct kvf_sched *sched = ss->server->sched;
    uint64_t limit = ss->server->conf->session_timeout_ms * KVF_NS_PER_MS;

    /* After a stall of our own, requests may be waiting unread. */
    if (sched->stalled)
        ss->last_ns = sched->now_ns;
    if (sched->now_ns < ss->last_ns + limit)
        kvf_timer_set(sched, t, ss->last_ns + limit);
    else
        kvf_session_end(ss, true, "no request for session_timeout_ms");
}

void kvf_session_touch(struct kvf_session *ss)
{
    ss->last_ns = ss->server->sched->now_ns;
}

/* A process that can be seen and watched may hold memory; any other session
 * has the rights of tcp and its timeout. */
static void bind_process(struct kvf_session *ss, const struct kvf_client *c)
{
    struct kvf_server *s = ss->server;
    struct kvf_why why;

    if (c->has_cred && c->pid != 0 &&
        kvf_proc_start(c->pid, &ss->start, &why) == 0 &&
        kvf_procwatch_ops.watch(s->procs, (uint64_t)c->pid, ss->start, on_gone,
                                ss, &ss->watch, &why) == 0) {
        ss->pid = c->pid;
        ss->uid = c->uid;
        ss->can_map = true;
        return;
    }
    ss->pid = c->has_cred ? c->pid : 0;
    if (c->has_cred)
        kvf_log(KVF_LOG_WARN, "ENGINE",
                "pid=%ld cannot be watched from here (%s): its session has "
                "no memory",
                (long)c->pid, c->pid != 0 ? why.text : "other PID namespace");
    kvf_timer_set(s->sched, &ss->timer,
                  s->sched->now_ns +
                      s->conf->session_timeout_ms * KVF_NS_PER_MS);
}

static int insert(struct kvf_session *ss, struct kvf_why *why)
{
    struct kvf_server *s = ss->server;

    HASH_ADD(hh, s->sessions_by_id, id, sizeof ss->id, ss);
    if (ss->hh.tbl == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    HASH_ADD(hh_serial, s->sessions_by_serial, serial, sizeof ss->serial, ss);
    if (ss->hh_serial.tbl == NULL) {
        HASH_DEL(s->sessions_by_id, ss);
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    }
    s->n_sessions++;
    return 0;
}

int kvf_session_open(struct kvf_client *c, const char *name, size_t name_len,
                     struct kvf_session **out, struct kvf_why *why)
{
    struct kvf_server *s = c->server;
    struct kvf_session *ss;
    int rc;

    if (s->n_sessions >= s->conf->max_sessions)
        return kvf_fail(why, KVF_BUSY, "%u sessions are open (max_sessions)",
                        s->n_sessions);
    ss = calloc(1, sizeof *ss);
    if (ss == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    ss->server = s;
    kvf_random_bytes(ss->id.b, sizeof ss->id.b);
    ss->serial = ++s->next_serial;
    ss->last_ns = s->sched->now_ns;
    kvf_timer_init(&ss->timer, on_silence);
    kvf_list_init(&ss->buffers);
    kvf_list_init(&ss->regions);
    kvf_list_init(&ss->views);
    kvf_list_init(&ss->windows);
    kvf_list_init(&ss->layouts);
    kvf_list_init(&ss->clients);
    kvf_list_init(&ss->pending);
    kvf_list_init(&ss->ending_node);
    kvf_log_key(ss->client_name, sizeof ss->client_name, name, name_len);
    rc = insert(ss, why);
    if (rc < 0) {
        free(ss);
        return rc;
    }
    bind_process(ss, c);
    kvf_session_join(ss, c);
    s->stats.sessions_opened++;
    kvf_log(KVF_LOG_INFO, "ENGINE",
            "session=%" PRIu64 " opened pid=%ld memory=%s client=%s",
            ss->serial, (long)ss->pid, ss->can_map ? "yes" : "no",
            ss->client_name);
    *out = ss;
    return 0;
}

struct kvf_session *kvf_session_find(struct kvf_server *s,
                                     const struct kvf_id *id)
{
    struct kvf_session *ss;

    HASH_FIND(hh, s->sessions_by_id, id, sizeof *id, ss);
    return ss;
}

struct kvf_session *kvf_session_by_serial(struct kvf_server *s, uint64_t serial)
{
    struct kvf_session *ss;

    HASH_FIND(hh_serial, s->sessions_by_serial, &serial, sizeof serial, ss);
    return ss;
}

void kvf_session_join(struct kvf_session *ss, struct kvf_client *c)
{
    kvf_list_unlink(&c->session_node);
    c->session = ss;
    kvf_list_push_back(&ss->clients, &c->session_node);
    kvf_client_touch(c);
}

/* Buffers that a get still receives into stay: the get gives them back itself,
 * its reply being refused. */
static void give_back(struct kvf_session *ss)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&ss->windows)) != NULL)
        kvf_window_end(kvf_container_of(n, struct kvf_window, owner_node),
                       "the session that exposed the window has ended");
    kvf_list_for_each_safe (it, &ss->buffers) {
        struct kvf_buffer *b =
            kvf_container_of(it, struct kvf_buffer, owner_node);

        if (b->state == KVF_BUF_FILLING || b->state == KVF_BUF_HELD)
            kvf_buffer_retire(b);
    }
    /* Who had no part in the end of its session may look at its views still. */
    while ((n = kvf_list_first(&ss->views)) != NULL)
        if (ss->server->leaving)
            kvf_list_unlink(n);
        else
            kvf_view_release(kvf_container_of(n, struct kvf_view, owner_node));
    kvf_layouts_end(&ss->layouts);
    while ((n = kvf_list_first(&ss->regions)) != NULL)
        kvf_region_retire(kvf_container_of(n, struct kvf_region, owner_node));
}

/* The sockets of a process that has ended are gone with it. */
static void leave_all(struct kvf_session *ss, bool drop)
{
    struct kvf_list *n;

    while ((n = kvf_list_pop(&ss->clients)) != NULL) {
        struct kvf_client *c =
            kvf_container_of(n, struct kvf_client, session_node);

        c->session = NULL;
        if (drop)
            kvf_client_drop(c);
        else
            kvf_client_touch(c);
    }
}

void kvf_session_settle(struct kvf_session *ss)
{
    if (!ss->ended || ss->n_pending > 0)
        return;
    kvf_list_unlink(&ss->ending_node);
    free(ss);
}

void kvf_session_end(struct kvf_session *ss, bool died, const char *reason)
{
    struct kvf_server *s = ss->server;

    if (ss->ended)
        return;
    ss->ended = true;
    ss->n_pending++; /* keeps the struct while its parts go */
    HASH_DEL(s->sessions_by_id, ss);
    HASH_DELETE(hh_serial, s->sessions_by_serial, ss);
    s->n_sessions--;
    s->stats.sessions_died += died;
    kvf_list_push_back(&s->ending, &ss->ending_node);
    kvf_timer_cancel(s->sched, &ss->timer);
    kvf_procwatch_ops.unwatch(s->procs, ss->watch);
    ss->watch = NULL;
    kvf_log(KVF_LOG_INFO, "ENGINE", "session=%" PRIu64 " ended pid=%ld: %s",
            ss->serial, (long)ss->pid, reason);
    kvf_session_cancel(ss, NULL, 0, KVF_CANCELLED, "the session has ended");
    leave_all(ss, died && ss->can_map);
    give_back(ss);
    ss->n_pending--;
    kvf_session_settle(ss);
}

void kvf_sessions_end_all(struct kvf_server *s, const char *reason)
{
    struct kvf_session *ss, *next;

    HASH_ITER (hh, s->sessions_by_id, ss, next) {
        kvf_session_end(ss, false, reason);
    }
}
