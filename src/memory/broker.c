/* The fd broker: a fork that keeps the capabilities which the daemon drops.
 *
 * Happy path: the daemon asks for (pid, fd), the broker opens that link with
 * O_PATH and sends the descriptor back. It ends at EOF of its socket, so also
 * after kill -9 of the daemon.
 *
 * Failure modes: the link cannot be opened (its errno goes back); a broker that
 * is slow or dead makes nobody wait here: there is no answer then, or an end.
 */
#include "memory/broker.h"
#include "memory/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NAME "kvferryd-fd"

struct caps {
    struct __user_cap_data_struct d[_LINUX_CAPABILITY_U32S_3];
};

static int get_caps(struct caps *c)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};

    return (int)syscall(SYS_capget, &h, c->d);
}

static int set_caps(const struct caps *c)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};

    return (int)syscall(SYS_capset, &h, c->d);
}

int kvf_drop_capabilities(struct kvf_why *why)
{
    struct caps none = {0}, now;

    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (unsigned long cap = 0; cap < 64; cap++)
        (void)prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    if (set_caps(&none) != 0 || get_caps(&now) != 0)
        return kvf_fail(why, KVF_INTERNAL, "dropping capabilities: %s",
                        strerror(errno));
    for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
        if (now.d[i].permitted | now.d[i].effective | now.d[i].inheritable)
            return kvf_fail(why, KVF_INTERNAL,
                            "capabilities are still there after the drop");
    }
    if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 0)
        return kvf_fail(why, KVF_INTERNAL, "prctl(PR_SET_DUMPABLE): %s",
                        strerror(errno));
    return 0;
}

/* ---- the helper's side -------------------------------------------------- */

/* The kernel shows the command line from where it lies in memory; a fork has a
 * copy of its own to write to. */
static void rename_process(void)
{
    char line[1024], *p;
    unsigned long start = 0, end = 0;
    FILE *f;

    (void)prctl(PR_SET_NAME, NAME, 0, 0, 0);
    f = fopen("/proc/self/stat", "re");
    if (f == NULL)
        return;
    if (fgets(line, sizeof line, f) == NULL)
        line[0] = '\0';
    fclose(f);
    p = strrchr(line, ')');
    for (int field = 2; p != NULL && field < 48; field++)
        p = strchr(p + 1, ' ');
    if (p == NULL || sscanf(p, "%lu %lu", &start, &end) != 2)
        return;
    if (start != 0 && end > start + 1) {
        char *args = (char *)start;
        size_t room = end - start, len = strlen(NAME);

        memset(args, 0, room);
        memcpy(args, NAME, len < room ? len : room - 1);
    }
}

/* Of the capabilities, those that looking into a process can need. Without
 * them it keeps what there is: the kernel compares whole sets then. */
static void keep_what_is_needed(void)
{
    const uint32_t want = 1u << CAP_SYS_PTRACE | 1u << CAP_DAC_READ_SEARCH;
    struct caps now;

    if (get_caps(&now) != 0 || !(now.d[0].permitted & 1u << CAP_SYS_PTRACE))
        return;
    now.d[0].permitted &= want;
    now.d[0].effective = now.d[0].permitted;
    now.d[0].inheritable = now.d[1].inheritable = 0;
    now.d[1].permitted = now.d[1].effective = 0;
    (void)set_caps(&now);
}

static int open_link(pid_t pid, int fd)
{
    char path[64];
    int got;

    if (pid <= 0 || fd < 0)
        return -EINVAL;
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)pid, fd);
    got = open(path, O_PATH | O_CLOEXEC);
    return got < 0 ? -errno : got;
}

static void answer(int sock, const struct kvf_broker_request *req)
{
    struct kvf_broker_reply reply = {.tag = req->tag};
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {&reply, sizeof reply};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    int fd = open_link(req->pid, req->fd);

    if (fd < 0) {
        reply.err = -fd;
    } else {
        struct cmsghdr *c;

        memset(&control, 0, sizeof control);
        msg.msg_control = control.buf;
        msg.msg_controllen = sizeof control.buf;
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    /* A daemon that does not read is dead or stopped; it asks again. */
    (void)sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (fd >= 0)
        close(fd);
}

static void serve(int sock)
{
    struct kvf_broker_request req;
    ssize_t n;

    for (;;) {
        n = recv(sock, &req, sizeof req, 0);
        if (n == 0 || (n < 0 && errno != EINTR))
            _exit(0);
        if (n == (ssize_t)sizeof req)
            answer(sock, &req);
    }
}

static _Noreturn void helper(int sock, pid_t parent)
{
    sigset_t none;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != parent)
        _exit(0);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    if (sock > 0)
        (void)syscall(SYS_close_range, 0u, (unsigned)sock - 1, 0u);
    (void)syscall(SYS_close_range, (unsigned)sock + 1, ~0u, 0u);
    rename_process();
    keep_what_is_needed();
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    serve(sock);
    _exit(0);
}

int kvf_broker_start(int *broker, pid_t *pid, struct kvf_why *why)
{
    struct caps now;
    pid_t self = getpid(), child;
    int sv[2];

    if (get_caps(&now) != 0 || (now.d[0].permitted | now.d[1].permitted) == 0) {
        *broker = -1;
        *pid = 0;
        return 0;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) != 0)
        return kvf_fail(why, KVF_INTERNAL, "fd broker: socketpair: %s",
                        strerror(errno));
    child = fork();
    if (child < 0) {
        int err = errno;

        close(sv[0]);
        close(sv[1]);
        return kvf_fail(why, KVF_INTERNAL, "fd broker: fork: %s",
                        strerror(err));
    }
    if (child == 0)
        helper(sv[1], self);
    close(sv[1]);
    *broker = sv[0];
    *pid = child;
    return 0;
}

/* ---- the daemon's side -------------------------------------------------- */

int kvf_broker_ask(int broker, uint64_t tag, pid_t pid, int fd)
{
    struct kvf_broker_request req = {tag, pid, fd};

    if (send(broker, &req, sizeof req, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return -errno;
    return 0;
}

int kvf_broker_answer(int broker, uint64_t *tag, int *link)
{
    struct kvf_broker_reply reply;
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {&reply, sizeof reply};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof control.buf};
    struct cmsghdr *c;
    ssize_t n = recvmsg(broker, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n < 0)
        return errno == EINTR ? -EAGAIN : -errno;
    if (n != (ssize_t)sizeof reply)
        return -EPIPE;
    *tag = reply.tag;
    /* No error and no descriptor: the kernel could not install it. */
    *link = reply.err != 0 ? -reply.err : -EMFILE;
    c = CMSG_FIRSTHDR(&msg);
    if (c != NULL && c->cmsg_level == SOL_SOCKET &&
        c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof *link))
        memcpy(link, CMSG_DATA(c), sizeof *link);
    return 0;
}
