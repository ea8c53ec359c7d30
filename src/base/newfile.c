/* See newfile.h. */
#include "base/newfile.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    int bad;

    if (f == NULL)
        return -1;
    bad = fputs(text, f) < 0;
    return fclose(f) != 0 || bad ? -1 : 0;
}

int kvf_newfile(const char *path, const char *text, struct kvf_why *why)
{
    char temp[4200];
    struct stat st;
    int n = snprintf(temp, sizeof temp, "%s.%ld", path, (long)getpid());

    if (n < 0 || (size_t)n >= sizeof temp)
        return kvf_fail(why, KVF_INVALID, "the name of a file is too long");
    if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return kvf_fail(why, KVF_INVALID,
                        "cannot write %s: it is there and no regular file",
                        path);
    if (write_text(temp, text) != 0 || rename(temp, path) != 0) {
        n = errno;
        unlink(temp);
        return kvf_fail(why, KVF_INVALID, "cannot write %s: %s", path,
                        strerror(n));
    }
    return 0;
}
