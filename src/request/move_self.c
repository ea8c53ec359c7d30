/* Moves within this daemon: into its own pool, into or out of a window of its
 * own engines. The same machine, with this daemon's tables for an answer. */
#include "request/moves_private.h"

#include <inttypes.h>

static void pin_room(struct kvf_move *m)
{
    struct kvf_seg *s = &m->room;

    kvf_seg_pin(s);
    m->room_seg = (struct kvf_remote_seg){
        .map = s->region != NULL ? s->region->map : m->ms->env.own_map,
        .offset = s->offset,
        .length = s->length};
    m->local = (struct kvf_remote){
        .size = s->length, .n_segs = 1, .segs = &m->room_seg};
    m->has_room = true;
}

static int room_of_push(struct kvf_move *m, struct kvf_why *why)
{
    const struct kvf_moves_env *env = &m->ms->env;
    struct kvf_buffer_gauges pool;
    const struct kvf_gen *live =
        kvf_store_live(env->store, m->name, m->name_len);
    int rc;

    if (m->reject_duplicate && live != NULL)
        return kvf_fail(why, KVF_EXISTS,
                        "generation %" PRIu64 " of the key is live",
                        live->generation);
    rc = kvf_buffer_alloc(env->buffers, m->size, KVF_BUF_RECEIVING, m->ms,
                          &m->room.buffer, why);
    if (rc == -(int)KVF_NO_SPACE) {
        kvf_buffers_gauges(env->buffers, &pool);
        m->has_space = true;
        m->free = pool.free;
        m->largest_free = pool.largest_free;
        m->needed = m->size;
    }
    if (rc < 0)
        return rc;
    m->room.offset = m->room.buffer->offset;
    m->room.length = m->size;
    return 0;
}

static int room_of_window(struct kvf_move *m, struct kvf_why *why)
{
    const struct kvf_window *w =
        kvf_window_named(m->ms->env.peers, m->name, m->name_len);
    int rc;

    if (w == NULL)
        return kvf_fail(why, KVF_NOT_FOUND,
                        "no window of that name is exposed here");
    rc = kvf_window_check(w, m->kind == KVF_MOVE_WRITE, m->target_offset,
                          m->size, why);
    if (rc < 0)
        return rc;
    m->window_id = w->id;
    m->room = w->seg;
    m->room.offset += m->target_offset;
    m->room.length = m->size;
    return 0;
}

void kvf_move_ask_self(struct kvf_move *m)
{
    struct kvf_why why;
    int rc = m->kind == KVF_MOVE_PUSH ? room_of_push(m, &why)
                                      : room_of_window(m, &why);

    m->t_granted = m->t_asked;
    if (rc < 0) {
        kvf_move_stop(m, &why);
        return;
    }
    pin_room(m);
    kvf_move_feed(m, KVF_MOVE_EV_GRANT);
}

static int publish(struct kvf_move *m, struct kvf_why *why)
{
    const struct kvf_moves_env *env = &m->ms->env;
    struct kvf_put put = {
        .key = m->name,
        .key_len = m->name_len,
        .segs = &m->room,
        .n_segs = 1,
        .meta = m->extra,
        .meta_len = m->extra_len,
        .ttl_ms = m->has_ttl ? m->ttl_ms : env->conf->put_ttl_ms,
        .readers = m->readers,
        .reject_duplicate = m->reject_duplicate,
        .notify = m->wants_end,
        .publisher = m->publisher,
        .has_checksum = m->checksum,
        .checksum = m->sum_value,
    };
    const struct kvf_gen *g;
    int rc;

    kvf_buffer_unpin(m->room.buffer);
    m->has_room = false;
    rc = kvf_store_put(env->store, &put, &g, why);
    if (rc < 0) {
        kvf_buffer_retire(m->room.buffer);
        return rc;
    }
    m->generation = g->generation;
    env->stats->pushed++;
    kvf_gen_log_put(g);
    kvf_store_settle(env->store);
    return 0;
}

void kvf_move_confirm_self(struct kvf_move *m)
{
    const struct kvf_moves_env *env = &m->ms->env;
    const struct kvf_window *w;
    struct kvf_why why;

    if (m->kind == KVF_MOVE_PUSH) {
        if (publish(m, &why) < 0)
            kvf_move_stop(m, &why);
        else
            kvf_move_feed(m, KVF_MOVE_EV_CONFIRMED);
        return;
    }
    w = kvf_window_find(env->peers, m->window_id);
    if (w == NULL) {
        kvf_move_because(m, KVF_STALE, "the window was unexposed");
        kvf_move_feed(m, KVF_MOVE_EV_STOP);
        return;
    }
    if (env->on_written != NULL)
        env->on_written(env->arg, w, m->kind == KVF_MOVE_WRITE, m->extra,
                        m->extra_len);
    kvf_move_feed(m, KVF_MOVE_EV_CONFIRMED);
}

void kvf_move_leave_self(struct kvf_move *m)
{
    if (!m->has_room)
        return;
    m->has_room = false;
    if (m->kind == KVF_MOVE_PUSH) /* a window's buffer is its own */
        kvf_buffer_retire(m->room.buffer);
    kvf_seg_unpin(&m->room);
}
