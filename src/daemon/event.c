/* Events: maps without an id, to DEALER clients that asked. Best effort: an
 * event for a client that is gone is dropped. */
#include "daemon/engine.h"

#include <string.h>

void kvf_client_event(struct kvf_client *c)
{
    struct kvf_server *s = c->server;
    struct kvf_frame f[2] = {{c->rid, c->rid_len},
                             {s->scratch.buf.data, s->scratch.buf.size}};

    if (s->scratch.failed || c->dead)
        return;
    if (kvf_zsock_send(s->engine, f, 2, 0) == 0)
        s->stats.events++;
}

/* The same to all who asked. */
static void to_listeners(struct kvf_server *s)
{
    kvf_list_for_each (it, &s->event_clients)
        kvf_client_event(kvf_container_of(it, struct kvf_client, event_node));
}

/* The publisher that a put gave to the store: the serial of the putting client
 * and that of its session (0 = none). */
static struct kvf_client *find_listener(struct kvf_server *s,
                                        const struct kvf_id *publisher,
                                        struct kvf_client *putter)
{
    struct kvf_session *ss;

    if (putter != NULL && putter->dealer)
        return putter;
    ss = kvf_session_by_serial(s, kvf_get_u64(publisher->b + 8));
    if (ss == NULL)
        return NULL;
    kvf_list_for_each (it, &ss->clients) {
        struct kvf_client *c =
            kvf_container_of(it, struct kvf_client, session_node);

        if (c->dealer)
            return c;
    }
    return NULL;
}

struct kvf_client *kvf_event_listener(struct kvf_server *s,
                                      const struct kvf_id *publisher)
{
    return find_listener(s, publisher,
                         kvf_client_find(s, kvf_get_u64(publisher->b)));
}

struct kvf_id kvf_event_address(const struct kvf_call *call)
{
    const struct kvf_session *ss = call->client->session;
    struct kvf_id id;

    kvf_put_u64(id.b, call->client->serial);
    kvf_put_u64(id.b + 8, ss != NULL ? ss->serial : 0);
    return id;
}

/* The event, whose fields are in s->scratch already, goes to the publisher. */
static void send_retired(struct kvf_server *s, const struct kvf_id *publisher)
{
    struct kvf_client *putter = kvf_client_find(s, kvf_get_u64(publisher->b));
    struct kvf_client *c = find_listener(s, publisher, putter);

    if (c != NULL)
        kvf_client_event(c);
    if (putter != NULL && putter->notify > 0)
        putter->notify--;
}

void kvf_event_push_end(void *server, const struct kvf_push_end *e)
{
    struct kvf_server *s = server;
    struct kvf_mpw *w = &s->scratch;

    kvf_mpw_reset(w);
    kvf_mpw_map(w, 5);
    kvf_mpw_kv_str(w, "event", "retired");
    kvf_mpw_str(w, "key");
    kvf_mpw_strn(w, e->key, e->key_len);
    kvf_mpw_kv_u64(w, "generation", e->generation);
    kvf_mpw_kv_str(w, "reason", kvf_retire_name(e->reason));
    kvf_mpw_kv_u64(w, "readers_done", e->readers_done);
    send_retired(s, &e->publisher);
}

void kvf_event_retired(void *server, const struct kvf_gen *gen,
                       enum kvf_retire reason)
{
    struct kvf_server *s = server;
    struct kvf_push_end e = {.key = gen->key,
                             .key_len = gen->key_len,
                             .generation = gen->generation,
                             .readers_done = gen->readers_done,
                             .reason = reason,
                             .publisher = gen->publisher};

    if (gen->notify && !kvf_peers_retired(s->peers, gen, reason))
        kvf_event_push_end(s, &e);
}

void kvf_event_unpublished(void *server, const struct kvf_gen *gen,
                           enum kvf_retire reason)
{
    const struct kvf_publication *p = gen->user;
    struct kvf_server *s = server;
    struct kvf_mpw *w = &s->scratch;

    if (!gen->notify)
        return;
    kvf_mpw_reset(w);
    kvf_mpw_map(w, 5);
    kvf_mpw_kv_str(w, "event", "retired");
    kvf_mpw_str(w, "request_id");
    kvf_mpw_strn(w, gen->key, p->request_len);
    kvf_mpw_kv_bin(w, "tag", p->tag.b, KVF_ID_LEN);
    kvf_mpw_kv_str(w, "reason", kvf_retire_name(reason));
    kvf_mpw_kv_u64(w, "consumers_done", gen->readers_done);
    send_retired(s, &gen->publisher);
}

void kvf_event_peer(void *server, const struct kvf_worker *worker, bool up,
                    const char *reason)
{
    struct kvf_server *s = server;
    struct kvf_mpw *w = &s->scratch;
    char name[48];

    if (kvf_list_empty(&s->event_clients))
        return;
    if (worker->replica == s->conf->self.replica)
        snprintf(name, sizeof name, "%u.%u", worker->stage, worker->rank);
    else
        snprintf(name, sizeof name, KVF_WORKER_FMT, KVF_WORKER_ARG(worker));
    kvf_mpw_reset(w);
    kvf_mpw_map(w, 7);
    kvf_mpw_kv_str(w, "event", "peer");
    kvf_mpw_kv_str(w, "worker", name);
    kvf_mpw_kv_u64(w, "stage", worker->stage);
    kvf_mpw_kv_u64(w, "rank", worker->rank);
    kvf_mpw_kv_u64(w, "replica", worker->replica);
    kvf_mpw_kv_str(w, "state", up ? "up" : "down");
    kvf_mpw_kv_str(w, "reason", reason != NULL ? reason : "");
    to_listeners(s);
}

void kvf_event_drain(struct kvf_server *s, uint64_t timeout_ms)
{
    struct kvf_mpw *w = &s->scratch;

    kvf_mpw_reset(w);
    kvf_mpw_map(w, 2);
    kvf_mpw_kv_str(w, "event", "drain");
    kvf_mpw_kv_u64(w, "timeout_ms", timeout_ms);
    to_listeners(s);
}

void kvf_event_pool(struct kvf_server *s)
{
    uint64_t free_bytes = kvf_pool_bytes_free(s->pool);
    uint64_t size = s->segment.size;
    struct kvf_mpw *w = &s->scratch;

    if (s->pool_low) {
        s->pool_low = free_bytes < size / 100 * 15;
        return;
    }
    if (free_bytes >= size / 10)
        return;
    s->pool_low = true;
    kvf_log(KVF_LOG_WARN, "POOL", "running low free=%llu size=%llu",
            (unsigned long long)free_bytes, (unsigned long long)size);
    kvf_mpw_reset(w);
    kvf_mpw_map(w, 3);
    kvf_mpw_kv_str(w, "event", "pool_low");
    kvf_mpw_kv_u64(w, "free", free_bytes);
    kvf_mpw_kv_u64(w, "size", size);
    to_listeners(s);
}
