/* The session with the daemon: hello, the pool, and coming back after the
 * connection or the daemon was lost.
 *
 * Happy path: one hello when the handle is opened.
 *
 * Failure modes: after a lost connection, or a STALE reply, the next request is
 * preceded by a hello that asks for the old session. If the daemon does not
 * know it, it was restarted: a second hello opens a new session and names the
 * old incarnation in `unmapped`, unless views of it are still held; then that
 * is told when the last of them is released. */
#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void kvfc_session_suspect(struct kvferry *h)
{
    if (!(h->flags & KVFERRY_NO_SESSION) && !h->hello_pending)
        h->rehello = true;
}

static bool hello_reply(struct kvferry *h, struct kvfc_call *c,
                        struct kvfc_reply *r, struct kvferry_result *out);

/* c->number: 1 = asks for the session that we had; only then `unmapped` can be
 * named (c->body_pairs: it was). */
static int send_hello(struct kvferry *h, struct kvfc_call *c)
{
    size_t mark = kvfc_begin(h, "hello", c->id);
    unsigned pairs = 3;

    kvf_mpw_kv_u64(&h->w, "version", 1);
    kvf_mpw_kv_str(&h->w, "client", h->client);
    kvf_mpw_kv_bool(&h->w, "events", (h->flags & KVFERRY_EVENTS) != 0);
    if (c->number) {
        kvf_mpw_kv_bin(&h->w, "session", h->s.id.b, KVF_ID_LEN);
        pairs++;
    }
    c->body_pairs = c->number && h->has_old && h->old_views == 0;
    if (c->body_pairs) {
        kvfc_map_trim(h, 0);
        kvf_mpw_kv_bin(&h->w, "unmapped", h->old.b, KVF_ID_LEN);
        pairs++;
    }
    return kvfc_end(h, c, mark, pairs, 0);
}

int kvfc_hello(struct kvferry *h, kvferry_done_fn done, void *user)
{
    struct kvfc_call *c = kvfc_call_new(h, hello_reply, done, user);
    int rc;

    if (c == NULL)
        return kvfc_refused(h);
    c->urgent = true;
    c->number = h->s.open;
    rc = send_hello(h, c);
    h->hello_pending = rc == 0;
    return rc;
}

void kvfc_session_renew(struct kvferry *h)
{
    if (!h->rehello || h->hello_pending)
        return;
    h->rehello = false;
    h->hold = kvfc_hello(h, NULL, NULL) == 0;
    h->rehello = !h->hold;
}

void kvfc_ready(struct kvferry *h)
{
    kvfc_conn_look(h);
    kvfc_session_renew(h);
}

/* ---- what hello told ---------------------------------------------------- */

static void copy_u32(const msgpack_object *map, const char *key, uint32_t *out)
{
    uint64_t v;

    if (kvf_mp_u64(map, key, 0, UINT32_MAX, &v, NULL) == 1)
        *out = (uint32_t)v;
}

static void read_transports(const msgpack_object *map, struct kvferry_info *i)
{
    const msgpack_object *a;
    size_t at = 0;

    i->transports[0] = '\0';
    if (kvf_mp_array(map, "transports", 16, &a, NULL) != 1)
        return;
    for (uint32_t n = 0; n < a->via.array.size; n++) {
        const msgpack_object *o = &a->via.array.ptr[n];
        int len;

        if (o->type != MSGPACK_OBJECT_STR ||
            at + o->via.str.size + 2 > sizeof i->transports)
            continue;
        len = snprintf(i->transports + at, sizeof i->transports - at, "%s%.*s",
                       at ? "," : "", (int)o->via.str.size, o->via.str.ptr);
        at += (size_t)len;
    }
}

static void read_info(struct kvferry_info *i, const msgpack_object *map)
{
    const msgpack_object *limits;
    long long pid;

    kvfc_text(map, "server", i->server, sizeof i->server);
    kvfc_text(map, "cluster", i->cluster, sizeof i->cluster);
    copy_u32(map, "stage", &i->stage);
    copy_u32(map, "rank", &i->rank);
    copy_u32(map, "replica", &i->replica);
    read_transports(map, i);
    if (kvf_mp_map(map, "limits", &limits, NULL) == 1) {
#define LIMIT(name) kvfc_u64(limits, #name, &i->name)
        LIMIT(max_key);
        LIMIT(max_meta);
        LIMIT(max_segments);
        LIMIT(max_frame);
        LIMIT(max_outstanding);
        LIMIT(inline_max);
#undef LIMIT
    }
    i->daemon_pid = 0;
    if (sscanf(i->pool_path, "/proc/%lld/", &pid) == 1)
        i->daemon_pid = pid;
}

static int read_session(struct kvferry *h, const msgpack_object *map,
                        struct kvfc_session *s, struct kvf_why *why)
{
    const msgpack_object *pool = NULL;
    const void *id, *inc;
    size_t len;
    struct kvferry_info *i = &h->info;

    if (kvf_mp_bin(map, "session", 16, 16, &id, &len, why) != 1 ||
        kvf_mp_bin(map, "incarnation", 16, 16, &inc, &len, why) != 1)
        return kvf_fail(why, KVF_INTERNAL, "hello without session");
    memcpy(s->id.b, id, KVF_ID_LEN);
    memcpy(s->incarnation.b, inc, KVF_ID_LEN);
    memcpy(i->incarnation, inc, KVF_ID_LEN);
    i->pool_path[0] = '\0';
    if (kvf_mp_map(map, "pool", &pool, NULL) == 1) {
        kvfc_text(pool, "path", i->pool_path, sizeof i->pool_path);
        kvfc_u64(pool, "size", &i->pool_size);
    }
    read_info(i, map);
    s->open = true;
    return 0;
}

/* Replaces the session; what depended on the old one is void. */
static void take_session(struct kvferry *h, struct kvfc_session *s)
{
    bool lost = h->s.open && !kvf_id_equal(&h->s.incarnation, &s->incarnation);

    if (lost) {
        h->has_old = true;
        h->old = h->s.incarnation;
    }
    h->old_views += h->live_views;
    h->live_views = 0;
    if (h->s.pool != NULL)
        kvfc_map_put(h, h->s.pool);
    s->epoch = h->s.epoch + 1;
    h->s = *s;
    kvfc_calls_resend(h, false);
}

static int opened(struct kvferry *h, const msgpack_object *map,
                  struct kvf_why *why)
{
    struct kvfc_session s = {.open = false};
    int rc = read_session(h, map, &s, why);

    if (rc != 0)
        return rc;
    if (h->s.open && kvf_id_equal(&h->s.id, &s.id) &&
        kvf_id_equal(&h->s.incarnation, &s.incarnation)) {
        kvfc_calls_resend(h, true);
        return 0;
    }
    /* A tcp session has no use for the pool; one that cannot open it (another
     * PID namespace) still has the operations without memory. */
    if (strncmp(h->info.endpoint, "ipc:", 4) == 0 &&
        h->info.pool_path[0] != '\0' &&
        kvfc_map_open(h, h->info.pool_path, true, &s.incarnation,
                      h->info.pool_size, &s.pool, why) == -(int)KVF_STALE)
        return -(int)KVF_STALE;
    take_session(h, &s);
    return 0;
}

/* The session that we had is gone: asks for another under the same id. */
static void ask_again(struct kvferry *h, struct kvfc_call *c)
{
    int rc;

    c->number = 0;
    h->hold = true;
    rc = send_hello(h, c);
    if (rc == 0)
        return;
    h->hello_pending = h->hold = false;
    h->rehello = true;
    kvfc_held_settle(h, rc, "out of memory");
}

/* What the caller waits for is told after the hello itself is over: callbacks
 * may begin another one. */
static bool hello_over(struct kvferry *h, struct kvfc_call *c,
                       const struct kvfc_reply *r, int status)
{
    h->rehello = status != 0;
    if (c->done != NULL)
        return true;
    kvfc_call_drop(h, c);
    if (status == 0 && h->has_old && h->old_views == 0)
        kvfc_hello(h, NULL, NULL); /* names `unmapped` */
    kvfc_held_settle(h, status, r->message);
    return false;
}

static bool hello_reply(struct kvferry *h, struct kvfc_call *c,
                        struct kvfc_reply *r, struct kvferry_result *out)
{
    struct kvf_why why;

    if (r->map != NULL && c->body_pairs)
        h->has_old = false; /* told, whatever the answer */
    if (r->map != NULL && r->status != 0 && c->number && !h->ending) {
        ask_again(h, c);
        return false;
    }
    h->hello_pending = h->hold = false;
    if (r->status == 0 && !c->abandoned) {
        out->status = r->status = opened(h, r->map, &why);
        if (r->status != 0)
            snprintf(r->message, sizeof r->message, "%s", why.text);
    }
    return hello_over(h, c, r, r->status);
}

/* A payload that mapped another daemon's pool was released. */
void kvfc_view_gone(struct kvferry *h, uint64_t epoch)
{
    if (epoch == h->s.epoch) {
        h->live_views--;
        return;
    }
    h->old_views--;
    if (h->old_views == 0 && h->has_old && !h->closing && !h->rehello &&
        !h->hello_pending)
        kvfc_hello(h, NULL, NULL); /* joins the session, names `unmapped` */
}

KVFC_EXPORT void kvferry_info(const struct kvferry *h, struct kvferry_info *out)
{
    *out = h->info;
}
