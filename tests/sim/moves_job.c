/* Jobs: their bytes, their start, and the invariants (moves_job.h). */
#include "moves_job.h"

#include <string.h>

struct kvf_list jobs;
uint64_t jobs_serial;
uint64_t jobs_status[3][KVF_STATUS_COUNT], jobs_retried, jobs_notices;
uint64_t jobs_ends[KVF_RETIRE_REASONS];

struct sim *job_sim(unsigned no_shm)
{
    struct sim_conf c = {.nodes = 2,
                         .pool_size = 1u << 20,
                         .inline_max = 2048,
                         .delay_ns = SIM_MS,
                         .bulk_chunk = 16384,
                         .bulk_step_ns = SIM_MS,
                         .no_shm = no_shm};
    struct sim *sim = sim_new(&c, 1);

    sim->written = job_written;
    kvf_list_init(&jobs);
    return sim;
}

static uint8_t byte_of(uint64_t serial, uint64_t i)
{
    return (uint8_t)(serial * 151 + i * 7 + (i >> 8) * 13 + 1);
}

static struct job *job_of(uint64_t serial)
{
    kvf_list_for_each (l, &jobs) {
        struct job *j = kvf_container_of(l, struct job, node);

        if (j->serial == serial)
            return j;
    }
    return NULL;
}

static void check_bytes(const struct job *j, const uint8_t *p, const char *what)
{
    for (uint64_t i = 0; i < j->size; i++)
        if (p[i] != byte_of(j->serial, i))
            sim_fail(j->sim, "%s %llu: byte %llu is wrong", what,
                     (unsigned long long)j->serial, (unsigned long long)i);
}

/* ---- invariants --------------------------------------------------------- */

static void check_key(struct sim_node *n, const struct kvf_gen *g)
{
    struct job *j;
    uint64_t serial;

    if (g->meta_len != sizeof serial || g->n_segs != 1)
        sim_fail(n->sim, "a key that nobody pushed");
    memcpy(&serial, g->meta, sizeof serial);
    j = job_of(serial);
    if (j == NULL || j->to != n->idx || g->size != j->size)
        sim_fail(n->sim, "push %llu is not what was pushed",
                 (unsigned long long)serial);
    check_bytes(j, kvf_seg_ptr(&g->segs[0]), "published push");
    if (j->published_boot == n->boots && j->generation != g->generation &&
        j->published != 0)
        sim_fail(n->sim, "push %llu was published twice",
                 (unsigned long long)serial);
    j->published = 1;
    j->published_boot = n->boots;
    if (j->move != NULL || j->generation == 0)
        j->generation = g->generation;
}

void jobs_check(struct sim *sim)
{
    char key[16];

    for (unsigned i = 0; i < sim->conf.nodes; i++) {
        struct sim_node *n = sim->node[i];

        for (unsigned k = 0; n->alive && k < KEYS; k++) {
            const struct kvf_gen *g;

            snprintf(key, sizeof key, "p%u:0_1", k);
            g = kvf_store_live(n->store, key, strlen(key));
            if (g != NULL)
                check_key(n, g);
        }
    }
    kvf_list_for_each (l, &jobs) {
        const struct job *j = kvf_container_of(l, struct job, node);
        const struct sim_node *n = sim->node[j->from];
        uint64_t due = j->deadline_ns;

        if (j->move == NULL || n->frozen)
            continue;
        if (due < n->thawed_ns)
            due = n->thawed_ns;
        if (sim->now_ns > due + GRACE_NS)
            sim_fail(sim, "%s %llu is not answered in time",
                     kvf_move_kind_name(j->kind),
                     (unsigned long long)j->serial);
    }
}

void job_written(struct sim_node *n, const struct kvf_window *w, bool write,
                 const void *data, size_t len)
{
    struct job *j;
    uint64_t serial;

    if (len != sizeof serial)
        sim_fail(n->sim, "a notification of %zu bytes", len);
    memcpy(&serial, data, sizeof serial);
    j = job_of(serial);
    if (j == NULL || j->to != n->idx || write != (j->kind == KVF_MOVE_WRITE))
        sim_fail(n->sim, "a notification that nobody sent");
    if (j->notices_boot != n->boots)
        j->notices = 0;
    j->notices_boot = n->boots;
    if (++j->notices > 1)
        sim_fail(n->sim, "a notification came twice");
    jobs_notices++;
    if (write && j->move != NULL)
        check_bytes(j, kvf_seg_ptr(&w->seg) + j->from * SHARE, "notified");
}

/* The serial travels as the publisher. */
void job_ended(struct sim_node *n, const struct kvf_push_end *e)
{
    struct job *j = job_of(kvf_get_u64(e->publisher.b));
    const struct sim_node *to;
    const struct kvf_gen *live;

    if (j == NULL || j->kind != KVF_MOVE_PUSH || !j->notify ||
        j->from != n->idx || j->from_boot != n->boots)
        sim_fail(n->sim, "the end of a push that is nobody's");
    if (j->move != NULL || j->status != KVF_OK)
        sim_fail(n->sim, "push %llu is not OK, and has an end",
                 (unsigned long long)j->serial);
    if (++j->ends > 1)
        sim_fail(n->sim, "push %llu has two ends",
                 (unsigned long long)j->serial);
    if (e->generation != j->generation || strlen(j->key) != e->key_len ||
        memcmp(j->key, e->key, e->key_len) != 0)
        sim_fail(n->sim, "the end of something else");
    to = n->sim->node[j->to];
    live = to->alive ? kvf_store_live(to->store, j->key, strlen(j->key)) : NULL;
    if (live != NULL && live->generation == e->generation)
        sim_fail(n->sim, "push %llu has ended, and is there",
                 (unsigned long long)j->serial);
    jobs_ends[e->reason]++;
}

struct kvf_window *job_window(struct sim_node *n)
{
    return n->alive ? kvf_window_named(n->peers, "w", 1) : NULL;
}

void job_expose(struct sim *sim, struct sim_node *n)
{
    struct kvf_window_spec spec = {.name = "w",
                                   .name_len = 1,
                                   .writable = true,
                                   .owner = &n->engine,
                                   .owner_list = &n->engine.windows};
    struct sim_node *before = sim_enter(n);
    struct kvf_window *w;
    struct kvf_buffer *b;

    if (kvf_buffer_alloc(n->bufs, SIM_NODES * SHARE, KVF_BUF_FILLING,
                         &n->engine, &b, NULL) == 0) {
        kvf_list_push_back(&n->engine.buffers, &b->owner_node);
        spec.seg = (struct kvf_seg){
            .buffer = b, .offset = b->offset, .length = b->size};
        if (kvf_window_add(n->peers, &spec, &w, NULL) < 0)
            sim_fail(sim, "expose");
    }
    sim_leave(n, before);
}

void job_unexpose(struct sim_node *n)
{
    struct kvf_window *w = job_window(n);
    struct sim_node *before;
    struct kvf_buffer *b;

    if (w == NULL) {
        sim_fail(n->sim, "no window to take back");
        return;
    }
    before = sim_enter(n);
    b = w->seg.buffer;
    kvf_window_close(w, "unexposed");
    kvf_buffer_retire(b);
    sim_leave(n, before);
}

static void check_ok(struct job *j, const struct kvf_move_result *r)
{
    struct sim_node *to = j->sim->node[j->to];
    struct kvf_window *w = job_window(to);

    jobs_retried += r->attempts > 1;
    if (j->kind == KVF_MOVE_READ) {
        /* Another window of that name has other bytes. */
        if (w != NULL && w->id == j->window)
            check_bytes(j, kvf_buffer_ptr(j->buf), "read");
        return;
    }
    if (j->kind == KVF_MOVE_PUSH) {
        if (j->published != 0 && j->published_boot == to->boots &&
            j->generation != r->generation)
            sim_fail(j->sim, "push %llu: generation %llu, not %llu",
                     (unsigned long long)j->serial,
                     (unsigned long long)r->generation,
                     (unsigned long long)j->generation);
        j->generation = r->generation;
        return;
    }
    if (w != NULL && w->id == j->window)
        check_bytes(j, kvf_seg_ptr(&w->seg) + j->from * SHARE, "written");
    if (j->notify && to->alive && to->boots == j->to_boot && w != NULL &&
        w->id == j->window && j->notices != 1)
        sim_fail(j->sim, "OK, but %u notifications", j->notices);
}

static void on_reply(void *arg, const struct kvf_move_result *r)
{
    struct job *j = arg;

    if (j->move == NULL)
        sim_fail(j->sim, "two answers");
    j->status = r->status;
    jobs_status[j->kind][r->status]++;
    if (r->status == KVF_OK && j->sim->node[j->from]->alive)
        check_ok(j, r);
    j->move = NULL;
    if (j->buf->pins != 0)
        sim_fail(j->sim, "answered, but its memory is pinned");
    kvf_buffer_retire(j->buf);
    j->buf = NULL;
}

void job_fill(struct job *j, uint8_t *p)
{
    for (uint64_t i = 0; i < j->size; i++)
        p[i] = byte_of(j->serial, i);
}

void job_launch(struct sim *sim, struct sim_node *n, struct job *j)
{
    struct kvf_dest dest = {.has_to = true,
                            .to = {.stage = j->to, .has_rank = true}};
    struct kvf_req_put put = {.key = {j->key, strlen(j->key)},
                              .meta = &j->serial,
                              .meta_len = sizeof j->serial,
                              .has_ttl = true,
                              .ttl_ms = 300 + sim_below(sim, 3000),
                              .checksum = sim_chance(sim, 30),
                              .notify = j->notify,
                              .on_duplicate = sim_chance(sim, 10)};
    uint64_t ms = 50 + sim_below(sim, 6000);
    struct kvf_move_params p = {.kind = j->kind,
                                .dest = &dest,
                                .timeout_ms = ms,
                                .n_segs = 1,
                                .put = &put,
                                .window = {"w", 1},
                                .target_offset = j->from * SHARE,
                                .has_notify = j->notify,
                                .notify = &j->serial,
                                .notify_len = sizeof j->serial};
    struct kvf_seg seg = {
        .buffer = j->buf, .offset = j->buf->offset, .length = j->size};
    struct kvf_why why;

    p.segs = &seg;
    kvf_put_u64(p.publisher.b, j->serial);
    j->deadline_ns = sim->now_ns + ms * SIM_MS;
    if (kvf_move_start(n->moves, &p, on_reply, j, &j->move, &why) < 0)
        sim_fail(sim, "refused: %s", why.text);
}
