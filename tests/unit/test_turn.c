/* When turns are long: transport/turn.h. */
#include "transport/turn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define S KVF_NS_PER_S

static void short_after_a_question(void **state)
{
    struct kvf_stats st = {0};
    struct kvf_turn t = {0};

    (void)state;
    assert_true(kvf_turn_long(&t, &st, 10 * S, false));
    assert_true(kvf_turn_long(&t, &st, 10 * S, true));
    st.requests++; /* a ping */
    assert_false(kvf_turn_long(&t, &st, 10 * S, true));
    assert_false(kvf_turn_long(&t, &st, 10 * S + KVF_TURN_ASKED_NS - 1, true));
    assert_true(kvf_turn_long(&t, &st, 10 * S + KVF_TURN_ASKED_NS, true));
    st.claims++; /* a lookup of a peer */
    assert_false(kvf_turn_long(&t, &st, 20 * S, true));
}

static void what_wants_the_bytes_is_no_question(void **state)
{
    struct kvf_stats st = {0};
    struct kvf_turn t = {0};

    (void)state;
    st.requests++; /* a get, and its claim at the owner */
    st.claims++;
    assert_true(kvf_turn_long(&t, &st, 1 * S, false));
    assert_true(kvf_turn_long(&t, &st, 1 * S, true));
}

static void more_to_move_is_no_question(void **state)
{
    struct kvf_stats st = {0};
    struct kvf_turn t = {0};

    (void)state;
    assert_true(kvf_turn_long(&t, &st, 1 * S, false));
    st.requests++;
    st.moves++;
    assert_true(kvf_turn_long(&t, &st, 1 * S, true));
    st.requests += 2; /* and a ping */
    st.moves++;
    assert_false(kvf_turn_long(&t, &st, 1 * S, true));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_after_a_question),
        cmocka_unit_test(what_wants_the_bytes_is_no_question),
        cmocka_unit_test(more_to_move_is_no_question),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
