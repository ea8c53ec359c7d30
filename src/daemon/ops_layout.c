/* layout and publish: what engines say about their KV memory, and which blocks
 * of it hold a request.
 *
 * Happy path: the regions are found in the session, the layout is checked and
 * numbered; a publication goes into the store and its handle comes back.
 * Failure modes: INVALID with the kind of refusal in the message; a layout or
 * region that is not the session's. */
#include "daemon/engine.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- layout ------------------------------------------------------------- */

static int find_regions(struct kvf_server *s, const struct kvf_session *ss,
                        const struct kvf_layout_decl *d,
                        struct kvf_region **out, struct kvf_why *why)
{
    for (unsigned i = 0; i < d->n_regions; i++) {
        out[i] = kvf_region_find(s->buffers, d->regions[i]);
        if (out[i] == NULL || out[i]->owner != ss || out[i]->retired)
            return kvf_fail(why, KVF_INVALID,
                            "E_REGION: region %" PRIu64
                            " is not one of this session",
                            d->regions[i]);
    }
    return 0;
}

static int add_layout(struct kvf_call *call, struct kvf_session *ss,
                      struct kvf_layout **out, struct kvf_why *why)
{
    struct kvf_layout_decl *d = call->req->u.layout;
    struct kvf_region **regions =
        calloc(d->n_regions + 1u, sizeof(struct kvf_region *));
    int rc;

    if (regions == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    rc = find_regions(call->s, ss, d, regions, why);
    if (rc == 0)
        rc =
            kvf_layout_add(call->s->blocks, d, regions, &ss->layouts, out, why);
    free(regions);
    return rc;
}

void kvf_op_layout(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    struct kvf_session *ss = kvf_call_memory(call);
    const struct kvf_side *side;
    struct kvf_layout *l;
    struct kvf_why why;

    if (ss == NULL)
        return;
    if (add_layout(call, ss, &l, &why) < 0) {
        kvf_call_why(call, &why);
        return;
    }
    side = &l->decl.side;
    kvf_log(KVF_LOG_INFO, "KVF LAYOUT",
            "layout=%" PRIu64 " rank=%" PRId64 " tp=%" PRId64 " pp=%" PRId64
            " bs=%" PRId64 " ppl=%" PRId64 " nblocks=%" PRId64
            " layers=%u groups=%u regions=%u bytes=%" PRIu64,
            l->number, l->decl.rank, side->tp, side->pp, side->bs, side->ppl,
            side->nblocks, side->n_layers, side->n_groups, l->decl.n_regions,
            l->size);
    kvf_reply_begin(s, &call->to, KVF_OK, NULL);
    kvf_reply_u64(s, "layout", l->number);
    (void)kvf_reply_send(s, &call->to, NULL, 0, 0);
}

struct kvf_layout *kvf_session_layout(const struct kvf_session *ss,
                                      uint64_t number, struct kvf_why *why)
{
    kvf_list_for_each (n, &ss->layouts) {
        struct kvf_layout *l =
            kvf_container_of(n, struct kvf_layout, owner_node);

        if (l->number == number)
            return l;
    }
    kvf_fail(why, KVF_INVALID, "layout %" PRIu64 " is not one of this session",
             number);
    return NULL;
}

/* ---- publish ------------------------------------------------------------ */

static int publish(struct kvf_call *call, struct kvf_session *ss,
                   struct kvf_id *tag, struct kvf_why *why)
{
    struct kvf_server *s = call->s;
    const struct kvf_req_publish *r = &call->req->u.publish;
    struct kvf_publish p = {
        .layout = kvf_session_layout(ss, r->layout, why),
        .request_id = r->request_id,
        .tag = r->has_tag ? &r->tag : NULL,
        .n_tokens = (int64_t)r->n_tokens,
        .blocks = &r->blocks,
        .ttl_ms = r->has_ttl ? r->ttl_ms : s->conf->put_ttl_ms,
        .notify = r->notify,
    };
    const struct kvf_gen *g;
    const struct kvf_publication *pub;
    char key[512];
    int rc;

    if (p.layout == NULL)
        return -KVF_INVALID;
    p.publisher = kvf_event_address(call);
    rc = kvf_publish(s->blocks, &p, &g, why);
    if (rc < 0)
        return rc;
    if (r->notify)
        call->client->notify++;
    pub = g->user;
    *tag = pub->tag;
    if (kvf_log_on(KVF_LOG_INFO))
        kvf_log(
            KVF_LOG_INFO, "KVF PUBLISH",
            "request=%s rank=%" PRId64 " gen=%" PRIu64 " tokens=%" PRId64
            " layout=%" PRIu64 " ttl_ms=%" PRIu64,
            kvf_log_key(key, sizeof key, r->request_id.p, r->request_id.len),
            p.layout->decl.rank, g->generation, p.n_tokens, p.layout->number,
            p.ttl_ms);
    return 0;
}

static bool refused(struct kvf_call *call)
{
    if (call->s->drain.active)
        kvf_call_reply(call, KVF_SHUTTING_DOWN,
                       "the daemon is draining and publishes nothing");
    else
        return kvf_call_no_events(call, call->req->u.publish.notify);
    return true;
}

void kvf_op_publish(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    const struct kvf_req_publish *r = &call->req->u.publish;
    struct kvf_session *ss;
    struct kvf_mpw *w;
    struct kvf_id tag;
    struct kvf_why why;

    if (refused(call))
        return;
    ss = kvf_call_memory(call);
    if (ss == NULL)
        return;
    if (publish(call, ss, &tag, &why) < 0) {
        kvf_call_why(call, &why);
        return;
    }
    /* Pulls that waited for it come first. */
    kvf_store_settle(kvf_blocks_store(s->blocks));
    kvf_reply_begin(s, &call->to, KVF_OK, NULL);
    w = kvf_reply_key(s, "handle");
    kvf_mpw_map(w, 5);
    kvf_mpw_str(w, "request_id");
    kvf_mpw_strn(w, r->request_id.p, r->request_id.len);
    kvf_mpw_kv_bin(w, "tag", tag.b, KVF_ID_LEN);
    kvf_mpw_kv_str(w, "source_host", s->host);
    kvf_mpw_kv_u64(w, "source_port", s->peer_port);
    kvf_mpw_kv_bin(w, "incarnation", s->incarnation.b, KVF_ID_LEN);
    (void)kvf_reply_send(s, &call->to, NULL, 0, 0);
}
