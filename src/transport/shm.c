/* Copies between the owner's mapped memory and ours, in slices of the loop.
 *
 * Happy path: post checks that the claim's segments lie inside their mappings
 * and holds these; the one slice of the transport copies pieces of the ops
 * whose transfer has its turn, as much as its time budget allows (measured as
 * it goes). Failure modes: none while copying (mappings are sealed against
 * shrinking), so an op either completes or is cancelled between two pieces,
 * when nothing touches its memory. */
#include "transport/shm.h"

#include "memory/copy.h"

#include <stdlib.h>

#define CHUNK (16ull << 20)
#define DEPTH 2
#define PIECE_MIN (256ull << 10)
#define PIECE_MAX (8ull << 20)
#define PIECE_START (1ull << 20)
#define OPS_MAX 256 /* posted on one link */
/* What a transfer may copy before others have their turn: more than fits into a
 * round trip through the daemons. So transfers that began together do not end
 * together: while one is answered and the next is asked for, others are copied.
 */
#define TURN (8ull << 20)
#define RUN_COST 512u /* what a run costs beside its bytes, in bytes copied */
#define RUN_NT_MIN 1024u /* shorter runs are copied plainly */

struct shm {
    struct kvf_transport t;
    struct kvf_slice slice;
    struct kvf_list ops;           /* in turn */
    uint64_t rate;                 /* bytes in a millisecond, as measured */
    const struct kvf_remote *turn; /* whose it is; only compared */
    uint64_t turn_left;
};

struct shm_link {
    struct kvf_link *link;
    struct shm *shm;
    bool starved; /* somebody was told BUSY */
    struct kvf_task up, room;
};

static struct shm *shm_of(struct kvf_transport *t)
{
    return kvf_container_of(t, struct shm, t);
}

static void unhold(struct kvf_transfer_op *op)
{
    for (unsigned i = (unsigned)op->tag; i <= op->last_seg; i++)
        if (op->remote->segs[i].length > 0)
            kvf_map_release(op->remote->segs[i].map);
}

static void op_end(struct shm *shm, struct kvf_transfer_op *op, int status)
{
    struct shm_link *sl = op->link->impl;

    kvf_list_unlink(&op->node);
    unhold(op);
    kvf_op_finish(&shm->t, op, status, NULL);
    if (sl->starved) {
        sl->starved = false;
        kvf_task_post(shm->t.sched, &sl->room);
    }
}

/* One contiguous run at both ends, at most max bytes. */
static uint64_t copy_run(struct kvf_transfer_op *op, uint64_t max, bool nt)
{
    const struct kvf_remote_seg *seg = &op->remote->segs[op->cur_seg];
    struct iovec *v = &op->iov[op->cur_iov];
    uint64_t n = op->length - op->moved;
    uint8_t *far = seg->map->base + seg->offset + op->cur_seg_off;
    uint8_t *near = (uint8_t *)v->iov_base + op->cur_iov_off;

    if (n > max)
        n = max;
    if (n > seg->length - op->cur_seg_off)
        n = seg->length - op->cur_seg_off;
    if (n > v->iov_len - op->cur_iov_off)
        n = v->iov_len - op->cur_iov_off;
    kvf_copy_piece(op->write ? far : near, op->write ? near : far, n, nt);
    op->moved += n;
    op->cur_seg_off += n;
    op->cur_iov_off += n;
    if (op->moved == op->length)
        return n;
    /* Empty pieces are skipped; length says that more follow. */
    while (op->cur_seg_off == op->remote->segs[op->cur_seg].length) {
        op->cur_seg++;
        op->cur_seg_off = 0;
    }
    while (op->cur_iov_off == op->iov[op->cur_iov].iov_len) {
        op->cur_iov++;
        op->cur_iov_off = 0;
    }
    return n;
}

/* Moves the op's cursor to the segment that has this position. In a scattered
 * op cur_seg_off is where the segment begins in the payload. Plans go through a
 * region from one end to the other, so the way is short. */
static const struct kvf_remote_seg *seek(struct kvf_transfer_op *op,
                                         uint64_t at)
{
    const struct kvf_remote_seg *segs = op->remote->segs;

    while (at < op->cur_seg_off)
        op->cur_seg_off -= segs[--op->cur_seg].length;
    while (at - op->cur_seg_off >= segs[op->cur_seg].length)
        op->cur_seg_off += segs[op->cur_seg++].length;
    return &segs[op->cur_seg];
}

/* Copies until `max` is spent; a run has a price of its own. Returns what was
 * spent. */
static uint64_t copy_runs(struct kvf_transfer_op *op, uint64_t max, bool nt)
{
    uint64_t spent = 0;

    while (spent < max && op->moved < op->length) {
        const struct kvf_run *r = &op->runs[op->cur_iov];
        uint64_t at = r->offset + op->cur_iov_off;
        uint64_t n = r->length - op->cur_iov_off;
        const struct kvf_remote_seg *seg = seek(op, at);
        uint8_t *far = seg->map->base + seg->offset + (at - op->cur_seg_off);
        uint8_t *near = (uint8_t *)r->local + op->cur_iov_off;

        if (n > op->cur_seg_off + seg->length - at)
            n = op->cur_seg_off + seg->length - at;
        if (n > max - spent)
            n = max - spent;
        kvf_copy_piece(op->write ? far : near, op->write ? near : far, n,
                       nt && n >= RUN_NT_MIN);
        op->moved += n;
        op->cur_iov_off += n;
        spent += n + RUN_COST;
        if (op->cur_iov_off == r->length) {
            op->cur_iov++;
            op->cur_iov_off = 0;
        }
    }
    kvf_copy_fence();
    return spent;
}

static uint64_t copy_pieces(struct kvf_transfer_op *op, uint64_t max, bool nt)
{
    uint64_t done = 0;

    while (done < max && op->moved < op->length)
        done += copy_run(op, max - done, nt);
    kvf_copy_fence();
    return done;
}

static void measure(struct shm *shm, uint64_t bytes, uint64_t ns)
{
    uint64_t rate;

    if (bytes < PIECE_MIN || ns == 0)
        return; /* too small to tell */
    rate = bytes * KVF_NS_PER_MS / ns;
    shm->rate = (shm->rate * 3 + rate) / 4;
}

/* The op that is next, of those that are posted: there is one. Those of a
 * transfer whose turn is over go to the end. */
static struct kvf_transfer_op *next_op(struct shm *shm)
{
    struct kvf_list *skipped = NULL, *n;
    struct kvf_transfer_op *op;

    for (;;) {
        n = shm->ops.next;
        op = kvf_container_of(n, struct kvf_transfer_op, node);
        if (op->remote != shm->turn || shm->turn_left > 0 || n == skipped)
            break;
        if (skipped == NULL)
            skipped = n;
        kvf_list_unlink(n);
        kvf_list_push_back(&shm->ops, n);
    }
    if (op->remote != shm->turn || shm->turn_left == 0) {
        shm->turn = op->remote;
        shm->turn_left = TURN;
    }
    return op;
}

/* Copies at most max of the op that is next. Returns what was spent. */
static uint64_t copy_some(struct shm *shm, uint64_t max)
{
    struct kvf_transfer_op *op = next_op(shm);
    bool nt = kvf_op_total(op) >= kvf_copy_nt_min;
    uint64_t had = op->moved;
    uint64_t spent =
        op->n_runs > 0 ? copy_runs(op, max, nt) : copy_pieces(op, max, nt);

    if (!op->write)
        shm->t.stats->shm_bytes += op->moved - had;
    shm->turn_left -= spent < shm->turn_left ? spent : shm->turn_left;
    if (op->moved == op->length)
        op_end(shm, op, 0);
    return spent;
}

static bool run(struct kvf_slice *slice, uint64_t budget_ns)
{
    struct shm *shm = kvf_container_of(slice, struct shm, slice);
    uint64_t room = shm->rate * (budget_ns / 1000) / 1000;
    uint64_t spent = 0, t0 = kvf_sched_clock(shm->t.sched);

    if (kvf_list_empty(&shm->ops))
        return false;
    if (room < PIECE_MIN)
        room = PIECE_MIN;
    if (room > PIECE_MAX)
        room = PIECE_MAX;
    /* What an op leaves is for the next, unless it is not worth a fence. */
    while (!kvf_list_empty(&shm->ops) && spent + PIECE_MIN <= room)
        spent += copy_some(shm, room - spent);
    measure(shm, spent, kvf_sched_clock(shm->t.sched) - t0);
    return !kvf_list_empty(&shm->ops);
}

/* ---- links -------------------------------------------------------------- */

static void link_up(struct kvf_task *t)
{
    struct shm_link *sl = kvf_container_of(t, struct shm_link, up);

    sl->link->state = KVF_LINK_UP;
    if (sl->link->on_up != NULL)
        sl->link->on_up(sl->link);
}

static void link_room(struct kvf_task *t)
{
    kvf_link_room(kvf_container_of(t, struct shm_link, room)->link);
}

static int link_open(struct kvf_transport *t, struct kvf_link *link,
                     const struct kvf_link_addr *addr, struct kvf_why *why)
{
    struct shm_link *sl = calloc(1, sizeof *sl);

    (void)addr;
    if (sl == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a link");
    sl->link = link;
    sl->shm = shm_of(t);
    kvf_task_init(&sl->up, link_up);
    kvf_task_init(&sl->room, link_room);
    link->impl = sl;
    kvf_task_post(t->sched, &sl->up);
    return 0;
}

static void link_close(struct kvf_link *link)
{
    struct shm_link *sl = link->impl;

    kvf_list_for_each_safe (n, &sl->shm->ops) {
        struct kvf_transfer_op *op =
            kvf_container_of(n, struct kvf_transfer_op, node);

        if (op->link == link)
            op_end(sl->shm, op, -KVF_CANCELLED);
    }
    kvf_task_cancel(&sl->up);
    kvf_task_cancel(&sl->room);
    free(sl);
}

static int seg_check(const struct kvf_remote_seg *s, unsigned i,
                     struct kvf_why *why)
{
    if (s->map == NULL || s->offset > s->map->size ||
        s->length > s->map->size - s->offset)
        return kvf_fail(why, KVF_MISMATCH, "segment %u is outside its mapping",
                        i);
    return 0;
}

static int uncovered(const struct kvf_remote *r, uint64_t at,
                     struct kvf_why *why)
{
    return kvf_fail(why, KVF_MISMATCH,
                    "segments cover %llu bytes of a payload of %llu",
                    (unsigned long long)at, (unsigned long long)r->size);
}

/* A scattered op may touch every segment. */
static int locate_runs(struct kvf_transfer_op *op, struct kvf_why *why)
{
    const struct kvf_remote *r = op->remote;
    uint64_t at = 0;

    for (unsigned i = 0; i < r->n_segs && r->segs != NULL; i++) {
        const struct kvf_remote_seg *s = &r->segs[i];
        int rc = s->length > 0 ? seg_check(s, i, why) : 0;

        if (rc != 0)
            return rc;
        if (s->length > r->size - at)
            return uncovered(r, at, why);
        at += s->length;
    }
    if (at != r->size)
        return uncovered(r, at, why);
    op->last_seg = r->n_segs - 1;
    return 0;
}

/* Finds where the op starts and ends among the segments and checks every one
 * between: they are what a peer told. */
static int locate(struct kvf_transfer_op *op, struct kvf_why *why)
{
    const struct kvf_remote *r = op->remote;
    uint64_t at = 0, end = op->offset + op->length;
    bool found = false;

    for (unsigned i = 0; i < r->n_segs && r->segs != NULL; i++) {
        const struct kvf_remote_seg *s = &r->segs[i];

        if (s->length > r->size - at)
            break;
        if (s->length > 0 && at + s->length > op->offset) {
            int rc = seg_check(s, i, why);

            if (rc != 0)
                return rc;
            if (!found) {
                op->cur_seg = i;
                op->cur_seg_off = op->offset - at;
                found = true;
            }
        }
        at += s->length;
        if (at >= end) {
            op->last_seg = i;
            return 0;
        }
    }
    return uncovered(r, at, why);
}

static int post(struct kvf_link *link, struct kvf_transfer_op *op,
                struct kvf_why *why)
{
    struct shm_link *sl = link->impl;
    int rc;

    if (link->inflight >= OPS_MAX) {
        sl->starved = true;
        return kvf_fail(why, KVF_BUSY, "%u copies wait already", OPS_MAX);
    }
    rc = op->n_runs > 0 ? locate_runs(op, why) : locate(op, why);
    if (rc != 0)
        return rc;
    while (op->n_runs == 0 && op->iov[op->cur_iov].iov_len == 0)
        op->cur_iov++;
    op->tag = op->cur_seg;
    for (unsigned i = op->cur_seg; i <= op->last_seg; i++)
        if (op->remote->segs[i].length > 0)
            kvf_map_hold(op->remote->segs[i].map);
    kvf_list_push_back(&sl->shm->ops, &op->node);
    kvf_slice_start(sl->shm->t.sched, &sl->shm->slice);
    return 0;
}

static void cancel(struct kvf_link *link, struct kvf_transfer_op *op)
{
    struct shm_link *sl = link->impl;

    op_end(sl->shm, op, -KVF_CANCELLED);
}

static uint64_t chunk(const struct kvf_link *link)
{
    (void)link;
    return CHUNK;
}

static unsigned depth(const struct kvf_link *link, uint64_t size)
{
    (void)link;
    (void)size;
    return DEPTH;
}

static void destroy(struct kvf_transport *t)
{
    struct shm *shm = shm_of(t);

    kvf_transport_fini(t);
    kvf_slice_stop(&shm->slice);
    free(shm);
}

static const struct kvf_transport_ops shm_ops = {
    .name = "shm",
    .caps = KVF_CAP_READ | KVF_CAP_WRITE | KVF_CAP_SAME_HOST | KVF_CAP_RUNS,
    .destroy = destroy,
    .link_open = link_open,
    .post = post,
    .cancel = cancel,
    .link_close = link_close,
    .chunk = chunk,
    .depth = depth,
};

int kvf_shm_create(struct kvf_sched *sched, struct kvf_stats *stats,
                   struct kvf_transport **out, struct kvf_why *why)
{
    struct shm *shm = calloc(1, sizeof *shm);

    if (shm == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a transport");
    kvf_transport_init(&shm->t, &shm_ops, sched, stats);
    kvf_list_init(&shm->ops);
    kvf_slice_init(&shm->slice, run);
    shm->rate = PIECE_START * 5; /* PIECE_START in 200 us */
    *out = &shm->t;
    return 0;
}
