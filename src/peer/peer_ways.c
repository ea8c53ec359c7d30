/* The ways to an owner's memory, as its WELCOME offers them: its pool mapped
 * here, and where its bulk port is. (rdma: peer_rdma.c.)
 *
 * Failure modes: what cannot be opened is off, with the reason in words; gets
 * take another way. */
#include "peer/peers_private.h"

#include <stdio.h>
#include <string.h>

void kvf_peer_close_tcp(struct kvf_peer *p)
{
    kvf_link_close(&p->tcp);
    p->has_tcp = false;
}

void kvf_peer_close_shm(struct kvf_peer *p)
{
    kvf_link_close(&p->shm);
    if (p->pool_map != NULL)
        kvf_map_release(p->pool_map);
    if (p->pool_rw != NULL)
        kvf_map_release(p->pool_rw);
    p->pool_map = p->pool_rw = NULL;
    p->ps->env.proc.unwatch(p->ps->env.proc_ctx, p->watch);
    p->watch = NULL;
    p->shm_ok = false;
}

void kvf_peer_open_shm(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    const struct kvf_peers_env *env = &p->ps->env;
    struct kvf_map_expect expect = {.size = m->u.welcome.pool.size,
                                    .has_header = true,
                                    .incarnation = m->head.from};
    struct kvf_why why;

    kvf_peer_close_shm(p);
    if (env->shm == NULL || env->pool.path[0] == '\0') {
        snprintf(p->shm_why, sizeof p->shm_why, "shm is off here");
    } else if (!m->u.welcome.shm) {
        snprintf(p->shm_why, sizeof p->shm_why, "%s", m->u.welcome.shm_why);
    } else if (kvf_map_open(env->maps, m->u.welcome.pool.path, &expect,
                            &p->pool_map, &why) < 0) {
        snprintf(p->shm_why, sizeof p->shm_why, "%s", why.text);
        p->pool_map = NULL;
    } else if (kvf_link_open(env->shm, &p->shm, NULL, &why) < 0) {
        snprintf(p->shm_why, sizeof p->shm_why, "%s", why.text);
    } else {
        p->shm_ok = true;
        p->pid = m->u.welcome.pool.pid;
        p->start = m->u.welcome.pool.start;
        memcpy(p->pool_path, m->u.welcome.pool.path, sizeof p->pool_path);
        snprintf(p->shm_why, sizeof p->shm_why, "its pool is mapped here");
    }
}

void kvf_peer_take_terms(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    /* A link that proved itself with another secret was dropped there. */
    if (p->has_tcp &&
        memcmp(p->tcp_addr.secret, m->u.welcome.secret, KVF_SECRET_LEN) != 0)
        kvf_peer_close_tcp(p);
    p->timeout_ms = m->u.welcome.peer_timeout_ms;
    p->has_tcp = m->u.welcome.tcp && p->ps->env.tcp != NULL;
    snprintf(p->tcp_addr.host, sizeof p->tcp_addr.host, "%s",
             m->u.welcome.tcp_host);
    p->tcp_addr.port = m->u.welcome.tcp_port;
    memcpy(p->tcp_addr.secret, m->u.welcome.secret, KVF_SECRET_LEN);
}
