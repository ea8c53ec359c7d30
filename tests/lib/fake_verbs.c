/* See fake_verbs.h. */
#include "fake_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct fake_world fake;
const char *const fake_call_names[FAKE_CALL_COUNT] = {
#define FAKE_NAME(name) #name,
    FAKE_CALLS(FAKE_NAME)
#undef FAKE_NAME
};

static struct ibv_device devices[DEVICES];
struct kvf_list fake_contexts = {&fake_contexts, &fake_contexts};
struct kvf_list fake_mrs = {&fake_mrs, &fake_mrs};
static struct kvf_list cqs = {&cqs, &cqs};
struct kvf_list fake_qps = {&fake_qps, &fake_qps};
static uint32_t next_key = 100;

bool fake_fails(enum fake_call c)
{
    fake.calls[c]++;
    if (fake.fail_at[c] == 0)
        return false;
    if (fake.fail_at[c] > 1) {
        fake.fail_at[c]--;
        return false;
    }
    if (fake.fail_n[c] > 1)
        fake.fail_n[c]--;
    else
        fake.fail_at[c] = 0;
    errno = fake.fail_errno != 0 ? fake.fail_errno : EIO;
    return true;
}

void fake_misuse(const char *what)
{
    fprintf(stderr, "fake verbs: %s\n", what);
    fake.misuses++;
}

void fake_reset(void)
{
    memset(&fake, 0, sizeof fake);
    /* What a test left that failed is not the next one's. */
    kvf_list_init(&fake_contexts);
    kvf_list_init(&fake_mrs);
    kvf_list_init(&fake_qps);
    fake.n_devices = 2;
    fake.attr = (struct ibv_device_attr){.max_mr_size = 1ull << 40,
                                         .max_qp = 1024,
                                         .max_qp_wr = 1024,
                                         .max_sge = 8,
                                         .max_cqe = 4096,
                                         .max_qp_rd_atom = 16,
                                         .max_qp_init_rd_atom = 16,
                                         .phys_port_cnt = 1};
    fake.port = (struct ibv_port_attr){.state = IBV_PORT_ACTIVE,
                                       .max_mtu = IBV_MTU_4096,
                                       .active_mtu = IBV_MTU_1024,
                                       .max_msg_sz = 1u << 30,
                                       .gid_tbl_len = 8,
                                       .link_layer = IBV_LINK_LAYER_ETHERNET};
    fake.n_gid = 1;
    fake.gid[0] = (struct ibv_gid_entry){
        .gid_index = 1, .port_num = 1, .gid_type = IBV_GID_TYPE_ROCE_V2};
    memcpy(fake.gid[0].gid.raw, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\1", 16);
    kvf_rng_seed(&fake.rng, 1);
}

unsigned fake_objects(void)
{
    return fake.contexts + fake.pds + fake.mrs + fake.channels + fake.cqs +
           fake.qps;
}

/* ---- devices ------------------------------------------------------------ */

static struct ibv_device **get_device_list(int *n)
{
    struct ibv_device **list;

    FAIL_PTR(get_device_list);
    list = calloc(DEVICES + 1, sizeof(struct ibv_device *));
    for (unsigned i = 0; i < fake.n_devices; i++) {
        snprintf(devices[i].name, sizeof devices[i].name, "fake%u", i);
        list[i] = &devices[i];
    }
    *n = (int)fake.n_devices;
    return list;
}

static void free_device_list(struct ibv_device **list)
{
    free(list);
}

static const char *device_name(struct ibv_device *dev)
{
    return dev->name;
}

static struct ibv_context *open_device(struct ibv_device *dev)
{
    struct fake_context *c;

    FAIL_PTR(open_device);
    c = calloc(1, sizeof *c);
    c->ctx.device = dev;
    c->ctx.async_fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
    kvf_list_init(&c->events);
    kvf_list_init(&c->node);
    kvf_list_push_back(&fake_contexts, &c->node);
    fake.contexts++;
    return &c->ctx;
}

static int close_device(struct ibv_context *ctx)
{
    struct fake_context *c = kvf_container_of(ctx, struct fake_context, ctx);
    struct kvf_list *n;

    while ((n = kvf_list_pop(&c->events)) != NULL)
        free(kvf_container_of(n, struct fake_async, node));
    kvf_list_for_each (cq, &cqs) {
        struct fake_cq *left = kvf_container_of(cq, struct fake_cq, node);

        if (left->cq.context == ctx)
            left->cq.context = NULL;
    }
    kvf_list_unlink(&c->node);
    close(ctx->async_fd);
    free(c);
    fake.contexts--;
    return 0;
}

static int query_device(struct ibv_context *ctx, struct ibv_device_attr *attr)
{
    (void)ctx;
    FAIL_INT(query_device);
    *attr = fake.attr;
    return 0;
}

static int query_port(struct ibv_context *ctx, uint8_t port,
                      struct ibv_port_attr *attr)
{
    (void)ctx;
    FAIL_INT(query_port);
    if (port == 0 || port > fake.attr.phys_port_cnt)
        return EINVAL;
    *attr = fake.port;
    return 0;
}

static int gid_table(struct ibv_context *ctx, struct ibv_gid_entry *entry,
                     unsigned max)
{
    unsigned n = fake.n_gid < max ? fake.n_gid : max;

    (void)ctx;
    if (fake_fails(FAKE_gid_table))
        return -errno;
    memcpy(entry, fake.gid, n * sizeof *entry);
    return (int)n;
}

/* ---- objects ------------------------------------------------------------ */

static struct ibv_pd *alloc_pd(struct ibv_context *ctx)
{
    struct ibv_pd *pd;

    FAIL_PTR(alloc_pd);
    pd = calloc(1, sizeof *pd);
    pd->context = ctx;
    fake.pds++;
    return pd;
}

static int dealloc_pd(struct ibv_pd *pd)
{
    kvf_list_for_each (n, &fake_mrs)
        if (kvf_container_of(n, struct fake_mr, node)->mr.pd == pd) {
            fake_misuse("PD freed with an MR");
            return EBUSY;
        }
    kvf_list_for_each (n, &fake_qps)
        if (kvf_container_of(n, struct fake_qp, node)->qp.pd == pd) {
            fake_misuse("PD freed with a QP");
            return EBUSY;
        }
    free(pd);
    fake.pds--;
    return 0;
}

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *addr, size_t length,
                             int access)
{
    struct fake_mr *m;

    FAIL_PTR(reg_mr);
    if (length > fake.attr.max_mr_size || length == 0) {
        errno = EINVAL;
        return NULL;
    }
    m = calloc(1, sizeof *m);
    m->mr.pd = pd;
    m->mr.context = pd->context;
    m->mr.addr = addr;
    m->mr.length = length;
    m->mr.lkey = m->mr.rkey = next_key++;
    m->access = access;
    kvf_list_init(&m->node);
    kvf_list_push_back(&fake_mrs, &m->node);
    fake.mrs++;
    return &m->mr;
}

static int dereg_mr(struct ibv_mr *mr)
{
    struct fake_mr *m = kvf_container_of(mr, struct fake_mr, mr);

    FAIL_INT(dereg_mr);
    kvf_list_unlink(&m->node);
    free(m);
    fake.mrs--;
    return 0;
}

static struct ibv_comp_channel *create_channel(struct ibv_context *ctx)
{
    struct fake_channel *c;

    FAIL_PTR(create_channel);
    c = calloc(1, sizeof *c);
    c->ch.context = ctx;
    c->ch.fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
    kvf_list_init(&c->events);
    fake.channels++;
    return &c->ch;
}

static int destroy_channel(struct ibv_comp_channel *ch)
{
    struct fake_channel *c = kvf_container_of(ch, struct fake_channel, ch);

    if (c->cqs > 0) {
        fake_misuse("channel destroyed with a CQ");
        return EBUSY;
    }
    close(ch->fd);
    free(c);
    fake.channels--;
    return 0;
}

static struct ibv_cq *create_cq(struct ibv_context *ctx, int cqe,
                                void *cq_context, struct ibv_comp_channel *ch)
{
    struct fake_cq *c;

    FAIL_PTR(create_cq);
    if (cqe < 1 || cqe > fake.attr.max_cqe) {
        errno = EINVAL;
        return NULL;
    }
    c = calloc(1, sizeof *c);
    c->cq.context = ctx;
    c->cq.cq_context = cq_context;
    c->cq.cqe = cqe;
    if (ch != NULL) {
        c->ch = kvf_container_of(ch, struct fake_channel, ch);
        c->ch->cqs++;
    }
    kvf_list_init(&c->node);
    kvf_list_push_back(&cqs, &c->node);
    fake.cqs++;
    return &c->cq;
}

unsigned fake_reap_cqs(void)
{
    unsigned reaped = 0;

    kvf_list_for_each_safe (n, &cqs) {
        struct fake_cq *c = kvf_container_of(n, struct fake_cq, node);

        if (c->cq.context != NULL)
            continue;
        kvf_list_unlink(&c->node);
        free(c);
        fake.cqs--;
        reaped++;
    }
    return reaped;
}

static void event_drop(struct fake_channel *ch, struct fake_event *e)
{
    uint64_t one;

    kvf_list_unlink(&e->node);
    free(e);
    if (read(ch->ch.fd, &one, sizeof one) != sizeof one)
        fake_misuse("event without its count");
}

static int destroy_cq(struct ibv_cq *cq)
{
    struct fake_cq *c = kvf_container_of(cq, struct fake_cq, cq);

    FAIL_INT(destroy_cq);
    if (c->qps > 0) {
        fake_misuse("CQ destroyed with a QP");
        return EBUSY;
    }
    if (c->unacked > 0)
        fake_misuse(
            "CQ destroyed with events that are not acknowledged: hangs");
    if (c->ch != NULL) {
        kvf_list_for_each_safe (n, &c->ch->events) {
            struct fake_event *e = kvf_container_of(n, struct fake_event, node);

            if (e->cq == c)
                event_drop(c->ch, e);
        }
        c->ch->cqs--;
    }
    kvf_list_unlink(&c->node);
    free(c);
    fake.cqs--;
    return 0;
}

/* ---- completion events -------------------------------------------------- */

/* An armed CQ that has (or will have, after some polls) an entry tells. */
void fake_tell(struct fake_qp *q)
{
    struct fake_cq *c = q->scq;
    struct fake_event *e;
    uint64_t one = 1;

    if (!c->armed || c->ch == NULL || !fake_ready(q))
        return;
    c->armed = false;
    e = calloc(1, sizeof *e);
    e->cq = c;
    kvf_list_init(&e->node);
    kvf_list_push_back(&c->ch->events, &e->node);
    if (write(c->ch->ch.fd, &one, sizeof one) != sizeof one)
        fake_misuse("eventfd");
}

static void tell_all(struct fake_cq *c)
{
    kvf_list_for_each (n, &fake_qps) {
        struct fake_qp *q = kvf_container_of(n, struct fake_qp, node);

        if (q->scq == c)
            fake_tell(q);
    }
}

static int get_cq_event(struct ibv_comp_channel *ch, struct ibv_cq **cq,
                        void **cq_context)
{
    struct fake_channel *c = kvf_container_of(ch, struct fake_channel, ch);
    struct fake_event *e;

    if (kvf_list_empty(&c->events))
        return EAGAIN;
    e = kvf_container_of(kvf_list_first(&c->events), struct fake_event, node);
    *cq = &e->cq->cq;
    *cq_context = e->cq->cq.cq_context;
    e->cq->unacked++;
    event_drop(c, e);
    return 0;
}

static void ack_cq_events(struct ibv_cq *cq, unsigned n)
{
    struct fake_cq *c = kvf_container_of(cq, struct fake_cq, cq);

    if (n > c->unacked)
        fake_misuse("more events acknowledged than came");
    else
        c->unacked -= n;
}

static int req_notify_cq(struct ibv_cq *cq)
{
    struct fake_cq *c = kvf_container_of(cq, struct fake_cq, cq);

    FAIL_INT(req_notify_cq);
    /* As a device: only what comes from now on gives an event. Here everything
     * that is not polled still counts as to come, since it is copied when it is
     * polled; the caller must cope with both. */
    c->armed = true;
    tell_all(c);
    return 0;
}

const struct kvf_verbs fake_verbs = {
    .get_device_list = get_device_list,
    .free_device_list = free_device_list,
    .device_name = device_name,
    .open_device = open_device,
    .close_device = close_device,
    .query_device = query_device,
    .query_port = query_port,
    .gid_table = gid_table,
    .alloc_pd = alloc_pd,
    .dealloc_pd = dealloc_pd,
    .reg_mr = reg_mr,
    .dereg_mr = dereg_mr,
    .create_channel = create_channel,
    .destroy_channel = destroy_channel,
    .create_cq = create_cq,
    .destroy_cq = destroy_cq,
    .get_cq_event = get_cq_event,
    .ack_cq_events = ack_cq_events,
    .req_notify_cq = req_notify_cq,
    .poll_cq = fake_poll_cq,
    .create_qp = fake_create_qp,
    .modify_qp = fake_modify_qp,
    .destroy_qp = fake_destroy_qp,
    .post_send = fake_post_send,
    .get_async_event = fake_get_async_event,
    .ack_async_event = fake_ack_async_event,
};
