/* The lock beside the engines' socket. Happy path: open, flock, write the pid,
 * remove what a dead daemon left. Failure modes: another daemon holds it, or
 * the directory cannot be written. */
#include "daemon/lockfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int refuse(const struct kvf_lockfile *l, int fd, struct kvf_why *why)
{
    char text[32] = "";
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    long pid = n > 0 ? strtol(text, NULL, 10) : 0;

    return kvf_fail(why, KVF_BUSY,
                    "%s is served by another kvferryd (pid %ld): stop it, or "
                    "choose another worker or engine_endpoint",
                    l->socket, pid);
}

/* The file that is locked must be the one that stands at the path: the holder
 * before may have removed it between our open and our flock. */
static int same_file(int fd, const char *path)
{
    struct stat a, b;

    return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino &&
           a.st_dev == b.st_dev;
}

static int lock_it(struct kvf_lockfile *l, struct kvf_why *why)
{
    for (int tries = 0; tries < 16; tries++) {
        int fd = open(l->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

        if (fd < 0)
            return kvf_fail(why, KVF_DENIED, "cannot open %s: %s", l->path,
                            strerror(errno));
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            int rc = errno == EWOULDBLOCK
                         ? refuse(l, fd, why)
                         : kvf_fail(why, KVF_INTERNAL, "flock %s: %s", l->path,
                                    strerror(errno));

            close(fd);
            return rc;
        }
        if (same_file(fd, l->path)) {
            l->fd = fd;
            return 0;
        }
        close(fd);
    }
    return kvf_fail(why, KVF_BUSY, "%s changes hands all the time", l->path);
}

int kvf_lockfile_take(struct kvf_lockfile *l, const char *socket,
                      struct kvf_why *why)
{
    char text[32];
    struct stat st;
    int n, rc;

    l->fd = -1;
    if (strlen(socket) >= sizeof l->socket)
        return kvf_fail(why, KVF_INVALID, "ipc path is too long: %s", socket);
    snprintf(l->socket, sizeof l->socket, "%s", socket);
    snprintf(l->path, sizeof l->path, "%s.lock", socket);
    rc = lock_it(l, why);
    if (rc < 0)
        return rc;
    n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(l->fd, 0) != 0 || pwrite(l->fd, text, (size_t)n, 0) != n) {
        rc = kvf_fail(why, KVF_INTERNAL, "cannot write %s: %s", l->path,
                      strerror(errno));
        kvf_lockfile_drop(l);
        return rc;
    }
    if (lstat(socket, &st) == 0) {
        if (!S_ISSOCK(st.st_mode)) {
            rc = kvf_fail(why, KVF_INVALID, "%s is there and is no socket",
                          socket);
            l->socket[0] = '\0';
            kvf_lockfile_drop(l);
            return rc;
        }
        unlink(socket);
    }
    return 0;
}

void kvf_lockfile_drop(struct kvf_lockfile *l)
{
    if (l->fd < 0)
        return;
    if (l->socket[0] != '\0')
        unlink(l->socket);
    unlink(l->path);
    close(l->fd);
    l->fd = -1;
}
