/* Copies of payload bytes: chooses between memcpy and non-temporal stores by
 * size and by the machine (AVX-512, AVX2, SSE2, or plain elsewhere). */
#ifndef KVF_MEMORY_COPY_H
#define KVF_MEMORY_COPY_H

#include <stdbool.h>
#include <stddef.h>

/* From this many bytes of one transfer on, non-temporal stores win (measured by
 * `kvferry bench --copy`; see docs/PERFORMANCE.md). */
extern const size_t kvf_copy_nt_min;

/* Copies n bytes; the ranges do not overlap. `nt`: use non-temporal stores
 * (for data that this core will not read again soon). A store fence is done
 * before returning. Any alignment. */
void kvf_copy(void *dst, const void *src, size_t n, bool nt);

/* The same without the fence: for many pieces, with one kvf_copy_fence() before
 * anybody is told. */
void kvf_copy_piece(void *dst, const void *src, size_t n, bool nt);
void kvf_copy_fence(void);

/* "avx512", "avx2", "sse2", "plain": what nt copies use here. */
const char *kvf_copy_kernel(void);
#endif
