/* Writes the sentence of a failure. Text may quote the old text of *why. */
#include "base/why.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int kvf_fail(struct kvf_why *why, enum kvf_status status, const char *fmt, ...)
{
    if (why != NULL) {
        char text[sizeof why->text];
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(text, sizeof text, fmt, ap);
        va_end(ap);
        why->status = status;
        memcpy(why->text, text, sizeof text);
    }
    return -(int)status;
}

int kvf_fail_prefix(struct kvf_why *why, const char *fmt, ...)
{
    char text[sizeof why->text];
    va_list ap;
    int n;

    if (why == NULL)
        return -(int)KVF_INTERNAL;
    va_start(ap, fmt);
    n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof text) {
        size_t left = sizeof text - (size_t)n;

        snprintf(text + n, left, ": %.*s", (int)(left > 3 ? left - 3 : 0),
                 why->text);
    }
    memcpy(why->text, text, sizeof text);
    return -(int)why->status;
}
