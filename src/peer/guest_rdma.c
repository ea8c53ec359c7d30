/* The rdma transport's handshake over the metadata channel, as the owner sees
 * it, and what a guest is told of where memory is registered.
 *
 * Happy path: a guest's connection is accepted; its grants, and the layouts
 * that it knows, come with keys. Failure modes: refused, with the reason; keys
 * that are not there (yet): the grant says whether asking again is worth it. */
#include "peer/peers_private.h"

#include "base/log.h"

#include <stdlib.h>

/* ---- the handshake ------------------------------------------------------ */

void kvf_guest_rdma_hook_accept(void *arg, void *session,
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
    kvf_peers_rdma_word(&m, id, why->status, why->text);
    kvf_guest_answer(g, &m, NULL, 0);
    kvf_log_limited(&g->ps->log_refused, g->ps->env.sched->now_ns, KVF_LOG_WARN,
                    "KVF RDMA", "%s %s (getter): %s", g->name,
                    type == KVF_PEER_RDMA_REFUSE ? "refused" : "closed",
                    why->text);
}

void kvf_guest_rdma_hook_refuse(void *arg, void *session, uint64_t id,
                                const struct kvf_why *why)
{
    (void)arg;
    refuse(session, KVF_PEER_RDMA_REFUSE, id, why);
}

void kvf_guest_rdma_hook_closed(void *arg, void *session, uint64_t id,
                                const struct kvf_why *why)
{
    (void)arg;
    refuse(session, KVF_PEER_RDMA_CLOSE, id, why);
}

void kvf_guest_rdma_hook_expelled(void *arg, void *session)
{
    (void)arg;
    kvf_guest_expelled(session);
}

void kvf_guest_rdma_message(struct kvf_guest *g, const struct kvf_peer_msg *m)
{
    struct kvf_transport *rdma = g->ps->env.rdma;
    struct kvf_why why;

    if (rdma != NULL && m->head.type == KVF_PEER_RDMA_CONNECT) {
        kvf_rdma_on_connect(rdma, g, &g->incarnation, &m->u.rdma_connect);
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
