/* matmul: every type against sums in double precision over the same integers; and bits that must not depend on how the
 * work is cut: one token at a time, all at once, any split of tokens and panels. */
#include "check.h"
#include "exec/residual_blocks.h"
#include "weights.h"

typedef enum { RESIDUAL_NONE, RESIDUAL_APART, RESIDUAL_IN_OUT, RESIDUAL_MODES } residual_mode;
typedef enum { X_NORMAL, X_ZERO, X_EXTREME, X_TINY, X_HUGE, X_MODES } input_mode;

typedef struct {
    int type, rows, cols, n_tokens, has_bias;
    int single; /* residual blocks have one code: none of them (0), each (1), some (2) */
    weight_mode weights;
    input_mode inputs;
    residual_mode residual;
    int n_panels, padded, out_stride, x_stride; /* floats */
    int q8_stride;                              /* blocks of a token, residual ones included */
    uint8_t *file;                              /* (rows, cols) */
    uint8_t *panels;
    float *x; /* (n_tokens, x_stride) */
    pl_q8 *q8;
    float *bias, *residuals;  /* (padded), (n_tokens, out_stride) */
    double *expected, *bound; /* (n_tokens, rows) */
    float *reference;         /* the scalar tier's results, (n_tokens, out_stride) */
} matmul_case;

static float input_value(input_mode mode)
{
    switch (mode) {
    case X_ZERO: return 0.0f;
    case X_EXTREME: return random_bits() & 1 ? 3.0f : -3.0f;
    case X_TINY: return random_float() * 1e-36f;
    case X_HUGE: return random_float() * 1e20f;
    default: return random_float() * (random_below(50) ? 1.0f : 40.0f);
    }
}

static float most_of(const float *x, int n)
{
    float most = 0.0f;
    for (int i = 0; i < n; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

/* A row's blocks; some of them, at random, have a residual block of other numbers: the product counts both. */
static void make_blocks(const matmul_case *c, const float *row, pl_q8 *out)
{
    int n = c->cols / 32, every = random_below(3) ? 7 : 1 + random_below(2);
    float scale = 0.0f;
    for (int b = 0; b < n; b++) {
        const float *x = row + 32 * b;
        if (b % PL_CHUNK_BLOCKS == 0)
            scale = most_of(x, (n - b) * 32 < PL_CHUNK ? (n - b) * 32 : PL_CHUNK) / 127.0f;
        if (scale < 0x1p-120f)
            scale = 0.0f;
        int step = random_below(PL_Q8_STEPS);
        while (step > 0 && scale * pl_q8_factor[step] * 127.0f < most_of(x, 32))
            step--;
        reference_q8(x, scale, step, out + b);
        if (b % 2)
            reference_sum_x8(out + b - 1, out[b].sum_x8);
        if (random_below(every) == 0) {
            float left[32];
            const int k = random_below(32), only = c->single == 2 ? random_below(2) : c->single;
            for (int i = 0; i < 32; i++)
                left[i] = x[i] * (only ? (float)(i == k) : random_below(4) ? random_float() : 0.0f);
            pl_q8 *residual = out + n + b;
            reference_q8(left, scale, 0, residual);
            residual->residual_mask = (uint8_t)(only ? k + 1 : 0);
            residual->scale *= random_float() * 3;
            out[b].residual_offset = (uint16_t)n;
            for (int first = b / PL_CHUNK_BLOCKS * PL_CHUNK_BLOCKS, i = first; i <= b; i++)
                out[i].residual_mask |= (uint8_t)(1 << (b - first));
        }
    }
}

static void make_inputs(matmul_case *c)
{
    c->single = random_below(3);
    c->x_stride = c->cols + random_below(2) * 3;
    c->x = guarded(sizeof(float) * (size_t)(c->n_tokens * c->x_stride), 4 * (size_t)random_below(4));
    c->q8_stride = 2 * (c->cols / 32) + random_below(2);
    c->q8 = guarded(sizeof(pl_q8) * (size_t)(c->q8_stride * c->n_tokens + 1), 4 * (size_t)random_below(4));
    for (int t = 0; t < c->n_tokens; t++) {
        float *row = c->x + t * c->x_stride;
        for (int k = 0; k < c->cols; k++)
            row[k] = input_value(c->inputs);
        make_blocks(c, row, c->q8 + t * c->q8_stride);
    }
    c->bias = guarded(sizeof(float) * (size_t)c->padded, 4);
    c->residuals = guarded(sizeof(float) * (size_t)(c->n_tokens * c->out_stride), 8);
    for (int i = 0; i < c->padded; i++)
        c->bias[i] = random_float() * 2;
    for (int i = 0; i < c->n_tokens * c->out_stride; i++)
        c->residuals[i] = random_float() * 2;
}

static void make_weights(matmul_case *c)
{
    const pl_type_info *info = pl_type_find(c->type);
    int64_t row_bytes = (int64_t)c->cols / info->block_elements * info->block_bytes;
    int64_t panel_bytes = c->cols / pl_panel_block_k(c->type) * pl_panel_block_bytes(c->type);
    c->file = guarded((size_t)(row_bytes * c->rows), (size_t)random_below(8));
    c->panels = guarded((size_t)(panel_bytes * c->n_panels), 4 * (size_t)random_below(4));
    random_weights(c->type, c->weights, c->file, (int64_t)c->rows * c->cols);
    for (int p = 0; p < c->n_panels; p++) {
        int n_rows = c->rows - p * PL_ROWS < PL_ROWS ? c->rows - p * PL_ROWS : PL_ROWS;
        pl_pack_panel(c->type, c->file + p * PL_ROWS * row_bytes, row_bytes, n_rows, c->cols, c->panels + p * panel_bytes);
    }
}

/* ---- the expected sums, and how far rounding may take a float32 sum from them ---- */

static void expect_quantized(const matmul_case *c, int row, int token, double *sum, double *size)
{
    const pl_type_info *info = pl_type_find(c->type);
    const uint8_t *block = c->file + (int64_t)row * (c->cols / info->block_elements) * info->block_bytes;
    for (int b = 0; b < c->cols / 32; b++) {
        int8_t q[32];
        float scale[2], min[2];
        const pl_q8 *a = &c->q8[token * c->q8_stride + b], *chunk = a - b % PL_CHUNK_BLOCKS;
        int sub = b % (info->block_elements / 32);
        pl_decode32(c->type, block + b / (info->block_elements / 32) * info->block_bytes, sub, q, scale, min);
        for (int i = 0; i < (a->residual_offset ? 4 : 2); i++) { /* both halves of the block, then of its residual block */
            const pl_q8 *x = i < 2 ? a : a + a->residual_offset, *odd = x + !(b % 2);
            int h = i % 2, whole = i < 2 && (c->type == PL_TYPE_Q4_K || c->type == PL_TYPE_Q5_K);
            int32_t dot = 0;
            for (int j = 16 * h; j < 16 * h + 16; j++)
                dot += q[j] * x->q[j];
            double d = (double)(i < 2 ? chunk : x)->scale, factor = (double)pl_q8_factor[x->step];
            double ones = whole ? (h ? 0 : odd->sum_x8[b % 2] / 8.0) : factor * x->sum[h];
            double product = (double)scale[h] * d * factor * dot, offset = (double)min[h] * d * ones;
            *sum += product - offset;
            *size += fabs(product) + fabs(offset);
        }
    }
}

static void expect_float(const matmul_case *c, int row, int token, double *sum, double *size)
{
    int bytes = pl_type_find(c->type)->block_bytes;
    for (int k = 0; k < c->cols; k++) {
        float w;
        pl_dequantize(c->type, c->file + ((int64_t)row * c->cols + k) * bytes, &w, 1);
        double product = (double)w * c->x[token * c->x_stride + k];
        *sum += product;
        *size += fabs(product);
    }
}

/* n additions in a row, each rounded: n * 2^-24 of the sum of magnitudes; two roundings per term where fma is lacking.
 * An underflow may cost 2^-149 per element of a product of scales, and MXFP4's exponent 0 counts as zero (2^-127). */
static double allowed(const matmul_case *c, double size)
{
    double terms, tiny = c->cols * 127.0 * 127.0 * 0x1p-149;
    if (pl_panel_is_float(c->type))
        terms = 2 * (c->cols < PL_CHUNK ? c->cols : PL_CHUNK) + c->cols / PL_CHUNK + 3;
    else
        terms = 16.0 * (c->cols / 32) + 6;
    if (c->type == PL_TYPE_MXFP4)
        tiny += c->cols * 12.0 * 0x1p-127 * (c->inputs == X_HUGE ? 1e20 : 40.0);
    return terms * 0x1p-24 * size + tiny;
}

static void make_expected(matmul_case *c)
{
    c->expected = malloc(sizeof(double) * (size_t)(c->rows * c->n_tokens));
    c->bound = malloc(sizeof(double) * (size_t)(c->rows * c->n_tokens));
    for (int t = 0; t < c->n_tokens; t++)
        for (int r = 0; r < c->rows; r++) {
            double sum = 0, size = 0;
            (pl_panel_is_float(c->type) ? expect_float : expect_quantized)(c, r, t, &sum, &size);
            double bias = c->has_bias ? c->bias[r] : 0, residual = c->residual ? c->residuals[t * c->out_stride + r] : 0;
            c->expected[t * c->rows + r] = sum + bias + residual;
            c->bound[t * c->rows + r] = allowed(c, size) + 0x1p-23 * (size + fabs(bias) + fabs(residual));
        }
}

/* ---- running a tier ---- */

/* Residual blocks are gathered in groups as the executor has them, or, for small batches, in the larger ones. */
static void multiply(const pl_kernels *tier, pl_matmul *m)
{
    pl_gemv_asks = random_below(2); /* all ways of reading weights give the same bits */
    m->alone = random_below(2);
    if (m->q8 && m->token1 - m->token0 > 1) {
        m->residual_group = random_below(4) ? pl_residual_group(m->token1 - m->token0) : PL_RESIDUAL_GROUP;
        m->residual_blocks = gather_residuals(m, m->residual_group);
    }
    pl_matmul_run(tier, m);
    if (m->residual_blocks)
        guarded_free(tier, m->residual_blocks);
}

static void run(const matmul_case *c, const pl_kernels *tier, float *out, int panel0, int panel1, int token0, int token1)
{
    pl_matmul m = {.type = c->type,
                   .panels = c->panels,
                   .cols = c->cols,
                   .panel0 = panel0,
                   .panel1 = panel1,
                   .q8_stride = c->q8_stride,
                   .x_stride = c->x_stride,
                   .token0 = token0,
                   .token1 = token1,
                   .bias = c->has_bias ? c->bias : NULL,
                   .out = out,
                   .out_stride = c->out_stride};
    if (pl_panel_is_float(c->type))
        m.x = c->x;
    else
        m.q8 = c->q8;
    if (c->residual == RESIDUAL_APART)
        m.residual = c->residuals;
    if (c->residual == RESIDUAL_IN_OUT)
        m.residual = out;
    multiply(tier, &m);
}

static float *new_out(const matmul_case *c)
{
    size_t bytes = sizeof(float) * (size_t)(c->n_tokens * c->out_stride);
    float *out = guarded(bytes, 4 * (size_t)random_below(16));
    if (c->residual == RESIDUAL_IN_OUT)
        for (int t = 0; t < c->n_tokens; t++) /* the columns after the panels stay poisoned */
            memcpy(out + t * c->out_stride, c->residuals + t * c->out_stride, sizeof(float) * (size_t)c->padded);
    return out;
}

static void check_values(const matmul_case *c, const pl_kernels *tier, const float *out)
{
    for (int t = 0; t < c->n_tokens; t++)
        for (int r = 0; r < c->rows; r++) {
            double got = out[t * c->out_stride + r], want = c->expected[t * c->rows + r], bound = c->bound[t * c->rows + r];
            double scalar = c->reference[t * c->out_stride + r];
            if (!(fabs(got - want) <= bound)) {
                fail(tier, "row %d token %d: %.9g, expected %.9g within %.3g", r, t, got, want, bound);
                return;
            }
            if (!(fabs(got - scalar) <= 2 * bound)) {
                fail(tier, "row %d token %d: %.9g, the scalar tier gives %.9g", r, t, got, scalar);
                return;
            }
        }
}

/* The two results must be the same bits in all rows of the panels; what lies after them must still be poison. */
static void check_same(const matmul_case *c, const pl_kernels *tier, const float *a, const float *b, const char *what)
{
    for (int t = 0; t < c->n_tokens; t++) {
        const float *p = a + t * c->out_stride, *q = b + t * c->out_stride;
        if (memcmp(p, q, sizeof(float) * (size_t)c->padded) != 0) {
            int r = 0;
            while (memcmp(p + r, q + r, 4) == 0)
                r++;
            fail(tier, "%s: other bits than token by token in row %d token %d: %.9g, %.9g", what, r, t, (double)q[r],
                 (double)p[r]);
            return;
        }
        if (!is_poison(q + c->padded, sizeof(float) * (size_t)(c->out_stride - c->padded))) {
            fail(tier, "%s: wrote past the panels of token %d", what, t);
            return;
        }
    }
}

static void run_pieces(const matmul_case *c, const pl_kernels *tier, float *out, int most)
{
    for (int t = 0; t < c->n_tokens;) {
        int step = 1 + random_below(most), end = t + step < c->n_tokens ? t + step : c->n_tokens;
        for (int p = 0; p < c->n_panels;) {
            int to = p + 1 + random_below(3);
            to = to < c->n_panels ? to : c->n_panels;
            run(c, tier, out, p, to, t, end);
            p = to;
        }
        t = end;
    }
}

static void check_untouched(const matmul_case *c, const pl_kernels *tier)
{
    size_t bytes = sizeof(float) * (size_t)(c->n_tokens * c->out_stride);
    int token0 = random_below(c->n_tokens), token1 = token0 + 1 + random_below(c->n_tokens - token0);
    int panel0 = random_below(c->n_panels), panel1 = panel0 + 1 + random_below(c->n_panels - panel0);
    token1 = token1 - token0 > PL_TOKENS ? token0 + PL_TOKENS : token1;
    float *out = guarded(bytes, 4);
    if (c->residual != RESIDUAL_IN_OUT)
        run(c, tier, out, panel0, panel1, token0, token1);
    for (int t = 0; t < c->n_tokens; t++)
        for (int p = 0; p * PL_ROWS < c->out_stride; p++) {
            int outside = t < token0 || t >= token1 || p < panel0 || p >= panel1;
            if (outside && !is_poison(out + t * c->out_stride + p * PL_ROWS, sizeof(float) * PL_ROWS)) {
                fail(tier, "wrote outside panels %d-%d, tokens %d-%d", panel0, panel1, token0, token1);
                p = c->out_stride, t = c->n_tokens;
            }
        }
    guarded_free(tier, out);
}

/* Two matrices and silu between them: the bits of the separate steps, for one token as for all. The second matrix is the
 * first one with its panels in reverse. */
static void check_gated(matmul_case *c, const pl_kernels *tier)
{
    int64_t panel_bytes = c->cols / pl_panel_block_k(c->type) * pl_panel_block_bytes(c->type);
    uint8_t *up = guarded((size_t)(panel_bytes * c->n_panels), 4), *panels = c->panels;
    residual_mode residual = c->residual;
    c->residual = RESIDUAL_NONE;
    for (int p = 0; p < c->n_panels; p++)
        memcpy(up + p * panel_bytes, panels + (c->n_panels - 1 - p) * panel_bytes, (size_t)panel_bytes);
    float *gate = new_out(c), *other = new_out(c), *got = new_out(c);
    for (int t = 0; t < c->n_tokens; t += PL_TOKENS) {
        int end = t + PL_TOKENS < c->n_tokens ? t + PL_TOKENS : c->n_tokens;
        run(c, tier, gate, 0, c->n_panels, t, end);
        c->panels = up;
        run(c, tier, other, 0, c->n_panels, t, end);
        c->panels = panels;
    }
    for (int t = 0; t < c->n_tokens; t++)
        tier->silu_mul(gate + t * c->out_stride, other + t * c->out_stride, gate + t * c->out_stride, c->padded);
    for (int step = 1; step <= PL_TOKENS; step += PL_TOKENS - 1) {
        for (int t = 0; t < c->n_tokens; t += step) {
            pl_matmul m = {.type = c->type,
                           .panels = panels,
                           .up = up,
                           .cols = c->cols,
                           .panel0 = 0,
                           .panel1 = c->n_panels,
                           .q8 = c->q8,
                           .q8_stride = c->q8_stride,
                           .token0 = t,
                           .token1 = t + step < c->n_tokens ? t + step : c->n_tokens,
                           .out = got,
                           .out_stride = c->out_stride};
            m.bias = m.up_bias = c->has_bias ? c->bias : NULL;
            multiply(tier, &m);
        }
        check_same(c, tier, gate, got, step == 1 ? "gated, one token" : "gated, all tokens");
    }
    c->residual = residual;
    guarded_free(tier, up);
    guarded_free(tier, gate);
    guarded_free(tier, other);
    guarded_free(tier, got);
}

static void check_tier(matmul_case *c, const pl_kernels *tier)
{
    float *single = new_out(c), *whole = new_out(c), *pieces = new_out(c), *few = new_out(c);
    for (int t = 0; t < c->n_tokens; t++)
        run(c, tier, single, 0, c->n_panels, t, t + 1);
    for (int t = 0; t < c->n_tokens; t += PL_TOKENS)
        run(c, tier, whole, 0, c->n_panels, t, t + PL_TOKENS < c->n_tokens ? t + PL_TOKENS : c->n_tokens);
    run_pieces(c, tier, pieces, PL_TOKENS);
    run_pieces(c, tier, few, 4);
    if (tier == tiers[0])
        memcpy(c->reference, single, sizeof(float) * (size_t)(c->n_tokens * c->out_stride));
    check_values(c, tier, single);
    check_same(c, tier, single, single, "one token");
    check_same(c, tier, single, whole, "all tokens");
    check_same(c, tier, single, pieces, "random items");
    check_same(c, tier, single, few, "small items");
    check_untouched(c, tier);
    if (!pl_panel_is_float(c->type))
        check_gated(c, tier);
    guarded_free(tier, single);
    guarded_free(tier, whole);
    guarded_free(tier, pieces);
    guarded_free(tier, few);
}

static void check_case(matmul_case *c)
{
    begin_case("matmul %s rows=%d cols=%d tokens=%d weights=%d inputs=%d bias=%d residual=%d", pl_type_name(c->type), c->rows,
               c->cols, c->n_tokens, c->weights, c->inputs, c->has_bias, c->residual);
    c->n_panels = (c->rows + PL_ROWS - 1) / PL_ROWS;
    c->padded = c->n_panels * PL_ROWS;
    c->out_stride = c->padded + PL_ROWS * random_below(2);
    make_inputs(c);
    make_weights(c);
    make_expected(c);
    c->reference = malloc(sizeof(float) * (size_t)(c->n_tokens * c->out_stride));
    for (int i = 0; i < n_tiers; i++)
        check_tier(c, tiers[i]);
    void *buffers[] = {c->x, c->q8, c->bias, c->residuals, c->file, c->panels};
    for (int i = 0; i < COUNT(buffers); i++)
        guarded_free(tiers[0], buffers[i]);
    free(c->expected);
    free(c->bound);
    free(c->reference);
}

static matmul_case random_case(int type, int rows, int n_tokens)
{
    static const int cols32[] = {32, 64, 96, 256, 288, 544}, cols256[] = {256, 512, 768},
                     cols1[] = {1, 7, 32, 255, 256, 257, 520};
    int elements = pl_type_find(type)->block_elements;
    matmul_case c = {.type = type, .rows = rows, .n_tokens = n_tokens};
    c.cols = elements == 1    ? pick(cols1, COUNT(cols1))
             : elements == 32 ? pick(cols32, COUNT(cols32))
                              : pick(cols256, COUNT(cols256));
    c.weights = random_below(2) ? W_NORMAL : (weight_mode)random_below(W_MODES);
    c.inputs = random_below(2) ? X_NORMAL : (input_mode)random_below(X_MODES);
    c.has_bias = random_below(2);
    c.residual = (residual_mode)random_below(RESIDUAL_MODES);
    return c;
}

void check_matmul(void)
{
    static const int rows[] = {1, 15, 16, 17, 33, 80}, tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 17};
    set_random_codebooks();
    for (int k = 0, type; (type = weight_type(k)) >= 0; k++) {
        for (int i = 0; i < COUNT(rows); i++)
            for (int j = 0; j < COUNT(tokens); j++)
                if (!quick || random_below(6) == 0) {
                    matmul_case c = random_case(type, rows[i], tokens[j]);
                    check_case(&c);
                }
        matmul_case many = random_case(type, quick ? 17 : 33, 130);
        check_case(&many);
        /* more panels than are multiplied side by side */
        matmul_case wide = random_case(type, quick ? 145 : 300, 33 + random_below(quick ? 20 : 100));
        check_case(&wide);
    }
}
