/* Claims: one reader of one generation each.
 *
 * new -> done or abort (counted at once) -> io 0 (memory unpinned, freed).
 * Ids count up and are found by hash while the claim has not ended. Aborted
 * claims are remembered for a while (a ring with a small hash over it), for a
 * DONE that was under way when its session was lost; only as long as their
 * generation is live, since afterwards there is nothing to count. */
#include "store/store_private.h"

#include <stdlib.h>

static void pin(struct kvf_gen_private *p)
{
    for (unsigned i = 0; i < p->n_bufs; i++)
        kvf_buffer_pin(p->bufs[i]);
    for (unsigned i = 0; i < p->n_regions; i++)
        kvf_region_pin(p->regions[i]);
}

static void unpin(struct kvf_gen_private *p)
{
    for (unsigned i = 0; i < p->n_bufs; i++)
        kvf_buffer_unpin(p->bufs[i]);
    for (unsigned i = 0; i < p->n_regions; i++)
        kvf_region_unpin(p->regions[i]);
}

static struct kvf_id new_token(struct kvf_store *st)
{
    if (st->n_tokens == 0) {
        kvf_random_bytes(st->tokens, sizeof st->tokens);
        st->n_tokens = sizeof st->tokens / sizeof st->tokens[0];
    }
    return st->tokens[--st->n_tokens];
}

struct kvf_claim *kvf_claim_new(struct kvf_gen *g)
{
    struct kvf_gen_private *gen = g->priv;
    struct kvf_store *st = gen->st;
    struct kvf_claim_private *p;

    if (HASH_CNT(hh, st->claims) >= st->conf.max_claims)
        return NULL;
    p = calloc(1, sizeof *p);
    if (p == NULL)
        return NULL;
    p->c.id = st->next_claim;
    /* Ids are ours and count up: they spread over the buckets as they are. */
    HASH_ADD_KEYPTR_BYHASHVALUE(hh, st->claims, &p->c.id, sizeof p->c.id,
                                (unsigned)p->c.id, p);
    if (p->hh.tbl == NULL) {
        free(p);
        return NULL;
    }
    st->next_claim++;
    p->c.token = new_token(st);
    p->c.gen = g;
    p->c.priv = p;
    kvf_list_init(&p->c.holder_node);
    kvf_list_init(&p->gen_node);
    kvf_list_push_back(&gen->claims, &p->gen_node);
    g->n_claims++;
    st->stats->claims++;
    pin(gen);
    return &p->c;
}

void kvf_claim_free(struct kvf_claim_private *p)
{
    struct kvf_gen_private *gen = p->c.gen->priv;

    kvf_list_unlink(&p->gen_node);
    free(p);
    unpin(gen);
}

struct kvf_claim *kvf_claim_find(const struct kvf_store *st, uint64_t id)
{
    struct kvf_claim_private *p = NULL;

    HASH_FIND_BYHASHVALUE(hh, st->claims, &id, sizeof id, (unsigned)id, p);
    return p != NULL ? &p->c : NULL;
}

/* ---- the ring of aborted claims ----------------------------------------- */

static uint16_t *late_head(struct kvf_store *st, uint64_t id)
{
    return &st->late_heads[id % KVF_LATE_RING];
}

static void late_drop(struct kvf_store *st, struct kvf_late *e)
{
    uint16_t *link = late_head(st, e->id);

    while (&st->late[*link - 1] != e)
        link = &st->late[*link - 1].next;
    *link = e->next;
    kvf_list_unlink(&e->gen_node);
    e->gen = NULL;
}

static void late_add(struct kvf_gen_private *gen, uint64_t id,
                     const struct kvf_reader *reader)
{
    struct kvf_store *st = gen->st;
    unsigned i = st->late_next++ % KVF_LATE_RING;
    struct kvf_late *e = &st->late[i];
    uint16_t *head = late_head(st, id);

    if (e->gen != NULL)
        late_drop(st, e);
    e->id = id;
    e->gen = gen;
    e->reader = *reader;
    e->next = *head;
    *head = (uint16_t)(i + 1);
    kvf_list_push_back(&gen->late, &e->gen_node);
}

void kvf_late_forget(struct kvf_gen_private *p)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&p->late)) != NULL)
        late_drop(p->st, kvf_container_of(n, struct kvf_late, gen_node));
}

/* ---- the end of a claim ------------------------------------------------- */

/* ---- readers by name ---------------------------------------------------- */

static struct kvf_tally *tally_of(struct kvf_gen_private *p,
                                  const struct kvf_reader *r)
{
    struct kvf_tally *more;

    for (unsigned i = 0; i < p->n_tallies; i++)
        if (p->tallies[i].kind == r->kind)
            return &p->tallies[i];
    if (r->of == 0 || p->n_tallies == KVF_TALLIES_MAX)
        return NULL;
    more = reallocarray(p->tallies, p->n_tallies + 1u, sizeof *more);
    if (more == NULL)
        return NULL;
    p->tallies = more;
    more[p->n_tallies] = (struct kvf_tally){.kind = r->kind, .of = r->of};
    return &more[p->n_tallies++];
}

/* What the tallies say of all kinds that read: those of whom one has read, or
 * may be about to. */
static void recount(struct kvf_gen *g)
{
    const struct kvf_gen_private *p = g->priv;

    g->readers = g->readers_done = 0;
    for (unsigned i = 0; i < p->n_tallies; i++) {
        const struct kvf_tally *t = &p->tallies[i];

        if (t->n == 0 && t->live == 0)
            continue;
        g->readers += t->of;
        g->readers_done += t->n < t->of ? t->n : t->of;
    }
}

void kvf_claim_consumer(struct kvf_claim *c, uint64_t kind, uint32_t consumer,
                        uint64_t of)
{
    const struct kvf_reader r = {kind, of, consumer};
    struct kvf_tally *t = tally_of(c->gen->priv, &r);

    if (t == NULL)
        return; /* it reads without being counted */
    c->priv->reader = r;
    t->live++;
    recount(c->gen);
}

/* Once, among its kind. */
static void add_reader(struct kvf_tally *t, uint32_t who)
{
    for (unsigned i = 0; i < t->n; i++)
        if (t->who[i] == who)
            return;
    if (t->n == t->cap) {
        unsigned cap = t->cap == 0 ? 16 : 2 * t->cap;
        uint32_t *more = reallocarray(t->who, cap, sizeof *more);

        if (more == NULL)
            return; /* the time to live ends it then */
        t->who = more;
        t->cap = cap;
    }
    t->who[t->n++] = who;
}

/* A claim has ended, done or not. Have all read who shall? */
static void count_reader(struct kvf_gen *g, const struct kvf_reader *r,
                         bool was_live, bool done)
{
    if (g->by_consumer) {
        struct kvf_tally *t = r->of != 0 ? tally_of(g->priv, r) : NULL;

        if (t == NULL)
            return;
        t->live -= was_live;
        if (done)
            add_reader(t, r->who);
        recount(g);
    } else if (done) {
        g->readers_done++;
    }
    if (!g->retired && g->readers_done != 0 && g->readers != 0 &&
        g->readers_done >= g->readers)
        kvf_gen_retire(g, KVF_RETIRE_CONSUMED, NULL, 0, 0);
}

void kvf_tallies_free(struct kvf_gen_private *p)
{
    for (unsigned i = 0; i < p->n_tallies; i++)
        free(p->tallies[i].who);
    free(p->tallies);
}

/* The claim no longer counts and is not found any more. */
static void end(struct kvf_claim *c)
{
    struct kvf_claim_private *p = c->priv;
    struct kvf_gen_private *gen = c->gen->priv;
    struct kvf_store *st = gen->st;

    c->ended = true;
    HASH_DELETE(hh, st->claims, p);
    kvf_list_unlink(&c->holder_node);
    c->gen->n_claims--;
    gen->n_held++;
}

/* Lets the memory go if nothing touches it any more. */
static void release(struct kvf_claim *c)
{
    struct kvf_gen_private *gen = c->gen->priv;

    if (!c->ended || c->io != 0)
        return;
    gen->n_held--;
    kvf_claim_free(c->priv);
    kvf_gen_settle(gen);
}

void kvf_claim_done(struct kvf_claim *c)
{
    struct kvf_gen *g = c->gen;

    if (c->ended)
        return;
    end(c);
    g->priv->st->stats->claims_done++;
    count_reader(g, &c->priv->reader, true, true);
    release(c);
}

void kvf_claim_abort(struct kvf_claim *c)
{
    struct kvf_gen *g = c->gen;

    if (c->ended)
        return;
    end(c);
    g->priv->st->stats->claims_aborted++;
    count_reader(g, &c->priv->reader, true, false);
    if (!g->retired) {
        late_add(g->priv, c->id, &c->priv->reader);
        kvf_waiters_serve(g->priv->key);
    }
    release(c);
}

void kvf_claim_io_begin(struct kvf_claim *c)
{
    c->io++;
}

void kvf_claim_io_end(struct kvf_claim *c)
{
    c->io--;
    release(c);
}

void kvf_store_late_done(struct kvf_store *st, uint64_t claim_id)
{
    unsigned i = *late_head(st, claim_id);

    while (i != 0 && st->late[i - 1].id != claim_id)
        i = st->late[i - 1].next;
    if (i == 0)
        return;
    struct kvf_gen *g = &st->late[i - 1].gen->g;
    struct kvf_reader reader = st->late[i - 1].reader;

    late_drop(st, &st->late[i - 1]);
    if (kvf_gen_has_reader(g))
        count_reader(g, &reader, false, true);
}

/* ---- where the bytes are ------------------------------------------------ */

/* Index of the segment in which `offset` lies. */
static unsigned seg_at(const struct kvf_gen *g, uint64_t offset)
{
    const uint64_t *starts = g->priv->starts;
    unsigned lo = 0, hi = g->n_segs;

    while (hi - lo > 1) {
        unsigned mid = lo + (hi - lo) / 2;

        if (starts[mid] <= offset)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

int kvf_claim_iov(const struct kvf_claim *c, uint64_t offset, uint64_t length,
                  struct iovec *iov, unsigned *n, struct kvf_why *why)
{
    const struct kvf_gen *g = c->gen;
    unsigned used = 0;

    if (offset > g->size || length > g->size - offset)
        return kvf_fail(why, KVF_INVALID,
                        "range outside of what the claim covers");
    for (unsigned i = seg_at(g, offset); length != 0 && used < *n; i++) {
        uint64_t skip = offset - g->priv->starts[i];
        uint64_t piece = g->segs[i].length - skip;

        if (piece > length)
            piece = length;
        iov[used++] = (struct iovec){kvf_seg_ptr(&g->segs[i]) + skip, piece};
        offset += piece;
        length -= piece;
    }
    *n = used;
    return 0;
}
