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
        return kvf_fail(why, KVF_NO_SPACE, "out of memory");
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

/* ---- start -------------------------------------------------------------- */

static void pin_segs(const struct kvf_move *m)
{
    for (unsigned i = 0; i < m->n_segs; i++)
        kvf_seg_pin(&m->segs[i]);
}

static void unpin_segs(const struct kvf_move *m)
{
    for (unsigned i = 0; i < m->n_segs; i++)
        kvf_seg_unpin(&m->segs[i]);
}

static void *copy_bytes(const void *p, size_t len)
{
    uint8_t *out = malloc(len + 1);

    if (out != NULL && len != 0)
        memcpy(out, p, len);
    if (out != NULL)
        out[len] = '\0';
    return out;
}

static bool copy_memory(struct kvf_move *m, const struct kvf_move_params *p)
{
    m->iov = calloc(p->n_segs + 1u, sizeof *m->iov);
    if (m->iov == NULL)
        return false;
    if (p->payload != NULL) {
        m->bytes = copy_bytes(p->payload, p->payload_len);
        m->size = p->payload_len;
        m->iov[m->n_iov++] = (struct iovec){m->bytes, p->payload_len};
        return m->bytes != NULL;
    }
    m->segs = copy_bytes(p->segs, p->n_segs * sizeof *p->segs);
    if (m->segs == NULL)
        return false;
    for (unsigned i = 0; i < p->n_segs; i++) {
        m->iov[m->n_iov++] =
            (struct iovec){kvf_seg_ptr(&p->segs[i]), p->segs[i].length};
        m->size += p->segs[i].length;
    }
    m->n_segs = p->n_segs;
    return true;
}

static bool copy_request(struct kvf_move *m, const struct kvf_move_params *p)
{
    const struct kvf_req_put *put = p->put;

    m->kind = p->kind;
    if (p->kind == KVF_MOVE_PUSH || p->has_notify)
        kvf_random_bytes(m->id.b, sizeof m->id.b);
    if (p->kind == KVF_MOVE_PUSH) {
        m->name = copy_bytes(put->key.p, put->key.len);
        m->name_len = put->key.len;
        m->extra = copy_bytes(put->meta, put->meta_len);
        m->extra_len = put->meta_len;
        m->has_ttl = put->has_ttl;
        m->ttl_ms = put->ttl_ms;
        m->readers = put->readers;
        m->reject_duplicate = put->on_duplicate == KVF_DUP_REJECT;
        m->checksum = put->checksum;
        m->wants_end = put->notify;
        m->publisher = p->publisher;
        m->m.confirm = true;
    } else {
        m->name = copy_bytes(p->window.p, p->window.len);
        m->name_len = p->window.len;
        m->extra = copy_bytes(p->notify, p->notify_len);
        m->extra_len = p->notify_len;
        m->has_notify = m->m.confirm = p->has_notify;
        m->target_offset = p->target_offset;
    }
    return m->name != NULL && m->extra != NULL && copy_memory(m, p);
}

/* Which worker is meant. Without a rank: the one that the edge from our stage
 * maps ours to. */
static int map_dest(const struct kvf_moves *ms, const struct kvf_from *to,
                    struct kvf_worker *out, struct kvf_why *why)
{
    const struct kvf_conf *c = ms->env.conf;
    uint32_t rank = (uint32_t)to->rank;

    if (!to->has_rank) {
        struct kvf_conf_edge e =
            kvf_conf_find_edge(c, c->self.stage, (uint32_t)to->stage);

        if (e.to_tp > e.from_tp)
            return kvf_fail(why, KVF_INVALID,
                            "rank %u goes to %u ranks of stage %u: name `to` "
                            "with its rank",
                            c->self.rank, e.to_tp / e.from_tp,
                            (unsigned)to->stage);
        rank = c->self.rank * e.to_tp / e.from_tp;
    }
    *out = (struct kvf_worker){
        .stage = (uint32_t)to->stage,
        .rank = rank,
        .replica = to->has_replica ? (uint32_t)to->replica : c->self.replica};
    return 0;
}

static int copy_dest(struct kvf_move *m, const struct kvf_dest *d,
                     struct kvf_why *why)
{
    const struct kvf_peers *peers = m->ms->env.peers;
    char host[KVF_CONF_TEXT];
    const char *h = d->target.host;
    int ret;

    m->port = d->target.port;
    if (d->has_to) {
        ret = map_dest(m->ms, &d->to, &m->expect, why);
        if (ret == 0)
            ret = kvf_directory_find(peers, &m->expect, host, sizeof host,
                                     &m->port, why);
        if (ret < 0)
            return ret;
        m->has_expect = true;
        h = host;
    }
    m->self =
        kvf_peer_is_self(peers, h, m->port) ||
        (m->has_expect && kvf_worker_equal(&m->expect, &m->ms->env.conf->self));
    m->host = strdup(h);
    return m->host != NULL ? 0 : kvf_fail(why, KVF_BUSY, "out of memory");
}

static void move_free(struct kvf_move *m)
{
    free(m->segs);
    free(m->bytes);
    free(m->name);
    free(m->extra);
    free(m->host);
    free(m->iov);
    free(m->cause);
    free(m->text);
    free(m);
}

int kvf_move_start(struct kvf_moves *ms, const struct kvf_move_params *p,
                   kvf_move_reply *reply, void *arg, struct kvf_move **out,
                   struct kvf_why *why)
{
    struct kvf_sched *s = ms->env.sched;
    struct kvf_move *m = calloc(1, sizeof *m);
    int ret;

    if (m == NULL)
        return kvf_fail(why, KVF_BUSY, "out of memory");
    m->ms = ms;
    m->reply = reply;
    m->arg = arg;
    m->m.max_attempts = ms->env.conf->attempts;
    kvf_list_init(&m->node);
    kvf_list_init(&m->user.node);
    kvf_timer_init(&m->deadline, on_deadline);
    kvf_timer_init(&m->pause, on_pause);
    kvf_task_init(&m->task, on_task);
    kvf_retry_init(&m->retry, kvf_move_on_link);
    ret = copy_request(m, p) ? copy_dest(m, p->dest, why)
                             : kvf_fail(why, KVF_BUSY, "out of memory");
    if (ret < 0) {
        move_free(m);
        return ret;
    }
    pin_segs(m);
    m->t_start = s->now_ns;
    kvf_timer_set(s, &m->deadline,
                  p->timeout_ms == 0
                      ? KVF_NEVER
                      : m->t_start + p->timeout_ms * KVF_NS_PER_MS);
    kvf_list_push_back(&ms->all, &m->node);
    ms->running++;
    kvf_task_post(s, &m->task);
    *out = m;
    return 0;
}

/* The last step of every move, before its reply: what the client may use again
 * is its own when it reads the reply. */
void kvf_move_release(struct kvf_move *m)
{
    struct kvf_moves *ms = m->ms;

    kvf_timer_cancel(ms->env.sched, &m->deadline);
    kvf_timer_cancel(ms->env.sched, &m->pause);
    kvf_task_cancel(&m->task);
    kvf_way_leave(&m->retry);
    kvf_peer_unask(&m->ask);
    kvf_peer_leave(&m->user);
    kvf_move_xfer_free(m);
    kvf_move_leave_self(m);
    if (m->grant != NULL)
        kvf_grant_abort(m->grant);
    unpin_segs(m);
    kvf_list_unlink(&m->node);
    ms->running--;
    move_free(m);
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
