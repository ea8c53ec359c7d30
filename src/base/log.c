/* The log: a line is put together in a buffer on the stack, made one line by
 * escaping control bytes, and written with one write(2). A sink that would
 * block, or is gone, loses the line; the loss is counted, never waited for. */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/utf8.h"

static const char *const level_names[] = {"error", "warn", "info", "debug",
                                          "trace"};
/* syslog's numbers, as sd-daemon(3) wants them. */
static const char level_priority[] = {'3', '4', '6', '7', '7'};

static struct {
    int fd;
    bool own; /* fd is ours to close */
    bool journal;
    bool regular; /* a file never blocks in the sense of poll(2) */
    enum kvf_log_level level;
    char path[PATH_MAX];
    uint64_t lost;
    void (*tap)(void *arg, const char *line);
    void *tap_arg;
} sink = {.fd = STDERR_FILENO, .level = KVF_LOG_INFO};

static bool stderr_is_journal(void)
{
    const char *env = getenv("JOURNAL_STREAM");
    unsigned long long dev, ino;
    struct stat st;

    return env != NULL && sscanf(env, "%llu:%llu", &dev, &ino) == 2 &&
           fstat(STDERR_FILENO, &st) == 0 &&
           (unsigned long long)st.st_dev == dev &&
           (unsigned long long)st.st_ino == ino;
}

static void take_sink(int fd, bool own, enum kvf_log_level level)
{
    struct stat st;

    if (sink.own)
        close(sink.fd);
    sink.fd = fd;
    sink.own = own;
    sink.level = level;
    sink.journal = !own && stderr_is_journal();
    sink.regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

int kvf_log_open(const char *path, enum kvf_log_level level,
                 struct kvf_why *why)
{
    int fd;

    if (path == NULL || strcmp(path, "stderr") == 0) {
        take_sink(STDERR_FILENO, false, level);
        sink.path[0] = '\0';
        return 0;
    }
    if (strlen(path) >= sizeof sink.path)
        return kvf_fail(why, KVF_INVALID, "the log file's path is too long");
    /* O_NONBLOCK is for a named pipe without a reader; it is our own open file
     * description, unlike standard error's. */
    fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK,
              0640);
    if (fd < 0)
        return kvf_fail(why, KVF_INVALID, "cannot open the log file %s: %s",
                        path, strerror(errno));
    take_sink(fd, true, level);
    if (path != sink.path)
        memcpy(sink.path, path, strlen(path) + 1);
    return 0;
}

int kvf_log_reopen(enum kvf_log_level level, struct kvf_why *why)
{
    return kvf_log_open(sink.path[0] != '\0' ? sink.path : NULL, level, why);
}

void kvf_log_close(void)
{
    take_sink(STDERR_FILENO, false, sink.level);
    sink.path[0] = '\0';
}

bool kvf_log_on(enum kvf_log_level level)
{
    return level <= sink.level;
}

uint64_t kvf_log_lost(void)
{
    return sink.lost;
}

void kvf_log_tap(void (*fn)(void *arg, const char *line), void *arg)
{
    sink.tap = fn;
    sink.tap_arg = arg;
}

int kvf_log_parse_level(const char *name, enum kvf_log_level *out)
{
    for (size_t i = 0; i < sizeof level_names / sizeof *level_names; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *out = (enum kvf_log_level)i;
            return 0;
        }
    }
    return -(int)KVF_INVALID;
}

/* `line` has its newline. Standard error is shared with other processes, so it
 * is asked for room instead of being made non-blocking. A pipe with room has
 * room for PIPE_BUF bytes, which is what KVF_LOG_LINE is. */
static void write_line(const char *line, size_t len)
{
    ssize_t n;

    if (!sink.regular) {
        struct pollfd p = {.fd = sink.fd, .events = POLLOUT};

        if (poll(&p, 1, 0) != 1 || (p.revents & POLLOUT) == 0 ||
            (p.revents & (POLLERR | POLLNVAL)) != 0) {
            sink.lost++;
            return;
        }
    }
    do
        n = write(sink.fd, line, len);
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)len)
        sink.lost++;
}

static size_t put_time(char *out, size_t cap)
{
    struct timespec ts;
    struct tm tm;
    char zone[8] = "";
    size_t n;

    clock_gettime(CLOCK_REALTIME, &ts);
    localtime_r(&ts.tv_sec, &tm);
    n = strftime(out, cap, "%Y-%m-%dT%H:%M:%S", &tm);
    strftime(zone, sizeof zone, "%z", &tm);
    n += (size_t)snprintf(out + n, cap - n, ".%03d%.3s:%s ",
                          (int)(ts.tv_nsec / 1000000), zone,
                          strlen(zone) == 5 ? zone + 3 : "00");
    return n;
}

/* Bytes of the character at p; 0 when there is none, or when it is a C1
 * control. */
static size_t char_len(const unsigned char *p, size_t left)
{
    return left > 1 && p[0] == 0xc2 && p[1] < 0xa0 ? 0 : kvf_utf8_len(p, left);
}

static const char hex[] = "0123456789abcdef";

/* Appends text so that it stays on one line. Returns false when it had to be
 * cut at `limit`. */
static bool put_escaped(char *out, size_t *at, size_t limit, const char *text)
{
    while (*text != '\0') {
        const unsigned char *p = (const unsigned char *)text;
        size_t u = char_len(p, strnlen(text, 4));
        char esc[4];
        size_t n = u;

        if (u > 1 || (u == 1 && *p >= 0x20 && *p != 0x7f)) {
            memcpy(esc, text, u);
        } else if (*p == '\n' || *p == '\t' || *p == '\r') {
            esc[0] = '\\';
            esc[1] = *p == '\n' ? 'n' : *p == '\t' ? 't' : 'r';
            n = 2;
        } else {
            esc[0] = '\\';
            esc[1] = 'x';
            esc[2] = hex[*p >> 4];
            esc[3] = hex[*p & 15];
            n = 4;
        }
        if (*at + n > limit)
            return false;
        memcpy(out + *at, esc, n);
        *at += n;
        text += u > 1 ? u : 1;
    }
    return true;
}

static void emit(enum kvf_log_level level, const char *tag, const char *fmt,
                 va_list ap) __attribute__((format(printf, 3, 0)));

static void emit(enum kvf_log_level level, const char *tag, const char *fmt,
                 va_list ap)
{
    char text[KVF_LOG_LINE], line[KVF_LOG_LINE + 1];
    const size_t limit = KVF_LOG_LINE - 4; /* "..." and the newline */
    size_t n = 0, head;
    bool whole;
    int len = vsnprintf(text, sizeof text, fmt, ap);

    if (len < 0)
        return;
    if (sink.journal) {
        line[n++] = '<';
        line[n++] = level_priority[level];
        line[n++] = '>';
        head = n;
    } else {
        n = put_time(line, sizeof line);
        head = 0;
    }
    n += (size_t)snprintf(line + n, 64, "%s [%.40s] ", level_names[level], tag);
    whole = put_escaped(line, &n, limit, text) && len < (int)sizeof text;
    if (!whole) {
        memcpy(line + n, "...", 3);
        n += 3;
    }
    line[n] = '\0';
    if (sink.tap != NULL)
        sink.tap(sink.tap_arg, line + head);
    line[n++] = '\n';
    write_line(line, n);
}

void kvf_log(enum kvf_log_level level, const char *tag, const char *fmt, ...)
{
    va_list ap;

    if (!kvf_log_on(level))
        return;
    va_start(ap, fmt);
    emit(level, tag, fmt, ap);
    va_end(ap);
}

bool kvf_log_allow(struct kvf_log_limit *l, uint64_t now_ns, unsigned burst)
{
    if (l->in_window == 0 || now_ns - l->window_start_ns >= 1000000000u) {
        l->window_start_ns = now_ns;
        l->in_window = 0;
    }
    if (l->in_window >= burst) {
        l->dropped++;
        return false;
    }
    l->in_window++;
    return true;
}

#define LIMITED_BURST 5

void kvf_log_limited(struct kvf_log_limit *l, uint64_t now_ns,
                     enum kvf_log_level level, const char *tag, const char *fmt,
                     ...)
{
    va_list ap;

    if (!kvf_log_on(level) || !kvf_log_allow(l, now_ns, LIMITED_BURST))
        return;
    if (l->dropped != 0) {
        kvf_log(level, tag, "%u lines like the next were left out", l->dropped);
        l->dropped = 0;
    }
    va_start(ap, fmt);
    emit(level, tag, fmt, ap);
    va_end(ap);
}

static bool plain(unsigned char c)
{
    return c > 0x20 && c != 0x7f && c != '=' && c != '"' && c != '\\';
}

const char *kvf_log_key(char *out, size_t cap, const void *key, size_t len)
{
    const unsigned char *p = key;
    size_t n = 0, cut = 0; /* cut: where "..." would still fit */

    if (cap == 0)
        return out;
    for (size_t i = 0; i < len;) {
        size_t u = char_len(p + i, len - i);
        bool as_is = u > 1 || (u == 1 && plain(p[i]));
        size_t need = as_is ? u : 4;

        if (n + 3 < cap)
            cut = n;
        if (n + need >= cap) {
            n = cut;
            for (unsigned d = 0; d < 3 && n + 1 < cap; d++)
                out[n++] = '.';
            break;
        }
        if (as_is) {
            memcpy(out + n, p + i, u);
        } else {
            u = 1;
            out[n] = '\\';
            out[n + 1] = 'x';
            out[n + 2] = hex[p[i] >> 4];
            out[n + 3] = hex[p[i] & 15];
        }
        n += need;
        i += u;
    }
    out[n] = '\0';
    return out;
}
