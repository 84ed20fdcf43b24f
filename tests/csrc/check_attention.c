/* attention, attention_merge, attention_finish against a softmax in double precision over the stored keys and values;
 * and a row's bits must not depend on the rows beside it, nor on how a range of tiles is cut. */
#include "check.h"
#include "kv_reference.h"

#define MAX_ROWS 40 /* many more than are read in place, and than are multiplied together */

typedef struct {
    pl_kv_tile k, v;
    int n_keys, n_rows;
    uint8_t **pages; /* by position / PL_TILE; in no order in memory */
    uint8_t *memory;
    int64_t k_offset, v_offset, page_bytes;
    float *q[MAX_ROWS];
    int32_t pos[MAX_ROWS], lo[MAX_ROWS];
    int state_floats;
    float sharpness;
} attention_case;

static void store_all(attention_case *c, const pl_kernels *tier)
{
    float x[1024];
    for (int j = 0; j < c->n_keys; j++) {
        uint8_t *page = c->pages[j / PL_TILE];
        for (int i = 0; i < c->k.head_dim; i++)
            x[i] = random_float();
        tier->store_k(&c->k, page + c->k_offset, j % PL_TILE, x);
        for (int i = 0; i < c->v.head_dim; i++)
            x[i] = random_float() * (j % 11 ? 1 : 30);
        tier->store_v(&c->v, page + c->v_offset, j % PL_TILE, x);
    }
}

static void make_pages(attention_case *c)
{
    int n = (c->n_keys + PL_TILE - 1) / PL_TILE, first = random_below(n);
    c->k_offset = 64 * random_below(3);
    c->v_offset = c->k_offset + c->k.bytes + 64 * random_below(3);
    c->page_bytes = c->v_offset + c->v.bytes;
    c->memory = guarded((size_t)(n * c->page_bytes), 0);
    /* Pages start zeroed; those that were used before have what was in them, which may be anything. */
    memset(c->memory, random_below(2) ? 0 : 0xff, (size_t)(n * c->page_bytes));
    c->pages = malloc(sizeof c->pages[0] * (size_t)n);
    for (int i = 0; i < n; i++)
        c->pages[i] = c->memory + (first + n - i) % n * c->page_bytes;
}

static void make_rows(attention_case *c)
{
    for (int r = 0; r < c->n_rows; r++) {
        c->q[r] = guarded(sizeof(float) * (size_t)c->k.head_dim, 4 * (size_t)random_below(4));
        for (int i = 0; i < c->k.head_dim; i++)
            c->q[r][i] = random_float() * c->sharpness;
        int last = random_below(3) ? c->n_keys - c->n_rows + r : random_below(c->n_keys);
        c->pos[r] = last < 0 ? 0 : last;
        c->lo[r] = random_below(3) ? 0 : random_below(c->pos[r] + 1);
    }
}

static float *new_state(const attention_case *c)
{
    float *state = guarded(sizeof(float) * (size_t)c->state_floats, 0);
    memset(state, 0, sizeof(float) * (size_t)c->state_floats);
    state[0] = -INFINITY;
    return state;
}

/* Rows `rows[0..n)` over keys [key0, key1). */
static void run(const attention_case *c, const pl_kernels *tier, const int *rows, int n, int key0, int key1, float **states)
{
    const float *q[MAX_ROWS];
    float *state[MAX_ROWS];
    int32_t pos[MAX_ROWS], lo[MAX_ROWS];
    for (int i = 0; i < n; i++) {
        q[i] = c->q[rows[i]];
        pos[i] = c->pos[rows[i]];
        lo[i] = c->lo[rows[i]];
        state[i] = states[rows[i]];
    }
    size_t k_dim = (size_t)(c->k.head_dim + 31) / 32 * 32, v_dim = (size_t)(c->v.head_dim + 31) / 32 * 32;
    float *scratch = guarded(sizeof(float) * ((k_dim + v_dim) * PL_TILE + v_dim + (size_t)n * k_dim), 0);
    pl_attention a = {.k = &c->k,
                      .v = &c->v,
                      .pages = c->pages,
                      .k_offset = c->k_offset,
                      .v_offset = c->v_offset,
                      .key0 = key0,
                      .key1 = key1,
                      .n_rows = n,
                      .q = q,
                      .pos = pos,
                      .lo = lo,
                      .state = state,
                      .scratch = scratch};
    tier->attention(&a);
    guarded_free(tier, scratch);
}

/* One result per row over the fixed partition of PL_SPLIT keys; `together`: all rows in one call, else one by one;
 * `step`: keys of one call, whose state is carried to the next. */
static void run_partitioned(const attention_case *c, const pl_kernels *tier, int together, int step, float **totals)
{
    int order[MAX_ROWS];
    for (int r = 0; r < c->n_rows; r++)
        order[r] = r;
    for (int split = 0; split < c->n_keys; split += PL_SPLIT) {
        float *parts[MAX_ROWS];
        int end = split + PL_SPLIT < c->n_keys ? split + PL_SPLIT : c->n_keys;
        for (int r = 0; r < c->n_rows; r++)
            parts[r] = new_state(c);
        for (int key = split; key < end; key += step) {
            int to = key + step < end ? key + step : end;
            if (together)
                run(c, tier, order, c->n_rows, key, to, parts);
            else
                for (int r = c->n_rows - 1; r >= 0; r--)
                    run(c, tier, order + r, 1, key, to, parts);
        }
        for (int r = 0; r < c->n_rows; r++) {
            if (split == 0)
                memcpy(totals[r], parts[r], sizeof(float) * (size_t)c->state_floats);
            else
                tier->attention_merge(totals[r], parts[r], c->v.head_dim);
            guarded_free(tier, parts[r]);
        }
    }
}

/* How far a tier that multiplies 8-bit and 4-bit keys and values in whole numbers (kernels/attention_whole.inc) may be off for
 * that: queries are rounded to a 65534th of the largest element, and so are the weights of 32 keys times their scales. */
static double whole_slack(const attention_case *c, const pl_kernels *tier, double largest_query, double largest_key)
{
    double slack = 0.0;
    if (tier->kv_whole(c->k.type))
        slack += largest_query * largest_key * 0x1p-16;
    if (tier->kv_whole(c->v.type))
        slack += 0x1p-13;
    return slack;
}

/* out: (v head_dim). Returns how far rounding may take a float32 result. */
static double expected_row(const attention_case *c, const pl_kernels *tier, int row, double *out)
{
    double *weight = malloc(sizeof(double) * (size_t)c->n_keys);
    double top = -INFINITY, total = 0, largest_value = 0, largest_score = 0, largest_query = 0, largest_key = 0;
    for (int i = 0; i < c->k.head_dim; i++)
        largest_query = fmax(largest_query, fabs((double)c->q[row][i]));
    for (int j = c->lo[row]; j <= c->pos[row]; j++) {
        double score = 0, size = 0, key_size = 0;
        for (int i = 0; i < c->k.head_dim; i++) {
            double key = (double)kv_key(&c->k, c->pages[j / PL_TILE] + c->k_offset, j % PL_TILE, i);
            score += (double)c->q[row][i] * key;
            size += fabs((double)c->q[row][i] * key);
            key_size += fabs(key);
        }
        largest_key = fmax(largest_key, key_size);
        weight[j] = score;
        top = fmax(top, score);
        largest_score = fmax(largest_score, size);
    }
    for (int i = 0; i < c->v.head_dim; i++)
        out[i] = 0;
    for (int j = c->lo[row]; j <= c->pos[row]; j++) {
        double w = exp2(weight[j] - top);
        total += w;
        for (int i = 0; i < c->v.head_dim; i++) {
            double value = (double)kv_value(&c->v, c->pages[j / PL_TILE] + c->v_offset, j % PL_TILE, i);
            out[i] += w * value;
            largest_value = fmax(largest_value, fabs(value));
        }
    }
    for (int i = 0; i < c->v.head_dim; i++)
        out[i] /= total;
    free(weight);
    return ((largest_score * 4 + 16 + sqrt((double)c->n_keys)) * 0x1p-23 + whole_slack(c, tier, largest_query, largest_key)) *
           largest_value;
}

static void check_row(const attention_case *c, const pl_kernels *tier, int row, const float *state, const double *want,
                      double bound)
{
    float *out = guarded(sizeof(float) * (size_t)c->v.head_dim, 4);
    tier->attention_finish(state, c->v.head_dim, out);
    for (int i = 0; i < c->v.head_dim; i++)
        if (!(fabs((double)out[i] - want[i]) <= bound)) {
            fail(tier, "row %d (keys %d-%d) dim %d: %.9g, expected %.9g within %.3g", row, c->lo[row], c->pos[row], i,
                 (double)out[i], want[i], bound);
            break;
        }
    guarded_free(tier, out);
}

static void check_tier(attention_case *c, const pl_kernels *tier)
{
    static const int steps[4] = {PL_SPLIT, PL_TILE, PL_SPLIT, 3 * PL_TILE};
    static const char *const what[4] = {"alone", "tile by tile", "rows together", "rows together, in steps"};
    float *states[4][MAX_ROWS];
    for (int way = 0; way < 4; way++) {
        for (int r = 0; r < c->n_rows; r++)
            states[way][r] = new_state(c);
        run_partitioned(c, tier, way >= 2, steps[way], states[way]);
    }
    for (int r = 0; r < c->n_rows; r++) {
        double want[1024];
        check_row(c, tier, r, states[0][r], want, expected_row(c, tier, r, want));
        for (int way = 1; way < 4; way++)
            if (memcmp(states[0][r], states[way][r], 4) != 0 || memcmp(states[0][r] + 16, states[way][r] + 16, 64) != 0 ||
                memcmp(states[0][r] + PL_STATE_HEAD, states[way][r] + PL_STATE_HEAD, sizeof(float) * (size_t)c->v.head_dim) != 0)
                fail(tier, "row %d (keys %d-%d): other bits %s than alone", r, c->lo[r], c->pos[r], what[way]);
        for (int way = 0; way < 4; way++)
            guarded_free(tier, states[way][r]);
    }
}

static void check_case(attention_case *c)
{
    begin_case("attention k=%s:%d v=%s:%d keys=%d rows=%d sharpness=%g", pl_type_name(c->k.type), c->k.head_dim,
               pl_type_name(c->v.type), c->v.head_dim, c->n_keys, c->n_rows, (double)c->sharpness);
    c->state_floats = PL_STATE_HEAD + (c->v.head_dim + 31) / 32 * 32;
    make_pages(c);
    make_rows(c);
    store_all(c, tiers[0]); /* check_kv has seen that every tier stores the same bits */
    for (int i = 0; i < n_tiers; i++)
        check_tier(c, tiers[i]);
    for (int r = 0; r < c->n_rows; r++)
        guarded_free(tiers[0], c->q[r]);
    guarded_free(tiers[0], c->memory);
    free(c->pages);
}

/* A key or a value that is not finite shows in the rows that see it, and in no other. */
static void check_spoilt(int type, int is_value, float spoilt)
{
    enum { KEYS = 40, BAD = 30, DIM = 64 };
    attention_case c = {.n_keys = KEYS, .n_rows = 3, .sharpness = 0.3f};
    float x[DIM];
    begin_case("attention %s with a %s of %g", pl_type_name(type), is_value ? "value" : "key", (double)spoilt);
    pl_kv_tile_init(&c.k, type, DIM);
    pl_kv_tile_init(&c.v, type, DIM);
    c.state_floats = PL_STATE_HEAD + DIM;
    make_pages(&c);
    make_rows(&c);
    store_all(&c, tiers[0]);
    for (int i = 0; i < DIM; i++)
        x[i] = i == 3 ? spoilt : random_float();
    if (is_value)
        tiers[0]->store_v(&c.v, c.pages[BAD / PL_TILE] + c.v_offset, BAD % PL_TILE, x);
    else
        tiers[0]->store_k(&c.k, c.pages[BAD / PL_TILE] + c.k_offset, BAD % PL_TILE, x);
    for (int r = 0; r < c.n_rows; r++) {
        c.lo[r] = r == 2 ? BAD + 1 : 0;
        c.pos[r] = r == 1 ? BAD - 1 : KEYS - 1;
    }
    for (int i = 0; i < n_tiers; i++) {
        float *states[MAX_ROWS], out[DIM];
        for (int r = 0; r < c.n_rows; r++)
            states[r] = new_state(&c);
        run_partitioned(&c, tiers[i], 1, PL_SPLIT, states);
        for (int r = 0; r < c.n_rows; r++) {
            int finite = 1;
            tiers[i]->attention_finish(states[r], DIM, out);
            for (int d = 0; d < DIM; d++)
                finite &= isfinite(out[d]) != 0;
            if (finite != (r > 0))
                fail(tiers[i], "row %d: %s", r, finite ? "all is finite" : "not all is finite");
            guarded_free(tiers[i], states[r]);
        }
    }
    for (int r = 0; r < c.n_rows; r++)
        guarded_free(tiers[0], c.q[r]);
    guarded_free(tiers[0], c.memory);
    free(c.pages);
}

/* Heads as long as may be, of 8-bit and of 4-bit keys and values. */
static void check_longest(void)
{
    for (int i = 0; i < 2; i++) {
        attention_case c = {.n_keys = 40, .n_rows = i ? MAX_ROWS : 3, .sharpness = 0.3f};
        pl_kv_tile_init(&c.k, i ? PL_TYPE_Q4_0 : PL_TYPE_Q8_0, PL_HEAD_DIM_LIMIT);
        pl_kv_tile_init(&c.v, i ? PL_TYPE_Q8_0 : PL_TYPE_Q4_0, PL_HEAD_DIM_LIMIT);
        check_case(&c);
    }
}

void check_attention(void)
{
    static const int dims[] = {8, 24, 40, 64, 80, 128, 256}, keys[] = {1, 2, 31, 32, 33, 63, 64, 100, 512, 513, 700, 1100};
    static const float sharpness[] = {0.0f, 0.3f, 2.0f, 60.0f};
    for (int k = 0; k < n_tiers; k++)
        if (tiers[k]->kv_whole(PL_TYPE_Q8_0) != (strncmp(tiers[k]->name, "avx", 3) == 0) || tiers[k]->kv_whole(PL_TYPE_F16))
            fail(tiers[k], "8-bit keys, and no others, are multiplied in whole numbers on x86");
    for (int k = 0; k < COUNT(kv_types); k++)
        for (int i = 0; i < 3; i++) /* an infinite key may make a weight of 0 */
            check_spoilt(kv_types[k], i > 0, i < 2 ? NAN : INFINITY);
    check_longest();
    for (int k = 0; k < COUNT(kv_types); k++)
        for (int v = 0; v < COUNT(kv_types); v++)
            for (int d = 0; d < COUNT(dims); d++)
                for (int i = 0; i < (quick ? 1 : 3); i++) {
                    if (quick && random_below(4))
                        continue;
                    attention_case c = {.n_keys = pick(keys, COUNT(keys)),
                                        .n_rows = 1 + random_below(random_below(2) ? MAX_ROWS : 12)};
                    int v_dim = random_below(5) ? dims[d] : pick(dims, COUNT(dims));
                    pl_kv_tile_init(&c.k, kv_types[k], dims[d]);
                    pl_kv_tile_init(&c.v, kv_types[v], v_dim);
                    c.sharpness = sharpness[random_below(COUNT(sharpness))];
                    check_case(&c);
                }
}
