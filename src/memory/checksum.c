#include "memory/checksum.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* Bytes hashed between two looks at the clock: about 20 us. */
#define PIECE (256u << 10)

static bool all_done(const struct kvf_checksum *c)
{
    return c->at == c->n_iov;
}

static bool run(struct kvf_slice *sl, uint64_t budget_ns)
{
    struct kvf_checksum *c = kvf_container_of(sl, struct kvf_checksum, slice);
    uint64_t end = kvf_sched_clock(c->sched) + budget_ns;

    while (!all_done(c)) {
        const struct iovec *v = &c->iov[c->at];
        size_t n = v->iov_len - c->pos;

        if (n > PIECE)
            n = PIECE;
        XXH3_64bits_update(c->state, (const uint8_t *)v->iov_base + c->pos, n);
        c->pos += n;
        if (c->pos == v->iov_len) {
            c->at++;
            c->pos = 0;
        }
        if (kvf_sched_clock(c->sched) >= end)
            break;
    }
    if (!all_done(c))
        return true;
    kvf_task_post(c->sched, &c->finish);
    return false;
}

static void finish(struct kvf_task *t)
{
    struct kvf_checksum *c = kvf_container_of(t, struct kvf_checksum, finish);

    c->value = XXH3_64bits_digest(c->state);
    kvf_checksum_stop(c);
    c->done(c, c->value);
}

int kvf_checksum_start(struct kvf_checksum *c, struct kvf_sched *sched,
                       const struct iovec *iov, unsigned n_iov,
                       void (*done)(struct kvf_checksum *c, uint64_t value),
                       struct kvf_why *why)
{
    *c = (struct kvf_checksum){.sched = sched, .n_iov = n_iov, .done = done};
    c->iov = malloc(n_iov * sizeof *iov);
    c->state = XXH3_createState();
    if (c->iov == NULL || c->state == NULL) {
        free(c->iov);
        XXH3_freeState(c->state);
        *c = (struct kvf_checksum){0};
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a checksum");
    }
    memcpy(c->iov, iov, n_iov * sizeof *iov);
    XXH3_64bits_reset(c->state);
    kvf_slice_init(&c->slice, run);
    kvf_task_init(&c->finish, finish);
    c->running = true;
    kvf_slice_start(sched, &c->slice);
    return 0;
}

void kvf_checksum_stop(struct kvf_checksum *c)
{
    if (!c->running)
        return;
    c->running = false;
    kvf_slice_stop(&c->slice);
    kvf_task_cancel(&c->finish);
    free(c->iov);
    XXH3_freeState(c->state);
    c->iov = NULL;
    c->state = NULL;
}
