/* Getter's side: bytes of one connection.
 *
 * Happy path: requests of waiting ops are written in one go, as many as the
 * pipe takes; answers are received straight into the ops' memory, the header of
 * the next answer with the same system call. Failure modes: an end of file, an
 * errno, or an answer that is not the one expected fails the connection; an
 * answer with a status fails its op alone. What is received for a cancelled op
 * goes to scratch. */
#include "transport/tcp/tcp_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct kvf_tcp *tcp_of(const struct kvf_tcp_out *c)
{
    return c->tl->tcp;
}

static void progress(struct kvf_tcp_out *c)
{
    c->last_progress = tcp_of(c)->t.sched->now_ns;
}

static bool io_failed(struct kvf_tcp_out *c, const char *what, ssize_t n)
{
    struct kvf_why why;

    if (n == 0)
        kvf_fail(&why, KVF_TRANSPORT, "the peer closed the connection");
    else
        kvf_fail(&why, KVF_TRANSPORT, "%s: %s", what, strerror(errno));
    kvf_tcp_out_fail(c, &why);
    return false;
}

static bool lied(struct kvf_tcp_out *c, const char *how)
{
    struct kvf_why why;

    kvf_fail(&why, KVF_TRANSPORT, "the peer lied: %s", how);
    kvf_tcp_out_fail(c, &why);
    return false;
}

static unsigned op_pieces(const struct kvf_transfer_op *op)
{
    return op->n_runs > 0 ? op->n_runs : op->n_iov;
}

static struct iovec op_piece(const struct kvf_transfer_op *op, unsigned i)
{
    if (op->n_runs == 0)
        return op->iov[i];
    return (struct iovec){op->runs[i].local, op->runs[i].length};
}

/* The part of the op's memory that has not moved yet, as far as KVF_TCP_IOV
 * pieces and max bytes go; *sum says how many. */
static unsigned op_rest(const struct kvf_transfer_op *op, struct iovec *v,
                        uint64_t max, uint64_t *sum)
{
    uint64_t skip = op->cur_iov_off;
    unsigned n = 0;

    *sum = 0;
    for (unsigned i = op->cur_iov;
         i < op_pieces(op) && n < KVF_TCP_IOV && *sum < max; i++) {
        v[n] = op_piece(op, i);
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

static void op_moved(struct kvf_transfer_op *op, uint64_t n)
{
    op->moved += n;
    while (op->cur_iov < op_pieces(op)) {
        uint64_t rest = op_piece(op, op->cur_iov).iov_len - op->cur_iov_off;

        if (n < rest) {
            op->cur_iov_off += n;
            return;
        }
        n -= rest;
        op->cur_iov++;
        op->cur_iov_off = 0;
    }
}

/* Its pieces are so small that what is received is copied into place. */
static bool op_staged(const struct kvf_transfer_op *op)
{
    return op->n_runs > 0 && !op->write &&
           op->length / op->n_runs <= KVF_TCP_STAGE_RUN;
}

/* Copies n received bytes into place. */
static void op_place(struct kvf_transfer_op *op, const uint8_t *from,
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

/* ---- requests ----------------------------------------------------------- */

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

    op_moved(op, 0); /* past empty pieces */
    if (c->slot_n == 0)
        progress(c); /* the answer may take its time from now on */
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
    for (unsigned i = op->cur_iov; i < op_pieces(op); i++, skip = 0) {
        struct iovec v = op_piece(op, i);

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
        m.msg_iovlen += op_rest(c->tx_op, v + m.msg_iovlen, max, &sum);
    n = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
        uint64_t left = (uint64_t)n, hdr = c->tx_len - c->tx_off;

        if (hdr > left)
            hdr = left;
        c->tx_off += (unsigned)hdr;
        if (c->tx_op != NULL) {
            op_moved(c->tx_op, left - hdr);
            if (c->tx_op->moved == c->tx_op->length)
                c->tx_op = NULL; /* all of it is in the socket */
        }
        progress(c);
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
            return io_failed(c, "send", n);
        sent += (uint64_t)n;
    }
}

/* ---- answers ------------------------------------------------------------ */

static void slot_end(struct kvf_tcp_out *c, int status)
{
    struct kvf_transfer_op *op = c->slot[c->slot_first].op;
    struct kvf_why why;

    c->slot_first = (c->slot_first + 1) % KVF_TCP_PIPE;
    c->slot_n--;
    if (op == NULL)
        return;
    if (op->cancelled) {
        kvf_tcp_op_end(c, op, -KVF_CANCELLED, NULL);
        return;
    }
    if (status != 0)
        kvf_fail(&why, (enum kvf_status)status, "the owner refused: %s",
                 kvf_status_text((enum kvf_status)status));
    kvf_tcp_op_end(c, op, -status, status != 0 ? &why : NULL);
}

static bool header(struct kvf_tcp_out *c)
{
    const struct kvf_tcp_slot *s = &c->slot[c->slot_first];
    struct kvf_frame_rsp rsp;
    struct kvf_why why;

    c->rx_have = 0;
    if (kvf_frame_rsp_decode(&rsp, c->rx, &why) != 0)
        return lied(c, why.text);
    if (rsp.tag != s->tag)
        return lied(c, "an answer to another question");
    if (rsp.status >= KVF_STATUS_COUNT)
        return lied(c, "a status that does not exist");
    if (rsp.length != (s->write || rsp.status != 0 ? 0 : s->length))
        return lied(c, "another length than asked for");
    if (s->op != NULL && s->op == c->tx_op)
        return lied(c, "an answer before the bytes were sent");
    if (s->write || rsp.status != 0) {
        slot_end(c, (int)rsp.status);
        return true;
    }
    c->rx_body = true;
    c->rx_left = rsp.length;
    return true;
}

static unsigned body_iov(struct kvf_tcp_out *c, struct iovec *v)
{
    struct kvf_transfer_op *op = c->slot[c->slot_first].op;
    uint64_t here;
    unsigned n = 1;

    if (op != NULL && !op_staged(op)) {
        n = op_rest(op, v, UINT64_MAX, &here);
    } else {
        here = op != NULL ? KVF_TCP_STAGE : KVF_TCP_SCRATCH;
        if (here > c->rx_left)
            here = c->rx_left;
        v[0] = (struct iovec){tcp_of(c)->scratch, here};
    }
    if (c->slot_n > 1 && here == c->rx_left)
        v[n++] = (struct iovec){c->rx, sizeof c->rx};
    return n;
}

/* n bytes came where body_iov said. */
static bool body_came(struct kvf_tcp_out *c, uint64_t n)
{
    struct kvf_transfer_op *op = c->slot[c->slot_first].op;
    uint64_t here = n < c->rx_left ? n : c->rx_left;

    if (op != NULL && op_staged(op))
        op_place(op, tcp_of(c)->scratch, here);
    else if (op != NULL)
        op_moved(op, here);
    tcp_of(c)->t.stats->tcp_bytes += here;
    c->rx_left -= here;
    if (c->rx_left > 0)
        return true;
    c->rx_body = false;
    slot_end(c, 0);
    c->rx_have = (unsigned)(n - here);
    return c->rx_have < sizeof c->rx || header(c);
}

static bool header_came(struct kvf_tcp_out *c, uint64_t n)
{
    if (c->slot_n == 0)
        return lied(c, "bytes that nobody asked for");
    c->rx_have += (unsigned)n;
    return c->rx_have < sizeof c->rx || header(c);
}

static bool receive(struct kvf_tcp_out *c)
{
    for (uint64_t got = 0; got < KVF_TCP_BUDGET;) {
        struct iovec v[1 + KVF_TCP_IOV];
        struct msghdr m = {.msg_iov = v};
        ssize_t n;

        if (c->rx_body) {
            m.msg_iovlen = body_iov(c, v);
        } else {
            v[0] =
                (struct iovec){c->rx + c->rx_have, sizeof c->rx - c->rx_have};
            m.msg_iovlen = 1;
        }
        n = recvmsg(c->fd, &m, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n <= 0)
            return io_failed(c, "recv", n);
        progress(c);
        got += (uint64_t)n;
        if (!(c->rx_body ? body_came(c, (uint64_t)n)
                         : header_came(c, (uint64_t)n)))
            return false;
        if (c->slot_n == 0)
            return true;
    }
    return true; /* level-triggered: the rest comes with the next turn */
}

/* ---- the source --------------------------------------------------------- */

static bool connected(struct kvf_tcp_out *c)
{
    struct kvf_tcp_link *tl = c->tl;
    struct kvf_sched *s = tl->tcp->t.sched;
    struct kvf_preface p = {.version = KVF_FRAME_VERSION,
                            .stream = (uint16_t)c->stream};
    socklen_t len = sizeof(int);
    struct kvf_why why;
    int err = 0;

    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0)
        err = errno;
    if (err != 0) {
        kvf_fail(&why, KVF_PEER_UNREACHABLE, "connect: %s", strerror(err));
        kvf_tcp_out_fail(c, &why);
        return false;
    }
    kvf_tcp_tune(c->fd);
    memcpy(p.secret, tl->addr.secret, sizeof p.secret);
    kvf_preface_encode(&p, c->tx);
    explicit_bzero(p.secret, sizeof p.secret);
    c->tx_len = KVF_PREFACE_LEN;
    c->up = true;
    progress(c);
    tl->tcp->t.stats->tcp_connects++;
    kvf_timer_cancel(s, &c->timer);
    if (!kvf_list_empty(&c->unsent))
        kvf_timer_set(s, &c->timer,
                      s->now_ns + tl->tcp->conf.stall_ms * KVF_NS_PER_MS);
    if (!tl->was_up) {
        tl->was_up = true;
        tl->link->state = KVF_LINK_UP;
        kvf_task_post(s, &tl->event);
    }
    return true;
}

static void drain(struct kvf_source *src, unsigned ready, unsigned budget)
{
    struct kvf_tcp_out *c = kvf_container_of(src, struct kvf_tcp_out, src);

    (void)budget;
    if (!c->up && (ready == 0 || !connected(c)))
        return;
    if ((c->slot_n > 0 || ready != 0) && !receive(c))
        return;
    kvf_tcp_out_send(c);
}

/* Awake for spin_us after the last byte while an answer is due: the next bytes
 * come sooner than a sleep and a wake-up would take. */
static enum kvf_arm arm(struct kvf_source *src)
{
    struct kvf_tcp_out *c = kvf_container_of(src, struct kvf_tcp_out, src);
    struct kvf_tcp *tcp = tcp_of(c);

    if (!c->up)
        return KVF_ARM_QUIET;
    if (kvf_reactor_may_spin(src->reactor) && c->slot_n > 0 &&
        tcp->t.sched->now_ns - c->last_progress <
            tcp->conf.spin_us * KVF_NS_PER_US)
        return KVF_ARM_SPIN;
    kvf_source_want(src, KVF_WANT_READ | (c->tx_blocked ? KVF_WANT_WRITE : 0u));
    return KVF_ARM_QUIET;
}

const struct kvf_source_ops kvf_tcp_out_ops = {.drain = drain, .arm = arm};
