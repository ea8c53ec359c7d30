/* The bodies of the messages about KV layouts, both ways: what one looks like,
 * that it is gone, who has one that fits (docs/PROTOCOL-PEER.md).
 *
 * Failure modes: -KVF_INVALID, -KVF_INTERNAL out of memory. Whether a layout
 * makes sense is kvf_match_make's to say; here every number is bounded and
 * every region named exists. */
#include "wire/peer_body.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- writing ------------------------------------------------------------ */

static void put_layout(struct kvf_mpw *w, const struct kvf_peer_layout *l)
{
    kvf_mpw_map(w, KVF_LAYOUT_PAIRS + 3);
    kvf_mpw_kv_u64(w, "number", l->number);
    kvf_layout_write(w, l->side, l->rank);
    kvf_mpw_str(w, "regions");
    kvf_mpw_array(w, l->n_regions);
    for (unsigned i = 0; i < l->n_regions; i++)
        kvf_mpw_u64(w, l->length[i]);
    kvf_body_put_spaces(w, l->spaces, l->n_spaces);
}

void kvf_peer_layout_put(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    switch ((unsigned)m->head.type) {
    case KVF_PEER_LAYOUT:
        put_layout(w, &m->u.layout);
        break;
    case KVF_PEER_LAYOUT_GONE:
        kvf_mpw_map(w, 1);
        kvf_mpw_kv_u64(w, "number", m->u.layout_gone.number);
        break;
    case KVF_PEER_LAYOUT_ASK:
        kvf_mpw_map(w, 2u + m->u.layout_ask.has_incarnation);
        kvf_mpw_kv_u64(w, "ask", m->u.layout_ask.ask);
        kvf_mpw_kv_u64(w, "layout", m->u.layout_ask.layout);
        if (m->u.layout_ask.has_incarnation)
            kvf_mpw_kv_bin(w, "incarnation", m->u.layout_ask.incarnation.b,
                           KVF_ID_LEN);
        break;
    default: /* LAYOUT_IS */
        kvf_mpw_map(w, 2);
        kvf_mpw_kv_u64(w, "ask", m->u.layout_is.ask);
        kvf_mpw_kv_u64(w, "layout", m->u.layout_is.layout);
    }
}

/* ---- reading ------------------------------------------------------------ */

/* Region i must be called i, so that the index says it all. */
static int check_regions(const struct kvf_peer_layout *l, struct kvf_why *why)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < l->decl.n_regions; i++)
        if (l->decl.regions[i] != i)
            return kvf_fail(why, KVF_INVALID,
                            "field views: region %" PRIu64 " is out of turn",
                            l->decl.regions[i]);
    if (l->decl.n_regions != l->n_regions ||
        (l->n_spaces != 0 && l->n_spaces != l->n_regions))
        return kvf_fail(why, KVF_INVALID,
                        "field regions: %u, but %u are used and %u placed",
                        l->n_regions, l->decl.n_regions, l->n_spaces);
    for (unsigned i = 0; i < l->n_regions; i++) {
        if (l->length[i] == 0 || l->length[i] > INT64_MAX - sum ||
            (l->n_spaces != 0 && l->length[i] > l->spaces[i].size))
            return kvf_fail(why, KVF_INVALID, "field regions[%u]: malformed",
                            i);
        sum += l->length[i];
    }
    return 0;
}

static void read_places(struct kvf_body *b, struct kvf_peer_layout *l)
{
    const msgpack_object_array *regions =
        kvf_body_array(b, "regions", KVF_LAYOUT_REGIONS);
    const msgpack_object_array *spaces =
        kvf_body_array(b, "spaces", KVF_LAYOUT_REGIONS);

    if (regions == NULL || spaces == NULL)
        return;
    l->length = kvf_body_elements(b, regions->size, sizeof *l->length);
    l->spaces = kvf_body_elements(b, spaces->size, sizeof *l->spaces);
    for (unsigned i = 0; b->rc == 0 && i < regions->size; i++) {
        if (regions->ptr[i].type == MSGPACK_OBJECT_POSITIVE_INTEGER)
            l->length[i] = regions->ptr[i].via.u64;
        else
            kvf_body_bad_element(b, "regions", i);
    }
    l->n_regions = regions->size;
    for (unsigned i = 0; b->rc == 0 && i < spaces->size; i++) {
        struct kvf_body in = {.map = &spaces->ptr[i], .why = b->why};

        kvf_body_space(&in, &l->spaces[i]);
        if (in.rc < 0)
            b->rc = kvf_fail_prefix(b->why, "field spaces[%u]", i);
    }
    l->n_spaces = spaces->size;
}

/* A sender has had its layout checked: odd words are not its engine's. */
static int check_words(const struct kvf_side *s, struct kvf_why *why)
{
    if (s->order < 0 || s->kv < 0)
        return kvf_fail(why, KVF_INVALID, "unknown page order or arrangement");
    for (unsigned g = 0; g < s->n_groups; g++)
        if (s->groups[g].kind < 0)
            return kvf_fail(why, KVF_INVALID, "unknown kind of group %u", g);
    for (unsigned y = 0; y < s->n_layers; y++)
        if (s->layers[y].kind < 0)
            return kvf_fail(why, KVF_INVALID, "unknown kind of layer %u", y);
    return 0;
}

static int add_regions(struct kvf_peer_layout *l, struct kvf_why *why)
{
    for (unsigned i = 0; i < l->n_regions; i++)
        if (kvf_side_add_region(&l->decl.side, 0, i, (int64_t)l->length[i]) < 0)
            return kvf_fail(why, KVF_INTERNAL, "out of memory");
    return 0;
}

static void read_layout(struct kvf_body *b, struct kvf_peer_layout *l)
{
    b->rc = kvf_layout_read(b->map, &l->decl, b->why);
    kvf_body_u64(b, "number", &l->number);
    read_places(b, l);
    if (b->rc == 0)
        b->rc = check_regions(l, b->why);
    if (b->rc == 0)
        b->rc = check_words(&l->decl.side, b->why);
    if (b->rc < 0)
        return;
    l->side = &l->decl.side;
    l->rank = l->decl.rank;
    b->rc = add_regions(l, b->why);
}

static void read_layout_ask(struct kvf_body *b, struct kvf_peer_layout_ask *a)
{
    kvf_body_u64(b, "ask", &a->ask);
    kvf_body_u64(b, "layout", &a->layout);
    a->has_incarnation = kvf_body_id_opt(b, "incarnation", &a->incarnation);
}

void kvf_peer_layout_read(struct kvf_body *b, struct kvf_peer_msg *m)
{
    switch ((unsigned)m->head.type) {
    case KVF_PEER_LAYOUT:
        read_layout(b, &m->u.layout);
        break;
    case KVF_PEER_LAYOUT_GONE:
        kvf_body_u64(b, "number", &m->u.layout_gone.number);
        break;
    case KVF_PEER_LAYOUT_ASK:
        read_layout_ask(b, &m->u.layout_ask);
        break;
    default: /* LAYOUT_IS */
        kvf_body_u64(b, "ask", &m->u.layout_is.ask);
        kvf_body_u64(b, "layout", &m->u.layout_is.layout);
    }
}

void kvf_peer_layout_done(struct kvf_peer_layout *l)
{
    kvf_layout_done(&l->decl);
    free(l->length);
    free(l->spaces);
}
