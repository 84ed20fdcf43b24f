/* AVX-512, VNNI, VBMI and GFNI in AVX2, for checks of the tiers avxvnni, avx512 and avx512vbmi on CPUs that lack them. ../run.sh
 * compiles those tiers with `_mm512_` and `__m512` renamed to `emulated_` and `emulated_m512`, so an intrinsic that has no function here is an
 * error. Written from the operations in Intel's Intrinsics Guide; every result has the same bits as the instruction's.
 *
 * h[0] holds the low half of a register. Lanes that AVX2 has no instruction for go through memory. */
#ifndef EMULATED_INTRINSICS_H
#define EMULATED_INTRINSICS_H
#include "isa.h"

#define vi_in_order(x) ((void)0) /* no register holds a register of 512 bits */

PL_TARGET_BEGIN("avx2,fma,f16c")

typedef struct {
    __m256 h[2];
} emulated_m512;
typedef struct {
    __m256d h[2];
} emulated_m512d;
typedef struct {
    __m256i h[2];
} emulated_m512i;

#define EMULATED_UNARY(RESULT, NAME, TYPE, HALF) \
    PL_INLINE RESULT emulated_##NAME(TYPE a) { return (RESULT){{HALF(a.h[0]), HALF(a.h[1])}}; }
#define EMULATED_BINARY(TYPE, NAME, HALF) \
    PL_INLINE TYPE emulated_##NAME(TYPE a, TYPE b) { return (TYPE){{HALF(a.h[0], b.h[0]), HALF(a.h[1], b.h[1])}}; }
#define EMULATED_SHIFT(NAME, HALF) \
    PL_INLINE emulated_m512i emulated_##NAME(emulated_m512i a, unsigned n) \
    { \
        return (emulated_m512i){{HALF(a.h[0], (int)n), HALF(a.h[1], (int)n)}}; \
    }
#define EMULATED_SET1(RESULT, NAME, TYPE, HALF) \
    PL_INLINE RESULT emulated_##NAME(TYPE x) { return (RESULT){{HALF(x), HALF(x)}}; }

/* ---- halves that AVX2 computes as they are ---- */

EMULATED_BINARY(emulated_m512, add_ps, _mm256_add_ps)
EMULATED_BINARY(emulated_m512, sub_ps, _mm256_sub_ps)
EMULATED_BINARY(emulated_m512, mul_ps, _mm256_mul_ps)
EMULATED_BINARY(emulated_m512, div_ps, _mm256_div_ps)
EMULATED_BINARY(emulated_m512, max_ps, _mm256_max_ps)
EMULATED_BINARY(emulated_m512, min_ps, _mm256_min_ps)
EMULATED_BINARY(emulated_m512, unpacklo_ps, _mm256_unpacklo_ps)
EMULATED_BINARY(emulated_m512, unpackhi_ps, _mm256_unpackhi_ps)
EMULATED_BINARY(emulated_m512d, unpacklo_pd, _mm256_unpacklo_pd)
EMULATED_BINARY(emulated_m512d, unpackhi_pd, _mm256_unpackhi_pd)
EMULATED_BINARY(emulated_m512i, unpacklo_epi16, _mm256_unpacklo_epi16)
EMULATED_BINARY(emulated_m512i, unpackhi_epi16, _mm256_unpackhi_epi16)
EMULATED_BINARY(emulated_m512i, add_epi8, _mm256_add_epi8)
EMULATED_BINARY(emulated_m512i, sub_epi16, _mm256_sub_epi16)
EMULATED_BINARY(emulated_m512i, add_epi32, _mm256_add_epi32)
EMULATED_BINARY(emulated_m512i, mullo_epi32, _mm256_mullo_epi32)
EMULATED_BINARY(emulated_m512i, madd_epi16, _mm256_madd_epi16)
EMULATED_BINARY(emulated_m512i, avg_epu8, _mm256_avg_epu8)
EMULATED_BINARY(emulated_m512i, and_si512, _mm256_and_si256)
EMULATED_BINARY(emulated_m512i, andnot_si512, _mm256_andnot_si256)
EMULATED_BINARY(emulated_m512i, or_si512, _mm256_or_si256)
EMULATED_BINARY(emulated_m512i, xor_si512, _mm256_xor_si256)
EMULATED_BINARY(emulated_m512i, shuffle_epi8, _mm256_shuffle_epi8)
EMULATED_BINARY(emulated_m512i, unpacklo_epi8, _mm256_unpacklo_epi8)
EMULATED_BINARY(emulated_m512i, unpackhi_epi8, _mm256_unpackhi_epi8)
EMULATED_BINARY(emulated_m512i, unpacklo_epi32, _mm256_unpacklo_epi32)
EMULATED_BINARY(emulated_m512i, unpackhi_epi32, _mm256_unpackhi_epi32)
EMULATED_BINARY(emulated_m512i, unpacklo_epi64, _mm256_unpacklo_epi64)
EMULATED_BINARY(emulated_m512i, unpackhi_epi64, _mm256_unpackhi_epi64)
EMULATED_BINARY(emulated_m512i, packs_epi32, _mm256_packs_epi32)
EMULATED_BINARY(emulated_m512i, packs_epi16, _mm256_packs_epi16)
EMULATED_BINARY(emulated_m512i, srlv_epi32, _mm256_srlv_epi32)
EMULATED_SHIFT(srli_epi16, _mm256_srli_epi16)
EMULATED_SHIFT(slli_epi16, _mm256_slli_epi16)
EMULATED_SHIFT(srli_epi32, _mm256_srli_epi32)
EMULATED_SHIFT(slli_epi32, _mm256_slli_epi32)
EMULATED_UNARY(emulated_m512, sqrt_ps, emulated_m512, _mm256_sqrt_ps)
EMULATED_UNARY(emulated_m512i, cvtps_epi32, emulated_m512, _mm256_cvtps_epi32)
EMULATED_UNARY(emulated_m512, cvtepi32_ps, emulated_m512i, _mm256_cvtepi32_ps)
EMULATED_UNARY(emulated_m512d, castps_pd, emulated_m512, _mm256_castps_pd)
EMULATED_UNARY(emulated_m512, castpd_ps, emulated_m512d, _mm256_castpd_ps)
EMULATED_UNARY(emulated_m512i, castps_si512, emulated_m512, _mm256_castps_si256)
EMULATED_UNARY(emulated_m512, castsi512_ps, emulated_m512i, _mm256_castsi256_ps)
EMULATED_SET1(emulated_m512, set1_ps, float, _mm256_set1_ps)
EMULATED_SET1(emulated_m512i, set1_epi8, char, _mm256_set1_epi8)
EMULATED_SET1(emulated_m512i, set1_epi16, short, _mm256_set1_epi16)
EMULATED_SET1(emulated_m512i, set1_epi32, int, _mm256_set1_epi32)
EMULATED_SET1(emulated_m512i, set1_epi64, long long, _mm256_set1_epi64x)
EMULATED_SET1(emulated_m512i, broadcast_i32x4, __m128i, _mm256_broadcastsi128_si256)

PL_INLINE emulated_m512 emulated_setzero_ps(void) { return emulated_set1_ps(0.0f); }
PL_INLINE emulated_m512i emulated_setzero_si512(void) { return emulated_set1_epi32(0); }
PL_INLINE emulated_m512 emulated_fmadd_ps(emulated_m512 a, emulated_m512 b, emulated_m512 c)
{
    return (emulated_m512){{_mm256_fmadd_ps(a.h[0], b.h[0], c.h[0]), _mm256_fmadd_ps(a.h[1], b.h[1], c.h[1])}};
}
PL_INLINE emulated_m512 emulated_fnmadd_ps(emulated_m512 a, emulated_m512 b, emulated_m512 c)
{
    return (emulated_m512){{_mm256_fnmadd_ps(a.h[0], b.h[0], c.h[0]), _mm256_fnmadd_ps(a.h[1], b.h[1], c.h[1])}};
}
PL_INLINE emulated_m512 emulated_abs_ps(emulated_m512 a)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (emulated_m512){{_mm256_andnot_ps(sign, a.h[0]), _mm256_andnot_ps(sign, a.h[1])}};
}
/* Macros where an instruction takes a constant. roundscale with no fraction bits (bits 4 to 7 of the constant) only. */
#define emulated_roundscale_ps(a, how) \
    ((emulated_m512){{_mm256_round_ps((a).h[0], (how) & 15), _mm256_round_ps((a).h[1], (how) & 15)}})

/* ---- memory, and halves and quarters of registers ---- */

PL_INLINE emulated_m512 emulated_loadu_ps(const float *p) { return (emulated_m512){{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
PL_INLINE void emulated_storeu_ps(float *p, emulated_m512 x)
{
    _mm256_storeu_ps(p, x.h[0]);
    _mm256_storeu_ps(p + 8, x.h[1]);
}
PL_INLINE emulated_m512i emulated_loadu_si512(const void *p)
{
    return (emulated_m512i){{_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)}};
}
PL_INLINE void emulated_storeu_si512(void *p, emulated_m512i x)
{
    _mm256_storeu_si256(p, x.h[0]);
    _mm256_storeu_si256((__m256i *)p + 1, x.h[1]);
}
PL_INLINE emulated_m512 emulated_i32gather_ps(emulated_m512i at, const float *p, int scale)
{
    int32_t offset[16];
    float x[16];
    emulated_storeu_si512(offset, at);
    for (int l = 0; l < 16; l++)
        memcpy(&x[l], (const char *)p + (int64_t)offset[l] * scale, sizeof x[l]);
    return emulated_loadu_ps(x);
}
#define emulated_setr_ps(...) emulated_loadu_ps((const float[16]){__VA_ARGS__})
#define emulated_setr_epi32(...) emulated_loadu_si512((const int32_t[16]){__VA_ARGS__})

PL_INLINE __m256 emulated_castps512_ps256(emulated_m512 a) { return a.h[0]; }
PL_INLINE float emulated_cvtss_f32(emulated_m512 a) { return _mm256_cvtss_f32(a.h[0]); }
PL_INLINE __m128i emulated_castsi512_si128(emulated_m512i a) { return _mm256_castsi256_si128(a.h[0]); }
PL_INLINE __m256i emulated_castsi512_si256(emulated_m512i a) { return a.h[0]; }
PL_INLINE __m256i emulated_extracti64x4_epi64(emulated_m512i a, int half) { return a.h[half & 1]; }
PL_INLINE __m128i emulated_extracti32x4_epi32(emulated_m512i a, int quarter)
{
    return quarter & 1 ? _mm256_extracti128_si256(a.h[quarter >> 1 & 1], 1) : _mm256_castsi256_si128(a.h[quarter >> 1 & 1]);
}
PL_INLINE __m256d emulated_extractf64x4_pd(emulated_m512d a, int half) { return a.h[half & 1]; }
PL_INLINE emulated_m512i emulated_castsi128_si512(__m128i x) /* the other lanes are undefined: a pattern that would be noticed */
{
    const __m256i other = _mm256_set1_epi8(0x5a);
    return (emulated_m512i){{_mm256_inserti128_si256(other, x, 0), other}};
}
PL_INLINE emulated_m512 emulated_shuffle_f32x4(emulated_m512 a, emulated_m512 b, int order)
{
    float from[2][16], to[16];
    emulated_storeu_ps(from[0], a);
    emulated_storeu_ps(from[1], b);
    for (int i = 0; i < 4; i++)
        memcpy(to + 4 * i, from[i / 2] + 4 * (order >> (2 * i) & 3), 16);
    return emulated_loadu_ps(to);
}

PL_INLINE emulated_m512 emulated_permute_ps(emulated_m512 a, int order)
{
    float from[16], to[16];
    emulated_storeu_ps(from, a);
    for (int i = 0; i < 16; i++)
        to[i] = from[i / 4 * 4 + (order >> (2 * (i % 4)) & 3)];
    return emulated_loadu_ps(to);
}

PL_INLINE emulated_m512 emulated_castps256_ps512(__m256 x) { return (emulated_m512){{x, _mm256_castsi256_ps(_mm256_set1_epi8(0x5a))}}; }
PL_INLINE emulated_m512i emulated_castsi256_si512(__m256i x) { return (emulated_m512i){{x, _mm256_set1_epi8(0x5a)}}; }
PL_INLINE emulated_m512i emulated_inserti64x4(emulated_m512i a, __m256i x, int half)
{
    a.h[half & 1] = x;
    return a;
}
#define emulated_shuffle_ps(a, b, order) \
    ((emulated_m512){{_mm256_shuffle_ps((a).h[0], (b).h[0], order), _mm256_shuffle_ps((a).h[1], (b).h[1], order)}})
#define emulated_shuffle_epi32(a, order) \
    ((emulated_m512i){{_mm256_shuffle_epi32((a).h[0], order), _mm256_shuffle_epi32((a).h[1], order)}})

/* ---- permutations ---- */

PL_INLINE emulated_m512i emulated_permutexvar_epi32(emulated_m512i index, emulated_m512i a)
{
    uint32_t i[16], from[16], to[16];
    emulated_storeu_si512(i, index);
    emulated_storeu_si512(from, a);
    for (int l = 0; l < 16; l++)
        to[l] = from[i[l] & 15];
    return emulated_loadu_si512(to);
}
PL_INLINE emulated_m512 emulated_permutexvar_ps(emulated_m512i index, emulated_m512 a)
{
    return emulated_castsi512_ps(emulated_permutexvar_epi32(index, emulated_castps_si512(a)));
}
PL_INLINE emulated_m512i emulated_permutex2var_epi16(emulated_m512i a, emulated_m512i index, emulated_m512i b)
{
    uint16_t i[32], from[64], to[32];
    emulated_storeu_si512(i, index);
    emulated_storeu_si512(from, a);
    emulated_storeu_si512(from + 32, b);
    for (int l = 0; l < 32; l++)
        to[l] = from[i[l] & 63];
    return emulated_loadu_si512(to);
}
PL_INLINE emulated_m512 emulated_permutex2var_ps(emulated_m512 a, emulated_m512i index, emulated_m512 b)
{
    uint32_t i[16];
    float from[32], to[16];
    emulated_storeu_si512(i, index);
    emulated_storeu_ps(from, a);
    emulated_storeu_ps(from + 16, b);
    for (int l = 0; l < 16; l++)
        to[l] = from[i[l] & 31];
    return emulated_loadu_ps(to);
}
PL_INLINE emulated_m512i emulated_permutex2var_epi32(emulated_m512i a, emulated_m512i index, emulated_m512i b)
{
    return emulated_castps_si512(emulated_permutex2var_ps(emulated_castsi512_ps(a), index, emulated_castsi512_ps(b)));
}

PL_INLINE emulated_m512i emulated_permutexvar_epi8(emulated_m512i index, emulated_m512i a)
{
    uint8_t i[64], from[64], to[64];
    emulated_storeu_si512(i, index);
    emulated_storeu_si512(from, a);
    for (int l = 0; l < 64; l++)
        to[l] = from[i[l] & 63];
    return emulated_loadu_si512(to);
}
PL_INLINE emulated_m512i emulated_permutex2var_epi8(emulated_m512i a, emulated_m512i index, emulated_m512i b)
{
    uint8_t i[64], from[128], to[64];
    emulated_storeu_si512(i, index);
    emulated_storeu_si512(from, a);
    emulated_storeu_si512(from + 64, b);
    for (int l = 0; l < 64; l++)
        to[l] = from[i[l] & 127];
    return emulated_loadu_si512(to);
}
/* Byte i of a word of 64 bits: 8 bits of the word from bit `at` on, around its end. */
PL_INLINE emulated_m512i emulated_multishift_epi64_epi8(emulated_m512i at, emulated_m512i a)
{
    uint8_t n[64];
    uint64_t from[8];
    emulated_storeu_si512(n, at);
    emulated_storeu_si512(from, a);
    for (int l = 0; l < 64; l++) {
        uint64_t word = from[l / 8];
        int first = n[l] & 63;
        n[l] = (uint8_t)(first ? word >> first | word << (64 - first) : word);
    }
    return emulated_loadu_si512(n);
}

/* ---- logic ---- */

PL_INLINE emulated_m512i emulated_ternarylogic_epi32(emulated_m512i a, emulated_m512i b, emulated_m512i c, int table)
{
    uint64_t x[8], y[8], z[8];
    emulated_storeu_si512(x, a);
    emulated_storeu_si512(y, b);
    emulated_storeu_si512(z, c);
    for (int l = 0; l < 8; l++) {
        uint64_t result = 0;
        for (int i = 0; i < 8; i++)
            if (table >> i & 1)
                result |= (i & 4 ? x[l] : ~x[l]) & (i & 2 ? y[l] : ~y[l]) & (i & 1 ? z[l] : ~z[l]);
        x[l] = result;
    }
    return emulated_loadu_si512(x);
}
/* Bit i of a byte: the parity of what the byte has of byte 7 - i of its word in `matrix`; xor `add`. */
PL_INLINE emulated_m512i emulated_gf2p8affine_epi64_epi8(emulated_m512i a, emulated_m512i matrix, int add)
{
    uint8_t x[64], rows[64];
    emulated_storeu_si512(x, a);
    emulated_storeu_si512(rows, matrix);
    for (int l = 0; l < 64; l++) {
        int result = add;
        for (int i = 0; i < 8; i++)
            result ^= __builtin_parity(x[l] & rows[l / 8 * 8 + 7 - i]) << i;
        x[l] = (uint8_t)result;
    }
    return emulated_loadu_si512(x);
}

/* ---- conversions ---- */

#define EMULATED_WIDEN(NAME, PART, HALF, LOW, HIGH) \
    PL_INLINE emulated_m512i emulated_##NAME(PART x) { return (emulated_m512i){{HALF(LOW), HALF(HIGH)}}; }
EMULATED_WIDEN(cvtepi8_epi32, __m128i, _mm256_cvtepi8_epi32, x, _mm_srli_si128(x, 8))
EMULATED_WIDEN(cvtepu8_epi32, __m128i, _mm256_cvtepu8_epi32, x, _mm_srli_si128(x, 8))
EMULATED_WIDEN(cvtepi8_epi16, __m256i, _mm256_cvtepi8_epi16, _mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1))
EMULATED_WIDEN(cvtepu8_epi16, __m256i, _mm256_cvtepu8_epi16, _mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1))
EMULATED_WIDEN(cvtepu16_epi32, __m256i, _mm256_cvtepu16_epi32, _mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1))
PL_INLINE __m256i emulated_cvtepi32_epi16(emulated_m512i a) /* the low 16 bits, as vpmovdw; vpmovsdw would saturate */
{
    uint32_t from[16];
    uint16_t to[16];
    emulated_storeu_si512(from, a);
    for (int l = 0; l < 16; l++)
        to[l] = (uint16_t)from[l];
    return _mm256_loadu_si256((const __m256i *)to);
}
PL_INLINE __m128i emulated_cvtepi32_epi8(emulated_m512i a)
{
    uint32_t from[16];
    uint8_t to[16];
    emulated_storeu_si512(from, a);
    for (int l = 0; l < 16; l++)
        to[l] = (uint8_t)from[l];
    return _mm_loadu_si128((const __m128i *)to);
}
PL_INLINE emulated_m512 emulated_cvtph_ps(__m256i x)
{
    return (emulated_m512){{_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))}};
}
#define emulated_cvtps_ph(a, how) \
    _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtps_ph((a).h[0], (how) & 7)), _mm256_cvtps_ph((a).h[1], (how) & 7), 1)

/* a * 2^floor(b): exact as float64, then rounded once. Exponents that a float can have after it; a NaN in b is not emulated. */
PL_INLINE emulated_m512 emulated_scalef_ps(emulated_m512 a, emulated_m512 b)
{
    float x[16], n[16];
    emulated_storeu_ps(x, a);
    emulated_storeu_ps(n, b);
    for (int l = 0; l < 16; l++)
        x[l] = (float)ldexp((double)x[l], (int)floorf(n[l] > 600.0f ? 600.0f : n[l] < -600.0f ? -600.0f : n[l]));
    return emulated_loadu_ps(x);
}

/* ---- masks: bit l for lane l ---- */

#define EMULATED_COMPARE(a, b, how, half) (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((a).h[half], (b).h[half], how))
#define emulated_cmp_ps_mask(a, b, how) ((__mmask16)(EMULATED_COMPARE(a, b, how, 0) | EMULATED_COMPARE(a, b, how, 1) << 8))
PL_INLINE __mmask16 emulated_cmplt_epi32_mask(emulated_m512i a, emulated_m512i b)
{
    unsigned low = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.h[0], a.h[0])));
    unsigned high = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.h[1], a.h[1])));
    return (__mmask16)(low | high << 8);
}
PL_INLINE __mmask32 emulated_test_epi16_mask(emulated_m512i a, emulated_m512i b)
{
    uint16_t x[32];
    __mmask32 mask = 0;
    emulated_storeu_si512(x, emulated_and_si512(a, b));
    for (int l = 0; l < 32; l++)
        mask |= (__mmask32)(x[l] != 0) << l;
    return mask;
}
PL_INLINE __mmask64 emulated_test_epi8_mask(emulated_m512i a, emulated_m512i b)
{
    uint8_t x[64];
    __mmask64 mask = 0;
    emulated_storeu_si512(x, emulated_and_si512(a, b));
    for (int l = 0; l < 64; l++)
        mask |= (__mmask64)(x[l] != 0) << l;
    return mask;
}
PL_INLINE emulated_m512 emulated_mask_blend_ps(__mmask16 mask, emulated_m512 a, emulated_m512 b)
{
    float x[16], y[16];
    emulated_storeu_ps(x, a);
    emulated_storeu_ps(y, b);
    for (int l = 0; l < 16; l++)
        x[l] = mask >> l & 1 ? y[l] : x[l];
    return emulated_loadu_ps(x);
}
PL_INLINE emulated_m512 emulated_mask_mov_ps(emulated_m512 a, __mmask16 mask, emulated_m512 b) { return emulated_mask_blend_ps(mask, a, b); }
PL_INLINE emulated_m512i emulated_mask_mov_epi32(emulated_m512i a, __mmask16 mask, emulated_m512i b)
{
    return emulated_castps_si512(emulated_mask_blend_ps(mask, emulated_castsi512_ps(a), emulated_castsi512_ps(b)));
}
PL_INLINE emulated_m512i emulated_mask_set1_epi32(emulated_m512i a, __mmask16 mask, int x)
{
    return emulated_mask_mov_epi32(a, mask, emulated_set1_epi32(x));
}
PL_INLINE emulated_m512i emulated_mask_blend_epi16(__mmask32 mask, emulated_m512i a, emulated_m512i b)
{
    uint16_t x[32], y[32];
    emulated_storeu_si512(x, a);
    emulated_storeu_si512(y, b);
    for (int l = 0; l < 32; l++)
        x[l] = mask >> l & 1 ? y[l] : x[l];
    return emulated_loadu_si512(x);
}
PL_INLINE emulated_m512i emulated_movm_epi8(__mmask64 mask) /* all bits of the bytes whose bit is set */
{
    const __m256i word = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    emulated_m512i x;
    for (int half = 0; half < 2; half++) {
        __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)(mask >> (32 * half))), word);
        x.h[half] = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    }
    return x;
}
PL_INLINE emulated_m512i emulated_maskz_mov_epi8(__mmask64 mask, emulated_m512i a)
{
    return emulated_and_si512(emulated_movm_epi8(mask), a);
}
PL_INLINE __mmask64 emulated_movepi8_mask(emulated_m512i a) /* the highest bits */
{
    return (uint32_t)_mm256_movemask_epi8(a.h[0]) | (__mmask64)(uint32_t)_mm256_movemask_epi8(a.h[1]) << 32;
}
PL_INLINE __mmask64 emulated_cmpeq_epi8_mask(emulated_m512i a, emulated_m512i b)
{
    return emulated_movepi8_mask((emulated_m512i){{_mm256_cmpeq_epi8(a.h[0], b.h[0]), _mm256_cmpeq_epi8(a.h[1], b.h[1])}});
}
PL_INLINE emulated_m512i emulated_blend_bytes(emulated_m512i a, __mmask64 mask, emulated_m512i b)
{
    emulated_m512i set = emulated_movm_epi8(mask);
    for (int half = 0; half < 2; half++)
        a.h[half] = _mm256_blendv_epi8(a.h[half], b.h[half], set.h[half]);
    return a;
}
PL_INLINE emulated_m512i emulated_mask_permutexvar_epi8(emulated_m512i other, __mmask64 mask, emulated_m512i index, emulated_m512i a)
{
    return emulated_blend_bytes(other, mask, emulated_permutexvar_epi8(index, a));
}
PL_INLINE emulated_m512i emulated_mask2_permutex2var_epi8(emulated_m512i a, emulated_m512i index, __mmask64 mask, emulated_m512i b)
{
    return emulated_blend_bytes(index, mask, emulated_permutex2var_epi8(a, index, b));
}
PL_INLINE emulated_m512i emulated_mask_sub_epi8(emulated_m512i other, __mmask64 mask, emulated_m512i a, emulated_m512i b)
{
    for (int half = 0; half < 2; half++)
        a.h[half] = _mm256_sub_epi8(a.h[half], b.h[half]);
    return emulated_blend_bytes(other, mask, a);
}
PL_INLINE emulated_m512i emulated_srlv_epi16(emulated_m512i a, emulated_m512i by)
{
    uint16_t x[32], n[32];
    emulated_storeu_si512(x, a);
    emulated_storeu_si512(n, by);
    for (int l = 0; l < 32; l++)
        x[l] = n[l] < 16 ? (uint16_t)(x[l] >> n[l]) : 0;
    return emulated_loadu_si512(x);
}

/* ---- VNNI: four products of unsigned and signed bytes to a sum; vpmaddubsw would saturate, so as int16 ---- */

PL_INLINE __m256i emulated_dpbusd_avx_epi32(__m256i sum, __m256i u, __m256i s)
{
    const __m256i low = _mm256_set1_epi16(255);
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
PL_INLINE emulated_m512i emulated_dpbusd_epi32(emulated_m512i sum, emulated_m512i u, emulated_m512i s)
{
    return (emulated_m512i){
        {emulated_dpbusd_avx_epi32(sum.h[0], u.h[0], s.h[0]), emulated_dpbusd_avx_epi32(sum.h[1], u.h[1], s.h[1])}};
}
PL_INLINE __m256i emulated_dpwssd_avx_epi32(__m256i sum, __m256i a, __m256i b)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
PL_INLINE emulated_m512i emulated_dpwssd_epi32(emulated_m512i sum, emulated_m512i a, emulated_m512i b)
{
    return emulated_add_epi32(sum, emulated_madd_epi16(a, b));
}

PL_TARGET_END

#endif
