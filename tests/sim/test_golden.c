/* Golden traces: what a get goes through, step by step, in virtual time.
 *
 * Each scenario's trace (transitions, replies, retries and peer sessions, with
 * the time in ms and the node) is compared with tests/sim/golden/<name>.txt.
 * KVF_SIM_WRITE=1 writes the files instead: read the difference before it is
 * committed. Node 0 gets, node 1 owns; 100 us a message, 1 ms a step of bulk.
 */
#include "golden.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sim *sim;
struct bw bw;
static uint64_t t0;
static char trace[65536];
static size_t trace_len;

static const char *const shown[] = {
    "[GET] ",        "[REPLY] ", "[KVF RETRY] ", "[KVF TIMEOUT] ",
    "[KVF RETIRE] ", "[TEST] ",  "[KVF PULL] "};

static void put_line(const char *text)
{
    uint64_t us = (sim->now_ns - t0) / KVF_NS_PER_US;
    size_t len = strcspn(text, "\n");
    const char *cause = strstr(text, ": "); /* words may change */

    if (cause != NULL && (size_t)(cause - text) < len)
        len = (size_t)(cause - text);
    trace_len += (size_t)snprintf(
        trace + trace_len, sizeof trace - trace_len, "%llu.%03llu n%c %.*s\n",
        (unsigned long long)(us / 1000), (unsigned long long)(us % 1000),
        sim->current != NULL ? (char)('0' + sim->current->idx) : '-', (int)len,
        text);
    if (trace_len > sizeof trace - 512)
        fail_msg("the trace is too long");
}

static void tap(void *arg, const char *line)
{
    (void)arg;
    for (unsigned i = 0; i < sizeof shown / sizeof *shown; i++) {
        const char *at = strstr(line, shown[i]);

        if (at != NULL) {
            put_line(at);
            return;
        }
    }
}

void note(const char *text)
{
    kvf_log(KVF_LOG_TRACE, "TEST", "%s", text);
}

static const struct sim_conf base = {.nodes = 2,
                                     .pool_size = 4u << 20,
                                     .inline_max = 1024,
                                     .delay_ns = 100 * KVF_NS_PER_US,
                                     .bulk_chunk = 65536,
                                     .bulk_step_ns = SIM_MS,
                                     .no_shm = 3};

const struct sim_get_opts patient = {.mode = KVF_MODE_COPY,
                                     .timeout_ms = 10000};

struct sim_get *get(const char *key, const struct sim_get_opts *o)
{
    return sim_get(sim->node[0], 1, key, o);
}

uint64_t put(const char *key, uint64_t size, uint64_t readers)
{
    struct sim_put_opts o = {
        .size = size, .readers = readers, .checksum = size % 2 == 1};
    enum kvf_status status;
    uint64_t gen = sim_put(sim->node[1], key, &o, &status);

    assert_int_equal(status, KVF_OK);
    return gen;
}

void run(uint64_t ms)
{
    sim_run_ms(sim, ms);
}

void connect_first(void)
{
    const struct sim_get_opts o = {.mode = KVF_MODE_COPY, .timeout_ms = 100};

    kvf_log_tap(NULL, NULL);
    get("nothing", &o);
    run(1000);
    t0 = sim->now_ns;
    kvf_log_tap(tap, NULL);
}

void finish_gets(void)
{
    kvf_list_for_each_safe (n, &sim->gets) {
        struct sim_get *g = kvf_container_of(n, struct sim_get, node);

        if (g->replies != 0 && !g->gone && g->buffer != 0)
            sim_release(sim->node[g->idx], g->buffer);
        if (g->replies != 0 && !g->gone)
            sim_get_drop(g);
    }
}

void cancel(struct sim_get *g)
{
    struct sim_node *before = sim_enter(sim->node[0]);

    note("cancel");
    kvf_get_cancel(g->get, KVF_CANCELLED, "no longer wanted");
    sim_leave(sim->node[0], before);
    run(50);
}

/* ---- comparing ---------------------------------------------------------- */

struct scenario {
    const char *name;
    void (*fn)(void);
    bool shm, blocks;
};

#define GOLDEN_ROW(name, shm) {#name, s_##name, shm, false},
#define GOLDEN_BLOCKS_ROW(name, shm) {#name, s_##name, shm, true},
static const struct scenario scenarios[] = {
    GOLDEN_SCENARIOS(GOLDEN_ROW) GOLDEN_BLOCKS(GOLDEN_BLOCKS_ROW)};

static void compare(const char *name)
{
    char path[512], expected[sizeof trace];
    bool writes = getenv("KVF_SIM_WRITE") != NULL;
    size_t n;
    FILE *f;

    snprintf(path, sizeof path, "%s/%s.txt", KVF_GOLDEN_DIR, name);
    f = fopen(path, writes ? "w" : "r");
    if (f == NULL)
        fail_msg("%s: cannot be opened", path);
    if (writes) {
        fwrite(trace, 1, trace_len, f);
        fclose(f);
        return;
    }
    n = fread(expected, 1, sizeof expected - 1, f);
    fclose(f);
    expected[n] = '\0';
    if (strcmp(expected, trace) != 0)
        fail_msg("%s differs.\n--- expected\n%s--- now\n%s", name, expected,
                 trace);
}

static void begin_blocks(struct sim_conf *c)
{
    /* Each receiver has one of two layers, and heads of both senders. */
    static const struct bw_shape p = {2, 1, 4, false}, d = {1, 2, 8, false};

    c->nodes = 4;
    c->senders = 2;
    c->no_shm = c->no_shm != 0 ? ~0u : 0;
    sim = sim_new(c, 7);
    bw_init(&bw, sim, &p, &d);
}

static void golden(void **state)
{
    const struct scenario *sc = *state;
    struct sim_conf c = base;

    if (sc->shm)
        c.no_shm = 0;
    if (sc->blocks)
        begin_blocks(&c);
    else
        sim = sim_new(&c, 7);
    t0 = sim->now_ns;
    trace_len = 0;
    trace[0] = '\0';
    kvf_log_tap(tap, NULL);
    sc->fn();
    kvf_log_tap(NULL, NULL);
    compare(sc->name);
    /* Whatever happened, nothing stays behind. */
    sim->conf.bulk_cut_pct = 0;
    run(12000);
    finish_gets();
    run(140000); /* a payload and then its tombstone live 60 s each */
    if (sc->blocks)
        bw_finish(&bw);
    else
        sim_check_quiet(sim);
    sim_free(sim);
}

int main(void)
{
    enum { N = sizeof scenarios / sizeof *scenarios };
    struct CMUnitTest tests[N];
    struct scenario copy[N];

    memcpy(copy, scenarios, sizeof copy);
    for (unsigned i = 0; i < N; i++)
        tests[i] = (struct CMUnitTest){.name = copy[i].name,
                                       .test_func = golden,
                                       .initial_state = &copy[i]};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
