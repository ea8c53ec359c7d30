/* Requests of engines: every rule about one message that docs/PROTOCOL.md
 * states, as a line of good or bad requests. */
#include "notation.h"
#include "wire/engine_msg.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static struct kvf_mpw out;
static struct kvf_req req;
static struct kvf_why why;

static int decode_frames(const char *text, const void *payload, size_t len)
{
    kvf_mpw_reset(&out);
    notation_value(&out, text);
    return kvf_req_decode(&req, out.buf.data, out.buf.size, payload, len,
                          payload != NULL, &why);
}

static int decode(const char *text)
{
    return decode_frames(text, NULL, 0);
}

static int once(const char *text)
{
    int rc = decode(text);

    kvf_req_done(&req);
    kvf_req_done(&req);
    return rc;
}

static int setup(void **state)
{
    (void)state;
    kvf_mpw_init(&out);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    kvf_mpw_fini(&out);
    return 0;
}

static void test_good(void **state)
{
    static const char *const good[] = {
        "{'op':'ping'}",
        "{'op':'ping','unknown':{'a':[1,2.5,nil]}}",
        "{'op':'bye','id':nil}",
        "{'op':'hello','version':1}",
        "{'op':'hello','version':1,'client':'t','pid':7,'events':true,"
        "'session':<000102030405060708090a0b0c0d0e0f>}",
        "{'op':'alloc','size':1}",
        "{'op':'free','buffer':0}",
        "{'op':'free','buffer':0,'quiet':true}",
        "{'op':'release','buffer':18446744073709551615}",
        "{'op':'release','buffer':1,'quiet':false}",
        "{'op':'unregister','region':3}",
        "{'op':'register','fd':0,'size':4096}",
        "{'op':'put','key':'k','segments':[{'buffer':1}]}",
        "{'op':'put','key':'k','segments':[{'buffer':1}],'next':1}",
        "{'op':'put','key':'k','segments':[{'region':1,'offset':0,'length':5}],"
        "'notify':true}",
        "{'op':'get','key':'k'}",
        "{'op':'get','key':'k','timeout_ms':0,'wait':false,'mode':'view'}",
        "{'op':'get','key':'k','into':[{'buffer':1,'length':5},{'buffer':1,"
        "'offset':5}],'mode':'copy'}",
        "{'op':'get','key':'k','metadata':'nonsense'}",
        "{'op':'mget','gets':[5]}",
        "{'op':'cancel','target':5}",
        "{'op':'cancel','target':nil}",
        "{'op':'fail','key':'k','reason':'because'}",
        "{'op':'cleanup','request_id':'r','from':0,'to':1}",
        "{'op':'list'}",
        "{'op':'list','prefix':'','limit':100000}",
        "{'op':'peer','stage':15,'rank':63,'replica':62,'host':'h','port':1}",
        "{'op':'stats'}",
        "{'op':'health'}",
        "{'op':'drain','timeout_ms':5}",
        "{'op':'push','key':'k','segments':[{'region':1,'offset':0,"
        "'length':5}],'to':{'stage':1},'timeout_ms':0}",
        "{'op':'push','request_id':'r','from':0,'to':1,'segments':"
        "[{'buffer':1}],'checksum':true}",
        "{'op':'push','key':'k','segments':[{'buffer':1}],'target':"
        "{'host':'h','port':5}}",
        "{'op':'expose','name':'w','size':1,'writable':true}",
        "{'op':'expose','name':'w','region':0,'writable':false}",
        "{'op':'unexpose','window':5}",
        "{'op':'write','to':{'stage':1},'window':'w','segments':[{'buffer':1},"
        "{'buffer':1}],'notify':<>}",
        "{'op':'read','target':{'host':'h','port':5},'window':'w',"
        "'target_offset':4096,'segments':[{'buffer':1}]}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        if (once(good[i]) != 0)
            fail_msg("%s: %s", good[i], why.text);
}

static void refuses(const char *const bad[][2], size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (once(bad[i][0]) != -KVF_INVALID)
            fail_msg("taken: %s", bad[i][0]);
        if (strstr(why.text, bad[i][1]) == NULL)
            fail_msg("%s: says \"%s\"", bad[i][0], why.text);
    }
}

static void test_bad(void **state)
{
    /* request, words that the message must have */
    static const char *const bad[][2] = {
        {"[]", "not a map"},
        {"{}", "field op: missing"},
        {"{'op':'nope'}", "unknown op nope"},
        {"{'op':5}", "field op"},
        {"{'op':'ping',5:5}", "not a string"},
        {"{'op':'ping','id':[1]}", "field id"},
        {"{'op':'ping','id':{}}", "field id"},
        {"{'op':'hello'}", "field version: missing"},
        {"{'op':'hello','version':1.0}", "a float"},
        {"{'op':'hello','version':true}", "a bool"},
        {"{'op':'hello','version':-1}", "negative"},
        {"{'op':'hello','version':1,'session':<00>}", "field session"},
        {"{'op':'hello','version':1,'pid':-1}", "field pid"},
        {"{'op':'alloc','size':0}", "field size"},
        {"{'op':'alloc'}", "field size: missing"},
        {"{'op':'free','buffer':-1}", "field buffer"},
        {"{'op':'free','buffer':1,'quiet':1}", "field quiet"},
        {"{'op':'release','buffer':1,'quiet':'yes'}", "field quiet"},
        {"{'op':'release','quiet':true}", "field buffer: missing"},
        {"{'op':'put','key':'k','segments':[{'buffer':1}],'next':0}",
         "field next"},
        {"{'op':'put','key':'k','segments':[{'buffer':1}],'next':-1}",
         "field next"},
        {"{'op':'put','key':'k','segments':[{'buffer':1}],'next':true}",
         "field next"},
        {"{'op':'put','key':'k','segments':[{'buffer':1}],'next':"
         "9223372036854775808}",
         "field next"},
        {"{'op':'register','fd':2147483648,'size':1}", "field fd"},
        {"{'op':'put','key':'k'}", "segments or a payload"},
        {"{'op':'put','key':'','segments':[{'buffer':1}]}", "field key"},
        {"{'op':'put','segments':[{'buffer':1}]}", "field key: missing"},
        {"{'op':'put','key':'k','segments':[]}", "empty"},
        {"{'op':'put','key':'k','segments':[{}]}", "buffer or region"},
        {"{'op':'put','key':'k','segments':[{'buffer':1,'region':1}]}",
         "buffer or region"},
        {"{'op':'put','key':'k','segments':[{'buffer':1,'length':0}]}",
         "field length"},
        {"{'op':'put','key':'k','segments':[{'region':1,'length':5}],"
         "'notify':true}",
         "needs offset"},
        {"{'op':'put','key':'k','segments':[{'region':1,'offset':0,"
         "'length':5}]}",
         "notify"},
        {"{'op':'put','key':'k','segments':[{'buffer':1,'offset':1,'length':"
         "9223372036854775807}]}",
         "out of range"},
        {"{'op':'put','key':'k','segments':[{'buffer':1,'length':"
         "9223372036854775807},{'buffer':2,'length':1}]}",
         "total"},
        {"{'op':'put','key':'k','segments':[{'buffer':1}],'ttl_ms':0}",
         "field ttl_ms"},
        {"{'op':'put','key':'k','segments':[{'buffer':1}],'readers':-1}",
         "field readers"},
        {"{'op':'put','key':'k','segments':[{'buffer':1}],'meta':'str'}",
         "field meta"},
        {"{'op':'put','key':'k','segments':[{'buffer':1}],"
         "'on_duplicate':'x'}",
         "on_duplicate"},
        {"{'op':'put','key':'k','request_id':'r','from':0,'to':1,"
         "'segments':[{'buffer':1}]}",
         "not both"},
        {"{'op':'get','key':'k','from':1}", "field from"},
        {"{'op':'get','key':'k','from':{'rank':1}}", "field stage: missing"},
        {"{'op':'get','key':'k','from':{'stage':16}}", "field from"},
        {"{'op':'get','request_id':'r','from':{'stage':1},'to':1}",
         "field from"},
        {"{'op':'get','request_id':'r','from':1}", "field to: missing"},
        {"{'op':'get','key':'k','source':{'host':'h'}}", "field source"},
        {"{'op':'get','key':'k','source':{'host':'h','port':65536}}",
         "field source"},
        {"{'op':'get','key':'k','mode':'into'}", "field mode"},
        {"{'op':'get','key':'k','mode':'inline','into':[{'buffer':1}]}",
         "inline"},
        {"{'op':'get','key':'k','into':[{'buffer':1,'offset':4,'length':5},"
         "{'buffer':2},{'buffer':1,'length':5}]}",
         "named twice"},
        {"{'op':'get','key':'k','timeout_ms':-1}", "timeout_ms"},
        {"{'op':'get','key':'k','wait':1}", "field wait"},
        {"{'op':'mget'}", "field gets: missing"},
        {"{'op':'mget','gets':[]}", "field gets"},
        {"{'op':'cancel'}", "field target: missing"},
        {"{'op':'cancel','target':[1]}", "field target"},
        {"{'op':'cleanup'}", "request_id: missing"},
        {"{'op':'cleanup','request_id':'r','from':16}", "field from"},
        {"{'op':'list','limit':-1}", "field limit"},
        {"{'op':'peer','stage':1,'rank':0,'port':5}", "field host"},
    };

    (void)state;
    refuses(bad, sizeof bad / sizeof bad[0]);
}

static void test_bad_push(void **state)
{
    static const char *const bad[][2] = {
        {"{'op':'push','key':'k','segments':[{'buffer':1}]}", "`to`"},
        {"{'op':'push','key':'k','segments':[{'buffer':1}],'to':1}",
         "field to"},
        {"{'op':'push','request_id':'r','from':0,'to':{'stage':1},"
         "'segments':[{'buffer':1}]}",
         "field to"},
        {"{'op':'push','key':'k','to':{'stage':1}}", "segments or a payload"},
        {"{'op':'push','key':'k','segments':[{'buffer':1}],'target':"
         "{'host':'h'}}",
         "field target"},
        {"{'op':'expose','name':'w','size':1}", "field writable: missing"},
        {"{'op':'expose','name':'','size':1,'writable':true}", "field name"},
        {"{'op':'expose','size':1,'writable':true}", "field name: missing"},
        {"{'op':'expose','name':'w','writable':true}", "size or region"},
        {"{'op':'expose','name':'w','size':1,'region':1,'writable':true}",
         "size or region"},
        {"{'op':'expose','name':'w','size':0,'writable':true}", "field size"},
        {"{'op':'unexpose'}", "field window: missing"},
        {"{'op':'write','to':{'stage':1},'segments':[{'buffer':1}]}",
         "field window: missing"},
        {"{'op':'write','window':'w','segments':[{'buffer':1}]}", "`to`"},
        {"{'op':'write','to':{'stage':1},'window':'w'}",
         "field segments: missing"},
        {"{'op':'write','to':{'stage':1},'window':'w','target_offset':"
         "9223372036854775807,'segments':[{'buffer':1,'length':1}]}",
         "out of range"},
        {"{'op':'write','to':{'stage':1},'window':'w','segments':"
         "[{'buffer':1}],'notify':'s'}",
         "field notify"},
        {"{'op':'read','to':{'stage':1},'window':'w','segments':[{'buffer':1,"
         "'offset':4,'length':5},{'buffer':1,'length':5}]}",
         "named twice"},
    };

    (void)state;
    refuses(bad, sizeof bad / sizeof bad[0]);
}

static void test_id(void **state)
{
    static const uint8_t cut[] = "\x82\xa2id\xcd\x00\x05\xa2op";

    (void)state;
    assert_int_equal(decode("{'id':'abc','op':'nope'}"), -KVF_INVALID);
    assert_true(req.has_id);
    assert_int_equal(req.id_len, 4);
    assert_memory_equal(req.id,
                        "\xa3"
                        "abc",
                        4);
    kvf_req_done(&req);
    /* an encoding that is wider than needed comes back unchanged */
    assert_int_equal(
        kvf_req_decode(&req, cut, sizeof cut - 1, NULL, 0, false, &why),
        -KVF_INVALID);
    assert_true(req.has_id);
    assert_int_equal(req.id_len, 3);
    kvf_req_done(&req);
    assert_int_equal(decode("{'id':-1,'op':'ping'}"), 0);
    assert_int_equal(req.id_len, 1);
    kvf_req_done(&req);
    assert_int_equal(decode("{'id':[1],'op':'ping'}"), -KVF_INVALID);
    assert_false(req.has_id);
    kvf_req_done(&req);
    assert_int_equal(kvf_req_decode(&req, "", 0, NULL, 0, false, &why),
                     -KVF_INVALID);
    assert_string_equal(why.text, "field op: missing");
    kvf_req_done(&req);
}

static void test_payload(void **state)
{
    (void)state;
    assert_int_equal(decode_frames("{'op':'put','key':'k'}", "xyz", 3), 0);
    assert_int_equal(req.payload_len, 3);
    assert_int_equal(req.u.put.readers, 1);
    kvf_req_done(&req);
    assert_int_equal(decode_frames("{'op':'put','key':'k'}", "", 0),
                     -KVF_INVALID);
    kvf_req_done(&req);
    assert_int_equal(
        decode_frames("{'op':'put','key':'k','segments':[{'buffer':1}]}", "x",
                      1),
        -KVF_INVALID);
    kvf_req_done(&req);
    assert_int_equal(decode_frames("{'op':'ping'}", "x", 1), -KVF_INVALID);
    assert_non_null(strstr(why.text, "extra frames"));
    kvf_req_done(&req);
}

/* An unsigned int may be any unsigned int, and a text any text: what is more
 * than there can be is taken as the most there can be. */
static void test_largest_values(void **state)
{
    (void)state;
    assert_int_equal(decode_frames("{'op':'put','key':'k','readers':"
                                   "18446744073709551615,'ttl_ms':"
                                   "18446744073709551615}",
                                   "x", 1),
                     0);
    assert_true(req.u.put.readers == UINT64_MAX);
    assert_true(req.u.put.ttl_ms == KVF_MAX_MS);
    kvf_req_done(&req);
    assert_int_equal(
        decode("{'op':'get','key':'k','timeout_ms':18446744073709551615}"), 0);
    assert_true(req.u.get.timeout_ms == KVF_MAX_MS);
    kvf_req_done(&req);
    assert_int_equal(decode("{'op':'list','limit':18446744073709551615}"), 0);
    assert_int_equal(req.u.list.limit, KVF_MAX_LIST);
    kvf_req_done(&req);
    assert_int_equal(decode("{'op':'list','limit':0}"), 0);
    assert_int_equal(req.u.list.limit, 0);
    kvf_req_done(&req);
    assert_int_equal(decode("{'op':'hello','version':1,'pid':0}"), 0);
    assert_true(req.u.hello.has_pid);
    kvf_req_done(&req);
    assert_int_equal(
        decode("{'op':'hello','version':1,'pid':18446744073709551615}"), 0);
    kvf_req_done(&req);
}

static void test_get_values(void **state)
{
    (void)state;
    assert_int_equal(decode("{'op':'get','request_id':'r:1','from':3,'to':4}"),
                     0);
    assert_int_equal(req.u.get.key.len, 7);
    assert_memory_equal(req.u.get.key.p, "r:1:3_4", 7);
    assert_true(req.u.get.has_from);
    assert_int_equal(req.u.get.from.stage, 3);
    assert_false(req.u.get.from.has_rank);
    assert_true(req.u.get.wait);
    kvf_req_done(&req);
    assert_int_equal(
        decode("{'op':'get','key':'k','metadata':{'source_host':5,'generation'"
               ":9,'incarnation':<00112233445566778899aabbccddeeff>}}"),
        0);
    assert_false(req.u.get.has_meta_endpoint);
    assert_true(req.u.get.has_meta_generation);
    assert_int_equal(req.u.get.meta_generation, 9);
    assert_true(req.u.get.has_incarnation);
    assert_int_equal(req.u.get.incarnation.b[15], 0xff);
    kvf_req_done(&req);
    assert_int_equal(
        decode("{'op':'get','key':'k','metadata':{'source_host':'h',"
               "'source_port':80},'into':[{'buffer':4}]}"),
        0);
    assert_true(req.u.get.has_meta_endpoint);
    assert_string_equal(req.u.get.meta_endpoint.host, "h");
    assert_int_equal(req.u.get.mode, KVF_MODE_INTO);
    assert_int_equal(req.u.get.n_into, 1);
    assert_false(req.u.get.into[0].has_length);
    kvf_req_done(&req);
}

static void test_mget(void **state)
{
    struct kvf_req_get g;

    (void)state;
    assert_int_equal(
        decode("{'op':'mget','gets':[{'key':'a','into':[{'buffer':1}]},7,"
               "{'request_id':'r','from':0,'to':1}],'all_or_nothing':true,"
               "'timeout_ms':9}"),
        0);
    assert_int_equal(req.u.mget.n, 3);
    assert_true(req.u.mget.all_or_nothing && req.u.mget.has_timeout);
    assert_int_equal(kvf_req_mget_item(&req, 0, &g, &why), 0);
    assert_int_equal(g.n_into, 1);
    kvf_req_get_done(&g);
    assert_int_equal(kvf_req_mget_item(&req, 1, &g, &why), -KVF_INVALID);
    assert_int_equal(kvf_req_mget_item(&req, 2, &g, &why), 0);
    assert_memory_equal(g.key.p, "r:0_1", 5);
    assert_int_equal(kvf_req_mget_item(&req, 3, &g, &why), -KVF_INTERNAL);
    kvf_req_done(&req);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),     cmocka_unit_test(test_bad),
        cmocka_unit_test(test_bad_push), cmocka_unit_test(test_id),
        cmocka_unit_test(test_payload),  cmocka_unit_test(test_get_values),
        cmocka_unit_test(test_mget),     cmocka_unit_test(test_largest_values),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
