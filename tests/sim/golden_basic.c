/* Scenarios: what a get goes through when nothing breaks, and when its owner
 * is late, silent or gone. */
#include "golden.h"

void s_eager(void)
{
    put("k", 100, 1);
    get("k", &patient);
    run(200);
}

void s_pull(void)
{
    connect_first();
    put("k", 200001, 1);
    get("k", &patient);
    run(200);
}

void s_into(void)
{
    struct sim_get_opts o = patient;

    connect_first();
    put("k", 70000, 1);
    o.mode = KVF_MODE_INTO;
    o.into = 69999;
    get("k", &o);
    run(50);
    note("the right size");
    o.into = 70000;
    get("k", &o);
    run(200);
}

void s_view(void)
{
    connect_first();
    put("k", 70000, 1);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_AUTO, .timeout_ms = 1000});
    run(50);
    note("release");
    finish_gets();
    run(50);
}

void s_view_refused(void)
{
    connect_first();
    put("k", 70000, 1);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_VIEW, .timeout_ms = 1000});
    run(50);
}

void s_get_before_put(void)
{
    connect_first();
    get("k", &patient);
    run(300);
    note("put");
    put("k", 100, 1);
    run(50);
}

void s_owner_late(void)
{
    sim_node_kill(sim->node[1], true);
    get("k", &patient);
    run(700);
    note("owner starts");
    sim_node_start(sim, 1);
    run(800);
    note("put");
    put("k", 100, 1);
    run(50);
}

void s_deadline_connect(void)
{
    sim_node_kill(sim->node[1], true);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_COPY, .timeout_ms = 1000});
    run(1500);
    sim_node_start(sim, 1);
}

void s_deadline_wait(void)
{
    connect_first();
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_COPY, .timeout_ms = 1000});
    run(1500);
    put("k", 100, 1);
}

void s_deadline_transfer(void)
{
    connect_first();
    put("k", 200000, 1);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_COPY, .timeout_ms = 1000});
    run(5);
    note("owner stops");
    sim_node_freeze(sim->node[1]);
    run(1500);
    note("owner goes on");
    sim_node_thaw(sim->node[1]);
    run(500);
}

void s_owner_dies_parked(void)
{
    connect_first();
    get("k", &patient);
    run(300);
    note("owner dies");
    sim_node_kill(sim->node[1], true);
    run(3000);
    sim_node_start(sim, 1);
}

void s_owner_dies_pulling(void)
{
    connect_first();
    put("k", 200000, 1);
    get("k", &patient);
    run(5);
    note("owner dies");
    sim_node_kill(sim->node[1], true);
    run(5000);
    sim_node_start(sim, 1);
}

void s_owner_restarts(void)
{
    connect_first();
    get("k", &patient);
    run(300);
    note("owner restarts");
    sim_node_kill(sim->node[1], true);
    sim_node_start(sim, 1);
    run(3000);
    note("a new get");
    put("k", 100, 1);
    get("k", &patient);
    run(50);
}
