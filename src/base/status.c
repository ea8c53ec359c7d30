/* Names and texts of the status codes, from the one table. */
#include "kvferry/status.h"

#include <string.h>

static const struct {
    const char *name;
    const char *text;
} rows[KVF_STATUS_COUNT] = {
#define ROW(name, number, text) [number] = {#name, text},
    KVF_STATUS_LIST(ROW)
#undef ROW
};

const char *kvf_status_name(enum kvf_status status)
{
    if ((unsigned)status >= KVF_STATUS_COUNT)
        status = KVF_INTERNAL;
    return rows[status].name;
}

const char *kvf_status_text(enum kvf_status status)
{
    if ((unsigned)status >= KVF_STATUS_COUNT)
        status = KVF_INTERNAL;
    return rows[status].text;
}

int kvf_status_parse(const char *name, unsigned long len)
{
    for (int i = 0; i < KVF_STATUS_COUNT; i++)
        if (strlen(rows[i].name) == len && memcmp(rows[i].name, name, len) == 0)
            return i;
    return -1;
}
