/* What plain ZeroMQ reaches: a round trip, and pulling payloads through it.
 *
 *   raw_zmq ipc|tcp rtt SIZE [ROUNDS]     5,000 round trips a round
 *   raw_zmq ipc|tcp paced SIZE [ROUNDS]   500, each after 0.3 ms of silence
 *   raw_zmq ipc|tcp pull SIZE [ROUNDS]    16 bytes ask, the payload answers,
 * and is copied to where it is wanted
 *
 * DEALER and ROUTER in two processes; the sender's side sends without copying.
 * One JSON line a round; payloads are checked after it. */
#include "../common.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define TRIPS 5000
#define PACED 500
#define PAUSE_NS 300000 /* as in pull_bench parked */

enum how { RTT, PACED_RTT, PULL };

static void keep(void *data, void *hint)
{
    (void)data;
    (void)hint;
}

static void server(void *s, const char *mem, uint64_t size, bool pull)
{
    for (;;) {
        zmq_msg_t id, m;

        zmq_msg_init(&id);
        zmq_msg_init(&m);
        if (zmq_msg_recv(&id, s, 0) < 0 || zmq_msg_recv(&m, s, 0) < 0)
            exit(0);
        if (pull) {
            zmq_msg_close(&m);
            zmq_msg_init_data(&m, (void *)(uintptr_t)mem, size, keep, NULL);
        }
        if (zmq_msg_send(&id, s, ZMQ_SNDMORE) < 0 || zmq_msg_send(&m, s, 0) < 0)
            exit(0);
    }
}

static void trip(void *s, char *mem, uint64_t size, bool pull)
{
    zmq_msg_t m;

    if (zmq_send(s, mem, pull ? 16 : size, 0) < 0)
        bench_die("cannot send: %s", zmq_strerror(zmq_errno()));
    zmq_msg_init(&m);
    if (zmq_msg_recv(&m, s, 0) < 0 || zmq_msg_size(&m) != size)
        bench_die("cannot receive: %s", zmq_strerror(zmq_errno()));
    if (pull)
        memcpy(mem, zmq_msg_data(&m), size);
    zmq_msg_close(&m);
}

static void one_round(void *s, char *mem, uint64_t size, enum how what,
                      pid_t kid, bool tell, const char *how)
{
    static uint64_t took[TRIPS];
    static const char *const names[] = {"rtt", "paced", "pull"};
    bool pull = what == PULL;
    uint64_t n = what == RTT         ? TRIPS
                 : what == PACED_RTT ? PACED
                                     : bench_turns(size, 512 * MIB);
    uint64_t ns;
    uint64_t cpu = bench_cpu(0) + bench_cpu(kid), t0 = bench_now();
    double gb;

    if (!tell)
        n = n / 8 + 1;
    if (n > TRIPS)
        n = TRIPS;
    gb = (double)(n * size) / 1e9;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t t = bench_now();

        while (what == PACED_RTT && bench_now() - t < PAUSE_NS)
            continue;
        t = what == PACED_RTT ? bench_now() : t;
        trip(s, mem, size, pull);
        took[i] = bench_now() - t;
    }
    ns = bench_now() - t0;
    cpu = bench_cpu(0) + bench_cpu(kid) - cpu;
    if (pull && bench_check(mem, size, 7, 0) != UINT64_MAX)
        bench_die("wrong bytes came");
    if (!tell)
        return;
    printf("{\"bench\":\"zmq\",\"how\":\"%s %s\",\"size\":%llu,\"GBps\":%.3f,"
           "\"us\":%.2f,\"p50_us\":%.2f,\"p99_us\":%.2f,"
           "\"cpu_s_per_GB\":%.4f}\n",
           how, names[what], (unsigned long long)size, gb * 1e9 / (double)ns,
           (double)ns / 1e3 / (double)n,
           (double)bench_quantile(took, n, .5) / 1e3,
           (double)bench_quantile(took, n, .99) / 1e3, (double)cpu / 1e9 / gb);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    char where[128] = "tcp://127.0.0.1:*", dir[] = "/tmp/raw_zmq.XXXXXX";
    int zero = 0, report[2], rounds = argc > 4 ? atoi(argv[4]) : 1;
    void *ctx, *s;
    uint64_t size;
    enum how what;
    bool ipc;
    char *mem;
    pid_t kid;

    if (argc < 4)
        bench_die("usage: raw_zmq ipc|tcp rtt|paced|pull SIZE [ROUNDS]");
    ipc = strcmp(argv[1], "ipc") == 0;
    what = strcmp(argv[2], "pull") == 0    ? PULL
           : strcmp(argv[2], "paced") == 0 ? PACED_RTT
                                           : RTT;
    size = bench_size(argv[3]);
    mem = bench_memory(size < 16 ? 16 : size, false);
    if (ipc && mkdtemp(dir) != NULL)
        snprintf(where, sizeof where, "ipc://%s/s", dir);
    if (pipe(report) != 0 || (kid = fork()) < 0)
        bench_die("cannot fork");
    ctx = zmq_ctx_new();
    s = zmq_socket(ctx, kid == 0 ? ZMQ_ROUTER : ZMQ_DEALER);
    zmq_setsockopt(s, ZMQ_LINGER, &zero, sizeof zero);
    if (kid == 0) {
        size_t len = sizeof where;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        bench_fill(mem, size, 7, 0);
        if (zmq_bind(s, where) != 0)
            bench_die("cannot bind %s: %s", where, zmq_strerror(zmq_errno()));
        zmq_getsockopt(s, ZMQ_LAST_ENDPOINT, where, &len);
        if (write(report[1], where, sizeof where) != sizeof where)
            return 1;
        server(s, mem, size, what == PULL);
    }
    close(report[1]);
    if (read(report[0], where, sizeof where) != sizeof where ||
        zmq_connect(s, where) != 0)
        bench_die("cannot connect");
    for (int r = -1; r < rounds; r++)
        one_round(s, mem, size, what, kid, r >= 0, argv[1]);
    kill(kid, SIGKILL);
    waitpid(kid, NULL, 0);
    if (ipc) {
        unlink(where + strlen("ipc://"));
        rmdir(dir);
    }
    zmq_close(s);
    zmq_ctx_term(ctx);
    return 0;
}
