/* Builds the daemon in one visible order and tears it down in reverse.
 *
 * Happy path: kvf_server_create top to bottom, run, destroy. Failure modes: a
 * part that cannot be built ends the start with its reason; everything built
 * so far is taken down again (destroy takes a half-built server). */
#include "daemon/server.h"

#include "daemon/engine.h"
#include "daemon/procwatch.h"
#include "daemon/zchannel.h"
#include "transport/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define IDLE_MAPPINGS 64
#define GENERATION_EPOCH 1600000000

bool kvf_server_speaks(const struct kvf_server *s, enum kvf_protocol proto)
{
    const struct kvf_conf *c = s->conf;

    for (unsigned i = 0; i < c->n_protocol; i++)
        if (c->protocol[i] == proto)
            return true;
    return false;
}

int kvf_server_supports(const struct kvf_conf *conf, struct kvf_why *why)
{
    if (strcmp(conf->memory_pool_device, "cpu") != 0)
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "[connector] memory_pool_device = %s: only cpu exists "
                        "so far (device memory needs its own allocator and "
                        "registration)",
                        conf->memory_pool_device);
    if (conf->zmq_port != KVF_PORT_AUTO &&
        kvf_conf_port(conf->zmq_port, &conf->self) == 0)
        return kvf_fail(why, KVF_INVALID,
                        "[connector] zmq_port = %d: the port of this worker "
                        "would be above 65535",
                        conf->zmq_port);
    return 0;
}

/* ---- loop, memory, store ------------------------------------------------ */

static int build_loop(struct kvf_server *s, struct kvf_why *why)
{
    uint64_t seed;
    int rc;

    s->zctx = kvf_zctx_create(why);
    if (s->zctx == NULL)
        return -KVF_INTERNAL;
    s->reactor = kvf_reactor_create(&s->stats, why);
    if (s->reactor == NULL)
        return -KVF_INTERNAL;
    kvf_reactor_linger(s->reactor, s->conf->linger_us * KVF_NS_PER_US);
    s->sched = kvf_reactor_sched(s->reactor);
    kvf_sched_stamp(s->sched);
    s->started_ns = s->sched->now_ns;
    kvf_random_bytes(&seed, sizeof seed);
    kvf_rng_seed(&s->rng, seed);
    kvf_drain_init(s);
    rc = kvf_resolver_create(s->reactor, &s->resolver, why);
    if (rc == 0)
        rc = kvf_procwatch_create(s->reactor, &s->procs, why);
    return rc < 0 ? rc : kvf_asks_create(s, why);
}

/* Generations never repeat across starts, also of one second: 2^20 of them a
 * second would have to be used up to reach those of a later start. */
static uint64_t first_generation(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return ((uint64_t)(t.tv_sec - GENERATION_EPOCH) << 20) +
           ((uint64_t)t.tv_nsec << 20) / KVF_NS_PER_S;
}

/* Gets of our own keys read the pool as they read any other memory; writes into
 * our own windows write it. */
static int map_own_pool(struct kvf_server *s, struct kvf_why *why)
{
    int fd = fcntl(s->segment.fd, F_DUPFD_CLOEXEC, 0);
    int rc;

    if (fd < 0)
        return kvf_fail(why, KVF_INTERNAL, "dup: %s", strerror(errno));
    rc = kvf_map_fd(s->maps, fd, s->segment.size, true, &s->own_map, why);
    if (rc < 0)
        close(fd);
    return rc;
}

static int build_memory(struct kvf_server *s, struct kvf_why *why)
{
    struct kvf_store_conf sc = {s->conf->max_keys, s->conf->max_tombstones,
                                s->conf->max_parked, s->conf->max_claims};
    struct kvf_store_ops ops = {.on_retired = kvf_event_retired};

    s->pool = kvf_pool_create(KVF_SEGMENT_HEADER, s->segment.size, why);
    if (s->pool == NULL)
        return -KVF_INTERNAL;
    s->buffers = kvf_buffers_create(&s->segment, s->pool, 0, why);
    if (s->buffers == NULL)
        return -KVF_INTERNAL;
    s->maps = kvf_map_cache_create(IDLE_MAPPINGS);
    if (s->maps == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    if (map_own_pool(s, why) < 0)
        return -KVF_INTERNAL;
    s->store = kvf_store_create(s->sched, &s->stats, &sc, &ops, s,
                                first_generation(), why);
    if (s->store == NULL)
        return -KVF_INTERNAL;
    return kvf_blocks_create(
        &(struct kvf_blocks_env){.sched = s->sched,
                                 .buffers = s->buffers,
                                 .store = &sc,
                                 .first_generation = first_generation(),
                                 .on_retired = kvf_event_unpublished,
                                 .arg = s},
        &s->blocks, why);
}

/* ---- transports --------------------------------------------------------- */

static int build_transports(struct kvf_server *s, struct kvf_why *why)
{
    int rc = kvf_shm_create(s->sched, &s->stats, &s->shm, why);

    s->shm_on = kvf_server_speaks(s, KVF_PROTO_SHM);
    if (rc == 0 && kvf_server_speaks(s, KVF_PROTO_TCP))
        rc = kvf_server_build_tcp(s, why);
    if (rc == 0 && kvf_server_speaks(s, KVF_PROTO_RDMA))
        rc = kvf_server_build_rdma(s, why);
    return rc;
}

/* ---- peers, gets, engines ----------------------------------------------- */

static void fill_peers_env(struct kvf_server *s, struct kvf_peers_env *env)
{
    *env = (struct kvf_peers_env){
        .sched = s->sched,
        .stats = &s->stats,
        .rng = &s->rng,
        .conf = s->conf,
        .incarnation = s->incarnation,
        .store = s->store,
        .buffers = s->buffers,
        .blocks = s->blocks,
        .maps = s->maps,
        .own_map = s->own_map,
        .channel = {&kvf_zchannel_ops, s->channel},
        .proc = kvf_procwatch_ops,
        .proc_ctx = s->procs,
        .shm = s->shm_on ? s->shm : NULL,
        .rdma = s->rdma,
        .port = s->peer_port,
        .on_peer = kvf_event_peer,
        .on_peer_arg = s,
        .on_written = kvf_event_written,
        .on_push_end = kvf_event_push_end,
    };
    kvf_server_tcp_for_peers(s, env);
    snprintf(env->host, sizeof env->host, "%s", s->host);
    if (s->shm_on) {
        snprintf(env->pool.path, sizeof env->pool.path, "%s", s->segment.path);
        env->pool.size = s->segment.size;
        env->pool.pid = (uint64_t)getpid();
        env->pool.start = s->proc_start;
    }
}

static int build_peers(struct kvf_server *s, struct kvf_why *why)
{
    uint16_t port = s->conf->zmq_port == KVF_PORT_AUTO
                        ? 0
                        : kvf_conf_port(s->conf->zmq_port, &s->conf->self);
    struct kvf_peers_env env;
    int rc = kvf_zchannel_create(s->zctx, s->reactor, s->resolver, s->conf,
                                 s->bind_host, port, &s->peer_port, &s->channel,
                                 why);

    if (rc < 0)
        return rc;
    fill_peers_env(s, &env);
    rc = kvf_peers_create(&env, &s->peers, why);
    if (rc == 0)
        kvf_zchannel_set_peers(s->channel, s->peers);
    return rc;
}

static int build_gets(struct kvf_server *s, struct kvf_why *why)
{
    struct kvf_gets_env env = {
        .sched = s->sched,
        .stats = &s->stats,
        .rng = &s->rng,
        .conf = s->conf,
        .incarnation = s->incarnation,
        .store = s->store,
        .buffers = s->buffers,
        .segment = &s->segment,
        .peers = s->peers,
        .shm = s->shm,
    };

    return kvf_gets_create(&env, &s->gets, why);
}

static int build_moves(struct kvf_server *s, struct kvf_why *why)
{
    struct kvf_moves_env env = {
        .sched = s->sched,
        .stats = &s->stats,
        .rng = &s->rng,
        .conf = s->conf,
        .store = s->store,
        .buffers = s->buffers,
        .peers = s->peers,
        .own_map = s->own_map,
        .shm = s->shm,
        .on_written = kvf_event_written,
        .arg = s,
    };

    return kvf_moves_create(&env, &s->moves, why);
}

static int build_pulls(struct kvf_server *s, struct kvf_why *why)
{
    struct kvf_pulls_env env = {
        .sched = s->sched,
        .stats = &s->stats,
        .rng = &s->rng,
        .conf = s->conf,
        .peers = s->peers,
    };

    return kvf_pulls_create(&env, &s->pulls, why);
}

static int say_ready(struct kvf_server *s, struct kvf_why *why)
{
    kvf_place_warn(s);
    return kvf_place_announce(s, why);
}

/* ---- the whole ---------------------------------------------------------- */

typedef int build_step(struct kvf_server *s, struct kvf_why *why);

static build_step *const steps[] = {
    kvf_server_build_process,
    build_loop,
    build_memory,
    build_transports,
    build_peers,
    build_gets,
    build_moves,
    build_pulls,
    kvf_place_bind_engine,
    kvf_signals_init,
    say_ready,
};

static int build(struct kvf_server *s, struct kvf_why *why)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof steps / sizeof steps[0]; i++)
        rc = steps[i](s, why);
    return rc;
}

struct kvf_server *kvf_server_create(struct kvf_conf *conf,
                                     const char *conf_path,
                                     const char *ready_path,
                                     struct kvf_why *why)
{
    struct kvf_server *s = calloc(1, sizeof *s);

    if (s == NULL) {
        free(conf);
        (void)kvf_fail(why, KVF_INTERNAL, "out of memory");
        return NULL;
    }
    s->conf = conf;
    s->conf_path = conf_path;
    s->ready_path = ready_path;
    s->lock.fd = s->broker = -1;
    kvf_random_bytes(s->incarnation.b, KVF_ID_LEN);
    kvf_mpw_init(&s->reply.w);
    kvf_mpw_init(&s->scratch);
    kvf_list_init(&s->clients_idle);
    kvf_list_init(&s->clients_joined);
    kvf_list_init(&s->event_clients);
    kvf_list_init(&s->ending);
    kvf_list_init(&s->nobody_buffers);
    kvf_list_init(&s->nobody_views);
    if (build(s, why) < 0) {
        kvf_server_destroy(s);
        return NULL;
    }
    return s;
}

int kvf_server_run(struct kvf_server *s)
{
    struct kvf_why why;

    kvf_log(KVF_LOG_INFO, "ENGINE",
            "kvferryd %s ready worker=" KVF_WORKER_FMT " engine=%s",
            KVF_VERSION, KVF_WORKER_ARG(&s->conf->self), s->engine_endpoint);
    if (kvf_reactor_run(s->reactor, &why) < 0) {
        kvf_log(KVF_LOG_ERROR, "LOOP", "ended: %s", why.text);
        s->exit_code = 1;
    }
    return s->exit_code;
}

/* ---- teardown, in reverse ----------------------------------------------- */

static void destroy_loop(struct kvf_server *s)
{
    kvf_asks_destroy(s->asks);
    kvf_procwatch_destroy(s->procs);
    if (s->resolver != NULL)
        kvf_resolver_destroy(s->resolver);
    kvf_reactor_destroy(s->reactor);
    if (s->zctx != NULL)
        kvf_zctx_destroy(s->zctx);
}

static void destroy_memory(struct kvf_server *s)
{
    if (s->store != NULL)
        kvf_store_destroy(s->store);
    kvf_blocks_destroy(s->blocks);
    if (s->buffers != NULL)
        kvf_buffers_destroy(s->buffers);
    if (s->own_map != NULL)
        kvf_map_release(s->own_map);
    if (s->maps != NULL)
        kvf_map_cache_destroy(s->maps);
    if (s->pool != NULL)
        kvf_pool_destroy(s->pool);
}

void kvf_server_destroy(struct kvf_server *s)
{
    if (s == NULL)
        return;
    if (s->gets != NULL && s->engine != NULL)
        kvf_drain_settle(s);
    if (s->has_ready_file)
        unlink(s->ready_path);
    kvf_zsock_close(s->engine, KVF_LAST_REPLIES_MS);
    kvf_undo_lists_free(s);
    kvf_moves_destroy(s->moves);
    if (s->gets != NULL)
        kvf_gets_destroy(s->gets);
    kvf_pulls_destroy(s->pulls);
    if (s->tcp != NULL)
        kvf_tcp_unlisten(s->tcp);
    if (s->channel != NULL)
        kvf_zchannel_set_peers(s->channel, NULL);
    kvf_peers_destroy(s->peers);
    kvf_zchannel_destroy(s->channel);
    kvf_transport_destroy(s->tcp);
    kvf_transport_destroy(s->shm);
    if (s->buffers != NULL)
        kvf_regions_on_change(s->buffers, NULL, NULL, NULL);
    kvf_transport_destroy(s->rdma); /* all that is registered is released */
    destroy_memory(s);
    destroy_loop(s);
    if (s->broker >= 0)
        close(s->broker);
    if (s->has_segment)
        kvf_segment_destroy(&s->segment);
    kvf_lockfile_drop(&s->lock);
    kvf_mpw_fini(&s->scratch);
    kvf_mpw_fini(&s->reply.w);
    free(s->conf);
    free(s);
}
