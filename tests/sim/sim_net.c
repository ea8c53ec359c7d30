/* The metadata channel between simulated nodes. Happy path: dial, connected
 * after a delay, messages in order in each direction, each with a delay of its
 * own. Failure modes: partition (lost in silence), reset (what was on its way
 * is lost, new routing id), death of a side, a frozen reader (messages pile
 * up), no room now, a HELLO that comes twice. */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_NS (100 * SIM_MS)
#define POLL_NS (20 * SIM_MS) /* something waits for a frozen node */

struct kvf_dial {
    struct kvf_list node;
    struct sim_node *from;
    unsigned to, boot; /* which start of that node we are connected to */
    bool connected;
    uint64_t rid, last[2];
    const struct kvf_dial_ops *ops;
    void *arg;
    struct kvf_timer timer;
};

struct message {
    struct kvf_list node; /* all, or the inbox of a frozen node */
    struct kvf_timer timer;
    struct sim *sim;
    struct kvf_dial *dial; /* NULL: hung up since; only forward */
    bool back;
    unsigned from, to, boot;
    uint64_t rid;
    size_t len, payload_len;
    uint8_t *data, *payload;
};

static void message_free(struct message *m)
{
    kvf_timer_cancel(&m->sim->world, &m->timer);
    kvf_list_unlink(&m->node);
    free(m->data);
    free(m->payload);
    free(m);
}

static void deliver(struct message *m)
{
    struct sim *sim = m->sim;
    struct sim_node *to = sim->node[m->to], *before;

    if (!to->alive || to->boots != m->boot || (m->back && m->dial == NULL)) {
        message_free(m);
        return;
    }
    /* Out of every list: what it causes may hang up the dial. */
    kvf_list_unlink(&m->node);
    before = sim_enter(to);
    if (m->back)
        m->dial->ops->on_message(m->dial->arg, m->data, m->len, m->payload,
                                 m->payload_len);
    else
        kvf_peers_on_message(to->peers, &m->rid, sizeof m->rid, m->data,
                             m->len);
    sim_leave(to, before);
    message_free(m);
}

static void arrive(struct kvf_timer *t)
{
    struct message *m = kvf_container_of(t, struct message, timer);
    struct sim *sim = m->sim;

    if (sim->cut[m->from][m->to]) {
        message_free(m); /* healing resets the connection */
    } else if (sim->node[m->to]->frozen) {
        kvf_list_unlink(&m->node);
        kvf_list_push_back(&sim->node[m->to]->inbox, &m->node);
    } else {
        deliver(m);
    }
}

static void post(struct kvf_dial *d, bool back, const void *data, size_t len,
                 const void *payload, size_t payload_len)
{
    struct sim *sim = d->from->sim;
    struct message *m = calloc(1, sizeof *m);
    uint64_t due = sim->now_ns + sim->conf.delay_ns;

    if (m == NULL)
        abort();
    if (sim->conf.jitter_ns != 0)
        due += sim_below(sim, sim->conf.jitter_ns);
    if (due < d->last[back])
        due = d->last[back]; /* in order within a direction */
    d->last[back] = due;
    m->sim = sim;
    m->dial = d;
    m->back = back;
    m->from = back ? d->to : d->from->idx;
    m->to = back ? d->from->idx : d->to;
    m->boot = sim->node[m->to]->boots;
    m->rid = d->rid;
    m->data = malloc(len + 1);
    m->len = len;
    if (m->data == NULL)
        abort();
    memcpy(m->data, data, len);
    if (payload != NULL) {
        m->payload = malloc(payload_len + 1);
        if (m->payload == NULL)
            abort();
        memcpy(m->payload, payload, payload_len);
        m->payload_len = payload_len;
    }
    kvf_timer_init(&m->timer, arrive);
    kvf_timer_set(&sim->world, &m->timer, due);
    kvf_list_push_back(&sim->messages, &m->node);
}

/* ---- connections -------------------------------------------------------- */

static void lose_messages(struct kvf_dial *d, bool forward_too)
{
    struct sim *sim = d->from->sim;
    struct kvf_list *lists[SIM_NODES + 1] = {&sim->messages};

    for (unsigned i = 0; i < sim->conf.nodes; i++)
        lists[i + 1] = &sim->node[i]->inbox;
    for (unsigned i = 0; i <= sim->conf.nodes; i++)
        kvf_list_for_each_safe (n, lists[i]) {
            struct message *m = kvf_container_of(n, struct message, node);

            if (m->dial != d)
                continue;
            if (m->back || forward_too)
                message_free(m);
            else
                m->dial = NULL;
        }
}

static void disconnect(struct kvf_dial *d)
{
    struct sim *sim = d->from->sim;

    if (!d->connected)
        return;
    lose_messages(d, true);
    d->connected = false;
    kvf_timer_set(&sim->world, &d->timer,
                  sim->now_ns + sim->conf.delay_ns + RETRY_NS);
}

static void tell_writable(struct kvf_dial *d)
{
    struct sim_node *n = d->from, *before = sim_enter(n);

    d->ops->on_writable(d->arg); /* may hang up */
    sim_leave(n, before);
}

static void dial_timer(struct kvf_timer *t)
{
    struct kvf_dial *d = kvf_container_of(t, struct kvf_dial, timer);
    struct sim *sim = d->from->sim;
    struct sim_node *to = sim->node[d->to];

    if (d->from->frozen) {
        kvf_timer_set(&sim->world, t, sim->now_ns + POLL_NS);
        return;
    }
    if (d->connected) { /* room again */
        tell_writable(d);
        return;
    }
    if (!to->alive || to->frozen || sim->cut[d->from->idx][d->to]) {
        kvf_timer_set(&sim->world, t, sim->now_ns + RETRY_NS);
        return;
    }
    d->connected = true;
    d->boot = to->boots;
    d->rid = ++sim->next_rid;
    tell_writable(d);
}

static int net_dial(void *ctx, const char *host, uint16_t port,
                    const struct kvf_dial_ops *ops, void *arg,
                    struct kvf_dial **out, struct kvf_why *why)
{
    struct sim_node *n = ctx;
    struct sim *sim = n->sim;
    struct kvf_dial *d = calloc(1, sizeof *d);

    (void)host;
    if (d == NULL || port < 5000u || port >= 5000u + sim->conf.nodes) {
        free(d);
        return kvf_fail(why, KVF_NO_SPACE, "no such place");
    }
    d->from = n;
    d->to = port - 5000u;
    d->ops = ops;
    d->arg = arg;
    kvf_timer_init(&d->timer, dial_timer);
    kvf_timer_set(&sim->world, &d->timer, sim->now_ns + sim->conf.delay_ns);
    kvf_list_push_back(&sim->dials, &d->node);
    *out = d;
    return 0;
}

static bool is_hello(const void *data, size_t len)
{
    struct kvf_peer_msg m;
    bool yes = kvf_peer_decode(&m, data, len, NULL, 0, NULL) == 0 &&
               m.head.type == KVF_PEER_HELLO;

    kvf_peer_done(&m);
    return yes;
}

static bool passes(struct sim *sim, unsigned from, unsigned to,
                   const void *data, size_t len, const void *payload,
                   size_t payload_len)
{
    struct kvf_peer_msg m;
    bool yes = true;

    if (sim->pass == NULL)
        return true;
    if (kvf_peer_decode(&m, data, len, payload, payload_len, NULL) == 0)
        yes = sim->pass(sim, from, to, m.head.type);
    kvf_peer_done(&m);
    return yes;
}

static int net_send(void *ctx, struct kvf_dial *d, const void *data, size_t len)
{
    struct sim_node *n = ctx;
    struct sim *sim = n->sim;

    if (!n->alive || !d->connected)
        return -(int)KVF_BUSY;
    if (sim_chance(sim, sim->conf.busy_pct)) {
        kvf_timer_set(&sim->world, &d->timer, sim->now_ns + SIM_MS);
        return -(int)KVF_BUSY;
    }
    if (!passes(sim, n->idx, d->to, data, len, NULL, 0))
        return 0;
    post(d, false, data, len, NULL, 0);
    if ((sim->conf.dup_hello_pct != 0 && is_hello(data, len) &&
         sim_chance(sim, sim->conf.dup_hello_pct)) ||
        (sim->conf.dup_pct != 0 && sim_chance(sim, sim->conf.dup_pct)))
        post(d, false, data, len, NULL, 0);
    return 0;
}

static void net_hangup(void *ctx, struct kvf_dial *d, unsigned flush_ms)
{
    struct sim_node *n = ctx;

    lose_messages(d, flush_ms == 0);
    kvf_timer_cancel(&n->sim->world, &d->timer);
    kvf_list_unlink(&d->node);
    free(d);
}

static void net_answer(void *ctx, const void *rid, size_t rid_len,
                       const void *data, size_t len, const void *payload,
                       size_t payload_len)
{
    struct sim_node *n = ctx;
    struct sim *sim = n->sim;
    uint64_t id;

    if (!n->alive || rid_len != sizeof id)
        return;
    memcpy(&id, rid, sizeof id);
    kvf_list_for_each (i, &sim->dials) {
        struct kvf_dial *d = kvf_container_of(i, struct kvf_dial, node);

        if (d->connected && d->rid == id && d->to == n->idx &&
            d->boot == n->boots) {
            if (passes(sim, n->idx, d->from->idx, data, len, payload,
                       payload_len))
                post(d, true, data, len, payload, payload_len);
            return;
        }
    }
}

const struct kvf_channel_ops sim_channel_ops = {.dial = net_dial,
                                                .send = net_send,
                                                .hangup = net_hangup,
                                                .answer = net_answer};

/* ---- faults ------------------------------------------------------------- */

void sim_net_reset(struct sim *sim, unsigned a, unsigned b)
{
    kvf_list_for_each (i, &sim->dials) {
        struct kvf_dial *d = kvf_container_of(i, struct kvf_dial, node);

        if ((d->from->idx == a && d->to == b) ||
            (d->from->idx == b && d->to == a))
            disconnect(d);
    }
}

void sim_net_cut(struct sim *sim, unsigned a, unsigned b, bool cut)
{
    if (a == b)
        return;
    sim->cut[a][b] = sim->cut[b][a] = cut;
    if (!cut)
        sim_net_reset(sim, a, b);
}

void sim_net_node_gone(struct sim_node *n)
{
    struct sim *sim = n->sim;

    kvf_list_for_each_safe (i, &sim->dials) {
        struct kvf_dial *d = kvf_container_of(i, struct kvf_dial, node);

        if (d->to == n->idx)
            disconnect(d);
    }
    while (kvf_list_first(&n->inbox) != NULL)
        message_free(
            kvf_container_of(kvf_list_first(&n->inbox), struct message, node));
}

void sim_net_thaw(struct sim_node *n)
{
    struct kvf_list *l;

    while (n->alive && (l = kvf_list_first(&n->inbox)) != NULL)
        deliver(kvf_container_of(l, struct message, node));
}

void sim_net_free(struct sim *sim)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&sim->messages)) != NULL)
        message_free(kvf_container_of(n, struct message, node));
}
