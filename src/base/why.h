/* Why something failed: a status, and one sentence that a person can act on.
 *
 * Convention of the whole tree: a function that can fail returns 0 or a
 * negative `enum kvf_status` and takes `struct kvf_why *why` last (may be
 * NULL). The place that first knows the cause writes the text; callers pass it
 * on and do not log it again. Outputs are written only on success. */
#ifndef KVF_BASE_WHY_H
#define KVF_BASE_WHY_H

#include "kvferry/status.h"

struct kvf_why {
    enum kvf_status status;
    char text[248];
};

/* Fills *why (if not NULL; text is cut, never overrun) and returns -status, so
 * that `return kvf_fail(why, KVF_NO_SPACE, "...")` is one line. */
int kvf_fail(struct kvf_why *why, enum kvf_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "what: " before the text that *why already has. Returns -why->status. */
int kvf_fail_prefix(struct kvf_why *why, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
