/* The tcp transport as a whole: creation, the listener, who is admitted.
 *
 * Happy path: the daemon creates it, listens, admits a secret for each peer
 * session, and expels the session when the peer is gone. Failure modes: without
 * descriptors to accept with, accepting pauses for 100 ms (the kernel's backlog
 * keeps the callers); past max_conns a caller is closed at once. */
#include "transport/tcp/tcp_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BACKLOG 128
#define ACCEPTS_PER_DRAIN 16

static struct kvf_tcp *tcp_of(struct kvf_transport *t)
{
    return kvf_container_of(t, struct kvf_tcp, t);
}

static const struct kvf_tcp *tcp_const(const struct kvf_transport *t)
{
    return (const void *)((const char *)t - offsetof(struct kvf_tcp, t));
}

static void accept_again(struct kvf_timer *timer)
{
    struct kvf_tcp *tcp = kvf_container_of(timer, struct kvf_tcp, accept_again);

    if (tcp->listen_fd >= 0)
        kvf_source_want(&tcp->listener, KVF_WANT_READ);
}

static void listener_drain(struct kvf_source *src, unsigned ready,
                           unsigned budget)
{
    struct kvf_tcp *tcp = kvf_container_of(src, struct kvf_tcp, listener);

    (void)ready;
    (void)budget;
    for (unsigned i = 0; i < ACCEPTS_PER_DRAIN && tcp->listen_fd >= 0; i++) {
        int fd =
            accept4(tcp->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            kvf_tcp_in_accept(tcp, fd);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED)
            continue;
        if (errno != EAGAIN) {
            kvf_source_want(src, 0);
            kvf_timer_set(tcp->t.sched, &tcp->accept_again,
                          tcp->t.sched->now_ns + KVF_TCP_ACCEPT_PAUSE_NS);
        }
        return;
    }
}

static const struct kvf_source_ops listener_ops = {.drain = listener_drain};

int kvf_tcp_parse_addr(const char *host, uint16_t port,
                       struct sockaddr_storage *sa, socklen_t *len)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
                              .sin6_port = htons(port)};

    memset(sa, 0, sizeof *sa);
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
        memcpy(sa, &v4, sizeof v4);
        *len = sizeof v4;
        return 0;
    }
    if (inet_pton(AF_INET6, host, &v6.sin6_addr) == 1) {
        memcpy(sa, &v6, sizeof v6);
        *len = sizeof v6;
        return 0;
    }
    return -1;
}

/* Both ends of the connection are on this host. */
static bool same_host(int fd)
{
    struct sockaddr_storage a[2];
    socklen_t len[2] = {sizeof a[0], sizeof a[1]};
    struct sockaddr_in v4[2];
    struct sockaddr_in6 v6[2];

    if (getsockname(fd, (struct sockaddr *)&a[0], &len[0]) != 0 ||
        getpeername(fd, (struct sockaddr *)&a[1], &len[1]) != 0 ||
        a[0].ss_family != a[1].ss_family)
        return false;
    for (unsigned i = 0; i < 2; i++) {
        memcpy(&v4[i], &a[i], sizeof v4[i]);
        memcpy(&v6[i], &a[i], sizeof v6[i]);
    }
    return a[0].ss_family == AF_INET
               ? v4[0].sin_addr.s_addr == v4[1].sin_addr.s_addr
               : memcmp(&v6[0].sin6_addr, &v6[1].sin6_addr,
                        sizeof v6[0].sin6_addr) == 0;
}

void kvf_tcp_tune(int fd)
{
    static const char reno[] = "reno"; /* every kernel has and allows it */
    int one = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (same_host(fd))
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, reno, sizeof reno - 1);
}

static uint16_t bound_port(int fd)
{
    struct sockaddr_storage sa;
    socklen_t len = sizeof sa;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;

    if (getsockname(fd, (struct sockaddr *)&sa, &len) != 0)
        return 0;
    if (sa.ss_family == AF_INET) {
        memcpy(&v4, &sa, sizeof v4);
        return ntohs(v4.sin_port);
    }
    memcpy(&v6, &sa, sizeof v6);
    return ntohs(v6.sin6_port);
}

int kvf_tcp_listen(struct kvf_transport *t, const char *host, uint16_t port,
                   uint16_t *actual, struct kvf_why *why)
{
    struct kvf_tcp *tcp = tcp_of(t);
    struct sockaddr_storage sa;
    socklen_t len;
    int fd, rc, one = 1;

    if (tcp->listen_fd >= 0)
        return kvf_fail(why, KVF_EXISTS, "already listening");
    if (kvf_tcp_parse_addr(host, port, &sa, &len) != 0)
        return kvf_fail(why, KVF_INVALID, "\"%s\" is not a numeric address",
                        host);
    fd = socket(sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return kvf_fail(why, KVF_TRANSPORT, "socket: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&sa, len) != 0 ||
        listen(fd, BACKLOG) != 0) {
        rc =
            kvf_fail(why, errno == EADDRINUSE ? KVF_BUSY : KVF_TRANSPORT,
                     "cannot listen on %s:%u: %s", host, port, strerror(errno));
        close(fd);
        return rc;
    }
    rc = kvf_source_add(tcp->reactor, &tcp->listener, "tcp:listen",
                        &listener_ops, fd, KVF_WANT_READ, why);
    if (rc != 0) {
        close(fd);
        return rc;
    }
    tcp->listen_fd = fd;
    *actual = bound_port(fd);
    return 0;
}

void kvf_tcp_unlisten(struct kvf_transport *t)
{
    struct kvf_tcp *tcp = tcp_of(t);

    if (tcp->listen_fd < 0)
        return;
    kvf_timer_cancel(t->sched, &tcp->accept_again);
    kvf_source_remove(&tcp->listener);
    close(tcp->listen_fd);
    tcp->listen_fd = -1;
}

int kvf_tcp_admit(struct kvf_transport *t, const uint8_t secret[32],
                  void *session, struct kvf_why *why)
{
    struct kvf_tcp *tcp = tcp_of(t);

    if (tcp->n_secrets == tcp->cap_secrets) {
        unsigned cap = tcp->cap_secrets != 0 ? tcp->cap_secrets * 2 : 16;
        struct kvf_tcp_secret *s =
            reallocarray(tcp->secrets, cap, sizeof *tcp->secrets);

        if (s == NULL)
            return kvf_fail(why, KVF_NO_SPACE, "no memory for a secret");
        tcp->secrets = s;
        tcp->cap_secrets = cap;
    }
    memcpy(tcp->secrets[tcp->n_secrets].secret, secret, KVF_FRAME_SECRET);
    tcp->secrets[tcp->n_secrets++].session = session;
    return 0;
}

void kvf_tcp_expel(struct kvf_transport *t, void *session)
{
    struct kvf_tcp *tcp = tcp_of(t);
    unsigned kept = 0;

    for (unsigned i = 0; i < tcp->n_secrets; i++)
        if (tcp->secrets[i].session != session)
            tcp->secrets[kept++] = tcp->secrets[i];
    if (kept < tcp->n_secrets)
        explicit_bzero(&tcp->secrets[kept],
                       (tcp->n_secrets - kept) * sizeof *tcp->secrets);
    tcp->n_secrets = kept;
    kvf_list_for_each_safe (n, &tcp->in_conns) {
        struct kvf_tcp_in *c = kvf_container_of(n, struct kvf_tcp_in, node);

        if (c->proven && c->session == session)
            kvf_tcp_in_close(c);
    }
}

unsigned kvf_tcp_serving(const struct kvf_transport *t, const void *session)
{
    unsigned count = 0;

    kvf_list_for_each (n, &tcp_const(t)->in_conns) {
        struct kvf_tcp_in *c = kvf_container_of(n, struct kvf_tcp_in, node);

        if (c->proven && c->session == session && kvf_tcp_in_serving(c))
            count++;
    }
    return count;
}

void kvf_tcp_configure(struct kvf_transport *t, const struct kvf_tcp_conf *conf)
{
    struct kvf_tcp_conf *c = &tcp_of(t)->conf;

    *c = *conf;
    if (c->streams == 0)
        c->streams = 1;
    if (c->streams > KVF_TCP_STREAMS_MAX)
        c->streams = KVF_TCP_STREAMS_MAX;
    if (c->chunk == 0)
        c->chunk = 1ull << 20;
    if (c->chunk > KVF_FRAME_MAX_LENGTH)
        c->chunk = KVF_FRAME_MAX_LENGTH;
}

void kvf_tcp_gauges(const struct kvf_transport *t, struct kvf_tcp_gauges *g)
{
    const struct kvf_tcp *tcp = tcp_const(t);

    *g =
        (struct kvf_tcp_gauges){.out_conns = tcp->n_out, .in_conns = tcp->n_in};
    kvf_list_for_each (n, &tcp->in_conns) {
        struct kvf_tcp_in *c = kvf_container_of(n, struct kvf_tcp_in, node);

        if (kvf_tcp_in_serving(c))
            g->sends_under_way++;
    }
}

static void destroy(struct kvf_transport *t)
{
    struct kvf_tcp *tcp = tcp_of(t);

    kvf_tcp_unlisten(t);
    kvf_list_for_each_safe (n, &tcp->in_conns)
        kvf_tcp_in_close(kvf_container_of(n, struct kvf_tcp_in, node));
    kvf_transport_fini(t);
    if (tcp->secrets != NULL)
        explicit_bzero(tcp->secrets, tcp->cap_secrets * sizeof *tcp->secrets);
    free(tcp->secrets);
    free(tcp->scratch);
    free(tcp);
}

static uint64_t chunk(const struct kvf_link *link)
{
    return tcp_of(link->transport)->conf.chunk;
}

/* Eight requests ahead keep the owner's socket full (bench/tcp_pull at 16 MiB:
 * 4 reach 0.95 of a plain socket pull, 8 reach 0.98, 16 no more that counts,
 * and every request ahead is a wait for the transfers behind it). */
#define DEPTH 8u

static unsigned depth(const struct kvf_link *link, uint64_t size)
{
    const struct kvf_tcp *tcp = tcp_of(link->transport);

    return size >= tcp->conf.stream_min ? DEPTH * tcp->conf.streams : DEPTH;
}

static const struct kvf_transport_ops tcp_ops = {
    .name = "tcp",
    .caps = KVF_CAP_READ | KVF_CAP_WRITE | KVF_CAP_RUNS,
    .destroy = destroy,
    .link_open = kvf_tcp_link_open,
    .post = kvf_tcp_post,
    .cancel = kvf_tcp_cancel,
    .link_close = kvf_tcp_link_close,
    .chunk = chunk,
    .depth = depth,
};

int kvf_tcp_create(struct kvf_reactor *r, const struct kvf_tcp_conf *conf,
                   const struct kvf_serve_ops *serve, void *serve_arg,
                   struct kvf_stats *stats, struct kvf_transport **out,
                   struct kvf_why *why)
{
    struct kvf_tcp *tcp = calloc(1, sizeof *tcp);

    if (tcp != NULL)
        tcp->scratch = malloc(KVF_TCP_SCRATCH);
    if (tcp == NULL || tcp->scratch == NULL) {
        free(tcp);
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a transport");
    }
    kvf_transport_init(&tcp->t, &tcp_ops, kvf_reactor_sched(r), stats);
    tcp->reactor = r;
    tcp->serve = serve;
    tcp->serve_arg = serve_arg;
    tcp->listen_fd = -1;
    kvf_list_init(&tcp->in_conns);
    kvf_timer_init(&tcp->accept_again, accept_again);
    kvf_tcp_configure(&tcp->t, conf);
    *out = &tcp->t;
    return 0;
}
