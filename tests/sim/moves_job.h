/* Jobs of the chaos for pushes and windows: what was asked of whom, what came
 * of it, and what must be true of it at any moment. */
#ifndef KVF_TESTS_SIM_MOVES_JOB_H
#define KVF_TESTS_SIM_MOVES_JOB_H

#include "sim.h"

#define KEYS 5
#define SHARE 24576u /* of a window, for each writer */
#define GRACE_NS (500 * SIM_MS)

struct job {
    struct kvf_list node;
    struct sim *sim;
    enum kvf_move_kind kind;
    uint64_t serial, size, generation, window, deadline_ns;
    unsigned from, to, from_boot, to_boot;
    struct kvf_move *move; /* NULL: answered */
    struct kvf_buffer *buf;
    bool notify, cancelled;
    enum kvf_status status;
    char key[16];
    /* what came of it */
    unsigned notices, published; /* in to's life `published_boot` */
    unsigned ends;               /* `retired` events */
    unsigned notices_boot, published_boot;
};

extern struct kvf_list jobs;
extern uint64_t jobs_serial; /* of the last one */
extern uint64_t jobs_status[3][KVF_STATUS_COUNT], jobs_retried, jobs_notices;
extern uint64_t jobs_ends[KVF_RETIRE_REASONS];

/* Two nodes that lose nothing, and no jobs yet; no_shm as sim_conf's. */
struct sim *job_sim(unsigned no_shm);
/* sim.written and sim.push_end */
void job_written(struct sim_node *n, const struct kvf_window *w, bool write,
                 const void *data, size_t len);
void job_ended(struct sim_node *n, const struct kvf_push_end *e);
/* All invariants. */
void jobs_check(struct sim *sim);
/* The window of a node, NULL when there is none. */
struct kvf_window *job_window(struct sim_node *n);
/* Exposes one, if there is room for it, and takes it back. */
void job_expose(struct sim *sim, struct sim_node *n);
void job_unexpose(struct sim_node *n);
/* The bytes of the job, to be pushed, written or read. */
void job_fill(struct job *j, uint8_t *p);
/* Starts it at `n`; its buffer is there. */
void job_launch(struct sim *sim, struct sim_node *n, struct job *j);
#endif
