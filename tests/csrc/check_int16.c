/* Products in 16 bits: every type's weights in panels of int16 against sums in double precision; and bits that must not depend on
 * how the work is cut. */
#include "check.h"
#include "weights.h"

typedef struct {
    int type, rows, cols, n_tokens, has_bias;
    int padded, out_stride, x_stride; /* floats */
    uint8_t *file, *panels;           /* (rows, cols) */
    float *x, *w;                     /* (n_tokens, x_stride), (rows, cols) */
    float *bias, *residual;           /* (padded), (n_tokens, out_stride) */
} int16_case;

static void make_case(int16_case *c)
{
    static const int types[] = {PL_TYPE_F32, PL_TYPE_F16, PL_TYPE_BF16, PL_TYPE_Q8_0, PL_TYPE_Q4_K};
    const pl_type_info *info = pl_type_find(c->type = pick(types, COUNT(types)));
    const int unit = info->block_elements == 256 ? 256 : 32;
    c->rows = 1 + random_below(300);
    c->cols = unit * (1 + random_below(1200 / unit));
    c->n_tokens = 1 + random_below(quick ? 70 : 150);
    c->has_bias = random_below(2);
    c->padded = (c->rows + PL_ROWS - 1) / PL_ROWS * PL_ROWS;
    c->out_stride = c->padded + 16 * random_below(2);
    c->x_stride = c->cols + random_below(2) * 3;
    const int64_t row_bytes = (int64_t)c->cols / info->block_elements * info->block_bytes, panel_bytes = c->cols / 32 * PL_INT16_BLOCK;
    c->file = guarded((size_t)(row_bytes * c->rows), (size_t)random_below(8));
    c->panels = guarded((size_t)(panel_bytes * c->padded / PL_ROWS), 4 * (size_t)random_below(4));
    c->w = guarded(sizeof(float) * (size_t)(c->rows * c->cols), 0);
    random_weights(c->type, W_NORMAL, c->file, (int64_t)c->rows * c->cols);
    pl_dequantize(c->type, c->file, c->w, (int64_t)c->rows * c->cols);
    for (int p = 0; p * PL_ROWS < c->rows; p++)
        pl_pack_panel(c->type | PL_INT16, c->file + p * PL_ROWS * row_bytes, row_bytes,
                      c->rows - p * PL_ROWS < PL_ROWS ? c->rows - p * PL_ROWS : PL_ROWS, c->cols, c->panels + p * panel_bytes);
    c->x = guarded(sizeof(float) * (size_t)(c->n_tokens * c->x_stride), 4 * (size_t)random_below(4));
    for (int t = 0; t < c->n_tokens; t++) {
        const int kind = random_below(12);
        const float size = kind == 0 ? 0.0f : kind == 1 ? 1e-36f : kind == 2 ? 1e20f : 1.0f;
        for (int k = 0; k < c->cols; k++)
            c->x[t * c->x_stride + k] =
                kind == 3 ? (random_bits() & 1 ? size : -size) : size * random_float() * (random_below(50) ? 1.0f : 40.0f);
    }
    c->bias = guarded(sizeof(float) * (size_t)c->padded, 4);
    c->residual = guarded(sizeof(float) * (size_t)(c->n_tokens * c->out_stride), 8);
    for (int i = 0; i < c->padded; i++)
        c->bias[i] = random_float();
    for (int i = 0; i < c->n_tokens * c->out_stride; i++)
        c->residual[i] = random_float();
}

static void free_case(int16_case *c)
{
    void *all[] = {c->file, c->panels, c->w, c->x, c->bias, c->residual};
    for (int i = 0; i < COUNT(all); i++)
        guarded_free(tiers[0], all[i]);
}

static float largest(const float *x, int n)
{
    float most = 0;
    for (int i = 0; i < n; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

/* The sum, and how far half a step of each input and each weight, and float32, may take it from that. */
static double expect(const int16_case *c, int row, int token, double *bound)
{
    double sum = 0, size = 0;
    *bound = 1e-30;
    for (int k = 0; k < c->cols; k += PL_CHUNK) {
        const int n = c->cols - k < PL_CHUNK ? c->cols - k : PL_CHUNK;
        const float *x = c->x + token * c->x_stride + k, *w = c->w + (int64_t)row * c->cols + k;
        const double x_step = (double)largest(x, n) / 16383 * 0.51 + 1e-30;
        for (int b = 0; b < n; b += 32) {
            const double w_step = (double)largest(w + b, 32) / 4095 * 0.51 + 1e-30;
            for (int i = b; i < b + 32; i++) {
                sum += (double)x[i] * (double)w[i];
                size += fabs((double)x[i] * (double)w[i]);
                *bound += fabs((double)x[i]) * w_step + fabs((double)w[i]) * x_step + w_step * x_step;
            }
        }
    }
    if (c->has_bias)
        sum += (double)c->bias[row] + (double)c->residual[token * c->out_stride + row];
    *bound += (size + fabs(sum) + 2) * 1e-5;
    return sum;
}

static pl_matmul product(const int16_case *c, float *out)
{
    return (pl_matmul){.type = c->type | PL_INT16,
                       .panels = c->panels,
                       .cols = c->cols,
                       .panel1 = c->padded / PL_ROWS,
                       .x = c->x,
                       .x_stride = c->x_stride,
                       .token1 = c->n_tokens,
                       .bias = c->has_bias ? c->bias : NULL,
                       .residual = c->has_bias ? c->residual : NULL,
                       .out = out,
                       .out_stride = c->out_stride};
}

/* The same in pieces of tokens and panels. */
static void in_pieces(const pl_kernels *tier, const int16_case *c, float *out)
{
    pl_matmul m = product(c, out);
    const int64_t panels = m.panel1;
    for (m.token0 = 0; m.token0 < c->n_tokens; m.token0 = m.token1) {
        m.token1 = m.token0 + 1 + random_below(9);
        m.token1 = m.token1 < c->n_tokens ? m.token1 : c->n_tokens;
        for (m.panel0 = 0; m.panel0 < panels; m.panel0 = m.panel1) {
            m.panel1 = m.panel0 + 1 + random_below(5);
            m.panel1 = m.panel1 < panels ? m.panel1 : panels;
            tier->matmul_float(&m);
        }
    }
}

static void check_tier(const pl_kernels *tier, const int16_case *c)
{
    const size_t bytes = sizeof(float) * (size_t)(c->n_tokens * c->out_stride);
    float *whole = guarded(bytes, 32), *pieces = guarded(bytes, 32);
    pl_matmul m = product(c, whole);
    tier->matmul_float(&m);
    in_pieces(tier, c, pieces);
    if (memcmp(whole, pieces, bytes) != 0)
        fail(tier, "pieces have other bits");
    for (int i = 0; i < 200; i++) {
        double bound;
        const int token = random_below(c->n_tokens), row = random_below(c->rows);
        const double expected = expect(c, row, token, &bound), found = (double)whole[token * c->out_stride + row];
        if (!(fabs(found - expected) <= bound)) {
            fail(tier, "token %d, row %d: %g instead of %g (bound %g)", token, row, found, expected, bound);
            break;
        }
    }
    guarded_free(tier, whole);
    guarded_free(tier, pieces);
}

/* One infinite or undefined input makes its token's results undefined, and no other's. */
static void check_not_finite(const pl_kernels *tier, int16_case *c)
{
    const size_t bytes = sizeof(float) * (size_t)(c->n_tokens * c->out_stride);
    float *before = guarded(bytes, 32), *after = guarded(bytes, 32);
    const int token = random_below(c->n_tokens);
    float *input = c->x + token * c->x_stride + random_below(c->cols), kept = *input;
    pl_matmul m = product(c, before);
    tier->matmul_float(&m);
    m.out = after;
    *input = random_below(2) ? NAN : INFINITY;
    tier->matmul_float(&m);
    *input = kept;
    for (int t = 0; t < c->n_tokens; t++)
        for (int row = 0; row < c->rows; row++) {
            const float *found = after + t * c->out_stride + row;
            if (t == token ? !isnan(*found) : memcmp(found, before + t * c->out_stride + row, sizeof *found) != 0) {
                fail(tier, "an input that is not finite: token %d", t);
                t = c->n_tokens;
                break;
            }
        }
    guarded_free(tier, before);
    guarded_free(tier, after);
}

void check_int16(void)
{
    for (int i = 0; i < (quick ? 12 : 60); i++) {
        int16_case c;
        make_case(&c);
        begin_case("int16 type %d, %d x %d, %d tokens", c.type, c.rows, c.cols, c.n_tokens);
        for (int t = 0; t < n_tiers; t++) {
            check_tier(tiers[t], &c);
            check_not_finite(tiers[t], &c);
        }
        free_case(&c);
    }
}
