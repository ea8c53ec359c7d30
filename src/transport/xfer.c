/* Moves one payload over a link in ops of the link's size.
 *
 * Happy path: start posts up to depth ops from the first byte that is missing;
 * each completion counts its bytes into its chunks and posts the next; when
 * every chunk is complete and nothing is pending, a posted task calls done.
 * Failure: the first error (or a cancel) stops posting and cancels what is
 * posted; done comes when the last of it has come back. Chunks of which only
 * some ops arrived are moved again by the next attempt. */
#include "transport/xfer.h"

#include <stdlib.h>

struct xfer_op {
    struct kvf_transfer_op op;
    struct kvf_xfer *x;
    struct kvf_list node; /* in active or free_ops */
};

static uint64_t chunk_len(const struct kvf_xfer *x, uint64_t c)
{
    uint64_t rest = x->size - c * x->chunk;

    return rest < x->chunk ? rest : x->chunk;
}

static void finish(struct kvf_task *t)
{
    struct kvf_xfer *x = kvf_container_of(t, struct kvf_xfer, finish);
    int status = x->bytes_done == x->size ? 0 : x->status;

    x->running = false;
    x->link = NULL;
    x->done(x, status, status != 0 ? &x->why : NULL);
}

static void fail(struct kvf_xfer *x, int status, const struct kvf_why *why)
{
    if (x->status != 0)
        return;
    x->status = status;
    if (why != NULL)
        x->why = *why;
    else
        kvf_fail(&x->why, (enum kvf_status) - status, "%s",
                 kvf_status_text((enum kvf_status) - status));
    kvf_list_unlink(&x->room.node);
    kvf_list_for_each (n, &x->active) {
        struct xfer_op *o = kvf_container_of(n, struct xfer_op, node);

        kvf_link_cancel(o->op.link, &o->op);
    }
}

/* Done when nothing is pending and there is nothing left to post. */
static void maybe_finish(struct kvf_xfer *x)
{
    if (x->pending == 0 && (x->status != 0 || x->bytes_done == x->size))
        kvf_task_post(x->sched, &x->finish);
}

static void count_bytes(struct kvf_xfer *x, uint64_t off, uint64_t len)
{
    x->bytes_done += len;
    x->bytes_moved_now += len;
    while (len > 0) {
        uint64_t c = off / x->chunk;
        uint64_t n = (c + 1) * x->chunk - off;

        if (n > len)
            n = len;
        x->left[c] -= (uint32_t)n;
        off += n;
        len -= n;
    }
}

/* Moves the local cursor on by n bytes. */
static void advance(struct kvf_xfer *x, uint64_t n)
{
    x->next += n;
    while (n > 0) {
        uint64_t rest = x->iov[x->next_iov].iov_len - x->next_iov_off;

        if (n < rest) {
            x->next_iov_off += n;
            return;
        }
        n -= rest;
        x->next_iov++;
        x->next_iov_off = 0;
    }
}

/* Skips chunks that are complete; false when nothing is left to post. */
static bool seek_missing(struct kvf_xfer *x)
{
    while (x->next < x->size && x->left[x->next / x->chunk] == 0)
        advance(x, chunk_len(x, x->next / x->chunk));
    return x->next < x->size;
}

/* Bytes missing in one piece from `next` on, at most max. */
static uint64_t missing_run(const struct kvf_xfer *x, uint64_t max)
{
    uint64_t end = x->next;

    while (end < x->size && end - x->next < max) {
        uint64_t c = end / x->chunk;

        if (x->left[c] == 0)
            break;
        end = c * x->chunk + chunk_len(x, c);
    }
    return end - x->next < max ? end - x->next : max;
}

static void fill_op(struct kvf_xfer *x, struct kvf_transfer_op *op)
{
    uint64_t want = missing_run(x, x->link->transport->ops->chunk(x->link));
    uint64_t len = 0, skip = x->next_iov_off;

    op->n_iov = 0;
    for (unsigned i = x->next_iov; len < want && op->n_iov < KVF_OP_IOV; i++) {
        uint64_t n = x->iov[i].iov_len - skip;

        if (n > want - len)
            n = want - len;
        op->iov[op->n_iov++] =
            (struct iovec){(char *)x->iov[i].iov_base + skip, n};
        len += n;
        skip = 0;
    }
    op->offset = x->base + x->next;
    op->total = x->size;
    op->length = len;
    op->remote = x->remote;
    op->write = x->write;
}

static void op_done(struct kvf_transfer_op *op, int status,
                    const struct kvf_why *why);

static struct xfer_op *op_get(struct kvf_xfer *x)
{
    struct kvf_list *n = kvf_list_pop(&x->free_ops);
    struct xfer_op *o;

    if (n != NULL)
        return kvf_container_of(n, struct xfer_op, node);
    o = calloc(1, sizeof *o);
    if (o == NULL)
        return NULL;
    o->x = x;
    o->op.done = op_done;
    kvf_list_init(&o->node);
    return o;
}

/* Posts what the link takes. Returns false when it has no room. */
static bool pump(struct kvf_xfer *x)
{
    unsigned depth = 1;
    struct kvf_why down;

    /* What is posted tells why it went down. */
    if (x->link->state == KVF_LINK_DOWN && x->pending > 0)
        return true;
    if (x->link->impl != NULL)
        depth = x->link->transport->ops->depth(x->link, x->size);
    else
        fail(x, kvf_fail(&down, KVF_PEER_UNREACHABLE, "the link is down"),
             &down);
    while (x->status == 0 && x->pending < depth && seek_missing(x)) {
        struct kvf_why why;
        struct xfer_op *o = op_get(x);
        int rc;

        if (o == NULL) {
            kvf_fail(&why, KVF_NO_SPACE, "no memory for an operation");
            fail(x, -KVF_NO_SPACE, &why);
            break;
        }
        fill_op(x, &o->op);
        rc = kvf_link_post(x->link, &o->op, &why);
        if (rc == 0) {
            kvf_list_push_back(&x->active, &o->node);
            x->pending++;
            advance(x, o->op.length);
            continue;
        }
        kvf_list_push_back(&x->free_ops, &o->node);
        if (rc == -KVF_BUSY) {
            if (kvf_list_empty(&x->room.node))
                kvf_list_push_back(&x->link->waiting, &x->room.node);
            return false;
        }
        fail(x, rc, &why);
    }
    maybe_finish(x);
    return true;
}

static bool room(struct kvf_room_wait *w)
{
    return pump(kvf_container_of(w, struct kvf_xfer, room));
}

static void op_done(struct kvf_transfer_op *op, int status,
                    const struct kvf_why *why)
{
    struct xfer_op *o = kvf_container_of(op, struct xfer_op, op);
    struct kvf_xfer *x = o->x;

    kvf_list_unlink(&o->node);
    kvf_list_push_back(&x->free_ops, &o->node);
    x->pending--;
    if (status == 0)
        count_bytes(x, op->offset - x->base, op->length);
    else
        fail(x, status, why);
    if (op->link == NULL && x->status == 0 && x->bytes_done != x->size) {
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

int kvf_xfer_init(struct kvf_xfer *x, struct kvf_sched *sched, bool write,
                  uint64_t size, const struct iovec *iov, unsigned n_iov,
                  void (*done)(struct kvf_xfer *x, int status,
                               const struct kvf_why *why),
                  struct kvf_why *why)
{
    uint64_t sum = 0;

    *x = (struct kvf_xfer){
        .sched = sched, .write = write, .size = size, .done = done};
    kvf_list_init(&x->free_ops);
    kvf_list_init(&x->active);
    kvf_list_init(&x->room.node);
    x->room.fn = room;
    kvf_task_init(&x->finish, finish);
    for (unsigned i = 0; i < n_iov; i++)
        sum += iov[i].iov_len;
    if (size == 0 || sum != size)
        return kvf_fail(why, KVF_INVALID,
                        "local memory has %llu bytes, the payload %llu",
                        (unsigned long long)sum, (unsigned long long)size);
    x->chunk =
        size <= 16 * KVF_XFER_CHUNK ? KVF_XFER_CHUNK_SMALL : KVF_XFER_CHUNK;
    x->n_chunks = (size + x->chunk - 1) / x->chunk;
    x->iov = calloc(n_iov, sizeof *x->iov);
    x->left = calloc(x->n_chunks, sizeof *x->left);
    if (x->iov == NULL || x->left == NULL) {
        kvf_xfer_fini(x);
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a transfer of %llu",
                        (unsigned long long)size);
    }
    for (unsigned i = 0; i < n_iov; i++)
        if (iov[i].iov_len > 0)
            x->iov[x->n_iov++] = iov[i];
    kvf_xfer_reset(x);
    return 0;
}

void kvf_xfer_start(struct kvf_xfer *x, struct kvf_link *link,
                    const struct kvf_remote *remote)
{
    struct kvf_why why;

    x->link = link;
    x->remote = remote;
    x->running = true;
    x->cancelling = false;
    x->status = 0;
    x->bytes_moved_now = 0;
    x->next = x->next_iov_off = 0;
    x->next_iov = 0;
    /* Which bytes of a chunk came is not known: it is moved again. */
    x->bytes_done = 0;
    for (uint64_t c = 0; c < x->n_chunks; c++) {
        if (x->left[c] != 0)
            x->left[c] = (uint32_t)chunk_len(x, c);
        else
            x->bytes_done += chunk_len(x, c);
    }
    if (x->part ? x->base > remote->size || x->size > remote->size - x->base
                : remote->size != x->size) {
        fail(x,
             kvf_fail(&why, KVF_MISMATCH,
                      "the claim has %llu bytes, the memory %llu",
                      (unsigned long long)remote->size,
                      (unsigned long long)x->size),
             &why);
        x->bytes_done = 0;
        for (uint64_t c = 0; c < x->n_chunks; c++)
            x->left[c] = (uint32_t)chunk_len(x, c);
    }
    pump(x);
}

void kvf_xfer_cancel(struct kvf_xfer *x)
{
    if (!x->running || x->cancelling)
        return;
    x->cancelling = true;
    fail(x, -KVF_CANCELLED, NULL);
    maybe_finish(x);
}

void kvf_xfer_reset(struct kvf_xfer *x)
{
    x->bytes_done = 0;
    for (uint64_t c = 0; c < x->n_chunks; c++)
        x->left[c] = (uint32_t)chunk_len(x, c);
}

void kvf_xfer_fini(struct kvf_xfer *x)
{
    struct kvf_list *n;

    if (x->sched == NULL)
        return; /* never initialised, or finished before */
    while ((n = kvf_list_pop(&x->free_ops)) != NULL)
        free(kvf_container_of(n, struct xfer_op, node));
    kvf_task_cancel(&x->finish);
    free(x->iov);
    free(x->left);
    *x = (struct kvf_xfer){0};
}
