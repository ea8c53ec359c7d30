/* The model that the store is compared with: too simple to be wrong, arrays
 * scanned from the front. Used by test_store_model.c only. */
#ifndef KVF_TESTS_STORE_MODEL_H
#define KVF_TESTS_STORE_MODEL_H

#include "store_fixture.h"

#include "base/rng.h"

#define KEYS 6
#define GENS 4000
#define CLAIMS 4000
#define WAITERS 24
#define STEPS 3000

struct m_gen {
    unsigned key;
    uint64_t number, readers, done, ttl, due_ms, seq, bytes;
    unsigned live, held; /* claims: counting, and ended with io */
    bool retired, told;
    enum kvf_retire reason;
};

struct m_claim {
    struct m_gen *gen;
    struct kvf_claim *c; /* NULL until told */
    uint64_t id;
    bool ended, late;
    unsigned io;
};

struct m_tomb {
    bool set;
    uint64_t number, due_ms, seq, order;
    enum kvf_status status;
};

enum w_state { IDLE, PARKED, DUE };
struct m_waiter {
    struct kvf_waiter w;
    struct model *m;
    enum w_state state;
    unsigned key;
    uint64_t order; /* of parking, then of becoming due */
    enum kvf_status status;
    struct m_claim *claim;
};

struct model {
    struct fx f;
    struct kvf_rng rng;
    struct kvf_store_conf conf;
    uint64_t ms, seq, next_number;
    struct m_gen gens[GENS];
    struct m_claim claims[CLAIMS];
    unsigned n_gens, n_claims, n_told;
    struct m_tomb tombs[KEYS];
    struct m_waiter waiters[WAITERS];
};

static const char *const names[KEYS] = {"a:0_1", "a:1_2", "ab:0_1",
                                        "b:0_1", "b:1_2", "c"};

static uint64_t below(struct model *m, uint64_t n)
{
    return kvf_rng_below(&m->rng, n);
}

/* ---- the model ---------------------------------------------------------- */

static struct m_gen *m_live(struct model *m, unsigned key)
{
    for (unsigned i = 0; i < m->n_gens; i++)
        if (m->gens[i].key == key && !m->gens[i].retired)
            return &m->gens[i];
    return NULL;
}

static unsigned m_count_live(struct model *m)
{
    unsigned n = 0;

    for (unsigned k = 0; k < KEYS; k++)
        n += m_live(m, k) != NULL;
    return n;
}

static unsigned m_count_claims(struct model *m)
{
    unsigned n = 0;

    for (unsigned i = 0; i < m->n_claims; i++)
        n += !m->claims[i].ended;
    return n;
}

static bool m_has_reader(const struct m_gen *g)
{
    return g->readers == 0 || g->live + g->done < g->readers;
}

static struct m_waiter *m_first(struct model *m, int key, enum w_state state,
                                uint64_t after)
{
    struct m_waiter *best = NULL;

    for (unsigned i = 0; i < WAITERS; i++) {
        struct m_waiter *w = &m->waiters[i];

        if (w->state == state && (key < 0 || w->key == (unsigned)key) &&
            w->order > after && (best == NULL || w->order < best->order))
            best = w;
    }
    return best;
}

static void m_due(struct model *m, struct m_waiter *w, enum kvf_status status,
                  struct m_claim *c)
{
    w->state = DUE;
    w->order = ++m->seq;
    w->status = status;
    w->claim = c;
}

static struct m_claim *m_claim(struct model *m, struct m_gen *g)
{
    struct m_claim *c;

    if (m_count_claims(m) >= m->conf.max_claims)
        return NULL;
    assert_true(m->n_claims < CLAIMS);
    c = &m->claims[m->n_claims++];
    *c = (struct m_claim){.gen = g};
    g->live++;
    return c;
}

static void m_serve(struct model *m, unsigned key)
{
    struct m_gen *g = m_live(m, key);
    struct m_waiter *w;
    uint64_t at = 0, stop = m->seq;

    while (g != NULL && (w = m_first(m, (int)key, PARKED, at)) != NULL &&
           w->order <= stop) {
        bool bound = w->w.has_generation;

        at = w->order;
        if (bound && w->w.generation < g->number) {
            m_due(m, w, KVF_STALE, NULL);
        } else if ((!bound || w->w.generation == g->number) &&
                   m_has_reader(g)) {
            struct m_claim *c = m_claim(m, g);

            m_due(m, w, c != NULL ? KVF_OK : KVF_BUSY, c);
        }
    }
}

static void m_tomb(struct model *m, unsigned key, enum kvf_status status,
                   uint64_t number, uint64_t ttl)
{
    struct m_tomb *t = &m->tombs[key];
    struct m_waiter *w;
    uint64_t at = 0;

    *t = (struct m_tomb){.set = true,
                         .number = number,
                         .due_ms = m->ms + ttl,
                         .seq = ++m->seq,
                         .status = status};
    while ((w = m_first(m, (int)key, PARKED, at)) != NULL) {
        at = w->order;
        if (!w->w.has_generation || w->w.generation <= number)
            m_due(m, w, status, NULL);
    }
    for (;;) {
        struct m_tomb *oldest = NULL;
        unsigned n = 0;

        for (unsigned k = 0; k < KEYS; k++) {
            struct m_tomb *o = &m->tombs[k];

            n += o->set;
            if (o->set && (oldest == NULL || o->seq < oldest->seq))
                oldest = o;
        }
        if (n <= m->conf.max_tombstones)
            return;
        oldest->set = false;
    }
}

static void m_retire(struct model *m, struct m_gen *g, enum kvf_retire reason,
                     uint64_t ttl)
{
    g->retired = true;
    g->reason = reason;
    if (reason == KVF_RETIRE_CONSUMED)
        m_tomb(m, g->key, KVF_CONSUMED, g->number, g->ttl);
    else if (reason == KVF_RETIRE_EXPIRED)
        m_tomb(m, g->key, KVF_EXPIRED, g->number, g->ttl);
    else if (reason == KVF_RETIRE_FAILED)
        m_tomb(m, g->key, KVF_FAILED, g->number, ttl);
    for (unsigned i = 0; i < m->n_claims; i++)
        if (m->claims[i].gen == g)
            m->claims[i].late = false;
}

static void m_read(struct model *m, struct m_gen *g)
{
    g->done++;
    if (!g->retired && g->readers != 0 && g->done >= g->readers)
        m_retire(m, g, KVF_RETIRE_CONSUMED, 0);
}

static void m_end(struct model *m, struct m_claim *c, bool done)
{
    c->ended = true;
    c->gen->live--;
    if (c->io != 0)
        c->gen->held++;
    if (done) {
        m_read(m, c->gen);
    } else if (!c->gen->retired) {
        c->late = true;
        m_serve(m, c->gen->key);
    }
}

/* What falls due now, in the order in which the timers were set. */
static void m_timers(struct model *m)
{
    for (;;) {
        struct m_gen *g = NULL;
        struct m_tomb *t = NULL;

        for (unsigned k = 0; k < KEYS; k++) {
            struct m_gen *live = m_live(m, k);

            if (live != NULL && live->due_ms <= m->ms &&
                (g == NULL || live->seq < g->seq))
                g = live;
            if (m->tombs[k].set && m->tombs[k].due_ms <= m->ms &&
                (t == NULL || m->tombs[k].seq < t->seq))
                t = &m->tombs[k];
        }
        if (g == NULL && t == NULL)
            return;
        if (t != NULL && (g == NULL || t->seq < g->seq))
            t->set = false;
        else
            m_retire(m, g, KVF_RETIRE_EXPIRED, 0);
    }
}
#endif
