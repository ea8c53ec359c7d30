/* Preloaded into a daemon by test_each_step.py: when the daemon writes a log
 * line that contains $KILL_AT, the process whose pid is in the file $KILL_PID
 * ("self": the daemon) is killed before the write returns, so at exactly that
 * step, once. */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

typedef ssize_t (*write_fn)(int, const void *, size_t);

static pid_t victim(const char *path)
{
    char text[32] = "";
    ssize_t n;
    int fd;

    if (strcmp(path, "self") == 0)
        return getpid();
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0)
        close(fd);
    return n > 0 ? atoi(text) : 0;
}

ssize_t write(int fd, const void *p, size_t n)
{
    static bool done;
    static write_fn next;
    const char *at = getenv("KILL_AT"), *path = getenv("KILL_PID");
    ssize_t rc;
    pid_t pid;

    if (next == NULL)
        *(void **)&next = dlsym(RTLD_NEXT, "write");
    rc = next(fd, p, n);
    if (done || at == NULL || path == NULL ||
        memmem(p, n, at, strlen(at)) == NULL)
        return rc;
    pid = victim(path);
    if (pid > 0) {
        done = true;
        kill(pid, SIGKILL);
    }
    return rc;
}
