/* Bulk transfers between simulated nodes, with the manners of tcp: a link
 * proves itself with the secret of the session, the owner is asked before every
 * piece and pins it while it sends, a cancelled op goes on writing until it
 * completes, and expel leaves no pin behind.
 *
 * Failure modes: an op that fails, a link that is cut, an owner that is frozen
 * (the op stalls, then the link fails) or gone. */
#include "sim.h"

#include "memory/table.h"

#include <stdlib.h>
#include <string.h>

#define POLL_NS (10 * SIM_MS)
#define STALL_NS (2000 * SIM_MS)
#define PIECES 2 /* of one resolve: few, so that prefixes happen */

struct bulk {
    struct kvf_transport t;
    struct sim_node *n;
    struct kvf_list ops; /* op.mine */
};

struct bulk_link {
    struct kvf_link *link;
    struct bulk *b;
    unsigned to;
    uint8_t secret[32];
    struct kvf_list ops;
    struct kvf_timer up; /* of the world */
    struct kvf_task down;
};

/* A piece that an owner sends: pinned there. */
struct serve {
    struct kvf_list node;
    struct kvf_timer linger; /* the getter gave up, the socket not yet */
    struct sim_node *owner;
    void *session, *pin;
    struct op *op;
    struct iovec iov[PIECES];
    unsigned n_iov, at;
    size_t at_off, left;
    uint64_t buffer[8];
    unsigned n_buffers;
};

struct op {
    struct kvf_list node, mine;
    struct kvf_timer timer; /* of the world */
    struct bulk_link *bl;
    struct kvf_transfer_op *op;
    struct serve *serve;
    bool cancelled, fail, cut;
    uint64_t begun_ns;
};

/* ---- the owner's side --------------------------------------------------- */

static void serve_end(struct serve *sv)
{
    if (sv->op != NULL)
        sv->op->serve = NULL;
    kvf_guest_serve_ops.unpin(sv->owner->peers, sv->pin);
    kvf_timer_cancel(&sv->owner->sim->world, &sv->linger);
    kvf_list_unlink(&sv->node);
    free(sv);
}

static void linger_over(struct kvf_timer *t)
{
    struct serve *sv = kvf_container_of(t, struct serve, linger);
    struct sim_node *o = sv->owner, *before;

    if (o->frozen) {
        kvf_timer_set(&o->sim->world, t, o->sim->now_ns + POLL_NS);
        return;
    }
    before = sim_enter(o);
    serve_end(sv);
    sim_leave(o, before);
}

/* The getter does not want it any more; the owner notices later. */
static void serve_orphan(struct serve *sv)
{
    struct sim *sim = sv->owner->sim;

    sv->op->serve = NULL;
    sv->op = NULL;
    kvf_timer_set(&sim->world, &sv->linger,
                  sim->now_ns + 3 * sim->conf.bulk_step_ns);
}

static void *session_of(const struct sim_node *o, const uint8_t *secret)
{
    kvf_list_for_each (n, &o->admitted) {
        struct sim_admit *a = kvf_container_of(n, struct sim_admit, node);

        if (memcmp(a->secret, secret, sizeof a->secret) == 0)
            return a->session;
    }
    return NULL;
}

int sim_bulk_admit(void *ctx, const uint8_t *secret, void *session,
                   struct kvf_why *why)
{
    struct sim_node *n = ctx;
    struct sim_admit *a = calloc(1, sizeof *a);

    (void)why;
    if (a == NULL)
        abort();
    memcpy(a->secret, secret, sizeof a->secret);
    a->session = session;
    kvf_list_push_back(&n->admitted, &a->node);
    return 0;
}

void sim_bulk_expel(void *ctx, void *session)
{
    struct sim_node *n = ctx;

    kvf_list_for_each_safe (i, &n->sim->serves) {
        struct serve *sv = kvf_container_of(i, struct serve, node);

        if (sv->owner == n && sv->session == session)
            serve_end(sv);
    }
    kvf_list_for_each_safe (j, &n->admitted) {
        struct sim_admit *a = kvf_container_of(j, struct sim_admit, node);

        if (a->session == session) {
            kvf_list_unlink(j);
            free(a);
        }
    }
}

/* ---- an op -------------------------------------------------------------- */

static void op_end(struct op *o, int status, const struct kvf_why *why)
{
    struct bulk *b = o->bl->b;

    if (o->serve != NULL)
        serve_orphan(o->serve);
    kvf_timer_cancel(&b->n->sim->world, &o->timer);
    kvf_list_unlink(&o->node);
    kvf_list_unlink(&o->mine);
    kvf_op_finish(&b->t, o->op, status, why);
    free(o);
}

static void end_all(struct bulk_link *bl, const char *text)
{
    struct kvf_why why;

    kvf_fail(&why, KVF_TRANSPORT, "%s", text);
    kvf_list_for_each_safe (n, &bl->ops)
        op_end(kvf_container_of(n, struct op, node), -KVF_TRANSPORT, &why);
}

static void link_fail(struct bulk_link *bl, const char *text)
{
    bl->link->state = KVF_LINK_DOWN;
    kvf_task_post(&bl->b->n->sched, &bl->down);
    end_all(bl, text);
}

static void again(struct op *o, uint64_t ns)
{
    struct sim *sim = o->bl->b->n->sim;

    kvf_timer_set(&sim->world, &o->timer, sim->now_ns + ns);
}

static uint64_t buffer_at(const struct sim_node *n, const uint8_t *p)
{
    const struct kvf_buffer *b;

    for (b = n->bufs->by_id; b != NULL; b = b->hh.next)
        if (p >= kvf_buffer_ptr(b) && p < kvf_buffer_ptr(b) + b->capacity)
            return b->id;
    sim_fail(n->sim, "node %u serves what is in no buffer", n->idx);
}

/* The next pieces of an op of many runs, from where it stands. */
static int resolve_runs(const struct op *o, struct sim_node *owner,
                        void *session, struct serve *sv, struct kvf_why *why)
{
    const struct kvf_transfer_op *op = o->op;
    struct kvf_range ranges[PIECES];
    unsigned n = 0;

    while (n < PIECES && op->cur_iov + n < op->n_runs) {
        const struct kvf_run *r = &op->runs[op->cur_iov + n];

        ranges[n++] = (struct kvf_range){r->offset, r->length};
    }
    return kvf_guest_serve_ops.resolve_runs(
        owner->peers, session, op->remote->claim, &op->remote->token, op->write,
        ranges, n, op->cur_iov_off, sv->iov, &sv->n_iov, &sv->pin, why);
}

/* Asks the owner for the next piece. False: the op is over. */
static bool resolve(struct op *o, struct sim_node *owner)
{
    struct kvf_transfer_op *op = o->op;
    struct serve *sv = calloc(1, sizeof *sv);
    void *session = session_of(owner, o->bl->secret);
    struct sim_node *before;
    struct kvf_why why;
    int ret;

    if (sv == NULL)
        abort();
    if (session == NULL) {
        free(sv);
        link_fail(o->bl, "connection dropped: unknown secret");
        return false;
    }
    sv->n_iov = PIECES;
    before = sim_enter(owner);
    ret = op->n_runs != 0 ? resolve_runs(o, owner, session, sv, &why)
                          : kvf_guest_serve_ops.resolve(
                                owner->peers, session, op->remote->claim,
                                &op->remote->token, op->write,
                                op->offset + op->moved, op->length - op->moved,
                                sv->iov, &sv->n_iov, &sv->pin, &why);
    sim_leave(owner, before);
    if (ret < 0) {
        free(sv);
        op_end(o, ret, &why);
        return false;
    }
    for (unsigned i = 0; i < sv->n_iov; i++) {
        sv->left += sv->iov[i].iov_len;
        if (op->n_runs == 0) /* else it lies in an engine's region */
            sv->buffer[sv->n_buffers++] = buffer_at(owner, sv->iov[i].iov_base);
    }
    kvf_list_init(&sv->node);
    kvf_list_push_back(&owner->sim->serves, &sv->node);
    kvf_timer_init(&sv->linger, linger_over);
    sv->owner = owner;
    sv->session = session;
    sv->op = o;
    o->serve = sv;
    return true;
}

/* The local piece that an op stands in. */
static struct iovec near_of(const struct kvf_transfer_op *op)
{
    const struct kvf_run *r = &op->runs[op->cur_iov];

    return op->n_runs != 0 ? (struct iovec){r->local, r->length}
                           : op->iov[op->cur_iov];
}

static void copy(struct op *o, size_t max)
{
    struct kvf_transfer_op *op = o->op;
    struct serve *sv = o->serve;

    while (max != 0 && sv->left != 0) {
        const struct iovec *far = &sv->iov[sv->at], near = near_of(op);
        size_t n = far->iov_len - sv->at_off;

        if (n > near.iov_len - op->cur_iov_off)
            n = near.iov_len - op->cur_iov_off;
        if (n > max)
            n = max;
        if (op->write)
            memcpy((uint8_t *)far->iov_base + sv->at_off,
                   (const uint8_t *)near.iov_base + op->cur_iov_off, n);
        else
            memcpy((uint8_t *)near.iov_base + op->cur_iov_off,
                   (const uint8_t *)far->iov_base + sv->at_off, n);
        op->moved += n;
        op->cur_iov_off += n;
        sv->at_off += n;
        sv->left -= n;
        max -= n;
        if (op->cur_iov_off == near.iov_len)
            op->cur_iov++, op->cur_iov_off = 0;
        if (sv->at_off == far->iov_len)
            sv->at++, sv->at_off = 0;
        o->bl->b->n->sim->bulk_bytes += n;
        o->bl->b->n->stats.tcp_bytes += n;
    }
}

static void step(struct kvf_timer *t)
{
    struct op *o = kvf_container_of(t, struct op, timer);
    struct bulk_link *bl = o->bl;
    struct sim_node *n = bl->b->n;
    struct sim *sim = n->sim;
    struct sim_node *owner = sim->node[bl->to], *before;

    if (n->frozen) {
        again(o, POLL_NS);
        return;
    }
    before = sim_enter(n);
    if (o->serve != NULL && !owner->frozen && !sim->cut[n->idx][bl->to])
        copy(o, o->serve->left > 64 ? o->serve->left / 2 + 1 : 64);
    if (o->op->moved == o->op->length) {
        op_end(o, 0, NULL);
    } else if (o->cancelled) {
        op_end(o, -KVF_CANCELLED, NULL);
    } else if (!owner->alive) {
        link_fail(bl, "connection reset");
    } else if (owner->frozen || sim->cut[n->idx][bl->to] ||
               bl->link->state == KVF_LINK_CONNECTING) {
        if (sim->now_ns - o->begun_ns > STALL_NS)
            link_fail(bl, "no byte for 2000 ms");
        else
            again(o, POLL_NS);
    } else if (o->fail && o->op->moved != 0) {
        op_end(o, -KVF_TRANSPORT, NULL);
    } else if (o->cut && o->op->moved != 0) {
        link_fail(bl, "connection cut");
    } else {
        if (o->serve != NULL && o->serve->left == 0) {
            struct sim_node *me = sim_enter(owner);

            serve_end(o->serve);
            sim_leave(owner, me);
        }
        if (o->serve != NULL || resolve(o, owner))
            again(o, sim->conf.bulk_step_ns);
    }
    sim_leave(n, before);
}

static int post(struct kvf_link *link, struct kvf_transfer_op *op,
                struct kvf_why *why)
{
    struct bulk_link *bl = link->impl;
    struct sim *sim = bl->b->n->sim;
    struct op *o = calloc(1, sizeof *o);

    (void)why;
    if (o == NULL)
        abort();
    sim->bulk_ops++;
    o->bl = bl;
    o->op = op;
    o->fail = sim->fail_op == sim->bulk_ops ||
              sim_chance(sim, sim->conf.bulk_fail_pct);
    o->cut =
        sim->cut_op == sim->bulk_ops || sim_chance(sim, sim->conf.bulk_cut_pct);
    o->begun_ns = sim->now_ns;
    op->priv = o;
    kvf_timer_init(&o->timer, step);
    kvf_list_push_back(&bl->ops, &o->node);
    kvf_list_init(&o->mine);
    kvf_list_push_back(&bl->b->ops, &o->mine);
    again(o, sim->conf.bulk_step_ns);
    return 0;
}

static void cancel(struct kvf_link *link, struct kvf_transfer_op *op)
{
    struct op *o = op->priv;

    (void)link;
    o->cancelled = true; /* it goes on writing until its next step */
    if (o->bl->b->n->alive)
        again(o, o->bl->b->n->sim->conf.bulk_step_ns);
    else
        op_end(o, -KVF_CANCELLED, NULL);
}

/* ---- links -------------------------------------------------------------- */

static void up_timer(struct kvf_timer *t)
{
    struct bulk_link *bl = kvf_container_of(t, struct bulk_link, up);
    struct sim_node *n = bl->b->n, *owner = n->sim->node[bl->to], *before;

    if (n->frozen || n->sim->cut[n->idx][bl->to]) {
        kvf_timer_set(&n->sim->world, t, n->sim->now_ns + POLL_NS);
        return;
    }
    before = sim_enter(n);
    if (!owner->alive) {
        link_fail(bl, "connection refused");
    } else {
        bl->link->state = KVF_LINK_UP;
        if (bl->link->on_up != NULL)
            bl->link->on_up(bl->link);
    }
    sim_leave(n, before);
}

static void down_task(struct kvf_task *t)
{
    struct bulk_link *bl = kvf_container_of(t, struct bulk_link, down);
    struct kvf_link *link = bl->link;
    struct kvf_why why;

    kvf_fail(&why, KVF_TRANSPORT, "connection lost");
    kvf_link_room(link);
    if (link->on_down != NULL)
        link->on_down(link, &why); /* bl may be gone */
}

static int link_open(struct kvf_transport *t, struct kvf_link *link,
                     const struct kvf_link_addr *addr, struct kvf_why *why)
{
    struct bulk *b = kvf_container_of(t, struct bulk, t);
    struct bulk_link *bl = calloc(1, sizeof *bl);

    if (bl == NULL || addr->port < 6000u ||
        addr->port >= 6000u + b->n->sim->conf.nodes) {
        free(bl);
        return kvf_fail(why, KVF_TRANSPORT, "no such place");
    }
    bl->link = link;
    bl->b = b;
    bl->to = addr->port - 6000u;
    memcpy(bl->secret, addr->secret, sizeof bl->secret);
    kvf_list_init(&bl->ops);
    kvf_task_init(&bl->down, down_task);
    kvf_timer_init(&bl->up, up_timer);
    kvf_timer_set(&b->n->sim->world, &bl->up,
                  b->n->sim->now_ns + b->n->sim->conf.delay_ns);
    link->impl = bl;
    return 0;
}

static void link_close(struct kvf_link *link)
{
    struct bulk_link *bl = link->impl;

    end_all(bl, "the link was closed");
    kvf_timer_cancel(&bl->b->n->sim->world, &bl->up);
    kvf_task_cancel(&bl->down);
    free(bl);
}

static uint64_t chunk(const struct kvf_link *link)
{
    struct bulk_link *bl = link->impl;

    return bl->b->n->sim->conf.bulk_chunk;
}

static unsigned depth(const struct kvf_link *link, uint64_t size)
{
    (void)link;
    (void)size;
    return 2;
}

static void destroy(struct kvf_transport *t)
{
    kvf_transport_fini(t);
    free(kvf_container_of(t, struct bulk, t));
}

static const struct kvf_transport_ops bulk_ops = {
    .name = "tcp",
    .caps = KVF_CAP_READ | KVF_CAP_WRITE | KVF_CAP_RUNS,
    .destroy = destroy,
    .link_open = link_open,
    .post = post,
    .cancel = cancel,
    .link_close = link_close,
    .chunk = chunk,
    .depth = depth};

int sim_bulk_create(struct sim_node *n, struct kvf_transport **out,
                    struct kvf_why *why)
{
    struct bulk *b = calloc(1, sizeof *b);

    if (b == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory");
    b->n = n;
    kvf_list_init(&b->ops);
    kvf_transport_init(&b->t, &bulk_ops, &n->sched, &n->stats);
    *out = &b->t;
    return 0;
}

void sim_bulk_node_gone(struct sim_node *n)
{
    kvf_list_for_each_safe (i, &n->sim->serves) {
        struct serve *sv = kvf_container_of(i, struct serve, node);

        if (sv->owner == n)
            serve_end(sv);
    }
    for (struct kvf_list *j; (j = kvf_list_pop(&n->admitted)) != NULL;)
        free(kvf_container_of(j, struct sim_admit, node));
    /* What was cancelled before waits for a step that will not come. */
    kvf_list_for_each_safe (k, &kvf_container_of(n->tcp, struct bulk, t)->ops) {
        struct op *o = kvf_container_of(k, struct op, mine);

        if (o->cancelled)
            op_end(o, -KVF_CANCELLED, NULL);
    }
}

/* Where it is received to, if that is in the pool, is not free either. */
static bool is_taken(const struct sim_node *n, const uint8_t *p)
{
    const struct kvf_buffer *b;

    if (p < n->seg.base || p >= n->seg.base + n->seg.size)
        return true;
    for (b = n->bufs->by_id; b != NULL; b = b->hh.next)
        if (p >= kvf_buffer_ptr(b) && p < kvf_buffer_ptr(b) + b->capacity)
            return true;
    return false;
}

/* What is being sent is not free. */
void sim_bulk_check(struct sim *sim)
{
    kvf_list_for_each (i, &sim->serves) {
        const struct serve *sv = kvf_container_of(i, struct serve, node);

        for (unsigned k = 0; k < sv->n_buffers; k++)
            if (kvf_buffer_find(sv->owner->bufs, sv->buffer[k]) == NULL)
                sim_fail(sim, "node %u freed what it sends", sv->owner->idx);
        if (sv->op != NULL && sv->op->op->n_runs == 0 &&
            !is_taken(sv->op->bl->b->n, sv->op->op->iov[0].iov_base))
            sim_fail(sim, "node %u freed what it receives into",
                     sv->op->bl->b->n->idx);
    }
}

void sim_bulk_free(struct sim *sim)
{
    if (!kvf_list_empty(&sim->serves))
        sim_fail(sim, "a send is left");
}
