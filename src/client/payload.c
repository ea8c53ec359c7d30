/* What a get brought: pieces of a pool, of the caller's memory, or of the
 * reply itself.
 *
 * Happy path: made from the reply, read, released; release tells the daemon and
 * does not wait. Failure modes: a reply that names places outside of what is
 * mapped is not believed (INTERNAL), a view whose pool cannot be opened is
 * UNSUPPORTED or STALE; the buffer is given back at once then. */
#include "client.h"

#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

struct kvferry_payload {
    struct kvferry *h; /* NULL once its handle was closed */
    struct kvferry_payload *next, **prev;
    uint64_t size, generation, buffer, epoch, checksum;
    bool has_buffer, has_checksum, foreign;
    unsigned attempts, n_pieces, n_maps;
    struct kvferry_piece *pieces;
    struct kvfc_map **maps;
    struct kvferry_timing timing;
    void *meta;
    size_t meta_len;
    char mode[16], transport[16];
    zmq_msg_t frame; /* inline bytes */
};

static int region_piece(struct kvferry *h, uint64_t region, uint64_t offset,
                        uint64_t length, struct kvferry_piece *out)
{
    for (struct kvfc_region *r = h->regions; r != NULL; r = r->next)
        if (r->id == region) {
            if (offset > r->size || length > r->size - offset)
                return -1;
            out->data = r->addr != NULL ? r->addr + offset : NULL;
            out->length = length;
            return 0;
        }
    out->data = NULL;
    out->length = length;
    return 0;
}

/* One segment of the reply: {path?, offset, length, region?}. */
static int add_piece(struct kvferry *h, struct kvferry_payload *p,
                     const msgpack_object *seg, struct kvf_why *why)
{
    struct kvferry_piece *piece = &p->pieces[p->n_pieces];
    uint64_t offset, length, region;
    struct kvfc_map *m = h->s.pool;
    char path[256];
    const char *s;
    size_t len;
    int rc;

    if (!kvfc_u64(seg, "offset", &offset) || !kvfc_u64(seg, "length", &length))
        return kvf_fail(why, KVF_INTERNAL, "a segment cannot be read");
    if (kvfc_u64(seg, "region", &region)) {
        if (region_piece(h, region, offset, length, piece) != 0)
            return kvf_fail(why, KVF_INTERNAL, "a segment outside its region");
        p->n_pieces++;
        return 0;
    }
    if (kvf_mp_str(seg, "path", 1, sizeof path - 1, &s, &len, NULL) == 1) {
        memcpy(path, s, len);
        path[len] = '\0';
        rc = kvfc_map_open(h, path, false, NULL, 0, &m, why);
        if (rc != 0)
            return rc;
        p->foreign = true;
    } else if (m != NULL) {
        m->refs++;
    } else {
        return kvf_fail(why, KVF_UNSUPPORTED, "the own pool is not mapped");
    }
    p->maps[p->n_maps++] = m;
    if (offset > m->size || length > m->size - offset)
        return kvf_fail(why, KVF_INTERNAL, "a segment outside its pool");
    piece->data = m->base + offset;
    piece->length = length;
    p->n_pieces++;
    return 0;
}

static int add_pieces(struct kvferry *h, struct kvferry_payload *p,
                      const msgpack_object *map, struct kvf_why *why)
{
    const msgpack_object *a;
    uint64_t sum = 0;
    uint32_t n;
    int rc = kvf_mp_array(map, "segments", 65536, &a, why);

    if (rc != 1)
        return rc == 0 ? kvf_fail(why, KVF_INTERNAL, "a reply without bytes")
                       : rc;
    n = a->via.array.size;
    p->pieces = calloc(n + 1, sizeof *p->pieces);
    p->maps = calloc(n + 1, sizeof(struct kvfc_map *));
    if (p->pieces == NULL || p->maps == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    for (uint32_t i = 0; i < n; i++) {
        rc = add_piece(h, p, &a->via.array.ptr[i], why);
        if (rc != 0)
            return rc;
        sum += p->pieces[i].length;
    }
    if (sum != p->size)
        return kvf_fail(why, KVF_INTERNAL, "the segments do not make the size");
    return 0;
}

/* Bytes in the reply's frame, from `at` on (an mget has several in one). */
static int add_inline(struct kvferry_payload *p, zmq_msg_t *frame, uint64_t at,
                      struct kvf_why *why)
{
    if (at > zmq_msg_size(frame) || p->size > zmq_msg_size(frame) - at)
        return kvf_fail(why, KVF_INTERNAL, "the inline bytes are too few");
    p->pieces = calloc(1, sizeof *p->pieces);
    if (p->pieces == NULL || zmq_msg_copy(&p->frame, frame) != 0)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    p->pieces[0].data = (const uint8_t *)zmq_msg_data(&p->frame) + at;
    p->pieces[0].length = p->size;
    p->n_pieces = 1;
    return 0;
}

static void read_figures(struct kvferry_payload *p, const msgpack_object *map)
{
    const void *meta;
    uint64_t attempts = 1;

    kvfc_u64(map, "generation", &p->generation);
    kvf_mp_u64(map, "attempts", 0, UINT32_MAX, &attempts, NULL);
    p->attempts = (unsigned)attempts;
    p->has_checksum = kvfc_u64(map, "checksum", &p->checksum);
    kvfc_text(map, "mode", p->mode, sizeof p->mode);
    kvfc_text(map, "transport", p->transport, sizeof p->transport);
    if (kvf_mp_bin(map, "meta", 1, 1u << 24, &meta, &p->meta_len, NULL) == 1 &&
        (p->meta = malloc(p->meta_len)) != NULL)
        memcpy(p->meta, meta, p->meta_len);
    if (p->meta == NULL)
        p->meta_len = 0;
    kvfc_timing(map, &p->timing);
}

int kvfc_payload_make(struct kvferry *h, const msgpack_object *map,
                      zmq_msg_t *frame, uint64_t frame_at,
                      struct kvferry_payload **out, struct kvf_why *why)
{
    struct kvferry_payload *p = calloc(1, sizeof *p);
    int rc;

    if (p == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    zmq_msg_init(&p->frame);
    p->h = h;
    p->epoch = h->s.epoch;
    p->next = h->payloads;
    p->prev = &h->payloads;
    if (p->next != NULL)
        p->next->prev = &p->next;
    h->payloads = p;
    p->has_buffer = kvfc_u64(map, "buffer", &p->buffer);
    if (!kvfc_u64(map, "size", &p->size))
        rc = kvf_fail(why, KVF_INTERNAL, "a reply without size");
    else if (frame != NULL && !p->has_buffer &&
             kvf_mp_get(map, "segments") == NULL)
        rc = add_inline(p, frame, frame_at, why);
    else
        rc = add_pieces(h, p, map, why);
    if (p->foreign)
        h->live_views++;
    if (rc != 0) {
        kvferry_release(&p);
        return rc;
    }
    read_figures(p, map);
    *out = p;
    return 0;
}

KVFC_EXPORT void kvferry_release(struct kvferry_payload **at)
{
    struct kvferry_payload *p = *at;
    struct kvferry *h;

    if (p == NULL)
        return;
    *at = NULL;
    h = p->h;
    *p->prev = p->next;
    if (p->next != NULL)
        p->next->prev = p->prev;
    /* What points into a pool goes before the owner may reuse it. */
    for (unsigned i = 0; i < p->n_maps; i++)
        kvfc_map_put(h, p->maps[i]);
    if (p->has_buffer && p->epoch == h->s.epoch)
        kvfc_forget(h, "release", p->buffer);
    if (p->foreign)
        kvfc_view_gone(h, p->epoch);
    zmq_msg_close(&p->frame);
    free(p->pieces);
    free(p->maps);
    free(p->meta);
    free(p);
}

void kvfc_payloads_orphan(struct kvferry *h)
{
    while (h->payloads != NULL) {
        struct kvferry_payload *p = h->payloads;

        kvferry_release(&p);
    }
}

/* ---- reading ------------------------------------------------------------ */

KVFC_EXPORT unsigned kvferry_payload_pieces(const struct kvferry_payload *p,
                                            const struct kvferry_piece **pieces)
{
    *pieces = p->pieces;
    return p->n_pieces;
}

KVFC_EXPORT uint64_t kvferry_payload_size(const struct kvferry_payload *p)
{
    return p->size;
}

KVFC_EXPORT uint64_t kvferry_payload_generation(const struct kvferry_payload *p)
{
    return p->generation;
}

KVFC_EXPORT const void *kvferry_payload_meta(const struct kvferry_payload *p,
                                             size_t *len)
{
    *len = p->meta_len;
    return p->meta;
}

KVFC_EXPORT const char *kvferry_payload_mode(const struct kvferry_payload *p)
{
    return p->mode;
}

KVFC_EXPORT const char *
kvferry_payload_transport(const struct kvferry_payload *p)
{
    return p->transport;
}

KVFC_EXPORT unsigned kvferry_payload_attempts(const struct kvferry_payload *p)
{
    return p->attempts;
}

KVFC_EXPORT void kvferry_payload_timing(const struct kvferry_payload *p,
                                        struct kvferry_timing *out)
{
    *out = p->timing;
}

KVFC_EXPORT bool kvferry_payload_checksum(const struct kvferry_payload *p,
                                          uint64_t *out)
{
    if (p->has_checksum)
        *out = p->checksum;
    return p->has_checksum;
}

KVFC_EXPORT int kvferry_payload_verify(const struct kvferry_payload *p)
{
    XXH3_state_t *s;
    uint64_t sum;

    if (!p->has_checksum)
        return -(int)KVF_UNSUPPORTED;
    s = XXH3_createState();
    if (s == NULL)
        return -(int)KVF_INTERNAL;
    XXH3_64bits_reset(s);
    for (unsigned i = 0; i < p->n_pieces; i++) {
        if (p->pieces[i].data == NULL) {
            XXH3_freeState(s);
            return -(int)KVF_UNSUPPORTED;
        }
        XXH3_64bits_update(s, p->pieces[i].data, p->pieces[i].length);
    }
    sum = XXH3_64bits_digest(s);
    XXH3_freeState(s);
    return sum == p->checksum ? 0 : -(int)KVF_CORRUPT;
}

KVFC_EXPORT size_t kvferry_payload_copy(const struct kvferry_payload *p,
                                        uint64_t offset, void *dst, size_t cap)
{
    size_t done = 0;

    for (unsigned i = 0; i < p->n_pieces && done < cap; i++) {
        uint64_t length = p->pieces[i].length, n;

        if (offset >= length) {
            offset -= length;
            continue;
        }
        n = length - offset;
        if (n > cap - done)
            n = cap - done;
        if (p->pieces[i].data == NULL)
            break;
        memcpy((uint8_t *)dst + done,
               (const uint8_t *)p->pieces[i].data + offset, n);
        done += n;
        offset = 0;
    }
    return done;
}
