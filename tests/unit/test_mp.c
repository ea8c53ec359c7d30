/* MessagePack border: what is read, what is refused before it costs memory, and
 * that the writer's output reads back. */
#include "base/utf8.h"
#include "wire/mp.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int parse(const char *bytes, size_t len, struct kvf_why *why)
{
    struct kvf_mp m;
    /* Heap copy of the exact size: a read past the end is seen by ASan. */
    char *copy = malloc(len > 0 ? len : 1);
    int rc;

    assert_non_null(copy);
    memcpy(copy, bytes, len);
    rc = kvf_mp_parse(&m, copy, len, why);
    kvf_mp_done(&m);
    kvf_mp_done(&m);
    free(copy);
    return rc;
}
#define PARSE(s, why) parse(s, sizeof(s) - 1, why)

static void test_structure(void **state)
{
    struct kvf_why why;

    (void)state;
    assert_int_equal(PARSE("\xc0", NULL), 0);
    assert_int_equal(PARSE("\x80", NULL), 0);
    assert_int_equal(PARSE("\x82\xa1\x61\x01\xa1\x62\x93\x01\x02\xa0", NULL),
                     0);
    assert_int_equal(PARSE("\xc7\x01\x05x", NULL), 0);
    assert_int_equal(PARSE("\xd8\x05"
                           "0123456789abcdef",
                           NULL),
                     0);
    assert_int_equal(PARSE("", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\xc1", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\xc0\xc0", &why), -KVF_INVALID);
    assert_non_null(strstr(why.text, "1 bytes after"));
    /* every truncation */
    assert_int_equal(PARSE("\x81", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\x81\xa1", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\x81\xa1x", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\xcf\1\2\3", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\xc9\xff\xff\xff\xff", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\xda\x00", &why), -KVF_INVALID);
}

static void test_huge_counts(void **state)
{
    struct kvf_why why;

    (void)state;
    assert_int_equal(PARSE("\xdd\xff\xff\xff\xff", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\xdf\xff\xff\xff\xff", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\xdb\xff\xff\xff\xff", &why), -KVF_INVALID);
    assert_int_equal(PARSE("\xc6\xff\xff\xff\xff", &why), -KVF_INVALID);
}

static void test_limits(void **state)
{
    size_t n = KVF_MP_ITEMS + 1 + 5;
    char *b = malloc(n);
    char deep[KVF_MP_DEPTH + 2];
    struct kvf_why why;

    (void)state;
    memset(deep, (char)0x91, sizeof deep);
    deep[KVF_MP_DEPTH] = 0;
    assert_int_equal(parse(deep, KVF_MP_DEPTH + 1, &why), 0);
    deep[KVF_MP_DEPTH] = (char)0x91;
    deep[KVF_MP_DEPTH + 1] = 0;
    assert_int_equal(parse(deep, KVF_MP_DEPTH + 2, &why), -KVF_INVALID);
    assert_non_null(strstr(why.text, "deep"));

    assert_non_null(b);
    memset(b, 0, n);
    b[0] = (char)0xdd;
    kvf_put_u32((uint8_t *)b + 1, KVF_MP_ITEMS);
    assert_int_equal(parse(b, KVF_MP_ITEMS + 5, &why), 0);
    kvf_put_u32((uint8_t *)b + 1, KVF_MP_ITEMS + 1);
    assert_int_equal(parse(b, n, &why), -KVF_INVALID);
    assert_non_null(strstr(why.text, "too many"));
    free(b);
}

static void test_map_and_raw(void **state)
{
    static const char ok[] = "\x83\xa2id\x05\xd9\x02id\xcd\x00\x07\xa1x\xc0";
    static const char odd[] = "\x82\x05\x01\xa2id\x09";
    struct kvf_mp_raw raw = {.key = "id"};
    struct kvf_why why;
    struct kvf_mp m;

    (void)state;
    assert_int_equal(kvf_mp_parse_map(&m, ok, sizeof ok - 1, &raw, 1, &why), 0);
    assert_int_equal(raw.len, 3); /* the last one, as it was encoded */
    assert_memory_equal(raw.p, "\xcd\x00\x07", 3);
    kvf_mp_done(&m);
    assert_int_equal(kvf_mp_parse_map(&m, odd, sizeof odd - 1, &raw, 1, &why),
                     -KVF_INVALID);
    assert_int_equal(raw.len, 1);
    kvf_mp_done(&m);
    assert_int_equal(kvf_mp_parse_map(&m, NULL, 0, &raw, 1, &why), 0);
    assert_int_equal(m.root.type, MSGPACK_OBJECT_MAP);
    assert_null(raw.p);
    kvf_mp_done(&m);
    assert_int_equal(kvf_mp_parse_map(&m, "\x90", 1, &raw, 1, &why),
                     -KVF_INVALID);
    kvf_mp_done(&m);
}

static void test_fields(void **state)
{
    struct kvf_mpw w;
    struct kvf_mp m;
    struct kvf_why why;
    uint64_t u = 77;
    bool b = false;
    const char *s;
    const void *p;
    const msgpack_object *o;
    size_t len, mark;

    (void)state;
    kvf_mpw_init(&w);
    mark = kvf_mpw_map_begin(&w);
    kvf_mpw_kv_u64(&w, "u", UINT64_MAX);
    kvf_mpw_kv_bool(&w, "b", true);
    kvf_mpw_kv_str(&w, "s", "h\xc3\xa9");
    kvf_mpw_kv_bin(&w, "p", "\0\1", 2);
    kvf_mpw_str(&w, "f");
    kvf_mpw_double(&w, 1.0);
    kvf_mpw_str(&w, "n");
    kvf_mpw_nil(&w);
    kvf_mpw_str(&w, "neg");
    kvf_mpw_raw(&w, "\xff", 1);
    kvf_mpw_str(&w, "a");
    kvf_mpw_array(&w, 2);
    kvf_mpw_u64(&w, 1);
    kvf_mpw_map(&w, 0);
    kvf_mpw_str(&w, "bad");
    kvf_mpw_strn(&w, "\xc0\x80", 2);
    kvf_mpw_map_end(&w, mark, 9);
    assert_false(w.failed);
    assert_int_equal(kvf_mp_parse(&m, w.buf.data, w.buf.size, &why), 0);

    assert_int_equal(kvf_mp_u64(&m.root, "u", 0, UINT64_MAX, &u, &why), 1);
    assert_true(u == UINT64_MAX);
    assert_int_equal(kvf_mp_u64(&m.root, "u", 0, 5, &u, &why), -KVF_INVALID);
    assert_int_equal(kvf_mp_u64(&m.root, "absent", 0, 5, &u, &why), 0);
    assert_int_equal(kvf_mp_u64(&m.root, "n", 0, 5, &u, &why), 0);
    assert_int_equal(kvf_mp_u64(&m.root, "f", 0, 5, &u, &why), -KVF_INVALID);
    assert_int_equal(kvf_mp_u64(&m.root, "b", 0, 5, &u, &why), -KVF_INVALID);
    assert_int_equal(kvf_mp_u64(&m.root, "neg", 0, 5, &u, &why), -KVF_INVALID);
    assert_string_equal(why.text,
                        "field neg: must be an unsigned int, not a negative "
                        "int");
    assert_int_equal(kvf_mp_bool(&m.root, "b", &b, &why), 1);
    assert_true(b);
    assert_int_equal(kvf_mp_bool(&m.root, "u", &b, &why), -KVF_INVALID);
    assert_int_equal(kvf_mp_str(&m.root, "s", 1, 3, &s, &len, &why), 1);
    assert_int_equal(len, 3);
    assert_int_equal(kvf_mp_str(&m.root, "s", 1, 2, &s, &len, &why),
                     -KVF_INVALID);
    assert_int_equal(kvf_mp_str(&m.root, "bad", 1, 9, &s, &len, &why),
                     -KVF_INVALID);
    assert_int_equal(kvf_mp_str(&m.root, "p", 1, 9, &s, &len, &why),
                     -KVF_INVALID);
    assert_int_equal(kvf_mp_bin(&m.root, "p", 2, 2, &p, &len, &why), 1);
    assert_int_equal(kvf_mp_bin(&m.root, "s", 2, 2, &p, &len, &why),
                     -KVF_INVALID);
    assert_int_equal(kvf_mp_array(&m.root, "a", 2, &o, &why), 1);
    assert_int_equal(kvf_mp_array(&m.root, "a", 1, &o, &why), -KVF_INVALID);
    assert_int_equal(kvf_mp_map(&m.root, "a", &o, &why), -KVF_INVALID);
    kvf_mp_done(&m);

    kvf_mpw_reset(&w);
    mark = kvf_mpw_map_begin(&w);
    kvf_mpw_map_end(&w, mark, 65536);
    assert_true(w.failed);
    kvf_mpw_fini(&w);
}

static void test_utf8(void **state)
{
    static const char *const good[] = {"",
                                       "plain text of some length",
                                       "\xc2\x80",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {
        "\x80",         "\xc0\x80",         "\xc1\xbf",     "\xc3",
        "\xe0\x9f\xbf", "\xed\xa0\x80",     "\xe2\x82",     "\xf0\x8f\xbf\xbf",
        "\xf5\x80\x80", "\xf4\x90\x80\x80", "12345678\xff", "\xe2\x28\xa1"};

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(kvf_utf8_valid(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(kvf_utf8_valid(bad[i], strlen(bad[i])));
}

/* A sentence that was cut within a character must not spoil the message. */
static void test_text_is_always_utf8(void **state)
{
    static const char *const texts[][2] = {
        {"", ""},
        {"whole \xc3\xa9", "whole \xc3\xa9"},
        {"cut \xc3", "cut ?"},
        {"cut \xe2\x82", "cut ??"},
        {"\xff in \xc3\xa9 front", "? in \xc3\xa9 front"},
    };
    struct kvf_mpw w;
    struct kvf_mp m;

    (void)state;
    kvf_mpw_init(&w);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t len = strlen(texts[i][1]);

        kvf_mpw_reset(&w);
        kvf_mpw_str(&w, texts[i][0]);
        assert_int_equal(kvf_mp_parse(&m, w.buf.data, w.buf.size, NULL), 0);
        assert_int_equal(m.root.via.str.size, len);
        assert_memory_equal(m.root.via.str.ptr, texts[i][1], len);
        kvf_mp_done(&m);
    }
    kvf_mpw_fini(&w);
}

static bool same(const char *a, size_t a_len, const char *b, size_t b_len)
{
    return kvf_mp_same((const uint8_t *)a, a_len, (const uint8_t *)b, b_len);
}
#define SAME(a, b) same(a, sizeof(a) - 1, b, sizeof(b) - 1)

static void test_same_value(void **state)
{
    static const char five[][10] = {"\x05", "\xcc\x05", "\xcd\0\x05",
                                    "\xd0\x05", "\xd1\0\x05"};
    static const size_t len[] = {1, 2, 3, 2, 3};

    (void)state;
    for (unsigned i = 0; i < 5; i++)
        for (unsigned k = 0; k < 5; k++)
            assert_true(same(five[i], len[i], five[k], len[k]));
    assert_true(SAME("\x05", "\xcf\0\0\0\0\0\0\0\x05"));
    assert_true(SAME("\xff", "\xd3\xff\xff\xff\xff\xff\xff\xff\xff"));
    assert_true(SAME("\xe0", "\xd1\xff\xe0"));
    assert_true(SAME("\xa1x", "\xd9\1x"));
    assert_true(SAME("\xa1x", "\xdb\0\0\0\1x"));
    assert_true(SAME("\xc4\1x", "\xc6\0\0\0\1x"));
    assert_true(SAME("\xca\x3f\x80\0\0", "\xcb\x3f\xf0\0\0\0\0\0\0"));
    assert_true(SAME("\xc0", "\xc0"));
    assert_true(SAME("\xa0", "\xd9\0"));
    assert_false(SAME("\xff", "\xcf\xff\xff\xff\xff\xff\xff\xff\xff"));
    assert_false(SAME("\x05", "\x06"));
    assert_false(SAME("\xc2", "\xc3"));
    assert_false(SAME("\xc0", "\xc2"));
    assert_false(SAME("\xa1x", "\xc4\1x"));
    assert_false(SAME("\xa1x", "\xa2xy"));
    assert_false(SAME("\x01", "\xca\x3f\x80\0\0"));
    assert_false(SAME("\xcd\0", "\0"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_structure),
        cmocka_unit_test(test_huge_counts),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_map_and_raw),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_text_is_always_utf8),
        cmocka_unit_test(test_same_value),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
