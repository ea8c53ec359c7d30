/* A store over a real pool and buffer table, with a clock of its own. */
#ifndef KVF_TESTS_STORE_FIXTURE_H
#define KVF_TESTS_STORE_FIXTURE_H

#include "base/log.h"
#include "store/store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FX_POOL (4ull << 20)

struct fx {
    uint64_t now_ns;
    struct kvf_sched sched;
    struct kvf_stats stats;
    struct kvf_segment seg;
    struct kvf_pool *pool;
    struct kvf_buffers *bufs;
    struct kvf_store *st;
    unsigned retired[KVF_RETIRE_REASONS];
    uint64_t last_generation, last_readers_done;
    void (*on_retired)(void *arg, const struct kvf_gen *gen,
                       enum kvf_retire reason);
    void *on_retired_arg;
};

static uint64_t fx_clock(void *arg)
{
    return ((struct fx *)arg)->now_ns;
}

static void fx_retired(void *arg, const struct kvf_gen *gen,
                       enum kvf_retire reason)
{
    struct fx *f = arg;

    f->retired[reason]++;
    f->last_generation = gen->generation;
    f->last_readers_done = gen->readers_done;
    if (f->on_retired != NULL)
        f->on_retired(f->on_retired_arg, gen, reason);
}

static inline void fx_open(struct fx *f, const struct kvf_store_conf *conf)
{
    const struct kvf_store_ops ops = {.on_retired = fx_retired};

    memset(f, 0, sizeof *f);
    /* Built lines still reach taps; nobody reads them here. */
    assert_int_equal(kvf_log_open("/dev/null", KVF_LOG_INFO, NULL), 0);
    f->now_ns = KVF_NS_PER_S;
    kvf_sched_init(&f->sched, fx_clock, f);
    f->seg.base = aligned_alloc(4096, FX_POOL);
    f->seg.size = FX_POOL;
    assert_non_null(f->seg.base);
    f->pool = kvf_pool_create(4096, FX_POOL, NULL);
    f->bufs = kvf_buffers_create(&f->seg, f->pool, 1, NULL);
    f->st = kvf_store_create(&f->sched, &f->stats, conf, &ops, f, 100, NULL);
    assert_non_null(f->st);
}

static inline void fx_all_free(struct fx *f)
{
    struct kvf_buffer_gauges g;

    kvf_buffers_gauges(f->bufs, &g);
    assert_int_equal(g.buffers, 0);
    assert_int_equal(g.free, g.size);
    assert_int_equal(g.largest_free, g.size);
}

static inline void fx_close(struct fx *f)
{
    kvf_store_destroy(f->st);
    fx_all_free(f);
    kvf_buffers_destroy(f->bufs);
    kvf_pool_destroy(f->pool);
    kvf_sched_fini(&f->sched);
    free(f->seg.base);
}

static inline void fx_check(struct fx *f)
{
    struct kvf_why why = {0};

    if (kvf_store_check(f->st, &why) != 0)
        fail_msg("%s", why.text);
}

static inline void fx_settle(struct fx *f)
{
    while (kvf_sched_turn(&f->sched))
        ;
    fx_check(f);
}

static inline void fx_pass(struct fx *f, uint64_t ms)
{
    f->now_ns += ms * KVF_NS_PER_MS;
    fx_settle(f);
}

static inline struct kvf_buffer *fx_buffer(struct fx *f, uint64_t size)
{
    struct kvf_buffer *b;

    assert_int_equal(
        kvf_buffer_alloc(f->bufs, size, KVF_BUF_FILLING, f, &b, NULL), 0);
    return b;
}

static inline const struct kvf_gen *fx_put(struct fx *f, const char *key,
                                           uint64_t readers, uint64_t ttl_ms)
{
    struct kvf_buffer *b = fx_buffer(f, 100);
    struct kvf_seg seg = {.buffer = b, .offset = b->offset, .length = 100};
    struct kvf_put put = {.key = key,
                          .key_len = strlen(key),
                          .segs = &seg,
                          .n_segs = 1,
                          .ttl_ms = ttl_ms,
                          .readers = readers};
    const struct kvf_gen *g = NULL;
    struct kvf_why why = {0};

    if (kvf_store_put(f->st, &put, &g, &why) != 0)
        fail_msg("put: %s", why.text);
    fx_check(f);
    return g;
}

#endif
