/* The kvferryd that kvferry bench starts for itself.
 *
 * Happy path: a folder of its own with a configuration, the ready file and the
 * log; SIGTERM and the folder's removal at the end. Failure modes: it cannot
 * start (its log is shown); it ends by itself (the run tells); this process
 * dies first (the kernel ends it: PR_SET_PDEATHSIG). */
#include "pair.h"

#include "bench.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1ull << 20)

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    (void)sig;
    interrupted = 1;
}

bool pair_interrupted(void)
{
    return interrupted != 0;
}

void pair_catch_signals(void)
{
    struct sigaction sa = {.sa_handler = on_signal};

    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

static void path_of(const struct pair_daemon *d, const char *name,
                    char out[200])
{
    snprintf(out, 200, "%s/%s", d->dir, name);
}

/* Beside this program, else where the build puts it, else by PATH. */
static void find_program(const struct pair *p, char *out, size_t cap)
{
    static const char *const beside[] = {"kvferryd", "../daemon/kvferryd"};
    char self[512];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash;

    snprintf(out, cap, "%s", p->kvferryd != NULL ? p->kvferryd : "kvferryd");
    self[n > 0 ? n : 0] = '\0';
    slash = strrchr(self, '/');
    if (p->kvferryd != NULL || slash == NULL)
        return;
    slash[1] = '\0';
    for (unsigned i = 0; i < 2; i++) {
        char path[600];

        snprintf(path, sizeof path, "%s%s", self, beside[i]);
        if (access(path, X_OK) == 0) {
            snprintf(out, cap, "%s", path);
            return;
        }
    }
}

/* Initiators differ in rank and replica, so that several can use one target. */
static int write_conf(const struct pair *p, uint64_t room,
                      const struct pair_daemon *d)
{
    unsigned who = (unsigned)getpid();
    char path[200];
    FILE *f;
    int bad;

    path_of(d, "conf", path);
    f = fopen(path, "we");
    if (f == NULL)
        return -1;
    fprintf(f,
            "[worker]\ncluster = kvferry-bench\nstage = %u\nrank = %u\n"
            "replica = %u\nengine_endpoint = %s\n",
            p->target ? 0 : 1, p->target ? 0 : who % 64,
            p->target ? 0 : who / 64 % 63, d->endpoint);
    fprintf(f, "[connector]\nhost = %s\nprotocol = %s\n", p->host, p->protocol);
    if (p->port != 0 && p->target)
        fprintf(f, "zmq_port = %u\n", p->port - 100);
    else
        fprintf(f, "zmq_port = auto\n");
    if (p->device != NULL)
        fprintf(f, "device_name = %s\n", p->device);
    fprintf(f,
            "memory_pool_size = %lluMiB\n[log]\nlevel = warn\nfile = %s/log\n",
            (unsigned long long)((room + MIB - 1) / MIB + 4), d->dir);
    bad = ferror(f);
    return fclose(f) != 0 || bad ? -1 : 0;
}

static int make_folder(struct pair_daemon *d)
{
    const char *run = getenv("XDG_RUNTIME_DIR");

    if (run == NULL || strlen(run) > 60)
        run = "/tmp";
    snprintf(d->dir, sizeof d->dir, "%s/kvferry-bench-XXXXXX", run);
    if (mkdtemp(d->dir) == NULL) {
        fprintf(stderr, "kvferry bench: %s: %s\n", d->dir, strerror(errno));
        d->dir[0] = '\0';
        return CLI_IO;
    }
    snprintf(d->endpoint, sizeof d->endpoint, "ipc://%s/engine", d->dir);
    return 0;
}

static void child(const struct pair *p, const struct pair_daemon *d,
                  pid_t parent)
{
    char program[600], conf[200], ready[200], out[200];

    /* Ctrl-C is for us; we end it. */
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    find_program(p, program, sizeof program);
    path_of(d, "conf", conf);
    path_of(d, "ready", ready);
    path_of(d, "out", out);
    if (freopen(out, "a", stderr) == NULL || dup2(STDERR_FILENO, 1) < 0 ||
        freopen("/dev/null", "r", stdin) == NULL)
        _exit(1);
    execlp(program, program, conf, "--ready-file", ready, (char *)NULL);
    fprintf(stderr, "%s: %s\n", program, strerror(errno));
    fflush(stderr); /* it is a file now */
    _exit(127);
}

static void show(const struct pair_daemon *d, const char *name)
{
    char path[200], line[400];
    FILE *f;

    path_of(d, name, path);
    f = fopen(path, "re");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        fprintf(stderr, "  %s", line);
    if (f != NULL)
        fclose(f);
}

bool pair_daemon_runs(struct pair_daemon *d)
{
    if (d->pid <= 0)
        return true; /* somebody else's: asking it tells */
    if (waitpid(d->pid, NULL, WNOHANG) == 0)
        return true;
    d->pid = -1;
    return false;
}

/* Until it ended, timeout_ms at most. */
static void wait_exit(const struct pair_daemon *d, int timeout_ms)
{
    struct pollfd pf = {.events = POLLIN};

    pf.fd = (int)syscall(SYS_pidfd_open, d->pid, 0);
    poll(&pf, pf.fd >= 0, timeout_ms);
    if (pf.fd >= 0)
        close(pf.fd);
}

static int wait_ready(struct pair_daemon *d)
{
    uint64_t end = bench_now() + 120 * 1000000000ull; /* a large pool */
    char path[200];
    struct stat st;

    path_of(d, "ready", path);
    while (stat(path, &st) != 0 || st.st_size == 0) {
        if (!pair_daemon_runs(d) || bench_now() > end || pair_interrupted()) {
            fprintf(stderr, "kvferry bench: kvferryd did not start\n");
            show(d, "out");
            show(d, "log");
            return KVF_PEER_UNREACHABLE;
        }
        wait_exit(d, 5);
    }
    return 0;
}

int pair_daemon_start(const struct pair *p, uint64_t room,
                      struct pair_daemon *d)
{
    pid_t parent = getpid();
    int rc;

    memset(d, 0, sizeof *d);
    if (p->engine != NULL) {
        snprintf(d->endpoint, sizeof d->endpoint, "%s", p->engine);
        return 0;
    }
    rc = make_folder(d);
    if (rc == 0 && write_conf(p, room, d) != 0) {
        fprintf(stderr, "kvferry bench: %s: %s\n", d->dir, strerror(errno));
        rc = CLI_IO;
    }
    if (rc == 0 && (d->pid = fork()) == 0)
        child(p, d, parent);
    if (rc == 0 && d->pid < 0)
        rc = CLI_IO;
    if (rc == 0)
        rc = wait_ready(d);
    if (rc != 0)
        pair_daemon_stop(d);
    return rc;
}

void pair_daemon_stop(struct pair_daemon *d)
{
    static const char *const files[] = {"conf", "ready",  "out",
                                        "log",  "engine", "engine.lock"};
    char path[200];

    if (d->pid > 0) {
        kill(d->pid, SIGTERM);
        wait_exit(d, 10000);
        pair_daemon_runs(d);
        if (d->pid > 0) {
            kill(d->pid, SIGKILL);
            waitpid(d->pid, NULL, 0);
        }
    }
    d->pid = 0;
    if (d->dir[0] == '\0')
        return;
    for (unsigned i = 0; i < sizeof files / sizeof files[0]; i++) {
        path_of(d, files[i], path);
        unlink(path);
    }
    rmdir(d->dir);
    d->dir[0] = '\0';
}

int64_t pair_daemon_cpu(const struct kvferry_info *i)
{
    int64_t pids[2] = {i->daemon_pid, 0};

    return bench_cpu(pids);
}

int64_t pair_own_cpu(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}
