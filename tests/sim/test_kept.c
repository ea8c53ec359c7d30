/* Accesses to windows that are kept for the next write or read: over shm they
 * cost no message, and are not used any more once their window has ended, also
 * when that was not heard of yet. */
#include "moves_job.h"

#include <stdlib.h>

static unsigned asks, aborts, aborts_before; /* those when last asked */
static bool tell;                            /* REVOKED comes through */

static bool pass(struct sim *sim, unsigned from, unsigned to,
                 enum kvf_peer_type type)
{
    (void)sim;
    (void)from;
    (void)to;
    asks += type == KVF_PEER_WINDOW_ASK;
    aborts += type == KVF_PEER_ABORT;
    if (type == KVF_PEER_WINDOW_ASK)
        aborts_before = aborts;
    return tell || type != KVF_PEER_REVOKED;
}

static void run_for(struct sim *sim, uint64_t ms)
{
    uint64_t until = sim->now_ns + ms * SIM_MS;

    while (sim_step(sim, until))
        jobs_check(sim);
}

static int start_with(void **state, unsigned no_shm)
{
    struct sim *sim = job_sim(no_shm);

    sim->pass = pass;
    asks = aborts = 0;
    tell = false;
    job_expose(sim, sim->node[0]);
    *state = sim;
    return 0;
}

static int start(void **state)
{
    return start_with(state, 0);
}

static int start_tcp(void **state)
{
    return start_with(state, 3);
}

static int stop(void **state)
{
    struct sim *sim = *state;

    for (unsigned i = 0; i < sim->conf.nodes; i++)
        if (sim->node[i]->engine.alive)
            sim_engine_kill(sim->node[i]);
    run_for(sim, 30000);
    sim_check_quiet(sim);
    sim_free(sim);
    for (struct kvf_list *l; (l = kvf_list_pop(&jobs)) != NULL;)
        free(kvf_container_of(l, struct job, node));
    return 0;
}

/* Node 1 begins to write to or read from the window of node 0. */
static struct job *begin(struct sim *sim, enum kvf_move_kind kind)
{
    struct job *j = calloc(1, sizeof *j);
    struct kvf_window *w = job_window(sim->node[0]);

    assert_non_null(j);
    *j = (struct job){.sim = sim,
                      .kind = kind,
                      .from = 1,
                      .from_boot = 1,
                      .to_boot = 1,
                      .serial = ++jobs_serial,
                      .size = SHARE,
                      .window = w != NULL ? w->id : 0};
    kvf_list_init(&j->node);
    kvf_list_push_back(&jobs, &j->node);
    assert_int_equal(kvf_buffer_alloc(sim->node[1]->bufs, SHARE,
                                      KVF_BUF_FILLING, &sim->node[1]->engine,
                                      &j->buf, NULL),
                     0);
    if (kind == KVF_MOVE_WRITE)
        job_fill(j, kvf_buffer_ptr(j->buf));
    else if (w != NULL)
        job_fill(j, kvf_seg_ptr(&w->seg) + SHARE);
    job_launch(sim, sim->node[1], j);
    j->deadline_ns = KVF_NEVER - GRACE_NS;
    return j;
}

/* check_ok of moves_job.c has looked at the bytes. */
static enum kvf_status done(struct sim *sim, enum kvf_move_kind kind)
{
    struct job *j = begin(sim, kind);

    run_for(sim, 100);
    assert_null(j->move);
    return j->status;
}

static void one_question_for_many(void **state)
{
    struct sim *sim = *state;

    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(done(sim, KVF_MOVE_WRITE), KVF_OK);
    assert_int_equal(asks, 1);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(done(sim, KVF_MOVE_READ), KVF_OK);
    assert_int_equal(asks, 2);
    run_for(sim, 20000); /* given back by now */
    assert_int_equal(done(sim, KVF_MOVE_READ), KVF_OK);
    assert_int_equal(asks, 3);
}

static void not_once_the_window_has_ended(void **state)
{
    struct sim *sim = *state;

    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(done(sim, KVF_MOVE_WRITE), KVF_OK);
        assert_int_equal(done(sim, KVF_MOVE_READ), KVF_OK);
        job_unexpose(sim->node[0]);
        job_expose(sim, sim->node[0]);
        assert_int_equal(done(sim, KVF_MOVE_READ), KVF_OK);
        assert_int_equal(done(sim, KVF_MOVE_WRITE), KVF_OK);
    }
    job_unexpose(sim->node[0]);
    assert_int_equal(done(sim, KVF_MOVE_WRITE), KVF_NOT_FOUND);
    assert_int_equal(done(sim, KVF_MOVE_READ), KVF_NOT_FOUND);
    tell = true;
}

static bool moving(const struct sim_node *n)
{
    struct kvf_moves_gauges g;

    kvf_moves_gauges(n->moves, &g);
    return g.moving != 0;
}

static void not_while_the_window_ends(void **state)
{
    struct sim *sim = *state;
    struct sim_node *n = sim->node[1];
    struct job *j;

    assert_int_equal(done(sim, KVF_MOVE_WRITE), KVF_OK);
    j = begin(sim, KVF_MOVE_WRITE);
    while (!moving(n)) {
        struct sim_node *before = sim_enter(n);

        kvf_sched_turn(&n->sched);
        sim_leave(n, before);
        assert_non_null(j->move);
    }
    job_unexpose(sim->node[0]);
    job_expose(sim, sim->node[0]);
    j->window = job_window(sim->node[0])->id;
    run_for(sim, 200);
    assert_null(j->move);
    assert_int_equal(j->status, KVF_OK); /* in the window that is there now */
    assert_int_equal(asks, 2);
}

/* What was sent over a connection that was cut may be read late: nothing is
 * written by an access from before, and that is given back before the next is
 * asked for. */
static void not_after_a_cut(void **state)
{
    struct sim *sim = *state;

    assert_int_equal(done(sim, KVF_MOVE_WRITE), KVF_OK);
    assert_int_equal(done(sim, KVF_MOVE_READ), KVF_OK);
    assert_int_equal(asks, 2);
    sim->cut_op = sim->bulk_ops + 1;
    assert_int_equal(done(sim, KVF_MOVE_WRITE), KVF_OK);
    assert_int_equal(asks, 3);
    assert_int_equal(aborts_before, 1);
    assert_int_equal(done(sim, KVF_MOVE_READ), KVF_OK);
    assert_int_equal(asks, 4);
    assert_int_equal(done(sim, KVF_MOVE_WRITE), KVF_OK);
    assert_int_equal(done(sim, KVF_MOVE_WRITE), KVF_OK);
    assert_int_equal(asks, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_question_for_many, start, stop),
        cmocka_unit_test_setup_teardown(not_once_the_window_has_ended, start,
                                        stop),
        cmocka_unit_test_setup_teardown(not_while_the_window_ends, start, stop),
        cmocka_unit_test_setup_teardown(not_after_a_cut, start_tcp, stop)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
