/* Moves the runs of a source over a link, a batch an op.
 *
 * Happy path: start rewinds the source and posts batches up to the link's
 * depth; each completion marks its batch and cuts the next; when the source is
 * at its end and nothing is pending, a posted task calls done. Failure: the
 * first error (or a cancel) stops posting and cancels what is posted; done
 * comes when the last of it has come back. The next attempt cuts the same
 * batches and leaves out those that are in place. */
#include "transport/scatter.h"

#include <stdlib.h>
#include <string.h>

struct kvf_scatter_op {
    struct kvf_transfer_op op;
    struct kvf_scatter *x;
    struct kvf_list node; /* in active or free_ops */
    struct kvf_run *runs;
    unsigned cap_runs;
    uint64_t batch;
    unsigned ends; /* runs of the source whose last byte is in it */
};

static void finish(struct kvf_task *t)
{
    struct kvf_scatter *x = kvf_container_of(t, struct kvf_scatter, finish);
    int status = x->complete ? 0 : x->status;

    x->running = false;
    x->link = NULL;
    x->done(x, status, status != 0 ? &x->why : NULL);
}

static void op_free(struct kvf_scatter *x, struct kvf_scatter_op *o)
{
    kvf_list_push_back(&x->free_ops, &o->node);
}

static void fail(struct kvf_scatter *x, int status, const struct kvf_why *why)
{
    if (x->status != 0 || x->complete)
        return;
    x->status = status;
    if (why != NULL)
        x->why = *why;
    else
        kvf_fail(&x->why, (enum kvf_status) - status, "%s",
                 kvf_status_text((enum kvf_status) - status));
    kvf_list_unlink(&x->room.node);
    if (x->held != NULL)
        op_free(x, x->held);
    x->held = NULL;
    kvf_list_for_each (n, &x->active) {
        struct kvf_scatter_op *o =
            kvf_container_of(n, struct kvf_scatter_op, node);

        kvf_link_cancel(o->op.link, &o->op);
    }
}

static void no_memory(struct kvf_scatter *x)
{
    struct kvf_why why;

    fail(x, kvf_fail(&why, KVF_NO_SPACE, "no memory for a transfer"), &why);
}

/* ---- the source --------------------------------------------------------- */

/* The run that is next, or NULL at the end. */
static struct kvf_run *ahead(struct kvf_scatter *x)
{
    for (;;) {
        while (x->ahead_at < x->ahead_n) {
            if (x->ahead[x->ahead_at].length > 0)
                return &x->ahead[x->ahead_at];
            x->ahead_at++;
        }
        if (x->ended)
            return NULL;
        x->ahead_at = 0;
        x->ahead_n = (unsigned)x->source.next(x->source.arg, x->ahead,
                                              KVF_SCATTER_AHEAD);
        x->ended = x->ahead_n == 0;
    }
}

static bool runs_room(struct kvf_scatter_op *o, unsigned n)
{
    unsigned cap = o->cap_runs != 0 ? o->cap_runs * 2 : 64;
    struct kvf_run *p;

    if (n <= o->cap_runs)
        return true;
    p = realloc(o->runs, cap * sizeof *p);
    if (p == NULL)
        return false;
    o->runs = p;
    o->cap_runs = cap;
    return true;
}

/* Cuts the next batch into o, or past it when o is NULL. False: no memory. */
static bool cut(struct kvf_scatter *x, struct kvf_scatter_op *o)
{
    uint64_t bytes = 0;
    unsigned n = 0, ends = 0;
    struct kvf_run *r;

    while (bytes < x->batch && n < KVF_OP_RUNS && (r = ahead(x)) != NULL) {
        uint64_t len = r->length;

        if (len > x->batch - bytes)
            len = x->batch - bytes;
        if (o != NULL) {
            if (!runs_room(o, n + 1))
                return false;
            o->runs[n] = (struct kvf_run){r->offset, len, r->local};
        }
        n++;
        bytes += len;
        ends += len == r->length;
        r->offset += len;
        r->length -= len;
        r->local = (char *)r->local + len;
    }
    if (o != NULL) {
        o->batch = x->next_batch;
        o->ends = ends;
        o->op.length = bytes;
        o->op.n_runs = n;
        o->op.runs = o->runs;
    }
    x->next_batch++;
    return true;
}

/* ---- what is in place --------------------------------------------------- */

static bool in_place(const struct kvf_scatter *x, uint64_t batch)
{
    return batch / 64 < x->cap_words &&
           (x->in_place[batch / 64] >> (batch % 64) & 1) != 0;
}

static bool bits_room(struct kvf_scatter *x, uint64_t batch)
{
    uint64_t cap = x->cap_words != 0 ? x->cap_words * 2 : 16;
    uint64_t *p;

    if (batch / 64 < x->cap_words)
        return true;
    p = realloc(x->in_place, cap * sizeof *p);
    if (p == NULL)
        return false;
    memset(p + x->cap_words, 0, (cap - x->cap_words) * sizeof *p);
    x->in_place = p;
    x->cap_words = cap;
    return true;
}

/* ---- ops ---------------------------------------------------------------- */

static void op_done(struct kvf_transfer_op *op, int status,
                    const struct kvf_why *why);

static struct kvf_scatter_op *op_get(struct kvf_scatter *x)
{
    struct kvf_list *n = kvf_list_pop(&x->free_ops);
    struct kvf_scatter_op *o;

    if (n != NULL)
        return kvf_container_of(n, struct kvf_scatter_op, node);
    o = calloc(1, sizeof *o);
    if (o == NULL)
        return NULL;
    o->x = x;
    o->op.done = op_done;
    o->op.write = x->write;
    kvf_list_init(&o->node);
    return o;
}

/* Nothing is left to post in this attempt. */
static bool at_end(struct kvf_scatter *x)
{
    if (x->held != NULL)
        return false;
    while (in_place(x, x->next_batch) && ahead(x) != NULL)
        cut(x, NULL);
    return ahead(x) == NULL;
}

/* The next op to post; NULL when out of memory (then failed). Not at the end.
 */
static struct kvf_scatter_op *next_op(struct kvf_scatter *x)
{
    struct kvf_scatter_op *o = x->held;

    x->held = NULL;
    if (o != NULL)
        return o;
    o = op_get(x);
    if (o == NULL || !bits_room(x, x->next_batch) || !cut(x, o)) {
        if (o != NULL)
            op_free(x, o);
        no_memory(x);
        return NULL;
    }
    o->op.remote = x->remote;
    o->op.total = x->total;
    return o;
}

/* Done when nothing is pending and there is nothing left to post. */
static void maybe_finish(struct kvf_scatter *x)
{
    if (x->pending > 0)
        return;
    if (x->status == 0 && at_end(x))
        x->complete = true;
    if (x->status != 0 || x->complete)
        kvf_task_post(x->sched, &x->finish);
}

/* Posts what the link takes. Returns false when it has no room. */
static bool pump(struct kvf_scatter *x)
{
    struct kvf_scatter_op *o;
    struct kvf_why why;
    unsigned depth = 1;

    /* What is posted tells why it went down. */
    if (x->link->state == KVF_LINK_DOWN && x->pending > 0)
        return true;
    if (x->link->impl != NULL)
        depth = x->link->transport->ops->depth(
            x->link, x->total != 0 ? x->total : x->remote->size);
    else
        fail(x, kvf_fail(&why, KVF_PEER_UNREACHABLE, "the link is down"), &why);
    while (x->status == 0 && x->pending < depth && !at_end(x)) {
        int rc;

        o = next_op(x);
        if (o == NULL)
            break;
        rc = kvf_link_post(x->link, &o->op, &why);
        if (rc == 0) {
            kvf_list_push_back(&x->active, &o->node);
            x->pending++;
            x->posts++;
            continue;
        }
        if (rc == -KVF_BUSY) {
            x->held = o;
            if (kvf_list_empty(&x->room.node))
                kvf_list_push_back(&x->link->waiting, &x->room.node);
            return false;
        }
        op_free(x, o);
        fail(x, rc, &why);
    }
    maybe_finish(x);
    return true;
}

static bool room(struct kvf_room_wait *w)
{
    return pump(kvf_container_of(w, struct kvf_scatter, room));
}

static void op_done(struct kvf_transfer_op *op, int status,
                    const struct kvf_why *why)
{
    struct kvf_scatter_op *o = kvf_container_of(op, struct kvf_scatter_op, op);
    struct kvf_scatter *x = o->x;

    kvf_list_unlink(&o->node);
    op_free(x, o);
    x->pending--;
    if (status == 0) {
        x->in_place[o->batch / 64] |= 1ull << (o->batch % 64);
        x->bytes_done += op->length;
        x->bytes_moved_now += op->length;
        x->runs_done += o->ends;
    } else {
        fail(x, status, why);
    }
    if (op->link == NULL && x->status == 0 && !at_end(x)) {
        struct kvf_why closed;

        fail(x, kvf_fail(&closed, KVF_TRANSPORT, "the link was closed"),
             &closed);
    }
    /* Who waits for room keeps its place: a new post would pass the others. */
    if (x->status == 0 && op->link != NULL && kvf_list_empty(&x->room.node))
        pump(x);
    else
        maybe_finish(x);
}

/* ---- attempts ----------------------------------------------------------- */

void kvf_scatter_init(struct kvf_scatter *x, struct kvf_sched *sched,
                      bool write, const struct kvf_run_source *source,
                      uint64_t total,
                      void (*done)(struct kvf_scatter *x, int status,
                                   const struct kvf_why *why))
{
    memset(x, 0, sizeof *x);
    x->sched = sched;
    x->write = write;
    x->source = *source;
    x->total = total;
    x->batch = total != 0 && total <= 16 * KVF_SCATTER_BATCH
                   ? KVF_SCATTER_BATCH_SMALL
                   : KVF_SCATTER_BATCH;
    x->done = done;
    kvf_list_init(&x->free_ops);
    kvf_list_init(&x->active);
    kvf_list_init(&x->room.node);
    x->room.fn = room;
    kvf_task_init(&x->finish, finish);
}

void kvf_scatter_start(struct kvf_scatter *x, struct kvf_link *link,
                       const struct kvf_remote *remote)
{
    x->link = link;
    x->remote = remote;
    x->running = true;
    x->cancelling = x->complete = x->ended = false;
    x->status = 0;
    x->bytes_moved_now = 0;
    x->ahead_at = x->ahead_n = 0;
    x->next_batch = 0;
    x->source.rewind(x->source.arg);
    pump(x);
}

void kvf_scatter_cancel(struct kvf_scatter *x)
{
    if (!x->running || x->cancelling)
        return;
    x->cancelling = true;
    fail(x, -KVF_CANCELLED, NULL);
    maybe_finish(x);
}

void kvf_scatter_reset(struct kvf_scatter *x)
{
    x->bytes_done = x->runs_done = 0;
    if (x->in_place != NULL)
        memset(x->in_place, 0, x->cap_words * sizeof *x->in_place);
}

void kvf_scatter_fini(struct kvf_scatter *x)
{
    struct kvf_list *n;

    if (x->sched == NULL)
        return; /* never initialised, or finished before */
    while ((n = kvf_list_pop(&x->free_ops)) != NULL) {
        struct kvf_scatter_op *o =
            kvf_container_of(n, struct kvf_scatter_op, node);

        free(o->runs);
        free(o);
    }
    kvf_task_cancel(&x->finish);
    free(x->in_place);
    memset(x, 0, sizeof *x);
}
