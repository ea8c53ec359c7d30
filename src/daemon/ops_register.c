/* register: memory of an engine becomes a region.
 *
 * Happy path: the daemon opens the engine's descriptor through /proc itself,
 * checks it and replies. It may not look into a process with capabilities (an
 * engine run by root): that descriptor is asked of the fd broker, and the
 * request waits for its answer like any other that is answered later, while the
 * loop goes on. One question is out at a time, the others wait behind it.
 *
 * Failure modes: a broker that is slow or stopped costs the request its time
 * and nobody else anything; one that has ended refuses all that wait, and from
 * then on there is none. */
#include "daemon/engine.h"

#include "daemon/procwatch.h"
#include "memory/broker.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* Beyond what the broker takes on a busy machine, and less than clients wait.
 */
#define ANSWER_MS 4000

struct kvf_asks {
    struct kvf_server *server;
    struct kvf_source src;   /* the broker's socket */
    struct kvf_list waiting; /* in the order of their coming */
    bool out;                /* the first of them is asked, */
    uint64_t tag;            /* with this tag */
};

struct pending_register {
    struct kvf_pending pending;
    struct kvf_list node; /* in asks->waiting */
    struct kvf_timer timer;
    struct kvf_asks *asks;
    int fd;
    uint64_t size;
};

/* `link` as kvf_proc_open_memory takes it. */
static int add_region(struct kvf_server *s, struct kvf_session *ss, int link,
                      int fd, uint64_t size, struct kvf_region **out,
                      struct kvf_why *why)
{
    struct kvf_proc_memory m = {.pid = ss->pid,
                                .pidfd = kvf_procwatch_fd(ss->watch),
                                .fd = fd,
                                .uid = ss->uid,
                                .size = size};
    struct kvf_mapping *map;
    int mine, rc;

    rc = kvf_proc_open_memory(link, &m, &mine, why);
    if (rc < 0)
        return rc;
    rc = kvf_map_fd(s->maps, mine, size, true, &map, why);
    if (rc < 0) {
        close(mine);
        return rc;
    }
    if (map->dev == s->own_map->dev && map->ino == s->own_map->ino)
        /* As a region the same bytes would have two owners, and a put of it
         * could publish what the allocator gives away. */
        rc = kvf_fail(why, KVF_DENIED,
                      "that is the pool of this daemon: use alloc");
    else
        rc = kvf_region_add(s->buffers, map, size, ss, out, why);
    if (rc < 0) {
        kvf_map_release(map);
        return rc;
    }
    kvf_list_push_back(&ss->regions, &(*out)->owner_node);
    return 0;
}

static void begin_reply(struct kvf_server *s, const struct kvf_to *to,
                        const struct kvf_region *r)
{
    kvf_reply_begin(s, to, KVF_OK, NULL);
    kvf_reply_u64(s, "region", r->id);
}

/* ---- asked of the broker ------------------------------------------------ */

static struct pending_register *first(const struct kvf_asks *a)
{
    struct kvf_list *n = kvf_list_first(&a->waiting);

    return n == NULL ? NULL
                     : kvf_container_of(n, struct pending_register, node);
}

/* Its question, if it is out, is nobody's from now on. */
static void leave(struct pending_register *p)
{
    struct kvf_asks *a = p->asks;

    if (p == first(a))
        a->out = false;
    kvf_list_unlink(&p->node);
    kvf_timer_cancel(a->server->sched, &p->timer);
}

static void refuse(struct pending_register *p, enum kvf_status status,
                   const char *text)
{
    struct kvf_to to;

    leave(p);
    kvf_pending_to(&p->pending, &to);
    kvf_reply_begin(p->asks->server, &to, status, text);
    (void)kvf_pending_send(&p->pending, NULL, 0, 0);
    kvf_pending_end(&p->pending);
    free(p);
}

static void finish(struct pending_register *p, int link)
{
    struct kvf_server *s = p->asks->server;
    struct kvf_region *r;
    struct kvf_why why;
    struct kvf_to to;

    /* Its session lives: the end of a session cancels what was asked in it. */
    if (add_region(s, p->pending.session, link, p->fd, p->size, &r, &why) < 0) {
        refuse(p, why.status, why.text);
        return;
    }
    leave(p);
    kvf_pending_to(&p->pending, &to);
    begin_reply(s, &to, r);
    kvf_pending_give(&p->pending, r->id);
    kvf_pending_end(&p->pending);
    free(p);
}

static void ask_next(struct kvf_asks *a)
{
    struct pending_register *p;

    while (!a->out && (p = first(a)) != NULL) {
        int rc = kvf_broker_ask(a->server->broker, ++a->tag,
                                p->pending.session->pid, p->fd);

        if (rc < 0)
            finish(p, rc);
        else
            a->out = true;
    }
}

static void on_late(struct kvf_timer *t)
{
    struct pending_register *p =
        kvf_container_of(t, struct pending_register, timer);
    struct kvf_asks *a = p->asks;

    finish(p, -ETIMEDOUT);
    ask_next(a);
}

static void cancel_register(struct kvf_pending *pending, enum kvf_status status,
                            const char *text)
{
    struct pending_register *p =
        kvf_container_of(pending, struct pending_register, pending);
    struct kvf_asks *a = p->asks;

    refuse(p, status, text);
    ask_next(a);
}

static void broker_gone(struct kvf_asks *a)
{
    struct pending_register *p;

    kvf_log(KVF_LOG_WARN, "ENGINE",
            "the helper process kvferryd-fd has ended: engines with "
            "capabilities (run by root) cannot register memory any more; "
            "restart the daemon");
    kvf_source_remove(&a->src);
    close(a->server->broker);
    a->server->broker = -1;
    while ((p = first(a)) != NULL)
        finish(p, -EPIPE);
}

static void on_answers(struct kvf_source *src, unsigned ready, unsigned budget)
{
    struct kvf_asks *a = kvf_container_of(src, struct kvf_asks, src);
    uint64_t tag;
    int link, rc = 0;

    (void)ready;
    for (unsigned i = 0; i < budget && rc == 0; i++) {
        rc = kvf_broker_answer(a->server->broker, &tag, &link);
        if (rc == 0 && a->out && tag == a->tag)
            finish(first(a), link);
        else if (rc == 0 && link >= 0)
            close(link);
    }
    if (rc == 0 || rc == -EAGAIN)
        ask_next(a);
    else
        broker_gone(a);
}

static const struct kvf_source_ops source_ops = {.drain = on_answers};

static int ask(struct kvf_call *call, struct kvf_why *why)
{
    struct kvf_asks *a = call->s->asks;
    struct pending_register *p = calloc(1, sizeof *p);
    int rc;

    if (p == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    rc = kvf_pending_begin(&p->pending, call, cancel_register, why);
    if (rc < 0) {
        free(p);
        return rc;
    }
    p->asks = a;
    p->fd = (int)call->req->u.reg.fd;
    p->size = call->req->u.reg.size;
    kvf_list_init(&p->node);
    kvf_list_push_back(&a->waiting, &p->node);
    kvf_timer_init(&p->timer, on_late);
    kvf_timer_set(call->s->sched, &p->timer,
                  call->s->sched->now_ns + ANSWER_MS * KVF_NS_PER_MS);
    ask_next(a);
    return 0;
}

int kvf_asks_create(struct kvf_server *s, struct kvf_why *why)
{
    struct kvf_asks *a = calloc(1, sizeof *a);

    if (a == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    s->asks = a;
    a->server = s;
    kvf_list_init(&a->waiting);
    return s->broker < 0
               ? 0
               : kvf_source_add(s->reactor, &a->src, "fd-broker", &source_ops,
                                s->broker, KVF_WANT_READ, why);
}

void kvf_asks_destroy(struct kvf_asks *a)
{
    if (a == NULL)
        return;
    kvf_source_remove(&a->src);
    free(a);
}

/* ---- the operation ------------------------------------------------------ */

void kvf_op_register(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    struct kvf_session *ss = kvf_call_memory(call);
    int fd = (int)call->req->u.reg.fd, link, rc;
    struct kvf_region *r;
    struct kvf_why why;

    if (ss == NULL)
        return;
    link = kvf_proc_link(ss->pid, fd);
    if ((link == -EACCES || link == -EPERM) && s->broker >= 0) {
        rc = ask(call, &why);
    } else {
        rc = add_region(s, ss, link, fd, call->req->u.reg.size, &r, &why);
        if (rc == 0) {
            begin_reply(s, &call->to, r);
            kvf_reply_give(s, &call->to, r->id);
        }
    }
    if (rc < 0)
        kvf_call_why(call, &why);
}
