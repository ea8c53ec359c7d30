/* Work of several verbs calls (setting up a QP, registering memory), one call
 * a slice, so that none of it stalls the loop. Jobs take turns. */
#include "transport/rdma/rdma_priv.h"

void kvf_rdma_job_start(struct kvf_rdma *r, struct kvf_rdma_job *job)
{
    if (!kvf_list_empty(&job->node))
        return;
    kvf_list_push_back(&r->jobs, &job->node);
    kvf_slice_start(r->t.sched, &r->slice);
}

bool kvf_rdma_jobs_run(struct kvf_slice *s, uint64_t budget_ns)
{
    struct kvf_rdma *r = kvf_container_of(s, struct kvf_rdma, slice);
    struct kvf_list *n = kvf_list_pop(&r->jobs);

    (void)budget_ns; /* no verbs call can be cut */
    if (n != NULL) {
        struct kvf_rdma_job *job =
            kvf_container_of(n, struct kvf_rdma_job, node);

        if (job->step(job))
            kvf_list_push_back(&r->jobs, &job->node);
    }
    return !kvf_list_empty(&r->jobs);
}
