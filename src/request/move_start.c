/* A move comes into being from what the engine asked, and goes.
 *
 * Happy path: the request is copied, the other side named, the memory it names
 * pinned; its task is posted. Failure modes: refused before anything exists. */
#include "request/moves_private.h"

#include <stdlib.h>
#include <string.h>

/* ---- what was asked ----------------------------------------------------- */

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

/* ---- the other side ----------------------------------------------------- */

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
    return m->host != NULL ? 0 : kvf_fail(why, KVF_INTERNAL, "out of memory");
}

/* ---- its life ----------------------------------------------------------- */

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
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    m->ms = ms;
    m->reply = reply;
    m->arg = arg;
    m->m.max_attempts = ms->env.conf->attempts;
    kvf_list_init(&m->node);
    kvf_list_init(&m->user.node);
    kvf_move_init_time(m);
    kvf_retry_init(&m->retry, kvf_move_on_link);
    ret = copy_request(m, p) ? copy_dest(m, p->dest, why)
                             : kvf_fail(why, KVF_INTERNAL, "out of memory");
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
    ms->env.stats->moves++;
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
