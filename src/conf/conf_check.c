/* What no single key of a configuration shows: ports that collide or do not
 * exist, limits in the wrong order, edges that map nothing, half a peer. */
#include "conf/conf_parser.h"

/* Errors about several keys carry the last line that gave one of them. */
static void at_keys(struct kvf_conf_parser *p, const char *const (*keys)[2])
{
    p->line = 0;
    for (; (*keys)[0] != NULL; keys++) {
        unsigned i = kvf_key_row((*keys)[0], (*keys)[1]);

        if (p->key_line[i] > p->line)
            p->line = p->key_line[i];
    }
}

static void check_ports(struct kvf_conf_parser *p)
{
    static const char *const keys[][2] = {
        {"worker", "stage"},       {"worker", "rank"},
        {"worker", "replica"},     {"connector", "zmq_port"},
        {"connector", "rpc_port"}, {NULL, NULL}};
    const struct kvf_conf *c = p->c;
    uint16_t own = kvf_conf_port(c->zmq_port, &c->self);

    at_keys(p, keys);
    if (c->zmq_port != KVF_PORT_AUTO && own == 0)
        kvf_conf_bad(
            p,
            "[connector] zmq_port = %d: the port of worker " KVF_WORKER_FMT
            " (zmq_port + 100 + 1024*replica + 16*rank + stage) is above "
            "65535; allowed: up to %u, or auto",
            c->zmq_port, KVF_WORKER_ARG(&c->self),
            65535 - 100 - 1024 * c->self.replica - 16 * c->self.rank -
                c->self.stage);
    if (own != 0 && c->rpc_port == own)
        kvf_conf_bad(
            p,
            "[connector] rpc_port = %d: is this worker's metadata port too; "
            "allowed: another port, or auto",
            c->rpc_port);
}

/* As in requests, an absent replica is the own one. */
static void fill_replicas(struct kvf_conf *c)
{
    for (unsigned i = 0; i < c->n_peers; i++)
        if (c->peer[i].worker.replica == KVF_CONF_OWN_REPLICA)
            c->peer[i].worker.replica = c->self.replica;
}

static void check_peer(struct kvf_conf_parser *p, unsigned i)
{
    const struct kvf_worker *w = &p->c->peer[i].worker;

    p->line = p->peer_line[i];
    for (unsigned k = 0; k < i; k++)
        if (kvf_worker_equal(&p->c->peer[k].worker, w)) {
            kvf_conf_bad(p,
                         "[peer " KVF_WORKER_FMT
                         "]: given twice, with its replica and without",
                         KVF_WORKER_ARG(w));
            return;
        }
    if (p->peer_seen[i] != 3)
        kvf_conf_bad(p,
                     "[peer " KVF_WORKER_FMT
                     "]: %s is missing; host and port are both required",
                     KVF_WORKER_ARG(w),
                     (p->peer_seen[i] & 1) != 0 ? "port" : "host");
}

void kvf_conf_check(struct kvf_conf_parser *p)
{
    static const char *const backoff[][2] = {
        {"retry", "backoff_ms"}, {"retry", "backoff_max_ms"}, {NULL, NULL}};
    static const char *const frame[][2] = {
        {"connector", "inline_max"}, {"connector", "max_frame"}, {NULL, NULL}};
    const struct kvf_conf *c = p->c;

    check_ports(p);
    at_keys(p, backoff);
    if (c->backoff_max_ms < c->backoff_ms)
        kvf_conf_bad(p, "[retry] backoff_max_ms: below backoff_ms");
    at_keys(p, frame);
    if (c->inline_max > c->max_frame)
        kvf_conf_bad(p, "[connector] inline_max: above max_frame");
    for (unsigned i = 0; i < c->n_edges; i++) {
        const struct kvf_conf_edge *e = &c->edge[i];

        p->line = p->edge_line[i];
        if (e->from_tp % e->to_tp != 0 && e->to_tp % e->from_tp != 0)
            kvf_conf_bad(p,
                         "[edge %u->%u] from_tp = %u, to_tp = %u: no mapping; "
                         "allowed: one divides the other",
                         e->from, e->to, e->from_tp, e->to_tp);
    }
    fill_replicas(p->c);
    for (unsigned i = 0; i < c->n_peers; i++)
        check_peer(p, i);
}
