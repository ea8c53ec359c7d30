/* Pulls that succeed together or not at all: the meeting point, at the daemon
 * of the sender's rank 0.
 *
 * JOIN makes a pull a member; when as many as the group is large are READY, all
 * get VERDICT OK; the first that FAILED (or went away) makes it the failure,
 * for those who come later too. A group is gone when everyone was told, or
 * after a while. Failure modes: a verdict that does not arrive is found out by
 * its member when the connection is lost: it fails although others may not. */
#include "peer/peers_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEPT_NS (30 * KVF_NS_PER_S) /* a failure, for those not yet told */
#define GROUPS_MAX 65536u

struct member {
    struct kvf_list node;       /* in the group */
    struct kvf_list guest_node; /* in guest->together */
    struct kvf_guest *guest;    /* NULL: gone, or told */
    struct kvf_group_of *group;
    uint64_t ask, id;
    bool ready;
};

struct kvf_group_of {
    struct kvf_peers *ps;
    UT_hash_handle hh; /* by name */
    struct kvf_list members;
    struct kvf_timer timer;
    uint64_t size, told;
    unsigned n_ready;
    enum kvf_status status; /* of the verdict, once failed */
    char text[200];
    bool failed;
    size_t len;
    char name[]; /* request id, NUL, name */
};

static void group_free(struct kvf_group_of *t)
{
    struct kvf_list *n;

    while ((n = kvf_list_pop(&t->members)) != NULL) {
        struct member *m = kvf_container_of(n, struct member, node);

        kvf_list_unlink(&m->guest_node);
        free(m);
    }
    kvf_timer_cancel(t->ps->env.sched, &t->timer);
    HASH_DEL(t->ps->groups, t);
    free(t);
}

static void on_timer(struct kvf_timer *timer)
{
    group_free(kvf_container_of(timer, struct kvf_group_of, timer));
}

void kvf_together_free_all(struct kvf_peers *ps)
{
    struct kvf_group_of *t, *next;

    HASH_ITER (hh, ps->groups, t, next)
        group_free(t);
}

static void answer(struct kvf_guest *g, uint64_t ask, enum kvf_status status,
                   const char *text)
{
    struct kvf_peer_msg m;

    kvf_peers_head(g->ps, &m, KVF_PEER_VERDICT, &g->incarnation);
    m.u.verdict.ask = ask;
    m.u.verdict.status = (uint32_t)status;
    snprintf(m.u.verdict.text, sizeof m.u.verdict.text, "%s", text);
    kvf_guest_answer(g, &m, NULL, 0);
}

static void tell(struct member *m)
{
    const struct kvf_group_of *t = m->group;
    struct kvf_guest *g = m->guest;

    if (g == NULL)
        return;
    m->guest = NULL;
    kvf_list_unlink(&m->guest_node);
    answer(g, m->ask, t->failed ? t->status : KVF_OK,
           t->failed ? t->text : "all are ready");
}

/* Everybody who is there is told. */
static void decide(struct kvf_group_of *t)
{
    unsigned n = 0;

    kvf_list_for_each (it, &t->members) {
        tell(kvf_container_of(it, struct member, node));
        n++;
    }
    if (!t->failed || n >= t->size)
        group_free(t);
    else if (!kvf_timer_armed(&t->timer))
        kvf_timer_set(t->ps->env.sched, &t->timer,
                      t->ps->env.sched->now_ns + KEPT_NS);
}

static void fail(struct kvf_group_of *t, uint64_t member,
                 enum kvf_status status, const char *text)
{
    if (!t->failed) {
        t->failed = true;
        t->status = status != KVF_OK ? status : KVF_CANCELLED;
        snprintf(t->text, sizeof t->text,
                 "rank %" PRIu64 " of the group failed: %.150s", member, text);
    }
    decide(t);
}

static struct kvf_group_of *
group_of(struct kvf_peers *ps, const struct kvf_peer_together *b, bool make)
{
    size_t len = b->request_id.len + 1 + b->name.len;
    struct kvf_group_of *t = calloc(1, sizeof *t + len + 1), *found;

    if (t == NULL)
        return NULL;
    memcpy(t->name, b->request_id.p, b->request_id.len);
    memcpy(t->name + b->request_id.len + 1, b->name.p, b->name.len);
    t->len = len;
    HASH_FIND(hh, ps->groups, t->name, len, found);
    if (found != NULL || !make || HASH_COUNT(ps->groups) >= GROUPS_MAX) {
        free(t);
        return found;
    }
    t->ps = ps;
    t->size = b->size;
    kvf_list_init(&t->members);
    kvf_timer_init(&t->timer, on_timer);
    HASH_ADD_KEYPTR(hh, ps->groups, t->name, t->len, t);
    return t;
}

static struct member *find(struct kvf_group_of *t, const struct kvf_guest *g,
                           uint64_t ask)
{
    kvf_list_for_each (n, &t->members) {
        struct member *m = kvf_container_of(n, struct member, node);

        if (m->guest == g && m->ask == ask)
            return m;
    }
    return NULL;
}

static void join(struct kvf_guest *g, const struct kvf_peer_together *b)
{
    struct kvf_group_of *t = group_of(g->ps, b, true);
    struct member *m = calloc(1, sizeof *m);

    if (t == NULL || m == NULL) {
        free(m);
        answer(g, b->ask, KVF_BUSY, "too many groups of pulls at once");
        return;
    }
    kvf_list_init(&m->node);
    kvf_list_init(&m->guest_node);
    m->guest = g;
    m->group = t;
    m->ask = b->ask;
    m->id = b->member;
    kvf_list_push_back(&t->members, &m->node);
    kvf_list_push_back(&g->together, &m->guest_node);
    if (t->failed) {
        decide(t);
        return;
    }
    if (t->size != b->size) {
        fail(t, b->member, KVF_MISMATCH, "together: sizes differ");
        return;
    }
    kvf_list_for_each (n, &t->members) {
        struct member *x = kvf_container_of(n, struct member, node);

        if (x != m && x->id == m->id) {
            fail(t, b->member, KVF_MISMATCH,
                 "together: this rank is in the group twice");
            return;
        }
    }
}

void kvf_guest_on_together(struct kvf_guest *g,
                           const struct kvf_peer_together *b)
{
    struct kvf_group_of *t;
    struct member *m;

    if (b->phase == KVF_TOGETHER_JOIN) {
        join(g, b);
        return;
    }
    t = group_of(g->ps, b, false);
    m = t != NULL ? find(t, g, b->ask) : NULL;
    if (m == NULL)
        return; /* told meanwhile */
    if (b->phase == KVF_TOGETHER_FAILED) {
        /* Told like the others: it may wait to hear what was decided. */
        fail(t, m->id, (enum kvf_status)b->status, b->text);
        return;
    }
    t->n_ready += !m->ready;
    m->ready = true;
    if (t->n_ready == t->size)
        decide(t);
}

static void leave(struct member *m, const char *text)
{
    m->guest = NULL;
    kvf_list_unlink(&m->guest_node);
    fail(m->group, m->id, KVF_PEER_UNREACHABLE, text);
}

bool kvf_guest_leave_together(struct kvf_guest *g, uint64_t ask)
{
    kvf_list_for_each (n, &g->together) {
        struct member *m = kvf_container_of(n, struct member, guest_node);

        if (m->ask == ask) {
            leave(m, "it left the group");
            return true;
        }
    }
    return false;
}

void kvf_guest_drop_together(struct kvf_guest *g)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&g->together)) != NULL)
        leave(kvf_container_of(n, struct member, guest_node),
              "its daemon went away");
}
