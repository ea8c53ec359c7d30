/* Sources: what the loop watches, and what it has to ask again.
 *
 * libevent's callback only marks (reactor.c tells why). */
#include "loop/reactor_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* Reading and writing are two events on one fd: libevent folds them into one
 * registration, so that a change of one costs one epoll_ctl(2). */
struct source_io {
    struct event *read, *write;
};

static void on_ready(evutil_socket_t fd, short what, void *arg)
{
    struct kvf_source *src = arg;

    (void)fd;
    src->wakeups++;
    if ((what & EV_READ) != 0)
        src->ready |= KVF_WANT_READ;
    if ((what & EV_WRITE) != 0)
        src->ready |= KVF_WANT_WRITE;
    kvf_source_kick(src);
}

/* Turns one of the two events on or off; it is made when first needed. */
static int watch(struct kvf_source *src, struct event **ev, short what, bool on)
{
    if (!on) {
        if (*ev != NULL)
            event_del(*ev);
        return 0;
    }
    if (*ev == NULL)
        *ev = event_new(src->reactor->base, src->fd, (short)(what | EV_PERSIST),
                        on_ready, src);
    return *ev != NULL ? event_add(*ev, NULL) : -1;
}

static int set_want(struct kvf_source *src, unsigned want)
{
    struct source_io *io = src->event;
    unsigned changed = src->want ^ want;
    int rc = 0;

    if ((changed & KVF_WANT_READ) != 0)
        rc |= watch(src, &io->read, EV_READ, (want & KVF_WANT_READ) != 0);
    if ((changed & KVF_WANT_WRITE) != 0)
        rc |= watch(src, &io->write, EV_WRITE, (want & KVF_WANT_WRITE) != 0);
    src->want = want;
    /* What is no longer wanted must not be reported late. */
    src->ready &= want;
    return rc;
}

int kvf_source_add(struct kvf_reactor *r, struct kvf_source *src,
                   const char *name, const struct kvf_source_ops *ops, int fd,
                   unsigned want, struct kvf_why *why)
{
    struct source_io *io = calloc(1, sizeof *io);

    if (io == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory to watch %s", name);
    *src = (struct kvf_source){
        .ops = ops, .name = name, .reactor = r, .fd = fd, .event = io};
    kvf_list_init(&src->ready_node);
    kvf_list_init(&src->touched_node);
    if (set_want(src, want) != 0) {
        int e = errno;

        kvf_source_remove(src);
        return kvf_fail(why, KVF_INTERNAL, "cannot watch %s (fd %d): %s", name,
                        fd, strerror(e));
    }
    kvf_source_touch(src);
    return 0;
}

void kvf_source_remove(struct kvf_source *src)
{
    struct source_io *io = src->event;

    if (src->reactor == NULL)
        return;
    if (io->read != NULL)
        event_free(io->read);
    if (io->write != NULL)
        event_free(io->write);
    free(io);
    src->event = NULL;
    kvf_list_unlink(&src->ready_node);
    kvf_list_unlink(&src->touched_node);
    src->reactor = NULL;
    src->want = src->ready = 0;
}

void kvf_source_want(struct kvf_source *src, unsigned want)
{
    if (src->reactor == NULL || src->want == want)
        return;
    if (set_want(src, want) != 0)
        kvf_log(KVF_LOG_ERROR, "LOOP", "cannot watch %s fd=%d: %s", src->name,
                src->fd, strerror(errno));
}

void kvf_source_touch(struct kvf_source *src)
{
    if (src->reactor != NULL && kvf_list_empty(&src->touched_node))
        kvf_list_push_back(&src->reactor->touched, &src->touched_node);
}

void kvf_source_kick(struct kvf_source *src)
{
    if (src->reactor != NULL && kvf_list_empty(&src->ready_node))
        kvf_list_push_back(&src->reactor->ready, &src->ready_node);
}
