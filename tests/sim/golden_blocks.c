/* Scenarios: pulls of blocks by two ranks from two. */
#include "golden.h"

#define TTL 60000
#define D0 2u
#define D1 3u

/* Sessions and layouts first, so that the trace begins with the request. */
static void meet(void)
{
    bw_publish_all(&bw, 3, TTL);
    bw_pull(&bw, D0, 3, 5000, NULL);
    bw_pull(&bw, D1, 3, 5000, NULL);
    run(1000);
    note("they know each other");
}

static void both(unsigned request, struct bw_group *g)
{
    bw_pull(&bw, D0, request, 10000, g);
    bw_pull(&bw, D1, request, 10000, g);
}

void s_blocks_shm(void)
{
    bw_publish_all(&bw, 0, TTL);
    both(0, NULL);
    run(1000);
}

void s_blocks_tcp(void)
{
    bw_publish_all(&bw, 0, TTL);
    both(0, NULL);
    run(1000);
}

void s_blocks_before_publish(void)
{
    meet();
    both(0, NULL);
    run(500);
    note("published");
    bw_publish_all(&bw, 0, TTL);
    run(500);
}

void s_blocks_on_one_rank(void)
{
    meet();
    note("published on rank 0 only");
    bw_publish(&bw, 0, 0, TTL, NULL);
    both(0, NULL);
    run(11000);
    note("an expired pull holds nothing up");
    bw_publish(&bw, 1, 0, TTL, NULL);
    both(0, NULL);
    run(500);
}

void s_blocks_two_tags(void)
{
    const struct kvf_id one = {{1}}, two = {{2}};

    meet();
    bw_publish(&bw, 0, 0, TTL, &one);
    bw_publish(&bw, 1, 0, TTL, &two);
    both(0, NULL);
    run(500);
    note("rank 1 publishes the same as rank 0");
    bw_publish(&bw, 1, 0, TTL, &one);
    both(0, NULL);
    run(500);
}

void s_blocks_retry_resumes(void)
{
    meet();
    bw_publish_all(&bw, 0, TTL);
    sim->fail_op = sim->bulk_ops + 2;
    both(0, NULL);
    run(2000);
}

void s_blocks_sender_dies(void)
{
    meet();
    sim->conf.bulk_step_ns = 50 * SIM_MS;
    bw_publish_all(&bw, 0, TTL);
    both(0, NULL);
    run(60);
    note("rank 1 of the sender dies");
    bw.disturbed++;
    sim_node_kill(sim->node[1], true);
    run(4000);
    sim_node_start(sim, 1);
    bw_declare(&bw, 1);
}

void s_blocks_sender_restarts(void)
{
    meet();
    both(0, NULL);
    run(300);
    note("rank 1 of the sender dies, while they wait there");
    sim_node_kill(sim->node[1], true);
    run(500);
    sim_node_start(sim, 1);
    bw_declare(&bw, 1);
    run(3000);
    note("asked again");
    bw_publish_all(&bw, 0, TTL);
    both(0, NULL);
    run(3000);
}

void s_blocks_done_lost(void)
{
    meet();
    lose_dones(3);
    bw_publish_all(&bw, 0, TTL);
    both(0, NULL);
    run(5000);
}

void s_blocks_late_grant(void)
{
    struct bw_pull *p;

    meet();
    sim->conf.delay_ns = 50 * SIM_MS;
    bw_publish_all(&bw, 0, TTL);
    p = bw_pull(&bw, D0, 0, 10000, NULL);
    run(75);
    note("cancel, while the grants are on their way");
    bw_cancel(&bw, p);
    run(500);
    assert_int_equal(sim->node[D0]->stats.late_grants, 2);
    note("again");
    both(0, NULL);
    run(1000);
}

void s_blocks_ttl_during_pull(void)
{
    meet();
    sim->conf.bulk_step_ns = 100 * SIM_MS;
    bw_publish_all(&bw, 0, 150);
    both(0, NULL);
    run(3000);
}

void s_blocks_together(void)
{
    struct bw_group *g = bw_group(&bw);

    meet();
    bw_publish_all(&bw, 0, TTL);
    bw_pull(&bw, D0, 0, 10000, g);
    run(300);
    note("the other rank");
    bw_pull(&bw, D1, 0, 10000, g);
    run(500);
}

void s_blocks_together_one_fails(void)
{
    struct bw_group *g = bw_group(&bw);
    struct bw_pull *p;

    meet();
    sim->conf.bulk_step_ns = 20 * SIM_MS;
    bw_publish_all(&bw, 0, TTL);
    bw_pull(&bw, D0, 0, 10000, g);
    run(400);
    note("one has all its bytes, the other begins");
    p = bw_pull(&bw, D1, 0, 10000, g);
    run(100);
    note("and is cancelled");
    bw_cancel(&bw, p);
    run(500);
    note("nobody has read it; both may again");
    both(0, NULL);
    run(1000);
}

void s_blocks_together_one_alone(void)
{
    struct bw_group *g = bw_group(&bw);

    meet();
    bw_publish_all(&bw, 0, TTL);
    bw_pull(&bw, D0, 0, 1000, g);
    run(3000);
}
