/* The policy of retries: attempts, back-off, which transport next. Pure. */
#include "request/retry.h"

void kvf_retry_init(struct kvf_retry *r, void (*again)(struct kvf_retry *r))
{
    kvf_list_init(&r->wait.node);
    r->again = again;
}

/* Tcp may be tried again, the others not. */
static void next_transport(struct kvf_retry *r, const struct kvf_conf *c,
                           uint64_t *fallbacks)
{
    unsigned before = r->proto_at;

    if (before < c->n_protocol && c->protocol[before] != KVF_PROTO_TCP)
        r->proto_at++;
    if (r->proto_at >= c->n_protocol)
        r->proto_at = 0;
    if (before < c->n_protocol && r->proto_at != before)
        ++*fallbacks;
}

unsigned kvf_retry_failed(struct kvf_retry *r, const struct kvf_conf *c,
                          const struct kvf_retry_facts *f, uint64_t *fallbacks)
{
    unsigned attempts = f->attempts;

    if (f->remote && !f->up)
        return f->max; /* its death is the cause, and no attempt can help */
    if (attempts >= f->max && f->remote && f->max > 1) {
        if (r->t_out == 0)
            r->t_out = f->now_ns;
        if (f->heard_ns <= r->t_out)
            attempts = f->max - 1;
    }
    if (attempts < f->max)
        next_transport(r, c, fallbacks);
    return attempts;
}

uint64_t kvf_retry_pause_ns(const struct kvf_retry *r, const struct kvf_conf *c,
                            struct kvf_rng *rng, unsigned attempts)
{
    unsigned n = r->pause == KVF_PAUSE_OWNER ? r->unready : attempts;
    unsigned shift = n > 1 ? n - 1 : 0;
    uint64_t ms = c->backoff_ms << (shift > 20 ? 20 : shift);
    uint64_t ns;

    if (ms > c->backoff_max_ms)
        ms = c->backoff_max_ms;
    if (r->t_out != 0 && r->pause == KVF_PAUSE_BACKOFF)
        ms = c->peer_timeout_ms / 2; /* the verdict on the peer is awaited */
    ns = ms * KVF_NS_PER_MS / 2;
    return ns + kvf_rng_below(rng, ns + 1);
}
