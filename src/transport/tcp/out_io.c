/* Getter's side: what one connection receives, and the connection as a source.
 *
 * Answers are received straight into the ops' memory, the header of the next
 * answer with the same system call. Failure modes: an end of file, an errno, or
 * an answer that is not the one expected fails the connection; an answer with a
 * status fails its op alone. What is received for a cancelled op goes to
 * scratch. */
#include "transport/tcp/tcp_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct kvf_tcp *tcp_of(const struct kvf_tcp_out *c)
{
    return c->tl->tcp;
}

void kvf_tcp_out_progress(struct kvf_tcp_out *c)
{
    c->last_progress = tcp_of(c)->t.sched->now_ns;
}

bool kvf_tcp_out_io_failed(struct kvf_tcp_out *c, const char *what, ssize_t n)
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

    if (op != NULL && !kvf_tcp_op_staged(op)) {
        n = kvf_tcp_op_rest(op, v, UINT64_MAX, &here);
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

    if (op != NULL && kvf_tcp_op_staged(op))
        kvf_tcp_op_place(op, tcp_of(c)->scratch, here);
    else if (op != NULL)
        kvf_tcp_op_moved(op, here);
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
            return kvf_tcp_out_io_failed(c, "recv", n);
        kvf_tcp_out_progress(c);
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
    kvf_tcp_out_progress(c);
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
