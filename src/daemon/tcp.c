/* The tcp transport of this daemon: made, listening, and answered for by the
 * peers (which are built later). */
#include "daemon/server.h"

#define CONNECT_MS 2000
#define GUEST_CONNS 4096

/* ---- what peers answer for ---------------------------------------------- */

static int serve_resolve(void *arg, void *session, uint64_t claim,
                         const struct kvf_id *token, bool write,
                         uint64_t offset, uint64_t length, struct iovec *iov,
                         unsigned *n_iov, void **pin, struct kvf_why *why)
{
    struct kvf_server *s = arg;

    return kvf_guest_serve_ops.resolve(s->peers, session, claim, token, write,
                                       offset, length, iov, n_iov, pin, why);
}

static void serve_unpin(void *arg, void *pin)
{
    struct kvf_server *s = arg;

    kvf_guest_serve_ops.unpin(s->peers, pin);
}

static int serve_runs(void *arg, void *session, uint64_t claim,
                      const struct kvf_id *token, bool write,
                      const struct kvf_range *ranges, unsigned n_ranges,
                      uint64_t skip, struct iovec *iov, unsigned *n_iov,
                      void **pin, struct kvf_why *why)
{
    struct kvf_server *s = arg;

    return kvf_guest_serve_ops.resolve_runs(s->peers, session, claim, token,
                                            write, ranges, n_ranges, skip, iov,
                                            n_iov, pin, why);
}

static bool serve_live(void *arg, void *pin)
{
    struct kvf_server *s = arg;

    return kvf_guest_serve_ops.live(s->peers, pin);
}

static const struct kvf_serve_ops serve_ops = {.resolve = serve_resolve,
                                               .unpin = serve_unpin,
                                               .live = serve_live,
                                               .resolve_runs = serve_runs};

/* ---- what peers ask of it ----------------------------------------------- */

static int admit(void *ctx, const uint8_t *secret, void *session,
                 struct kvf_why *why)
{
    return kvf_tcp_admit(ctx, secret, session, why);
}

static void expel(void *ctx, void *session)
{
    kvf_tcp_expel(ctx, session);
}

void kvf_server_tcp_for_peers(const struct kvf_server *s,
                              struct kvf_peers_env *env)
{
    env->tcp = s->tcp;
    env->bulk_port = s->bulk_port;
    env->admit = s->tcp != NULL ? admit : NULL;
    env->expel = s->tcp != NULL ? expel : NULL;
    env->admit_ctx = s->tcp;
    snprintf(env->bulk_host, sizeof env->bulk_host, "%s", s->bind_host);
}

/* ---- making it ---------------------------------------------------------- */

void kvf_server_tcp_conf(const struct kvf_server *s, struct kvf_tcp_conf *tc)
{
    *tc = (struct kvf_tcp_conf){
        .streams = s->conf->tcp_streams,
        .stream_min = s->conf->tcp_stream_min,
        .chunk = s->conf->tcp_chunk,
        .spin_us = s->conf->tcp_spin_us,
        .connect_ms = CONNECT_MS,
        .stall_ms = s->conf->peer_timeout_ms,
        .max_conns = GUEST_CONNS,
    };
}

int kvf_server_build_tcp(struct kvf_server *s, struct kvf_why *why)
{
    struct kvf_tcp_conf tc;
    int32_t port = s->conf->rpc_port;
    int rc;

    kvf_server_tcp_conf(s, &tc);
    rc =
        kvf_tcp_create(s->reactor, &tc, &serve_ops, s, &s->stats, &s->tcp, why);
    if (rc < 0)
        return rc;
    return kvf_tcp_listen(s->tcp, s->bind_host,
                          port == KVF_PORT_AUTO ? 0 : (uint16_t)port,
                          &s->bulk_port, why);
}
