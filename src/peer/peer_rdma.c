/* The rdma transport's handshake over the metadata channel, both sides, and
 * when a link is tried again.
 *
 * Happy path: with the session the getter connects (if rdma comes before tcp
 * and shm is not possible), the owner accepts, gets use the link. Failure
 * modes: refused or lost: gets go on with the next protocol; the link is tried
 * again, in the background, with a pause that doubles from one second to one
 * minute, so that a port that comes back is used again by itself; a daemon that
 * was restarted begins anew. Where rdma is the only protocol there is no pause:
 * requests have their own. */
#include "peer/peers_private.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAUSE_MIN_NS KVF_NS_PER_S
#define PAUSE_SHIFT_MAX 6
/* A link that was up for so long counts as having worked. */
#define WORKED_NS (10 * KVF_NS_PER_S)

static struct kvf_peer *peer_of(struct kvf_link *link)
{
    return kvf_container_of(link, struct kvf_peer, rdma);
}

static bool only_rdma(const struct kvf_peer *p)
{
    const struct kvf_conf *c = p->ps->env.conf;

    return c->n_protocol == 1 && c->protocol[0] == KVF_PROTO_RDMA;
}

/* ---- the getter's link -------------------------------------------------- */

static void on_up(struct kvf_link *link)
{
    struct kvf_peer *p = peer_of(link);

    p->rdma_up_ns = p->ps->env.sched->now_ns;
    kvf_log(KVF_LOG_INFO, "KVF RDMA", "%s up addr=%s device=%s", p->name,
            p->addr, kvf_rdma_describe(p->ps->env.rdma));
    kvf_peer_await_tell(p, true);
}

/* The link is no longer up. One that worked for long pays for all failures
 * before it, whatever ended it: its own, or its session. */
static void no_longer_up(struct kvf_peer *p)
{
    if (p->rdma_up_ns != 0 &&
        p->ps->env.sched->now_ns - p->rdma_up_ns >= WORKED_NS)
        p->rdma_fails = 0;
    p->rdma_up_ns = 0;
}

static void failed(struct kvf_peer *p, const struct kvf_why *why)
{
    struct kvf_sched *s = p->ps->env.sched;
    unsigned shift;
    uint64_t pause;

    no_longer_up(p);
    shift = p->rdma_fails++;
    pause = PAUSE_MIN_NS << (shift < PAUSE_SHIFT_MAX ? shift : PAUSE_SHIFT_MAX);
    /* Between three quarters and all of it, so that peers do not march. */
    pause -= kvf_rng_below(p->ps->env.rng, pause / 4);
    if (only_rdma(p))
        pause = 0;
    p->rdma_again_ns = s->now_ns + pause;
    kvf_log(KVF_LOG_WARN, "KVF RDMA", "%s down addr=%s again_ms=%llu: %s",
            p->name, p->addr, (unsigned long long)(pause / KVF_NS_PER_MS),
            why->text);
    p->rdma_why = *why;
    kvf_peer_await_tell(p, false);
}

static void on_down(struct kvf_link *link, const struct kvf_why *why)
{
    failed(peer_of(link), why);
    kvf_link_close(link);
}

void kvf_peer_rdma_init(struct kvf_peer *p)
{
    p->rdma.owner = p;
    p->rdma.on_up = on_up;
    p->rdma.on_down = on_down;
    kvf_peer_await_init(p);
}

static int open_link(struct kvf_peer *p, struct kvf_why *why)
{
    struct kvf_link_addr addr = {.port = p->port};
    int rc;

    kvf_link_close(&p->rdma);
    snprintf(addr.host, sizeof addr.host, "%.63s", p->name);
    rc = kvf_link_open(p->ps->env.rdma, &p->rdma, &addr, why);
    if (rc < 0) {
        struct kvf_why local;

        kvf_fail(&local, KVF_TRANSPORT, "%s",
                 why != NULL ? why->text : "no link");
        failed(p, &local);
    }
    return rc;
}

/* Is rdma what gets from there will use first? */
static bool preferred(const struct kvf_peer *p)
{
    const struct kvf_conf *c = p->ps->env.conf;

    for (unsigned i = 0; i < c->n_protocol; i++) {
        if (c->protocol[i] == KVF_PROTO_RDMA)
            return true;
        if (c->protocol[i] == KVF_PROTO_TCP ||
            (c->protocol[i] == KVF_PROTO_SHM && p->shm_ok))
            return false;
    }
    return false;
}

/* It cannot come any more. */
static void stopped(struct kvf_peer *p)
{
    kvf_fail(&p->rdma_why, KVF_TRANSPORT, "%s offers no rdma now", p->name);
    kvf_peer_await_tell(p, false);
}

void kvf_peer_rdma_start(struct kvf_peer *p, bool offered)
{
    bool idle =
        p->rdma.state == KVF_LINK_IDLE || p->rdma.state == KVF_LINK_DOWN;
    struct kvf_why why;

    p->has_rdma = offered && p->ps->env.rdma != NULL;
    if (!p->has_rdma)
        stopped(p);
    if (p->has_rdma && idle && preferred(p) &&
        p->ps->env.sched->now_ns >= p->rdma_again_ns)
        open_link(p, &why);
}

void kvf_peer_rdma_stop(struct kvf_peer *p)
{
    kvf_link_close(&p->rdma);
    p->has_rdma = false;
    no_longer_up(p);
    stopped(p);
}

void kvf_peer_rdma_forget(struct kvf_peer *p)
{
    kvf_peer_rdma_stop(p);
    p->rdma_fails = 0;
    p->rdma_again_ns = 0;
}

void kvf_peer_rdma_again(struct kvf_peer *p)
{
    struct kvf_why why;

    if (p->rdma.state == KVF_LINK_IDLE || p->rdma.state == KVF_LINK_DOWN)
        open_link(p, &why); /* those who wait hear of a failure */
}

struct kvf_link *kvf_peer_rdma_link(struct kvf_peer *p, struct kvf_why *why)
{
    if (!p->has_rdma || p->state != KVF_PEER_UP) {
        kvf_fail(why, KVF_TRANSPORT, "%s offers no rdma now", p->name);
        return NULL;
    }
    if (p->rdma.state == KVF_LINK_IDLE || p->rdma.state == KVF_LINK_DOWN) {
        if (p->ps->env.sched->now_ns < p->rdma_again_ns) {
            kvf_fail(why, KVF_TRANSPORT, "rdma to %s failed just now", p->name);
            return NULL;
        }
        if (open_link(p, why) < 0)
            return NULL;
    }
    /* After a failure nobody waits to see whether it works again. */
    if (p->rdma.state != KVF_LINK_UP && p->rdma_fails > 0 && !only_rdma(p)) {
        kvf_fail(why, KVF_TRANSPORT, "rdma to %s is being tried again",
                 p->name);
        return NULL;
    }
    return &p->rdma;
}

/* ---- messages out ------------------------------------------------------- */

static int hook_connect(void *arg, struct kvf_link *link,
                        const struct kvf_rdma_connect *c, struct kvf_why *why)
{
    struct kvf_peer *p = peer_of(link);
    struct kvf_peer_msg m;

    (void)arg;
    if (p->state != KVF_PEER_UP)
        return kvf_fail(why, KVF_PEER_UNREACHABLE, "%s is down", p->name);
    kvf_peers_head(p->ps, &m, KVF_PEER_RDMA_CONNECT, &p->incarnation);
    m.u.rdma_connect = *c;
    if (kvf_peer_send(p, &m) < 0)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a message");
    return 0;
}

static void fill_word(struct kvf_peer_msg *m, uint64_t id,
                      enum kvf_status status, const char *text)
{
    m->u.rdma_word.id = id;
    m->u.rdma_word.status = status;
    snprintf(m->u.rdma_word.text, sizeof m->u.rdma_word.text, "%.199s", text);
}

static void hook_disconnect(void *arg, struct kvf_link *link, uint64_t id,
                            const char *text)
{
    struct kvf_peer *p = peer_of(link);
    struct kvf_peer_msg m;

    (void)arg;
    if (p->state != KVF_PEER_UP || p->dial == NULL)
        return; /* the owner ends it with the session */
    kvf_peers_head(p->ps, &m, KVF_PEER_RDMA_CLOSE, &p->incarnation);
    fill_word(&m, id, KVF_TRANSPORT, text);
    kvf_peer_send(p, &m);
}

static void hook_accept(void *arg, void *session,
                        const struct kvf_rdma_accept *a)
{
    struct kvf_guest *g = session;
    struct kvf_peer_msg m;

    (void)arg;
    kvf_peers_head(g->ps, &m, KVF_PEER_RDMA_ACCEPT, &g->incarnation);
    m.u.rdma_accept = *a;
    kvf_guest_answer(g, &m, NULL, 0);
    kvf_log(KVF_LOG_INFO, "KVF RDMA", "%s accepted (getter) mtu=%u reads=%u",
            g->name, a->end.mtu, a->end.rd_atomic);
}

static void refuse(struct kvf_guest *g, enum kvf_peer_type type, uint64_t id,
                   const struct kvf_why *why)
{
    struct kvf_peer_msg m;

    kvf_peers_head(g->ps, &m, type, &g->incarnation);
    fill_word(&m, id, why->status, why->text);
    kvf_guest_answer(g, &m, NULL, 0);
    kvf_log_limited(&g->ps->log_refused, g->ps->env.sched->now_ns, KVF_LOG_WARN,
                    "KVF RDMA", "%s %s (getter): %s", g->name,
                    type == KVF_PEER_RDMA_REFUSE ? "refused" : "closed",
                    why->text);
}

static void hook_refuse(void *arg, void *session, uint64_t id,
                        const struct kvf_why *why)
{
    (void)arg;
    refuse(session, KVF_PEER_RDMA_REFUSE, id, why);
}

static void hook_closed(void *arg, void *session, uint64_t id,
                        const struct kvf_why *why)
{
    (void)arg;
    refuse(session, KVF_PEER_RDMA_CLOSE, id, why);
}

static void hook_expelled(void *arg, void *session)
{
    (void)arg;
    kvf_guest_expelled(session);
}

const struct kvf_rdma_hooks kvf_peers_rdma_hooks = {
    .connect = hook_connect,
    .disconnect = hook_disconnect,
    .accept = hook_accept,
    .refuse = hook_refuse,
    .closed = hook_closed,
    .expelled = hook_expelled,
};

/* ---- messages in -------------------------------------------------------- */

/* Kept with the layout, for as long as a claim may need it. Claims point to it,
 * so new keys of an owner whose device was opened anew take the place of those
 * before; of others than so many the first word counts. */
static void on_keys(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    struct kvf_far *f = kvf_far_find(p->fars, m->u.rdma_keys.layout);
    const struct kvf_rdma_keys *k = m->u.rdma_keys.keys;
    uint64_t i = m->u.rdma_keys.region, sum = 0;
    size_t size = sizeof *k + k->n * sizeof k->key[0];

    for (unsigned j = 0; j < k->n; j++)
        sum += k->key[j].length;
    if (f == NULL || i >= f->n_regions || k->first != 0 || sum < f->length[i]) {
        p->ps->env.stats->peer_malformed++;
        return;
    }
    if (f->keys == NULL)
        f->keys = calloc(f->n_regions, sizeof(struct kvf_rdma_keys *));
    if (f->keys == NULL)
        return;
    if (f->keys[i] != NULL) {
        if (f->keys[i]->n == k->n)
            memcpy(f->keys[i], k, size);
        return;
    }
    f->keys[i] = malloc(size);
    if (f->keys[i] == NULL)
        return;
    memcpy(f->keys[i], k, size);
    f->n_keys++;
}

bool kvf_peer_rdma_regions(struct kvf_peer *p, struct kvf_grant *g)
{
    const struct kvf_far *f = g->far;

    if (!p->has_rdma || f->n_keys != f->n_regions || f->n_regions == 0)
        return false;
    for (unsigned i = 0; i < g->remote.n_segs; i++)
        if (g->remote.segs[i].map != NULL) /* of an attempt at shm */
            kvf_map_release(g->remote.segs[i].map);
    free(g->remote.segs);
    g->remote.n_segs = 0;
    g->remote.segs = calloc(f->n_regions, sizeof *g->remote.segs);
    if (g->remote.segs == NULL)
        return false;
    g->remote.n_segs = f->n_regions;
    for (unsigned i = 0; i < f->n_regions; i++)
        g->remote.segs[i] =
            (struct kvf_remote_seg){.length = f->length[i], .keys = f->keys[i]};
    return true;
}

void kvf_peer_rdma_message(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    const struct kvf_rdma_word *w = &m->u.rdma_word;

    if (m->head.type == KVF_PEER_RDMA_KEYS) {
        on_keys(p, m);
        return;
    }
    if (!p->has_rdma || p->rdma.impl == NULL)
        return; /* it was closed meanwhile */
    if (m->head.type == KVF_PEER_RDMA_ACCEPT)
        kvf_rdma_on_accept(&p->rdma, &m->u.rdma_accept, &p->incarnation);
    else if (m->head.type == KVF_PEER_RDMA_REFUSE)
        kvf_rdma_on_refuse(&p->rdma, w->id, (enum kvf_status)w->status,
                           w->text);
    else
        kvf_rdma_on_owner_closed(&p->rdma, w->id, w->text);
}

void kvf_guest_rdma_message(struct kvf_guest *g, const struct kvf_peer_msg *m)
{
    struct kvf_transport *rdma = g->ps->env.rdma;
    struct kvf_why why;

    if (rdma != NULL && m->head.type == KVF_PEER_RDMA_CONNECT) {
        kvf_rdma_on_connect(rdma, g, &m->u.rdma_connect);
    } else if (rdma != NULL) {
        kvf_rdma_on_getter_closed(rdma, g, m->u.rdma_word.id);
    } else if (m->head.type == KVF_PEER_RDMA_CONNECT) {
        kvf_fail(&why, KVF_UNSUPPORTED, "rdma is off at the owner");
        refuse(g, KVF_PEER_RDMA_REFUSE, m->u.rdma_connect.id, &why);
    }
}

bool kvf_guest_rdma_expel(struct kvf_guest *g)
{
    struct kvf_transport *rdma = g->ps->env.rdma;

    return rdma == NULL ||
           (kvf_rdma_allow_write(rdma, g, false), kvf_rdma_expel(rdma, g));
}

void kvf_peers_rdma_renewed(struct kvf_peers *ps)
{
    for (struct kvf_guest *g = ps->guests; g != NULL; g = g->hh.next)
        kvf_told_clear(&g->told_keys);
}

/* ---- what may yet be ---------------------------------------------------- */

/* Of regions whose keys could not be told: will they be, soon? */
struct outlook {
    bool accepted; /* the handshake has succeeded */
    bool pending, failed;
};

static struct outlook outlook_of(const struct kvf_guest *g)
{
    struct kvf_transport *rdma = g->ps->env.rdma;

    return (struct outlook){.accepted =
                                rdma != NULL && kvf_rdma_accepted(rdma, g),
                            .failed = rdma == NULL || !g->rdma};
}

static void look(struct outlook *o, const struct kvf_region *r)
{
    struct kvf_rdma_key key;
    uint64_t first;

    if (r != NULL && kvf_rdma_memory_pending(r->registered))
        o->pending = true;
    else if (r == NULL || kvf_rdma_memory_keys(r->registered, r->size - 1, 1,
                                               &key, 1, &first) == 0)
        o->failed = true;
}

static bool soon(const struct outlook *o)
{
    return !o->failed && (!o->accepted || o->pending);
}

/* ---- what a layout says ------------------------------------------------- */

static bool tell_region(struct kvf_guest *g, const struct kvf_layout *l,
                        unsigned i, struct kvf_rdma_keys *k)
{
    const struct kvf_region *r = l->regions[i];
    struct kvf_peer_msg m;

    k->n = kvf_rdma_memory_keys(r->registered, 0, r->size, k->key,
                                KVF_RDMA_SPACE_MRS, &k->first);
    if (k->n == 0)
        return false; /* not yet, or the device refused */
    kvf_peers_head(g->ps, &m, KVF_PEER_RDMA_KEYS, &g->incarnation);
    m.u.rdma_keys.layout = l->number;
    m.u.rdma_keys.region = i;
    m.u.rdma_keys.keys = k;
    kvf_guest_answer(g, &m, NULL, 0);
    return true;
}

bool kvf_guest_rdma_soon(struct kvf_guest *g, const struct kvf_layout *l)
{
    struct outlook o = outlook_of(g);

    for (unsigned i = 0; i < l->decl.n_regions; i++)
        look(&o, l->regions[i]);
    return soon(&o);
}

bool kvf_guest_rdma_tell(struct kvf_guest *g, const struct kvf_layout *l)
{
    struct kvf_rdma_keys *k;
    bool told = true;

    if (g->ps->env.rdma == NULL || !kvf_rdma_accepted(g->ps->env.rdma, g))
        return false;
    if (!kvf_told_new(&g->told_keys, l->number))
        return true;
    k = calloc(1, sizeof *k + KVF_RDMA_SPACE_MRS * sizeof k->key[0]);
    for (unsigned i = 0; k != NULL && told && i < l->decl.n_regions; i++)
        told = tell_region(g, l, i, k);
    if (k == NULL || !told)
        kvf_told_drop(&g->told_keys, l->number);
    told = told && k != NULL;
    free(k);
    return told;
}

/* ---- what a grant says -------------------------------------------------- */

/* The bytes of a space that the segments lie in. */
static void extent(const struct kvf_peer_grant *m, unsigned space,
                   uint64_t *from, uint64_t *to)
{
    *from = UINT64_MAX;
    *to = 0;
    for (unsigned i = 0; i < m->n_segs; i++) {
        const struct kvf_peer_seg *s = &m->segs[i];

        if (s->space != space)
            continue;
        if (s->offset < *from)
            *from = s->offset;
        if (s->offset + s->length > *to)
            *to = s->offset + s->length;
    }
}

/* The region that a space stands for. */
static const struct kvf_region *region_of(const struct kvf_gen *gen,
                                          const struct kvf_peer_grant *m,
                                          unsigned space)
{
    for (unsigned i = 0; i < m->n_segs; i++)
        if (m->segs[i].space == space)
            return gen->segs[i].region;
    return NULL;
}

static bool add_keys(const struct kvf_gen *gen, struct kvf_peer_grant *m,
                     unsigned i)
{
    const struct kvf_region *r = region_of(gen, m, i + 1);
    struct kvf_rdma_keys *k;
    uint64_t from, to;

    if (r == NULL || r->registered == NULL)
        return false;
    k = calloc(1, sizeof *k + KVF_RDMA_SPACE_MRS * sizeof k->key[0]);
    if (k == NULL)
        return false;
    m->keys[i] = k;
    extent(m, i + 1, &from, &to);
    k->n = kvf_rdma_memory_keys(r->registered, from, to - from, k->key,
                                KVF_RDMA_SPACE_MRS, &k->first);
    return k->n > 0;
}

void kvf_guest_rdma_describe(struct kvf_guest *g, const struct kvf_gen *gen,
                             struct kvf_peer_grant *m)
{
    struct outlook o = outlook_of(g);

    m->rdma = true;
    if (m->n_spaces == 0)
        return;
    for (unsigned i = 0; i < m->n_spaces; i++)
        look(&o, region_of(gen, m, i + 1));
    m->rdma_soon = soon(&o);
    /* A region's keys are for those only whose handshake has succeeded. */
    m->rdma = o.accepted;
    m->keys = m->rdma ? calloc(m->n_spaces, sizeof *m->keys) : NULL;
    m->rdma = m->keys != NULL;
    for (unsigned i = 0; m->rdma && i < m->n_spaces; i++)
        m->rdma = add_keys(gen, m, i);
    if (m->rdma)
        return;
    kvf_guest_rdma_described(m);
    m->n_segs = m->n_spaces = 0; /* tcp needs no places */
}

void kvf_guest_rdma_described(struct kvf_peer_grant *m)
{
    for (unsigned i = 0; m->keys != NULL && i < m->n_spaces; i++)
        free(m->keys[i]);
    free(m->keys);
    m->keys = NULL;
}
