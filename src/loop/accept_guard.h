/* Accepting connections when no file descriptor is left.
 *
 * libzmq 4.3 ends the process when accept4 on an ipc listener fails with
 * EMFILE. accept_guard.c therefore defines accept4 for the whole program,
 * libzmq's I/O thread included; docs/internals/loop.md tells how and why. */
#ifndef KVF_LOOP_ACCEPT_GUARD_H
#define KVF_LOOP_ACCEPT_GUARD_H

#include <stdint.h>

/* Takes two descriptors in reserve. To be called once, at start; without it
 * accept4 still never says EMFILE, but cannot refuse a connection either (the
 * caller sees ECONNABORTED again and again until a descriptor is free).
 * -1 with errno: none to be had. */
int kvf_accept_guard_init(void);
/* Connections closed at once because no descriptor was left. Any thread. */
uint64_t kvf_accept_guard_refused(void);
#endif
