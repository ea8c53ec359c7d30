/* Processes, their memory, and the fd broker. Everything that changes the
 * capabilities of a process happens in children. */
#include "memory/broker.h"
#include "memory/proc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE 65536

/* What the engine child offers; same numbers in it and here (made before the
 * fork). */
struct offers {
    int good, unsealed, write_sealed, small, pipe, dir, foreign;
};

static struct offers offers;

static int memory(size_t size, int seals)
{
    int fd = memfd_create("offer", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    if (seals != 0)
        assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static int setup(void **state)
{
    int p[2];

    (void)state;
    offers.good = memory(SIZE, F_SEAL_SHRINK);
    offers.unsealed = memory(SIZE, 0);
    offers.write_sealed = memory(SIZE, F_SEAL_SHRINK | F_SEAL_WRITE);
    offers.small = memory(4096, F_SEAL_SHRINK);
    offers.foreign = memory(SIZE, F_SEAL_SHRINK);
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    offers.pipe = p[0];
    offers.dir = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(offers.dir >= 0);
    return 0;
}

/* A child that holds the offers and waits until it is killed. */
static pid_t start_engine(void)
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        for (;;)
            pause();
    }
    return pid;
}

static void stop_engine(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static int open_pidfd(pid_t pid)
{
    struct kvf_proc_id id = {pid, 0};
    struct kvf_why why = {0};
    uid_t uid;
    int pidfd = -1;

    if (kvf_proc_open(&id, &pidfd, &uid, &why) != 0)
        fail_msg("%s", why.text);
    return pidfd;
}

static void identity(void **state)
{
    pid_t pid = start_engine();
    struct kvf_proc_id id = {pid, 0};
    struct kvf_why why = {0};
    uint64_t mine;
    uid_t uid = 12345;
    int pidfd = -1;

    (void)state;
    assert_int_equal(kvf_proc_start(getpid(), &mine, &why), 0);
    assert_int_equal(kvf_proc_start(pid, &id.start, &why), 0);
    assert_true(id.start >= mine && mine > 0);
    assert_int_equal(kvf_proc_open(&id, &pidfd, &uid, &why), 0);
    assert_int_equal(uid, geteuid());
    assert_true(fcntl(pidfd, F_GETFD) & FD_CLOEXEC);
    assert_false(kvf_proc_gone(pidfd));
    stop_engine(pid);
    assert_true(kvf_proc_gone(pidfd));
    close(pidfd);

    assert_int_equal(kvf_proc_open(&id, &pidfd, &uid, &why), -KVF_NOT_FOUND);
    assert_int_equal(kvf_proc_start(pid, &mine, &why), -KVF_NOT_FOUND);
    id.pid = getpid(); /* its pid, but another start */
    id.start = 1;
    assert_int_equal(kvf_proc_open(&id, &pidfd, &uid, &why), -KVF_NOT_FOUND);
    id.pid = 0; /* what SO_PEERCRED says of another namespace */
    assert_int_equal(kvf_proc_open(&id, &pidfd, &uid, &why), -KVF_UNSUPPORTED);
}

static void zombie_is_gone(void **state)
{
    pid_t pid = start_engine();
    struct kvf_proc_id id = {pid, 0};
    siginfo_t info;
    uid_t uid;
    int pidfd;

    (void)state;
    kill(pid, SIGKILL);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(kvf_proc_open(&id, &pidfd, &uid, NULL), -KVF_NOT_FOUND);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void a_name_cannot_lie(void **state)
{
    char before[17] = "";
    uint64_t want, got;

    (void)state;
    assert_int_equal(kvf_proc_start(getpid(), &want, NULL), 0);
    prctl(PR_GET_NAME, before);
    prctl(PR_SET_NAME, "x) R 1 2 (3 4");
    assert_int_equal(kvf_proc_start(getpid(), &got, NULL), 0);
    prctl(PR_SET_NAME, before);
    assert_int_equal(got, want);
}

/* Asks the broker and waits for its answer, as the loop does. */
static int broker_open(int broker, pid_t pid, int fd)
{
    static uint64_t tag;
    struct pollfd p = {broker, POLLIN, 0};
    uint64_t got;
    int link, rc = kvf_broker_ask(broker, ++tag, pid, fd);

    if (rc != 0)
        return rc;
    if (poll(&p, 1, 20000) != 1)
        return -ETIMEDOUT;
    rc = kvf_broker_answer(broker, &got, &link);
    return rc != 0 ? rc : got == tag ? link : -EPROTO;
}

static int open_memory(int broker, const struct kvf_proc_memory *m, int *out,
                       struct kvf_why *why)
{
    int link = kvf_proc_link(m->pid, m->fd);

    if (link == -EACCES && broker >= 0)
        link = broker_open(broker, m->pid, m->fd);
    return kvf_proc_open_memory(link, m, out, why);
}

/* Opens one offer; exits of children report with it, so no asserts. */
static int try_memory(int broker, pid_t pid, int pidfd, int fd, uid_t uid,
                      uint64_t size, const char *reason)
{
    struct kvf_why why = {0};
    struct kvf_proc_memory m = {pid, pidfd, fd, uid, size};
    int out = -1, rc = open_memory(broker, &m, &out, &why);

    if (rc == 0)
        close(out);
    if (rc != 0 && (rc != -KVF_DENIED || reason == NULL ||
                    strstr(why.text, reason) == NULL)) {
        fprintf(stderr, "fd %d: rc %d, text '%s', expected '%s'\n", fd, rc,
                why.text, reason == NULL ? "(success)" : reason);
        return 1;
    }
    if (rc == 0 && reason != NULL) {
        fprintf(stderr, "fd %d was taken, expected '%s'\n", fd, reason);
        return 1;
    }
    return 0;
}

/* All offers of a living engine; the number of wrong answers. */
static int try_all(int broker, pid_t pid, int pidfd)
{
    uid_t me = geteuid();
    int bad = 0;

    bad += try_memory(broker, pid, pidfd, offers.good, me, SIZE, NULL);
    bad += try_memory(broker, pid, pidfd, offers.good, me + 1, SIZE, "uid");
    bad += try_memory(broker, pid, pidfd, offers.good, me, SIZE + 1, "bytes");
    bad += try_memory(broker, pid, pidfd, offers.good, me, 0, "bytes");
    bad += try_memory(broker, pid, pidfd, offers.small, me, SIZE, "bytes");
    bad += try_memory(broker, pid, pidfd, offers.unsealed, me, SIZE, "sealed");
    bad += try_memory(broker, pid, pidfd, offers.write_sealed, me, SIZE,
                      "sealed against writing");
    bad += try_memory(broker, pid, pidfd, offers.pipe, me, SIZE, "regular");
    bad += try_memory(broker, pid, pidfd, offers.dir, me, SIZE, "regular");
    bad += try_memory(broker, pid, pidfd, 9999, me, SIZE, "No such file");
    bad += try_memory(broker, pid, pidfd, -1, me, SIZE, "Bad file");
    return bad;
}

static void memory_of_a_process(void **state)
{
    pid_t pid = start_engine();
    int pidfd = open_pidfd(pid), out = -1;
    struct kvf_proc_memory m = {pid, pidfd, offers.good, geteuid(), SIZE};
    char *a, *b;

    (void)state;
    assert_int_equal(try_all(-1, pid, pidfd), 0);
    assert_int_equal(open_memory(-1, &m, &out, NULL), 0);
    assert_true(fcntl(out, F_GETFD) & FD_CLOEXEC);
    a = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, out, 0);
    b = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, offers.good, 0);
    assert_true(a != MAP_FAILED && b != MAP_FAILED);
    strcpy(a + 5000, "written");
    assert_string_equal(b + 5000, "written");
    munmap(a, SIZE);
    munmap(b, SIZE);
    close(out);
    stop_engine(pid);
    assert_int_equal(try_memory(-1, pid, pidfd, offers.good, geteuid(), SIZE,
                                "No such file"),
                     0);
    /* The pid is in use again, by ourselves; the pidfd knows better. */
    assert_int_equal(
        try_memory(-1, getpid(), pidfd, offers.good, geteuid(), SIZE, "ended"),
        0);
    close(pidfd);
}

static void owner_is_checked(void **state)
{
    pid_t pid;
    int pidfd;

    (void)state;
    if (geteuid() != 0) {
        print_message("owner_is_checked: skipped, changing an owner needs "
                      "root\n");
        skip();
    }
    assert_int_equal(fchown(offers.foreign, 65534, 65534), 0);
    pid = start_engine();
    pidfd = open_pidfd(pid);
    assert_int_equal(
        try_memory(-1, pid, pidfd, offers.foreign, 0, SIZE, "uid 65534"), 0);
    close(pidfd);
    stop_engine(pid);
}

/* ---- the broker --------------------------------------------------------- */

static bool has_capabilities(void)
{
    char line[256];
    bool any = false;
    FILE *f = fopen("/proc/self/status", "re");

    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "CapPrm:", 7) == 0)
            any = strtoull(line + 7, NULL, 16) != 0;
    }
    fclose(f);
    return any;
}

static bool file_says(pid_t pid, const char *name, const char *want)
{
    char path[64], text[64] = "";
    ssize_t n;
    int fd;

    snprintf(path, sizeof path, "/proc/%ld/%s", (long)pid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    return n > 0 && strncmp(text, want, strlen(want)) == 0;
}

#define CHECK(cond)                                                            \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "line %d: %s\n", __LINE__, #cond);                 \
            return 1;                                                          \
        }                                                                      \
    } while (0)

/* The daemon's part, in a child: `engine` keeps all capabilities. */
static int daemon_without_capabilities(pid_t engine, int pidfd)
{
    struct kvf_why why = {0};
    int broker = -1, status, fd;
    char path[64];
    pid_t pid = 0;

    CHECK(kvf_broker_start(&broker, &pid, &why) == 0);
    CHECK(broker >= 0 && pid > 0);
    CHECK(fcntl(broker, F_GETFD) & FD_CLOEXEC);
    CHECK(kvf_drop_capabilities(&why) == 0);
    CHECK(!has_capabilities());
    CHECK(prctl(PR_GET_DUMPABLE) == 1);
    /* Alone it may not look in there: this is what the broker is for. */
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)engine, offers.good);
    CHECK(open(path, O_PATH | O_CLOEXEC) < 0 && errno == EACCES);
    CHECK(try_memory(-1, engine, pidfd, offers.good, geteuid(), SIZE,
                     "Permission denied") == 0);
    CHECK(try_all(broker, engine, pidfd) == 0);

    CHECK(broker_open(broker, 0, 0) == -EINVAL);
    CHECK(broker_open(broker, engine, -5) == -EINVAL);
    CHECK(send(broker, "garbage", 7, MSG_NOSIGNAL) == 7);
    fd = broker_open(broker, engine, offers.good);
    CHECK(fd >= 0 && (fcntl(fd, F_GETFL) & O_PATH));
    close(fd);

    CHECK(file_says(pid, "comm", "kvferryd-fd\n"));
    CHECK(file_says(pid, "cmdline", "kvferryd-fd"));
    kill(pid, SIGTERM);
    kill(pid, SIGINT);
    kill(pid, SIGHUP);
    fd = broker_open(broker, engine, offers.good);
    CHECK(fd >= 0);
    close(fd);
    close(broker); /* EOF */
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}

static void broker_opens_for_us(void **state)
{
    pid_t engine, daemon;
    int pidfd, status;

    (void)state;
    if (!has_capabilities()) {
        print_message("broker_opens_for_us: skipped, there are no "
                      "capabilities to keep\n");
        skip();
    }
    engine = start_engine();
    pidfd = open_pidfd(engine);
    daemon = fork();
    if (daemon == 0)
        _exit(daemon_without_capabilities(engine, pidfd));
    assert_int_equal(waitpid(daemon, &status, 0), daemon);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(pidfd);
    stop_engine(engine);
}

/* kill -9 of the daemon takes the broker along, and it holds nothing open. */
static void broker_dies_with_the_daemon(void **state)
{
    int report[2], witness[2], pidfd;
    pid_t daemon, pid = 0;
    struct pollfd p;
    char c;

    (void)state;
    if (!has_capabilities()) {
        print_message("broker_dies_with_the_daemon: skipped, there are no "
                      "capabilities to keep\n");
        skip();
    }
    assert_int_equal(pipe2(report, O_CLOEXEC), 0);
    assert_int_equal(pipe2(witness, O_CLOEXEC), 0);
    daemon = fork();
    if (daemon == 0) {
        int broker;

        if (kvf_broker_start(&broker, &pid, NULL) == 0 &&
            broker_open(broker, getpid(), 0) >= -4095)
            (void)!write(report[1], &pid, sizeof pid);
        close(witness[1]); /* now only a careless broker holds it */
        for (;;)
            pause();
    }
    close(witness[1]);
    assert_int_equal(read(report[0], &pid, sizeof pid), sizeof pid);
    assert_int_equal(read(witness[0], &c, 1), 0);
    pidfd = open_pidfd(pid);
    kill(daemon, SIGKILL);
    assert_int_equal(waitpid(daemon, NULL, 0), daemon);
    p = (struct pollfd){pidfd, POLLIN, 0};
    assert_int_equal(poll(&p, 1, 2000), 1);
    close(pidfd);
    close(report[0]);
    close(report[1]);
    close(witness[0]);
}

/* Nobody waits for a silent broker; its answers bear the tags of what was
 * asked, its end shows. */
static void silent_broker(void **state)
{
    struct kvf_broker_request req;
    struct kvf_broker_reply late = {.err = ENOENT};
    uint64_t tag = 0;
    int sv[2], link, rc;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv),
                     0);
    assert_int_equal(kvf_broker_answer(sv[0], &tag, &link), -EAGAIN);
    assert_int_equal(kvf_broker_ask(sv[0], 7, getpid(), 0), 0);
    assert_int_equal(kvf_broker_answer(sv[0], &tag, &link), -EAGAIN);
    assert_int_equal(recv(sv[1], &req, sizeof req, 0), sizeof req);
    late.tag = req.tag;
    assert_int_equal(send(sv[1], &late, sizeof late, 0), sizeof late);
    assert_int_equal(kvf_broker_answer(sv[0], &tag, &link), 0);
    assert_true(tag == 7 && link == -ENOENT);
    do
        rc = kvf_broker_ask(sv[0], ++tag, getpid(), 0);
    while (rc == 0);
    assert_int_equal(rc, -EAGAIN);
    close(sv[1]);
    rc = kvf_broker_ask(sv[0], 8, getpid(), 0);
    assert_true(rc == -EPIPE || rc == -ECONNRESET);
    rc = kvf_broker_answer(sv[0], &tag, &link);
    assert_true(rc == -EPIPE || rc == -ECONNRESET);
    close(sv[0]);
}

static int start_and_drop_twice(void)
{
    int broker = 5;
    pid_t pid = 5;

    CHECK(kvf_drop_capabilities(NULL) == 0);
    CHECK(kvf_drop_capabilities(NULL) == 0);
    CHECK(kvf_broker_start(&broker, &pid, NULL) == 0);
    CHECK(broker == -1 && pid == 0);
    return 0;
}

static void nothing_to_keep(void **state)
{
    pid_t pid = fork();
    int status;

    (void)state;
    if (pid == 0)
        _exit(start_and_drop_twice());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity),
        cmocka_unit_test(zombie_is_gone),
        cmocka_unit_test(a_name_cannot_lie),
        cmocka_unit_test(memory_of_a_process),
        cmocka_unit_test(owner_is_checked),
        cmocka_unit_test(broker_opens_for_us),
        cmocka_unit_test(broker_dies_with_the_daemon),
        cmocka_unit_test(silent_broker),
        cmocka_unit_test(nothing_to_keep),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
