/* UTF-8, strictly: no overlong forms, no surrogates. Nothing blocks, nothing is
 * kept; any thread. */
#ifndef KVF_BASE_UTF8_H
#define KVF_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes (1 to 4) of the character at s, of n bytes; 0 when there is none. */
size_t kvf_utf8_len(const void *s, size_t n);
/* How many bytes from the start are valid. */
size_t kvf_utf8_prefix(const char *s, size_t len);
bool kvf_utf8_valid(const char *s, size_t len);

#endif
