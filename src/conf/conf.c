/* Reading a configuration.
 *
 * inih finds sections, names and values; the line reader below counts lines,
 * takes comments away and reports what is not INI at all. Every value goes
 * through the table (conf_section.c), then the whole is checked for what no
 * single key shows (conf_check.c). All errors are reported, none stops the
 * reading. */
#include "conf/conf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <ini.h>

#include "conf/conf_parser.h"

#define FILE_MAX_BYTES (4u << 20)

void kvf_conf_bad(struct kvf_conf_parser *p, const char *fmt, ...)
{
    va_list ap;

    p->errors++;
    if (p->err == NULL)
        return;
    fprintf(p->err, "%s:%u: ", p->name, p->line);
    va_start(ap, fmt);
    vfprintf(p->err, fmt, ap);
    va_end(ap);
    fputc('\n', p->err);
}

void kvf_conf_defaults(struct kvf_conf *c)
{
    memset(c, 0, sizeof *c);
    for (unsigned i = 0; i < kvf_n_keys; i++)
        if (kvf_keys[i].base == KVF_IN_CONF)
            (void)kvf_key_parse(&kvf_keys[i], c, c, kvf_keys[i].def, NULL);
}

/* What must hold for any line. Returns false when it was reported. */
static bool line_valid(struct kvf_conf_parser *p, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];

        if ((c < 0x20 && c != '\t') || c == 0x7f) {
            kvf_conf_bad(p, "a control byte (0x%02x); allowed: text", c);
            return false;
        }
    }
    if (len > KVF_LINE_MAX) {
        kvf_conf_bad(p, "the line is too long; allowed: %d bytes",
                     KVF_LINE_MAX);
        return false;
    }
    if (len == 0 || (s[0] != '[' && memchr(s, '=', len) != NULL))
        return true;
    if (s[0] == '[' && memchr(s, ']', len) == s + len - 1) {
        memcpy(p->section, s + 1, len - 2);
        p->section[len - 2] = '\0';
        p->open = kvf_conf_open_section(p);
        return true;
    }
    if (s[0] == '[')
        p->open = KVF_OPEN_WRONG;
    kvf_conf_bad(p, "neither [section] nor key = value");
    return false;
}

/* fgets for inih: one line a call, trimmed, without its comment. */
static char *next_line(char *out, int cap, void *arg)
{
    struct kvf_conf_parser *p = arg;
    const char *end;
    size_t len;

    if (p->at == p->end || cap < 2)
        return NULL;
    end = memchr(p->at, '\n', (size_t)(p->end - p->at));
    if (end == NULL)
        end = p->end;
    if (p->line++ == 0 && end - p->at >= 3 &&
        memcmp(p->at, "\xef\xbb\xbf", 3) == 0)
        p->at += 3; /* an editor's byte order mark */
    /* Indented lines would be taken as continued ones. */
    while (p->at < end && (*p->at == ' ' || *p->at == '\t'))
        p->at++;
    len = (size_t)(end - p->at);
    for (size_t i = 0; i < len; i++)
        if ((p->at[i] == ';' || p->at[i] == '#') &&
            (i == 0 || p->at[i - 1] == ' ' || p->at[i - 1] == '\t'))
            len = i;
    while (len != 0 && strchr(" \t\r", p->at[len - 1]) != NULL)
        len--;
    if (!line_valid(p, p->at, len) || len + 2 > (size_t)cap)
        len = 0;
    memcpy(out, p->at, len);
    out[len] = '\n';
    out[len + 1] = '\0';
    p->at = end < p->end ? end + 1 : end;
    return out;
}

int kvf_conf_parse(struct kvf_conf *c, const char *text, size_t len,
                   const char *name, FILE *err, unsigned *n_errors)
{
    struct kvf_conf_parser *p = calloc(1, sizeof *p);
    unsigned errors = 1;

    if (p != NULL) {
        p->c = c;
        p->name = name;
        p->err = err;
        p->at = text;
        p->end = text + len;
        kvf_conf_defaults(c);
        if (ini_parse_stream(next_line, p, kvf_conf_on_key, p) != 0)
            kvf_conf_bad(p, "not an INI file");
        kvf_conf_check(p);
        errors = p->errors;
    }
    free(p);
    if (n_errors != NULL)
        *n_errors = errors;
    return errors == 0 ? 0 : -(int)KVF_INVALID;
}

int kvf_conf_load(struct kvf_conf *c, const char *path, FILE *err,
                  unsigned *n_errors)
{
    FILE *f = fopen(path, "re");
    char *text = malloc(FILE_MAX_BYTES);
    size_t len = 0;
    int rc = -(int)KVF_INVALID;

    errno = f != NULL ? 0 : errno;
    if (f != NULL && text != NULL)
        len = fread(text, 1, FILE_MAX_BYTES, f);
    if (f == NULL || text == NULL || ferror(f) || len == FILE_MAX_BYTES) {
        if (err != NULL)
            fprintf(err, "%s: cannot be read: %s\n", path,
                    errno != 0 ? strerror(errno) : "too large");
        if (n_errors != NULL)
            *n_errors = 1;
    } else {
        rc = kvf_conf_parse(c, text, len, path, err, n_errors);
    }
    if (f != NULL)
        fclose(f);
    free(text);
    return rc;
}
