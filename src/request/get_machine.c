/* Happy path: ACCEPTED -> ASKING -> CLAIMED -> PULLING -> VERIFYING -> DONE.
 * Bytes that need no pull go from ASKING straight to the end. A failed attempt
 * goes to RETRYING and back to PULLING, or to ASKING when the claim was lost.
 * STOP in PULLING leads through DRAINING, because memory may not be answered
 * for while a transport can still write into it; elsewhere nothing is under way
 * and FAILED is immediate. */
#include "request/get_machine.h"

#include <assert.h>
#include <stddef.h>

#define BIT(s) (1u << KVF_GET_##s)

/* Where each state may go. */
static const struct {
    const char *name;
    unsigned legal;
} states[KVF_GET_STATE_COUNT] = {
    [KVF_GET_ACCEPTED] = {"accepted", BIT(CONNECTING) | BIT(ASKING) |
                                          BIT(CLAIMED) | BIT(VERIFYING) |
                                          BIT(HELD) | BIT(DONE) | BIT(FAILED)},
    [KVF_GET_CONNECTING] = {"connecting", BIT(ASKING) | BIT(FAILED)},
    [KVF_GET_ASKING] = {"asking", BIT(CONNECTING) | BIT(CLAIMED) |
                                      BIT(VERIFYING) | BIT(HELD) | BIT(DONE) |
                                      BIT(FAILED)},
    [KVF_GET_CLAIMED] = {"claimed", BIT(PULLING) | BIT(RETRYING) | BIT(FAILED)},
    [KVF_GET_PULLING] = {"pulling", BIT(VERIFYING) | BIT(HELD) | BIT(DONE) |
                                        BIT(RETRYING) | BIT(DRAINING) |
                                        BIT(FAILED)},
    [KVF_GET_RETRYING] = {"retrying", BIT(PULLING) | BIT(ASKING) | BIT(FAILED)},
    [KVF_GET_VERIFYING] = {"verifying", BIT(HELD) | BIT(DONE) | BIT(FAILED)},
    [KVF_GET_HELD] = {"held", BIT(DONE) | BIT(FAILED)},
    [KVF_GET_DRAINING] = {"draining", BIT(FAILED)},
    [KVF_GET_DONE] = {"done", 0},
    [KVF_GET_FAILED] = {"failed", 0},
};

const char *kvf_get_state_name(enum kvf_get_state s)
{
    return (unsigned)s < KVF_GET_STATE_COUNT ? states[s].name : "?";
}

const char *kvf_get_event_name(enum kvf_get_event e)
{
    static const char *const names[KVF_GET_EV_COUNT] = {
        "wait-peer", "ask",    "grant", "ready",   "admit",
        "pulled",    "broken", "lost",  "backoff", "verified",
        "commit",    "stop",   "quiet"};

    return (unsigned)e < KVF_GET_EV_COUNT ? names[e] : "?";
}

/* The only place that assigns ->state. */
static unsigned go(struct kvf_get_machine *m, enum kvf_get_state next,
                   unsigned actions)
{
    assert(states[m->state].legal & (1u << next));
    m->state = next;
    return actions;
}

static unsigned unexpected(struct kvf_get_machine *m)
{
    m->unexpected++;
    return 0;
}

/* Every byte is here and belongs to the claim. */
static unsigned complete(struct kvf_get_machine *m, bool verified)
{
    if (m->verify && !verified)
        return go(m, KVF_GET_VERIFYING, KVF_GET_DO_VERIFY);
    if (m->hold)
        return go(m, KVF_GET_HELD, KVF_GET_DO_HOLD);
    return go(m, KVF_GET_DONE, KVF_GET_DO_FINISH);
}

static unsigned retry(struct kvf_get_machine *m)
{
    if (m->attempts >= m->max_attempts)
        return go(m, KVF_GET_FAILED, KVF_GET_DO_GIVE_UP | KVF_GET_DO_FAIL);
    return go(m, KVF_GET_RETRYING, KVF_GET_DO_BACKOFF);
}

static unsigned pull(struct kvf_get_machine *m)
{
    m->attempts++;
    return go(m, KVF_GET_PULLING, KVF_GET_DO_PULL);
}

static unsigned step_start(struct kvf_get_machine *m, enum kvf_get_event e)
{
    switch ((unsigned)e) {
    case KVF_GET_EV_WAIT_PEER:
        return m->state == KVF_GET_CONNECTING ? unexpected(m)
                                              : go(m, KVF_GET_CONNECTING, 0);
    case KVF_GET_EV_ASK:
        return go(m, KVF_GET_ASKING, KVF_GET_DO_ASK);
    case KVF_GET_EV_STOP:
        return go(m, KVF_GET_FAILED, KVF_GET_DO_FAIL);
    default:
        return unexpected(m);
    }
}

static unsigned step_asking(struct kvf_get_machine *m, enum kvf_get_event e)
{
    switch ((unsigned)e) {
    case KVF_GET_EV_WAIT_PEER: /* it was lost before it heard of us */
        return go(m, KVF_GET_CONNECTING, 0);
    case KVF_GET_EV_GRANT:
        m->reask = false;
        return go(m, KVF_GET_CLAIMED, KVF_GET_DO_ADMIT);
    case KVF_GET_EV_READY:
        m->reask = false;
        if (m->attempts == 0)
            m->attempts = 1;
        return complete(m, false);
    case KVF_GET_EV_STOP:
        return go(m, KVF_GET_FAILED, KVF_GET_DO_UNASK | KVF_GET_DO_FAIL);
    default:
        return unexpected(m);
    }
}

static unsigned step_claimed(struct kvf_get_machine *m, enum kvf_get_event e)
{
    switch ((unsigned)e) {
    case KVF_GET_EV_ADMIT:
        return pull(m);
    case KVF_GET_EV_LOST:
        m->reask = true;
        m->attempts++;
        return retry(m);
    case KVF_GET_EV_STOP:
        return go(m, KVF_GET_FAILED, KVF_GET_DO_FAIL);
    default:
        return unexpected(m);
    }
}

static unsigned step_pulling(struct kvf_get_machine *m, enum kvf_get_event e)
{
    switch ((unsigned)e) {
    case KVF_GET_EV_PULLED:
        return complete(m, false);
    case KVF_GET_EV_BROKEN:
        return retry(m);
    case KVF_GET_EV_LOST: /* memory is quiet, and so is the claim */
        m->reask = true;
        return retry(m);
    case KVF_GET_EV_STOP:
        return go(m, KVF_GET_DRAINING, KVF_GET_DO_CANCEL);
    default:
        return unexpected(m);
    }
}

static unsigned step_retrying(struct kvf_get_machine *m, enum kvf_get_event e)
{
    switch ((unsigned)e) {
    case KVF_GET_EV_BACKOFF:
        if (m->reask)
            return go(m, KVF_GET_ASKING, KVF_GET_DO_ASK);
        return pull(m);
    case KVF_GET_EV_LOST:
        m->reask = true;
        return 0;
    case KVF_GET_EV_STOP:
        return go(m, KVF_GET_FAILED, KVF_GET_DO_FAIL);
    default:
        return unexpected(m);
    }
}

static unsigned step_complete(struct kvf_get_machine *m, enum kvf_get_event e)
{
    switch ((unsigned)e) {
    case KVF_GET_EV_VERIFIED:
        return m->state == KVF_GET_VERIFYING ? complete(m, true)
                                             : unexpected(m);
    case KVF_GET_EV_COMMIT:
        return m->state == KVF_GET_HELD ? go(m, KVF_GET_DONE, KVF_GET_DO_FINISH)
                                        : unexpected(m);
    case KVF_GET_EV_STOP:
        return go(m, KVF_GET_FAILED, KVF_GET_DO_FAIL);
    default:
        return unexpected(m);
    }
}

unsigned kvf_get_step(struct kvf_get_machine *m, enum kvf_get_event e)
{
    switch (m->state) {
    case KVF_GET_ACCEPTED:
    case KVF_GET_CONNECTING:
        return step_start(m, e);
    case KVF_GET_ASKING:
        return step_asking(m, e);
    case KVF_GET_CLAIMED:
        return step_claimed(m, e);
    case KVF_GET_PULLING:
        return step_pulling(m, e);
    case KVF_GET_RETRYING:
        return step_retrying(m, e);
    case KVF_GET_VERIFYING:
    case KVF_GET_HELD:
        return step_complete(m, e);
    case KVF_GET_DRAINING:
        if (e == KVF_GET_EV_QUIET)
            return go(m, KVF_GET_FAILED, KVF_GET_DO_FAIL);
        return e == KVF_GET_EV_STOP ? 0 : unexpected(m);
    case KVF_GET_DONE:
    case KVF_GET_FAILED:
    case KVF_GET_STATE_COUNT:
        break;
    }
    return unexpected(m);
}
