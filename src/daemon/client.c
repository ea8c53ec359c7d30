/* The table of clients. Happy path: found by routing id, same address.
 * Failure modes: another address (a newcomer: the old client is dropped), a
 * full table (the idlest goes, or the message is refused). */
#include "daemon/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ":uid:gid:pid" at the end of libzmq's Peer-Address on ipc. */
static void read_cred(struct kvf_client *c)
{
    const char *at = c->address + strlen(c->address);
    long v[3];
    char *end;

    for (int i = 2; i >= 0; i--) {
        do {
            if (at == c->address)
                return;
            at--;
        } while (*at != ':');
        v[i] = strtol(at + 1, &end, 10);
        if (end == at + 1 || (*end != '\0' && *end != ':'))
            return;
    }
    c->has_cred = true;
    c->uid = (uid_t)v[0];
    c->pid = v[2] > 0 ? (pid_t)v[2] : 0;
}

static bool idle(const struct kvf_client *c)
{
    return c->outstanding == 0 && c->notify == 0;
}

static bool evict(struct kvf_list *list)
{
    unsigned seen = 0;

    kvf_list_for_each (it, list) {
        struct kvf_client *c =
            kvf_container_of(it, struct kvf_client, lru_node);

        if (idle(c)) {
            kvf_client_drop(c);
            return true;
        }
        if (++seen == 256)
            break;
    }
    return false;
}

static struct kvf_client *client_new(struct kvf_server *s, const void *rid,
                                     size_t len, const char *address)
{
    struct kvf_client *c;

    if (s->n_clients >= KVF_MAX_CLIENTS && !evict(&s->clients_idle) &&
        !evict(&s->clients_joined))
        return NULL;
    c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->server = s;
    c->serial = ++s->next_serial;
    memcpy(c->rid, rid, len);
    c->rid_len = len;
    snprintf(c->address, sizeof c->address, "%s", address);
    if (s->engine_ipc)
        read_cred(c);
    kvf_list_init(&c->session_node);
    kvf_list_init(&c->lru_node);
    kvf_list_init(&c->event_node);
    kvf_list_init(&c->pending);
    HASH_ADD_KEYPTR(hh, s->clients_by_rid, c->rid, (unsigned)c->rid_len, c);
    if (c->hh.tbl == NULL) {
        free(c);
        return NULL;
    }
    HASH_ADD(hh_serial, s->clients_by_serial, serial, sizeof c->serial, c);
    if (c->hh_serial.tbl == NULL) {
        HASH_DEL(s->clients_by_rid, c);
        free(c);
        return NULL;
    }
    s->n_clients++;
    return c;
}

struct kvf_client *kvf_client_of(struct kvf_server *s, const void *rid,
                                 size_t rid_len, const char *address)
{
    struct kvf_client *c;

    if (rid_len == 0 || rid_len > KVF_RID_MAX)
        return NULL;
    HASH_FIND(hh, s->clients_by_rid, rid, (unsigned)rid_len, c);
    if (c != NULL && strncmp(c->address, address, sizeof c->address - 1) != 0) {
        kvf_client_drop(c);
        /* What waited for the old one is not for the newcomer. */
        kvf_zsock_give_up(s->engine, rid, rid_len);
        c = NULL;
    }
    if (c == NULL)
        c = client_new(s, rid, rid_len, address);
    if (c != NULL)
        kvf_client_touch(c);
    return c;
}

struct kvf_client *kvf_client_find(struct kvf_server *s, uint64_t serial)
{
    struct kvf_client *c;

    HASH_FIND(hh_serial, s->clients_by_serial, &serial, sizeof serial, c);
    return c;
}

void kvf_client_touch(struct kvf_client *c)
{
    struct kvf_server *s = c->server;

    if (c->dead)
        return;
    kvf_list_unlink(&c->lru_node);
    kvf_list_push_back(c->session != NULL ? &s->clients_joined
                                          : &s->clients_idle,
                       &c->lru_node);
}

void kvf_client_set_events(struct kvf_client *c, bool on)
{
    kvf_list_unlink(&c->event_node);
    c->events = on;
    if (on)
        kvf_list_push_back(&c->server->event_clients, &c->event_node);
}

void kvf_client_drop(struct kvf_client *c)
{
    struct kvf_server *s = c->server;

    if (c->dead)
        return;
    c->dead = true;
    HASH_DEL(s->clients_by_rid, c);
    HASH_DELETE(hh_serial, s->clients_by_serial, c);
    s->n_clients--;
    kvf_list_unlink(&c->session_node);
    c->session = NULL;
    kvf_list_unlink(&c->lru_node);
    kvf_list_unlink(&c->event_node);
    if (c->outstanding == 0) {
        free(c);
        return;
    }
    /* Its requests have nobody to answer to. The last one to end frees c: an
     * extra reference keeps it while they are cancelled. */
    c->outstanding++;
    kvf_client_cancel(c, NULL, NULL, 0, KVF_CANCELLED, "the client is gone");
    if (--c->outstanding == 0)
        free(c);
}

void kvf_clients_drop_all(struct kvf_server *s)
{
    struct kvf_client *c, *next;

    HASH_ITER (hh, s->clients_by_rid, c, next) {
        kvf_client_drop(c);
    }
}

/* ---- requests that are answered later ----------------------------------- */

int kvf_pending_begin(struct kvf_pending *p, struct kvf_call *call,
                      void (*cancel)(struct kvf_pending *p,
                                     enum kvf_status status, const char *text),
                      struct kvf_why *why)
{
    static const uint8_t nil_id = 0xc0;
    const uint8_t *id = call->to.id != NULL ? call->to.id : &nil_id;
    size_t len = call->to.id != NULL ? call->to.id_len : 1;

    p->id = p->id_small;
    if (len > sizeof p->id_small) {
        p->id = malloc(len);
        if (p->id == NULL)
            return kvf_fail(why, KVF_INTERNAL, "out of memory");
    }
    memcpy(p->id, id, len);
    p->id_len = len;
    p->client = call->client;
    p->session = call->client->session;
    p->delimiter = call->to.delimiter;
    p->cancel = cancel;
    kvf_list_init(&p->node);
    kvf_list_push_back(&p->client->pending, &p->node);
    p->client->outstanding++;
    call->s->n_pending++;
    kvf_list_init(&p->session_node);
    if (p->session != NULL) {
        p->session->n_pending++;
        kvf_list_push_back(&p->session->pending, &p->session_node);
    }
    return 0;
}

void kvf_pending_to(const struct kvf_pending *p, struct kvf_to *to)
{
    *to = (struct kvf_to){.rid = p->client->rid,
                          .rid_len = p->client->rid_len,
                          .id = p->id,
                          .id_len = p->id_len,
                          .delimiter = p->delimiter};
}

bool kvf_pending_orphan(const struct kvf_pending *p)
{
    return p->client->dead || (p->session != NULL && p->session->ended);
}

int kvf_pending_send(struct kvf_pending *p, const void *payload, size_t len,
                     uint64_t cookie)
{
    struct kvf_to to;

    if (p->client->dead) {
        p->client->server->stats.replies_undone++;
        return -KVF_PEER_UNREACHABLE;
    }
    kvf_pending_to(p, &to);
    return kvf_reply_send(p->client->server, &to, payload, len, cookie);
}

void kvf_pending_end(struct kvf_pending *p)
{
    struct kvf_client *c = p->client;
    struct kvf_session *ss = p->session;

    kvf_list_unlink(&p->node);
    kvf_list_unlink(&p->session_node);
    if (p->id != p->id_small)
        free(p->id);
    c->server->n_pending--;
    if (ss != NULL) {
        ss->n_pending--;
        kvf_session_settle(ss);
    }
    if (--c->outstanding == 0 && c->dead)
        free(c);
}

static bool has_id(const struct kvf_pending *p, const uint8_t *id, size_t len)
{
    return id == NULL || kvf_mp_same(p->id, p->id_len, id, len);
}

/* A cancel may end its request at once, but no other's: still, each is taken
 * off a list of its own so that none is met twice. */
unsigned kvf_client_cancel(struct kvf_client *c,
                           const struct kvf_session *except, const uint8_t *id,
                           size_t id_len, enum kvf_status status,
                           const char *text)
{
    struct kvf_list all, *n;
    unsigned count = 0;

    kvf_list_init(&all);
    kvf_list_splice(&all, &c->pending);
    while ((n = kvf_list_pop(&all)) != NULL) {
        struct kvf_pending *p = kvf_container_of(n, struct kvf_pending, node);

        kvf_list_push_back(&c->pending, &p->node);
        if (!has_id(p, id, id_len) || (except != NULL && p->session == except))
            continue;
        count++;
        p->cancel(p, status, text);
    }
    return count;
}

unsigned kvf_session_cancel(struct kvf_session *ss, const uint8_t *id,
                            size_t id_len, enum kvf_status status,
                            const char *text)
{
    struct kvf_list all, *n;
    unsigned count = 0;

    kvf_list_init(&all);
    kvf_list_splice(&all, &ss->pending);
    while ((n = kvf_list_pop(&all)) != NULL) {
        struct kvf_pending *p =
            kvf_container_of(n, struct kvf_pending, session_node);

        kvf_list_push_back(&ss->pending, &p->session_node);
        if (!has_id(p, id, id_len))
            continue;
        count++;
        p->cancel(p, status, text);
    }
    return count;
}
