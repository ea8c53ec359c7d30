/* libFuzzer: any text as a configuration file. */
#include "conf/conf.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static FILE *sink;
    static struct kvf_conf *c;
    unsigned n = 0;

    if (sink == NULL && (sink = fopen("/dev/null", "w")) == NULL)
        abort();
    if (c == NULL && (c = malloc(sizeof *c)) == NULL)
        abort();
    kvf_conf_defaults(c);
    kvf_conf_parse(c, (const char *)data, size, "fuzz.ini", sink, &n);
    return 0;
}
