/* The metadata channel over ZMQ: one ROUTER for guests, one DEALER for each
 * owner that is dialled. Named hosts are resolved without blocking. */
#ifndef KVF_DAEMON_ZCHANNEL_H
#define KVF_DAEMON_ZCHANNEL_H

#include "loop/resolver.h"
#include "loop/zsock.h"
#include "peer/peers.h"

struct kvf_zchannel;

/* Binds tcp://host:port (0 = a free port); *actual is the port. -KVF_BUSY
 * and the like when it is taken. */
int kvf_zchannel_create(struct kvf_zctx *z, struct kvf_reactor *r,
                        struct kvf_resolver *rs, const struct kvf_conf *conf,
                        const char *host, uint16_t port, uint16_t *actual,
                        struct kvf_zchannel **out, struct kvf_why *why);
/* Who gets messages of guests; set before the loop runs, NULL to stop. */
void kvf_zchannel_set_peers(struct kvf_zchannel *zc, struct kvf_peers *ps);
/* All dials must be hung up. NULL is fine. */
void kvf_zchannel_destroy(struct kvf_zchannel *zc);
extern const struct kvf_channel_ops kvf_zchannel_ops; /* ctx: kvf_zchannel */
#endif
