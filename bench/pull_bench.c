/* Measures two running daemons the way engines use them; bench/compare sets the
 * figures beside those of bare programs.
 *
 *   pull_bench SENDER_ENDPOINT RECEIVER_ENDPOINT CASE...
 *
 *   get SIZE view|copy|into hot|cold DEPTH
 *       throughput of gets; a view is read to its end
 *   latency SIZE COUNT
 *       one get after the other
 *   parked SIZE COUNT
 *       from a put to the reply of the get that waits for it
 *   many SIZE COUNT
 *       one by one, in one mget, pipelined
 *   ping sender|receiver COUNT [SIZE]
 *       pings, while SIZE is moved
 *   crowd COUNT
 *       memory and CPU of parked gets
 *
 * hot: one block again and again; cold: blocks of 1 GiB in all, in turn. Each
 * line of output is a JSON object. Bytes are checked: every payload in full
 * before anything is measured, and the last one of each measurement after it.
 * Whatever fails ends the program with a sentence. */
#include "pull_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_NS 60000000000ull

void pb_need(struct kvferry *h, int rc, const char *what)
{
    if (rc != 0)
        bench_die("%s: %s: %s", what, kvferry_status_name(rc),
                  kvferry_error(h));
}

void pb_open(struct pb *b)
{
    struct kvferry **h[2] = {&b->from, &b->to};
    struct kvferry_info info;

    for (unsigned i = 0; i < 2; i++) {
        struct kvferry_open_options o = {.endpoint = b->endpoint[i],
                                         .client = "pull_bench",
                                         .timeout_ms = 20000};
        char err[256] = "";
        int rc = kvferry_open(h[i], &o, err, sizeof err);

        if (rc != 0)
            bench_die("no daemon at %s: %s: %s", b->endpoint[i],
                      kvferry_status_name(rc), err);
        kvferry_info(*h[i], &info);
        b->pid[i] = (pid_t)info.daemon_pid;
    }
}

void pb_close(struct pb *b)
{
    kvferry_cleanup(b->from, "bench", -1, -1, NULL);
    kvferry_close(b->to);
    kvferry_close(b->from);
}

/* "bench:NAME-I", one request, so that one cleanup takes them all. */
void pb_key(char out[64], const char *name, uint64_t i)
{
    snprintf(out, 64, "bench:%s-%llu", name, (unsigned long long)i);
}

void pb_put(struct pb *b, const char *name, uint64_t i, uint64_t size)
{
    struct kvferry_put_options o = {.readers = KVFERRY_READERS_ANY};
    struct kvferry_segment seg = {0};
    struct kvferry_buffer buf;
    char key[64];

    pb_key(key, name, i);
    pb_need(b->from, kvferry_alloc(b->from, size, &buf), "alloc");
    bench_fill(buf.data, size, i, 0);
    seg.id = buf.id;
    seg.length = size;
    pb_need(b->from, kvferry_put_segments(b->from, key, &seg, 1, &o, NULL),
            "put");
}

void pb_check(const struct kvferry_payload *p, uint64_t size, uint64_t seed)
{
    const struct kvferry_piece *piece;
    unsigned n = kvferry_payload_pieces(p, &piece);
    uint64_t at = 0;

    for (unsigned i = 0; i < n; i++) {
        if (bench_check(piece[i].data, piece[i].length, seed, at) != UINT64_MAX)
            bench_die("WRONG BYTES came");
        at += piece[i].length;
    }
    if (at != size)
        bench_die("a payload of another size came");
}

uint64_t pb_cpu(const struct pb *b)
{
    return bench_cpu(0) + bench_cpu(b->pid[0]) + bench_cpu(b->pid[1]);
}

void pb_wait(struct kvferry *h, const uint64_t *counter, uint64_t until)
{
    uint64_t end = bench_now() + WAIT_NS;

    while (*counter < until)
        if (kvferry_wait(h, 1000) < 0 || bench_now() > end)
            bench_die("no answer: %s", kvferry_error(h));
}

struct kvferry_get_options pb_from(const struct pb *b)
{
    struct kvferry_get_options o = {.from_fields = 1, .mode = KVFERRY_COPY};
    struct kvferry_info info;

    kvferry_info(b->from, &info);
    o.from_stage = info.stage;
    return o;
}

static void usage(void)
{
    bench_die("usage: pull_bench SENDER_ENDPOINT RECEIVER_ENDPOINT\n"
              "    get SIZE view|copy|into hot|cold DEPTH | latency SIZE COUNT"
              " |\n    parked SIZE COUNT | many SIZE COUNT |\n"
              "    ping sender|receiver COUNT [SIZE] | crowd COUNT");
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int min;
        void (*run)(struct pb *b, int argc, char **argv);
    } cases[] = {
        {"get", 4, pb_get},   {"latency", 2, pb_latency},
        {"many", 2, pb_many}, {"parked", 2, pb_parked},
        {"ping", 2, pb_ping}, {"crowd", 1, pb_crowd},
    };
    struct pb b = {0};

    if (argc < 4)
        usage();
    b.endpoint[0] = argv[1];
    b.endpoint[1] = argv[2];
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
        if (strcmp(argv[3], cases[i].name) == 0 && argc - 4 >= cases[i].min) {
            cases[i].run(&b, argc - 4, argv + 4);
            return 0;
        }
    usage();
}
