/* get and mget.
 *
 * Happy path: one request, one reply, one payload. Failure modes: the daemon's
 * word, or a payload that cannot be mapped or does not match its checksum: what
 * it pinned is given back at once. */
#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void write_metadata(struct kvf_mpw *w, const struct kvferry_metadata *m)
{
    bool place = m->source_host[0] != '\0';

    kvf_mpw_str(w, "metadata");
    kvf_mpw_map(w, (place ? 2u : 0u) + (m->generation != 0) +
                       m->has_incarnation + (m->data_size != 0));
    if (place) {
        kvf_mpw_kv_str(w, "source_host", m->source_host);
        kvf_mpw_kv_u64(w, "source_port", m->source_port);
    }
    if (m->data_size != 0)
        kvf_mpw_kv_u64(w, "data_size", m->data_size);
    if (m->generation != 0)
        kvf_mpw_kv_u64(w, "generation", m->generation);
    if (m->has_incarnation)
        kvf_mpw_kv_bin(w, "incarnation", m->incarnation, 16);
}

static void write_where(struct kvfc_req *q, const struct kvferry_get_options *o)
{
    if (o->from_fields != 0)
        kvfc_req_worker(q, "from", o->from_fields, o->from_stage, o->from_rank,
                        o->from_replica);
    if (o->source_host != NULL)
        kvfc_req_place(q, "source", o->source_host, o->source_port);
    if (o->metadata != NULL) {
        write_metadata(&q->h->w, o->metadata);
        q->pairs++;
    }
}

static void get_fields(struct kvfc_req *q, const char *key,
                       const struct kvferry_get_options *o)
{
    static const char *const modes[] = {"auto", "view", "copy", "inline"};

    kvfc_req_str(q, "key", key);
    if (o == NULL)
        return;
    write_where(q, o);
    if (o->generation != 0)
        kvfc_req_u64(q, "generation", o->generation);
    kvfc_req_timeout(q, o->timeout_ms);
    if (o->no_wait)
        kvfc_req_bool(q, "wait", false);
    if (o->n_into != 0)
        kvfc_req_segments(q, "into", o->into, o->n_into);
    else if (o->mode != KVFERRY_AUTO && o->mode <= KVFERRY_INLINE)
        kvfc_req_str(q, "mode", modes[o->mode]);
}

/* A reply, or one of an mget's results, as a payload. */
static int take(struct kvferry *h, const msgpack_object *map, zmq_msg_t *frame,
                uint64_t at, bool verify, struct kvferry_payload **out,
                struct kvf_why *why)
{
    int rc = kvfc_payload_make(h, map, frame, at, out, why);
    uint64_t sum;

    if (rc != 0 || !verify || !kvferry_payload_checksum(*out, &sum) ||
        kvferry_payload_verify(*out) != -(int)KVF_CORRUPT)
        return rc;
    kvferry_release(out);
    return kvf_fail(why, KVF_CORRUPT, "the checksum does not match the bytes");
}

static bool get_reply(struct kvferry *h, struct kvfc_call *c,
                      struct kvfc_reply *r, struct kvferry_result *out)
{
    struct kvf_why why;

    if (r->status != 0)
        return true;
    out->status = take(h, r->map, r->frame, 0, c->verify, &out->payload, &why);
    if (out->status != 0)
        snprintf(r->message, sizeof r->message, "%s", why.text);
    else
        out->put.size = kvferry_payload_size(out->payload);
    return true;
}

KVFC_EXPORT int kvferry_get_async(struct kvferry *h, const char *key,
                                  const struct kvferry_get_options *o,
                                  kvferry_done_fn fn, void *user,
                                  uint64_t *ticket)
{
    struct kvfc_req q;

    if (kvfc_req_begin(&q, h, "get", get_reply, fn, user))
        q.c->verify = o != NULL && o->verify;
    get_fields(&q, key, o);
    return kvfc_req_send(&q, kvfc_bound(o != NULL ? o->timeout_ms : 0), ticket);
}

/* STALE may be about the generation; again only if it was about a session that
 * a hello can renew, and no memory of it is named. */
static bool names_what_may_be_stale(const struct kvferry_get_options *o)
{
    return o != NULL &&
           (o->n_into != 0 || o->generation != 0 || o->metadata != NULL);
}

KVFC_EXPORT int kvferry_get(struct kvferry *h, const char *key,
                            const struct kvferry_get_options *o,
                            struct kvferry_payload **out)
{
    struct kvfc_waiter w;
    unsigned attempt = 0;
    bool had_session;
    int rc;

    *out = NULL;
    do {
        had_session = h->s.epoch != 0;
        w.done = false;
        rc = kvferry_get_async(h, key, o, kvfc_waiter_done, &w, NULL);
        rc = kvfc_wait(h, rc, &w);
    } while (had_session && !names_what_may_be_stale(o) &&
             kvfc_again(h, rc, &attempt));
    if (rc == 0)
        *out = w.r.payload;
    return rc;
}

/* ---- mget --------------------------------------------------------------- */

struct mget {
    struct kvferry_mget_item *items;
    unsigned n;
};

static int item_status(const msgpack_object *map)
{
    const char *s;
    size_t len;
    int status;

    if (kvf_mp_str(map, "status", 1, 64, &s, &len, NULL) != 1)
        return -(int)KVF_INTERNAL;
    status = kvf_status_parse(s, len);
    return status < 0 ? -(int)KVF_INTERNAL : -status;
}

/* Inline payloads lie one after the other in the frame: `*at` moves on. */
static void take_item(struct kvferry *h, struct kvferry_mget_item *it,
                      const msgpack_object *map, zmq_msg_t *frame, uint64_t *at,
                      bool top_ok)
{
    struct kvf_why why;
    const char *s;
    uint64_t size;
    size_t len;

    it->status = item_status(map);
    if (kvf_mp_str(map, "message", 0, 65536, &s, &len, NULL) == 1)
        snprintf(it->message, sizeof it->message, "%.*s",
                 (int)(len < sizeof it->message ? len : sizeof it->message - 1),
                 s);
    if (it->status != 0)
        return;
    it->status =
        take(h, map, frame, *at, it->options.verify, &it->payload, &why);
    if (it->status != 0)
        snprintf(it->message, sizeof it->message, "%.159s", why.text);
    if (kvf_mp_get(map, "segments") == NULL && kvfc_u64(map, "size", &size))
        *at += size;
    if (!top_ok)
        kvferry_release(&it->payload);
}

static bool mget_reply(struct kvferry *h, struct kvfc_call *c,
                       struct kvfc_reply *r, struct kvferry_result *out)
{
    struct mget none = {NULL, 0}, *g = c->abandoned ? &none : c->extra;
    struct kvferry_mget_item spare;
    const msgpack_object *a;
    uint64_t at = 0;

    for (unsigned i = 0; i < g->n; i++)
        g->items[i].status = r->status != 0 ? r->status : -(int)KVF_INTERNAL;
    if (r->map == NULL || kvf_mp_array(r->map, "results", 65536, &a, NULL) != 1)
        return true;
    for (uint32_t i = 0; i < a->via.array.size; i++) {
        memset(&spare, 0, sizeof spare);
        take_item(h, i < g->n ? &g->items[i] : &spare, &a->via.array.ptr[i],
                  r->frame, &at, r->status == 0);
        kvferry_release(&spare.payload);
    }
    (void)out;
    return true;
}

static void mget_fields(struct kvfc_req *q, const struct kvferry_mget_item *it)
{
    unsigned before = q->pairs;
    size_t at = kvf_mpw_map_begin(&q->h->w);

    get_fields(q, it->key, &it->options);
    kvf_mpw_map_end(&q->h->w, at, q->pairs - before);
    q->pairs = before;
}

KVFC_EXPORT int kvferry_mget(struct kvferry *h, struct kvferry_mget_item *items,
                             unsigned n, uint64_t timeout_ms,
                             bool all_or_nothing)
{
    struct kvfc_waiter w;
    struct mget g = {items, n};
    struct kvfc_req q;
    uint64_t longest = kvfc_bound(timeout_ms);

    if (kvfc_req_ask(&q, h, "mget", mget_reply, &w))
        q.c->extra = &g;
    kvf_mpw_str(&h->w, "gets");
    kvf_mpw_array(&h->w, n);
    q.pairs++;
    for (unsigned i = 0; i < n; i++) {
        items[i].status = -(int)KVF_INTERNAL;
        items[i].payload = NULL;
        items[i].message[0] = '\0';
        mget_fields(&q, &items[i]);
        if (items[i].options.timeout_ms > longest)
            longest = items[i].options.timeout_ms;
    }
    kvfc_req_timeout(&q, timeout_ms);
    if (all_or_nothing)
        kvfc_req_bool(&q, "all_or_nothing", true);
    return kvfc_req_wait(&q, longest, &w);
}
