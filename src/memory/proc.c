/* Processes beyond the reuse of their pid, and the memory they register.
 *
 * Happy path: /proc/<pid> is opened once, so that all that is read below it is
 * of one process; its start time is compared before and after pidfd_open.
 *
 * Failure modes: the process is gone or is another one now, it is not visible
 * here, or what it offers is not memory that is safe to map. */
#include "memory/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <unistd.h>

static int gone(pid_t pid, struct kvf_why *why)
{
    return kvf_fail(why, KVF_NOT_FOUND, "process %ld is gone", (long)pid);
}

/* Directory of the process: stays bound to it when the pid is used again. */
static int open_dir(pid_t pid, int *dir, struct kvf_why *why)
{
    char path[32];
    int fd;

    if (pid <= 0)
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "the process is not visible here (other PID "
                        "namespace)");
    snprintf(path, sizeof path, "/proc/%ld", (long)pid);
    fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        *dir = fd;
        return 0;
    }
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
        return kvf_fail(why, KVF_BUSY, "opening %s: %s", path, strerror(errno));
    if (kill(pid, 0) == 0 || errno == EPERM)
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "process %ld is hidden in /proc here", (long)pid);
    return gone(pid, why);
}

/* Field 22. The name (field 2) may hold anything, so count after its ')'. */
static int read_start(int dir, pid_t pid, uint64_t *start, struct kvf_why *why)
{
    char line[1024], *p;
    ssize_t n;
    int fd = openat(dir, "stat", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return gone(pid, why);
    n = read(fd, line, sizeof line - 1);
    close(fd);
    if (n <= 0)
        return gone(pid, why);
    line[n] = '\0';
    p = strrchr(line, ')');
    for (int field = 2; p != NULL && field < 22; field++)
        p = strchr(p + 1, ' ');
    if (p == NULL)
        return kvf_fail(why, KVF_INTERNAL, "cannot read /proc/%ld/stat",
                        (long)pid);
    *start = strtoull(p, NULL, 10);
    return 0;
}

int kvf_proc_start(pid_t pid, uint64_t *start, struct kvf_why *why)
{
    int dir = -1, rc = open_dir(pid, &dir, why);

    if (rc != 0)
        return rc;
    rc = read_start(dir, pid, start, why);
    close(dir);
    return rc;
}

static int check_start(int dir, const struct kvf_proc_id *id,
                       struct kvf_why *why)
{
    uint64_t start;
    int rc = read_start(dir, id->pid, &start, why);

    if (rc != 0)
        return rc;
    if (id->start != 0 && id->start != start)
        return kvf_fail(why, KVF_NOT_FOUND, "pid %ld is another process by now",
                        (long)id->pid);
    return 0;
}

static int open_in(int dir, const struct kvf_proc_id *id, int *pidfd,
                   uid_t *uid, struct kvf_why *why)
{
    struct stat st;
    int fd, rc = check_start(dir, id, why);

    if (rc != 0)
        return rc;
    fd = pidfd_open(id->pid, 0); /* close-on-exec by definition */
    if (fd < 0) {
        if (errno == ENOSYS)
            return kvf_fail(why, KVF_UNSUPPORTED,
                            "this kernel has no pidfd_open (Linux 5.3)");
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
            return kvf_fail(why, KVF_BUSY, "pidfd_open: %s", strerror(errno));
        return gone(id->pid, why); /* or a thread, which has no session */
    }
    /* The directory still answers: the pid was not given away in between. */
    rc = check_start(dir, id, why);
    if (rc == 0 && (fstat(dir, &st) != 0 || kvf_proc_gone(fd)))
        rc = gone(id->pid, why);
    if (rc != 0) {
        close(fd);
        return rc;
    }
    *pidfd = fd;
    *uid = st.st_uid;
    return 0;
}

int kvf_proc_open(const struct kvf_proc_id *id, int *pidfd, uid_t *uid,
                  struct kvf_why *why)
{
    int dir = -1, rc = open_dir(id->pid, &dir, why);

    if (rc != 0)
        return rc;
    rc = open_in(dir, id, pidfd, uid, why);
    close(dir);
    return rc;
}

bool kvf_proc_gone(int pidfd)
{
    struct pollfd p = {pidfd, POLLIN, 0};
    int n;

    do
        n = poll(&p, 1, 0);
    while (n < 0 && errno == EINTR);
    return n > 0;
}

/* ---- memory of a process ------------------------------------------------ */

int kvf_proc_link(pid_t pid, int fd)
{
    char path[64];
    int got;

    if (pid <= 0 || fd < 0)
        return -EBADF;
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)pid, fd);
    got = open(path, O_PATH | O_CLOEXEC);
    return got >= 0 ? got : -errno;
}

/* Looks before opening: opening a device or a pipe could have effects. */
static int reopen(int opath, uid_t uid, int *out, struct kvf_why *why)
{
    char link[64];
    struct stat st;
    int fd;

    if (fstat(opath, &st) != 0)
        return kvf_fail(why, KVF_DENIED, "fstat: %s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return kvf_fail(why, KVF_DENIED,
                        "the fd is not a memfd (not a regular file)");
    if (st.st_uid != uid)
        return kvf_fail(why, KVF_DENIED,
                        "the memory belongs to uid %lu, the client is %lu",
                        (unsigned long)st.st_uid, (unsigned long)uid);
    snprintf(link, sizeof link, "/proc/self/fd/%d", opath);
    fd = open(link, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return kvf_fail(why, KVF_DENIED, "opening the memory for writing: %s",
                        strerror(errno));
    *out = fd;
    return 0;
}

static int check_memory(int fd, uint64_t size, struct kvf_why *why)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return kvf_fail(why, KVF_DENIED,
                        "the memory is not sealed against shrinking "
                        "(memfd_create with MFD_ALLOW_SEALING, then "
                        "F_ADD_SEALS F_SEAL_SHRINK)");
    if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
        return kvf_fail(why, KVF_DENIED,
                        "the memory is sealed against writing");
    if (fstat(fd, &st) != 0)
        return kvf_fail(why, KVF_DENIED, "fstat: %s", strerror(errno));
    if (size == 0 || st.st_size < 0 || (uint64_t)st.st_size < size)
        return kvf_fail(why, KVF_DENIED,
                        "the memory has %lld bytes, %llu were named",
                        (long long)st.st_size, (unsigned long long)size);
    return 0;
}

int kvf_proc_open_memory(int link, const struct kvf_proc_memory *m, int *out,
                         struct kvf_why *why)
{
    int mem = -1, rc;

    if (link < 0)
        return kvf_fail(why, KVF_DENIED, "fd %d of process %ld: %s", m->fd,
                        (long)m->pid, strerror(-link));
    rc = reopen(link, m->uid, &mem, why);
    close(link);
    if (rc != 0)
        return rc;
    rc = check_memory(mem, m->size, why);
    /* Last: while it lives, its pid was its own all the time. */
    if (rc == 0 && kvf_proc_gone(m->pidfd))
        rc = kvf_fail(why, KVF_DENIED, "process %ld has ended", (long)m->pid);
    if (rc != 0) {
        close(mem);
        return rc;
    }
    *out = mem;
    return 0;
}
