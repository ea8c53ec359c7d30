/* Getter's side: links, their connections, and which one an op takes.
 *
 * Happy path: link_open connects the first stream; ops may be posted at once
 * and wait for it; the first large transfer opens the other streams, which are
 * used as they come up. Failure modes: a connection that cannot be made, stalls
 * or lies is closed and its ops fail; the link goes down with its last
 * connection. Callbacks are made from tasks, never from here. */
#include "transport/tcp/tcp_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t ms(uint64_t v)
{
    return v * KVF_NS_PER_MS;
}

static void event(struct kvf_task *t)
{
    struct kvf_tcp_link *tl = kvf_container_of(t, struct kvf_tcp_link, event);
    struct kvf_link *link = tl->link;

    if (tl->was_up && !tl->told_up) {
        tl->told_up = true;
        if (link->state == KVF_LINK_DOWN)
            kvf_task_post(tl->tcp->t.sched, &tl->event);
        if (link->on_up != NULL)
            link->on_up(link); /* may close the link */
        return;
    }
    if (link->state == KVF_LINK_DOWN && link->on_down != NULL) {
        struct kvf_why why = tl->down_why;

        link->on_down(link, &why); /* may close the link */
    }
}

static void room(struct kvf_task *t)
{
    kvf_link_room(kvf_container_of(t, struct kvf_tcp_link, room)->link);
}

void kvf_tcp_op_end(struct kvf_tcp_out *c, struct kvf_transfer_op *op,
                    int status, const struct kvf_why *why)
{
    struct kvf_tcp_link *tl = c->tl;

    c->bytes_assigned -= op->length;
    kvf_op_finish(&tl->tcp->t, op, status, why);
    if (tl->starved) {
        tl->starved = false;
        kvf_task_post(tl->tcp->t.sched, &tl->room);
    }
}

static void fail_ops(struct kvf_tcp_out *c, int status,
                     const struct kvf_why *why)
{
    struct kvf_list *n;

    for (; c->slot_n > 0; c->slot_n--) {
        struct kvf_tcp_slot *s = &c->slot[c->slot_first];

        c->slot_first = (c->slot_first + 1) % KVF_TCP_PIPE;
        if (s->op != NULL)
            kvf_tcp_op_end(c, s->op, status, why);
    }
    c->tx_op = NULL;
    while ((n = kvf_list_pop(&c->unsent)) != NULL)
        kvf_tcp_op_end(c, kvf_container_of(n, struct kvf_transfer_op, node),
                       status, why);
}

static void out_close(struct kvf_tcp_out *c)
{
    if (c->fd < 0)
        return;
    kvf_timer_cancel(c->tl->tcp->t.sched, &c->timer);
    kvf_source_remove(&c->src);
    close(c->fd);
    c->fd = -1;
    c->tl->n_live--;
    c->tl->tcp->n_out--;
    c->up = false;
    free(c->tx);
    c->tx = NULL;
    c->tx_cap = c->tx_len = c->tx_off = 0;
    c->tx_rest = false;
}

void kvf_tcp_out_fail(struct kvf_tcp_out *c, const struct kvf_why *why)
{
    struct kvf_tcp_link *tl = c->tl;
    struct kvf_why named = *why;

    kvf_fail_prefix(&named, "%s:%u", tl->addr.host, tl->addr.port);
    if (c->up)
        tl->tcp->t.stats->tcp_errors++;
    out_close(c);
    fail_ops(c, -(int)named.status, &named);
    if (tl->n_live > 0)
        return;
    tl->link->state = KVF_LINK_DOWN;
    tl->down_why = named;
    kvf_task_post(tl->tcp->t.sched, &tl->event);
    kvf_task_post(tl->tcp->t.sched, &tl->room);
}

/* Connecting: the deadline. Up: no byte for stall_ms while ops wait. */
static void timer(struct kvf_timer *t)
{
    struct kvf_tcp_out *c = kvf_container_of(t, struct kvf_tcp_out, timer);
    struct kvf_tcp *tcp = c->tl->tcp;
    struct kvf_sched *s = tcp->t.sched;
    struct kvf_why why;

    if (!c->up) {
        kvf_fail(&why, KVF_PEER_UNREACHABLE, "no connection within %llu ms",
                 (unsigned long long)tcp->conf.connect_ms);
        kvf_tcp_out_fail(c, &why);
        return;
    }
    if (c->slot_n == 0 && kvf_list_empty(&c->unsent))
        return;
    if (s->stalled) /* we were stopped, not the peer */
        c->last_progress = s->now_ns;
    if (s->now_ns - c->last_progress < ms(tcp->conf.stall_ms)) {
        kvf_timer_set(s, t, c->last_progress + ms(tcp->conf.stall_ms));
        return;
    }
    kvf_fail(&why, KVF_TRANSPORT, "no byte for %llu ms",
             (unsigned long long)tcp->conf.stall_ms);
    kvf_tcp_out_fail(c, &why);
}

static int dial(struct kvf_tcp_out *c, struct kvf_why *why)
{
    struct kvf_tcp_link *tl = c->tl;
    int rc;

    c->fd =
        socket(tl->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        return kvf_fail(why, KVF_TRANSPORT, "socket: %s", strerror(errno));
    rc = connect(c->fd, (struct sockaddr *)&tl->sa, tl->sa_len);
    if (rc != 0 && errno != EINPROGRESS)
        rc =
            kvf_fail(why, KVF_PEER_UNREACHABLE, "connect: %s", strerror(errno));
    else
        rc = kvf_source_add(tl->tcp->reactor, &c->src, "tcp:out",
                            &kvf_tcp_out_ops, c->fd, KVF_WANT_WRITE, why);
    if (rc == 0)
        c->tx = malloc(KVF_TCP_TX);
    if (rc == 0 && c->tx == NULL) {
        kvf_source_remove(&c->src);
        rc = kvf_fail(why, KVF_NO_SPACE, "no memory for a connection");
    }
    if (rc != 0) {
        close(c->fd);
        c->fd = -1;
        return rc;
    }
    c->tx_cap = KVF_TCP_TX;
    return 0;
}

/* Starts the next stream. */
static int open_stream(struct kvf_tcp_link *tl, struct kvf_why *why)
{
    struct kvf_tcp_out *c = &tl->conn[tl->n_conn];
    struct kvf_sched *s = tl->tcp->t.sched;
    int rc;

    *c = (struct kvf_tcp_out){.tl = tl, .fd = -1, .stream = tl->n_conn};
    kvf_list_init(&c->unsent);
    kvf_timer_init(&c->timer, timer);
    tl->n_conn++;
    rc = dial(c, why);
    if (rc != 0)
        return rc;
    tl->n_live++;
    tl->tcp->n_out++;
    kvf_timer_set(s, &c->timer, s->now_ns + ms(tl->tcp->conf.connect_ms));
    return 0;
}

int kvf_tcp_link_open(struct kvf_transport *t, struct kvf_link *link,
                      const struct kvf_link_addr *addr, struct kvf_why *why)
{
    struct kvf_tcp_link *tl = calloc(1, sizeof *tl);
    struct kvf_why first;

    if (tl == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a link");
    tl->link = link;
    tl->tcp = kvf_container_of(t, struct kvf_tcp, t);
    tl->addr = *addr;
    tl->addr.host[sizeof tl->addr.host - 1] = '\0';
    if (kvf_tcp_parse_addr(tl->addr.host, addr->port, &tl->sa, &tl->sa_len) !=
        0) {
        free(tl);
        return kvf_fail(why, KVF_INVALID, "not a numeric address");
    }
    kvf_task_init(&tl->event, event);
    kvf_task_init(&tl->room, room);
    link->impl = tl;
    if (open_stream(tl, &first) != 0) {
        /* Told like every other failure to connect: later, by on_down. */
        kvf_fail_prefix(&first, "%s:%u", tl->addr.host, tl->addr.port);
        tl->down_why = first;
        link->state = KVF_LINK_DOWN;
        kvf_task_post(t->sched, &tl->event);
    }
    return 0;
}

void kvf_tcp_link_close(struct kvf_link *link)
{
    struct kvf_tcp_link *tl = link->impl;
    struct kvf_why why;

    kvf_fail(&why, KVF_CANCELLED, "the link was closed");
    for (unsigned i = 0; i < tl->n_conn; i++) {
        out_close(&tl->conn[i]);
        fail_ops(&tl->conn[i], -KVF_CANCELLED, &why);
    }
    kvf_task_cancel(&tl->event);
    kvf_task_cancel(&tl->room);
    explicit_bzero(&tl->addr, sizeof tl->addr);
    free(tl);
}

/* Small transfers take the first connection that lives, large ones the one with
 * the least to do. */
static struct kvf_tcp_out *pick(struct kvf_tcp_link *tl, uint64_t size)
{
    const struct kvf_tcp_conf *conf = &tl->tcp->conf;
    struct kvf_tcp_out *best = NULL;
    bool large = size >= conf->stream_min;

    if (large && tl->was_up)
        while (tl->n_conn < conf->streams)
            open_stream(tl, NULL); /* without it there are fewer */
    for (unsigned i = 0; i < tl->n_conn; i++) {
        struct kvf_tcp_out *c = &tl->conn[i];

        if (c->fd < 0 || (!c->up && tl->was_up))
            continue;
        if (best == NULL || (large && c->bytes_assigned < best->bytes_assigned))
            best = c;
    }
    if (best != NULL)
        return best;
    for (unsigned i = 0; i < tl->n_conn; i++)
        if (tl->conn[i].fd >= 0)
            return &tl->conn[i];
    return NULL;
}

int kvf_tcp_post(struct kvf_link *link, struct kvf_transfer_op *op,
                 struct kvf_why *why)
{
    struct kvf_tcp_link *tl = link->impl;
    struct kvf_sched *s = tl->tcp->t.sched;
    struct kvf_tcp_out *c;

    if (op->length > KVF_FRAME_MAX_LENGTH)
        return kvf_fail(why, KVF_INVALID, "piece of %llu bytes is too large",
                        (unsigned long long)op->length);
    if (link->inflight >= KVF_TCP_OPS_MAX) {
        tl->starved = true;
        return kvf_fail(why, KVF_BUSY, "%u requests wait already",
                        KVF_TCP_OPS_MAX);
    }
    c = pick(tl, kvf_op_total(op));
    if (c == NULL)
        return kvf_fail(why, KVF_PEER_UNREACHABLE, "no connection is left");
    if (c->up && c->slot_n == 0 && kvf_list_empty(&c->unsent))
        c->last_progress = s->now_ns;
    op->priv = c;
    c->bytes_assigned += op->length;
    kvf_list_push_back(&c->unsent, &op->node);
    if (c->up) {
        if (!kvf_timer_armed(&c->timer))
            kvf_timer_set(s, &c->timer, s->now_ns + ms(tl->tcp->conf.stall_ms));
        kvf_source_kick(&c->src);
    }
    return 0;
}

/* What was asked for goes its way without the op: the bytes of a READ to
 * scratch, those of a WRITE that are not sent yet from a copy. The owner may
 * still apply them, as long as the claim lives (transport.h). */
void kvf_tcp_cancel(struct kvf_link *link, struct kvf_transfer_op *op)
{
    struct kvf_tcp_out *c = op->priv;

    (void)link;
    for (unsigned i = 0; i < c->slot_n; i++) {
        struct kvf_tcp_slot *s = &c->slot[(c->slot_first + i) % KVF_TCP_PIPE];

        if (s->op != op)
            continue;
        if (c->tx_op == op && !kvf_tcp_out_copy_rest(c))
            return; /* it ends with its answer */
        s->op = NULL;
    }
    kvf_list_unlink(&op->node);
    kvf_tcp_op_end(c, op, -KVF_CANCELLED, NULL);
}
