/* A small file that appears whole or not at all, for whoever waits for it. */
#ifndef KVF_BASE_NEWFILE_H
#define KVF_BASE_NEWFILE_H

#include "base/why.h"

/* Writes `text` beside `path` and renames. A file that is there is replaced; a
 * device, a directory, a link or whatever else is no regular file is not
 * (-KVF_INVALID): a daemon of root must not replace /dev/stdout. Blocks. */
int kvf_newfile(const char *path, const char *text, struct kvf_why *why);
#endif
