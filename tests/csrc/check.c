/* Checks every kernel of every tier that this CPU has against straightforward references, in the manner of dav1d's
 * checkasm: hostile shapes, poisoned outputs, random data from a printed seed. --newest: the scalar tier and the last
 * that this CPU has, for runs on several emulated CPUs.
 *
 *     check [--quick] [--seed N] [--tier NAME | --newest] [--bench]
 *           [--only matmul|kv|attention|elementwise|distribution|sampling|quantize|quantize_iq|probe]
 */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "exec/residual_blocks.h"
#include <stdarg.h>
#include <time.h>

const pl_kernels *tiers[MAX_TIERS];
int n_tiers, quick;

/* ---- random numbers: splitmix64 ---- */

static uint64_t state;

void set_seed(uint64_t seed) { state = seed; }

uint32_t random_bits(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

int random_below(int n) { return (int)(random_bits() % (uint32_t)n); }
float random_float(void) { return (float)(int32_t)random_bits() * 0x1p-31f; }
int pick(const int *values, int n) { return values[random_below(n)]; }

/* ---- reporting ---- */

static char current_case[256];
static int n_failures;
static long n_cases;

void begin_case(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(current_case, sizeof current_case, format, args);
    va_end(args);
    n_cases++;
}

void fail(const pl_kernels *tier, const char *format, ...)
{
    if (n_failures++ >= 40)
        return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "FAIL %s: %s: ", tier->name, current_case);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
}

int failures(void) { return n_failures; }
long cases(void) { return n_cases; }

/* ---- guarded memory ---- */

#if defined(__SANITIZE_ADDRESS__)
#define CANARY 0 /* the sanitizer's red zones stand right after the data, and see reads too */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CANARY 0
#endif
#endif
#ifndef CANARY
#define CANARY 256
#endif
#define CANARY_BYTE 0xa5
static const size_t canary_bytes = CANARY;

typedef struct {
    void *base;
    size_t bytes;
} guard_head; /* stands right before the front canary */

static uint8_t *front_canary(void *data) { return (uint8_t *)data - 64; }

void *guarded(size_t bytes, size_t offset)
{
    void *base;
    if (posix_memalign(&base, 64, 128 + offset + bytes + CANARY) != 0)
        abort();
    uint8_t *data = (uint8_t *)base + 128 + offset;
    guard_head head = {base, bytes};
    memcpy(front_canary(data) - sizeof head, &head, sizeof head);
    memset(front_canary(data), CANARY_BYTE, 64);
    memset(data, 0xff, bytes);
    memset(data + bytes, CANARY_BYTE, canary_bytes);
    return data;
}

static int all_bytes(const uint8_t *p, size_t n, uint8_t value)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != value)
            return 0;
    return 1;
}

int is_poison(const void *data, size_t bytes) { return all_bytes(data, bytes, 0xff); }

void guarded_free(const pl_kernels *tier, void *data)
{
    guard_head head;
    memcpy(&head, front_canary(data) - sizeof head, sizeof head);
    if (!all_bytes(front_canary(data), 64, CANARY_BYTE))
        fail(tier, "wrote before a buffer");
    if (!all_bytes((uint8_t *)data + head.bytes, CANARY, CANARY_BYTE))
        fail(tier, "wrote past a buffer");
    free(head.base);
}

/* ---- references of the number formats ---- */

uint16_t reference_f16(double x)
{
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    double magnitude = fabs(x);
    int exponent;
    if (isnan(x))
        return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 65520.0)
        return (uint16_t)(sign | 0x7c00);
    frexp(magnitude, &exponent); /* magnitude in [2^(exponent - 1), 2^exponent) */
    if (magnitude == 0.0 || exponent < -13)
        exponent = -13;                                        /* subnormal: the spacing stays 2^-24 */
    double steps = nearbyint(ldexp(magnitude, 11 - exponent)); /* 1024 .. 2048 for normal numbers */
    if (steps < 1024)
        return (uint16_t)(sign | (uint16_t)steps);
    return (uint16_t)(sign + (((exponent + 14) << 10) + ((int)steps - 1024)));
}

uint16_t reference_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t low = bits & 0xffff, high = bits >> 16;
    return (uint16_t)(high + (low > 0x8000 || (low == 0x8000 && high % 2)));
}

void reference_q8(const float *x, float scale, int step, pl_q8 *out)
{
    float d = scale * pl_q8_factor[step], inverse = d > 0.0f ? 1.0f / d : 0.0f;
    out->scale = scale;
    out->step = (uint8_t)step;
    out->residual_mask = 0;
    out->sum[0] = out->sum[1] = 0;
    memset(out->pair_sum, 0, sizeof out->pair_sum);
    for (int i = 0; i < 32; i++) {
        out->q[i] = (int8_t)lrint((double)(x[i] * inverse));
        out->sum[i / 16] = (int16_t)(out->sum[i / 16] + out->q[i]);
        int16_t *pair = &out->pair_sum[i / 16][i / 2 % 2];
        *pair = (int16_t)(*pair + out->q[i]);
    }
    out->s = pl_q8_factor[step] * (float)(out->sum[0] + out->sum[1]);
    out->residual_offset = 0;
}

void reference_sum_x8(const pl_q8 *pair, int16_t *out)
{
    for (int i = 0; i < 2; i++)
        out[i] = (int16_t)nearbyint(8.0 * (double)(pl_q8_factor[pair[i].step] * (float)(pair[i].sum[0] + pair[i].sum[1])));
}

uint8_t *gather_residuals(const pl_matmul *m, int group)
{
    int n = (int)(m->token1 - m->token0), blocks = (int)(m->cols / 32), chunks = (blocks + PL_CHUNK_BLOCKS - 1) / PL_CHUNK_BLOCKS;
    uint8_t *residuals = guarded((size_t)((n + group - 1) / group * chunks * pl_residual_bytes(group)), 0);
    for (int t = 0; t < n; t += group)
        for (int i = 0; i < chunks; i++) {
            int block = i * PL_CHUNK_BLOCKS, subs = blocks - block < PL_CHUNK_BLOCKS ? blocks - block : PL_CHUNK_BLOCKS;
            pl_residual_gather(m->q8 + (m->token0 + t) * m->q8_stride + block, m->q8_stride, subs, n - t < group ? n - t : group,
                               pl_residual_at(residuals, group, blocks, t / group, i));
        }
    return residuals;
}

/* ---- the program ---- */

/* The last tier that this CPU has; prints them all. */
static const char *newest_tier(void)
{
    const char *newest = NULL;
    printf("this CPU has:");
    for (int i = 0; pl_isa_name(i); i++)
        if (pl_isa_available(i))
            printf(" %s", newest = pl_isa_name(i));
    printf("\n");
    return newest;
}

static int find_tiers(const char *only)
{
    for (int i = 0; pl_isa_name(i); i++) {
        const char *name = pl_isa_name(i);
        int wanted = !only || !strcmp(only, name) || i == 0; /* scalar is always the first */
        if (wanted && pl_isa_available(i) && pl_isa_select(name) == i)
            tiers[n_tiers++] = pl_kernels_current();
        else if (wanted)
            printf("skipped tier %s: this CPU lacks it\n", name);
    }
    return only ? n_tiers == 2 || !strcmp(only, "scalar") : n_tiers > 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {{"elementwise", check_elementwise},
                 {"distribution", check_distribution},
                 {"sampling", check_sampling},
                 {"int16", check_int16},
                 {"position_softmax", check_position_softmax},
                 {"kv", check_kv},
                 {"attention", check_attention},
                 {"matmul", check_matmul},
                 {"quantize", check_quantize_weights},
                 {"quantize_iq", check_quantize_iq},
                 {"probe", check_probe}};
    const char *only_tier = NULL, *only_part = NULL;
    uint64_t seed = (uint64_t)time(NULL);
    int timed = 0, newest = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--quick"))
            quick = 1;
        else if (!strcmp(argv[i], "--bench"))
            timed = 1;
        else if (!strcmp(argv[i], "--newest"))
            newest = 1;
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--tier") && i + 1 < argc)
            only_tier = argv[++i];
        else if (!strcmp(argv[i], "--only") && i + 1 < argc)
            only_part = argv[++i];
        else {
            fprintf(stderr, "usage: %s [--quick] [--seed N] [--tier NAME | --newest] [--only PART] [--bench]\n", argv[0]);
            return 2;
        }
    }
    if (newest)
        only_tier = newest_tier();
    if (!find_tiers(only_tier)) {
        fprintf(stderr, "no tier %s on this CPU\n", only_tier);
        return 2;
    }
    for (int i = 0; i < COUNT(parts); i++) {
        if (only_part && strcmp(only_part, parts[i].name) != 0)
            continue;
        set_seed(seed); /* per part, so that --only repeats it */
        int failed_before = n_failures;
        long before = n_cases;
        parts[i].run();
        printf("%-12s %ld cases x %d tiers: %s\n", parts[i].name, n_cases - before, n_tiers,
               n_failures == failed_before ? "ok" : "FAILED");
        fflush(stdout);
    }
    if (!n_cases) {
        fprintf(stderr, "nothing was checked: no part %s\n", only_part);
        return 2;
    }
    printf("tiers:");
    for (int i = 0; i < n_tiers; i++)
        printf(" %s", tiers[i]->name);
    printf("; seed %llu%s; %d failures\n", (unsigned long long)seed, quick ? " --quick" : "", n_failures);
    if (timed && !n_failures)
        for (int i = 0; i < n_tiers; i++)
            bench(tiers[i]);
    return n_failures ? 1 : 0;
}
