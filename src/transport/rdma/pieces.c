/* What an op is made of, here and at the owner.
 *
 * Happy path: piece by piece of what is contiguous here, each looked up in the
 * owner's registered memory. Failure modes: memory that is not registered here
 * or, as far as the owner said, there (-KVF_UNSUPPORTED). */
#include "transport/rdma/rdma_priv.h"

/* ---- what an op is made of ---------------------------------------------- */

static unsigned n_pieces(const struct kvf_transfer_op *op)
{
    return op->n_runs > 0 ? op->n_runs : op->n_iov;
}

bool kvf_rdma_piece_next(struct kvf_transfer_op *op, struct kvf_rdma_piece *p)
{
    for (; op->cur_iov < n_pieces(op); op->cur_iov++, op->cur_iov_off = 0) {
        bool runs = op->n_runs > 0;
        const struct kvf_run *r = runs ? &op->runs[op->cur_iov] : NULL;
        uint64_t len = runs ? r->length : op->iov[op->cur_iov].iov_len;
        uint8_t *base = runs ? r->local : op->iov[op->cur_iov].iov_base;

        if (op->cur_iov_off >= len)
            continue;
        p->local = base + op->cur_iov_off;
        p->length = len - op->cur_iov_off;
        p->pos = runs ? r->offset + op->cur_iov_off : op->offset + op->moved;
        return true;
    }
    return false;
}

void kvf_rdma_piece_take(struct kvf_transfer_op *op, uint64_t n)
{
    op->cur_iov_off += n;
    op->moved += n;
}

int kvf_rdma_check_local(const struct kvf_rdma *r,
                         const struct kvf_transfer_op *op, struct kvf_why *why)
{
    for (unsigned i = 0; i < n_pieces(op); i++) {
        const uint8_t *p =
            op->n_runs > 0 ? op->runs[i].local : op->iov[i].iov_base;
        uint64_t len = op->n_runs > 0 ? op->runs[i].length : op->iov[i].iov_len;

        while (len > 0) {
            uint64_t rest;

            if (kvf_rdma_local(r, p, &rest) == NULL)
                return kvf_fail(why, KVF_UNSUPPORTED,
                                "rdma: the memory here is not registered "
                                "with %s (yet)",
                                r->name);
            if (rest > len)
                rest = len;
            p += rest;
            len -= rest;
        }
    }
    return 0;
}

/* ---- where it lies at the owner ----------------------------------------- */

int kvf_rdma_resolve(const struct kvf_rdma_link *l, struct kvf_transfer_op *op,
                     uint64_t pos, struct kvf_rdma_key *out,
                     struct kvf_why *why)
{
    const struct kvf_remote *rem = op->remote;
    const struct kvf_remote_seg *seg;
    const struct kvf_rdma_key *key = l->pool;
    unsigned n = l->n_pool;
    uint64_t off, at = 0;

    if (pos < op->cur_seg_off)
        op->cur_seg = 0, op->cur_seg_off = 0;
    while (op->cur_seg < rem->n_segs &&
           pos - op->cur_seg_off >= rem->segs[op->cur_seg].length)
        op->cur_seg_off += rem->segs[op->cur_seg++].length;
    if (op->cur_seg >= rem->n_segs)
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "rdma: the owner did not say where the bytes are");
    seg = &rem->segs[op->cur_seg];
    off = seg->offset + (pos - op->cur_seg_off);
    if (seg->keys != NULL) {
        key = seg->keys->key;
        n = seg->keys->n;
        at = seg->keys->first;
    }
    for (unsigned i = 0; i < n && off >= at; at += key[i++].length) {
        uint64_t in = off - at, rest = seg->length - (pos - op->cur_seg_off);

        if (in >= key[i].length)
            continue;
        *out = (struct kvf_rdma_key){key[i].addr + in, key[i].length - in,
                                     key[i].rkey};
        if (out->length > rest)
            out->length = rest;
        return 0;
    }
    return kvf_fail(why, KVF_UNSUPPORTED,
                    "rdma: the owner has not registered these bytes (yet)");
}
