/* ZMQ sockets in the loop.
 *
 * drain() receives a budget of messages, retries what waits for room and tells
 * the owner that it may write. arm() asks ZMQ_EVENTS once, after all handlers
 * of the iteration have run, and says BUSY when something can be done at once:
 * the descriptor would not tell, since any call into libzmq clears it. It need
 * not ask when the last call was a receive that found nothing: that has read
 * the mailbox and looked at every pipe, as ZMQ_EVENTS does.
 *
 * A ROUTER always runs in mandatory mode: without it libzmq silently throws
 * away what finds no room. A context that is being ended (ETERM) or a socket
 * that failed for good goes quiet; its owner closes it. */
#include "loop/zsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <zmq.h>

#include "loop/zqueue.h"

#define MAX_SOCKETS 2048
#define RETRY_MIN_NS (1 * KVF_NS_PER_MS)
#define RETRY_MAX_NS (50 * KVF_NS_PER_MS)

struct kvf_zctx {
    void *ctx;
};

struct kvf_zsock {
    struct kvf_source src;
    struct kvf_timer retry;
    uint64_t retry_ns; /* the next pause */
    struct kvf_zqueue queue;
    struct kvf_sched *sched;
    void *zmq;
    struct kvf_zsock_ops ops;
    void *arg;
    enum kvf_zsock_type type;
    bool mandatory, immediate;
    unsigned crowd;
    bool quiet;     /* the last call found nothing to receive */
    bool writable;  /* immediate: as arm() saw it last */
    bool tell;      /* on_writable is owed as soon as POLLOUT holds */
    bool dead;      /* libzmq gave up on it */
    bool closed;    /* freed when the outermost callback has returned */
    unsigned depth; /* callbacks under way */
};

struct kvf_zctx *kvf_zctx_create(struct kvf_why *why)
{
    struct kvf_zctx *z = calloc(1, sizeof *z);

    if (z != NULL)
        z->ctx = zmq_ctx_new();
    if (z == NULL || z->ctx == NULL) {
        kvf_fail(why, KVF_NO_SPACE, "no memory for a ZMQ context");
        free(z);
        return NULL;
    }
    zmq_ctx_set(z->ctx, ZMQ_BLOCKY, 0);
    zmq_ctx_set(z->ctx, ZMQ_MAX_SOCKETS, MAX_SOCKETS);
    return z;
}

void kvf_zctx_destroy(struct kvf_zctx *z)
{
    if (z == NULL)
        return;
    while (zmq_ctx_term(z->ctx) != 0 && errno == EINTR)
        ;
    free(z);
}

static void enter(struct kvf_zsock *s)
{
    s->depth++;
}

/* False when the socket was closed meanwhile; it may be freed then. */
static bool leave(struct kvf_zsock *s)
{
    bool open = !s->closed;

    if (--s->depth == 0 && !open)
        free(s);
    return open;
}

static int events_of(struct kvf_zsock *s)
{
    int ev = 0;
    size_t len = sizeof ev;

    while (zmq_getsockopt(s->zmq, ZMQ_EVENTS, &ev, &len) != 0) {
        if (errno == EINTR)
            continue;
        s->dead = true;
        return 0;
    }
    return ev;
}

static enum kvf_arm arm(struct kvf_source *src)
{
    struct kvf_zsock *s = kvf_container_of(src, struct kvf_zsock, src);
    int ev;

    if (s->dead || (s->quiet && !s->immediate && !s->tell))
        return KVF_ARM_QUIET;
    ev = events_of(s);
    if (s->immediate) {
        bool writable = (ev & ZMQ_POLLOUT) != 0;

        if (writable && !s->writable)
            s->tell = true;
        s->writable = writable;
    }
    if ((ev & ZMQ_POLLIN) != 0 || (s->tell && (ev & ZMQ_POLLOUT) != 0))
        return KVF_ARM_BUSY;
    return KVF_ARM_QUIET;
}

/* One frame into *m. 1: there, 0: none, and *more as libzmq says. */
static int recv_frame(struct kvf_zsock *s, zmq_msg_t *m, bool *more)
{
    zmq_msg_init(m);
    s->quiet = false;
    while (zmq_msg_recv(m, s->zmq, ZMQ_DONTWAIT) < 0) {
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN)
            s->quiet = true;
        else
            s->dead = true;
        zmq_msg_close(m);
        return 0;
    }
    *more = zmq_msg_more(m) != 0;
    return 1;
}

/* Takes one whole message; libzmq hands over all parts or none. Returns false
 * when there is none, or when the owner closed the socket. */
static bool recv_message(struct kvf_zsock *s)
{
    zmq_msg_t part[KVF_ZMSG_PARTS], extra;
    struct kvf_zmsg msg = {.peer_address = ""};
    bool more = true;
    const char *addr;

    while (more && msg.n < KVF_ZMSG_PARTS &&
           recv_frame(s, &part[msg.n], &more)) {
        msg.part[msg.n] = (struct kvf_frame){zmq_msg_data(&part[msg.n]),
                                             zmq_msg_size(&part[msg.n])};
        msg.n++;
    }
    if (msg.n == 0)
        return false;
    while (more && msg.n == KVF_ZMSG_PARTS && recv_frame(s, &extra, &more)) {
        msg.overlong = true;
        zmq_msg_close(&extra);
    }
    addr = zmq_msg_gets(&part[msg.n - 1], "Peer-Address");
    if (addr != NULL)
        msg.peer_address = addr;
    s->ops.on_message(s->arg, &msg);
    for (unsigned i = 0; i < msg.n; i++)
        zmq_msg_close(&part[i]);
    return !s->closed;
}

/* EINTR does not count; errno is left for the caller. */
static int send_frame(struct kvf_zsock *s, const struct kvf_frame *f, int flags)
{
    int rc;

    s->quiet = false;
    do
        rc = zmq_send(s->zmq, f->data, f->size, ZMQ_DONTWAIT | flags);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -1 : 0;
}

/* 0 or an errno. */
static int send_frames(struct kvf_zsock *s, const struct kvf_frame *frames,
                       unsigned n)
{
    int err = 0;

    for (unsigned i = 0; i < n; i++) {
        if (send_frame(s, &frames[i], i + 1 < n ? ZMQ_SNDMORE : 0) == 0)
            continue;
        if (err == 0)
            err = errno;
        if (i == 0)
            break;
        /* The connection went away in the middle. libzmq now drops parts up to
         * the last one, so it must see them all. */
    }
    if (err != 0 && err != EAGAIN && err != EHOSTUNREACH)
        s->dead = s->dead || err == ETERM || err == ENOTSOCK;
    return err;
}

static void taken(struct kvf_zsock *s, uint64_t cookie)
{
    if (cookie != 0 && s->ops.on_taken != NULL)
        s->ops.on_taken(s->arg, cookie);
}

static enum kvf_zsent send_pending(void *arg, const struct kvf_zpending *p)
{
    switch (send_frames(arg, p->frame, p->n)) {
    case 0:
        taken(arg, p->cookie);
        return KVF_ZSENT;
    case EAGAIN:
        return KVF_ZSENT_FULL;
    default:
        return KVF_ZSENT_GONE;
    }
}

/* Retries what waits and tells of what can never go. False when closed. */
static bool flush(struct kvf_zsock *s)
{
    uint64_t cookie;

    if (s->queue.len != 0) {
        kvf_source_touch(&s->src);
        if (kvf_zqueue_flush(&s->queue, send_pending, s) != 0)
            s->retry_ns = RETRY_MIN_NS;
    }
    while (!s->closed && kvf_zqueue_pop_dead(&s->queue, &cookie))
        if (cookie != 0 && s->ops.on_undeliverable != NULL)
            s->ops.on_undeliverable(s->arg, cookie);
    if (s->closed)
        return false;
    if (s->queue.len == 0)
        kvf_timer_cancel(s->sched, &s->retry);
    else if (!kvf_timer_armed(&s->retry))
        kvf_timer_set(s->sched, &s->retry, s->sched->now_ns + s->retry_ns);
    return true;
}

static void on_retry(struct kvf_timer *t)
{
    struct kvf_zsock *s = kvf_container_of(t, struct kvf_zsock, retry);

    s->retry_ns *= 2;
    if (s->retry_ns > RETRY_MAX_NS)
        s->retry_ns = RETRY_MAX_NS;
    /* drain() flushes, after it has received: a message of a newcomer that took
     * over a routing id must be seen before replies to the old one go out. */
    kvf_source_kick(&s->src);
}

static void drain(struct kvf_source *src, unsigned ready, unsigned budget)
{
    struct kvf_zsock *s = kvf_container_of(src, struct kvf_zsock, src);
    unsigned n = 0;

    (void)ready;
    enter(s);
    while (n < budget && !s->dead && recv_message(s))
        n++;
    if (!s->closed && s->crowd != 0 && n >= s->crowd)
        kvf_reactor_crowd(src->reactor);
    if (!s->closed)
        flush(s);
    if (!s->closed && s->tell && !s->dead &&
        (events_of(s) & ZMQ_POLLOUT) != 0) {
        s->tell = false;
        if (s->ops.on_writable != NULL)
            s->ops.on_writable(s->arg);
    }
    leave(s);
}

static const struct kvf_source_ops source_ops = {drain, arm};

static int set_int(struct kvf_zsock *s, int option, int value)
{
    return zmq_setsockopt(s->zmq, option, &value, sizeof value);
}

static int set_options(struct kvf_zsock *s, const struct kvf_zsock_opts *o)
{
    int64_t max_frame = o->max_frame != 0 ? (int64_t)o->max_frame : -1;
    int rc = set_int(s, ZMQ_LINGER, 0);

    rc |= zmq_setsockopt(s->zmq, ZMQ_MAXMSGSIZE, &max_frame, sizeof max_frame);
    rc |= set_int(s, ZMQ_IPV6, o->ipv6);
    if (o->hwm > 0) {
        rc |= set_int(s, ZMQ_SNDHWM, o->hwm);
        rc |= set_int(s, ZMQ_RCVHWM, o->hwm);
    }
    if (s->type == KVF_ZSOCK_ROUTER) {
        rc |= set_int(s, ZMQ_ROUTER_MANDATORY, 1);
        rc |= set_int(s, ZMQ_ROUTER_HANDOVER, o->handover);
    } else {
        rc |= set_int(s, ZMQ_IMMEDIATE, o->immediate);
        if (o->reconnect_ms != 0)
            rc |= set_int(s, ZMQ_RECONNECT_IVL, (int)o->reconnect_ms);
        if (o->reconnect_max_ms != 0)
            rc |= set_int(s, ZMQ_RECONNECT_IVL_MAX, (int)o->reconnect_max_ms);
    }
    return rc;
}

int kvf_zsock_open(struct kvf_zctx *z, struct kvf_reactor *r,
                   enum kvf_zsock_type type, const char *name,
                   const struct kvf_zsock_opts *opts,
                   const struct kvf_zsock_ops *ops, void *arg,
                   struct kvf_zsock **out, struct kvf_why *why)
{
    struct kvf_zsock *s = calloc(1, sizeof *s);
    int fd = -1, rc;
    size_t len = sizeof fd;

    if (s == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for socket %s", name);
    *s = (struct kvf_zsock){.sched = kvf_reactor_sched(r),
                            .retry_ns = RETRY_MIN_NS,
                            .ops = *ops,
                            .arg = arg,
                            .type = type,
                            .mandatory = opts->mandatory,
                            .crowd = opts->crowd,
                            .immediate =
                                type == KVF_ZSOCK_DEALER && opts->immediate};
    kvf_timer_init(&s->retry, on_retry);
    kvf_zqueue_init(&s->queue);
    s->zmq =
        zmq_socket(z->ctx, type == KVF_ZSOCK_ROUTER ? ZMQ_ROUTER : ZMQ_DEALER);
    if (s->zmq == NULL) {
        free(s);
        return kvf_fail(why, KVF_NO_SPACE, "cannot open socket %s: %s", name,
                        zmq_strerror(errno));
    }
    if (set_options(s, opts) != 0 ||
        zmq_getsockopt(s->zmq, ZMQ_FD, &fd, &len) != 0)
        rc = kvf_fail(why, KVF_INTERNAL, "cannot set up socket %s: %s", name,
                      zmq_strerror(errno));
    else
        rc = kvf_source_add(r, &s->src, name, &source_ops, fd, KVF_WANT_READ,
                            why);
    if (rc != 0) {
        zmq_close(s->zmq);
        free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void kvf_zsock_close(struct kvf_zsock *s, int linger_ms)
{
    if (s == NULL || s->closed)
        return;
    s->closed = true;
    kvf_timer_cancel(s->sched, &s->retry);
    kvf_source_remove(&s->src);
    kvf_zqueue_fini(&s->queue);
    set_int(s, ZMQ_LINGER, linger_ms);
    zmq_close(s->zmq);
    if (s->depth == 0)
        free(s);
}

int kvf_zsock_bind(struct kvf_zsock *s, const char *endpoint, char *actual,
                   size_t cap, struct kvf_why *why)
{
    if (zmq_bind(s->zmq, endpoint) != 0)
        return kvf_fail(why, KVF_INVALID, "cannot listen on %s: %s", endpoint,
                        zmq_strerror(errno));
    s->quiet = false;
    kvf_source_touch(&s->src);
    if (actual != NULL &&
        zmq_getsockopt(s->zmq, ZMQ_LAST_ENDPOINT, actual, &cap) != 0)
        return kvf_fail(why, KVF_INTERNAL, "%s is bound to an unknown address",
                        endpoint);
    return 0;
}

int kvf_zsock_connect(struct kvf_zsock *s, const char *endpoint,
                      struct kvf_why *why)
{
    if (zmq_connect(s->zmq, endpoint) != 0)
        return kvf_fail(why, KVF_INVALID, "cannot connect to %s: %s", endpoint,
                        zmq_strerror(errno));
    s->quiet = false;
    kvf_source_touch(&s->src);
    return 0;
}

static int queue_message(struct kvf_zsock *s, const struct kvf_frame *frames,
                         unsigned n, uint64_t cookie)
{
    if (kvf_zqueue_push(&s->queue, frames, n, cookie) != 0)
        return -(int)KVF_PEER_UNREACHABLE;
    if (!kvf_timer_armed(&s->retry)) {
        s->retry_ns = RETRY_MIN_NS;
        kvf_timer_set(s->sched, &s->retry, s->sched->now_ns + s->retry_ns);
    }
    return 0;
}

int kvf_zsock_send(struct kvf_zsock *s, const struct kvf_frame *frames,
                   unsigned n, uint64_t cookie)
{
    bool router = s->type == KVF_ZSOCK_ROUTER;
    int err;

    if (s->closed || s->dead || n == 0)
        return -(int)KVF_PEER_UNREACHABLE;
    kvf_source_touch(&s->src);
    if (router && kvf_zqueue_has(&s->queue, frames[0].data, frames[0].size))
        return queue_message(s, frames, n, cookie);
    err = send_frames(s, frames, n);
    if (err == 0) {
        taken(s, cookie);
        return 0;
    }
    if (err == EAGAIN && router)
        return queue_message(s, frames, n, cookie);
    if (err == EAGAIN) {
        s->tell = true;
        return -(int)KVF_BUSY;
    }
    return router && !s->mandatory ? 0 : -(int)KVF_PEER_UNREACHABLE;
}

size_t kvf_zsock_queued(const struct kvf_zsock *s)
{
    return s->queue.len;
}

size_t kvf_zsock_queued_to(const struct kvf_zsock *s, const void *rid,
                           size_t rid_len)
{
    return kvf_zqueue_len(&s->queue, rid, rid_len);
}

void kvf_zsock_give_up(struct kvf_zsock *s, const void *rid, size_t rid_len)
{
    if (kvf_zqueue_give_up(&s->queue, rid, rid_len) != 0)
        kvf_source_kick(&s->src);
}
