/* layout, publish, pull: blocks of KV caches between engines.
 *
 * Happy path: one request, one reply each. Failure modes: the daemon's word. A
 * layout belongs to a session: after a restart of the daemon the caller
 * registers and declares anew. */
#include "client.h"

#include <stdlib.h>
#include <string.h>

static void array(struct kvfc_req *q, const char *name, unsigned n)
{
    kvf_mpw_str(&q->h->w, name);
    kvf_mpw_array(&q->h->w, n);
    q->pairs++;
}

/* ---- layout ------------------------------------------------------------- */

static void write_groups(struct kvfc_req *q, const struct kvferry_layout *l)
{
    struct kvf_mpw *w = &q->h->w;

    array(q, "groups", l->n_groups);
    for (unsigned i = 0; i < l->n_groups; i++) {
        const struct kvferry_layout_group *g = &l->groups[i];

        kvf_mpw_map(w, 1 + (g->window != 0));
        kvf_mpw_kv_str(w, "kind", g->kind);
        if (g->window != 0)
            kvf_mpw_kv_u64(w, "window", g->window);
    }
}

static void write_layers(struct kvfc_req *q, const struct kvferry_layout *l)
{
    struct kvf_mpw *w = &q->h->w;

    array(q, "layers", l->n_layers);
    for (unsigned i = 0; i < l->n_layers; i++) {
        const struct kvferry_layout_layer *y = &l->layers[i];

        kvf_mpw_map(w, 4);
        kvf_mpw_kv_str(w, "name", y->name);
        kvf_mpw_kv_u64(w, "group", y->group);
        kvf_mpw_kv_str(w, "kind", y->kind);
        kvf_mpw_str(w, "comps");
        kvf_mpw_array(w, y->n_comps);
        for (unsigned c = 0; c < y->n_comps; c++) {
            kvf_mpw_array(w, 3);
            kvf_mpw_str(w, y->comps[c].name);
            kvf_mpw_u64(w, y->comps[c].units);
            kvf_mpw_u64(w, y->comps[c].bytes);
        }
    }
}

static void write_views(struct kvfc_req *q, const struct kvferry_layout *l)
{
    struct kvf_mpw *w = &q->h->w;

    array(q, "views", l->n_views);
    for (unsigned i = 0; i < l->n_views; i++) {
        const struct kvferry_layout_view *v = &l->views[i];

        kvf_mpw_map(w, 6);
        kvf_mpw_kv_u64(w, "layer", v->layer);
        kvf_mpw_kv_str(w, "part", v->part);
        kvf_mpw_kv_u64(w, "region", v->region);
        kvf_mpw_kv_u64(w, "off0", v->off0);
        kvf_mpw_kv_u64(w, "stride", v->stride);
        kvf_mpw_kv_u64(w, "page", v->page);
    }
}

static bool layout_reply(struct kvferry *h, struct kvfc_call *c,
                         struct kvfc_reply *r, struct kvferry_result *out)
{
    (void)h;
    (void)c;
    if (r->status == 0 && !kvfc_u64(r->map, "layout", &out->number))
        kvfc_unreadable(out, "the daemon's reply names no layout");
    return true;
}

KVFC_EXPORT int kvferry_layout(struct kvferry *h,
                               const struct kvferry_layout *l, uint64_t *layout)
{
    struct kvfc_waiter w;
    struct kvfc_req q;
    int rc;

    kvfc_req_ask(&q, h, "layout", layout_reply, &w);
    kvfc_req_u64(&q, "tp", l->tp);
    kvfc_req_u64(&q, "pp", l->pp);
    kvfc_req_u64(&q, "rank", l->rank);
    kvfc_req_u64(&q, "bs", l->bs);
    kvfc_req_u64(&q, "ppl", l->ppl);
    kvfc_req_u64(&q, "nblocks", l->nblocks);
    kvfc_req_str(&q, "order", l->order);
    kvfc_req_str(&q, "kv", l->kv);
    kvfc_req_bool(&q, "shared", l->shared);
    write_groups(&q, l);
    write_layers(&q, l);
    write_views(&q, l);
    rc = kvfc_req_wait(&q, 0, &w);
    if (rc == 0)
        *layout = w.r.number;
    return rc;
}

/* ---- publish ------------------------------------------------------------ */

static void write_blocks(struct kvfc_req *q, const struct kvferry_blocks *b,
                         unsigned n)
{
    struct kvf_mpw *w = &q->h->w;

    array(q, "blocks", n);
    for (unsigned i = 0; i < n; i++) {
        kvf_mpw_map(w, 3);
        kvf_mpw_kv_u64(w, "group", b[i].group);
        kvf_mpw_kv_u64(w, "first", b[i].first);
        kvf_mpw_str(w, "ids");
        kvf_mpw_array(w, b[i].n_ids);
        for (size_t k = 0; k < b[i].n_ids; k++)
            kvf_mpw_u64(w, b[i].ids[k]);
    }
}

static bool take_id(const msgpack_object *map, const char *name, uint8_t *out)
{
    const void *p;
    size_t len;

    if (kvf_mp_bin(map, name, 16, 16, &p, &len, NULL) != 1)
        return false;
    memcpy(out, p, 16);
    return true;
}

static bool read_handle(const msgpack_object *map, struct kvferry_handle *out)
{
    const msgpack_object *m;
    uint64_t port;

    memset(out, 0, sizeof *out);
    if (kvf_mp_map(map, "handle", &m, NULL) != 1)
        return false;
    kvfc_text(m, "request_id", out->request_id, sizeof out->request_id);
    kvfc_text(m, "source_host", out->source_host, sizeof out->source_host);
    if (kvf_mp_u64(m, "source_port", 0, UINT16_MAX, &port, NULL) != 1)
        return false;
    out->source_port = (uint16_t)port;
    return out->request_id[0] != '\0' && take_id(m, "tag", out->tag) &&
           take_id(m, "incarnation", out->incarnation);
}

static bool publish_reply(struct kvferry *h, struct kvfc_call *c,
                          struct kvfc_reply *r, struct kvferry_result *out)
{
    if (r->status != 0)
        return true;
    if (!read_handle(r->map, &h->handle)) {
        kvfc_unreadable(out, "the daemon's reply to publish has no handle");
        return true;
    }
    out->handle = &h->handle;
    if (c->extra != NULL && !c->abandoned)
        *(struct kvferry_handle *)c->extra = h->handle;
    return true;
}

struct publication {
    uint64_t layout;
    const char *request_id;
    const struct kvferry_blocks *blocks;
    unsigned n;
    const struct kvferry_publish_options *o;
    struct kvferry_handle *out; /* of a blocking call */
};

static int publish(struct kvferry *h, const struct publication *p,
                   kvferry_done_fn fn, void *user, uint64_t *ticket)
{
    struct kvfc_req q;

    if (kvfc_req_begin(&q, h, "publish", publish_reply, fn, user))
        q.c->extra = p->out;
    kvfc_req_u64(&q, "layout", p->layout);
    kvfc_req_str(&q, "request_id", p->request_id);
    if (p->o->tag != NULL)
        kvfc_req_bin(&q, "tag", p->o->tag, 16);
    kvfc_req_u64(&q, "n_tokens", p->o->n_tokens);
    write_blocks(&q, p->blocks, p->n);
    if (p->o->ttl_ms != 0)
        kvfc_req_u64(&q, "ttl_ms", p->o->ttl_ms);
    if (p->o->notify)
        kvfc_req_bool(&q, "notify", true);
    return kvfc_req_send(&q, 0, ticket);
}

KVFC_EXPORT int kvferry_publish_async(struct kvferry *h, uint64_t layout,
                                      const char *request_id,
                                      const struct kvferry_blocks *blocks,
                                      unsigned n_blocks,
                                      const struct kvferry_publish_options *o,
                                      kvferry_done_fn fn, void *user,
                                      uint64_t *ticket)
{
    struct publication p = {layout, request_id, blocks, n_blocks, o, NULL};

    return publish(h, &p, fn, user, ticket);
}

KVFC_EXPORT int kvferry_publish(struct kvferry *h, uint64_t layout,
                                const char *request_id,
                                const struct kvferry_blocks *blocks,
                                unsigned n_blocks,
                                const struct kvferry_publish_options *o,
                                struct kvferry_handle *out)
{
    struct publication p = {layout, request_id, blocks, n_blocks, o, out};
    struct kvfc_waiter w = {.done = false};

    return kvfc_wait(h, publish(h, &p, kvfc_waiter_done, &w, NULL), &w);
}

/* ---- pull --------------------------------------------------------------- */

static void read_sources(const msgpack_object *map, char *out, size_t cap)
{
    const msgpack_object *a;
    size_t at = 0;

    if (kvf_mp_array(map, "sources", KVF_MP_ITEMS, &a, NULL) != 1)
        return;
    for (uint32_t i = 0; i < a->via.array.size; i++) {
        const msgpack_object *o = &a->via.array.ptr[i];
        size_t len = o->via.str.size;

        if (o->type != MSGPACK_OBJECT_STR || len + 2 > cap - at)
            return;
        if (at > 0)
            out[at++] = ' ';
        memcpy(out + at, o->via.str.ptr, len);
        at += len;
        out[at] = '\0';
    }
}

static void read_filled(const msgpack_object *map,
                        struct kvferry_pull_result *out)
{
    const msgpack_object *a;

    if (kvf_mp_array(map, "filled", KVF_MP_ITEMS, &a, NULL) != 1)
        return;
    out->n_filled = a->via.array.size;
    for (uint32_t i = 0; i < a->via.array.size && i < KVFERRY_FILLED_MAX; i++) {
        const msgpack_object *o = &a->via.array.ptr[i];

        if (o->type != MSGPACK_OBJECT_MAP)
            continue;
        kvfc_u64(o, "group", &out->filled[i].group);
        kvfc_u64(o, "first_token", &out->filled[i].first_token);
        kvfc_u64(o, "tokens", &out->filled[i].tokens);
    }
}

static bool pull_reply(struct kvferry *h, struct kvfc_call *c,
                       struct kvfc_reply *r, struct kvferry_result *out)
{
    struct kvferry_pull_result *p = &h->pull;
    uint64_t attempts = 0;

    memset(p, 0, sizeof *p);
    if (r->map != NULL) {
        kvf_mp_u64(r->map, "attempts", 0, UINT32_MAX, &attempts, NULL);
        p->attempts = (unsigned)attempts;
    }
    if (r->status == 0 && r->map != NULL) {
        kvfc_u64(r->map, "bytes", &p->bytes);
        kvfc_u64(r->map, "reads", &p->reads);
        kvfc_text(r->map, "transport", p->transport, sizeof p->transport);
        read_sources(r->map, p->sources, sizeof p->sources);
        read_filled(r->map, p);
        kvfc_timing(r->map, &p->timing);
    }
    out->pull = p;
    if (c->extra != NULL && !c->abandoned)
        *(struct kvferry_pull_result *)c->extra = *p;
    return true;
}

static void write_handle(struct kvfc_req *q, const struct kvferry_handle *n)
{
    struct kvf_mpw *w = &q->h->w;

    q->pairs++;
    kvf_mpw_str(w, "handle");
    kvf_mpw_map(w, 5);
    kvf_mpw_kv_str(w, "request_id", n->request_id);
    kvf_mpw_kv_bin(w, "tag", n->tag, 16);
    kvf_mpw_kv_str(w, "source_host", n->source_host);
    kvf_mpw_kv_u64(w, "source_port", n->source_port);
    kvf_mpw_kv_bin(w, "incarnation", n->incarnation, 16);
}

static void write_together(struct kvfc_req *q, const char *name, uint64_t size)
{
    struct kvf_mpw *w = &q->h->w;

    q->pairs++;
    kvf_mpw_str(w, "together");
    kvf_mpw_map(w, 2);
    kvf_mpw_kv_str(w, "name", name);
    kvf_mpw_kv_u64(w, "size", size);
}

struct pulling {
    uint64_t layout;
    const struct kvferry_blocks *blocks;
    unsigned n;
    const struct kvferry_pull_options *o;
    struct kvferry_pull_result *out; /* of a blocking call */
};

static int pull(struct kvferry *h, const struct pulling *p, kvferry_done_fn fn,
                void *user, uint64_t *ticket)
{
    const struct kvferry_pull_options *o = p->o;
    struct kvfc_req q;

    if (kvfc_req_begin(&q, h, "pull", pull_reply, fn, user))
        q.c->extra = p->out;
    kvfc_req_u64(&q, "layout", p->layout);
    if (o->handle != NULL)
        write_handle(&q, o->handle);
    if (o->request_id != NULL)
        kvfc_req_str(&q, "request_id", o->request_id);
    if (o->from_fields != 0)
        kvfc_req_worker(&q, "from", o->from_fields, o->from_stage, o->from_rank,
                        o->from_replica);
    write_blocks(&q, p->blocks, p->n);
    kvfc_req_timeout(&q, o->timeout_ms);
    if (o->together != NULL)
        write_together(&q, o->together, o->together_size);
    return kvfc_req_send(&q, kvfc_bound(o->timeout_ms), ticket);
}

KVFC_EXPORT int kvferry_pull_async(struct kvferry *h, uint64_t layout,
                                   const struct kvferry_blocks *blocks,
                                   unsigned n_blocks,
                                   const struct kvferry_pull_options *o,
                                   kvferry_done_fn fn, void *user,
                                   uint64_t *ticket)
{
    struct pulling p = {layout, blocks, n_blocks, o, NULL};

    return pull(h, &p, fn, user, ticket);
}

KVFC_EXPORT int kvferry_pull(struct kvferry *h, uint64_t layout,
                             const struct kvferry_blocks *blocks,
                             unsigned n_blocks,
                             const struct kvferry_pull_options *o,
                             struct kvferry_pull_result *r)
{
    struct pulling p = {layout, blocks, n_blocks, o, r};
    struct kvfc_waiter w = {.done = false};

    return kvfc_wait(h, pull(h, &p, kvfc_waiter_done, &w, NULL), &w);
}
