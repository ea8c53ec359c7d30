/* A device that reported a fatal error is closed when nothing is on it any
 * more, and opened again.
 *
 * Happy path: the links and queue pairs of before end by themselves; then a job
 * deregisters all memory, one call a slice, closes the device, opens it (or
 * another that fits the configuration) and has memory registered again; once
 * the pool is, links are made as ever. All keys are other ones then, and
 * hooks.device tells. Failure modes: the device keeps something, does not open,
 * or does not take the pool: tried again after twice the time. */
#include "transport/rdma/rdma_priv.h"

#include "base/log.h"

#define FIRST_NS (1 * KVF_NS_PER_S)
#define LAST_NS (60 * KVF_NS_PER_S)

static void again(struct kvf_rdma *r, const char *what)
{
    struct kvf_rdma_heal *h = &r->heal;

    kvf_log(KVF_LOG_DEBUG, "RDMA", "%s: not back yet, again_ms=%llu: %s",
            r->name, (unsigned long long)(h->pause / KVF_NS_PER_MS), what);
    kvf_timer_set(r->t.sched, &h->timer, r->t.sched->now_ns + h->pause);
    h->pause = h->pause < LAST_NS / 2 ? h->pause * 2 : LAST_NS;
}

static bool in_use(const struct kvf_rdma *r)
{
    unsigned own = r->idle_cq != NULL;

    return r->n_qps > 0 || r->n_cqs > own || !kvf_list_empty(&r->guests);
}

static void on_timer(struct kvf_timer *t)
{
    struct kvf_rdma *r = kvf_container_of(t, struct kvf_rdma, heal.timer);

    if (in_use(r)) {
        kvf_timer_set(r->t.sched, t, r->t.sched->now_ns + KVF_RDMA_AGAIN_NS);
        return;
    }
    r->heal.opened = false;
    kvf_rdma_memory_suspend(r);
    kvf_rdma_job_start(r, &r->heal.job);
}

static int open_again(struct kvf_rdma *r, struct kvf_why *why)
{
    int rc;

    kvf_rdma_device_close(r);
    rc = kvf_rdma_device_open(r, why);
    if (rc == 0)
        rc = kvf_rdma_scratch_open(r, why);
    if (rc != 0)
        kvf_rdma_device_close(r);
    return rc;
}

/* One verbs call, but for opening, which takes as long as the driver takes. */
static bool step(struct kvf_rdma_job *job)
{
    struct kvf_rdma *r = kvf_container_of(job, struct kvf_rdma, heal.job);
    struct kvf_why why;

    if (!r->heal.opened && r->n_mrs > 0) {
        if (kvf_rdma_memory_drop_one(r))
            return true;
        again(r, "it keeps registered memory");
        return false;
    }
    if (!r->heal.opened) {
        if (open_again(r, &why) != 0) {
            again(r, why.text);
            return false;
        }
        r->heal.opened = true;
        kvf_rdma_memory_resume(r);
    }
    if (kvf_rdma_memory_pending(r->pool))
        return true;
    if (r->pool != NULL && r->pool->failed) {
        again(r, "the pool cannot be registered");
        return false;
    }
    r->fatal = false;
    if (r->hooks->device != NULL)
        r->hooks->device(r->hooks_arg, true, r->text);
    return false;
}

void kvf_rdma_heal_init(struct kvf_rdma *r)
{
    kvf_timer_init(&r->heal.timer, on_timer);
    kvf_list_init(&r->heal.job.node);
    r->heal.job.step = step;
}

void kvf_rdma_heal_begin(struct kvf_rdma *r)
{
    kvf_rdma_job_stop(&r->heal.job);
    if (!r->fatal)
        r->heal.pause = FIRST_NS;
    again(r, "fatal error");
}

void kvf_rdma_heal_end(struct kvf_rdma *r)
{
    kvf_rdma_job_stop(&r->heal.job);
    kvf_timer_cancel(r->t.sched, &r->heal.timer);
}
