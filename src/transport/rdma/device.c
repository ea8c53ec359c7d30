/* The device: which one, its port, its GIDs.
 *
 * Happy path: the configured device, or the first with an active port, best the
 * one that has the advertised address. Failure modes: none there; port down (it
 * comes back by an event); device fatal (heal.c; other transports go on). errno
 * becomes advice here. */
#include "transport/rdma/choose.h"
#include "transport/rdma/rdma_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define GID_TABLE 256

int kvf_rdma_advise(const struct kvf_rdma *r, struct kvf_why *why,
                    const char *what, int err)
{
    return kvf_rdma_advice(why, r->name[0] != '\0' ? r->name : "rdma", what,
                           err);
}

/* ---- GIDs --------------------------------------------------------------- */

/* UDP connect sends nothing; it asks the routing table. */
bool kvf_rdma_route_source(void *arg, const uint8_t dst[16], uint8_t src[16])
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(4791)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
                              .sin6_port = htons(4791)};
    bool is_v4 = kvf_rdma_gid_is_v4(dst), ok;
    socklen_t len = is_v4 ? sizeof v4 : sizeof v6;
    struct sockaddr *sa =
        is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    int fd = socket(is_v4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    (void)arg;
    if (fd < 0)
        return false;
    if (is_v4)
        memcpy(&v4.sin_addr, dst + 12, 4);
    else
        memcpy(&v6.sin6_addr, dst, 16);
    ok = connect(fd, sa, len) == 0 && getsockname(fd, sa, &len) == 0;
    close(fd);
    if (!ok)
        return false;
    if (is_v4) {
        memset(src, 0, 10);
        src[10] = src[11] = 0xff;
        memcpy(src + 12, &v4.sin_addr, 4);
    } else {
        memcpy(src, &v6.sin6_addr, 16);
    }
    return true;
}

static void read_gids(struct kvf_rdma *r)
{
    struct ibv_gid_entry *e = calloc(GID_TABLE, sizeof *e);
    int n = e != NULL ? r->v->gid_table(r->ctx, e, GID_TABLE) : 0;

    r->n_gid = kvf_rdma_choose_gids(e, n, r->port, r->conf.gid_index,
                                    r->conf.prefer, r->gid);
    free(e);
}

/* ---- port --------------------------------------------------------------- */

static uint32_t port_mtu(const struct kvf_rdma *r)
{
    uint32_t mtu = 128u << (unsigned)r->port_attr.active_mtu;

    if (mtu > 4096)
        mtu = 4096;
    while (r->conf.mtu != 0 && mtu > r->conf.mtu && mtu > 256)
        mtu /= 2;
    return mtu < 256 ? 256 : mtu;
}

static bool is_ethernet(const struct kvf_rdma *r)
{
    return r->port_attr.link_layer == IBV_LINK_LAYER_ETHERNET;
}

static void describe(struct kvf_rdma *r)
{
    char gid[64] = "none";

    if (r->n_gid > 0)
        kvf_rdma_gid_text(r->gid[0].raw, gid, sizeof gid);
    snprintf(r->text, sizeof r->text, "%s:%u %s mtu=%u gid=%d (%s, %s)",
             r->name, r->port, is_ethernet(r) ? "Ethernet" : "InfiniBand",
             port_mtu(r), r->n_gid > 0 ? (int)r->gid[0].index : -1, gid,
             r->n_gid > 0 ? kvf_rdma_gid_type_name(r->gid[0].type) : "-");
}

int kvf_rdma_device_refresh(struct kvf_rdma *r, struct kvf_why *why)
{
    int err = r->v->query_port(r->ctx, r->port, &r->port_attr);

    r->port_up = false;
    if (err != 0)
        return kvf_rdma_advise(r, why, "ibv_query_port", err);
    read_gids(r);
    describe(r);
    if (r->port_attr.state != IBV_PORT_ACTIVE)
        return kvf_fail(why, KVF_UNSUPPORTED, "%s: port %u is not active",
                        r->name, r->port);
    if (r->n_gid == 0 && is_ethernet(r))
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "%s: port %u has no GID%s: give its network interface "
                        "an address",
                        r->name, r->port,
                        r->conf.gid_index >= 0 ? " of that gid_index" : "");
    r->port_up = true;
    return 0;
}

void kvf_rdma_device_end(const struct kvf_rdma *r, struct kvf_rdma_end *end)
{
    *end = (struct kvf_rdma_end){
        .link_layer = is_ethernet(r) ? KVF_RDMA_ETHERNET : KVF_RDMA_IB,
        .lid = r->port_attr.lid,
        .mtu = port_mtu(r),
        .n_gid = r->n_gid,
    };
    memcpy(end->gid, r->gid, sizeof end->gid);
}

/* ---- which device ------------------------------------------------------- */

static int try_port(struct kvf_rdma *r, unsigned port, struct kvf_why *why)
{
    r->port = (uint8_t)port;
    return kvf_rdma_device_refresh(r, why);
}

/* Opens one device and finds its first usable port. */
static int try_device(struct kvf_rdma *r, struct ibv_device *dev, unsigned port,
                      struct kvf_why *why)
{
    const char *name = r->v->device_name(dev);
    int err, rc;

    snprintf(r->name, sizeof r->name, "%s", name != NULL ? name : "?");
    errno = 0;
    r->ctx = r->v->open_device(dev);
    if (r->ctx == NULL)
        return kvf_rdma_advise(r, why, "ibv_open_device", errno);
    err = r->v->query_device(r->ctx, &r->attr);
    if (err != 0) {
        rc = kvf_rdma_advise(r, why, "ibv_query_device", err);
    } else if (r->attr.max_qp_rd_atom <= 0 ||
               r->attr.max_qp_init_rd_atom <= 0 || r->attr.max_sge <= 0 ||
               r->attr.max_qp_wr < 8) {
        rc = kvf_fail(why, KVF_UNSUPPORTED, "%s serves no RDMA READ", r->name);
    } else if (port != 0) {
        rc = try_port(r, port, why);
    } else {
        rc = kvf_fail(why, KVF_UNSUPPORTED, "%s has no port", r->name);
        for (unsigned p = 1; p <= r->attr.phys_port_cnt && rc != 0; p++)
            rc = try_port(r, p, why);
    }
    if (rc == 0)
        return 0;
    (void)r->v->close_device(r->ctx);
    r->ctx = NULL;
    return rc;
}

static bool has_preferred(const struct kvf_rdma *r)
{
    uint8_t prefer[16];

    if (!kvf_rdma_address_gid(r->conf.prefer, prefer))
        return false;
    for (unsigned i = 0; i < r->n_gid; i++)
        if (memcmp(r->gid[i].raw, prefer, 16) == 0)
            return true;
    return false;
}

/* auto: the one with the advertised address, else the first that is usable. */
static int try_all(struct kvf_rdma *r, struct ibv_device **list, int n,
                   struct kvf_why *why)
{
    int first = -1, rc = kvf_fail(why, KVF_NOT_FOUND, "no verbs device here");

    for (int i = 0; i < n; i++) {
        int one = try_device(r, list[i], 0, why);

        if (one != 0) {
            rc = first < 0 ? one : rc;
            continue;
        }
        if (has_preferred(r))
            return 0;
        if (first < 0)
            first = i;
        (void)r->v->close_device(r->ctx);
        r->ctx = NULL;
    }
    return first >= 0 ? try_device(r, list[first], 0, why) : rc;
}

static int find_device(struct kvf_rdma *r, struct ibv_device **list, int n,
                       struct kvf_why *why)
{
    char name[64];
    unsigned port = 0;
    int rc;

    if (strcmp(r->conf.device, "auto") == 0)
        return try_all(r, list, n, why);
    rc = kvf_rdma_parse_device(r->conf.device, name, sizeof name, &port, why);
    if (rc != 0)
        return rc;
    for (int i = 0; i < n; i++) {
        const char *is = r->v->device_name(list[i]);

        if (is != NULL && strcmp(is, name) == 0)
            return try_device(r, list[i], port, why);
    }
    return kvf_fail(why, KVF_NOT_FOUND,
                    "no verbs device %s here (%d others): see `kvferry doctor`",
                    name, n);
}

static int nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 ? 0
                                                                     : errno;
}

static int open_objects(struct kvf_rdma *r, struct kvf_why *why)
{
    int err;

    errno = 0;
    r->pd = r->v->alloc_pd(r->ctx);
    if (r->pd == NULL)
        return kvf_rdma_advise(r, why, "ibv_alloc_pd", errno);
    r->channel = r->v->create_channel(r->ctx);
    if (r->channel == NULL)
        return kvf_rdma_advise(r, why, "ibv_create_comp_channel", errno);
    r->idle_cq = r->v->create_cq(r->ctx, 1, NULL, NULL);
    if (r->idle_cq == NULL)
        return kvf_rdma_advise(r, why, "ibv_create_cq", errno);
    r->n_cqs++;
    err = nonblocking(r->channel->fd);
    if (err == 0)
        err = nonblocking(r->ctx->async_fd);
    if (err != 0)
        return kvf_rdma_advise(r, why, "fcntl", err);
    return 0;
}

int kvf_rdma_device_open(struct kvf_rdma *r, struct kvf_why *why)
{
    struct ibv_device **list;
    int n = 0, rc;

    errno = 0;
    list = r->v->get_device_list(&n);
    if (list == NULL || n <= 0) {
        if (list != NULL)
            r->v->free_device_list(list);
        return kvf_fail(
            why, KVF_NOT_FOUND, "no verbs device here%s%s",
            list == NULL && errno != 0 && errno != ENOSYS ? ": " : "",
            list == NULL && errno != 0 && errno != ENOSYS ? strerror(errno)
                                                          : "");
    }
    rc = find_device(r, list, n, why);
    r->v->free_device_list(list);
    if (rc == 0)
        rc = open_objects(r, why);
    if (rc == 0)
        rc = kvf_source_add(r->reactor, &r->cq_src, "rdma:cq", &kvf_rdma_cq_ops,
                            r->channel->fd, KVF_WANT_READ, why);
    r->has_cq_src = rc == 0;
    if (rc == 0)
        rc = kvf_source_add(r->reactor, &r->async_src, "rdma:async",
                            &kvf_rdma_async_ops, r->ctx->async_fd,
                            KVF_WANT_READ, why);
    r->has_async = rc == 0;
    return rc;
}

void kvf_rdma_device_close(struct kvf_rdma *r)
{
    if (r->has_cq_src)
        kvf_source_remove(&r->cq_src);
    if (r->has_async)
        kvf_source_remove(&r->async_src);
    if (r->idle_cq != NULL) {
        /* Also when it is refused: it goes with the device. */
        (void)r->v->destroy_cq(r->idle_cq);
        r->n_cqs--;
    }
    if (r->channel != NULL)
        (void)r->v->destroy_channel(r->channel);
    if (r->pd != NULL)
        (void)r->v->dealloc_pd(r->pd);
    if (r->ctx != NULL)
        (void)r->v->close_device(r->ctx);
    r->has_cq_src = r->has_async = false;
    r->idle_cq = NULL;
    r->channel = NULL;
    r->pd = NULL;
    r->ctx = NULL;
}
