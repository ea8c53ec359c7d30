/* The life of a get as a pure state machine: event in, actions out. It knows no
 * socket, no clock and no memory; get.c does what it says. */
#ifndef KVF_REQUEST_GET_MACHINE_H
#define KVF_REQUEST_GET_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

/* X(NAME, "name", what is true in it) */
#define KVF_GET_STATES(X)                                                      \
    X(ACCEPTED, "accepted", "nothing has begun")                               \
    X(CONNECTING, "connecting", "the owner has no session with us")            \
    X(ASKING, "asking", "the lookup is at the owner, perhaps parked there")    \
    X(CLAIMED, "claimed", "a reader is ours; room on the edge is awaited")     \
    X(PULLING, "pulling", "a transport may write into our memory")             \
    X(RETRYING, "retrying", "an attempt failed; the next one is awaited")      \
    X(VERIFYING, "verifying", "every byte is here; its checksum is computed")  \
    X(HELD, "held", "complete; waits for the others of its group")             \
    X(DRAINING, "draining", "given up; a transport may still touch memory")    \
    X(DONE, "done", "answered OK")                                             \
    X(FAILED, "failed", "answered with a failure")

enum kvf_get_state {
#define KVF_GET_ENUM(name, text, truth) KVF_GET_##name,
    KVF_GET_STATES(KVF_GET_ENUM)
#undef KVF_GET_ENUM
        KVF_GET_STATE_COUNT
};

enum kvf_get_event {
    KVF_GET_EV_WAIT_PEER, /* the owner is not up; waiting is allowed */
    KVF_GET_EV_ASK,       /* the owner can be asked now */
    KVF_GET_EV_GRANT,     /* a claim, the bytes must be pulled */
    KVF_GET_EV_READY,     /* a claim, nothing to move (view, eager bytes) */
    KVF_GET_EV_ADMIT,     /* room on the edge */
    KVF_GET_EV_PULLED,    /* all bytes are in place */
    KVF_GET_EV_BROKEN,    /* the attempt failed; memory is quiet */
    KVF_GET_EV_LOST,      /* the claim ended under us; nothing runs */
    KVF_GET_EV_BACKOFF,   /* the pause before the next attempt is over */
    KVF_GET_EV_VERIFIED,
    KVF_GET_EV_COMMIT, /* the group may finish */
    KVF_GET_EV_STOP,   /* give up: status and text are set */
    KVF_GET_EV_QUIET,  /* nothing touches the memory any more */
    KVF_GET_EV_COUNT
};

#define KVF_GET_DO_ASK 1u     /* send the lookup */
#define KVF_GET_DO_UNASK 2u   /* take it back */
#define KVF_GET_DO_ADMIT 4u   /* queue for the edge; EV_ADMIT follows */
#define KVF_GET_DO_PULL 8u    /* start (or resume) the transfer */
#define KVF_GET_DO_CANCEL 16u /* stop the transfer; EV_QUIET follows */
#define KVF_GET_DO_BACKOFF 32u
#define KVF_GET_DO_VERIFY 64u
#define KVF_GET_DO_HOLD 128u   /* tell the group */
#define KVF_GET_DO_FINISH 256u /* reply OK, DONE to the owner */
#define KVF_GET_DO_FAIL 512u   /* reply failure, ABORT to the owner */
#define KVF_GET_DO_GIVE_UP                                                     \
    1024u /* attempts used up: set TRANSPORT, then FAIL                        \
             comes in the same set */

struct kvf_get_machine {
    enum kvf_get_state state;
    bool verify; /* there is a checksum to check */
    bool hold;   /* member of an all-or-nothing group */
    bool reask;  /* the claim was lost: the next attempt asks again */
    unsigned attempts, max_attempts;
    uint64_t unexpected; /* events that the state did not expect */
};

const char *kvf_get_state_name(enum kvf_get_state s);
const char *kvf_get_event_name(enum kvf_get_event e);

/* Returns the actions, in the order of their bits. An event that the state does
 * not expect changes nothing and is counted. */
unsigned kvf_get_step(struct kvf_get_machine *m, enum kvf_get_event e);

/* True in DONE and FAILED. */
static inline bool kvf_get_over(const struct kvf_get_machine *m)
{
    return m->state == KVF_GET_DONE || m->state == KVF_GET_FAILED;
}
#endif
