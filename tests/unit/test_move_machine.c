/* The machine of a push, write or read against its table: every pair of state
 * and event, and what depends on the flags and on the attempts that are left.
 */
#include "request/move_machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

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
        KVF_MOVE_##s, a                                                        \
    }
#define ASK KVF_MOVE_DO_ASK
#define FAIL S(FAILED, KVF_MOVE_DO_FAIL)
#define TAKE S(FAILED, KVF_MOVE_DO_UNASK | KVF_MOVE_DO_FAIL)
#define DONE S(DONE, KVF_MOVE_DO_FINISH)
#define BACK S(RETRYING, KVF_MOVE_DO_BACKOFF)
#define MOVE S(MOVING, KVF_MOVE_DO_MOVE)

/* Columns in the order of the events: wait-peer, ask, grant, applied, moved,
 * broken, lost, backoff, confirmed, stop, quiet. No flag, attempts left. */
static const struct expect table[KVF_MOVE_STATE_COUNT][KVF_MOVE_EV_COUNT] = {
    [KVF_MOVE_ACCEPTED] = {S(CONNECTING, 0), S(ASKING, ASK), X, X, X, X, X, X,
                           X, FAIL, X},
    [KVF_MOVE_CONNECTING] = {S(CONNECTING, 0), S(ASKING, ASK), X, X, X, X, X, X,
                             X, FAIL, X},
    [KVF_MOVE_ASKING] = {S(CONNECTING, 0), S(ASKING, ASK), MOVE, DONE, X, X, X,
                         X, X, TAKE, X},
    [KVF_MOVE_MOVING] = {X, X, X, X, DONE, BACK, BACK, X, X,
                         S(DRAINING, KVF_MOVE_DO_CANCEL), X},
    [KVF_MOVE_RETRYING] = {X, X, X, X, X, X, S(RETRYING, 0), MOVE, X, FAIL, X},
    [KVF_MOVE_CONFIRMING] = {X, X, X, X, X, X, BACK, X, DONE, TAKE, X},
    [KVF_MOVE_DRAINING] = {X, X, X, X, X, X, X, X, X, S(DRAINING, 0), FAIL},
    [KVF_MOVE_DONE] = {X, X, X, X, X, X, X, X, X, X, X},
    [KVF_MOVE_FAILED] = {X, X, X, X, X, X, X, X, X, X, X},
};

static struct kvf_move_machine machine(unsigned state)
{
    return (struct kvf_move_machine){
        .state = (enum kvf_move_state)state, .attempts = 1, .max_attempts = 5};
}

static void every_pair(void **state)
{
    (void)state;
    for (unsigned s = 0; s < KVF_MOVE_STATE_COUNT; s++) {
        for (unsigned e = 0; e < KVF_MOVE_EV_COUNT; e++) {
            const struct expect *x = &table[s][e];
            struct kvf_move_machine m = machine(s);
            unsigned did = kvf_move_step(&m, (enum kvf_move_event)e);
            unsigned next = x->next == NO ? s : (unsigned)x->next;

            if (m.state != next || did != x->actions ||
                m.unexpected != (x->next == NO))
                fail_msg("%s + %s: %s, actions %u, unexpected %u",
                         kvf_move_state_name((enum kvf_move_state)s),
                         kvf_move_event_name((enum kvf_move_event)e),
                         kvf_move_state_name(m.state), did,
                         (unsigned)m.unexpected);
        }
    }
}

static void flags(void **state)
{
    struct kvf_move_machine m = machine(KVF_MOVE_MOVING);

    (void)state;
    m.confirm = true;
    assert_int_equal(kvf_move_step(&m, KVF_MOVE_EV_MOVED), KVF_MOVE_DO_CONFIRM);
    assert_int_equal(m.state, KVF_MOVE_CONFIRMING);
    /* What was granted is gone: the next attempt begins with the question. */
    assert_int_equal(kvf_move_step(&m, KVF_MOVE_EV_LOST), KVF_MOVE_DO_BACKOFF);
    assert_true(m.reask);
    assert_int_equal(kvf_move_step(&m, KVF_MOVE_EV_BACKOFF), KVF_MOVE_DO_ASK);
    assert_int_equal(m.state, KVF_MOVE_ASKING);
    assert_false(m.reask);
    assert_int_equal(m.attempts, 1);
    assert_int_equal(kvf_move_step(&m, KVF_MOVE_EV_GRANT), KVF_MOVE_DO_MOVE);
    assert_int_equal(m.attempts, 2);
}

static void bytes_with_the_question(void **state)
{
    struct kvf_move_machine m = machine(KVF_MOVE_ASKING);

    (void)state;
    m.attempts = 0;
    assert_int_equal(kvf_move_step(&m, KVF_MOVE_EV_APPLIED),
                     KVF_MOVE_DO_FINISH);
    assert_int_equal(m.attempts, 1);
}

static void attempts_run_out(void **state)
{
    static const enum kvf_move_event end[] = {KVF_MOVE_EV_BROKEN,
                                              KVF_MOVE_EV_LOST};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct kvf_move_machine m = machine(KVF_MOVE_MOVING);

        m.attempts = m.max_attempts;
        assert_int_equal(kvf_move_step(&m, end[i]), KVF_MOVE_DO_FAIL);
        assert_true(kvf_move_over(&m));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair), cmocka_unit_test(flags),
        cmocka_unit_test(bytes_with_the_question),
        cmocka_unit_test(attempts_run_out)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
