/* Host names to numeric addresses, without blocking (libevent's evdns). A
 * numeric address and "localhost" are answered without the network. */
#ifndef KVF_LOOP_RESOLVER_H
#define KVF_LOOP_RESOLVER_H

#include "loop/reactor.h"

struct kvf_resolver;
struct kvf_resolve; /* one question under way */

int kvf_resolver_create(struct kvf_reactor *r, struct kvf_resolver **out,
                        struct kvf_why *why);
void kvf_resolver_destroy(struct kvf_resolver *rs);

/* addr: numeric address ("10.0.0.7", "fe80::1"), or NULL with why filled.
 * Always called later, never from inside kvf_resolve_start. */
typedef void kvf_resolve_fn(void *arg, const char *addr,
                            const struct kvf_why *why);
struct kvf_resolve *kvf_resolve_start(struct kvf_resolver *rs, const char *host,
                                      kvf_resolve_fn *fn, void *arg);
/* The callback will not be called. NULL is fine. */
void kvf_resolve_cancel(struct kvf_resolve *q);

/* True for a numeric IPv4 or IPv6 address. No I/O. */
bool kvf_addr_is_numeric(const char *host);
/* Address that the route to the outside leaves from (a connected UDP socket,
 * no packet sent), else "127.0.0.1". out: at least 46 bytes. */
void kvf_addr_of_this_host(char *out, size_t cap);
#endif
