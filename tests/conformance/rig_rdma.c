/* See rig_rdma.h. The handshake travels by posted tasks, as it would by the
 * metadata channel. */
#include "rig.h"

#include <stdlib.h>
#include <string.h>

bool rig_rdma_kind(int kind)
{
    return kind == RIG_RDMA || kind == RIG_RDMA_LATE || kind == RIG_RDMA_DEVICE;
}

/* ---- the mail ----------------------------------------------------------- */

static void mail_free(struct rig_mail *m)
{
    kvf_list_unlink(&m->node);
    free(m->accept.pool);
    free(m);
}

static void mail_act(struct rig *r, struct rig_mail *m)
{
    struct kvf_link *to = r->rdma.link;
    struct kvf_id id;

    memset(id.b, 0x77, sizeof id.b);
    switch (m->what) {
    case MAIL_CONNECT:
        r->rdma.link = m->link;
        if (!r->rdma.lose_mail)
            kvf_rdma_on_connect(r->owner, r, NULL, &m->connect);
        break;
    case MAIL_ACCEPT:
        r->rdma.accepts++;
        if (to != NULL)
            kvf_rdma_on_accept(to, &m->accept, NULL);
        break;
    case MAIL_REFUSE:
        r->rdma.refusals++;
        r->rdma.refused = m->why;
        if (to != NULL)
            kvf_rdma_on_refuse(to, m->id, m->why.status, m->why.text);
        break;
    case MAIL_CLOSE:
        kvf_rdma_on_getter_closed(r->owner, r, m->id);
        break;
    case MAIL_GONE:
        r->rdma.closed++;
        if (to != NULL)
            kvf_rdma_on_owner_closed(to, m->id, m->why.text);
        break;
    }
}

static void deliver(struct kvf_task *t)
{
    struct rig_rdma *x = kvf_container_of(t, struct rig_rdma, deliver);
    struct kvf_list *n;

    while ((n = kvf_list_first(&x->mail)) != NULL) {
        struct rig_mail *m = kvf_container_of(n, struct rig_mail, node);

        kvf_list_unlink(n);
        mail_act(m->rig, m);
        mail_free(m);
    }
}

static struct rig_mail *mail(struct rig *r, int what)
{
    struct rig_mail *m = calloc(1, sizeof *m);

    m->rig = r;
    m->what = what;
    kvf_list_init(&m->node);
    kvf_list_push_back(&r->rdma.mail, &m->node);
    kvf_task_post(r->sched, &r->rdma.deliver);
    return m;
}

static int on_connect(void *arg, struct kvf_link *link,
                      const struct kvf_rdma_connect *c, struct kvf_why *why)
{
    struct rig_mail *m = mail(arg, MAIL_CONNECT);

    (void)why;
    m->link = link;
    m->connect = *c;
    return 0;
}

static void on_disconnect(void *arg, struct kvf_link *link, uint64_t id,
                          const char *text)
{
    struct rig *r = arg;
    struct rig_mail *m = mail(arg, MAIL_CLOSE);

    (void)text;
    if (r->rdma.link == link)
        r->rdma.link = NULL;
    /* The link may be gone when its question would be delivered. */
    kvf_list_for_each (n, &r->rdma.mail) {
        struct rig_mail *other = kvf_container_of(n, struct rig_mail, node);

        if (other->link == link)
            other->link = NULL;
    }
    m->id = id;
}

static void on_accept(void *arg, void *session, const struct kvf_rdma_accept *a)
{
    struct rig_mail *m = mail(arg, MAIL_ACCEPT);

    assert_ptr_equal(session, arg);
    m->accept = *a;
    m->accept.pool = calloc(a->n_pool, sizeof *a->pool);
    memcpy(m->accept.pool, a->pool, a->n_pool * sizeof *a->pool);
}

static void on_refuse(void *arg, void *session, uint64_t id,
                      const struct kvf_why *why)
{
    struct rig_mail *m = mail(arg, MAIL_REFUSE);

    (void)session;
    m->id = id;
    m->why = *why;
}

static void on_closed(void *arg, void *session, uint64_t id,
                      const struct kvf_why *why)
{
    struct rig_mail *m = mail(arg, MAIL_GONE);

    (void)session;
    m->id = id;
    m->why = *why;
}

static void on_expelled(void *arg, void *session)
{
    struct rig *r = session;

    assert_ptr_equal(session, arg);
    r->rdma.expelled++;
}

static void on_device(void *arg, bool up, const char *text)
{
    struct rig *r = arg;

    (void)text;
    if (up)
        r->rdma.healed++;
    else
        r->rdma.broke++;
}

static const struct kvf_rdma_hooks hooks = {.connect = on_connect,
                                            .disconnect = on_disconnect,
                                            .accept = on_accept,
                                            .refuse = on_refuse,
                                            .closed = on_closed,
                                            .expelled = on_expelled,
                                            .device = on_device};

/* ---- open and close ----------------------------------------------------- */

struct kvf_rdma_conf rig_rdma_conf(void)
{
    return (struct kvf_rdma_conf){.device = "auto",
                                  .prefer = "127.0.0.1",
                                  .gid_index = -1,
                                  .timeout = 14,
                                  .retry = 7,
                                  .rnr_retry = 7,
                                  .chunk = MIB,
                                  .burst = MIB,
                                  .depth = 8,
                                  .queue = 64,
                                  .signal_every = 4,
                                  .spin_us = 50,
                                  .connect_ms = 3000,
                                  .stall_ms = 1000,
                                  /* more than one piece even here */
                                  .piece = MIB + 4096};
}

int rig_rdma_create(struct rig *r, struct kvf_transport **out,
                    struct kvf_why *why)
{
    const char *device = getenv("KVF_RDMA_DEVICE");
    struct kvf_rdma_conf conf = rig_rdma_conf();
    const struct kvf_verbs *v = &fake_verbs;
    static bool said;

    if (r->kind == RIG_RDMA_DEVICE) {
        snprintf(conf.device, sizeof conf.device, "%s", device);
        v = &kvf_verbs_real;
        if (!said)
            print_message("on the device %s\n", device);
        said = true;
        /* An emulated machine beside others. */
        conf.stall_ms = conf.connect_ms = 10000;
    }
    return kvf_rdma_create(r->reactor, v, &conf, &hooks, r, &r->stats, out,
                           why);
}

void rig_rdma_open(struct rig *r)
{
    struct kvf_why why = {.text = ""};

    if (r->kind != RIG_RDMA_DEVICE) {
        fake_reset();
        fake.late = r->kind == RIG_RDMA_LATE ? 4 : 0;
    }
    kvf_list_init(&r->rdma.mail);
    kvf_task_init(&r->rdma.deliver, deliver);
    if (rig_rdma_create(r, &r->owner, &why) != 0 ||
        rig_rdma_create(r, &r->t, &why) != 0 ||
        kvf_rdma_add_pool(r->owner, r->payload, r->size, &why) != 0)
        fail_msg("%s", why.text);
    kvf_rdma_allow_write(r->owner, r, true);
    /* Three segments in an order that is not that of the pool. */
    r->segs[0] = (struct kvf_remote_seg){.length = r->size / 3};
    r->segs[1] = (struct kvf_remote_seg){.offset = r->size / 3,
                                         .length = r->size / 2 - r->size / 3};
    r->segs[2] = (struct kvf_remote_seg){.offset = r->size / 2,
                                         .length = r->size - r->size / 2};
    r->remote.segs = r->segs;
    r->remote.n_segs = 3;
}

void rig_rdma_close(struct rig *r)
{
    for (unsigned i = 0; i < 64; i++)
        assert_null(r->rdma.local[i].m);
    while (!kvf_list_empty(&r->rdma.mail))
        rig_turns(r, 1);
    r->rdma.link = NULL;
}

/* ---- memory here -------------------------------------------------------- */

static void turn_jobs(struct rig *r)
{
    struct kvf_slice *s = &kvf_rdma_of(r->t)->slice;

    while (s->run(s, 0))
        continue;
}

void rig_register(struct rig *r, void *base, uint64_t size)
{
    unsigned i = 0;

    if (!rig_rdma_kind(r->kind))
        return;
    while (r->rdma.local[i].m != NULL)
        assert_true(++i < 64);
    r->rdma.local[i].map =
        (struct kvf_mapping){.base = base, .size = size, .fd = -1, .refs = 1};
    r->rdma.local[i].m = kvf_rdma_memory_add(r->t, &r->rdma.local[i].map);
    assert_non_null(r->rdma.local[i].m);
    while (r->rdma.local[i].m->registered < size && !r->rdma.local[i].m->failed)
        turn_jobs(r);
    assert_false(r->rdma.local[i].m->failed);
}

void rig_unregister(struct rig *r, const void *base)
{
    for (unsigned i = 0; rig_rdma_kind(r->kind) && i < 64; i++) {
        struct rig_local *l = &r->rdma.local[i];

        if (l->m == NULL || l->map.base != base)
            continue;
        kvf_rdma_memory_drop(l->m);
        l->m = NULL;
        while (l->map.refs > 1)
            turn_jobs(r);
    }
}

void rig_rdma_pull(struct rig *r, struct pull *p)
{
    pull_start(p, &r->link);
    rig_until(r, &p->calls, 15000);
    if (p->status != 0)
        fail_msg("%s", p->why.text);
    assert_memory_equal(p->mem, r->payload, r->size);
}
