/* get and mget.
 *
 * Happy path: one request, one reply, one payload. Failure modes: the daemon's
 * word, or a payload that cannot be mapped or does not match its checksum: what
 * it pinned is given back at once. */
#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void kvfc_write_segments(struct kvf_mpw *w, const char *name,
                         const struct kvferry_segment *s, unsigned n)
{
    kvf_mpw_str(w, name);
    kvf_mpw_array(w, n);
    for (unsigned i = 0; i < n; i++) {
        kvf_mpw_map(w, 2 + (s[i].length != 0));
        kvf_mpw_kv_u64(w, s[i].is_region ? "region" : "buffer", s[i].id);
        kvf_mpw_kv_u64(w, "offset", s[i].offset);
        if (s[i].length != 0)
            kvf_mpw_kv_u64(w, "length", s[i].length);
    }
}

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

static unsigned write_where(struct kvf_mpw *w,
                            const struct kvferry_get_options *o)
{
    unsigned n = 0;

    if (o->from_fields != 0) {
        unsigned f = o->from_fields > 3 ? 3 : o->from_fields;

        kvf_mpw_str(w, "from");
        kvf_mpw_map(w, f);
        kvf_mpw_kv_u64(w, "stage", o->from_stage);
        if (f > 1)
            kvf_mpw_kv_u64(w, "rank", o->from_rank);
        if (f > 2)
            kvf_mpw_kv_u64(w, "replica", o->from_replica);
        n++;
    }
    if (o->source_host != NULL) {
        kvf_mpw_str(w, "source");
        kvf_mpw_map(w, 2);
        kvf_mpw_kv_str(w, "host", o->source_host);
        kvf_mpw_kv_u64(w, "port", o->source_port);
        n++;
    }
    if (o->metadata != NULL) {
        write_metadata(w, o->metadata);
        n++;
    }
    return n;
}

int kvfc_get_fields(struct kvferry *h, const char *key,
                    const struct kvferry_get_options *o)
{
    static const char *const modes[] = {"auto", "view", "copy", "inline"};
    struct kvf_mpw *w = &h->w;
    unsigned n = 1;

    kvf_mpw_kv_str(w, "key", key);
    if (o == NULL)
        return (int)n;
    n += write_where(w, o);
    if (o->generation != 0)
        kvf_mpw_kv_u64(w, "generation", o->generation), n++;
    if (o->timeout_ms != 0)
        kvf_mpw_kv_u64(w, "timeout_ms",
                       o->timeout_ms == KVFERRY_NO_TIMEOUT ? 0 : o->timeout_ms),
            n++;
    if (o->no_wait)
        kvf_mpw_kv_bool(w, "wait", false), n++;
    if (o->n_into != 0)
        kvfc_write_segments(w, "into", o->into, o->n_into), n++;
    else if (o->mode != KVFERRY_AUTO && o->mode <= KVFERRY_INLINE)
        kvf_mpw_kv_str(w, "mode", modes[o->mode]), n++;
    return (int)n;
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

/* What the client may count on: with `wait:false` an answer at once, without a
 * timeout of its own no bound at all. */
static uint64_t bound(const struct kvferry_get_options *o)
{
    if (o != NULL && o->no_wait && o->timeout_ms == 0)
        return KVFERRY_NO_TIMEOUT; /* the transfer itself may take long */
    return o == NULL || o->timeout_ms == 0 ? KVFERRY_NO_TIMEOUT : o->timeout_ms;
}

KVFC_EXPORT int kvferry_get_async(struct kvferry *h, const char *key,
                                  const struct kvferry_get_options *o,
                                  kvferry_done_fn fn, void *user,
                                  uint64_t *ticket)
{
    struct kvfc_call *c;
    size_t mark;
    uint64_t id;
    int rc;

    kvfc_ready(h);
    c = kvfc_call_new(h, get_reply, fn, user);
    if (c == NULL)
        return kvfc_refused(h);
    id = c->id;
    c->verify = o != NULL && o->verify;
    mark = kvfc_begin(h, "get", c->id);
    rc = kvfc_get_fields(h, key, o);
    rc = kvfc_end(h, c, mark, (unsigned)rc, bound(o));
    if (rc == 0 && ticket != NULL)
        *ticket = id;
    return rc;
}

KVFC_EXPORT int kvferry_get(struct kvferry *h, const char *key,
                            const struct kvferry_get_options *o,
                            struct kvferry_payload **out)
{
    int rc = 0;

    *out = NULL;
    for (int attempt = 0; attempt < 2; attempt++) {
        struct kvfc_waiter w = {.done = false};
        uint64_t epoch = h->s.epoch;

        rc = kvferry_get_async(h, key, o, kvfc_waiter_done, &w, NULL);
        rc = kvfc_wait(h, rc, &w);
        if (rc == 0)
            *out = w.r.payload;
        /* STALE may be about the generation; again only if it was about a
         * session that a hello can renew, and no memory of it is named. */
        if (rc != -(int)KVF_STALE || !h->rehello || epoch == 0 ||
            (o != NULL &&
             (o->n_into != 0 || o->generation != 0 || o->metadata != NULL)))
            break;
    }
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
    if (kvf_mp_get(map, "segments") == NULL &&
        kvf_mp_u64(map, "size", 0, UINT64_MAX, &size, NULL) == 1)
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

KVFC_EXPORT int kvferry_mget(struct kvferry *h, struct kvferry_mget_item *items,
                             unsigned n, uint64_t timeout_ms,
                             bool all_or_nothing)
{
    struct kvfc_waiter w = {.done = false};
    struct mget g = {items, n};
    unsigned pairs = 1;
    struct kvfc_call *c;
    uint64_t longest = timeout_ms == 0 ? KVFERRY_NO_TIMEOUT : timeout_ms;
    size_t mark, at;

    kvfc_ready(h);
    c = kvfc_call_new(h, mget_reply, kvfc_waiter_done, &w);
    if (c == NULL)
        return kvfc_refused(h);
    c->extra = &g;
    mark = kvfc_begin(h, "mget", c->id);
    kvf_mpw_str(&h->w, "gets");
    kvf_mpw_array(&h->w, n);
    for (unsigned i = 0; i < n; i++) {
        items[i].status = -(int)KVF_INTERNAL;
        items[i].payload = NULL;
        items[i].message[0] = '\0';
        at = kvf_mpw_map_begin(&h->w);
        kvf_mpw_map_end(
            &h->w, at,
            (unsigned)kvfc_get_fields(h, items[i].key, &items[i].options));
        if (items[i].options.timeout_ms > longest)
            longest = items[i].options.timeout_ms;
    }
    if (timeout_ms != 0)
        kvf_mpw_kv_u64(&h->w, "timeout_ms",
                       timeout_ms == KVFERRY_NO_TIMEOUT ? 0 : timeout_ms),
            pairs++;
    if (all_or_nothing)
        kvf_mpw_kv_bool(&h->w, "all_or_nothing", true), pairs++;
    return kvfc_wait(h, kvfc_end(h, c, mark, pairs, longest), &w);
}
