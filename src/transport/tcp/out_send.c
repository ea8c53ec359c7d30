/* Getter's side: the requests of one connection, and the bytes of writes.
 *
 * Happy path: requests of waiting ops are written in one go, as many as the
 * pipe takes, for one turn. An errno fails the connection. */
#include "transport/tcp/tcp_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct kvf_tcp *tcp_of(const struct kvf_tcp_out *c)
{
    return c->tl->tcp;
}

static enum kvf_frame_op frame_op(const struct kvf_transfer_op *op)
{
    if (op->n_runs > 0)
        return op->write ? KVF_FRAME_WRITE_RUNS : KVF_FRAME_READ_RUNS;
    return op->write ? KVF_FRAME_WRITE : KVF_FRAME_READ;
}

static void encode_one(struct kvf_tcp_out *c, struct kvf_transfer_op *op)
{
    struct kvf_frame_req f = {
        .op = frame_op(op),
        .tag = c->tl->next_tag++,
        .claim = op->remote->claim,
        .token = op->remote->token,
        .offset = op->n_runs > 0 ? 0 : op->offset,
        .length = op->length,
        .n_runs = op->n_runs,
    };

    kvf_tcp_op_moved(op, 0); /* past empty pieces */
    if (c->slot_n == 0)
        kvf_tcp_out_progress(c); /* the answer may take its time from now on */
    c->slot[(c->slot_first + c->slot_n++) % KVF_TCP_PIPE] =
        (struct kvf_tcp_slot){
            .tag = f.tag, .length = op->length, .op = op, .write = op->write};
    kvf_frame_req_encode(&f, c->tx + c->tx_len);
    c->tx_len += KVF_FRAME_REQ_LEN;
    for (unsigned i = 0; i < op->n_runs; i++) {
        kvf_frame_run_encode(
            &(struct kvf_range){op->runs[i].offset, op->runs[i].length},
            c->tx + c->tx_len);
        c->tx_len += KVF_FRAME_RUN_LEN;
    }
    if (op->write)
        c->tx_op = op;
}

/* 0, -KVF_BUSY when what is in tx has to go first, -KVF_NO_SPACE. */
static int tx_room(struct kvf_tcp_out *c, const struct kvf_transfer_op *op)
{
    unsigned need = KVF_FRAME_REQ_LEN + op->n_runs * KVF_FRAME_RUN_LEN;
    uint8_t *p;

    if (need <= c->tx_cap - c->tx_len)
        return 0;
    if (c->tx_cap >= KVF_TCP_TX_RUNS || op->n_runs == 0)
        return -KVF_BUSY;
    p = realloc(c->tx, KVF_TCP_TX_RUNS);
    if (p == NULL)
        return -KVF_NO_SPACE;
    c->tx = p;
    c->tx_cap = KVF_TCP_TX_RUNS;
    return tx_room(c, op);
}

bool kvf_tcp_out_copy_rest(struct kvf_tcp_out *c)
{
    const struct kvf_transfer_op *op = c->tx_op;
    unsigned rest = (unsigned)(op->length - op->moved);
    uint64_t skip = op->cur_iov_off;

    if (rest > c->tx_cap - c->tx_len) {
        uint8_t *p = realloc(c->tx, c->tx_len + rest);

        if (p == NULL)
            return false;
        c->tx = p;
        c->tx_cap = c->tx_len + rest;
    }
    for (unsigned i = op->cur_iov; i < kvf_tcp_op_pieces(op); i++, skip = 0) {
        struct iovec v = kvf_tcp_op_piece(op, i);

        memcpy(c->tx + c->tx_len, (const char *)v.iov_base + skip,
               v.iov_len - skip);
        c->tx_len += (unsigned)(v.iov_len - skip);
    }
    c->tx_op = NULL;
    c->tx_rest = true;
    return true;
}

/* All of it is in the socket; memory for the rest of a WRITE is not kept. */
static void tx_empty(struct kvf_tcp_out *c)
{
    uint8_t *p;

    c->tx_off = c->tx_len = 0;
    c->tx_rest = false;
    if (c->tx_cap <= KVF_TCP_TX_RUNS)
        return;
    p = realloc(c->tx, KVF_TCP_TX_RUNS);
    if (p == NULL)
        return;
    c->tx = p;
    c->tx_cap = KVF_TCP_TX_RUNS;
}

static void encode_requests(struct kvf_tcp_out *c)
{
    struct kvf_list *n;

    if (c->tx_off == c->tx_len)
        tx_empty(c);
    /* Nothing behind the rest of a cancelled WRITE: an owner that stands still
     * would have them pile up. */
    while (!c->tx_rest && c->tx_op == NULL && c->slot_n < KVF_TCP_PIPE &&
           (n = kvf_list_first(&c->unsent)) != NULL) {
        struct kvf_transfer_op *op =
            kvf_container_of(n, struct kvf_transfer_op, node);
        int rc = tx_room(c, op);

        if (rc == -KVF_BUSY)
            return;
        kvf_list_unlink(n);
        if (rc != 0)
            kvf_tcp_op_end(c, op, rc, NULL);
        else
            encode_one(c, op);
    }
}

static ssize_t send_once(struct kvf_tcp_out *c, uint64_t max)
{
    struct iovec v[1 + KVF_TCP_IOV];
    struct msghdr m = {.msg_iov = v};
    uint64_t sum;
    ssize_t n;

    if (c->tx_off < c->tx_len)
        v[m.msg_iovlen++] =
            (struct iovec){c->tx + c->tx_off, c->tx_len - c->tx_off};
    if (c->tx_op != NULL)
        m.msg_iovlen += kvf_tcp_op_rest(c->tx_op, v + m.msg_iovlen, max, &sum);
    n = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
        uint64_t left = (uint64_t)n, hdr = c->tx_len - c->tx_off;

        if (hdr > left)
            hdr = left;
        c->tx_off += (unsigned)hdr;
        if (c->tx_op != NULL) {
            kvf_tcp_op_moved(c->tx_op, left - hdr);
            if (c->tx_op->moved == c->tx_op->length)
                c->tx_op = NULL; /* all of it is in the socket */
        }
        kvf_tcp_out_progress(c);
    }
    return n;
}

static unsigned busy(const struct kvf_tcp_link *tl)
{
    unsigned n = 0;

    for (unsigned i = 0; i < tl->n_conn; i++)
        n += tl->conn[i].slot_n > 0;
    return n;
}

bool kvf_tcp_out_send(struct kvf_tcp_out *c)
{
    uint64_t sent = 0;
    uint64_t turn = kvf_tcp_turn(tcp_of(c), c->slot_n > 0, busy(c->tl));

    c->tx_blocked = false;
    for (;;) {
        ssize_t n;

        encode_requests(c);
        if (c->tx_off == c->tx_len && c->tx_op == NULL)
            return true;
        if (sent >= turn) {
            kvf_source_kick(&c->src);
            return true;
        }
        n = send_once(c, turn - sent);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            c->tx_blocked = true;
            return true;
        }
        if (n < 0)
            return kvf_tcp_out_io_failed(c, "send", n);
        sent += (uint64_t)n;
    }
}
