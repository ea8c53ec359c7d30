/* Owner's side: requests in.
 *
 * Happy path: requests are read ahead into a bounded queue; a table of runs is
 * received into memory of its own, the bytes of a WRITE straight into the
 * claim's memory, and its answer is queued behind the READs before it. Failure
 * modes: a request or table that does not check closes the connection; a
 * refused WRITE has its bytes drained and is answered then. */
#include "transport/tcp/tcp_priv.h"

#include <errno.h>
#include <stdlib.h>
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

static void enqueue(struct kvf_tcp_in *c)
{
    c->queue[(c->q_first + c->q_n++) % KVF_TCP_QUEUE] = c->wr;
    c->wr.runs = NULL; /* the queue's now */
}

/* ---- the bytes of a WRITE ----------------------------------------------- */

static void write_part(struct kvf_tcp_in *c)
{
    if (c->wr.status == 0)
        c->wr.status = kvf_tcp_in_resolve(c, &c->wr, &c->wr_part);
}

static void write_begin(struct kvf_tcp_in *c)
{
    c->wr_active = true;
    write_part(c);
}

/* What was taken back since the last bytes came gets no more: they are drained.
 * So what is left of a connection that was cut, and is read late, cannot meet
 * what came by another one since. */
static void write_check(struct kvf_tcp_in *c)
{
    const struct kvf_serve_ops *serve = c->tcp->serve;

    if (!c->wr_active || c->wr.status != 0 || serve->live == NULL ||
        serve->live(c->tcp->serve_arg, c->wr_part.pin))
        return;
    kvf_tcp_in_unpin(c, &c->wr_part);
    c->wr.status = KVF_STALE;
}

/* n bytes of the WRITE were put where the part (or scratch) said. */
static void write_came(struct kvf_tcp_in *c, uint64_t n)
{
    struct kvf_tcp_part *p = &c->wr_part;

    c->wr.left -= n;
    if (c->wr.status == 0)
        kvf_tcp_iov_take(p->iov, p->n, &p->at, n);
    if (c->wr.left == 0) {
        kvf_tcp_in_unpin(c, p);
        c->wr_active = false;
        enqueue(c);
    } else if (c->wr.status == 0 && p->at == p->n) {
        kvf_tcp_in_unpin(c, p);
        write_part(c);
    }
}

/* Bytes of a WRITE that were read together with its header. */
static unsigned write_from(struct kvf_tcp_in *c, const uint8_t *p, unsigned len)
{
    unsigned used = 0;

    while (c->wr_active && used < len) {
        uint64_t n = len - used;

        if (n > c->wr.left)
            n = c->wr.left;
        if (c->wr.status == 0) {
            struct iovec *v = &c->wr_part.iov[c->wr_part.at];

            if (n > v->iov_len)
                n = v->iov_len;
            memcpy(v->iov_base, p + used, n);
        }
        used += (unsigned)n;
        write_came(c, n);
    }
    return used;
}

/* ---- the table of a request --------------------------------------------- */

/* What comes is put at the end of the memory in which the runs will lie. */
static uint8_t *table_end(const struct kvf_tcp_in *c)
{
    return (uint8_t *)(c->wr.runs + c->wr.req.n_runs);
}

/* False when there is no memory: the connection cannot go on. */
static bool table_begin(struct kvf_tcp_in *c)
{
    uint32_t n = c->wr.req.n_runs;

    c->wr.runs = malloc(n * sizeof *c->wr.runs);
    if (c->wr.runs == NULL)
        return false;
    c->n_runs += n;
    c->table_active = true;
    c->table_left = n * KVF_FRAME_RUN_LEN;
    return true;
}

/* False when the table does not check. */
static bool table_came(struct kvf_tcp_in *c, unsigned n)
{
    uint32_t bytes = c->wr.req.n_runs * KVF_FRAME_RUN_LEN;

    c->table_left -= n;
    if (c->table_left > 0)
        return true;
    c->table_active = false;
    if (kvf_frame_runs_decode(&c->wr.req, table_end(c) - bytes, c->wr.runs,
                              NULL) != 0)
        return false;
    if (kvf_frame_is_write(&c->wr.req))
        write_begin(c);
    else
        enqueue(c);
    return true;
}

/* ---- requests ----------------------------------------------------------- */

/* False when the connection cannot go on. */
static bool request(struct kvf_tcp_in *c, const uint8_t *p)
{
    c->wr = (struct kvf_tcp_job){0};
    if (kvf_frame_req_decode(&c->wr.req, p, NULL) != 0)
        return false;
    c->wr.left = c->wr.req.length;
    if (c->wr.req.n_runs > 0)
        return table_begin(c);
    if (kvf_frame_is_write(&c->wr.req))
        write_begin(c);
    else
        enqueue(c);
    return true;
}

static bool parse(struct kvf_tcp_in *c)
{
    unsigned at = 0;

    for (;;) {
        unsigned len = c->rx_len - at;

        if (c->wr_active && len > 0) {
            at += write_from(c, c->rx + at, len);
        } else if (c->table_active && len > 0) {
            if (len > c->table_left)
                len = c->table_left;
            memcpy(table_end(c) - c->table_left, c->rx + at, len);
            at += len;
            if (!table_came(c, len))
                return lost(c);
        } else if (c->wr_active || c->table_active || !kvf_tcp_in_takes(c) ||
                   len < KVF_FRAME_REQ_LEN) {
            break;
        } else {
            if (!request(c, c->rx + at))
                return lost(c);
            at += KVF_FRAME_REQ_LEN;
        }
    }
    memmove(c->rx, c->rx + at, c->rx_len - at);
    c->rx_len -= at;
    return true;
}

/* Where the next bytes belong. While a table or the bytes of a WRITE come, rx
 * is empty. */
static unsigned receive_iov(struct kvf_tcp_in *c, struct iovec *v)
{
    struct kvf_tcp_part *p = &c->wr_part;
    unsigned n = 0;

    if (c->wr_active && c->wr.status == 0) {
        memcpy(v, p->iov + p->at, (p->n - p->at) * sizeof *v);
        return p->n - p->at;
    }
    if (c->wr_active) {
        v[0] = (struct iovec){c->tcp->scratch, c->wr.left < KVF_TCP_SCRATCH
                                                   ? c->wr.left
                                                   : KVF_TCP_SCRATCH};
        return 1;
    }
    if (c->table_active)
        v[n++] = (struct iovec){table_end(c) - c->table_left, c->table_left};
    v[n++] = (struct iovec){c->rx + c->rx_len, sizeof c->rx - c->rx_len};
    return n;
}

/* What recvmsg said; -2: the connection cannot go on. */
static ssize_t receive_once(struct kvf_tcp_in *c)
{
    struct iovec v[KVF_TCP_IOV];
    struct msghdr m = {.msg_iov = v};
    ssize_t n;

    m.msg_iovlen = receive_iov(c, v);
    n = recvmsg(c->fd, &m, MSG_DONTWAIT);
    if (n <= 0)
        return n;
    progress(c);
    if (c->wr_active) {
        write_came(c, (uint64_t)n);
    } else if (c->table_active && (size_t)n > c->table_left) {
        c->rx_len = (unsigned)n - c->table_left;
        return table_came(c, c->table_left) ? n : -2;
    } else if (c->table_active) {
        return table_came(c, (unsigned)n) ? n : -2;
    } else {
        c->rx_len += (unsigned)n;
    }
    return n;
}

bool kvf_tcp_in_receive(struct kvf_tcp_in *c, uint64_t *bytes)
{
    write_check(c); /* nothing ends while we are at it */
    /* What is left in rx is first: the queue was full when it came. */
    if (c->rx_len > 0 && !parse(c))
        return false;
    while (*bytes < KVF_TCP_BUDGET) {
        bool body = c->wr_active || c->table_active;
        ssize_t n;

        if (!body && (!kvf_tcp_in_takes(c) || c->rx_len == sizeof c->rx))
            return true;
        n = receive_once(c);
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1 && errno == EAGAIN)
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
        if (!body && !c->wr_active && !c->table_active)
            return true;
    }
    return true;
}
