/* Random sequences of everything the store can do, against a model that is too
 * simple to be wrong: arrays, scanned from the front. After every step the
 * store's own check, its gauges, the buffers' gauges and each answer must be
 * what the model says. Seeds are printed; argv[1] repeats one. */
#include "store_model.h"

/* ---- what comes up from the store --------------------------------------- */

static void answered(struct kvf_waiter *kw, struct kvf_claim *claim,
                     enum kvf_status status, const char *text)
{
    struct m_waiter *w = kvf_container_of(kw, struct m_waiter, w);

    assert_ptr_equal(m_first(w->m, -1, DUE, 0), w);
    assert_int_equal(status, w->status);
    assert_non_null(text);
    assert_int_equal(claim != NULL, w->claim != NULL);
    if (claim != NULL) {
        assert_int_equal(claim->gen->generation, w->claim->gen->number);
        assert_ptr_equal(kvf_claim_find(w->m->f.st, claim->id), claim);
        w->claim->c = claim;
        w->claim->id = claim->id;
    }
    w->state = IDLE;
}

static void retired(void *arg, const struct kvf_gen *gen,
                    enum kvf_retire reason)
{
    struct model *m = arg;

    for (unsigned i = 0; i < m->n_gens; i++) {
        struct m_gen *g = &m->gens[i];

        if (g->number != gen->generation)
            continue;
        assert_true(g->retired && !g->told && g->live + g->held == 0);
        assert_int_equal(g->reason, reason);
        assert_int_equal(g->done, gen->readers_done);
        assert_string_equal(gen->key, names[g->key]);
        g->told = true;
        m->n_told++;
        return;
    }
    fail_msg("generation never put");
}

/* ---- steps -------------------------------------------------------------- */

static void step_put(struct model *m)
{
    unsigned key = (unsigned)below(m, KEYS), n = 1 + (unsigned)below(m, 3);
    struct kvf_seg segs[3];
    struct kvf_buffer *b[2];
    struct m_gen *live = m_live(m, key), *g;
    const struct kvf_gen *out = NULL;
    struct kvf_put put = {.key = names[key],
                          .key_len = strlen(names[key]),
                          .segs = segs,
                          .n_segs = n,
                          .readers = below(m, 4),
                          .ttl_ms = 1 + below(m, 40),
                          .reject_duplicate = below(m, 3) == 0};
    int expect = 0, rc;

    assert_true(m->n_gens < GENS);
    for (unsigned i = 0; i < 2; i++)
        b[i] = fx_buffer(&m->f, 8192);
    for (unsigned i = 0; i < n; i++)
        segs[i] = (struct kvf_seg){.buffer = b[i % 2],
                                   .offset = b[i % 2]->offset + i * 100,
                                   .length = 50};
    if (live != NULL && put.reject_duplicate)
        expect = -KVF_EXISTS;
    else if (live == NULL && m_count_live(m) >= m->conf.max_keys)
        expect = -KVF_BUSY;
    rc = kvf_store_put(m->f.st, &put, &out, NULL);
    assert_int_equal(rc, expect);
    if (rc != 0 || n == 1)
        kvf_buffer_retire(b[1]);
    if (rc != 0) {
        kvf_buffer_retire(b[0]);
        return;
    }
    if (live != NULL)
        m_retire(m, live, KVF_RETIRE_REPLACED, 0);
    m->tombs[key].set = false;
    assert_int_equal(out->generation, m->next_number);
    g = &m->gens[m->n_gens++];
    *g = (struct m_gen){.key = key,
                        .number = m->next_number++,
                        .readers = put.readers,
                        .ttl = put.ttl_ms,
                        .due_ms = m->ms + put.ttl_ms,
                        .seq = ++m->seq,
                        .bytes = n == 1 ? 8192 : 16384};
    m_serve(m, key);
}

static void step_ask(struct model *m)
{
    unsigned key = (unsigned)below(m, KEYS);
    struct m_waiter *w = &m->waiters[below(m, WAITERS)];
    struct m_gen *g = m_live(m, key);
    struct m_tomb *t = &m->tombs[key];
    bool wait = below(m, 3) != 0, bound = below(m, 3) == 0;
    unsigned parked = 0;
    uint64_t at;
    struct m_claim *c = NULL;
    struct kvf_claim *got = NULL;
    int expect = -KVF_NOT_FOUND, rc;

    if (w->state != IDLE)
        return;
    at = (g != NULL ? g->number
          : t->set  ? t->number
                    : m->next_number) +
         below(m, 4) - 1;
    *w = (struct m_waiter){
        .w = {.has_generation = bound, .generation = at, .answer = answered},
        .m = m,
        .key = key};
    for (unsigned i = 0; i < WAITERS; i++)
        parked += m->waiters[i].state != IDLE;
    if (wait)
        expect = parked < m->conf.max_parked ? KVF_STORE_PARKED : -KVF_BUSY;
    if (g != NULL && bound && at < g->number)
        expect = -KVF_STALE;
    else if (g != NULL && (!bound || at == g->number) && m_has_reader(g)) {
        c = m_claim(m, g);
        expect = c != NULL ? 0 : -KVF_BUSY;
    } else if (g != NULL && (!bound || at == g->number) && !wait)
        expect = -KVF_BUSY;
    else if (g == NULL && t->set && (!bound || at <= t->number))
        expect = -(int)t->status;
    rc = kvf_store_ask(m->f.st, names[key], strlen(names[key]), &w->w, wait,
                       &got, NULL);
    assert_int_equal(rc, expect);
    if (rc == 0) {
        assert_int_equal(got->gen->generation, g->number);
        c->c = got;
        c->id = got->id;
    } else if (rc == KVF_STORE_PARKED) {
        w->state = PARKED;
        w->order = ++m->seq;
    }
}

static void step_claim(struct model *m)
{
    struct m_claim *c;
    unsigned tries = 0;

    do { /* mostly recent ones, the others have ended */
        uint64_t back = below(m, 30) + 1;

        if (m->n_claims < back || ++tries > 20)
            return;
        c = &m->claims[m->n_claims - back];
    } while (c->c == NULL || (c->ended && c->io == 0));
    if (c->io != 0 && below(m, 2) == 0) {
        kvf_claim_io_end(c->c);
        c->io--;
        if (c->ended && c->io == 0)
            c->gen->held--;
        return;
    }
    if (c->ended)
        return;
    switch (below(m, 3)) {
    case 0:
        kvf_claim_io_begin(c->c);
        c->io++;
        break;
    case 1:
        kvf_claim_done(c->c);
        m_end(m, c, true);
        break;
    default:
        kvf_claim_abort(c->c);
        m_end(m, c, false);
    }
    if (c->ended)
        assert_null(kvf_claim_find(m->f.st, c->id));
}

static void step_late(struct model *m)
{
    struct m_claim *c;
    uint64_t back = below(m, 12) + 1;

    if (m->n_claims < back)
        return;
    c = &m->claims[m->n_claims - back];
    if (c->c == NULL)
        return;
    kvf_store_late_done(m->f.st, c->id);
    if (c->late) {
        c->late = false;
        if (m_has_reader(c->gen))
            m_read(m, c->gen);
    }
}

static void step_fail(struct model *m)
{
    unsigned key = (unsigned)below(m, KEYS);
    struct m_gen *g = m_live(m, key);
    uint64_t ttl = 1 + below(m, 30);

    assert_int_equal(kvf_store_fail(m->f.st, names[key], strlen(names[key]),
                                    "why", 3, ttl, NULL),
                     0);
    if (g != NULL)
        m_retire(m, g, KVF_RETIRE_FAILED, ttl);
    else
        m_tomb(m, key, KVF_FAILED, m->next_number - 1, ttl);
}

static void step_cleanup(struct model *m)
{
    const char *id = below(m, 2) ? "a" : "b";
    bool edge = below(m, 2) != 0;
    uint64_t n = 0;

    for (unsigned k = 0; k < KEYS; k++) {
        struct m_gen *g = m_live(m, k);
        struct m_waiter *w;

        if (names[k][0] != id[0] || names[k][1] != ':' ||
            (edge && names[k][2] != '1'))
            continue;
        m->tombs[k].set = false;
        while ((w = m_first(m, (int)k, PARKED, 0)) != NULL)
            m_due(m, w, KVF_CANCELLED, NULL);
        if (g != NULL)
            m_retire(m, g, KVF_RETIRE_CLEANUP, 0);
        n += g != NULL;
    }
    assert_int_equal(kvf_store_cleanup(m->f.st, id, 1, edge, 1, 2), n);
}

static void step_unask(struct model *m)
{
    struct m_waiter *w = &m->waiters[below(m, WAITERS)];
    enum w_state was = w->state;

    w->state = IDLE;
    kvf_store_unask(m->f.st, &w->w);
    if (was == DUE && w->claim != NULL)
        m_end(m, w->claim, false);
}

static void step_time(struct model *m, uint64_t ms)
{
    do {
        m->ms++;
        m->f.now_ns += KVF_NS_PER_MS;
        m_timers(m);
        kvf_sched_turn(&m->f.sched);
    } while (ms-- > 1);
    assert_null(m_first(m, -1, DUE, 0));
}

/* ---- comparing ---------------------------------------------------------- */

static void compare(struct model *m)
{
    struct kvf_store_gauges g;
    struct kvf_buffer_gauges b;
    uint64_t published = 0, claimed = 0, draining = 0, old = 0;
    uint64_t tombs = 0, waiting = 0;

    fx_check(&m->f);
    for (unsigned i = 0; i < m->n_gens; i++) {
        const struct m_gen *x = &m->gens[i];
        unsigned users = x->live + x->held;

        if (x->retired && users != 0) {
            draining += x->bytes;
            old++;
        } else if (!x->retired) {
            *(users != 0 ? &claimed : &published) += x->bytes;
        }
    }
    for (unsigned k = 0; k < KEYS; k++)
        tombs += m->tombs[k].set;
    for (unsigned i = 0; i < WAITERS; i++)
        waiting += m->waiters[i].state != IDLE;
    kvf_store_gauges(m->f.st, &g);
    assert_int_equal(g.live, m_count_live(m));
    assert_int_equal(g.draining, old);
    assert_int_equal(g.tombstones, tombs);
    assert_int_equal(g.parked, waiting);
    assert_int_equal(g.claims, m_count_claims(m));
    kvf_buffers_gauges(m->f.bufs, &b);
    assert_int_equal(b.published, published);
    assert_int_equal(b.claimed, claimed);
    assert_int_equal(b.draining, draining);
    assert_int_equal(b.filling, 0);
}

static void step(struct model *m)
{
    uint64_t r = below(m, 100);

    if (r < 12)
        step_put(m);
    else if (r < 40)
        step_ask(m);
    else if (r < 70)
        step_claim(m);
    else if (r < 75)
        step_late(m);
    else if (r < 77)
        step_fail(m);
    else if (r < 79)
        step_cleanup(m);
    else if (r < 84)
        step_unask(m);
    else
        step_time(m, 1 + below(m, 6));
}

static void run(uint64_t seed)
{
    struct model *m = calloc(1, sizeof *m);
    struct kvf_store_gauges g;

    print_message("seed %llu\n", (unsigned long long)seed);
    kvf_rng_seed(&m->rng, seed);
    m->conf =
        (struct kvf_store_conf){.max_keys = 4 + (uint32_t)below(m, 3),
                                .max_tombstones = 2 + (uint32_t)below(m, 4),
                                .max_parked = 15,
                                .max_claims = 8 + (uint32_t)below(m, 8)};
    fx_open(&m->f, &m->conf);
    m->f.on_retired = retired;
    m->f.on_retired_arg = m;
    m->next_number = 100;
    for (unsigned i = 0; i < STEPS; i++) {
        step(m);
        compare(m);
    }
    for (unsigned i = 0; i < WAITERS; i++)
        kvf_store_unask(m->f.st, &m->waiters[i].w);
    for (unsigned i = 0; i < m->n_claims; i++) {
        struct m_claim *c = &m->claims[i];
        bool ended = c->ended;

        for (; c->io != 0; c->io--)
            kvf_claim_io_end(c->c);
        if (!ended && c->c != NULL)
            kvf_claim_abort(c->c);
    }
    m->f.on_retired = NULL;
    fx_pass(&m->f, 1000); /* every ttl and tombstone is over */
    fx_pass(&m->f, 1000);
    fx_all_free(&m->f);
    kvf_store_gauges(m->f.st, &g);
    assert_int_equal(g.keys, 0);
    assert_true(m->n_told > 50 && m->n_claims > 100);
    fx_close(&m->f);
    free(m);
}

static uint64_t given;

static void random_sequences(void **state)
{
    uint64_t seed = given;

    (void)state;
    if (given != 0) {
        run(given);
        return;
    }
    for (uint64_t i = 1; i <= 8; i++)
        run(i);
    kvf_random_bytes(&seed, sizeof seed);
    run(seed);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_sequences)};

    if (argc > 1)
        given = strtoull(argv[1], NULL, 10);
    return cmocka_run_group_tests_name("store_model", tests, NULL, NULL);
}
