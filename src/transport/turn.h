/* How long a turn of the loop may be, for transports that move bytes in it.
 *
 * A long turn moves more bytes a second, a short one lets a question in sooner.
 * So turns are short for as long as somebody asks while bytes move. What asks
 * before the first byte moves is what wants the bytes; more writes, reads and
 * pushes wait for the bytes themselves: neither counts.
 *
 * Never blocks, never fails. One thread. */
#ifndef KVF_TRANSPORT_TURN_H
#define KVF_TRANSPORT_TURN_H

#include "base/sched.h"
#include "base/stats.h"

#include <stdbool.h>
#include <stdint.h>

/* Turns are short for so long after a question: whoever asks once a second, or
 * more often, meets a long one only the first time. */
#define KVF_TURN_ASKED_NS (2 * KVF_NS_PER_S)

struct kvf_turn {      /* zero it */
    uint64_t asked;    /* what had been asked when a turn began last */
    uint64_t until_ns; /* turns are short until then */
};

/* A turn begins at now_ns; amid: its bytes are not the first of what is asked
 * for. True when it may be a long one. */
static inline bool kvf_turn_long(struct kvf_turn *t,
                                 const struct kvf_stats *stats, uint64_t now_ns,
                                 bool amid)
{
    uint64_t asked = stats->requests + stats->claims - stats->moves;

    if (asked != t->asked && amid)
        t->until_ns = now_ns + KVF_TURN_ASKED_NS;
    t->asked = asked;
    return now_ns >= t->until_ns;
}
#endif
