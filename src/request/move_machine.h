/* The life of a push, a write or a read as a pure state machine: event in,
 * actions out. It knows no socket, no clock and no memory; moves.c does what it
 * says. */
#ifndef KVF_REQUEST_MOVE_MACHINE_H
#define KVF_REQUEST_MOVE_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

/* X(NAME, "name", what is true in it) */
#define KVF_MOVE_STATES(X)                                                     \
    X(ACCEPTED, "accepted", "nothing has begun")                               \
    X(CONNECTING, "connecting", "the other side has no session with us")       \
    X(ASKING, "asking", "room or access is being asked for")                   \
    X(MOVING, "moving", "a transport may touch our memory and theirs")         \
    X(RETRYING, "retrying", "an attempt failed; the next one is awaited")      \
    X(CONFIRMING, "confirming", "all bytes are there; the other side is told") \
    X(DRAINING, "draining", "given up; a transport may still touch memory")    \
    X(DONE, "done", "answered OK")                                             \
    X(FAILED, "failed", "answered with a failure")

enum kvf_move_state {
#define KVF_MOVE_ENUM(name, text, truth) KVF_MOVE_##name,
    KVF_MOVE_STATES(KVF_MOVE_ENUM)
#undef KVF_MOVE_ENUM
        KVF_MOVE_STATE_COUNT
};

enum kvf_move_event {
    KVF_MOVE_EV_WAIT_PEER, /* it is not up; waiting is allowed */
    KVF_MOVE_EV_ASK,       /* it can be asked now */
    KVF_MOVE_EV_GRANT,     /* room or access */
    KVF_MOVE_EV_APPLIED,   /* done: the bytes went with the question */
    KVF_MOVE_EV_MOVED,     /* all bytes are in place */
    KVF_MOVE_EV_BROKEN,    /* the attempt failed; memory is quiet */
    KVF_MOVE_EV_LOST,      /* what was granted is gone; nothing runs */
    KVF_MOVE_EV_BACKOFF,   /* the pause before the next attempt is over */
    KVF_MOVE_EV_CONFIRMED,
    KVF_MOVE_EV_STOP,  /* give up: status and text are set */
    KVF_MOVE_EV_QUIET, /* nothing touches the memory any more */
    KVF_MOVE_EV_COUNT
};

#define KVF_MOVE_DO_ASK 1u
#define KVF_MOVE_DO_UNASK 2u  /* take back what was asked or told */
#define KVF_MOVE_DO_MOVE 4u   /* start (or resume) the transfer */
#define KVF_MOVE_DO_CANCEL 8u /* stop the transfer; EV_QUIET follows */
#define KVF_MOVE_DO_BACKOFF 16u
#define KVF_MOVE_DO_CONFIRM 32u /* COMMIT, NOTIFY */
#define KVF_MOVE_DO_FINISH 64u  /* reply OK */
#define KVF_MOVE_DO_FAIL 128u   /* reply failure */

struct kvf_move_machine {
    enum kvf_move_state state;
    bool confirm; /* the other side must be told when all bytes are there */
    bool reask;   /* the next attempt begins with the question */
    unsigned attempts, max_attempts;
    uint64_t unexpected; /* events that the state did not expect */
};

const char *kvf_move_state_name(enum kvf_move_state s);
const char *kvf_move_event_name(enum kvf_move_event e);

/* Returns the actions, in the order of their bits. An event that the state does
 * not expect changes nothing and is counted. */
unsigned kvf_move_step(struct kvf_move_machine *m, enum kvf_move_event e);

static inline bool kvf_move_over(const struct kvf_move_machine *m)
{
    return m->state == KVF_MOVE_DONE || m->state == KVF_MOVE_FAILED;
}
#endif
