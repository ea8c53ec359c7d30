/* One batch of kvferry bench --mode initiator: blocks that are one range at the
 * target, moved by as few requests as the daemon's max_segments allows, all of
 * them at once. The batch is done when the last of them is.
 *
 * Failure modes: a request that fails takes its own blocks with it and no
 * others; the batch then has no latency, and its slot pauses. */
#include "pair.h"

#include "bench.h"

#include <stdlib.h>
#include <string.h>

uint64_t pair_batch_bytes(const struct pair *p)
{
    return p->block * p->batch;
}

unsigned pair_batch_parts(const struct pair *p)
{
    return (p->batch + p->part - 1) / p->part;
}

bool pair_batch_init(struct pair_slot *s, struct pair_run *run, unsigned nth)
{
    const struct pair *p = run->p;
    unsigned n = pair_batch_parts(p);

    s->run = run;
    s->nth = nth;
    s->seg = calloc(p->batch, sizeof *s->seg);
    s->parts = calloc(n, sizeof *s->parts);
    if (s->seg == NULL || s->parts == NULL)
        return false;
    for (unsigned i = 0; i < n; i++) {
        unsigned first = i * p->part, left = p->batch - first;

        s->parts[i] = (struct pair_part){
            .slot = s, .first = first, .n = left < p->part ? left : p->part};
    }
    return true;
}

void pair_batch_free(struct pair_slot *s)
{
    free(s->seg);
    free(s->parts);
}

/* ---- its blocks --------------------------------------------------------- */

/* A slot's blocks lie apart here, those of all slots between each other, as in
 * Mooncake's bench; at the target they are one range. With --cold both walk
 * through the whole memory. */
void pair_batch_lay_out(struct pair_slot *s)
{
    const struct pair *p = s->run->p;
    uint64_t bytes = pair_batch_bytes(p);

    for (unsigned i = 0; i < pair_batch_parts(p); i++)
        s->parts[i].done = false;
    s->offset = s->nth * bytes;
    if (p->cold)
        s->offset = s->run->moved++ % (p->buffer / bytes) * bytes;
    for (unsigned i = 0; i < p->batch; i++) {
        s->seg[i].id = s->run->local.id;
        s->seg[i].length = p->block;
        s->seg[i].offset = p->cold
                               ? s->offset + i * p->block
                               : ((uint64_t)i * p->depth + s->nth) * p->block;
    }
}

static uint8_t *block_at(const struct pair_slot *s, unsigned i)
{
    return (uint8_t *)s->run->local.data + s->seg[i].offset;
}

void pair_batch_fill(struct pair_slot *s)
{
    const struct pair *p = s->run->p;

    s->seed = p->write ? ++s->run->seed : s->run->seed;
    for (unsigned i = 0; i < p->batch; i++) {
        if (p->write)
            bench_fill_at(block_at(s, i), p->block, s->seed,
                          s->offset + i * p->block);
        else
            memset(block_at(s, i), 0xee, p->block); /* not what was there */
    }
}

/* ---- its requests ------------------------------------------------------- */

static void note(struct pair_run *run, const char *what, int status,
                 const char *message)
{
    if (run->r.failed + run->r.wrong == 0)
        snprintf(run->r.error, sizeof run->r.error, "%s: %s: %s", what,
                 kvferry_status_name(status), message);
}

static void failed(struct pair_part *part, const char *what, int status,
                   const char *message)
{
    struct pair_run *run = part->slot->run;

    note(run, what, status, message);
    run->r.failed++;
    run->r.failed_blocks += part->n;
}

static void count(struct pair_result *r, const struct pair_part *part,
                  const struct kvferry_timing *t)
{
    r->blocks += part->n;
    r->requests++;
    r->ask_us += t->lookup_us + t->wait_us;
    r->transfer_us += t->transfer_us;
    r->daemon_us += t->total_us;
}

/* The last of its requests has ended. */
static void batch_over(struct pair_slot *s, uint64_t now)
{
    struct pair_run *run = s->run;
    unsigned n = pair_batch_parts(run->p);
    uint64_t ms = 10ull << (s->failures < 7 ? s->failures : 7);
    bool all = true;

    s->busy = false;
    if (--run->busy == 0 && run->into != NULL)
        run->into->ns += now - run->busy_since;
    for (unsigned i = 0; i < n; i++)
        all &= s->parts[i].done;
    if (!all) {
        s->failures++;
        s->not_before = now + ms * 1000000;
        return;
    }
    s->failures = 0;
    if (run->into != NULL && !pair_result_add(run->into, now - s->t0)) {
        note(run, "figures", -KVF_INTERNAL, "out of memory");
        run->r.failed++;
    }
}

static void ended(struct kvferry *h, void *user, const struct kvferry_result *r)
{
    struct pair_part *part = user;
    struct pair_slot *s = part->slot;
    struct pair_run *run = s->run;

    (void)h;
    if (r->transfer.attempts > 1)
        run->r.retries += r->transfer.attempts - 1;
    part->done = r->status == 0;
    if (!part->done) {
        failed(part, run->p->write ? "write" : "read", r->status, r->message);
    } else {
        memcpy(run->r.transport, r->transfer.transport,
               sizeof run->r.transport);
        if (run->into != NULL)
            count(run->into, part, &r->transfer.timing);
    }
    if (--s->left == 0)
        batch_over(s, bench_now());
}

static void send_part(struct pair_part *part)
{
    struct pair_slot *s = part->slot;
    struct pair_run *run = s->run;
    struct pair *p = run->p;
    struct kvferry_window_options o = {.timeout_ms = p->timeout_ms};
    int rc;

    pair_target_of(p, &o.to);
    rc = (p->write ? kvferry_write_async : kvferry_read_async)(
        run->h, p->window, s->offset + part->first * p->block,
        s->seg + part->first, part->n, &o, ended, part, NULL);
    if (rc != 0) {
        struct kvferry_result r = {.status = rc,
                                   .message = kvferry_error(run->h)};

        ended(run->h, part, &r);
    }
}

void pair_batch_start(struct pair_slot *s)
{
    struct pair_run *run = s->run;
    unsigned n = pair_batch_parts(run->p);

    s->busy = true;
    s->left = n; /* before the first of them ends */
    run->started++;
    s->t0 = bench_now();
    if (run->busy++ == 0)
        run->busy_since = s->t0;
    for (unsigned i = 0; i < n; i++)
        send_part(&s->parts[i]);
}

/* ---- its bytes ---------------------------------------------------------- */

static uint64_t wrong_here(const struct pair_part *part)
{
    const struct pair_slot *s = part->slot;
    uint64_t block = s->run->p->block, wrong = 0;

    for (unsigned i = part->first; i < part->first + part->n; i++)
        wrong +=
            !bench_same(block_at(s, i), block, s->seed, s->offset + i * block);
    return wrong;
}

/* False when the target does not say. */
static bool wrong_there(struct pair_part *part, uint64_t *wrong)
{
    struct pair_slot *s = part->slot;
    struct pair_run *run = s->run;
    uint64_t block = run->p->block;
    struct pair_order o = {.what = PAIR_CHECK,
                           .offset = s->offset + part->first * block,
                           .length = part->n * block,
                           .block = block,
                           .seed = s->seed};
    struct pair_status status;
    int rc = pair_order_do(&run->link, o, &status, wrong);

    if (rc == 0)
        return true;
    failed(part, "check", rc, "the target does not answer");
    run->broken = rc == -(int)KVF_TIMEOUT;
    return false;
}

void pair_batch_check(struct pair_slot *s)
{
    struct pair_run *run = s->run;

    for (unsigned i = 0; i < pair_batch_parts(run->p) && !run->broken; i++) {
        struct pair_part *part = &s->parts[i];
        uint64_t wrong = 0;

        if (!part->done)
            continue;
        if (!run->p->write)
            wrong = wrong_here(part);
        else if (!wrong_there(part, &wrong))
            continue;
        if (wrong > 0)
            note(run, "verify", -KVF_CORRUPT, "wrong bytes");
        run->r.wrong += wrong;
        run->r.verified += part->n;
    }
}
