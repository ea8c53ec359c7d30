/* Private to src/wire: fields that several operations share. All return 1
 * present, 0 absent, negative with why, as the readers of wire/mp.h do. */
#ifndef KVF_WIRE_ENGINE_FIELD_H
#define KVF_WIRE_ENGINE_FIELD_H

#include "wire/engine_msg.h"

#define KVF_MAX_REQUEST_ID 1000u /* of published blocks */
/* Of a key: `:0_1` is the least that follows it there. */
#define KVF_MAX_KEY_REQUEST_ID (KVF_MAX_KEY - 4)

/* `key`, or `request_id` with `from` and `to` (composed into zone memory). One
 * of the two has to be there: never 0. *from: the stage number, only when
 * composed; *composed says so. */
int kvf_field_key(const msgpack_object *map, msgpack_zone *zone,
                  struct kvf_slice_str *key, bool *composed, uint64_t *from,
                  struct kvf_why *why);
int kvf_field_str(const msgpack_object *map, const char *name, size_t min,
                  size_t max, struct kvf_slice_str *out, struct kvf_why *why);
/* An array of segments, malloced. */
int kvf_field_segments(const msgpack_object *map, const char *name,
                       struct kvf_segment_ref **out, unsigned *n,
                       struct kvf_why *why);
/* -KVF_INVALID when a byte is named twice (lengths that are not known are left
 * out), else 0. */
int kvf_segments_check_distinct(const struct kvf_segment_ref *seg, unsigned n,
                                struct kvf_why *why);
/* Both fields are required: 1 or negative. */
int kvf_field_endpoint(const msgpack_object *map, const char *host,
                       const char *port, struct kvf_endpoint *out,
                       struct kvf_why *why);
/* 1 when the bin is there with 16 bytes. */
int kvf_field_id(const msgpack_object *map, const char *name,
                 struct kvf_id *out, struct kvf_why *why);
/* kvf_mp_u64 for a field that must be there: 1 or negative. */
int kvf_field_need_u64(const msgpack_object *map, const char *name,
                       uint64_t min, uint64_t max, uint64_t *out,
                       struct kvf_why *why);
/* `timeout_ms`, and `ttl_ms` (not 0); KVF_MAX_MS stands for more than that. */
int kvf_field_timeout(const msgpack_object *map, bool *has, uint64_t *ms,
                      struct kvf_why *why);
int kvf_field_ttl(const msgpack_object *map, bool *has, uint64_t *ms,
                  struct kvf_why *why);

/* A worker: a map of stage and, optionally, rank and replica. */
int kvf_field_worker(const msgpack_object *map, const char *name,
                     struct kvf_from *out, struct kvf_why *why);

/* engine_put.c */
int kvf_put_read(struct kvf_req *r, struct kvf_why *why);
/* The fields of a put, also inside a push. *composed: the key was made of
 * request_id, from and to. */
int kvf_put_fields(struct kvf_req *r, struct kvf_req_put *p, bool *composed,
                   struct kvf_why *why);
/* engine_push.c */
int kvf_push_read(struct kvf_req *r, struct kvf_why *why);
int kvf_expose_read(struct kvf_req *r, struct kvf_why *why);
int kvf_unexpose_read(struct kvf_req *r, struct kvf_why *why);
int kvf_rma_read(struct kvf_req *r, struct kvf_why *why);
/* engine_layout.c: the fields of layout, publish and pull. */
int kvf_read_layout(struct kvf_req *r, struct kvf_why *why);
int kvf_read_publish(struct kvf_req *r, struct kvf_why *why);
int kvf_read_pull(struct kvf_req *r, struct kvf_why *why);

/* The fields of one get; `out` is zeroed first. `into` is malloced. */
int kvf_get_fields(const msgpack_object *map, msgpack_zone *zone,
                   struct kvf_req_get *out, struct kvf_why *why);
#endif
