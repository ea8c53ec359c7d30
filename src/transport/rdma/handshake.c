/* What two ends of an RC connection agree on.
 *
 * Happy path: the owner looks for a pair of GIDs of the same kind where its
 * route to the getter's address starts at its own; both take the smaller MTU
 * and number of READs. Failure modes: another link layer, no GID of the same
 * kind, an answer that does not fit the question: named, never guessed. */
#include "transport/rdma/handshake.h"

#include <arpa/inet.h>
#include <string.h>

static const uint8_t v4_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

bool kvf_rdma_gid_is_v4(const uint8_t raw[16])
{
    return memcmp(raw, v4_prefix, sizeof v4_prefix) == 0;
}

void kvf_rdma_gid_text(const uint8_t raw[16], char *out, unsigned cap)
{
    const char *p = kvf_rdma_gid_is_v4(raw)
                        ? inet_ntop(AF_INET, raw + 12, out, cap)
                        : inet_ntop(AF_INET6, raw, out, cap);

    if (p == NULL && cap > 0)
        out[0] = '\0';
}

const char *kvf_rdma_gid_type_name(uint8_t type)
{
    static const char *const names[] = {"IB", "RoCE v1", "RoCE v2"};

    return type <= KVF_RDMA_GID_ROCE_V2 ? names[type] : "unknown";
}

static const char *layer_name(uint8_t layer)
{
    return layer == KVF_RDMA_IB         ? "InfiniBand"
           : layer == KVF_RDMA_ETHERNET ? "Ethernet"
                                        : "an unknown link layer";
}

static bool mtu_valid(uint32_t mtu)
{
    return mtu == 256 || mtu == 512 || mtu == 1024 || mtu == 2048 ||
           mtu == 4096;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static int check_end(const struct kvf_rdma_end *own,
                     const struct kvf_rdma_end *other, struct kvf_why *why)
{
    if (own->link_layer != other->link_layer)
        return kvf_fail(why, KVF_MISMATCH,
                        "rdma: the other side's device is on %s, ours on %s",
                        layer_name(other->link_layer),
                        layer_name(own->link_layer));
    if (!mtu_valid(other->mtu) || other->qpn == 0 || other->qpn > 0xffffff ||
        other->psn > 0xffffff || other->n_gid > KVF_RDMA_GIDS)
        return kvf_fail(why, KVF_MISMATCH,
                        "rdma: the other side's QP number, PSN or MTU (%u) is "
                        "not possible",
                        other->mtu);
    if (own->rd_atomic == 0 || other->rd_atomic == 0)
        return kvf_fail(why, KVF_MISMATCH,
                        "rdma: %s device serves no RDMA READ",
                        own->rd_atomic == 0 ? "our" : "the other side's");
    return 0;
}

static bool same_kind(const struct kvf_rdma_gid *a,
                      const struct kvf_rdma_gid *b)
{
    return a->type == b->type &&
           kvf_rdma_gid_is_v4(a->raw) == kvf_rdma_gid_is_v4(b->raw);
}

/* The own GID that the route to one of the other's starts from. */
static bool pick_by_route(const struct kvf_rdma_end *own,
                          const struct kvf_rdma_end *other,
                          const struct kvf_rdma_route *route, unsigned *mine,
                          unsigned *yours)
{
    uint8_t src[16];

    if (route == NULL || route->source == NULL)
        return false;
    for (unsigned j = 0; j < other->n_gid; j++) {
        if (!route->source(route->arg, other->gid[j].raw, src))
            continue;
        for (unsigned i = 0; i < own->n_gid; i++) {
            if (memcmp(own->gid[i].raw, src, 16) != 0 ||
                !same_kind(&own->gid[i], &other->gid[j]))
                continue;
            *mine = i;
            *yours = j;
            return true;
        }
    }
    return false;
}

/* Bits that two GIDs share from the left. */
static unsigned common_prefix(const uint8_t a[16], const uint8_t b[16])
{
    unsigned n = 0;

    while (n < 128 && ((a[n / 8] ^ b[n / 8]) & (0x80u >> (n % 8))) == 0)
        n++;
    return n;
}

static bool pick_by_kind(const struct kvf_rdma_end *own,
                         const struct kvf_rdma_end *other, unsigned *mine,
                         unsigned *yours)
{
    unsigned best = 0;
    bool found = false;

    for (unsigned i = 0; i < own->n_gid; i++)
        for (unsigned j = 0; j < other->n_gid; j++) {
            unsigned common;

            if (!same_kind(&own->gid[i], &other->gid[j]))
                continue;
            common = common_prefix(own->gid[i].raw, other->gid[j].raw);
            if (found && common <= best)
                continue;
            found = true;
            best = common;
            *mine = i;
            *yours = j;
        }
    return found;
}

int kvf_rdma_answer(const struct kvf_rdma_end *own,
                    const struct kvf_rdma_end *getter,
                    const struct kvf_rdma_route *route,
                    struct kvf_rdma_accept *accept, struct kvf_rdma_path *path,
                    struct kvf_why *why)
{
    unsigned mine = 0, yours = 0;
    int rc = check_end(own, getter, why);
    bool found;

    if (rc != 0)
        return rc;
    *accept = (struct kvf_rdma_accept){.end = *own};
    *path = (struct kvf_rdma_path){
        .qpn = getter->qpn,
        .psn = getter->psn,
        .lid = getter->lid,
        .mtu = least(own->mtu, getter->mtu),
        .rd_atomic = least(own->rd_atomic, getter->rd_atomic),
        .global = own->link_layer == KVF_RDMA_ETHERNET,
    };
    accept->end.mtu = path->mtu;
    accept->end.rd_atomic = path->rd_atomic;
    accept->end.n_gid = 0;
    found = pick_by_route(own, getter, route, &mine, &yours) ||
            pick_by_kind(own, getter, &mine, &yours);
    if (!found && path->global)
        return kvf_fail(
            why, KVF_MISMATCH,
            "rdma: no GID of the same kind on both sides (ours: "
            "%u, first %s; theirs: %u, first %s)",
            own->n_gid,
            own->n_gid > 0 ? kvf_rdma_gid_type_name(own->gid[0].type) : "none",
            getter->n_gid,
            getter->n_gid > 0 ? kvf_rdma_gid_type_name(getter->gid[0].type)
                              : "none");
    if (!found)
        return 0; /* InfiniBand: the LID leads there */
    /* Another subnet is reached by its GID only. */
    if (memcmp(own->gid[mine].raw, getter->gid[yours].raw, 8) != 0)
        path->global = true;
    memcpy(path->dgid, getter->gid[yours].raw, 16);
    path->sgid_index = own->gid[mine].index;
    accept->end.gid[0] = own->gid[mine];
    accept->end.n_gid = 1;
    accept->your_gid = yours;
    return 0;
}

int kvf_rdma_conclude(const struct kvf_rdma_end *own,
                      const struct kvf_rdma_accept *accept,
                      struct kvf_rdma_path *path, struct kvf_why *why)
{
    const struct kvf_rdma_end *owner = &accept->end;
    const struct kvf_rdma_gid *mine;
    int rc = check_end(own, owner, why);

    if (rc != 0)
        return rc;
    if (owner->mtu > own->mtu || owner->rd_atomic > own->rd_atomic)
        return kvf_fail(why, KVF_MISMATCH,
                        "rdma: the owner wants an MTU of %u and %u READs at "
                        "once, we offered %u and %u",
                        owner->mtu, owner->rd_atomic, own->mtu, own->rd_atomic);
    *path = (struct kvf_rdma_path){
        .qpn = owner->qpn,
        .psn = owner->psn,
        .lid = owner->lid,
        .mtu = owner->mtu,
        .rd_atomic = owner->rd_atomic,
        .global = own->link_layer == KVF_RDMA_ETHERNET,
    };
    if (owner->n_gid == 0 && !path->global)
        return 0;
    if (owner->n_gid != 1 || accept->your_gid >= own->n_gid ||
        !same_kind(&own->gid[accept->your_gid], &owner->gid[0]))
        return kvf_fail(why, KVF_MISMATCH,
                        "rdma: the owner's choice of GIDs is none of ours");
    mine = &own->gid[accept->your_gid];
    if (memcmp(mine->raw, owner->gid[0].raw, 8) != 0)
        path->global = true;
    memcpy(path->dgid, owner->gid[0].raw, 16);
    path->sgid_index = mine->index;
    return 0;
}
