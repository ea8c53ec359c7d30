/* mget: several gets, one reply.
 *
 * Happy path: every get is started, its result kept as an encoded map, and the
 * reply goes out when all are in. All or nothing: each get stops at the last
 * byte (held); when all are held all are committed.
 * Failure modes: a failure of one is its own result, or ends them all; a reply
 * that cannot be sent, or would not fit a frame, undoes what the gets gave. */
#include "daemon/engine.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char too_large[] =
    "the inline payloads together are more than max_frame: ask for fewer keys "
    "at once";

struct item {
    struct mget *mget;
    struct kvf_get *get; /* NULL: answered, or never started */
    bool held, ok;
    uint64_t buffer; /* to undo */
    char *map;       /* encoded result */
    size_t map_len;
    uint8_t *payload;
    size_t payload_len;
};

struct mget {
    struct kvf_pending pending;
    struct kvf_server *server;
    bool all, committed;
    bool failed; /* all or nothing, or too large: the rest is cancelled */
    struct kvf_why why; /* of the first failure */
    unsigned n, running, held;
    uint64_t payload_total;
    uint64_t inline_held; /* what payload_total will be */
    struct kvf_task finish;
    struct item item[];
};

/* Keeps a result; without memory for it the item counts as INTERNAL. */
static void keep(struct item *it, const struct kvf_get_result *res)
{
    struct kvf_mpw *w = &it->mget->server->scratch;
    size_t mark;
    unsigned pairs = 1;

    kvf_mpw_reset(w);
    mark = kvf_mpw_map_begin(w);
    kvf_mpw_kv_str(w, "status", kvf_status_name(res->status));
    if (res->status != KVF_OK) {
        kvf_mpw_kv_str(w, "message",
                       res->text != NULL && res->text[0] != '\0'
                           ? res->text
                           : kvf_status_text(res->status));
        pairs++;
    }
    pairs += kvf_get_fields_write(w, res);
    kvf_mpw_map_end(w, mark, pairs);
    free(it->map);
    it->map = w->failed ? NULL : malloc(w->buf.size);
    it->map_len = 0;
    if (it->map != NULL) {
        memcpy(it->map, w->buf.data, w->buf.size);
        it->map_len = w->buf.size;
    }
}

static void keep_failure(struct item *it, enum kvf_status status,
                         const char *text)
{
    struct kvf_get_result res = {.status = status, .text = text};

    it->ok = false;
    keep(it, &res);
}

static int keep_payload(struct item *it, const struct kvf_get_result *res)
{
    if (res->mode != KVF_MODE_INLINE || res->payload_len == 0)
        return 0;
    it->payload = malloc(res->payload_len);
    if (it->payload == NULL)
        return -KVF_INTERNAL;
    memcpy(it->payload, res->payload, res->payload_len);
    it->payload_len = res->payload_len;
    it->mget->payload_total += res->payload_len;
    return 0;
}

static void cancel_rest(struct mget *m, enum kvf_status status,
                        const char *text)
{
    for (unsigned i = 0; i < m->n; i++)
        if (m->item[i].get != NULL)
            kvf_get_cancel(m->item[i].get, status, text);
}

/* The first failure of an mget that stands or falls as one. */
static void fail_all(struct mget *m, enum kvf_status status, const char *text)
{
    if (m->failed)
        return;
    m->failed = true;
    kvf_fail(&m->why, status, "%s",
             text != NULL && text[0] != '\0' ? text : kvf_status_text(status));
    cancel_rest(m, KVF_CANCELLED, "another get of this mget failed");
}

/* ---- the reply ---------------------------------------------------------- */

static void undo_all(struct mget *m)
{
    for (unsigned i = 0; i < m->n; i++) {
        if (!m->item[i].ok)
            continue;
        kvf_undo(m->server, m->item[i].buffer);
        keep_failure(&m->item[i], KVF_CANCELLED,
                     "another get of this mget failed");
    }
}

static void write_results(struct mget *m)
{
    struct kvf_mpw *w = kvf_reply_key(m->server, "results");

    kvf_mpw_array(w, m->n);
    for (unsigned i = 0; i < m->n; i++) {
        if (m->item[i].map != NULL) {
            kvf_mpw_raw(w, m->item[i].map, m->item[i].map_len);
        } else {
            kvf_mpw_map(w, 2);
            kvf_mpw_kv_str(w, "status", kvf_status_name(KVF_INTERNAL));
            kvf_mpw_kv_str(w, "message", "out of memory");
        }
    }
}

/* In the order of `gets`. NULL when there are none, or no memory. */
static uint8_t *join_payloads(const struct mget *m)
{
    uint8_t *all = m->payload_total > 0 ? malloc(m->payload_total) : NULL;
    size_t at = 0;

    for (unsigned i = 0; all != NULL && i < m->n; i++) {
        if (!m->item[i].ok || m->item[i].payload_len == 0)
            continue;
        memcpy(all + at, m->item[i].payload, m->item[i].payload_len);
        at += m->item[i].payload_len;
    }
    return all;
}

/* What the results give, for a reply that waits for room in vain. */
static uint64_t undo_cookie(const struct mget *m)
{
    uint64_t *id = m->failed ? NULL : malloc(m->n * sizeof *id + 1);
    uint64_t cookie = 0;
    unsigned n = 0;

    for (unsigned i = 0; id != NULL && i < m->n; i++)
        if (m->item[i].ok && m->item[i].buffer != 0)
            id[n++] = m->item[i].buffer;
    if (n > 0)
        cookie = kvf_undo_list_add(m->server, id, n);
    free(id);
    return cookie;
}

static int send_results(struct mget *m)
{
    struct kvf_server *s = m->server;
    uint8_t *payload = m->failed ? NULL : join_payloads(m);
    uint64_t cookie;
    struct kvf_to to;
    int rc;

    if (!m->failed && m->payload_total > 0 && payload == NULL)
        fail_all(m, KVF_INTERNAL, "out of memory");
    if (m->failed)
        undo_all(m);
    kvf_pending_to(&m->pending, &to);
    kvf_reply_begin(s, &to, m->failed ? m->why.status : KVF_OK, m->why.text);
    write_results(m);
    cookie = undo_cookie(m);
    rc = kvf_pending_send(&m->pending, payload,
                          payload != NULL ? m->payload_total : 0, cookie);
    if (rc < 0) /* undone by the caller */
        kvf_undo_forget(s, cookie);
    free(payload);
    return rc;
}

static void mget_free(struct mget *m)
{
    for (unsigned i = 0; i < m->n; i++) {
        free(m->item[i].map);
        free(m->item[i].payload);
    }
    free(m);
}

static void finish(struct kvf_task *t)
{
    struct mget *m = kvf_container_of(t, struct mget, finish);
    struct kvf_server *s = m->server;

    if (kvf_pending_orphan(&m->pending))
        fail_all(m, KVF_CANCELLED, "the session has ended");
    if (send_results(m) < 0)
        undo_all(m);
    kvf_pending_end(&m->pending);
    mget_free(m);
    kvf_event_pool(s);
}

static void one_less(struct mget *m)
{
    if (--m->running == 0)
        kvf_task_post(m->server->sched, &m->finish);
}

/* ---- what the gets say -------------------------------------------------- */

static int take_result(struct item *it, const struct kvf_get_result *res)
{
    struct mget *m = it->mget;

    if (res->status != KVF_OK) {
        keep(it, res);
        if (m->all)
            fail_all(m, res->status, res->text);
        return 0;
    }
    /* An answer that nobody will get: the get takes it back. */
    if (m->failed || kvf_pending_orphan(&m->pending)) {
        keep_failure(it, KVF_CANCELLED, "another get of this mget failed");
        return -KVF_CANCELLED;
    }
    /* One of many that stand for themselves: it alone does not fit, and its
     * reader is given back. */
    if (m->payload_total + res->payload_len > m->server->conf->max_frame) {
        keep_failure(it, KVF_TOO_LARGE, too_large);
        if (m->all)
            fail_all(m, KVF_TOO_LARGE, too_large);
        return -KVF_TOO_LARGE;
    }
    if (keep_payload(it, res) < 0) {
        keep_failure(it, KVF_INTERNAL, "out of memory");
        fail_all(m, KVF_INTERNAL, "out of memory");
        return -KVF_INTERNAL;
    }
    it->ok = true;
    it->buffer = res->buffer;
    keep(it, res);
    return 0;
}

static int on_reply(void *arg, struct kvf_get *get,
                    const struct kvf_get_result *res)
{
    struct item *it = arg;
    int rc;

    (void)get;
    it->get = NULL;
    rc = take_result(it, res);
    one_less(it->mget);
    return rc;
}

static void on_held(void *arg, struct kvf_get *get)
{
    struct item *it = arg;
    struct mget *m = it->mget;

    it->held = true;
    m->inline_held += kvf_get_inline_bytes(get);
    /* Before any DONE: a reader that cannot be answered must not count. */
    if (m->inline_held > m->server->conf->max_frame)
        fail_all(m, KVF_TOO_LARGE, too_large);
    if (++m->held < m->n || m->failed)
        return;
    m->committed = true;
    for (unsigned i = 0; i < m->n; i++)
        if (m->item[i].get != NULL)
            kvf_get_commit(m->item[i].get);
}

static const struct kvf_get_ops item_ops = {.reply = on_reply,
                                            .on_held = on_held};

static void cancel_mget(struct kvf_pending *pending, enum kvf_status status,
                        const char *text)
{
    struct mget *m = kvf_container_of(pending, struct mget, pending);

    if (!m->failed && !m->committed) {
        m->failed = true;
        kvf_fail(&m->why, status, "%s", text);
    }
    cancel_rest(m, status, text);
}

/* ---- the operation ------------------------------------------------------ */

/* Every get must be readable, and allowed in this session, before any starts.
 */
static int check_items(struct kvf_call *call, struct kvf_why *why)
{
    for (unsigned i = 0; i < call->req->u.mget.n; i++) {
        struct kvf_req_get get;
        int rc = kvf_req_mget_item(call->req, i, &get, why);

        if (rc == 0) {
            rc = kvf_get_allowed(call->client->session, &get, why);
            kvf_req_get_done(&get);
        }
        if (rc < 0) {
            kvf_fail_prefix(why, "field gets[%u]", i);
            return rc;
        }
    }
    return 0;
}

static uint64_t timeout_of(const struct kvf_call *call,
                           const struct kvf_req_get *get)
{
    if (get->has_timeout)
        return get->timeout_ms;
    return call->req->u.mget.has_timeout ? call->req->u.mget.timeout_ms
                                         : call->s->conf->get_sub_timeout_ms;
}

static void start_item(struct kvf_call *call, struct mget *m, unsigned i)
{
    struct item *it = &m->item[i];
    struct kvf_req_get get;
    struct kvf_why why;
    int rc = kvf_req_mget_item(call->req, i, &get, &why);

    if (rc == 0) {
        rc = kvf_get_launch(m->server, call->client->session, &get,
                            timeout_of(call, &get), m->all, &item_ops, it,
                            &it->get, &why);
        kvf_req_get_done(&get);
    }
    if (rc == 0) {
        m->running++;
        return;
    }
    it->get = NULL;
    keep_failure(it, why.status, why.text);
    if (m->all)
        fail_all(m, why.status, why.text);
}

static void start_items(struct kvf_call *call, struct mget *m)
{
    m->running = 1; /* this function */
    for (unsigned i = 0; i < m->n; i++) {
        if (m->failed)
            keep_failure(&m->item[i], KVF_CANCELLED,
                         "another get of this mget failed");
        else
            start_item(call, m, i);
    }
    one_less(m);
}

static int begin(struct kvf_call *call, struct mget **out, struct kvf_why *why)
{
    unsigned n = call->req->u.mget.n;
    struct mget *m;
    int rc = check_items(call, why);

    if (rc < 0)
        return rc;
    m = calloc(1, sizeof *m + n * sizeof m->item[0]);
    if (m == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    rc = kvf_pending_begin(&m->pending, call, cancel_mget, why);
    if (rc < 0) {
        free(m);
        return rc;
    }
    m->server = call->s;
    m->all = call->req->u.mget.all_or_nothing;
    m->n = n;
    kvf_task_init(&m->finish, finish);
    for (unsigned i = 0; i < n; i++)
        m->item[i].mget = m;
    *out = m;
    return 0;
}

void kvf_op_mget(struct kvf_call *call)
{
    struct mget *m = NULL;
    struct kvf_why why;

    if (call->s->drain.active)
        kvf_call_reply(call, KVF_SHUTTING_DOWN, "the daemon is draining");
    else if (begin(call, &m, &why) < 0)
        kvf_call_why(call, &why);
    else if (m != NULL)
        start_items(call, m);
}
