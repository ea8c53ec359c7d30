/* libFuzzer: any bytes as one MessagePack value. */
#include "wire/mp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kvf_mp_raw raw = {.key = "id"};
    struct kvf_mp m;

    kvf_mp_parse(&m, data, size, NULL);
    kvf_mp_done(&m);
    kvf_mp_parse_map(&m, data, size, &raw, 1, NULL);
    /* what is to be echoed must be one value by itself */
    if (raw.p != NULL) {
        struct kvf_mp id;

        if (kvf_mp_parse(&id, raw.p, raw.len, NULL) < 0)
            __builtin_trap();
        kvf_mp_done(&id);
    }
    kvf_mp_done(&m);
    return 0;
}
