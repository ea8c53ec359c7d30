/* Memory, limits and what the kernel offers. */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool first_line(const char *path, char *out, size_t cap)
{
    FILE *f = fopen(path, "re");
    bool ok = f != NULL && fgets(out, (int)cap, f) != NULL;

    if (ok)
        out[strcspn(out, "\n")] = '\0';
    if (f != NULL)
        fclose(f);
    return ok;
}

/* kB of a line of /proc/meminfo, 0 when absent. */
static uint64_t meminfo(const char *name)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long v = 0;
    size_t len = strlen(name);

    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, name, len) == 0 && line[len] == ':') {
            v = strtoull(line + len + 1, NULL, 10);
            break;
        }
    if (f != NULL)
        fclose(f);
    return v;
}

#define MIB(bytes) ((unsigned long long)((bytes) >> 20))

static void memlock(struct doctor *d)
{
    uint64_t pool = d->conf->memory_pool_size;
    struct rlimit r;

    if (getrlimit(RLIMIT_MEMLOCK, &r) != 0)
        return;
    if (r.rlim_cur == RLIM_INFINITY)
        doctor_say(d, DOCTOR_OK, "memlock", NULL, "unlimited");
    else if (r.rlim_cur >= pool)
        doctor_say(d, DOCTOR_OK, "memlock", NULL, "%llu MiB",
                   MIB((uint64_t)r.rlim_cur));
    else
        doctor_say(d, DOCTOR_WARN, "memlock",
                   "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit "
                   "(rdma needs it; shm and tcp work without)",
                   "%llu MiB, the pool has %llu MiB", MIB((uint64_t)r.rlim_cur),
                   MIB(pool));
}

static void memory(struct doctor *d)
{
    uint64_t pool = d->conf->memory_pool_size;
    uint64_t available = meminfo("MemAvailable") << 10;
    uint64_t huge = meminfo("HugePages_Free");
    uint64_t huge_size = meminfo("Hugepagesize") << 10;
    char thp[200];

    if (d->daemon_answers)
        doctor_say(d, DOCTOR_OK, "memory", NULL,
                   "%llu MiB available, the daemon has its pool",
                   MIB(available));
    else if (available < pool)
        doctor_say(d, DOCTOR_FAIL, "memory",
                   "make memory_pool_size smaller or free memory",
                   "%llu MiB available, the pool needs %llu MiB",
                   MIB(available), MIB(pool));
    else
        doctor_say(d, DOCTOR_OK, "memory", NULL,
                   "%llu MiB available for a pool of %llu MiB", MIB(available),
                   MIB(pool));
    doctor_say(d, huge * huge_size >= pool ? DOCTOR_OK : DOCTOR_WARN,
               "huge pages",
               "optional: sysctl vm.nr_hugepages=N, enough for the pool",
               "%llu free of %llu kB", (unsigned long long)huge,
               (unsigned long long)huge_size >> 10);
    if (first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", thp,
                   sizeof thp))
        doctor_say(d,
                   strstr(thp, "[never]") || strstr(thp, "[deny]") ? DOCTOR_WARN
                                                                   : DOCTOR_OK,
                   "shm THP",
                   "echo advise > "
                   "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
                   "%s", thp);
}

static void kernel(struct doctor *d)
{
    int pidfd = -1,
        fd = memfd_create("doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    char text[200];

#ifdef SYS_pidfd_open
    pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
#endif
    doctor_say(d, pidfd >= 0 ? DOCTOR_OK : DOCTOR_FAIL, "pidfd",
               "Linux 5.3 or newer, and a sandbox that allows pidfd_open", "%s",
               pidfd >= 0 ? "works" : strerror(errno));
    if (pidfd >= 0)
        close(pidfd);
    if (fd < 0 || ftruncate(fd, 4096) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
        doctor_say(
            d, DOCTOR_FAIL, "memfd seals",
            "Linux 3.17 or newer, and a sandbox that allows memfd_create", "%s",
            strerror(errno));
    else
        doctor_say(d, DOCTOR_OK, "memfd seals", NULL, "work");
    snprintf(text, sizeof text, "/proc/self/fd/%d", fd);
    if (fd >= 0) {
        int again = open(text, O_RDONLY | O_CLOEXEC);

        doctor_say(
            d, again >= 0 ? DOCTOR_OK : DOCTOR_FAIL, "/proc",
            "mount /proc; processes of one uid must see each other", "%s",
            again >= 0 ? "fds can be opened through it" : strerror(errno));
        if (again >= 0)
            close(again);
        close(fd);
    }
    if (prctl(PR_GET_DUMPABLE) != 1)
        doctor_say(d, DOCTOR_WARN, "dumpable",
                   "do not start the daemon from a set-uid or file-capability "
                   "binary: others could not open its pool",
                   "this process is not dumpable");
    if (first_line("/sys/devices/system/clocksource/clocksource0/"
                   "current_clocksource",
                   text, sizeof text))
        doctor_say(d,
                   strcmp(text, "hpet") == 0 || strcmp(text, "acpi_pm") == 0
                       ? DOCTOR_WARN
                       : DOCTOR_OK,
                   "clock", "a slow clock costs microseconds a request", "%s",
                   text);
}

static void files(struct doctor *d)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return;
    doctor_say(d, r.rlim_cur < 4096 ? DOCTOR_WARN : DOCTOR_OK, "fd limit",
               "ulimit -n 65536, or LimitNOFILE=65536 in the unit",
               "%llu (hard %llu)", (unsigned long long)r.rlim_cur,
               (unsigned long long)r.rlim_max);
}

void doctor_machine(struct doctor *d)
{
    memory(d);
    memlock(d);
    files(d);
    kernel(d);
}
