/* Intrusive doubly linked list. A node is always initialised; unlinking a node
 * that is in no list does nothing, so teardown code needs no flags. */
#ifndef KVF_BASE_LIST_H
#define KVF_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct kvf_list {
    struct kvf_list *prev, *next;
};

#define kvf_container_of(ptr, type, member)                                    \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

static inline void kvf_list_init(struct kvf_list *l)
{
    l->prev = l->next = l;
}

static inline bool kvf_list_empty(const struct kvf_list *l)
{
    return l->next == l;
}

static inline void kvf_list_unlink(struct kvf_list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    kvf_list_init(node);
}

static inline void kvf_list_push_back(struct kvf_list *head,
                                      struct kvf_list *node)
{
    node->prev = head->prev;
    node->next = head;
    head->prev->next = node;
    head->prev = node;
}

static inline void kvf_list_push_front(struct kvf_list *head,
                                       struct kvf_list *node)
{
    kvf_list_push_back(head->next, node);
}

/* First node, or NULL when the list is empty; it stays in the list. */
static inline struct kvf_list *kvf_list_first(const struct kvf_list *head)
{
    return head->next == head ? NULL : head->next;
}

/* Takes the first node out, or NULL. */
static inline struct kvf_list *kvf_list_pop(struct kvf_list *head)
{
    struct kvf_list *n = kvf_list_first(head);

    if (n != NULL)
        kvf_list_unlink(n);
    return n;
}

/* Moves all of `from` to the end of `to`. */
static inline void kvf_list_splice(struct kvf_list *to, struct kvf_list *from)
{
    if (kvf_list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    kvf_list_init(from);
}

#define kvf_list_for_each(it, head)                                            \
    for (struct kvf_list *it = (head)->next; it != (head); it = it->next)

/* Survives unlinking of `it` itself, not of its neighbours. */
#define kvf_list_for_each_safe(it, head)                                       \
    for (struct kvf_list *it = (head)->next, *it##_next = it->next;            \
         it != (head); it = it##_next, it##_next = it->next)

#endif
