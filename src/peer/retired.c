/* What becomes of pushes once they are published, for senders that want to hear
 * of it.
 *
 *   sender:    watch -OK of the push-> published -RETIRED-> told to the engine
 *   receiver:  kept with the generation -retired-> RETIRED -SEEN-> forgotten
 *
 * The engine of a push that was answered OK is told once, while its daemon
 * lives: RETIRED is said again with each new connection until it was seen, and
 * a watch is told `failed` when its receiver is gone for good, and what it had
 * with it. Failure modes: more ends than are kept for senders that are away:
 * the oldest is forgotten. */
#include "peer/access.h"

#include <stdlib.h>
#include <string.h>

/* Ends that wait for their senders, in all. */
#define ENDS_MAX 16384u

_Static_assert(KVF_PEER_REASONS == KVF_RETIRE_REASONS,
               "they travel as numbers");

/* ---- the sender's side -------------------------------------------------- */

struct kvf_watch {
    struct kvf_id push;
    struct kvf_peer *peer;
    struct kvf_list node; /* in peer->watches */
    bool published;       /* the engine has read so */
    bool ended;           /* before that: told when it has */
    struct kvf_push_end end;
    UT_hash_handle hh; /* by push */
    char key[];
};

int kvf_watch_new(struct kvf_peer *p, const struct kvf_id *push,
                  const char *key, size_t key_len,
                  const struct kvf_id *publisher, struct kvf_watch **out,
                  struct kvf_why *why)
{
    struct kvf_peers *ps = p->ps;
    struct kvf_watch *w = NULL;

    if (HASH_COUNT(ps->watches) < KVF_WATCHES_MAX)
        w = calloc(1, sizeof *w + key_len);
    if (w == NULL)
        return kvf_fail(why, KVF_BUSY,
                        "%u pushes with notify have not ended yet",
                        HASH_COUNT(ps->watches));
    w->push = *push;
    w->peer = p;
    memcpy(w->key, key, key_len);
    w->end.key = w->key;
    w->end.key_len = key_len;
    w->end.publisher = *publisher;
    HASH_ADD(hh, ps->watches, push, sizeof w->push, w);
    if (w->hh.tbl == NULL) {
        free(w);
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    }
    kvf_list_init(&w->node);
    kvf_list_push_back(&p->watches, &w->node);
    *out = w;
    return 0;
}

void kvf_watch_drop(struct kvf_watch *w)
{
    HASH_DEL(w->peer->ps->watches, w);
    kvf_list_unlink(&w->node);
    free(w);
}

static void tell(struct kvf_watch *w)
{
    const struct kvf_peers_env *env = &w->peer->ps->env;

    if (env->on_push_end != NULL)
        env->on_push_end(env->on_peer_arg, &w->end);
    kvf_watch_drop(w);
}

void kvf_watch_published(struct kvf_watch *w, uint64_t generation)
{
    w->published = true;
    w->end.generation = generation;
    if (w->ended)
        tell(w);
}

void kvf_peer_on_retired(struct kvf_peer *p, const struct kvf_peer_retired *r)
{
    struct kvf_peer_msg m;
    struct kvf_watch *w;

    kvf_peers_head(p->ps, &m, KVF_PEER_RETIRED_SEEN, &p->incarnation);
    m.u.retired = *r;
    HASH_FIND(hh, p->ps->watches, &r->push, sizeof r->push, w);
    if (w != NULL && w->peer == p) {
        w->ended = true;
        w->end.reason = (enum kvf_retire)r->reason;
        w->end.readers_done = r->readers_done;
        if (w->published)
            tell(w);
    }
    /* Lost, or no memory to send it: RETIRED comes again. */
    (void)kvf_peer_send(p, &m);
}

void kvf_peer_gone(struct kvf_peer *p)
{
    kvf_peer_drop_ends(p);
    kvf_list_for_each_safe (n, &p->watches) {
        struct kvf_watch *w = kvf_container_of(n, struct kvf_watch, node);

        /* A push still under way is published anew, or fails. */
        w->ended = w->published;
        w->end.reason = KVF_RETIRE_FAILED;
        w->end.readers_done = 0;
        if (w->published)
            tell(w);
    }
}

void kvf_peer_drop_watches(struct kvf_peer *p)
{
    kvf_list_for_each_safe (n, &p->watches)
        kvf_watch_drop(kvf_container_of(n, struct kvf_watch, node));
}

/* ---- the receiver's side ------------------------------------------------ */

struct kvf_pushed {
    uint64_t generation;
    struct kvf_id push, sender; /* incarnation of its daemon */
    bool retired;               /* then in ps->pushed_over */
    uint64_t reason, readers_done;
    struct kvf_list node;
    UT_hash_handle hh; /* by generation, from kvf_pushed_add on */
};

struct kvf_pushed *kvf_pushed_new(const struct kvf_id *push,
                                  const struct kvf_id *sender)
{
    struct kvf_pushed *e = calloc(1, sizeof *e);

    if (e == NULL)
        return NULL;
    e->push = *push;
    e->sender = *sender;
    kvf_list_init(&e->node);
    return e;
}

void kvf_pushed_add(struct kvf_peers *ps, struct kvf_pushed *e,
                    uint64_t generation)
{
    e->generation = generation;
    HASH_ADD(hh, ps->pushed, generation, sizeof e->generation, e);
    if (e->hh.tbl == NULL)
        free(e); /* its sender hears nothing */
}

static void forget(struct kvf_peers *ps, struct kvf_pushed *e)
{
    HASH_DEL(ps->pushed, e);
    ps->n_pushed_over -= e->retired;
    kvf_list_unlink(&e->node);
    free(e);
}

static void say(struct kvf_guest *g, const struct kvf_pushed *e)
{
    struct kvf_peer_msg m;

    kvf_peers_head(g->ps, &m, KVF_PEER_RETIRED, &g->incarnation);
    m.u.retired.push = e->push;
    m.u.retired.generation = e->generation;
    m.u.retired.reason = e->reason;
    m.u.retired.readers_done = e->readers_done;
    kvf_guest_answer(g, &m, NULL, 0);
}

bool kvf_peers_retired(struct kvf_peers *ps, const struct kvf_gen *gen,
                       enum kvf_retire reason)
{
    struct kvf_pushed *e;
    struct kvf_guest *g;

    HASH_FIND(hh, ps->pushed, &gen->generation, sizeof gen->generation, e);
    if (e == NULL)
        return false;
    if (ps->n_pushed_over == ENDS_MAX)
        forget(ps, kvf_container_of(kvf_list_first(&ps->pushed_over),
                                    struct kvf_pushed, node));
    e->retired = true;
    e->reason = (uint64_t)reason;
    e->readers_done = gen->readers_done;
    ps->n_pushed_over++;
    kvf_list_push_back(&ps->pushed_over, &e->node);
    g = kvf_guest_up(ps, &e->sender);
    if (g != NULL)
        say(g, e);
    return true;
}

void kvf_guest_retired_again(struct kvf_guest *g)
{
    kvf_list_for_each (n, &g->ps->pushed_over) {
        struct kvf_pushed *e = kvf_container_of(n, struct kvf_pushed, node);

        if (kvf_id_equal(&e->sender, &g->incarnation))
            say(g, e);
    }
}

void kvf_guest_on_retired_seen(struct kvf_guest *g,
                               const struct kvf_peer_retired *r)
{
    struct kvf_peers *ps = g->ps;
    struct kvf_pushed *e;

    HASH_FIND(hh, ps->pushed, &r->generation, sizeof r->generation, e);
    if (e == NULL)
        return; /* said twice, seen twice */
    if (e->retired && kvf_id_equal(&e->sender, &g->incarnation) &&
        kvf_id_equal(&e->push, &r->push))
        forget(ps, e);
    else
        ps->env.stats->peer_malformed++;
}

void kvf_pushed_destroy(struct kvf_peers *ps)
{
    struct kvf_pushed *e, *next;

    HASH_ITER (hh, ps->pushed, e, next)
        forget(ps, e);
}

void kvf_retired_gauges(const struct kvf_peers *ps, struct kvf_peers_gauges *g)
{
    g->watches = HASH_COUNT(ps->watches);
    g->pushed = HASH_COUNT(ps->pushed);
}
