/* Owner's side: requests in, answers out, in order.
 *
 * Happy path: a READ is resolved when its turn comes, and header and payload go
 * to the socket straight from the pool; the bytes of a WRITE are received
 * straight into the claim's memory and its answer queued behind the READs
 * before it. Failure modes: a refused READ is answered with its status; a
 * refused WRITE has its bytes drained and is answered then; once a header
 * promised bytes that can no longer be given, the connection is closed. */
#include "transport/tcp/tcp_priv.h"

#include <errno.h>
#include <string.h>

static void progress(struct kvf_tcp_in *c)
{
    c->last_progress = c->tcp->t.sched->now_ns;
}

static bool lost(struct kvf_tcp_in *c)
{
    c->tcp->t.stats->tcp_errors++;
    kvf_tcp_in_close(c);
    return false;
}

static void unpin(struct kvf_tcp_in *c, void **pin)
{
    if (*pin != NULL)
        c->tcp->serve->unpin(c->tcp->serve_arg, *pin);
    *pin = NULL;
}

/* A status that may travel; everything unknown is INTERNAL. */
static int failure(int rc)
{
    return rc < 0 && -rc < (int)KVF_STATUS_COUNT ? -rc : (int)KVF_INTERNAL;
}

static int resolve(struct kvf_tcp_in *c, const struct kvf_frame_req *r,
                   uint64_t left, struct iovec *iov, unsigned *n, void **pin)
{
    *n = KVF_OP_IOV;
    *pin = NULL;
    return c->tcp->serve->resolve(c->tcp->serve_arg, c->session, r->claim,
                                  &r->token, r->op == KVF_FRAME_WRITE,
                                  r->offset + r->length - left, left, iov, n,
                                  pin, NULL);
}

/* ---- requests ------------------------------------------------------------ */

static void enqueue(struct kvf_tcp_in *c, const struct kvf_frame_req *r,
                    int status)
{
    c->queue[(c->q_first + c->q_n++) % KVF_TCP_QUEUE] =
        (struct kvf_tcp_answer){.req = *r, .status = status};
}

static void write_part(struct kvf_tcp_in *c)
{
    int rc;

    if (c->wr_status != 0)
        return;
    rc =
        resolve(c, &c->wr_req, c->wr_left, c->wr_iov, &c->wr_iov_n, &c->wr_pin);
    c->wr_iov_at = 0;
    if (rc != 0)
        c->wr_status = failure(rc);
}

static void write_done(struct kvf_tcp_in *c)
{
    unpin(c, &c->wr_pin);
    c->wr_active = false;
    enqueue(c, &c->wr_req, c->wr_status);
}

/* n bytes of the WRITE were put where wr_iov (or scratch) said. */
static void write_came(struct kvf_tcp_in *c, uint64_t n)
{
    c->wr_left -= n;
    if (c->wr_status == 0)
        kvf_tcp_iov_take(c->wr_iov, c->wr_iov_n, &c->wr_iov_at, n);
    if (c->wr_left == 0) {
        write_done(c);
    } else if (c->wr_status == 0 && c->wr_iov_at == c->wr_iov_n) {
        unpin(c, &c->wr_pin);
        write_part(c);
    }
}

/* Bytes of a WRITE that were read together with its header. */
static unsigned write_from(struct kvf_tcp_in *c, const uint8_t *p, unsigned len)
{
    unsigned used = 0;

    while (c->wr_active && used < len) {
        uint64_t n = len - used;

        if (n > c->wr_left)
            n = c->wr_left;
        if (c->wr_status == 0) {
            struct iovec *v = &c->wr_iov[c->wr_iov_at];

            if (n > v->iov_len)
                n = v->iov_len;
            memcpy(v->iov_base, p + used, n);
        }
        used += (unsigned)n;
        write_came(c, n);
    }
    return used;
}

static bool parse(struct kvf_tcp_in *c)
{
    unsigned at = 0;

    while (c->q_n < KVF_TCP_QUEUE) {
        struct kvf_frame_req r;

        if (c->wr_active)
            at += write_from(c, c->rx + at, c->rx_len - at);
        if (c->wr_active || c->rx_len - at < KVF_FRAME_REQ_LEN ||
            c->q_n == KVF_TCP_QUEUE)
            break;
        if (kvf_frame_req_decode(&r, c->rx + at, NULL) != 0)
            return lost(c);
        at += KVF_FRAME_REQ_LEN;
        if (r.op == KVF_FRAME_READ) {
            enqueue(c, &r, 0);
            continue;
        }
        c->wr_active = true;
        c->wr_req = r;
        c->wr_left = r.length;
        c->wr_status = 0;
        write_part(c);
    }
    memmove(c->rx, c->rx + at, c->rx_len - at);
    c->rx_len -= at;
    return true;
}

static ssize_t receive_once(struct kvf_tcp_in *c)
{
    struct iovec v[1 + KVF_OP_IOV];
    struct msghdr m = {.msg_iov = v};
    ssize_t n;

    if (c->wr_active && c->wr_status == 0) {
        for (unsigned i = c->wr_iov_at; i < c->wr_iov_n; i++)
            v[m.msg_iovlen++] = c->wr_iov[i];
    } else if (c->wr_active) {
        v[m.msg_iovlen++] = (struct iovec){
            c->tcp->scratch,
            c->wr_left < KVF_TCP_SCRATCH ? c->wr_left : KVF_TCP_SCRATCH};
    } else {
        v[m.msg_iovlen++] =
            (struct iovec){c->rx + c->rx_len, sizeof c->rx - c->rx_len};
    }
    n = recvmsg(c->fd, &m, MSG_DONTWAIT);
    if (n <= 0)
        return n;
    progress(c);
    if (c->wr_active)
        write_came(c, (uint64_t)n);
    else
        c->rx_len += (unsigned)n;
    return n;
}

bool kvf_tcp_in_receive(struct kvf_tcp_in *c, uint64_t *bytes)
{
    /* What is left in rx is first: the queue was full when it came. */
    if (c->rx_len > 0 && !parse(c))
        return false;
    while (*bytes < KVF_TCP_BUDGET) {
        bool body = c->wr_active;
        ssize_t n;

        if (!body && (c->q_n == KVF_TCP_QUEUE || c->rx_len == sizeof c->rx))
            return true;
        n = receive_once(c);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n == 0 && !kvf_tcp_in_serving(c) && c->rx_len == 0) {
            kvf_tcp_in_close(c); /* the getter is done with us */
            return false;
        }
        if (n <= 0)
            return lost(c);
        *bytes += (uint64_t)n;
        if (!parse(c))
            return false;
        /* A short read of requests says that the socket is empty. */
        if (!body && !c->wr_active)
            return true;
    }
    return true;
}

/* ---- answers ------------------------------------------------------------- */

static void answer_next(struct kvf_tcp_in *c)
{
    struct kvf_tcp_answer *a = &c->queue[c->q_first];
    struct kvf_frame_rsp rsp = {.tag = a->req.tag};
    int rc = a->status;

    c->tx_req = a->req;
    c->q_first = (c->q_first + 1) % KVF_TCP_QUEUE;
    c->q_n--;
    c->tx_left = 0;
    c->tx_iov_n = c->tx_iov_at = 0;
    if (c->tx_req.op == KVF_FRAME_READ) {
        rc = resolve(c, &c->tx_req, c->tx_req.length, c->tx_iov, &c->tx_iov_n,
                     &c->tx_pin);
        if (rc != 0) {
            rc = failure(rc);
            c->tx_iov_n = 0;
        } else {
            rsp.length = c->tx_left = c->tx_req.length;
        }
    }
    rsp.status = (uint32_t)rc;
    kvf_frame_rsp_encode(&rsp, c->tx_hdr);
    c->tx_hdr_off = 0;
    c->tx_active = true;
}

static ssize_t send_once(struct kvf_tcp_in *c, uint64_t max)
{
    struct iovec v[1 + KVF_OP_IOV];
    struct msghdr m = {.msg_iov = v};
    uint64_t sum = 0, hdr = KVF_FRAME_RSP_LEN - c->tx_hdr_off;
    ssize_t n;

    if (hdr > 0)
        v[m.msg_iovlen++] = (struct iovec){c->tx_hdr + c->tx_hdr_off, hdr};
    for (unsigned i = c->tx_iov_at; i < c->tx_iov_n && sum < max; i++) {
        struct iovec p = c->tx_iov[i];

        if (p.iov_len > max - sum)
            p.iov_len = max - sum;
        sum += p.iov_len;
        v[m.msg_iovlen++] = p;
    }
    n = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n <= 0)
        return n;
    progress(c);
    if (hdr > (uint64_t)n)
        hdr = (uint64_t)n;
    c->tx_hdr_off += (unsigned)hdr;
    c->tx_left -= (uint64_t)n - hdr;
    c->tcp->t.stats->tcp_sent_bytes += (uint64_t)n - hdr;
    kvf_tcp_iov_take(c->tx_iov, c->tx_iov_n, &c->tx_iov_at, (uint64_t)n - hdr);
    return n;
}

/* After a send: the next part of the payload, or the end of the answer. */
static bool send_on(struct kvf_tcp_in *c)
{
    if (c->tx_hdr_off < KVF_FRAME_RSP_LEN || c->tx_iov_at < c->tx_iov_n)
        return true;
    unpin(c, &c->tx_pin);
    if (c->tx_left == 0) {
        c->tx_active = false;
        return true;
    }
    c->tx_iov_at = 0;
    if (resolve(c, &c->tx_req, c->tx_left, c->tx_iov, &c->tx_iov_n,
                &c->tx_pin) != 0)
        return lost(c); /* the header has promised these bytes */
    return true;
}

bool kvf_tcp_in_send(struct kvf_tcp_in *c, uint64_t *bytes)
{
    c->tx_blocked = false;
    while (*bytes < KVF_TCP_BUDGET) {
        ssize_t n;

        if (!c->tx_active && c->q_n == 0)
            return true;
        if (!c->tx_active)
            answer_next(c);
        n = send_once(c, KVF_TCP_BUDGET - *bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            c->tx_blocked = true;
            return true;
        }
        if (n <= 0)
            return lost(c);
        *bytes += (uint64_t)n;
        if (!send_on(c))
            return false;
    }
    return true;
}
