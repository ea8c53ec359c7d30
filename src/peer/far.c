/* Layouts of other daemons' engines, and what one of them and one of ours make
 * of each other.
 *
 * Happy path: LAYOUT comes once for a connection, before the first message that
 * names it; the pair of it and one of ours is made at the first use and kept.
 * At the bound the one that was not used for longest goes; who names it then is
 * told that it is not known, and it is sent again. Failure modes: too many in
 * use (BUSY); memory; pairs that do not fit keep the reason
 * and are logged once, field by field. */
#include "peer/peers_private.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIFF_LINES 32u

/* ---- far layouts -------------------------------------------------------- */

static void pair_free(struct kvf_pair *p)
{
    kvf_list_unlink(&p->far_node);
    kvf_list_unlink(&p->own_node);
    kvf_match_free(&p->match);
    free(p);
}

struct kvf_far *kvf_far_hold(struct kvf_far *f)
{
    f->refs++;
    return f;
}

void kvf_far_release(struct kvf_far *f)
{
    struct kvf_list *n;

    if (--f->refs != 0)
        return;
    while ((n = kvf_list_first(&f->pairs)) != NULL)
        pair_free(kvf_container_of(n, struct kvf_pair, far_node));
    for (unsigned i = 0; f->maps != NULL && i < f->n_regions; i++)
        if (f->maps[i] != NULL)
            kvf_map_release(f->maps[i]);
    kvf_side_free(&f->side);
    for (unsigned i = 0; f->keys != NULL && i < f->n_regions; i++)
        free(f->keys[i]);
    free(f->keys);
    free(f->maps);
    free(f->length);
    free(f->base);
    free(f->spaces);
    free(f);
}

struct kvf_far *kvf_far_find(struct kvf_far *table, uint64_t number)
{
    struct kvf_far *f;

    HASH_FIND(hh, table, &number, sizeof number, f);
    return f;
}

struct kvf_far *kvf_far_use(struct kvf_far **table, uint64_t number)
{
    struct kvf_far *f = kvf_far_find(*table, number);

    if (f == NULL || f->hh.next == NULL)
        return f;
    HASH_DEL(*table, f); /* the table is in the order of use */
    HASH_ADD(hh, *table, number, sizeof f->number, f);
    if (f->hh.tbl != NULL)
        return f;
    f->gone = true; /* out of memory: as if it had not been told */
    kvf_far_release(f);
    return NULL;
}

static void drop(struct kvf_far **table, struct kvf_far *f)
{
    HASH_DEL(*table, f);
    f->gone = true;
    kvf_far_release(f);
}

bool kvf_fars_full(struct kvf_far *table)
{
    struct kvf_far *f, *next;

    if (HASH_COUNT(table) < KVF_FARS_MAX)
        return false;
    HASH_ITER (hh, table, f, next)
        if (f->refs == 1)
            return false;
    return true;
}

/* Room for one more. */
static bool make_room(struct kvf_far **table, struct kvf_stats *stats)
{
    struct kvf_far *f, *next;

    if (HASH_COUNT(*table) < KVF_FARS_MAX)
        return true;
    HASH_ITER (hh, *table, f, next)
        if (f->refs == 1) {
            stats->layouts_evicted++;
            drop(table, f);
            return true;
        }
    stats->layouts_refused++;
    return false;
}

int kvf_far_add(struct kvf_far **table, struct kvf_peer_msg *m,
                struct kvf_stats *stats)
{
    struct kvf_peer_layout *l = &m->u.layout;
    struct kvf_far *f;

    if (kvf_far_find(*table, l->number) != NULL)
        return -KVF_EXISTS;
    if (!make_room(table, stats))
        return -KVF_BUSY;
    f = calloc(1, sizeof *f);
    if (f != NULL)
        f->base = calloc(l->n_regions + 1u, sizeof *f->base);
    if (f == NULL || f->base == NULL) {
        free(f);
        return -KVF_NO_SPACE;
    }
    f->number = l->number;
    f->rank = l->rank;
    f->n_regions = l->n_regions;
    f->refs = 1;
    kvf_list_init(&f->pairs);
    for (unsigned i = 0; i < l->n_regions; i++) {
        f->base[i] = f->size;
        f->size += l->length[i];
    }
    HASH_ADD(hh, *table, number, sizeof f->number, f);
    if (f->hh.tbl == NULL) {
        free(f->base);
        free(f);
        return -KVF_NO_SPACE;
    }
    f->side = l->decl.side;
    memset(&l->decl.side, 0, sizeof l->decl.side);
    f->length = l->length;
    l->length = NULL;
    if (l->n_spaces != 0) {
        f->spaces = l->spaces;
        l->spaces = NULL;
    }
    return 0;
}

void kvf_far_drop(struct kvf_far **table, uint64_t number)
{
    struct kvf_far *f = kvf_far_find(*table, number);

    if (f != NULL)
        drop(table, f);
}

void kvf_far_drop_all(struct kvf_far **table)
{
    struct kvf_far *f, *next;

    HASH_ITER (hh, *table, f, next)
        drop(table, f);
}

bool kvf_far_map(struct kvf_far *f, struct kvf_map_cache *maps)
{
    if (f->maps != NULL)
        return true;
    if (f->spaces == NULL)
        return false;
    f->maps = calloc(f->n_regions + 1u, sizeof(struct kvf_mapping *));
    if (f->maps == NULL)
        return false;
    for (unsigned i = 0; i < f->n_regions; i++) {
        const struct kvf_peer_space *s = &f->spaces[i];
        const struct kvf_map_expect e = {
            .size = s->size, .has_inode = true, .dev = s->dev, .ino = s->ino};

        if (kvf_map_open(maps, s->path, &e, &f->maps[i], NULL) == 0)
            continue;
        f->maps[i] = NULL;
        for (unsigned k = 0; k < i; k++)
            kvf_map_release(f->maps[k]);
        free(f->maps);
        f->maps = NULL;
        free(f->spaces); /* not tried again */
        f->spaces = NULL;
        return false;
    }
    return true;
}

/* ---- pairs -------------------------------------------------------------- */

struct diff_log {
    const char *who;
    const char *role;
};

static void log_difference(void *arg, const char *text)
{
    const struct diff_log *d = arg;

    kvf_log(KVF_LOG_WARN, "KVF LAYOUT", "%s %s differs: %s", d->who, d->role,
            text);
}

static void log_refused(const struct kvf_pair *p, const char *who)
{
    struct diff_log d = {who, p->far_sends ? "sender" : "receiver"};
    const struct kvf_side *ps =
        p->far_sends ? &p->far->side : &p->own->decl.side;
    const struct kvf_side *ds =
        p->far_sends ? &p->own->decl.side : &p->far->side;

    kvf_log(KVF_LOG_WARN, "KVF LAYOUT", "%s %s refused: %s: %s", who, d.role,
            kvf_refuse_name(p->no.kind), p->no.text);
    (void)kvf_side_diff(ps, ds, DIFF_LINES, log_difference, &d);
}

struct kvf_pair *kvf_pair_of(struct kvf_far *far, struct kvf_layout *own,
                             bool far_sends, const char *who)
{
    struct kvf_pair *p;

    kvf_list_for_each (n, &far->pairs) {
        p = kvf_container_of(n, struct kvf_pair, far_node);
        if (p->own == own && p->far_sends == far_sends)
            return p;
    }
    p = calloc(1, sizeof *p);
    if (p == NULL)
        return NULL;
    p->far = far;
    p->own = own;
    p->far_sends = far_sends;
    p->rc = far_sends
                ? kvf_match_make(&far->side, far->rank, &own->decl.side,
                                 own->decl.rank, &p->match, &p->no)
                : kvf_match_make(&own->decl.side, own->decl.rank, &far->side,
                                 far->rank, &p->match, &p->no);
    kvf_list_init(&p->far_node);
    kvf_list_init(&p->own_node);
    if (p->rc == -(int)KVF_NO_SPACE) {
        pair_free(p);
        return NULL;
    }
    kvf_list_push_back(&far->pairs, &p->far_node);
    kvf_list_push_back(&own->pairs, &p->own_node);
    if (p->rc < 0)
        log_refused(p, who);
    return p;
}

void kvf_pairs_forget(struct kvf_layout *own)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&own->pairs)) != NULL)
        pair_free(kvf_container_of(n, struct kvf_pair, own_node));
}

/* ---- telling ------------------------------------------------------------ */

bool kvf_told_new(struct kvf_told *t, uint64_t number)
{
    for (unsigned i = 0; i < t->n; i++)
        if (t->numbers[i] == number)
            return false;
    if (t->n == t->cap) {
        unsigned cap = t->cap == 0 ? 8 : 2 * t->cap;
        uint64_t *more = realloc(t->numbers, cap * sizeof *more);

        if (more == NULL)
            return true; /* told again next time: harmless */
        t->numbers = more;
        t->cap = cap;
    }
    t->numbers[t->n++] = number;
    return true;
}

bool kvf_told_drop(struct kvf_told *t, uint64_t number)
{
    for (unsigned i = 0; i < t->n; i++)
        if (t->numbers[i] == number) {
            t->numbers[i] = t->numbers[--t->n];
            return true;
        }
    return false;
}

void kvf_told_clear(struct kvf_told *t)
{
    free(t->numbers);
    memset(t, 0, sizeof *t);
}

int kvf_layout_msg(struct kvf_peer_msg *m, const struct kvf_layout *l,
                   bool places)
{
    struct kvf_peer_layout *out = &m->u.layout;
    unsigned n = l->decl.n_regions;

    out->number = l->number;
    out->side = &l->decl.side;
    out->rank = l->decl.rank;
    out->length = calloc(n + 1u, sizeof *out->length);
    out->spaces = calloc(n + 1u, sizeof *out->spaces);
    if (out->length == NULL || out->spaces == NULL) {
        kvf_layout_msg_free(m);
        return -KVF_NO_SPACE;
    }
    out->n_regions = n;
    out->n_spaces = places ? n : 0;
    for (unsigned i = 0; i < n; i++) {
        const struct kvf_region *r = l->regions[i];
        struct kvf_peer_space *s = &out->spaces[i];

        out->length[i] = r->size;
        snprintf(s->path, sizeof s->path, "%s", r->path);
        s->dev = r->map->dev;
        s->ino = r->map->ino;
        s->size = r->map->size;
    }
    return 0;
}

void kvf_layout_msg_free(struct kvf_peer_msg *m)
{
    free(m->u.layout.length);
    free(m->u.layout.spaces);
    m->u.layout.length = NULL;
    m->u.layout.spaces = NULL;
}

void kvf_peers_layout_end(void *arg, struct kvf_layout *l)
{
    struct kvf_peers *ps = arg;
    struct kvf_peer *p, *next_peer;
    struct kvf_guest *g, *next_guest;
    struct kvf_peer_msg m;

    HASH_ITER (hh, ps->peers, p, next_peer) {
        if (!kvf_told_drop(&p->told, l->number) || p->state != KVF_PEER_UP)
            continue;
        kvf_peers_head(ps, &m, KVF_PEER_LAYOUT_GONE, &p->incarnation);
        m.u.layout_gone.number = l->number;
        kvf_peer_send(p, &m);
    }
    HASH_ITER (hh, ps->guests, g, next_guest) {
        /* A publication that outlives its session is told anew, with keys. */
        kvf_told_drop(&g->told_keys, l->number);
        if (!kvf_told_drop(&g->told, l->number) || !g->up)
            continue;
        kvf_peers_head(ps, &m, KVF_PEER_LAYOUT_GONE, &g->incarnation);
        m.u.layout_gone.number = l->number;
        kvf_guest_answer(g, &m, NULL, 0);
    }
}
