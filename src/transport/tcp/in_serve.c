/* Owner's side: answers out, in the order of the requests.
 *
 * Happy path: a READ is resolved when its turn comes, part by part, and header
 * and payload go to the socket straight from the pool, many pieces with one
 * call. Failure modes: a refused READ is answered with its status; once a
 * header promised bytes that can no longer be given, the connection is closed.
 */
#include "transport/tcp/tcp_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool lost(struct kvf_tcp_in *c)
{
    c->tcp->t.stats->tcp_errors++;
    kvf_tcp_in_close(c);
    return false;
}

/* ---- parts of a request ------------------------------------------------- */

void kvf_tcp_in_unpin(struct kvf_tcp_in *c, struct kvf_tcp_part *part)
{
    if (part->pin != NULL)
        c->tcp->serve->unpin(c->tcp->serve_arg, part->pin);
    part->pin = NULL;
}

void kvf_tcp_job_end(struct kvf_tcp_in *c, struct kvf_tcp_job *j)
{
    if (j->runs != NULL)
        c->n_runs -= j->req.n_runs;
    free(j->runs);
    j->runs = NULL;
}

static int resolve_runs(struct kvf_tcp_in *c, struct kvf_tcp_job *j,
                        struct kvf_tcp_part *part)
{
    const struct kvf_serve_ops *serve = c->tcp->serve;
    int rc;

    if (serve->resolve_runs == NULL)
        return -KVF_UNSUPPORTED;
    rc =
        serve->resolve_runs(c->tcp->serve_arg, c->session, j->req.claim,
                            &j->req.token, kvf_frame_is_write(&j->req),
                            j->runs + j->run_at, j->req.n_runs - j->run_at,
                            j->run_skip, part->iov, &part->n, &part->pin, NULL);
    if (rc != 0)
        return rc;
    for (unsigned i = 0; i < part->n; i++) {
        j->run_skip += part->iov[i].iov_len;
        if (j->run_skip == j->runs[j->run_at].length) {
            j->run_at++;
            j->run_skip = 0;
        }
    }
    return 0;
}

int kvf_tcp_in_resolve(struct kvf_tcp_in *c, struct kvf_tcp_job *j,
                       struct kvf_tcp_part *part)
{
    int rc;

    part->n = KVF_TCP_IOV;
    part->at = 0;
    part->pin = NULL;
    if (j->runs != NULL)
        rc = resolve_runs(c, j, part);
    else
        rc = c->tcp->serve->resolve(c->tcp->serve_arg, c->session, j->req.claim,
                                    &j->req.token, kvf_frame_is_write(&j->req),
                                    j->req.offset + j->req.length - j->left,
                                    j->left, part->iov, &part->n, &part->pin,
                                    NULL);
    if (rc == 0)
        return 0;
    part->n = 0;
    /* Only what may travel; everything unknown is INTERNAL. */
    return rc < 0 && -rc < (int)KVF_STATUS_COUNT ? -rc : (int)KVF_INTERNAL;
}

/* ---- answers ------------------------------------------------------------ */

static void answer_next(struct kvf_tcp_in *c)
{
    struct kvf_frame_rsp rsp = {0};

    c->tx = c->queue[c->q_first];
    c->q_first = (c->q_first + 1) % KVF_TCP_QUEUE;
    c->q_n--;
    c->tx_part.n = c->tx_part.at = 0;
    if (!kvf_frame_is_write(&c->tx.req))
        c->tx.status = kvf_tcp_in_resolve(c, &c->tx, &c->tx_part);
    if (c->tx.status != 0)
        c->tx.left = 0;
    rsp.tag = c->tx.req.tag;
    rsp.status = (uint32_t)c->tx.status;
    rsp.length = c->tx.left;
    kvf_frame_rsp_encode(&rsp, c->tx_hdr);
    c->tx_hdr_off = 0;
    c->tx_active = true;
}

/* Puts small pieces together; what the socket does not take of them is put
 * together anew the next time. */
static unsigned gather(struct kvf_tcp_in *c, struct iovec *v, uint64_t max)
{
    const struct kvf_tcp_part *part = &c->tx_part;
    uint8_t *to = c->tcp->scratch;
    uint64_t sum = 0;

    if (max > KVF_TCP_STAGE)
        max = KVF_TCP_STAGE;
    for (unsigned i = part->at; i < part->n && sum < max; i++) {
        uint64_t n = part->iov[i].iov_len;

        if (n > max - sum)
            n = max - sum;
        memcpy(to + sum, part->iov[i].iov_base, n);
        sum += n;
    }
    *v = (struct iovec){to, sum};
    return sum > 0;
}

static bool staged(const struct kvf_tcp_job *j)
{
    return j->runs != NULL &&
           j->req.length / j->req.n_runs <= KVF_TCP_STAGE_RUN;
}

static unsigned pieces(const struct kvf_tcp_in *c, struct iovec *v,
                       uint64_t max)
{
    const struct kvf_tcp_part *part = &c->tx_part;
    uint64_t sum = 0;
    unsigned n = 0;

    for (unsigned i = part->at; i < part->n && sum < max; i++, n++) {
        v[n] = part->iov[i];
        if (v[n].iov_len > max - sum)
            v[n].iov_len = max - sum;
        sum += v[n].iov_len;
    }
    return n;
}

static ssize_t send_once(struct kvf_tcp_in *c, uint64_t max)
{
    struct iovec v[1 + KVF_TCP_IOV];
    struct msghdr m = {.msg_iov = v};
    struct kvf_tcp_part *part = &c->tx_part;
    uint64_t hdr = KVF_FRAME_RSP_LEN - c->tx_hdr_off;
    ssize_t n;

    if (hdr > 0)
        v[m.msg_iovlen++] = (struct iovec){c->tx_hdr + c->tx_hdr_off, hdr};
    m.msg_iovlen += staged(&c->tx) ? gather(c, v + m.msg_iovlen, max)
                                   : pieces(c, v + m.msg_iovlen, max);
    n = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n <= 0)
        return n;
    c->last_progress = c->tcp->t.sched->now_ns;
    if (hdr > (uint64_t)n)
        hdr = (uint64_t)n;
    c->tx_hdr_off += (unsigned)hdr;
    c->tx.left -= (uint64_t)n - hdr;
    c->tcp->t.stats->tcp_sent_bytes += (uint64_t)n - hdr;
    kvf_tcp_iov_take(part->iov, part->n, &part->at, (uint64_t)n - hdr);
    return n;
}

/* After a send: the next part of the payload, or the end of the answer. */
static bool send_on(struct kvf_tcp_in *c)
{
    if (c->tx_hdr_off < KVF_FRAME_RSP_LEN || c->tx_part.at < c->tx_part.n)
        return true;
    kvf_tcp_in_unpin(c, &c->tx_part);
    if (c->tx.left == 0) {
        kvf_tcp_job_end(c, &c->tx);
        c->tx_active = false;
        return true;
    }
    if (kvf_tcp_in_resolve(c, &c->tx, &c->tx_part) != 0)
        return lost(c); /* the header has promised these bytes */
    return true;
}

void kvf_tcp_in_amid(struct kvf_tcp_in *c, bool amid)
{
    c->tcp->n_amid += amid;
    c->tcp->n_amid -= c->tx_amid;
    c->tx_amid = amid;
}

bool kvf_tcp_in_send(struct kvf_tcp_in *c, uint64_t *bytes)
{
    uint64_t turn;

    c->tx_blocked = false;
    if (!c->tx_active && c->q_n == 0)
        return true;
    turn = kvf_tcp_turn(c->tcp, c->tx_amid, c->tcp->n_amid);
    while (*bytes < turn && (c->tx_active || c->q_n > 0)) {
        ssize_t n;

        if (!c->tx_active)
            answer_next(c);
        n = send_once(c, turn - *bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            c->tx_blocked = true;
            return true;
        }
        if (n <= 0)
            return lost(c);
        kvf_tcp_in_amid(c, true);
        *bytes += (uint64_t)n;
        if (!send_on(c))
            return false;
    }
    if (!c->tx_active && c->q_n == 0)
        kvf_tcp_in_amid(c, false);
    return true;
}
