/* Verbs devices: what is there, what the daemon would take and why. */
#include "doctor.h"

#include "transport/rdma/choose.h"
#include "transport/rdma/handshake.h"
#include "transport/rdma/verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define GID_TABLE 256
#define TRIAL (64ull << 20) /* bytes registered to see whether that works */

struct port {
    char name[80]; /* "mlx5_0:1" */
    char device[64];
    unsigned number;
    struct ibv_port_attr attr;
    struct ibv_gid_entry table[GID_TABLE];
    int n_table;
    struct kvf_rdma_gid gid[KVF_RDMA_GIDS]; /* as the daemon would order them */
    unsigned n_gid;
    bool usable, preferred; /* preferred: has the advertised address */
};

struct verbs {
    struct doctor *d;
    const struct kvf_verbs *v;
    struct port *port;
    unsigned n;
};

static bool wants_rdma(const struct kvf_conf *c)
{
    for (unsigned i = 0; i < c->n_protocol; i++)
        if (c->protocol[i] == KVF_PROTO_RDMA)
            return true;
    return c->protocol_auto;
}

/* device_name as it would be parsed: does it name this port? */
static bool named(const struct kvf_conf *c, const struct port *p)
{
    char name[64];
    unsigned port = 0;
    struct kvf_why why;

    if (strcmp(c->device_name, "auto") == 0)
        return true;
    return kvf_rdma_parse_device(c->device_name, name, sizeof name, &port,
                                 &why) == 0 &&
           strcmp(name, p->device) == 0 && (port == 0 || port == p->number);
}

/* ---- what is there ------------------------------------------------------ */

static void read_port(struct verbs *s, struct ibv_context *ctx,
                      const char *device, unsigned number)
{
    const struct kvf_conf *c = s->d->conf;
    struct port *more = realloc(s->port, (s->n + 1) * sizeof *more), *p;
    uint8_t want[16];

    if (more == NULL)
        return;
    s->port = more;
    p = &more[s->n];
    memset(p, 0, sizeof *p);
    snprintf(p->device, sizeof p->device, "%s", device);
    snprintf(p->name, sizeof p->name, "%s:%u", device, number);
    p->number = number;
    if (s->v->query_port(ctx, (uint8_t)number, &p->attr) != 0)
        return;
    s->n++;
    p->n_table = s->v->gid_table(ctx, p->table, GID_TABLE);
    p->n_gid = kvf_rdma_choose_gids(p->table, p->n_table, number,
                                    c->rdma_gid_index, c->host, p->gid);
    p->usable = named(c, p) && p->attr.state == IBV_PORT_ACTIVE &&
                (p->n_gid > 0 || p->attr.link_layer != IBV_LINK_LAYER_ETHERNET);
    if (kvf_rdma_address_gid(c->host, want))
        for (unsigned i = 0; i < p->n_gid; i++)
            p->preferred |= memcmp(p->gid[i].raw, want, 16) == 0;
}

/* The port that the daemon takes; NULL: none. */
static const struct port *chosen(const struct verbs *s)
{
    const struct port *first = NULL;

    for (unsigned i = 0; i < s->n; i++) {
        if (s->port[i].usable && s->port[i].preferred)
            return &s->port[i];
        if (s->port[i].usable && first == NULL)
            first = &s->port[i];
    }
    return first;
}

/* ---- how it is said ----------------------------------------------------- */

static const char *why_port(const struct verbs *s, const struct port *p)
{
    if (strcmp(s->d->conf->device_name, "auto") != 0)
        return ", taken: device_name names it";
    return p->preferred ? ", taken: it has the advertised address"
                        : ", taken: the first that can be used";
}

static void say_port(const struct verbs *s, const struct port *p, bool taken)
{
    bool ethernet = p->attr.link_layer == IBV_LINK_LAYER_ETHERNET;
    bool active = p->attr.state == IBV_PORT_ACTIVE;
    char what[96];

    snprintf(what, sizeof what, "rdma %s", p->name);
    doctor_say(s->d, active ? DOCTOR_OK : DOCTOR_WARN, what,
               ethernet ? "bring its network interface up (ip link)"
                        : "cable, switch, subnet manager",
               "%s, %s, mtu %u of %u%s", ibv_port_state_str(p->attr.state),
               ethernet ? "Ethernet" : "InfiniBand",
               128u << (unsigned)p->attr.active_mtu,
               128u << (unsigned)p->attr.max_mtu, taken ? why_port(s, p) : "");
}

static const char *why_gid(const struct doctor *d, const struct port *p)
{
    if (d->conf->rdma_gid_index >= 0)
        return " <- first: [rdma] gid_index";
    if (p->preferred)
        return " <- first: the advertised address";
    return " <- first: RoCE v2, routable, IPv4 go before others";
}

static void say_gids(struct doctor *d, const struct port *p, bool taken)
{
    for (int i = 0; i < p->n_table; i++) {
        const struct ibv_gid_entry *e = &p->table[i];
        bool first = taken && p->n_gid > 0 && p->gid[0].index == e->gid_index;
        char what[112], text[64];

        if (e->port_num != p->number)
            continue;
        kvf_rdma_gid_text(e->gid.raw, text, sizeof text);
        snprintf(what, sizeof what, "rdma %s gid %u", p->name, e->gid_index);
        doctor_say(d, DOCTOR_OK, what, NULL, "%s, %s%s", text,
                   kvf_rdma_gid_type_name((uint8_t)e->gid_type),
                   first ? why_gid(d, p) : "");
    }
    if (taken && p->n_gid > 1 && d->conf->rdma_gid_index < 0)
        doctor_say(d, DOCTOR_OK, "rdma gid", NULL,
                   "per peer the one that the route to it starts from is "
                   "used, else the first that both have in kind; [rdma] "
                   "gid_index sets one");
}

static void say_limits(struct doctor *d, const char *name,
                       const struct ibv_device_attr *a)
{
    uint64_t pool = d->conf->memory_pool_size;
    char what[96];

    snprintf(what, sizeof what, "rdma %s limits", name);
    doctor_say(d, a->max_mr_size < (64ull << 20) ? DOCTOR_WARN : DOCTOR_OK,
               what, "the pool needs many regions: see the device's driver",
               "max MR %llu MiB (the pool has %llu), %d MRs, %d QPs, %d work "
               "requests a QP, %d READs at once",
               (unsigned long long)(a->max_mr_size >> 20),
               (unsigned long long)(pool >> 20), a->max_mr, a->max_qp,
               a->max_qp_wr, a->max_qp_rd_atom);
}

/* Does a registration work? memlock and the driver show there first. */
static void trial(struct doctor *d, const struct kvf_verbs *v,
                  struct ibv_context *ctx, const char *name)
{
    uint64_t pool = d->conf->memory_pool_size;
    size_t size = pool < TRIAL ? (size_t)pool : (size_t)TRIAL;
    struct ibv_pd *pd = v->alloc_pd(ctx);
    struct ibv_mr *mr = NULL;
    struct kvf_why why = {.text = "out of memory"};
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char what[96];

    snprintf(what, sizeof what, "rdma %s memory", name);
    if (pd == NULL)
        kvf_rdma_advice(&why, name, "ibv_alloc_pd", errno);
    if (pd != NULL && p != MAP_FAILED) {
        mr = v->reg_mr(pd, p, size,
                       IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ |
                           IBV_ACCESS_REMOTE_WRITE);
        if (mr == NULL)
            kvf_rdma_advice(&why, name, "ibv_reg_mr", errno);
    }
    if (mr != NULL)
        doctor_say(d, DOCTOR_OK, what, NULL, "%llu MiB can be registered",
                   (unsigned long long)size >> 20);
    else
        doctor_say(d, DOCTOR_FAIL, what,
                   "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit",
                   "%s", why.text);
    if (mr != NULL)
        v->dereg_mr(mr);
    if (pd != NULL)
        v->dealloc_pd(pd);
    if (p != MAP_FAILED)
        munmap(p, size);
}

static void look_at(struct verbs *s, struct ibv_device *dev)
{
    const char *name = s->v->device_name(dev);
    struct ibv_device_attr attr;
    struct ibv_context *ctx;
    struct kvf_why why;
    char what[96];

    snprintf(what, sizeof what, "rdma %s", name);
    errno = 0;
    ctx = s->v->open_device(dev);
    if (ctx == NULL || s->v->query_device(ctx, &attr) != 0) {
        kvf_rdma_advice(&why, name,
                        ctx == NULL ? "ibv_open_device" : "ibv_query_device",
                        errno);
        doctor_say(s->d, DOCTOR_WARN, what,
                   "rights of /dev/infiniband/uverbs*, drivers of rdma-core",
                   "%s", why.text);
    } else {
        say_limits(s->d, name, &attr);
        for (unsigned p = 1; p <= attr.phys_port_cnt; p++)
            read_port(s, ctx, name, p);
        trial(s->d, s->v, ctx, name);
    }
    if (ctx != NULL)
        s->v->close_device(ctx);
}

static void none(struct doctor *d, int error)
{
    bool only = wants_rdma(d->conf) && !d->conf->protocol_auto;
    bool no_driver = error == 0 || error == ENOSYS || error == ENOENT;

    if (!wants_rdma(d->conf))
        return;
    doctor_say(d, only ? DOCTOR_FAIL : DOCTOR_OK, "rdma",
               "take rdma out of protocol, or see `rdma link` and ibv_devinfo "
               "(ibverbs-providers has the drivers)",
               "no verbs device here%s%s%s", no_driver ? "" : ": ",
               no_driver ? "" : strerror(error),
               only ? ", and protocol names rdma" : "; others will be used");
}

void doctor_verbs(struct doctor *d)
{
    struct verbs s = {.d = d, .v = &kvf_verbs_real};
    const struct port *taken;
    struct ibv_device **list;
    int n = 0;

    errno = 0;
    list = s.v->get_device_list(&n);
    if (list == NULL || n <= 0)
        none(d, list == NULL ? errno : 0);
    for (int i = 0; list != NULL && i < n; i++)
        look_at(&s, list[i]);
    taken = chosen(&s);
    for (unsigned i = 0; i < s.n; i++) {
        say_port(&s, &s.port[i], &s.port[i] == taken);
        say_gids(d, &s.port[i], &s.port[i] == taken);
    }
    if (n > 0 && taken == NULL && wants_rdma(d->conf))
        doctor_say(d, d->conf->protocol_auto ? DOCTOR_WARN : DOCTOR_FAIL,
                   "rdma",
                   "an active port with an address; device_name and [rdma] "
                   "gid_index must name what is there",
                   "no port that could be used (device_name = %s)",
                   d->conf->device_name);
    free(s.port);
    if (list != NULL)
        s.v->free_device_list(list);
}
