/* The rdma transport's handshake over the metadata channel, as the getter sees
 * it, and when a link is tried again.
 *
 * Happy path: with the session the getter connects (if rdma comes before tcp
 * and shm is not possible), the owner accepts (guest_rdma.c), gets use the link
 * and what the owner told of its memory. Failure modes: refused or lost: gets
 * go on with the next protocol; the link is tried again, in the background,
 * with a pause that doubles from one second to one minute, so that a port that
 * comes back is used again by itself; a daemon that was restarted begins anew.
 * Where rdma is the only protocol there is no pause: requests have their
 * own. A link that went down along with what that daemon could touch here,
 * which we took back, is no failure: it is made anew at once. */
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

static int open_link(struct kvf_peer *p, struct kvf_why *why)
{
    struct kvf_link_addr addr = {.port = p->port, .who = p->incarnation};
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

static void on_down(struct kvf_link *link, const struct kvf_why *why)
{
    struct kvf_peer *p = peer_of(link);
    struct kvf_why again;

    if (!link->own_will) {
        failed(p, why);
        kvf_link_close(link);
        return;
    }
    no_longer_up(p);
    kvf_log(KVF_LOG_INFO, "KVF RDMA", "%s made anew addr=%s: %s", p->name,
            p->addr, why->text);
    open_link(p, &again); /* those who wait for it go on waiting */
}

void kvf_peer_rdma_init(struct kvf_peer *p)
{
    p->rdma.owner = p;
    p->rdma.on_up = on_up;
    p->rdma.on_down = on_down;
    kvf_peer_await_init(p);
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

void kvf_peers_rdma_word(struct kvf_peer_msg *m, uint64_t id,
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
    kvf_peers_rdma_word(&m, id, KVF_TRANSPORT, text);
    kvf_peer_send(p, &m);
}

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

/* ---- both sides ---------------------------------------------------------- */

const struct kvf_rdma_hooks kvf_peers_rdma_hooks = {
    .connect = hook_connect,
    .disconnect = hook_disconnect,
    .accept = kvf_guest_rdma_hook_accept,
    .refuse = kvf_guest_rdma_hook_refuse,
    .closed = kvf_guest_rdma_hook_closed,
    .expelled = kvf_guest_rdma_hook_expelled,
};
