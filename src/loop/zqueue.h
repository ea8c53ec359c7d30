/* Messages of a ROUTER that found no room, one queue a routing id, so that one
 * slow client holds up nobody else and each keeps its order. No I/O here. */
#ifndef KVF_LOOP_ZQUEUE_H
#define KVF_LOOP_ZQUEUE_H

#include "base/list.h"
#include "loop/zsock.h"

struct kvf_zpending {
    struct kvf_list node;
    uint64_t cookie;
    unsigned n;
    struct kvf_frame frame[]; /* their bytes follow in the same block */
};

struct kvf_zline; /* the queue of one routing id */

struct kvf_zqueue {
    struct kvf_zline *lines; /* a hash table; NULL when empty */
    size_t len;              /* messages in all of them */
    struct kvf_list dead;    /* undeliverable, not yet told */
};

/* What a try to send came to. */
enum kvf_zsent { KVF_ZSENT, KVF_ZSENT_FULL, KVF_ZSENT_GONE };

void kvf_zqueue_init(struct kvf_zqueue *q);
/* Frees everything without telling anybody. */
void kvf_zqueue_fini(struct kvf_zqueue *q);

/* True when messages for this routing id wait already. */
bool kvf_zqueue_has(const struct kvf_zqueue *q, const void *id, size_t len);
/* How many of them. O(1). */
size_t kvf_zqueue_len(const struct kvf_zqueue *q, const void *id, size_t len);
/* Copies the message. 0, or -KVF_NO_SPACE when memory is gone. */
int kvf_zqueue_push(struct kvf_zqueue *q, const struct kvf_frame *frames,
                    unsigned n, uint64_t cookie);
/* Tries the lines in turn, each until `send` says FULL; what is GONE moves to
 * q->dead with all of its line. Returns how many were sent or given up. */
size_t kvf_zqueue_flush(struct kvf_zqueue *q,
                        enum kvf_zsent (*send)(void *arg,
                                               const struct kvf_zpending *p),
                        void *arg);
/* Moves the whole line of a routing id to q->dead; returns its length. */
size_t kvf_zqueue_give_up(struct kvf_zqueue *q, const void *id, size_t len);
/* Takes the cookie of the next undeliverable message; false when none. */
bool kvf_zqueue_pop_dead(struct kvf_zqueue *q, uint64_t *cookie);

#endif
