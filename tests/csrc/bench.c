/* Times the kernels of a tier on one thread, by CPU time, which other programs disturb the least. One token's weights stand well
 * outside the caches; the best of several runs counts. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "exec/residual_blocks.h"
#include "kv_reference.h"
#include "weights.h"
#include <time.h>

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Runs `call` at least 3 times and for 0.1 s, -> seconds of the fastest. */
#define BEST(result, call) \
    do { \
        double end_ = seconds() + 0.1; \
        (result) = 1e30; \
        for (int i_ = 0; i_ < 3 || seconds() < end_; i_++) { \
            double start_ = seconds(); \
            call; \
            double took_ = seconds() - start_; \
            (result) = took_ < (result) ? took_ : (result); \
        } \
    } while (0)

static void *memory(size_t bytes)
{
    void *p;
    if (posix_memalign(&p, 64, bytes) != 0)
        abort();
    memset(p, 0, bytes);
    return p;
}

/* `n` panels that are copies of one. */
static uint8_t *weights(int type, int64_t cols, int64_t n)
{
    const pl_type_info *info = pl_type_find(type);
    int64_t bytes = cols / pl_panel_block_k(type) * pl_panel_block_bytes(type),
            row = cols / info->block_elements * info->block_bytes;
    uint8_t *file = memory((size_t)(row * PL_ROWS)), *panels = memory((size_t)(bytes * n));
    random_weights(type, W_NORMAL, file, cols * PL_ROWS);
    pl_pack_panel(type, file, row, PL_ROWS, cols, panels);
    for (int64_t i = 1; i < n; i++)
        memcpy(panels + i * bytes, panels, (size_t)bytes);
    free(file);
    return panels;
}

/* The product of n tokens, in operations per second. */
static double rate_of_tokens(const pl_kernels *tier, pl_matmul *m, int64_t n)
{
    double took;
    m->token1 = n;
    m->residual_group = pl_residual_group(n);
    m->residual_blocks = m->q8 ? gather_residuals(m, m->residual_group) : NULL;
    BEST(took, pl_matmul_run(tier, m));
    if (m->residual_blocks)
        guarded_free(tier, m->residual_blocks);
    return 2.0 * (double)m->panel1 * PL_ROWS * (double)m->cols * (double)n / took;
}

static void bench_matmul(const pl_kernels *tier, int type)
{
    enum { COLS = 4096, TOKENS = 128 };
    int64_t panel_bytes = COLS / pl_panel_block_k(type) * pl_panel_block_bytes(type),
            panels = (quick ? 8 << 20 : 64 << 20) / panel_bytes;
    int64_t rows = panels * PL_ROWS, few = quick ? 2 : 16;
    uint8_t *w = weights(type, COLS, panels);
    float *x = memory(sizeof(float) * COLS * TOKENS), *out = memory(sizeof(float) * (size_t)(rows + TOKENS * few * PL_ROWS));
    pl_q8 *q8 = memory(sizeof(pl_q8) * COLS / 32 * 2 * TOKENS);
    for (int i = 0; i < COLS * TOKENS; i++)
        x[i] = random_float();
    for (int t = 0; t < TOKENS; t++)
        tier->quantize(x + t * COLS, COLS / 32, COLS / 32, PL_Q8_DOMINANT, q8 + t * 2 * COLS / 32);
    pl_matmul m = {.type = type,
                   .panels = w,
                   .cols = COLS,
                   .panel1 = panels,
                   .q8_stride = 2 * COLS / 32,
                   .x_stride = COLS,
                   .token1 = 1,
                   .out = out,
                   .out_stride = rows};
    if (pl_panel_is_float(type))
        m.x = x;
    else
        m.q8 = q8;
    double gemv;
    BEST(gemv, pl_matmul_run(tier, &m));
    m.panel1 = few;
    m.out_stride = few * PL_ROWS;
    printf("  %-8s %7.2f GB/s %8.1f Gop/s one token   %8.1f Gop/s %d tokens\n", pl_type_name(type),
           (double)(panel_bytes * panels) / gemv / 1e9, 2.0 * (double)rows * COLS / gemv / 1e9,
           rate_of_tokens(tier, &m, TOKENS) / 1e9, TOKENS);
    static const int batches[] = {2, 3, 4, 5, 6, 8, 12, 16, 24, 32};
    printf("  %-8s Gop/s of small batches:", pl_type_name(type));
    for (int i = 0; i < COUNT(batches); i++)
        printf("  %d: %.1f", batches[i], rate_of_tokens(tier, &m, batches[i]) / 1e9);
    printf("\n");
    free(w);
    free(x);
    free(out);
    free(q8);
}

/* GB/s of the file's bytes: some rows again and again, and all of those that no cache holds. */
static void bench_packing(int type)
{
    enum { COLS = 4096 };
    const pl_type_info *info = pl_type_find(type);
    const int64_t row = COLS / info->block_elements * info->block_bytes, bytes = PL_ROWS * row,
                  panel = COLS / pl_panel_block_k(type) * pl_panel_block_bytes(type), n = (quick ? 16 << 20 : 128 << 20) / bytes;
    uint8_t *file = memory((size_t)(bytes * n)), *panels = memory((size_t)(panel * n));
    double one, all;
    random_weights(type, W_NORMAL, file, COLS * PL_ROWS);
    for (int64_t i = 1; i < n; i++)
        memcpy(file + i * bytes, file, (size_t)bytes);
    BEST(one, for (int i = 0; i < 16; i++) pl_pack_panel(type, file, row, PL_ROWS, COLS, panels));
    BEST(all, for (int64_t i = 0; i < n; i++) pl_pack_panel(type, file + i * bytes, row, PL_ROWS, COLS, panels + i * panel));
    printf("  %-8s %7.2f GB/s packed, %7.2f GB/s in a cache\n", info->name, (double)(bytes * n) / all / 1e9,
           16.0 * (double)bytes / one / 1e9);
    free(file);
    free(panels);
}

static void bench_attention(const pl_kernels *tier, int type, int n_rows)
{
    enum { DIM = 128, KEYS = 4096, ROWS = 8 };
    pl_kv_tile tile;
    pl_kv_tile_init(&tile, type, DIM);
    uint8_t *bytes = memory((size_t)(2 * tile.bytes * KEYS / PL_TILE)), *pages[KEYS / PL_TILE];
    float *x = memory(sizeof(float) * DIM), *scratch = memory(sizeof(float) * (2 * DIM * PL_TILE + DIM + ROWS * DIM));
    float *states = memory(sizeof(float) * ROWS * (PL_STATE_HEAD + DIM)), *state[ROWS];
    const float *q[ROWS];
    int32_t pos[ROWS], lo[ROWS] = {0};
    for (int i = 0; i < DIM; i++)
        x[i] = random_float();
    for (int j = 0; j < KEYS; j++) {
        pages[j / PL_TILE] = bytes + j / PL_TILE * 2 * tile.bytes;
        tier->store_k(&tile, pages[j / PL_TILE], j % PL_TILE, x);
        tier->store_v(&tile, pages[j / PL_TILE] + tile.bytes, j % PL_TILE, x);
    }
    for (int r = 0; r < n_rows; r++) {
        q[r] = x;
        pos[r] = KEYS - 1;
        state[r] = states + r * (PL_STATE_HEAD + DIM);
    }
    pl_attention a = {.k = &tile,
                      .v = &tile,
                      .pages = pages,
                      .v_offset = tile.bytes,
                      .key1 = KEYS,
                      .n_rows = n_rows,
                      .q = q,
                      .pos = pos,
                      .lo = lo,
                      .state = state,
                      .scratch = scratch};
    double took;
    BEST(took, tier->attention(&a));
    printf("  %-8s %7.2f GB/s %8.1f Gop/s attention, %d rows, %s\n", pl_type_name(type),
           2.0 * (double)tile.bytes * KEYS / PL_TILE / took / 1e9, 4.0 * DIM * KEYS * n_rows / took / 1e9, n_rows,
           tier->kv_whole(type) ? "int16" : "fp32");
    void *all[] = {bytes, x, scratch, states};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
}

static void bench_rows(const pl_kernels *tier)
{
    enum { N = 4096 };
    float *x = memory(sizeof(float) * N), *y = memory(sizeof(float) * N), *z = memory(sizeof(float) * N);
    pl_q8 *q8 = memory(sizeof(pl_q8) * 2 * N / 32);
    for (int i = 0; i < N; i++)
        x[i] = y[i] = random_float();
    double quantize, norm, layer_norm, gelu, silu, sum, rope;
    BEST(quantize, tier->quantize(x, N / 32, N / 32, PL_Q8_DOMINANT, q8));
    BEST(norm, tier->rms_norm(x, y, 1e-5f, N, z));
    BEST(layer_norm, tier->layer_norm(x, y, y, 1e-5f, N, z));
    BEST(gelu, tier->gelu(x, 0, z, N));
    BEST(silu, tier->silu_mul(x, y, z, N));
    BEST(sum, tier->add(x, y, z, N));
    BEST(rope, tier->rope(z, x, N / 128, 128, 128));
    printf("  ns per 4096 floats: quantize %.0f  rms_norm %.0f  layer_norm %.0f  gelu %.0f  silu_mul %.0f  add %.0f  rope %.0f\n",
           quantize * 1e9, norm * 1e9, layer_norm * 1e9, gelu * 1e9, silu * 1e9, sum * 1e9, rope * 1e9);
    free(x);
    free(y);
    free(z);
    free(q8);
}

void bench(const pl_kernels *tier)
{
    static int packed; /* all tiers have the same panels */
    set_random_codebooks();
    for (int k = 0; !packed && weight_type(k) >= 0; k++)
        bench_packing(weight_type(k));
    packed = 1;
    fflush(stdout);
    printf("%s\n", tier->name);
    for (int k = 0; weight_type(k) >= 0; k++)
        bench_matmul(tier, weight_type(k));
    for (int k = 0; k < COUNT(kv_types); k++) {
        bench_attention(tier, kv_types[k], 1);
        bench_attention(tier, kv_types[k], 8);
    }
    bench_rows(tier);
    fflush(stdout);
}
