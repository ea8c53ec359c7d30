/* What doctor found, as a line for people or for programs. */
#include "doctor.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>

void doctor_say(struct doctor *d, enum doctor_level level, const char *what,
                const char *remedy, const char *fmt, ...)
{
    static const char *const names[] = {"ok", "warn", "FAIL"};
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    d->found[level]++;
    if (d->json) {
        json_t *o =
            json_pack("{s:s,s:s,s:s,s:s}", "level", names[level], "check", what,
                      "finding", text, "remedy",
                      remedy != NULL && level != DOCTOR_OK ? remedy : "");
        char *line = o != NULL ? json_dumps(o, 0) : NULL;

        printf("%s\n", line != NULL ? line : "{}");
        free(line);
        json_decref(o);
        return;
    }
    printf("%-4s  %-18s %s\n", names[level], what, text);
    if (remedy != NULL && level != DOCTOR_OK)
        printf("      %-18s -> %s\n", "", remedy);
}
