/* Parts of pull_bench: one function a case; each opens and closes the two
 * handles itself (a case may fork first). All end the program when something
 * fails. */
#ifndef KVF_BENCH_PULL_BENCH_H
#define KVF_BENCH_PULL_BENCH_H

#include "common.h"
#include "kvferry/kvferry.h"

struct pb {
    const char *endpoint[2];
    struct kvferry *from, *to;
    pid_t pid[2]; /* of the daemons: sender's, receiver's */
};

void pb_open(struct pb *b);
void pb_close(struct pb *b);
void pb_need(struct kvferry *h, int rc, const char *what);
void pb_key(char out[64], const char *name, uint64_t i);
/* Publishes payload i of `name` for any number of readers; its seed is i. */
void pb_put(struct pb *b, const char *name, uint64_t i, uint64_t size);
void pb_check(const struct kvferry_payload *p, uint64_t size, uint64_t seed);
/* Nanoseconds: both daemons and this process. */
uint64_t pb_cpu(const struct pb *b);
/* Runs callbacks of `h` until *counter is `until`, for a minute at most. */
void pb_wait(struct kvferry *h, const uint64_t *counter, uint64_t until);
/* Options of a copying get from the sender's daemon. */
struct kvferry_get_options pb_from(const struct pb *b);

/* pull_get.c */
void pb_get(struct pb *b, int argc, char **argv);
void pb_many(struct pb *b, int argc, char **argv);
/* pull_wait.c */
void pb_latency(struct pb *b, int argc, char **argv);
void pb_parked(struct pb *b, int argc, char **argv);
void pb_ping(struct pb *b, int argc, char **argv);
void pb_crowd(struct pb *b, int argc, char **argv);
#endif
