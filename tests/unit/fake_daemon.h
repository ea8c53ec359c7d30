/* A daemon that does just what a test of a client needs, in a thread: hello
 * with a real sealed pool, alloc, put, get, release, and a few misbehaviours.
 * Everything is in `struct fake`; a test changes the knobs between requests. */
#ifndef KVF_TEST_FAKE_DAEMON_H
#define KVF_TEST_FAKE_DAEMON_H

#include "wire/mp.h"

#include <pthread.h>
#include <stdatomic.h>

struct fake {
    char endpoint[108];
    pthread_t thread;
    void *ctx, *sock; /* the socket is the thread's once it runs */
    atomic_bool stop, silent;
    atomic_uint releases, frees, hellos, byes, cancels, pings, next_status,
        unmapped;
    uint8_t incarnation[16];
    int pool_fd;
    uint8_t *pool;
    uint64_t pool_size, next, stored_at, stored_len;
    char stored_key[64];
    uint8_t inline_data[4096];
    size_t inline_len;
    uint64_t parked; /* id of a get that waits for its put; 0 = none */
    /* one window, and what the last push, write or read said */
    atomic_uint unexposes, push_status; /* of the next push */
    atomic_bool hold_expose;            /* answered when it is false again */
    uint64_t window_lie;                /* added to the offset of a window */
    uint64_t region;                    /* the next one's id */
    uint64_t window_at, window_size;
    uint8_t last[1024];
    size_t last_len;
};

void fake_start(struct fake *f, const char *endpoint, unsigned incarnation);
void fake_stop(struct fake *f);
#endif
