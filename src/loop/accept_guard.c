/* accept4 for this program and the libraries in it.
 *
 * Happy path: the system call, nothing else. Out of descriptors (EMFILE,
 * ENFILE): the one kept in reserve is given up, the waiting connection is
 * accepted in its place and closed at once, and the caller is told
 * ECONNABORTED, as if the client had gone away. So the client sees a closed
 * connection instead of silence, the listener's queue gets shorter, a
 * level-triggered poll does not spin, and libzmq, which takes EMFILE on an ipc
 * listener for a bug of its own and aborts, goes on.
 *
 * The name accept4 is resolved to this function because an executable comes
 * first in the search order of the dynamic linker; src/daemon/meson.build asks
 * for it to be exported.
 *
 * Failure modes: another thread may take the number between giving up the
 * reserve and accepting. Then nothing is refused this time, and the reserve is
 * taken again as soon as there is one. */
#include "loop/accept_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Declared here under another C name: the headers' declaration of accept4 has
 * a transparent union that a definition cannot repeat portably. */
int guarded_accept4(int fd, struct sockaddr *addr, socklen_t *len,
                    int flags) __asm__("accept4")
    __attribute__((visibility("default")));

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int base = -1;    /* /dev/null; `reserve` is a copy of it */
static int reserve = -1; /* under the lock */
static atomic_uint_fast64_t refused;
static atomic_bool missing; /* the reserve was lost to another thread */

static int raw_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    return (int)syscall(SYS_accept4, fd, addr, len, flags);
}

static void take_reserve(void)
{
    if (reserve < 0 && base >= 0)
        reserve = fcntl(base, F_DUPFD_CLOEXEC, 0);
    atomic_store(&missing, reserve < 0 && base >= 0);
}

/* Under the lock. The accepted number becomes the reserve in one step, so that
 * nobody can take it in between; that also closes the connection. */
static void refuse_one(int fd)
{
    int got;

    take_reserve();
    if (reserve < 0)
        return;
    close(reserve);
    reserve = -1;
    got = raw_accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (got >= 0) {
        atomic_fetch_add(&refused, 1);
        if (dup3(base, got, O_CLOEXEC) == got)
            reserve = got;
        else
            close(got);
    }
    take_reserve();
}

int guarded_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    int got = raw_accept4(fd, addr, len, flags);

    if (got >= 0 && !atomic_load_explicit(&missing, memory_order_relaxed))
        return got;
    if (got < 0 && errno != EMFILE && errno != ENFILE && errno != ENOMEM &&
        errno != ENOBUFS)
        return got;
    pthread_mutex_lock(&lock);
    if (got >= 0)
        take_reserve();
    else
        refuse_one(fd);
    pthread_mutex_unlock(&lock);
    if (got < 0)
        errno = ECONNABORTED;
    return got;
}

int kvf_accept_guard_init(void)
{
    int rc;

    pthread_mutex_lock(&lock);
    if (base < 0)
        base = open("/dev/null", O_RDONLY | O_CLOEXEC);
    take_reserve();
    rc = reserve >= 0 ? 0 : -1;
    pthread_mutex_unlock(&lock);
    return rc;
}

uint64_t kvf_accept_guard_refused(void)
{
    return atomic_load(&refused);
}
