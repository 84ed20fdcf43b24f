/* Keys, values and queries of batch_keys.h, to and from a thread's scratch. */
#include "exec/batch_keys.h"
#include "types/blocks.h"
#include <string.h>

static int64_t align64(int64_t n) { return (n + 63) / 64 * 64; }
static int64_t n_tiles(int64_t n_keys) { return (n_keys + PL_TILE - 1) / PL_TILE; }
static int64_t tile_bytes(const pl_batch_keys *keys) { return keys->k_tile.bytes + keys->v_tile.bytes; }

const char *pl_batch_keys_check(const pl_plan *plan, const pl_batch_keys *keys)
{
    const pl_plan_buffer *b = plan->buffers;
    if (keys->kv_heads < 1 || keys->n_heads < 1 || keys->n_heads > PL_MAX_HEADS || keys->n_heads % keys->kv_heads)
        return "n_heads is not a multiple of kv_heads";
    int64_t k_dim = b[keys->k].width / keys->kv_heads, v_dim = b[keys->v].width / keys->kv_heads;
    if (b[keys->k].width % keys->kv_heads || b[keys->v].width % keys->kv_heads || k_dim < 2 || k_dim % 2 ||
        k_dim > PL_MAX_HEAD_DIM || v_dim < 1 || v_dim > PL_MAX_HEAD_DIM)
        return "k or v is not as wide as whole heads of 2 to 1024 elements";
    if (b[keys->q].width != keys->n_heads * k_dim || b[keys->out].width != keys->n_heads * v_dim)
        return "q or out is not as wide as all heads";
    return keys->out == keys->q || keys->out == keys->k || keys->out == keys->v ? "out is q, k or v, whose rows are still needed"
                                                                                : NULL;
}

void pl_batch_keys_init(pl_batch_keys *keys, const pl_plan_buffer *buffers)
{
    pl_kv_tile_init(&keys->k_tile, PL_TYPE_F32, (int)(buffers[keys->k].width / keys->kv_heads));
    pl_kv_tile_init(&keys->v_tile, PL_TYPE_F32, (int)(buffers[keys->v].width / keys->kv_heads));
    keys->per_kv = keys->n_heads / keys->kv_heads;
    keys->tokens = PL_ROWS_WANTED / keys->per_kv > 1 ? PL_ROWS_WANTED / keys->per_kv : 1;
    keys->shape = (pl_item_shape){keys->k_tile.head_dim, keys->v_tile.head_dim, keys->tokens * keys->per_kv};
}

int64_t pl_batch_keys_scratch(const pl_batch_keys *keys, int64_t n_keys)
{
    return align64(pl_item_scratch_bytes(keys->shape)) + n_tiles(n_keys) * tile_bytes(keys) +
           align64(n_tiles(n_keys) * (int64_t)sizeof(uint8_t *));
}

pl_batch_room pl_batch_keys_room(const pl_batch_keys *keys, const pl_plan *plan, int thread, int64_t n_keys)
{
    uint8_t *scratch = pl_scratch(plan, thread), *memory = scratch + align64(pl_item_scratch_bytes(keys->shape));
    pl_batch_room room = {pl_item_scratch_at(scratch, keys->shape),
                          (uint8_t **)(void *)(memory + n_tiles(n_keys) * tile_bytes(keys))};
    for (int64_t i = 0; i < n_tiles(n_keys); i++)
        room.tiles[i] = memory + i * tile_bytes(keys);
    if (n_keys % PL_TILE) /* the last tile's unused slots are read too */
        memset(room.tiles[n_keys / PL_TILE], 0, (size_t)tile_bytes(keys));
    return room;
}

void pl_batch_keys_store(const pl_batch_keys *keys, const pl_plan *plan, const pl_batch_room *room, int64_t key, int64_t row,
                         int64_t head)
{
    uint8_t *tile = room->tiles[key / PL_TILE];
    plan->kernels->store_k(&keys->k_tile, tile, (int)(key % PL_TILE), pl_row(plan, keys->k, row) + head * keys->k_tile.head_dim);
    plan->kernels->store_v(&keys->v_tile, tile + keys->k_tile.bytes, (int)(key % PL_TILE),
                           pl_row(plan, keys->v, row) + head * keys->v_tile.head_dim);
}

void pl_batch_keys_load(const pl_batch_keys *keys, const pl_plan *plan, pl_batch_room *room, int first, int64_t row, int64_t head)
{
    const pl_item_scratch *s = &room->states;
    const float scale = (float)((double)keys->scale * 1.4426950408889634);
    for (int h = 0; h < keys->per_kv; h++) {
        const float *q = pl_row(plan, keys->q, row) + (head * keys->per_kv + h) * keys->k_tile.head_dim;
        float *scaled = (float *)(uintptr_t)s->q[first + h];
        for (int d = 0; d < keys->k_tile.head_dim; d++)
            scaled[d] = q[d] * scale;
        pl_state_clear(s->total[first + h], s->state_floats);
    }
}

void pl_batch_keys_attend(const pl_batch_keys *keys, const pl_plan *plan, pl_batch_room *room, int n, int64_t key0, int64_t key1,
                          float log_weight)
{
    const pl_item_scratch *s = &room->states;
    for (int r = 0; r < n; r++)
        pl_state_clear(s->part[r], s->state_floats);
    plan->kernels->attention(&(pl_attention){
        .k = &keys->k_tile,
        .v = &keys->v_tile,
        .pages = room->tiles,
        .k_offset = 0,
        .v_offset = keys->k_tile.bytes,
        .key0 = key0,
        .key1 = key1,
        .n_rows = n,
        .q = s->q,
        .pos = s->pos,
        .lo = s->lo,
        .state = s->part,
        .scratch = s->tiles,
    });
    for (int r = 0; r < n; r++) {
        s->part[r][0] += log_weight; /* the state's reference: all its sums, times the weight */
        plan->kernels->attention_merge(s->total[r], s->part[r], (int)s->state_floats - PL_STATE_HEAD);
    }
}

void pl_batch_keys_write(const pl_batch_keys *keys, const pl_plan *plan, const pl_batch_room *room, int first, int64_t row,
                         int64_t head)
{
    const int v_dim = keys->v_tile.head_dim;
    for (int h = 0; h < keys->per_kv; h++)
        plan->kernels->attention_finish(room->states.total[first + h], v_dim,
                                        pl_row(plan, keys->out, row) + (head * keys->per_kv + h) * v_dim);
}
