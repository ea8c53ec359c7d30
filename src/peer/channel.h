/* The metadata channel as the peer layer sees it: datagrams of frames, in
 * order while a connection lasts. In the daemon zsock is behind it (daemon/
 * zchannel.c), in simulation tests a virtual network. One thread. */
#ifndef KVF_PEER_CHANNEL_H
#define KVF_PEER_CHANNEL_H

#include "base/why.h"

#include <stddef.h>
#include <stdint.h>

#define KVF_RID_MAX 255 /* longest routing id, bytes */

struct kvf_dial; /* one outgoing connection */

struct kvf_dial_ops {
    void (*on_message)(void *arg, const void *data, size_t len,
                       const void *payload, size_t payload_len);
    /* The connection was made (again), or has room again. */
    void (*on_writable)(void *arg);
};

struct kvf_channel_ops {
    /* Begins to connect (and goes on trying by itself) to a numeric or named
     * host. Never fails for network reasons. */
    int (*dial)(void *ctx, const char *host, uint16_t port,
                const struct kvf_dial_ops *ops, void *arg,
                struct kvf_dial **out, struct kvf_why *why);
    /* 0, or -KVF_BUSY: not connected or no room; on_writable follows. */
    int (*send)(void *ctx, struct kvf_dial *dial, const void *data, size_t len);
    /* No callback comes after it; messages not yet sent are dropped, unless
     * `flush_ms` > 0: then what was accepted may still go out that long. May be
     * called from a callback of the dial itself. */
    void (*hangup)(void *ctx, struct kvf_dial *dial, unsigned flush_ms);
    /* Answers whoever sent from routing id rid. Errors are silent: the other
     * side's keepalive finds out. payload may be NULL. */
    void (*answer)(void *ctx, const void *rid, size_t rid_len, const void *data,
                   size_t len, const void *payload, size_t payload_len);
};

struct kvf_channel {
    const struct kvf_channel_ops *ops;
    void *ctx;
};
#endif
