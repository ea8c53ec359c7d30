/* What the bulk transport may send to getters.
 *
 * Happy path: a live claim of that session, a range inside its payload; of a
 * publication only bytes of its blocks; pinned until sent. Windows answer for
 * themselves (access.c). Failure modes: STALE, DENIED, INVALID. */
#include "peer/access.h"
#include "peer/peers_private.h"

#include <string.h>

/* The claim that a request of the bulk transport names. */
static int serve_claim(struct kvf_peers *ps, void *session, uint64_t claim,
                       const struct kvf_id *token, bool write,
                       struct kvf_claim **out, struct kvf_why *why)
{
    struct kvf_claim *c = kvf_peers_claim(ps, claim);

    if (c == NULL)
        return kvf_fail(why, KVF_STALE, "the claim is not live any more");
    if (c->holder != session ||
        !kvf_secret_equal(&c->token, token, sizeof *token))
        return kvf_fail(why, KVF_DENIED, "not your claim");
    if (write)
        return kvf_fail(why, KVF_DENIED, "the claim is for reading");
    *out = c;
    return 0;
}

static int not_published(struct kvf_why *why)
{
    return kvf_fail(why, KVF_INVALID, "outside the published blocks");
}

static int serve_resolve(void *arg, void *session, uint64_t claim,
                         const struct kvf_id *token, bool write,
                         uint64_t offset, uint64_t length, struct iovec *iov,
                         unsigned *n_iov, void **pin, struct kvf_why *why)
{
    struct kvf_claim *c = NULL;
    int ret;

    if ((claim & KVF_ACCESS_BIT) != 0)
        return kvf_access_resolve(arg, session, claim, token, write, offset,
                                  length, iov, n_iov, pin, why);
    ret = serve_claim(arg, session, claim, token, write, &c, why);
    if (ret < 0 || c == NULL)
        return ret;
    if (c->gen->user != NULL &&
        !kvf_publication_covers(c->gen->user, offset, length))
        return not_published(why);
    ret = kvf_claim_iov(c, offset, length, iov, n_iov, why);
    if (ret < 0)
        return ret;
    kvf_claim_io_begin(c);
    *pin = c;
    return 0;
}

/* Many runs of a publication: each lies in one region, so it is one piece. */
static int serve_runs(void *arg, void *session, uint64_t claim,
                      const struct kvf_id *token, bool write,
                      const struct kvf_range *ranges, unsigned n_ranges,
                      uint64_t skip, struct iovec *iov, unsigned *n_iov,
                      void **pin, struct kvf_why *why)
{
    const struct kvf_publication *p;
    struct kvf_claim *c = NULL;
    unsigned n = 0;
    int ret = serve_claim(arg, session, claim, token, write, &c, why);

    if (ret < 0 || c == NULL)
        return ret;
    p = c->gen->user;
    if (p == NULL)
        return kvf_fail(why, KVF_DENIED, "the claim is not on blocks");
    for (; n < n_ranges && n < *n_iov; n++, skip = 0) {
        const struct kvf_range *r = &ranges[n];

        if (skip >= r->length ||
            !kvf_publication_covers(p, r->offset, r->length))
            return not_published(why);
        iov[n] = (struct iovec){kvf_publication_ptr(p, r->offset) + skip,
                                r->length - skip};
    }
    *n_iov = n;
    kvf_claim_io_begin(c);
    *pin = c;
    return 0;
}

static bool is_access(const void *pin)
{
    uint64_t id;

    memcpy(&id, pin, sizeof id); /* both kinds begin with it */
    return (id & KVF_ACCESS_BIT) != 0;
}

static void serve_unpin(void *arg, void *pin)
{
    (void)arg;
    if (is_access(pin))
        kvf_access_unpin(pin);
    else
        kvf_claim_io_end(pin);
}

static bool serve_live(void *arg, void *pin)
{
    const struct kvf_access *a = pin;

    (void)arg;
    /* A room that is committed waits for the bytes that are under way. */
    return !is_access(pin) || !a->ended || a->room != NULL;
}

const struct kvf_serve_ops kvf_guest_serve_ops = {.resolve = serve_resolve,
                                                  .unpin = serve_unpin,
                                                  .live = serve_live,
                                                  .resolve_runs = serve_runs};
