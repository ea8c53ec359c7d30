/* The metadata channel. Happy path: dial opens a DEALER that connects and goes
 * on reconnecting (50..1000 ms); guests are answered through the ROUTER.
 * Failure modes: a name that does not resolve is asked again, ever slower; a
 * guest that is gone loses its answer; the peer layer's keepalive sees both; a
 * guest that sends and does not read is not listened to. */
#include "daemon/zchannel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_MIN_MS 50
#define RETRY_MAX_MS 1000
#define CHANNEL_HWM 20000
/* Messages of guests at once that say that several of their requests are under
 * way. One at a time is ASK and DONE in turn. Measured with 2, 4 and 8:
 * docs/internals/loop.md. */
#define GUESTS_CROWD 4
/* Answers that may wait here for one guest, beyond what libzmq takes. */
#define GUEST_QUEUE_MAX 1024
/* Room for a message's head beside an eager payload or a list of claims. */
#define FRAME_SLACK (1u << 20)

struct kvf_zchannel {
    struct kvf_zctx *zctx;
    struct kvf_reactor *reactor;
    struct kvf_resolver *resolver;
    const struct kvf_conf *conf;
    struct kvf_zsock *router;
    struct kvf_peers *peers;
};

struct kvf_dial {
    struct kvf_zchannel *zc;
    const struct kvf_dial_ops *ops;
    void *arg;
    struct kvf_zsock *sock; /* NULL while the name is being resolved */
    struct kvf_resolve *resolve;
    struct kvf_timer retry;
    uint64_t retry_ms;
    char host[KVF_CONF_TEXT];
    uint16_t port;
};

static void set_opts(const struct kvf_zchannel *zc, struct kvf_zsock_opts *o)
{
    *o = (struct kvf_zsock_opts){
        .max_frame = zc->conf->max_frame + FRAME_SLACK,
        .hwm = CHANNEL_HWM,
        .reconnect_ms = RETRY_MIN_MS,
        .reconnect_max_ms = RETRY_MAX_MS,
        .ipv6 = true,
    };
}

static void endpoint(char *out, size_t cap, const char *host, uint16_t port)
{
    char number[8] = "*";

    if (port != 0)
        snprintf(number, sizeof number, "%u", port);
    if (strchr(host, ':') != NULL)
        snprintf(out, cap, "tcp://[%s]:%s", host, number);
    else
        snprintf(out, cap, "tcp://%s:%s", host, number);
}

/* ---- guests ------------------------------------------------------------- */

static void on_guest(void *arg, const struct kvf_zmsg *msg)
{
    struct kvf_zchannel *zc = arg;

    /* Guests send one frame; anything else is no message of a daemon and goes
     * the way of bytes that cannot be read. */
    if (zc->peers == NULL || msg->n < 1)
        return;
    if (kvf_zsock_queued_to(zc->router, msg->part[0].data, msg->part[0].size) >
        GUEST_QUEUE_MAX)
        kvf_peers_overrun(zc->peers, msg->part[0].data, msg->part[0].size);
    else if (msg->n != 2 || msg->overlong)
        kvf_peers_on_message(zc->peers, msg->part[0].data, msg->part[0].size,
                             "", 0);
    else
        kvf_peers_on_message(zc->peers, msg->part[0].data, msg->part[0].size,
                             msg->part[1].data, msg->part[1].size);
}

static const struct kvf_zsock_ops guest_ops = {.on_message = on_guest};

static void answer(void *ctx, const void *rid, size_t rid_len, const void *data,
                   size_t len, const void *payload, size_t payload_len)
{
    struct kvf_zchannel *zc = ctx;
    struct kvf_frame f[3] = {
        {rid, rid_len}, {data, len}, {payload, payload_len}};

    (void)kvf_zsock_send(zc->router, f, payload != NULL ? 3 : 2, 0);
}

/* ---- dials -------------------------------------------------------------- */

static void on_owner(void *arg, const struct kvf_zmsg *msg)
{
    struct kvf_dial *d = arg;

    if (msg->n == 0 || msg->overlong)
        return;
    d->ops->on_message(d->arg, msg->part[0].data, msg->part[0].size,
                       msg->n > 1 ? msg->part[1].data : NULL,
                       msg->n > 1 ? msg->part[1].size : 0);
}

static void on_room(void *arg)
{
    struct kvf_dial *d = arg;

    d->ops->on_writable(d->arg);
}

static const struct kvf_zsock_ops dial_sock_ops = {.on_message = on_owner,
                                                   .on_writable = on_room};

static void retry_later(struct kvf_dial *d)
{
    struct kvf_sched *sched = kvf_reactor_sched(d->zc->reactor);

    kvf_timer_set(sched, &d->retry,
                  sched->now_ns + d->retry_ms * KVF_NS_PER_MS);
    d->retry_ms =
        d->retry_ms * 2 < RETRY_MAX_MS ? d->retry_ms * 2 : RETRY_MAX_MS;
}

static int open_sock(struct kvf_dial *d, const char *addr, struct kvf_why *why)
{
    struct kvf_zsock_opts opts;
    char ep[KVF_CONF_TEXT + 32];
    int rc;

    set_opts(d->zc, &opts);
    opts.immediate = true;
    rc = kvf_zsock_open(d->zc->zctx, d->zc->reactor, KVF_ZSOCK_DEALER,
                        "zmq:peer", &opts, &dial_sock_ops, d, &d->sock, why);
    if (rc < 0)
        return rc;
    endpoint(ep, sizeof ep, addr, d->port);
    rc = kvf_zsock_connect(d->sock, ep, why);
    if (rc < 0) {
        kvf_zsock_close(d->sock, 0);
        d->sock = NULL;
    }
    return rc;
}

static void on_resolved(void *arg, const char *addr, const struct kvf_why *why)
{
    struct kvf_dial *d = arg;
    struct kvf_why bad;

    d->resolve = NULL;
    if (addr == NULL) {
        kvf_log(KVF_LOG_DEBUG, "PEER", "host=%s cannot be resolved: %s",
                d->host, why != NULL ? why->text : "unknown");
        retry_later(d);
    } else if (open_sock(d, addr, &bad) < 0) {
        kvf_log(KVF_LOG_WARN, "PEER", "host=%s cannot be dialled: %s", d->host,
                bad.text);
        retry_later(d);
    }
}

static void try_again(struct kvf_timer *t)
{
    struct kvf_dial *d = kvf_container_of(t, struct kvf_dial, retry);

    d->resolve = kvf_resolve_start(d->zc->resolver, d->host, on_resolved, d);
    if (d->resolve == NULL)
        retry_later(d);
}

static int dial(void *ctx, const char *host, uint16_t port,
                const struct kvf_dial_ops *ops, void *arg,
                struct kvf_dial **out, struct kvf_why *why)
{
    struct kvf_dial *d = calloc(1, sizeof *d);
    int rc = 0;

    if (d == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    d->zc = ctx;
    d->ops = ops;
    d->arg = arg;
    d->port = port;
    d->retry_ms = RETRY_MIN_MS;
    snprintf(d->host, sizeof d->host, "%s", host);
    kvf_timer_init(&d->retry, try_again);
    if (kvf_addr_is_numeric(host))
        rc = open_sock(d, host, why);
    else
        try_again(&d->retry);
    if (rc < 0) {
        free(d);
        return rc;
    }
    *out = d;
    return 0;
}

static int send_to(void *ctx, struct kvf_dial *d, const void *data, size_t len)
{
    struct kvf_frame f = {data, len};

    (void)ctx;
    return d->sock != NULL ? kvf_zsock_send(d->sock, &f, 1, 0) : -KVF_BUSY;
}

static void hangup(void *ctx, struct kvf_dial *d, unsigned flush_ms)
{
    (void)ctx;
    kvf_resolve_cancel(d->resolve);
    kvf_timer_cancel(kvf_reactor_sched(d->zc->reactor), &d->retry);
    kvf_zsock_close(d->sock, (int)flush_ms);
    free(d);
}

const struct kvf_channel_ops kvf_zchannel_ops = {
    .dial = dial, .send = send_to, .hangup = hangup, .answer = answer};

/* ---- life --------------------------------------------------------------- */

int kvf_zchannel_create(struct kvf_zctx *z, struct kvf_reactor *r,
                        struct kvf_resolver *rs, const struct kvf_conf *conf,
                        const char *host, uint16_t port, uint16_t *actual,
                        struct kvf_zchannel **out, struct kvf_why *why)
{
    struct kvf_zchannel *zc = calloc(1, sizeof *zc);
    struct kvf_zsock_opts opts;
    char ep[KVF_CONF_TEXT + 32], bound[KVF_CONF_TEXT + 32];
    const char *colon;
    int rc;

    if (zc == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    zc->zctx = z;
    zc->reactor = r;
    zc->resolver = rs;
    zc->conf = conf;
    set_opts(zc, &opts);
    opts.mandatory = opts.handover = true;
    opts.crowd = GUESTS_CROWD;
    rc = kvf_zsock_open(z, r, KVF_ZSOCK_ROUTER, "zmq:guests", &opts, &guest_ops,
                        zc, &zc->router, why);
    if (rc == 0) {
        endpoint(ep, sizeof ep, host, port);
        rc = kvf_zsock_bind(zc->router, ep, bound, sizeof bound, why);
    }
    if (rc < 0) {
        kvf_zchannel_destroy(zc);
        return rc;
    }
    colon = strrchr(bound, ':');
    *actual = (uint16_t)(colon != NULL ? strtoul(colon + 1, NULL, 10) : port);
    *out = zc;
    return 0;
}

void kvf_zchannel_set_peers(struct kvf_zchannel *zc, struct kvf_peers *ps)
{
    zc->peers = ps;
}

void kvf_zchannel_destroy(struct kvf_zchannel *zc)
{
    if (zc == NULL)
        return;
    kvf_zsock_close(zc->router, 200);
    free(zc);
}
