/* What redis reaches with one value at a time, and with a pipeline of GETs.
 *
 *   raw_redis PORT SERVER_PID get SIZE [ROUNDS]        SET and GET one value
 *   raw_redis PORT SERVER_PID pipe SIZE KEYS [ROUNDS]  KEYS GETs one after the
 *                                                      other, and in a pipeline
 *
 * The server runs on 127.0.0.1 and is somebody else's to start. JSON lines;
 * what came is checked. */
#include "../common.h"

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static redisContext *redis;
static pid_t server;

struct span {
    uint64_t t0, cpu;
};

static struct span begin(void)
{
    return (struct span){bench_now(), bench_cpu(0) + bench_cpu(server)};
}

static void tell(const struct span *from, const char *how, uint64_t size,
                 uint64_t n)
{
    uint64_t ns = bench_now() - from->t0;
    uint64_t cpu = bench_cpu(0) + bench_cpu(server) - from->cpu;
    double gb = (double)(n * size) / 1e9;

    printf("{\"bench\":\"redis\",\"how\":\"%s\",\"size\":%llu,\"GBps\":%.3f,"
           "\"us\":%.2f,\"per_s\":%.1f,\"cpu_s_per_GB\":%.4f}\n",
           how, (unsigned long long)size, gb * 1e9 / (double)ns,
           (double)ns / 1e3 / (double)n, (double)n * 1e9 / (double)ns,
           (double)cpu / 1e9 / gb);
    fflush(stdout);
}

/* `check` only outside of what is measured. */
static void got(redisReply *r, uint64_t size, uint64_t seed, bool check)
{
    if (r == NULL || r->type != REDIS_REPLY_STRING || r->len != size)
        bench_die("GET failed: %s", r != NULL ? "wrong reply" : redis->errstr);
    if (check && bench_check(r->str, size, seed, 0) != UINT64_MAX)
        bench_die("wrong bytes came");
    freeReplyObject(r);
}

static void set(uint64_t key, const void *data, uint64_t size)
{
    redisReply *r = redisCommand(redis, "SET k%llu %b", (unsigned long long)key,
                                 data, (size_t)size);

    if (r == NULL || r->type == REDIS_REPLY_ERROR)
        bench_die("SET failed: %s", r != NULL ? r->str : redis->errstr);
    freeReplyObject(r);
}

static void get(uint64_t key, uint64_t size, bool check)
{
    got(redisCommand(redis, "GET k%llu", (unsigned long long)key), size, key,
        check);
}

static void one_value(uint64_t size, char *data)
{
    uint64_t n = bench_turns(size, 256 * MIB);
    struct span s;

    bench_fill(data, size, 0, 0);
    set(0, data, size);
    get(0, size, true);
    s = begin();
    for (uint64_t i = 0; i < n; i++)
        set(0, data, size);
    tell(&s, "set", size, n);
    s = begin();
    for (uint64_t i = 0; i < n; i++)
        get(0, size, false);
    tell(&s, "get", size, n);
}

static void many(uint64_t size, char *data, uint64_t keys)
{
    struct span s;

    for (uint64_t k = 0; k < keys; k++) {
        bench_fill(data, size, k, 0);
        set(k, data, size);
        get(k, size, true);
    }
    s = begin();
    for (uint64_t k = 0; k < keys; k++)
        get(k, size, false);
    tell(&s, "sequential", size, keys);
    s = begin();
    for (uint64_t k = 0; k < keys; k++)
        redisAppendCommand(redis, "GET k%llu", (unsigned long long)k);
    for (uint64_t k = 0; k < keys; k++) {
        void *r = NULL;

        if (redisGetReply(redis, &r) != REDIS_OK)
            bench_die("GET failed: %s", redis->errstr);
        got(r, size, k, false);
    }
    tell(&s, "pipelined", size, keys);
}

int main(int argc, char **argv)
{
    uint64_t size;
    bool pipeline;
    int rounds;
    char *data;

    if (argc < 5)
        bench_die("usage: raw_redis PORT SERVER_PID get SIZE [ROUNDS]\n"
                  "       raw_redis PORT SERVER_PID pipe SIZE KEYS [ROUNDS]");
    redis = redisConnect("127.0.0.1", atoi(argv[1]));
    if (redis == NULL || redis->err)
        bench_die("no redis at port %s", argv[1]);
    server = atoi(argv[2]);
    pipeline = strcmp(argv[3], "pipe") == 0;
    size = bench_size(argv[4]);
    data = bench_memory(size, false);
    rounds = argc > 5 + pipeline ? atoi(argv[5 + pipeline]) : 1;
    for (int r = 0; r < rounds; r++)
        if (pipeline)
            many(size, data, argc > 5 ? bench_size(argv[5]) : 1000);
        else
            one_value(size, data);
    redisFree(redis);
    return 0;
}
