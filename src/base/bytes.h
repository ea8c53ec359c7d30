/* Big-endian cursors over bytes: bounded, no alignment needed. */
#ifndef KVF_BASE_BYTES_H
#define KVF_BASE_BYTES_H

#include <stdint.h>
#include <string.h>

static inline void kvf_put_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void kvf_put_u32(uint8_t *p, uint32_t v)
{
    kvf_put_u16(p, (uint16_t)(v >> 16));
    kvf_put_u16(p + 2, (uint16_t)v);
}

static inline void kvf_put_u64(uint8_t *p, uint64_t v)
{
    kvf_put_u32(p, (uint32_t)(v >> 32));
    kvf_put_u32(p + 4, (uint32_t)v);
}

static inline uint16_t kvf_get_u16(const uint8_t *p)
{
    return (uint16_t)((uint16_t)(p[0] << 8) | p[1]);
}

static inline uint32_t kvf_get_u32(const uint8_t *p)
{
    return (uint32_t)kvf_get_u16(p) << 16 | kvf_get_u16(p + 2);
}

static inline uint64_t kvf_get_u64(const uint8_t *p)
{
    return (uint64_t)kvf_get_u32(p) << 32 | kvf_get_u32(p + 4);
}

/* 16 random bytes that name one start of one daemon, a session, a claim. */
#define KVF_ID_LEN 16
struct kvf_id {
    uint8_t b[KVF_ID_LEN];
};

static inline int kvf_id_equal(const struct kvf_id *a, const struct kvf_id *b)
{
    return memcmp(a->b, b->b, KVF_ID_LEN) == 0;
}

#endif
