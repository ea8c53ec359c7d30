/* tcp transport: persistent bulk connections with fixed frames (wire/frame.h).
 *
 * Getter's side: per link up to `streams` connections; small transfers use the
 * first, large ones all. Bytes are received straight into place.
 * Owner's side: one listener; a connection proves itself with the secret that
 * the metadata channel gave to that peer, else it is dropped. Bytes are sent
 * straight from the pool by copying calls (sendmsg), never sendfile, splice or
 * MSG_ZEROCOPY, so that a closed socket is quiet. */
#ifndef KVF_TRANSPORT_TCP_H
#define KVF_TRANSPORT_TCP_H

#include "loop/reactor.h"
#include "transport/transport.h"

struct kvf_tcp_conf {
    uint32_t streams;    /* connections per link for large transfers */
    uint64_t stream_min; /* transfer size from which all are used */
    uint64_t chunk;      /* bytes of one READ */
    uint32_t spin_us;    /* stay awake this long after the last byte while
                            bytes are in flight; 0 = never */
    uint64_t connect_ms; /* a connection not up by then has failed */
    uint64_t stall_ms;   /* no byte for so long while ops wait: the
                            connection has failed */
    uint32_t max_conns;  /* accepted connections at once */
};

/* Client and server in one; one per daemon. `serve` answers requests of peers
 * (arg passed on). */
int kvf_tcp_create(struct kvf_reactor *r, const struct kvf_tcp_conf *conf,
                   const struct kvf_serve_ops *serve, void *serve_arg,
                   struct kvf_stats *stats, struct kvf_transport **out,
                   struct kvf_why *why);
/* host numeric ("0.0.0.0", "::", "127.0.0.1"); port 0 = a free one.
 * *actual: the bound port. -KVF_BUSY when the port is taken. */
int kvf_tcp_listen(struct kvf_transport *t, const char *host, uint16_t port,
                   uint16_t *actual, struct kvf_why *why);
/* Connections with this secret are `session`'s from now on. */
int kvf_tcp_admit(struct kvf_transport *t, const uint8_t secret[32],
                  void *session, struct kvf_why *why);
/* Closes every connection of that session and forgets its secret: when the
 * call returns all pins taken for it are given back (a closed socket is
 * quiet). */
void kvf_tcp_expel(struct kvf_transport *t, void *session);
/* Connections served for the session that have sends under way (drain). */
unsigned kvf_tcp_serving(const struct kvf_transport *t, const void *session);
/* Stops accepting and closes the listener. */
void kvf_tcp_unlisten(struct kvf_transport *t);

/* Takes new figures (SIGHUP). */
void kvf_tcp_configure(struct kvf_transport *t,
                       const struct kvf_tcp_conf *conf);

struct kvf_tcp_gauges {
    unsigned out_conns, in_conns, sends_under_way;
};
void kvf_tcp_gauges(const struct kvf_transport *t, struct kvf_tcp_gauges *g);
#endif
