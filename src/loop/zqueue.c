/* Lines of waiting messages in a hash table by routing id. A line exists only
 * while it has messages, so an idle queue holds no memory. */
#include "loop/zqueue.h"

#include <stdlib.h>
#include <string.h>

/* uthash ends the process by default when memory is gone; here the entry is
 * just not added, and hh.tbl tells. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

struct kvf_zline {
    UT_hash_handle hh;
    struct kvf_list pending;
    size_t len;            /* of pending */
    unsigned char id[256]; /* libzmq's bound is 255 */
};

void kvf_zqueue_init(struct kvf_zqueue *q)
{
    *q = (struct kvf_zqueue){.lines = NULL};
    kvf_list_init(&q->dead);
}

static struct kvf_zline *find(const struct kvf_zqueue *q, const void *id,
                              size_t len)
{
    struct kvf_zline *line = NULL;

    if (q->lines != NULL)
        HASH_FIND(hh, q->lines, id, len, line);
    return line;
}

bool kvf_zqueue_has(const struct kvf_zqueue *q, const void *id, size_t len)
{
    return find(q, id, len) != NULL;
}

size_t kvf_zqueue_len(const struct kvf_zqueue *q, const void *id, size_t len)
{
    const struct kvf_zline *line = q->len != 0 ? find(q, id, len) : NULL;

    return line != NULL ? line->len : 0;
}

static void drop_line(struct kvf_zqueue *q, struct kvf_zline *line)
{
    HASH_DEL(q->lines, line);
    free(line);
}

static struct kvf_zpending *copy(const struct kvf_frame *frames, unsigned n,
                                 uint64_t cookie)
{
    size_t head = sizeof(struct kvf_zpending) + n * sizeof *frames;
    size_t bytes = head;
    struct kvf_zpending *p;
    char *at;

    for (unsigned i = 0; i < n; i++)
        bytes += frames[i].size;
    p = malloc(bytes);
    if (p == NULL)
        return NULL;
    kvf_list_init(&p->node);
    p->cookie = cookie;
    p->n = n;
    at = (char *)p + head;
    for (unsigned i = 0; i < n; i++) {
        if (frames[i].size != 0)
            memcpy(at, frames[i].data, frames[i].size);
        p->frame[i] = (struct kvf_frame){at, frames[i].size};
        at += frames[i].size;
    }
    return p;
}

static struct kvf_zline *add_line(struct kvf_zqueue *q, const void *id,
                                  size_t len)
{
    struct kvf_zline *line = calloc(1, sizeof *line);

    if (line == NULL || len >= sizeof line->id) {
        free(line);
        return NULL;
    }
    memcpy(line->id, id, len);
    kvf_list_init(&line->pending);
    HASH_ADD(hh, q->lines, id, len, line);
    if (line->hh.tbl == NULL) {
        free(line);
        return NULL;
    }
    return line;
}

int kvf_zqueue_push(struct kvf_zqueue *q, const struct kvf_frame *frames,
                    unsigned n, uint64_t cookie)
{
    struct kvf_zpending *p = copy(frames, n, cookie);
    struct kvf_zline *line;

    if (p == NULL)
        return -(int)KVF_NO_SPACE;
    line = find(q, frames[0].data, frames[0].size);
    if (line == NULL)
        line = add_line(q, frames[0].data, frames[0].size);
    if (line == NULL) {
        free(p);
        return -(int)KVF_NO_SPACE;
    }
    kvf_list_push_back(&line->pending, &p->node);
    line->len++;
    q->len++;
    return 0;
}

/* Counts and moves the line's messages to the dead list. */
static size_t bury(struct kvf_zqueue *q, struct kvf_zline *line)
{
    struct kvf_list *n;
    size_t moved = 0;

    while ((n = kvf_list_pop(&line->pending)) != NULL) {
        kvf_list_push_back(&q->dead, n);
        q->len--;
        moved++;
    }
    return moved;
}

size_t kvf_zqueue_flush(struct kvf_zqueue *q,
                        enum kvf_zsent (*send)(void *arg,
                                               const struct kvf_zpending *p),
                        void *arg)
{
    struct kvf_zline *line, *next;
    size_t done = 0;

    for (line = q->lines; line != NULL; line = next) {
        struct kvf_list *n;

        next = line->hh.next;
        while ((n = kvf_list_first(&line->pending)) != NULL) {
            struct kvf_zpending *p =
                kvf_container_of(n, struct kvf_zpending, node);
            enum kvf_zsent sent = send(arg, p);

            if (sent == KVF_ZSENT_FULL)
                break;
            if (sent == KVF_ZSENT_GONE) {
                done += bury(q, line);
                break;
            }
            kvf_list_unlink(n);
            line->len--;
            free(p);
            q->len--;
            done++;
        }
        if (kvf_list_empty(&line->pending))
            drop_line(q, line);
    }
    return done;
}

size_t kvf_zqueue_give_up(struct kvf_zqueue *q, const void *id, size_t len)
{
    struct kvf_zline *line = find(q, id, len);
    size_t moved = 0;

    if (line != NULL) {
        moved = bury(q, line);
        drop_line(q, line);
    }
    return moved;
}

bool kvf_zqueue_pop_dead(struct kvf_zqueue *q, uint64_t *cookie)
{
    struct kvf_list *n = kvf_list_pop(&q->dead);
    struct kvf_zpending *p;

    if (n == NULL)
        return false;
    p = kvf_container_of(n, struct kvf_zpending, node);
    *cookie = p->cookie;
    free(p);
    return true;
}

void kvf_zqueue_fini(struct kvf_zqueue *q)
{
    struct kvf_zline *line, *next;
    uint64_t cookie;

    for (line = q->lines; line != NULL; line = next) {
        next = line->hh.next;
        bury(q, line);
        drop_line(q, line);
    }
    while (kvf_zqueue_pop_dead(q, &cookie))
        ;
}
