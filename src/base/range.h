/* A piece of a payload. */
#ifndef KVF_BASE_RANGE_H
#define KVF_BASE_RANGE_H

#include <stdint.h>

struct kvf_range {
    uint64_t offset, length; /* bytes */
};
#endif
