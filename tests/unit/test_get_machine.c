/* The machine of a get against its table: every pair of state and event, under
 * every combination of what it depends on; and no way to a state that the table
 * of legal steps does not name. */
#include "request/get_machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

enum { NO = -1 }; /* an event that the state does not expect */

struct expect {
    int next;
    unsigned actions;
};

#define X                                                                      \
    {                                                                          \
        NO, 0                                                                  \
    }
#define S(s, a)                                                                \
    {                                                                          \
        KVF_GET_##s, a                                                         \
    }
#define ASK KVF_GET_DO_ASK
#define FAIL KVF_GET_DO_FAIL
#define DONE S(DONE, KVF_GET_DO_FINISH)
#define BACK S(RETRYING, KVF_GET_DO_BACKOFF)
#define PULL S(PULLING, KVF_GET_DO_PULL)

/* Columns in the order of the events: wait-peer, ask, grant, ready, admit,
 * pulled, broken, lost, backoff, verified, commit, stop, quiet. Neither verify
 * nor hold nor reask, attempts left. */
static const struct expect table[KVF_GET_STATE_COUNT][KVF_GET_EV_COUNT] = {
    [KVF_GET_ACCEPTED] = {S(CONNECTING, 0), S(ASKING, ASK), X, X, X, X, X, X, X,
                          X, X, S(FAILED, FAIL), X},
    [KVF_GET_CONNECTING] = {X, S(ASKING, ASK), X, X, X, X, X, X, X, X, X,
                            S(FAILED, FAIL), X},
    [KVF_GET_ASKING] = {S(CONNECTING, 0), X, S(CLAIMED, KVF_GET_DO_ADMIT), DONE,
                        X, X, X, X, X, X, X, S(FAILED, KVF_GET_DO_UNASK | FAIL),
                        X},
    [KVF_GET_CLAIMED] = {X, X, X, X, PULL, X, X, BACK, X, X, X, S(FAILED, FAIL),
                         X},
    [KVF_GET_PULLING] = {X, X, X, X, X, DONE, BACK, BACK, X, X, X,
                         S(DRAINING, KVF_GET_DO_CANCEL), X},
    [KVF_GET_RETRYING] = {X, X, X, X, X, X, X, S(RETRYING, 0), PULL, X, X,
                          S(FAILED, FAIL), X},
    [KVF_GET_VERIFYING] = {X, X, X, X, X, X, X, X, X, DONE, X, S(FAILED, FAIL),
                           X},
    [KVF_GET_HELD] = {X, X, X, X, X, X, X, X, X, X, DONE, S(FAILED, FAIL), X},
    [KVF_GET_DRAINING] = {X, X, X, X, X, X, X, X, X, X, X, S(DRAINING, 0),
                          S(FAILED, FAIL)},
    [KVF_GET_DONE] = {X, X, X, X, X, X, X, X, X, X, X, X, X},
    [KVF_GET_FAILED] = {X, X, X, X, X, X, X, X, X, X, X, X, X},
};

static struct kvf_get_machine machine(unsigned state)
{
    return (struct kvf_get_machine){
        .state = (enum kvf_get_state)state, .attempts = 1, .max_attempts = 5};
}

static void every_pair(void **state)
{
    (void)state;
    for (unsigned s = 0; s < KVF_GET_STATE_COUNT; s++) {
        for (unsigned e = 0; e < KVF_GET_EV_COUNT; e++) {
            const struct expect *x = &table[s][e];
            struct kvf_get_machine m = machine(s);
            unsigned did = kvf_get_step(&m, (enum kvf_get_event)e);
            unsigned next = x->next == NO ? s : (unsigned)x->next;

            if (m.state != next || did != x->actions ||
                m.unexpected != (x->next == NO))
                fail_msg("%s + %s: %s, actions %u, unexpected %u",
                         kvf_get_state_name((enum kvf_get_state)s),
                         kvf_get_event_name((enum kvf_get_event)e),
                         kvf_get_state_name(m.state), did,
                         (unsigned)m.unexpected);
        }
    }
}

/* Whatever the flags: legal (go() asserts), and over means no more actions. */
static void every_flag(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 16; bits++) {
        for (unsigned s = 0; s < KVF_GET_STATE_COUNT; s++) {
            for (unsigned e = 0; e < KVF_GET_EV_COUNT; e++) {
                struct kvf_get_machine m = machine(s);
                unsigned did;

                m.verify = bits & 1;
                m.hold = bits & 2;
                m.reask = bits & 4;
                m.attempts = bits & 8 ? 5 : 1;
                did = kvf_get_step(&m, (enum kvf_get_event)e);
                if (did & (KVF_GET_DO_FINISH | KVF_GET_DO_FAIL))
                    assert_true(kvf_get_over(&m));
                else if (m.state != s)
                    assert_false(kvf_get_over(&m));
                /* Never two things that both may end the get. */
                did &= ~(KVF_GET_DO_UNASK | KVF_GET_DO_GIVE_UP);
                assert_int_equal(did & (did - 1), 0);
            }
        }
    }
}

static void complete_by_way_of_checks(void **state)
{
    struct kvf_get_machine m = machine(KVF_GET_PULLING);

    (void)state;
    m.verify = m.hold = true;
    assert_int_equal(kvf_get_step(&m, KVF_GET_EV_PULLED), KVF_GET_DO_VERIFY);
    assert_int_equal(m.state, KVF_GET_VERIFYING);
    assert_int_equal(kvf_get_step(&m, KVF_GET_EV_VERIFIED), KVF_GET_DO_HOLD);
    assert_int_equal(m.state, KVF_GET_HELD);
    assert_int_equal(kvf_get_step(&m, KVF_GET_EV_COMMIT), KVF_GET_DO_FINISH);
    assert_int_equal(m.state, KVF_GET_DONE);
    assert_int_equal(m.unexpected, 0);
}

static void attempts_run_out(void **state)
{
    struct kvf_get_machine m = {.state = KVF_GET_CLAIMED, .max_attempts = 2};

    (void)state;
    assert_int_equal(kvf_get_step(&m, KVF_GET_EV_ADMIT), KVF_GET_DO_PULL);
    assert_int_equal(m.attempts, 1);
    assert_int_equal(kvf_get_step(&m, KVF_GET_EV_BROKEN), KVF_GET_DO_BACKOFF);
    assert_int_equal(kvf_get_step(&m, KVF_GET_EV_BACKOFF), KVF_GET_DO_PULL);
    assert_int_equal(m.attempts, 2);
    assert_int_equal(kvf_get_step(&m, KVF_GET_EV_BROKEN),
                     KVF_GET_DO_GIVE_UP | KVF_GET_DO_FAIL);
    assert_int_equal(m.state, KVF_GET_FAILED);
}

static void a_lost_claim_is_asked_again(void **state)
{
    static const enum kvf_get_state from[] = {KVF_GET_CLAIMED, KVF_GET_PULLING,
                                              KVF_GET_RETRYING};

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct kvf_get_machine m = machine(from[i]);

        kvf_get_step(&m, KVF_GET_EV_LOST);
        assert_true(m.reask);
        assert_int_equal(kvf_get_step(&m, KVF_GET_EV_BACKOFF), KVF_GET_DO_ASK);
        assert_int_equal(m.state, KVF_GET_ASKING);
        assert_int_equal(kvf_get_step(&m, KVF_GET_EV_GRANT), KVF_GET_DO_ADMIT);
        assert_false(m.reask);
    }
}

static void names(void **state)
{
    (void)state;
    for (unsigned s = 0; s < KVF_GET_STATE_COUNT; s++)
        for (unsigned t = 0; t < s; t++)
            assert_string_not_equal(kvf_get_state_name((enum kvf_get_state)s),
                                    kvf_get_state_name((enum kvf_get_state)t));
    assert_string_equal(kvf_get_event_name(KVF_GET_EV_QUIET), "quiet");
    assert_string_equal(kvf_get_event_name(KVF_GET_EV_COUNT), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair),
        cmocka_unit_test(every_flag),
        cmocka_unit_test(complete_by_way_of_checks),
        cmocka_unit_test(attempts_run_out),
        cmocka_unit_test(a_lost_claim_is_asked_again),
        cmocka_unit_test(names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
