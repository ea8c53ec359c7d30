/* Two daemons that read from each other, while anything happens at any time:
 * links opened and closed, access taken back, messages lost or late, calls and
 * work requests that fail, completions that do not come. Whatever it was, the
 * bytes are right, and in the end there is one connection for both ways and
 * nothing else. */
#include "pair.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What a device or a network does at any time. */
static void fault_at_random(struct pair *p, struct kvf_rng *rng)
{
    unsigned call;

    switch (kvf_rng_below(rng, 6)) {
    case 0:
        fake_qp_event(IBV_EVENT_QP_FATAL, kvf_rng_below(rng, 2) != 0);
        break;
    case 1:
    case 2:
        call =
            FAKE_dereg_mr + 1 +
            (unsigned)kvf_rng_below(rng, FAKE_CALL_COUNT - FAKE_dereg_mr - 1);
        fake.fail_at[call] = 1 + (unsigned)kvf_rng_below(rng, 9);
        fake.fail_errno = EINVAL;
        break;
    case 3:
        fake.status = IBV_WC_REM_ACCESS_ERR;
        fake.status_at = fake.executed + 1 + kvf_rng_below(rng, 5);
        break;
    case 4:
        p->lose = p->n_mail + 1 + (unsigned)kvf_rng_below(rng, 3);
        break;
    default:
        fake.hold = kvf_rng_below(rng, 3) == 0;
        fake.hold_flush = fake.hold && kvf_rng_below(rng, 2) == 0;
        break;
    }
}

static void faults_end(struct pair *p)
{
    memset(fake.fail_at, 0, sizeof fake.fail_at);
    fake.hold = fake.hold_flush = false;
    fake.status_at = 0;
    p->lose = 0;
}

/* Another transfer, if the one before is over. */
static void pull_again(struct pair_node *n)
{
    if (n->calls == 0 || !n->open)
        return;
    if (n->x.bytes_done == n->p->size)
        assert_memory_equal(n->mem, n->p->n[1 - n->i].pool, n->p->size);
    memset(n->mem, 0, n->p->size);
    kvf_xfer_reset(&n->x);
    pair_pull(n);
}

/* Anything at any time; what comes out of it is one connection. */
static void step_at_random(struct pair *p, struct kvf_rng *rng)
{
    struct pair_node *n = &p->n[kvf_rng_below(rng, 2)];

    switch (kvf_rng_below(rng, 24)) {
    case 0:
        pair_link(n);
        break;
    case 1:
        (void)kvf_rdma_expel(n->t, n);
        break;
    case 2:
    case 3:
        fault_at_random(p, rng);
        break;
    case 4:
    case 5:
        pull_again(n);
        break;
    case 6:
        (void)kvf_rdma_allow_write(n->t, n, kvf_rng_below(rng, 2) != 0);
        break;
    case 7:
        if (n->open && kvf_rng_below(rng, 4) == 0)
            kvf_link_close(&n->link);
        n->open = n->link.impl != NULL;
        break;
    default:
        if (kvf_rng_below(rng, 2) != 0)
            (void)pair_deliver(p, (unsigned)kvf_rng_below(rng, PAIR_QUEUES));
        else
            pair_turns(p, (unsigned)kvf_rng_below(rng, 4));
        break;
    }
}

/* KVF_SEED=N: that one only. */
static void test_at_random(void **state)
{
    const char *only = getenv("KVF_SEED");
    unsigned first = only != NULL ? (unsigned)atoi(only) : 1;
    unsigned last = only != NULL ? first : 20;

    (void)state;
    for (unsigned seed = first; seed <= last; seed++) {
        struct kvf_rng rng;
        struct pair p;

        print_message("KVF_SEED=%u\n", seed);
        kvf_rng_seed(&rng, seed);
        pair_open(&p, MIB, seed % 2 != 0 ? 3000 : 100, false);
        fake.late = seed % 4;
        p.n[0].calls = p.n[1].calls = 1;
        for (unsigned i = 0; i < 250; i++)
            step_at_random(&p, &rng);
        faults_end(&p);
        for (unsigned i = 0; i < 2; i++) {
            pair_until(&p, &p.n[i].calls);
            if (!p.n[i].open)
                pair_link(&p.n[i]);
            /* Who was expelled hears of it at the next READ. */
            pull_again(&p.n[i]);
            pair_until(&p, &p.n[i].calls);
        }
        pair_settle_one(&p, seed % 4 == 0);
        pair_both_ways(&p);
        /* No link had what another one posted. */
        assert_int_equal(p.n[0].stats.unexpected + p.n[1].stats.unexpected, 0);
        pair_close(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_at_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
