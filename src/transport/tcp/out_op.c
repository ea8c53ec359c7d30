/* Where an op of the getter stands in its own memory. */
#include "transport/tcp/tcp_priv.h"

#include <string.h>

unsigned kvf_tcp_op_pieces(const struct kvf_transfer_op *op)
{
    return op->n_runs > 0 ? op->n_runs : op->n_iov;
}

struct iovec kvf_tcp_op_piece(const struct kvf_transfer_op *op, unsigned i)
{
    if (op->n_runs == 0)
        return op->iov[i];
    return (struct iovec){op->runs[i].local, op->runs[i].length};
}

unsigned kvf_tcp_op_rest(const struct kvf_transfer_op *op, struct iovec *v,
                         uint64_t max, uint64_t *sum)
{
    uint64_t skip = op->cur_iov_off;
    unsigned n = 0;

    *sum = 0;
    for (unsigned i = op->cur_iov;
         i < kvf_tcp_op_pieces(op) && n < KVF_TCP_IOV && *sum < max; i++) {
        v[n] = kvf_tcp_op_piece(op, i);
        v[n].iov_base = (char *)v[n].iov_base + skip;
        v[n].iov_len -= skip;
        if (v[n].iov_len > max - *sum)
            v[n].iov_len = max - *sum;
        *sum += v[n].iov_len;
        skip = 0;
        if (v[n].iov_len > 0)
            n++;
    }
    return n;
}

void kvf_tcp_op_moved(struct kvf_transfer_op *op, uint64_t n)
{
    op->moved += n;
    while (op->cur_iov < kvf_tcp_op_pieces(op)) {
        uint64_t rest =
            kvf_tcp_op_piece(op, op->cur_iov).iov_len - op->cur_iov_off;

        if (n < rest) {
            op->cur_iov_off += n;
            return;
        }
        n -= rest;
        op->cur_iov++;
        op->cur_iov_off = 0;
    }
}

bool kvf_tcp_op_staged(const struct kvf_transfer_op *op)
{
    return op->n_runs > 0 && !op->write &&
           op->length / op->n_runs <= KVF_TCP_STAGE_RUN;
}

void kvf_tcp_op_place(struct kvf_transfer_op *op, const uint8_t *from,
                      uint64_t n)
{
    op->moved += n;
    while (n > 0) {
        const struct kvf_run *r = &op->runs[op->cur_iov];
        uint64_t len = r->length - op->cur_iov_off;

        if (len > n)
            len = n;
        memcpy((uint8_t *)r->local + op->cur_iov_off, from, len);
        from += len;
        n -= len;
        op->cur_iov_off += len;
        if (op->cur_iov_off == r->length) {
            op->cur_iov++;
            op->cur_iov_off = 0;
        }
    }
}
