/* The lowest layer but for the sched: histogram, log, random numbers, reasons
 * and status codes. */
#include "base/hist.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/why.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static uint64_t seed;

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* What is older than two windows is forgotten, also when nothing is added. */
static void test_hist_recent(void **state)
{
    static struct kvf_hist_recent h;
    const uint64_t w = KVF_HIST_WINDOW_NS, t = 1000 * w;

    (void)state;
    assert_int_equal(kvf_hist_recent_quantile(&h, 0.99, t), 0);
    for (int i = 0; i < 100; i++)
        kvf_hist_recent_add(&h, 100000, t);
    assert_int_equal(kvf_hist_recent_quantile(&h, 0.99, t), 100000);
    kvf_hist_recent_add(&h, 5, t + w + 1);
    assert_int_equal(kvf_hist_recent_quantile(&h, 0.99, t + w + 1), 100000);
    assert_int_equal(kvf_hist_recent_quantile(&h, 0, t + w + 1), 5);
    assert_int_equal(kvf_hist_recent_quantile(&h, 0.99, t + 2 * w + 2), 5);
    assert_int_equal(kvf_hist_recent_quantile(&h, 0.99, t + 4 * w), 0);
    kvf_hist_recent_add(&h, 6, t + 9 * w);
    assert_int_equal(kvf_hist_recent_quantile(&h, 1, t + 9 * w), 6);
    assert_int_equal(kvf_hist_recent_quantile(&h, 0, t + 9 * w), 6);
}

static void test_hist(void **state)
{
    static const double shares[] = {0.01, 0.1, 0.5, 0.9, 0.99, 0.999};
    static struct kvf_hist h;
    static uint64_t values[5000];
    struct kvf_rng r;

    (void)state;
    assert_int_equal(kvf_hist_quantile(&h, 0.5), 0);
    kvf_rng_seed(&r, seed);
    for (unsigned round = 0; round < 20; round++) {
        memset(&h, 0, sizeof h);
        for (unsigned i = 0; i < 5000; i++) {
            values[i] = kvf_rng_next(&r) >> kvf_rng_below(&r, 64);
            kvf_hist_add(&h, values[i]);
        }
        qsort(values, 5000, sizeof *values, compare);
        assert_true(h.min == values[0] && h.max == values[4999]);
        assert_int_equal(h.count, 5000);
        for (unsigned i = 0; i < 6; i++) {
            uint64_t got = kvf_hist_quantile(&h, shares[i]);
            uint64_t exact = values[(unsigned)(shares[i] * 5000) - 1];

            assert_true(got >= exact && got - exact <= exact / 8);
        }
        assert_true(kvf_hist_quantile(&h, 0) == values[0]);
        assert_true(kvf_hist_quantile(&h, 1) == values[4999]);
    }
    memset(&h, 0, sizeof h);
    kvf_hist_add(&h, UINT64_MAX); /* the last bucket */
    kvf_hist_add(&h, 0);
    assert_true(kvf_hist_quantile(&h, 0.99) == UINT64_MAX);
    assert_true(kvf_hist_quantile(&h, 0.5) == 0);
}

static char tapped[8][KVF_LOG_LINE + 8];
static unsigned n_tapped;
static char log_path[] = "/tmp/kvf-test-log-XXXXXX";

static void tap(void *arg, const char *line)
{
    (void)arg;
    if (n_tapped < 8)
        snprintf(tapped[n_tapped], sizeof *tapped, "%s", line);
    n_tapped++;
}

static char *log_file(void)
{
    static char text[5 * KVF_LOG_LINE];
    FILE *f = fopen(log_path, "re");

    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    return text;
}

static int log_setup(void **state)
{
    int fd;

    (void)state;
    memcpy(log_path + strlen(log_path) - 6, "XXXXXX", 6);
    fd = mkstemp(log_path);
    assert_true(fd >= 0);
    close(fd);
    n_tapped = 0;
    kvf_log_tap(tap, NULL);
    return kvf_log_open(log_path, KVF_LOG_INFO, NULL);
}

static int log_teardown(void **state)
{
    (void)state;
    kvf_log_tap(NULL, NULL);
    kvf_log_close();
    return unlink(log_path);
}

/* One event is one line, whatever is in it. */
static void test_log_lines(void **state)
{
    char *end;

    (void)state;
    kvf_log(KVF_LOG_WARN, "KVF PUT", "a=%d %s", 7, "x\ny\tz\r\033[1m\x7f");
    kvf_log(KVF_LOG_DEBUG, "LOOP", "not at this level");
    assert_int_equal(n_tapped, 1);
    assert_non_null(
        strstr(tapped[0], " warn [KVF PUT] a=7 x\\ny\\tz\\r\\x1b[1m\\x7f"));
    kvf_log(KVF_LOG_INFO, "T", "%s", "\xc3\xa9 \xe2\x82");
    assert_non_null(strstr(tapped[1], "\xc3\xa9 \\xe2\\x82"));
    /* 2026-01-02T03:04:05.678+01:00 */
    assert_int_equal(strcspn(tapped[0], " "), 29);
    assert_true(tapped[0][10] == 'T' && tapped[0][19] == '.');
    end = strchr(log_file(), '\n');
    assert_non_null(end);
    assert_non_null(strchr(end + 1, '\n'));
    assert_string_equal(strchr(end + 1, '\n'), "\n");
    assert_int_equal(kvf_log_lost(), 0);
    assert_true(kvf_log_on(KVF_LOG_INFO) && !kvf_log_on(KVF_LOG_DEBUG));
}

static void test_log_long_lines_are_cut(void **state)
{
    char *big = malloc(3 * KVF_LOG_LINE);
    size_t len;

    (void)state;
    assert_non_null(big);
    for (unsigned i = 0; i < 2; i++) {
        memset(big, i == 0 ? 'x' : '\n', 3 * KVF_LOG_LINE - 1);
        big[3 * KVF_LOG_LINE - 1] = '\0';
        kvf_log(KVF_LOG_INFO, "T", "%s", big);
        len = strlen(tapped[i]);
        assert_true(len < KVF_LOG_LINE && len > KVF_LOG_LINE - 8);
        assert_string_equal(tapped[i] + len - 3, "...");
    }
    free(big);
    assert_null(strstr(strchr(strchr(log_file(), '\n') + 1, '\n') + 1, "\n"));
}

static void test_log_limit(void **state)
{
    struct kvf_log_limit l = {0};
    uint64_t t = 5 * 1000000000ull;
    unsigned lines;

    (void)state;
    for (unsigned i = 0; i < 100; i++)
        kvf_log_limited(&l, t + i, KVF_LOG_WARN, "T", "%u", i);
    lines = n_tapped;
    assert_true(lines >= 1 && lines < 8);
    n_tapped = 0;
    kvf_log_limited(&l, t + 1000000000ull, KVF_LOG_WARN, "T", "after");
    assert_int_equal(n_tapped, 2);
    {
        char want[64];

        snprintf(want, sizeof want, "] %u lines ", 100 - lines);
        assert_non_null(strstr(tapped[0], want));
    }
    assert_non_null(strstr(tapped[1], "] after"));
    /* A burst of its own. */
    l = (struct kvf_log_limit){0};
    assert_true(kvf_log_allow(&l, t, 2) && kvf_log_allow(&l, t, 2));
    assert_false(kvf_log_allow(&l, t + 1000000000ull - 1, 2));
    assert_true(kvf_log_allow(&l, t + 1000000000ull, 2));
    assert_int_equal(l.dropped, 1);
}

static void test_log_reopen(void **state)
{
    char moved[64];

    (void)state;
    snprintf(moved, sizeof moved, "%s.1", log_path);
    kvf_log(KVF_LOG_INFO, "T", "before");
    assert_int_equal(rename(log_path, moved), 0);
    kvf_log(KVF_LOG_INFO, "T", "still the old file");
    assert_int_equal(kvf_log_reopen(KVF_LOG_DEBUG, NULL), 0);
    kvf_log(KVF_LOG_DEBUG, "T", "the new file");
    assert_non_null(strstr(log_file(), "the new file"));
    assert_null(strstr(log_file(), "before"));
    assert_int_equal(unlink(moved), 0);
    assert_int_equal(kvf_log_open("/no/such/directory/x", KVF_LOG_INFO, NULL),
                     -KVF_INVALID);
    kvf_log(KVF_LOG_DEBUG, "T", "the sink stays");
    assert_non_null(strstr(log_file(), "the sink stays"));
}

/* A pipe that nobody empties loses lines, and does not block. */
static void test_log_never_blocks(void **state)
{
    char path[64];
    uint64_t lost = kvf_log_lost();
    int fd;

    (void)state;
    snprintf(path, sizeof path, "%s.fifo", log_path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(kvf_log_open(path, KVF_LOG_INFO, NULL), -KVF_INVALID);
    fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(kvf_log_open(path, KVF_LOG_INFO, NULL), 0);
    for (unsigned i = 0; i < 2000; i++)
        kvf_log(KVF_LOG_INFO, "T", "%0200u", i);
    assert_true(kvf_log_lost() > lost);
    lost = kvf_log_lost();
    close(fd);
    kvf_log_close();
    unlink(path);
    assert_int_equal(kvf_log_lost(), lost);
}

static void test_log_key(void **state)
{
    static const struct {
        const char *key, *shown;
    } rows[] = {
        {"req-1/layer.0:k", "req-1/layer.0:k"},
        {"a b=c\"d\\e\n\x7f", "a\\x20b\\x3dc\\x22d\\x5ce\\x0a\\x7f"},
        {"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80",
         "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"\xc3", "\\xc3"},                   /* cut */
        {"\xc0\xaf", "\\xc0\\xaf"},          /* overlong */
        {"\xc2\x85", "\\xc2\\x85"},          /* a C1 control */
        {"\xed\xa0\x80", "\\xed\\xa0\\x80"}, /* a surrogate */
        {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"},
        {"\x80x", "\\x80x"},
        {"", ""},
    };
    char out[128];

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_string_equal(
            kvf_log_key(out, sizeof out, rows[i].key, strlen(rows[i].key)),
            rows[i].shown);
    assert_string_equal(kvf_log_key(out, 7, "abcdef", 6), "abcdef");
    assert_string_equal(kvf_log_key(out, 7, "abcdefg", 7), "abc...");
    assert_string_equal(kvf_log_key(out, 7, "ab\0cd", 5), "ab...");
    assert_string_equal(kvf_log_key(out, 1, "abc", 3), "");
}

static void test_log_level_names(void **state)
{
    enum kvf_log_level level;

    (void)state;
    assert_int_equal(kvf_log_parse_level("trace", &level), 0);
    assert_int_equal(level, KVF_LOG_TRACE);
    assert_int_equal(kvf_log_parse_level("Trace", &level), -KVF_INVALID);
}

static void test_rng(void **state)
{
    struct kvf_rng a, b;
    unsigned count[7] = {0};
    unsigned char x[32], y[32];

    (void)state;
    kvf_rng_seed(&a, 1);
    kvf_rng_seed(&b, 1);
    for (unsigned i = 0; i < 100; i++)
        assert_true(kvf_rng_next(&a) == kvf_rng_next(&b));
    kvf_rng_seed(&b, 2);
    assert_true(kvf_rng_next(&a) != kvf_rng_next(&b));
    for (unsigned i = 0; i < 70000; i++)
        count[kvf_rng_below(&a, 7)]++;
    for (unsigned i = 0; i < 7; i++)
        assert_in_range(count[i], 9500, 10500);
    assert_int_equal(kvf_rng_below(&a, 1), 0);
    kvf_random_bytes(x, sizeof x);
    kvf_random_bytes(y, sizeof y);
    assert_memory_not_equal(x, y, sizeof x);
    assert_int_equal(kvf_secret_equal(x, x, sizeof x), 1);
    memcpy(y, x, sizeof x);
    y[31] ^= 1;
    assert_int_equal(kvf_secret_equal(x, y, sizeof x), 0);
    assert_int_equal(kvf_secret_equal(x, y, 31), 1);
}

static void test_why(void **state)
{
    struct kvf_why why;
    char big[600];

    (void)state;
    assert_int_equal(kvf_fail(NULL, KVF_BUSY, "x"), -KVF_BUSY);
    assert_int_equal(kvf_fail(&why, KVF_NO_SPACE, "%d bytes", 5),
                     -KVF_NO_SPACE);
    assert_string_equal(why.text, "5 bytes");
    assert_int_equal(kvf_fail_prefix(&why, "pool %s", "p"), -KVF_NO_SPACE);
    assert_string_equal(why.text, "pool p: 5 bytes");
    /* It may quote itself. */
    assert_int_equal(kvf_fail(&why, KVF_BUSY, "(%s)", why.text), -KVF_BUSY);
    assert_string_equal(why.text, "(pool p: 5 bytes)");
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    kvf_fail(&why, KVF_BUSY, "%s", big);
    assert_int_equal(strlen(why.text), sizeof why.text - 1);
    kvf_fail_prefix(&why, "p");
    assert_int_equal(strlen(why.text), sizeof why.text - 1);
    assert_memory_equal(why.text, "p: x", 4);
    kvf_fail_prefix(&why, "%s", big);
    assert_int_equal(strlen(why.text), sizeof why.text - 1);
}

static void test_status(void **state)
{
    (void)state;
    assert_int_equal(KVF_STATUS_COUNT, 22); /* numbers are stable */
    for (int i = 0; i < KVF_STATUS_COUNT; i++) {
        const char *name = kvf_status_name((enum kvf_status)i);

        assert_int_equal(kvf_status_parse(name, strlen(name)), i);
        assert_true(kvf_status_text((enum kvf_status)i)[0] != '\0');
    }
    assert_string_equal(kvf_status_name(KVF_NO_SPACE), "NO_SPACE");
    assert_string_equal(kvf_status_name((enum kvf_status)99), "INTERNAL");
    assert_string_equal(kvf_status_name((enum kvf_status) - 1), "INTERNAL");
    assert_int_equal(kvf_status_parse("NO_SPAC", 7), -1);
    assert_int_equal(kvf_status_parse("OKAY", 2), KVF_OK);
    assert_int_equal(kvf_status_parse("", 0), -1);
}

#define LOG_TEST(fn)                                                           \
    cmocka_unit_test_setup_teardown(fn, log_setup, log_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hist),
        cmocka_unit_test(test_hist_recent),
        LOG_TEST(test_log_lines),
        LOG_TEST(test_log_long_lines_are_cut),
        LOG_TEST(test_log_limit),
        LOG_TEST(test_log_reopen),
        LOG_TEST(test_log_never_blocks),
        cmocka_unit_test(test_log_key),
        cmocka_unit_test(test_log_level_names),
        cmocka_unit_test(test_rng),
        cmocka_unit_test(test_why),
        cmocka_unit_test(test_status),
    };
    const char *env = getenv("KVF_SEED");

    seed = env != NULL ? strtoull(env, NULL, 0) : (uint64_t)time(NULL);
    printf("KVF_SEED=%llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
