/* When and how gets, pulls and moves try again. The policy (retry.c) is pure:
 * facts in, decisions out. Finding a way for the bytes (way.c) asks the peer.
 *
 *   an attempt fails   kvf_retry_failed: does another one follow, and over what
 *   the next one       kvf_way_find: over this link | not yet | none is left
 *   not yet            kvf_way_wait: the link is coming up, or the owner will
 *                      say more when it is asked again; that is no attempt */
#ifndef KVF_REQUEST_RETRY_H
#define KVF_REQUEST_RETRY_H

#include "peer/peers.h"

/* What a pause is for. */
enum kvf_pause {
    KVF_PAUSE_BACKOFF, /* an attempt failed */
    KVF_PAUSE_LINK,    /* no other transport is left than one whose link is
                          coming up */
    KVF_PAUSE_OWNER    /* what was granted cannot be used yet; it was given back
                          and is asked for again */
};

/* Of one transfer with one peer, over all its attempts. Zeroed, then
 * kvf_retry_init. */
struct kvf_retry {
    unsigned
        proto_at;   /* place in conf->protocol where the next attempt looks */
    uint64_t t_out; /* when the attempts were used up first; 0 = not yet */
    const char *transport; /* of the last attempt; NULL before the first */
    enum kvf_pause pause;
    unsigned unready; /* grants in a row that could not be used yet */
    bool link_failed; /* the link that was waited for: an attempt failed */
    struct kvf_link_wait wait;
    void (*again)(struct kvf_retry *r); /* the link is up or has failed */
};
void kvf_retry_init(struct kvf_retry *r, void (*again)(struct kvf_retry *r));

/* ---- the policy (pure) -------------------------------------------------- */

struct kvf_retry_facts {
    unsigned attempts, max; /* made, allowed */
    bool remote;            /* there is another side */
    bool up;                /* with a session */
    uint64_t heard_ns, now_ns;
};

/* An attempt is over and memory is quiet. Returns how many attempts count: with
 * f->max it was the last one. Otherwise chooses where the next one looks; adds
 * to *fallbacks when that is another transport. Out of attempts with a peer
 * that was not heard of since, one more is left at a time: its death is about
 * to be known, and the better answer. */
unsigned kvf_retry_failed(struct kvf_retry *r, const struct kvf_conf *c,
                          const struct kvf_retry_facts *f, uint64_t *fallbacks);

/* How long to pause: exponential, between half and the whole of it, so that
 * requests do not march in step. */
uint64_t kvf_retry_pause_ns(const struct kvf_retry *r, const struct kvf_conf *c,
                            struct kvf_rng *rng, unsigned attempts);

/* ---- the way of the bytes ----------------------------------------------- */

enum kvf_way {
    KVF_WAY_LINK, /* *link carries them */
    KVF_WAY_WAIT, /* not yet: r->pause says for what; kvf_way_wait */
    KVF_WAY_NONE  /* why */
};

/* The first transport from r->proto_at on that can carry what was granted and
 * has all of `caps`. Opens links on demand. When only rdma is left and it is
 * coming: KVF_WAY_WAIT. With KVF_PAUSE_OWNER the grant was given back (it is
 * `lost`): ask again after the pause. */
enum kvf_way kvf_way_find(struct kvf_retry *r, const struct kvf_conf *c,
                          struct kvf_peer *peer, struct kvf_grant *g,
                          unsigned caps, struct kvf_link **link,
                          struct kvf_why *why);

/* After KVF_WAY_WAIT for a link: r->again comes, once, from the loop. False: it
 * is up already, or cannot come: look again at once. */
bool kvf_way_wait(struct kvf_retry *r, struct kvf_peer *peer);
/* What r->pause asks for after `attempts`. True: go on after *ns (0: at once).
 * False: r->again comes when the link is up or has failed. */
bool kvf_way_pause(struct kvf_retry *r, const struct kvf_conf *c,
                   struct kvf_rng *rng, struct kvf_peer *peer,
                   unsigned attempts, uint64_t *ns);
/* For the words of a deadline: that a link is waited for, or "". */
const char *kvf_way_awaited(const struct kvf_retry *r);
/* r->again will not come. Idempotent. */
void kvf_way_leave(struct kvf_retry *r);
#endif
