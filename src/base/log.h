/* The log: one line an event, `time level [TAG] words key=value`.
 *
 * Process-wide sink (one of the two globals of the project). One thread. A line
 * is written with one write(2); if the sink is full or gone the line is dropped
 * and counted, because a log must never block the loop. Lines longer than
 * KVF_LOG_LINE bytes are cut and end in "...". */
#ifndef KVF_BASE_LOG_H
#define KVF_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/why.h"

#define KVF_LOG_LINE 4096

enum kvf_log_level {
    KVF_LOG_ERROR,
    KVF_LOG_WARN,
    KVF_LOG_INFO,
    KVF_LOG_DEBUG,
    KVF_LOG_TRACE
};

/* `path` NULL or "stderr" is standard error (with journald priority prefixes
 * and without the time when stderr is the journal: $JOURNAL_STREAM matches its
 * device and inode). Otherwise appended to that file, created 0640. */
int kvf_log_open(const char *path, enum kvf_log_level level,
                 struct kvf_why *why);
/* Opens the same path again (SIGHUP, after a rotation) and takes a new level.
 * On failure the old sink stays. */
int kvf_log_reopen(enum kvf_log_level level, struct kvf_why *why);
void kvf_log_close(void);

/* Cheap test before building an expensive line. */
bool kvf_log_on(enum kvf_log_level level);

/* tag: "KVF PUT", "LOOP", ... printed as [tag]. */
void kvf_log(enum kvf_log_level level, const char *tag, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* For lines that somebody outside can provoke: at most `burst` lines a second
 * for this site; the next one that passes says how many were left out. Embed
 * one zeroed struct per site (static is fine). now_ns: monotonic. */
struct kvf_log_limit {
    uint64_t window_start_ns;
    unsigned in_window, dropped;
};
bool kvf_log_allow(struct kvf_log_limit *l, uint64_t now_ns, unsigned burst);
void kvf_log_limited(struct kvf_log_limit *l, uint64_t now_ns,
                     enum kvf_log_level level, const char *tag, const char *fmt,
                     ...) __attribute__((format(printf, 5, 6)));

/* A key as it may stand in a log line: spaces, '=', '"', '\\' and control bytes
 * (and bytes that are not valid UTF-8) become \xHH; cut with "..." to fit `cap`
 * bytes with its NUL. Returns out. */
const char *kvf_log_key(char *out, size_t cap, const void *key, size_t len);

/* Lines dropped because the sink did not take them. */
uint64_t kvf_log_lost(void);

/* Tests: every line also goes here (NULL = off). */
void kvf_log_tap(void (*fn)(void *arg, const char *line), void *arg);

int kvf_log_parse_level(const char *name, enum kvf_log_level *out);
#endif
