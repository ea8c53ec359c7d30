/* See pair.h. */
#include "pair.h"

#include <string.h>

/* ---- the mail ----------------------------------------------------------- */

static struct pair_mail *mail(struct pair_node *getter, bool answer, int what)
{
    struct pair *p = getter->p;
    struct pair_mail *m = calloc(1, sizeof *m);

    m->what = what;
    kvf_list_init(&m->node);
    /* A session that lives loses nothing: what the first ones stand for is one
     * that ended and began anew. */
    if (what == PAIR_CONNECT || what == PAIR_ACCEPT || what == PAIR_REFUSE)
        m->lost = ++p->n_mail == p->lose;
    kvf_list_push_back(&p->queue[2 * getter->i + answer], &m->node);
    return m;
}

static struct pair_node *other(struct pair_node *n)
{
    return &n->p->n[1 - n->i];
}

static int on_connect(void *arg, struct kvf_link *link,
                      const struct kvf_rdma_connect *c, struct kvf_why *why)
{
    (void)link;
    (void)why;
    mail(arg, false, PAIR_CONNECT)->connect = *c;
    return 0;
}

static void on_disconnect(void *arg, struct kvf_link *link, uint64_t id,
                          const char *text)
{
    (void)link;
    (void)text;
    mail(arg, false, PAIR_CLOSE)->id = id;
}

static void on_accept(void *arg, void *session, const struct kvf_rdma_accept *a)
{
    struct pair_mail *m = mail(other(session), true, PAIR_ACCEPT);

    (void)arg;
    m->accept = *a;
    m->accept.pool = calloc(a->n_pool, sizeof *a->pool);
    memcpy(m->accept.pool, a->pool, a->n_pool * sizeof *a->pool);
}

static void word(struct pair_node *owner, int what, uint64_t id,
                 const struct kvf_why *why)
{
    struct pair_mail *m = mail(other(owner), true, what);

    m->id = id;
    m->why = *why;
}

static void on_refuse(void *arg, void *session, uint64_t id,
                      const struct kvf_why *why)
{
    (void)arg;
    word(session, PAIR_REFUSE, id, why);
}

static void on_closed(void *arg, void *session, uint64_t id,
                      const struct kvf_why *why)
{
    (void)arg;
    word(session, PAIR_GONE, id, why);
}

static void on_expelled(void *arg, void *session)
{
    (void)arg;
    ((struct pair_node *)session)->expelled++;
}

static const struct kvf_rdma_hooks hooks = {.connect = on_connect,
                                            .disconnect = on_disconnect,
                                            .accept = on_accept,
                                            .refuse = on_refuse,
                                            .closed = on_closed,
                                            .expelled = on_expelled};

static void act(struct pair_node *getter, struct pair_mail *m)
{
    struct pair_node *owner = other(getter);

    switch (m->what) {
    case PAIR_CONNECT:
        kvf_rdma_on_connect(owner->t, owner, &getter->id, &m->connect);
        break;
    case PAIR_CLOSE:
        kvf_rdma_on_getter_closed(owner->t, owner, m->id);
        break;
    case PAIR_ACCEPT:
        kvf_rdma_on_accept(&getter->link, &m->accept, NULL);
        break;
    case PAIR_REFUSE:
        getter->refused++;
        kvf_rdma_on_refuse(&getter->link, m->id, m->why.status, m->why.text);
        break;
    case PAIR_GONE:
        getter->told_closed++;
        kvf_rdma_on_owner_closed(&getter->link, m->id, m->why.text);
        break;
    }
}

bool pair_deliver(struct pair *p, unsigned q)
{
    struct kvf_list *n = kvf_list_pop(&p->queue[q]);
    struct pair_mail *m;

    if (n == NULL)
        return false;
    m = kvf_container_of(n, struct pair_mail, node);
    if (!m->lost)
        act(&p->n[q / 2], m);
    free(m->accept.pool);
    free(m);
    return true;
}

/* ---- links -------------------------------------------------------------- */

static void on_up(struct kvf_link *link)
{
    ((struct pair_node *)link->owner)->ups++;
}

static void on_down(struct kvf_link *link, const struct kvf_why *why)
{
    struct pair_node *n = link->owner;

    n->downs++;
    n->own_will += link->own_will;
    n->down_why = *why;
    kvf_link_close(link);
    n->open = false;
    if (n->again)
        pair_link(n);
}

void pair_link(struct pair_node *n)
{
    struct kvf_link_addr addr = {.who = other(n)->id};

    if (n->open)
        kvf_link_close(&n->link);
    n->open = true;
    n->link = (struct kvf_link){.owner = n, .on_up = on_up, .on_down = on_down};
    snprintf(addr.host, sizeof addr.host, "node %u", 1 - n->i);
    assert_int_equal(kvf_link_open(n->t, &n->link, &addr, NULL), 0);
}

/* ---- the loop ----------------------------------------------------------- */

void pair_turns(struct pair *p, unsigned n)
{
    while (n-- > 0)
        assert_int_equal(kvf_reactor_once(p->reactor, 0, NULL), 0);
}

static void turn(struct pair *p)
{
    for (unsigned q = 0; q < PAIR_QUEUES; q++)
        while (pair_deliver(p, q))
            continue;
    assert_int_equal(kvf_reactor_once(p->reactor, KVF_NS_PER_MS, NULL), 0);
}

static bool mail_waits(const struct pair *p)
{
    for (unsigned q = 0; q < PAIR_QUEUES; q++)
        if (!kvf_list_empty(&p->queue[q]))
            return true;
    return false;
}

struct kvf_rdma_gauges pair_gauges(const struct pair_node *n)
{
    struct kvf_rdma_gauges g;

    kvf_rdma_gauges(n->t, &g);
    return g;
}

static unsigned live_conns(const struct pair_node *n)
{
    unsigned live = 0;

    kvf_list_for_each (c, &kvf_rdma_of(n->t)->conns)
        live += !kvf_container_of(c, struct kvf_rdma_conn, node)->down;
    return live;
}

static unsigned all_conns(const struct pair_node *n)
{
    unsigned all = 0;

    kvf_list_for_each (c, &kvf_rdma_of(n->t)->conns)
        all += c != NULL;
    return all;
}

static unsigned live_guests(const struct pair_node *n)
{
    unsigned live = 0;

    kvf_list_for_each (g, &kvf_rdma_of(n->t)->guests)
        live += !kvf_rdma_guest_of(g)->ending;
    return live;
}

static bool settled(const struct pair *p, bool gone)
{
    for (unsigned i = 0; i < 2; i++) {
        const struct pair_node *n = &p->n[i];

        if (n->link.state != KVF_LINK_UP || live_guests(n) != 1)
            return false;
        if (gone && (pair_gauges(n).dying > 0 || pair_gauges(n).links != 1 ||
                     live_conns(n) != all_conns(n)))
            return false;
    }
    return !mail_waits(p);
}

static void settle(struct pair *p, bool gone)
{
    uint64_t end = kvf_sched_clock(p->sched) + 20 * KVF_NS_PER_S;

    while (!settled(p, gone) && kvf_sched_clock(p->sched) < end)
        turn(p);
    if (!settled(p, gone))
        fail_msg("not settled: links %d %d: %s; %s", (int)p->n[0].link.state,
                 (int)p->n[1].link.state, p->n[0].down_why.text,
                 p->n[1].down_why.text);
}

void pair_settle(struct pair *p)
{
    settle(p, true);
}

void pair_settle_one(struct pair *p, bool gone)
{
    settle(p, gone);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(live_conns(&p->n[i]), 1);
    if (gone)
        pair_assert_qps(p, 1);
}

void pair_until(struct pair *p, const unsigned *flag)
{
    uint64_t end = kvf_sched_clock(p->sched) + 20 * KVF_NS_PER_S;

    while (*flag == 0 && kvf_sched_clock(p->sched) < end)
        turn(p);
    assert_int_not_equal(*flag, 0);
}

/* ---- transfers ---------------------------------------------------------- */

static void done(struct kvf_xfer *x, int status, const struct kvf_why *why)
{
    struct pair_node *n = kvf_container_of(x, struct pair_node, x);

    (void)why;
    n->calls++;
    n->status = status;
}

void pair_pull(struct pair_node *n)
{
    n->calls = 0;
    kvf_xfer_start(&n->x, &n->link, &n->remote);
}

void pair_both_ways(struct pair *p)
{
    for (unsigned i = 0; i < 2; i++) {
        memset(p->n[i].mem, 0, p->size);
        kvf_xfer_reset(&p->n[i].x);
        pair_pull(&p->n[i]);
    }
    for (unsigned i = 0; i < 2; i++) {
        pair_until(p, &p->n[i].calls);
        assert_int_equal(p->n[i].status, 0);
        assert_memory_equal(p->n[i].mem, p->n[1 - i].pool, p->size);
    }
}

void pair_assert_qps(struct pair *p, unsigned qps)
{
    for (unsigned i = 0; i < 2; i++) {
        struct kvf_rdma_gauges g = pair_gauges(&p->n[i]);

        assert_int_equal(g.qps, qps);
        assert_int_equal(g.links_up, 1);
        assert_int_equal(g.guests, 1);
        assert_int_equal(g.cqs, 2); /* with the one that nobody uses */
    }
}

/* ---- open and close ----------------------------------------------------- */

static void node_open(struct pair *p, unsigned i, uint64_t connect_ms, bool old)
{
    struct pair_node *n = &p->n[i];
    struct kvf_rdma_conf conf = rig_rdma_conf();
    struct kvf_why why = {.text = ""};
    struct iovec v;

    n->p = p;
    n->i = i;
    n->again = true;
    n->pool = malloc(p->size);
    n->mem = calloc(1, p->size);
    memset(n->id.b, 0x40 + (int)i, sizeof n->id.b);
    for (uint64_t at = 0; at < p->size; at++)
        n->pool[at] = (uint8_t)(at * 13 + (at >> 9) + 101 * i);
    conf.spin_us = 0;
    conf.connect_ms = connect_ms;
    if (!old)
        conf.self = n->id;
    if (kvf_rdma_create(p->reactor, &fake_verbs, &conf, &hooks, n, &n->stats,
                        &n->t, &why) != 0 ||
        kvf_rdma_add_pool(n->t, n->pool, p->size, &why) != 0)
        fail_msg("%s", why.text);
    n->map = (struct kvf_mapping){
        .base = n->mem, .size = p->size, .fd = -1, .refs = 1};
    n->local = kvf_rdma_memory_add(n->t, &n->map);
    n->remote = (struct kvf_remote){
        .claim = 1, .size = p->size, .segs = &n->seg, .n_segs = 1};
    n->seg = (struct kvf_remote_seg){.length = p->size};
    v = (struct iovec){n->mem, p->size};
    assert_int_equal(
        kvf_xfer_init(&n->x, p->sched, false, p->size, &v, 1, done, NULL), 0);
}

void pair_open(struct pair *p, uint64_t size, uint64_t connect_ms, bool old)
{
    *p = (struct pair){.size = size};
    fake_reset();
    for (unsigned q = 0; q < PAIR_QUEUES; q++)
        kvf_list_init(&p->queue[q]);
    p->reactor = kvf_reactor_create(&p->stats, NULL);
    assert_non_null(p->reactor);
    p->sched = kvf_reactor_sched(p->reactor);
    node_open(p, 0, connect_ms, false);
    node_open(p, 1, connect_ms, old);
    for (unsigned i = 0; i < 2; i++)
        while (kvf_rdma_memory_pending(p->n[i].local))
            pair_turns(p, 1);
}

void pair_close(struct pair *p)
{
    for (unsigned i = 0; i < 2; i++) {
        p->n[i].again = false;
        if (p->n[i].open)
            kvf_link_close(&p->n[i].link);
    }
    while (mail_waits(p))
        turn(p);
    for (unsigned i = 0; i < 2; i++) {
        kvf_xfer_fini(&p->n[i].x);
        kvf_rdma_memory_drop(p->n[i].local);
    }
    while (p->n[0].map.refs > 1 || p->n[1].map.refs > 1)
        pair_turns(p, 1);
    for (unsigned i = 0; i < 2; i++) {
        kvf_transport_destroy(p->n[i].t);
        free(p->n[i].pool);
        free(p->n[i].mem);
    }
    assert_int_equal(fake_objects() + fake.misuses, 0);
    kvf_reactor_destroy(p->reactor);
}
