/* Which worker is where, and which worker a get means. */
#include "peer/peers_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct kvf_place *find_place(const struct kvf_peers *ps,
                                    const struct kvf_worker *w)
{
    struct kvf_place *pl;

    HASH_FIND(hh, ps->places, w, sizeof *w, pl);
    return pl;
}

int kvf_directory_set(struct kvf_peers *ps, const struct kvf_worker *w,
                      const char *host, uint16_t port, struct kvf_why *why)
{
    struct kvf_place *pl = find_place(ps, w);

    if (strlen(host) >= sizeof pl->host)
        return kvf_fail(why, KVF_INVALID, "host name is too long");
    if (pl == NULL) {
        if (HASH_COUNT(ps->places) >= KVF_CONF_PEERS)
            return kvf_fail(why, KVF_BUSY, "the directory is full (%u workers)",
                            KVF_CONF_PEERS);
        pl = calloc(1, sizeof *pl);
        if (pl == NULL)
            return kvf_fail(why, KVF_INTERNAL, "out of memory");
        pl->worker = *w;
        HASH_ADD(hh, ps->places, worker, sizeof pl->worker, pl);
    }
    snprintf(pl->host, sizeof pl->host, "%s", host);
    pl->port = port;
    return 0;
}

int kvf_directory_find(const struct kvf_peers *ps, const struct kvf_worker *w,
                       char *host, size_t cap, uint16_t *port,
                       struct kvf_why *why)
{
    return kvf_directory_near(ps, w, ps->env.host, host, cap, port, why);
}

int kvf_directory_near(const struct kvf_peers *ps, const struct kvf_worker *w,
                       const char *near, char *host, size_t cap, uint16_t *port,
                       struct kvf_why *why)
{
    const struct kvf_place *pl = find_place(ps, w);
    uint16_t ruled;

    if (pl != NULL) {
        snprintf(host, cap, "%s", pl->host);
        *port = pl->port;
        return 0;
    }
    if (kvf_worker_equal(w, &ps->env.conf->self)) {
        snprintf(host, cap, "%s", ps->env.host);
        *port = ps->env.port;
        return 0;
    }
    if (ps->env.conf->zmq_port == KVF_PORT_AUTO)
        return kvf_fail(why, KVF_INVALID,
                        "no address is known for worker " KVF_WORKER_FMT
                        ": add [peer %u.%u] to the configuration or send op "
                        "`peer` (zmq_port = auto has no port rule)",
                        KVF_WORKER_ARG(w), w->stage, w->rank);
    ruled = kvf_conf_port(ps->env.conf->zmq_port, w);
    if (ruled == 0)
        return kvf_fail(why, KVF_INVALID,
                        "worker " KVF_WORKER_FMT
                        " is outside the port rule: add [peer %u.%u]",
                        KVF_WORKER_ARG(w), w->stage, w->rank);
    snprintf(host, cap, "%s", near);
    *port = ruled;
    return 0;
}

/* The one stage that an edge leads from to ours, or -1. */
static int predecessor(const struct kvf_conf *c)
{
    int stage = -1;

    for (unsigned i = 0; i < c->n_edges; i++) {
        if (c->edge[i].to != c->self.stage)
            continue;
        if (stage >= 0 && (uint32_t)stage != c->edge[i].from)
            return -1;
        stage = (int)c->edge[i].from;
    }
    return stage;
}

int kvf_directory_map(const struct kvf_peers *ps, bool has_stage,
                      uint32_t stage, bool has_rank, uint32_t rank,
                      bool has_replica, uint32_t replica,
                      struct kvf_worker *out, struct kvf_why *why)
{
    const struct kvf_conf *c = ps->env.conf;
    struct kvf_conf_edge e;

    if (!has_stage) {
        int pred = predecessor(c);

        if (pred < 0)
            return kvf_fail(why, KVF_INVALID,
                            "the edges of the configuration do not give "
                            "exactly one predecessor of stage %u: name `from`",
                            c->self.stage);
        stage = (uint32_t)pred;
    }
    if (!has_rank) {
        e = kvf_conf_find_edge(c, stage, c->self.stage);
        if (e.from_tp > e.to_tp)
            return kvf_fail(why, KVF_INVALID,
                            "rank %u reads from %u ranks of stage %u: name "
                            "`from` with its rank",
                            c->self.rank, e.from_tp / e.to_tp, stage);
        rank = c->self.rank * e.from_tp / e.to_tp;
    }
    *out =
        (struct kvf_worker){.stage = stage,
                            .rank = rank,
                            .replica = has_replica ? replica : c->self.replica};
    return 0;
}
