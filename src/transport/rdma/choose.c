/* See choose.h. */
#include "transport/rdma/choose.h"

#include "transport/rdma/handshake.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static int memlock_advice(struct kvf_why *why, const char *what, int err)
{
    struct rlimit rl = {0};
    char limit[32] = "unlimited";

    getrlimit(RLIMIT_MEMLOCK, &rl);
    if (rl.rlim_cur != RLIM_INFINITY)
        snprintf(limit, sizeof limit, "%llu KiB",
                 (unsigned long long)rl.rlim_cur / 1024);
    return kvf_fail(why, KVF_NO_SPACE,
                    "%s: %s: memory for the device has to be locked and "
                    "`ulimit -l` is %s (LimitMEMLOCK= of the unit)",
                    what, strerror(err), limit);
}

int kvf_rdma_advice(struct kvf_why *why, const char *dev, const char *what,
                    int err)
{
    if (err == ENOMEM)
        return memlock_advice(why, what, err);
    if (err == EINVAL && strcmp(what, "QP to RTR") == 0)
        return kvf_fail(why, KVF_TRANSPORT,
                        "%s: %s: %s: the GID does not lead to the peer: see "
                        "`kvferry doctor`, set [rdma] gid_index",
                        dev, what, strerror(err));
    if (err == ENETUNREACH || err == ETIMEDOUT || err == EHOSTUNREACH)
        return kvf_fail(why, KVF_TRANSPORT,
                        "%s: %s: %s: no route or neighbour for the peer's GID: "
                        "see `kvferry doctor`, set [rdma] gid_index",
                        dev, what, strerror(err));
    if (err == EACCES || err == EPERM)
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "%s: %s: %s: may this user open /dev/infiniband?", dev,
                        what, strerror(err));
    return kvf_fail(why, KVF_TRANSPORT, "%s: %s: %s", dev, what,
                    strerror(err != 0 ? err : EIO));
}

bool kvf_rdma_address_gid(const char *text, uint8_t out[16])
{
    memset(out, 0, 16);
    if (inet_pton(AF_INET, text, out + 12) == 1) {
        out[10] = out[11] = 0xff;
        return true;
    }
    return inet_pton(AF_INET6, text, out) == 1;
}

/* Lower is better: RoCE v2 before v1, routable before link-local, the
 * advertised address before all. */
static unsigned rank_gid(const struct kvf_rdma_gid *g, const uint8_t *prefer)
{
    unsigned rank = 0;

    if (prefer == NULL || memcmp(g->raw, prefer, 16) != 0)
        rank += 8;
    if (g->type == KVF_RDMA_GID_ROCE_V1)
        rank += 4;
    if (g->raw[0] == 0xfe && (g->raw[1] & 0xc0) == 0x80)
        rank += 2;
    if (!kvf_rdma_gid_is_v4(g->raw))
        rank += 1;
    return rank;
}

/* Puts it where it belongs; returns how many there are now. */
static unsigned add_gid(struct kvf_rdma_gid *gid, unsigned n,
                        const struct kvf_rdma_gid *g, const uint8_t *prefer)
{
    unsigned at = n;

    while (at > 0 && rank_gid(&gid[at - 1], prefer) > rank_gid(g, prefer))
        at--;
    if (at == KVF_RDMA_GIDS)
        return n;
    if (n < KVF_RDMA_GIDS)
        n++;
    memmove(&gid[at + 1], &gid[at], (n - at - 1) * sizeof gid[0]);
    gid[at] = *g;
    return n;
}

unsigned kvf_rdma_choose_gids(const struct ibv_gid_entry *table, int n,
                              unsigned port, int32_t index, const char *prefer,
                              struct kvf_rdma_gid out[KVF_RDMA_GIDS])
{
    static const uint8_t zero[16];
    uint8_t address[16];
    bool preferred = kvf_rdma_address_gid(prefer, address);
    unsigned found = 0;

    for (int i = 0; i < n; i++) {
        struct kvf_rdma_gid g = {.type = (uint8_t)table[i].gid_type,
                                 .index = table[i].gid_index};

        memcpy(g.raw, table[i].gid.raw, 16);
        if (table[i].port_num != port || memcmp(g.raw, zero, 16) == 0 ||
            table[i].gid_type > KVF_RDMA_GID_ROCE_V2 || g.index > UINT8_MAX)
            continue;
        if (index < 0 || (uint32_t)index == g.index)
            found = add_gid(out, found, &g, preferred ? address : NULL);
    }
    return found;
}

int kvf_rdma_parse_device(const char *text, char *name, size_t cap,
                          unsigned *port, struct kvf_why *why)
{
    const char *colon = strchr(text, ':');
    size_t len = colon != NULL ? (size_t)(colon - text) : strlen(text);
    char *end = NULL;
    unsigned long p = 0;

    if (colon != NULL)
        p = strtoul(colon + 1, &end, 10);
    if (len == 0 || len >= cap ||
        (colon != NULL &&
         (end == colon + 1 || *end != '\0' || p == 0 || p > UINT8_MAX)))
        return kvf_fail(why, KVF_INVALID,
                        "device_name = %s is not NAME or NAME:PORT", text);
    memcpy(name, text, len);
    name[len] = '\0';
    *port = (unsigned)p;
    return 0;
}
