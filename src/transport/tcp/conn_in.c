/* Owner's side: one accepted connection, from its preface to its end.
 *
 * Happy path: the preface proves the caller with an admitted secret; from then
 * on requests are read ahead into a bounded queue and answered in order
 * (in_recv.c, in_serve.c). Failure modes: no or a wrong preface closes without
 * a word and is counted; a malformed request, an errno or a receiver that takes
 * no byte for stall_ms closes the connection. Closing gives back every pin: a
 * closed socket is quiet, because bytes are sent by copying calls only. */
#include "transport/tcp/tcp_priv.h"

#include "base/rng.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct kvf_sched *sched_of(const struct kvf_tcp_in *c)
{
    return c->tcp->t.sched;
}

bool kvf_tcp_in_serving(const struct kvf_tcp_in *c)
{
    return c->tx_active || c->wr_active || c->table_active || c->q_n > 0;
}

void kvf_tcp_in_close(struct kvf_tcp_in *c)
{
    struct kvf_tcp *tcp = c->tcp;

    kvf_timer_cancel(sched_of(c), &c->timer);
    kvf_source_remove(&c->src);
    close(c->fd);
    kvf_list_unlink(&c->node);
    tcp->n_in--;
    kvf_tcp_in_amid(c, false);
    kvf_tcp_in_unpin(c, &c->tx_part);
    kvf_tcp_in_unpin(c, &c->wr_part);
    kvf_tcp_job_end(c, &c->tx);
    kvf_tcp_job_end(c, &c->wr);
    for (; c->q_n > 0; c->q_n--) {
        kvf_tcp_job_end(c, &c->queue[c->q_first]);
        c->q_first = (c->q_first + 1) % KVF_TCP_QUEUE;
    }
    free(c);
}

static void reject(struct kvf_tcp_in *c)
{
    c->tcp->t.stats->tcp_rejected++;
    kvf_tcp_in_close(c);
}

static void timer(struct kvf_timer *t)
{
    struct kvf_tcp_in *c = kvf_container_of(t, struct kvf_tcp_in, timer);
    struct kvf_sched *s = sched_of(c);
    uint64_t stall = c->tcp->conf.stall_ms * KVF_NS_PER_MS;

    if (!c->proven) {
        reject(c);
        return;
    }
    if (!kvf_tcp_in_serving(c))
        return; /* armed again by the next request */
    if (s->stalled)
        c->last_progress = s->now_ns;
    if (s->now_ns - c->last_progress < stall) {
        kvf_timer_set(s, t, c->last_progress + stall);
        return;
    }
    c->tcp->t.stats->tcp_errors++;
    kvf_tcp_in_close(c);
}

/* Compares with every secret, whichever matches, so that the time tells
 * nothing. */
static bool prove(struct kvf_tcp_in *c, const struct kvf_preface *p)
{
    struct kvf_tcp *tcp = c->tcp;
    bool found = false;

    for (unsigned i = 0; i < tcp->n_secrets; i++) {
        if (kvf_secret_equal(tcp->secrets[i].secret, p->secret,
                             sizeof p->secret)) {
            c->session = tcp->secrets[i].session;
            found = true;
        }
    }
    return found;
}

/* False when the connection was closed. */
static bool preface(struct kvf_tcp_in *c)
{
    struct kvf_preface p;
    ssize_t n;

    n = recv(c->fd, c->rx + c->rx_len, KVF_PREFACE_LEN - c->rx_len,
             MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n <= 0) {
        kvf_tcp_in_close(c); /* changed its mind */
        return false;
    }
    c->rx_len += (unsigned)n;
    if (c->rx_len < KVF_PREFACE_LEN)
        return true;
    if (kvf_preface_decode(&p, c->rx, NULL) != 0 || !prove(c, &p)) {
        reject(c);
        return false;
    }
    explicit_bzero(&p, sizeof p);
    explicit_bzero(c->rx, KVF_PREFACE_LEN);
    c->rx_len = 0;
    c->proven = true;
    c->last_progress = sched_of(c)->now_ns;
    kvf_timer_cancel(sched_of(c), &c->timer);
    c->tcp->t.stats->tcp_accepts++;
    return true;
}

static void drain(struct kvf_source *src, unsigned ready, unsigned budget)
{
    struct kvf_tcp_in *c = kvf_container_of(src, struct kvf_tcp_in, src);
    uint64_t bytes = 0;

    (void)ready;
    (void)budget;
    if (!c->proven && (!preface(c) || !c->proven))
        return;
    if (!kvf_tcp_in_receive(c, &bytes) || !kvf_tcp_in_send(c, &bytes))
        return;
    if (kvf_tcp_in_serving(c) && !kvf_timer_armed(&c->timer))
        kvf_timer_set(sched_of(c), &c->timer,
                      sched_of(c)->now_ns +
                          c->tcp->conf.stall_ms * KVF_NS_PER_MS);
}

static bool reads_ahead(const struct kvf_tcp_in *c)
{
    return c->wr_active || c->table_active || kvf_tcp_in_takes(c);
}

/* Awake for spin_us after the last byte: the next request, or room in the
 * socket, comes sooner than a sleep and a wake-up would take. */
static enum kvf_arm arm(struct kvf_source *src)
{
    struct kvf_tcp_in *c = kvf_container_of(src, struct kvf_tcp_in, src);
    unsigned want = 0;

    /* The budget ended the turn, or the queue was full: there is work here
     * that the socket will not tell of. */
    if (!c->tx_blocked && (c->tx_active || c->q_n > 0))
        return KVF_ARM_BUSY;
    if (!c->wr_active && kvf_tcp_in_takes(c) && c->proven &&
        c->rx_len >= KVF_FRAME_REQ_LEN)
        return KVF_ARM_BUSY;
    if (kvf_reactor_may_spin(src->reactor) && c->proven &&
        sched_of(c)->now_ns - c->last_progress <
            c->tcp->conf.spin_us * KVF_NS_PER_US)
        return KVF_ARM_SPIN;
    if (reads_ahead(c))
        want |= KVF_WANT_READ;
    if (c->tx_blocked)
        want |= KVF_WANT_WRITE;
    kvf_source_want(src, want);
    return KVF_ARM_QUIET;
}

static const struct kvf_source_ops in_ops = {.drain = drain, .arm = arm};

void kvf_tcp_in_accept(struct kvf_tcp *tcp, int fd)
{
    struct kvf_sched *s = tcp->t.sched;
    struct kvf_tcp_in *c = NULL;

    if (tcp->n_in < tcp->conf.max_conns)
        c = calloc(1, sizeof *c);
    if (c == NULL) {
        close(fd);
        return;
    }
    kvf_tcp_tune(fd);
    c->tcp = tcp;
    c->fd = fd;
    kvf_timer_init(&c->timer, timer);
    kvf_list_init(&c->node);
    if (kvf_source_add(tcp->reactor, &c->src, "tcp:in", &in_ops, fd,
                       KVF_WANT_READ, NULL) != 0) {
        close(fd);
        free(c);
        return;
    }
    kvf_list_push_back(&tcp->in_conns, &c->node);
    tcp->n_in++;
    kvf_timer_set(s, &c->timer,
                  s->now_ns + tcp->conf.connect_ms * KVF_NS_PER_MS);
}
