/* Primitives of the tier scalar: plain C, one lane. The reference of the checks, and the fallback of a CPU without any
 * tier of its own. A `vi` is one row's 4 codes (or one int32 sum). */
#include "isa.h"

/* One lane leaves nothing to gain from forced unrolling, and it would take the compiler ten times as long. */
#undef PL_UNROLL
#define PL_UNROLL

#define TIER scalar
#define VL 1
#define TOKENS_TILE 2
#define PANELS_TILE 1
#define FLOAT_TOKENS 2
#define FLOAT_STEPS(STEP) STEP(2) STEP(1)
#define ROWS_TILE 2
#define KEYS_TILE 4
#define SCORE_SUMS 1
#define DIMS_TILE 4
#define WIDE_ROWS 1
#define S_BIAS 0

typedef float vf;
typedef uint32_t vi;

PL_INLINE vf vf_zero(void) { return 0.0f; }
PL_INLINE vf vf_set1(float x) { return x; }
PL_INLINE vf vf_load(const float *p) { return *p; }
PL_INLINE void vf_store(float *p, vf x) { *p = x; }
PL_INLINE vf vf_add(vf a, vf b) { return a + b; }
PL_INLINE vf vf_sub(vf a, vf b) { return a - b; }
PL_INLINE vf vf_mul(vf a, vf b) { return a * b; }
PL_INLINE vf vf_div(vf a, vf b) { return a / b; }
PL_INLINE vf vf_max(vf a, vf b) { return a > b ? a : b; } /* a NaN in a gives b, as on the other tiers */
PL_INLINE vf vf_min(vf a, vf b) { return a < b ? a : b; }
PL_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; } /* two roundings: fmaf() is a slow call without hardware */
PL_INLINE vf vf_fnma(vf a, vf b, vf c) { return c - a * b; }
PL_INLINE vf vf_abs(vf a) { return fabsf(a); }
PL_INLINE vf vf_round(vf a) { return rintf(a); }
PL_INLINE vf vf_sqrt(vf a) { return sqrtf(a); }
PL_INLINE vf vf_pick_less(vf a, vf b, vf x, vf y) { return a < b ? x : y; }         /* by lane */
PL_INLINE unsigned vf_mask_not_above(vf a, vf b) { return a <= b; }                 /* bit l: a <= b in lane l */
PL_INLINE vf vf_lut16_f(const float *table, vf index) { return table[(int)index]; } /* index: whole, 0 ... 15 */
PL_INLINE vf vf_gather(const float *p, const int32_t *at) { return p[*at]; }
PL_INLINE vf vf_swap(vf a, const int distance) { return (void)distance, a; }        /* lane l from l ^ distance */
PL_INLINE void vf_transpose(vf *r) { (void)r; }                                     /* VL registers of VL lanes */
PL_INLINE vf vf_exp2i(vf n) { return pl_f32_from_bits((uint32_t)((int32_t)n + 127) << 23); }
PL_INLINE vf vf_scale2(vf p, vf n) { return p * vf_exp2i(n); }
PL_INLINE int vf_any_above(vf a, vf limit) { return !(a <= limit); }
PL_INLINE vf vf_select_below(int first, int limit, vf x, vf y) { return first < limit ? x : y; }
PL_INLINE float vf_hsum(vf a) { return a; }
PL_INLINE float vf_hmax(vf a) { return a; }

PL_INLINE vf vf_load_f16(const uint16_t *p) { return pl_f16_to_f32(*p); }
/* Rounds to nearest even, as F16C: values from 65520 on become inf, a NaN stays one (quiet, top bits of its payload). */
PL_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    uint32_t bits, magnitude;
    memcpy(&bits, &x, 4);
    magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u)
        half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    else if (magnitude >= 0x477ff000u)
        half = 0x7c00u;
    else if (magnitude < 0x38800000u) /* below 2^-14: a whole number of 2^-24 */
        half = (uint32_t)rintf(fabsf(x) * 0x1p24f);
    else
        half = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;
    *p = (uint16_t)(bits >> 16 & 0x8000u) | (uint16_t)half;
}
PL_INLINE vf vf_load_bf16(const uint16_t *p) { return pl_bf16_to_f32(*p); }
PL_INLINE void vf_store_bf16(uint16_t *p, vf x) /* round to nearest even */
{
    uint32_t u;
    memcpy(&u, &x, 4);
    *p = (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
PL_INLINE vf vf_load_i8(const int8_t *p) { return (float)*p; }
PL_INLINE vf vf_load_u8(const uint8_t *p) { return (float)*p; }
PL_INLINE vf vf_load_i4(const uint8_t *p, int high) { return (float)((high ? *p >> 4 : *p & 15) - 8); }
PL_INLINE vf vf_load_e8m0(const uint8_t *p) { return pl_f32_from_bits((uint32_t)*p << 23); }
PL_INLINE void vf_store_i8(int8_t *p, vf x) { *p = x >= -128.0f && x <= 127.0f ? (int8_t)x : 0; }
PL_INLINE void vf_store_u16(uint16_t *p, vf x) { *p = x >= 0.0f && x <= 65535.0f ? (uint16_t)x : 0; } /* whole numbers, 0 ... 65535 */

PL_INLINE vi vi_set1(int32_t x) { return (uint32_t)x; }
PL_INLINE vi vi_load(const void *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}
PL_INLINE void vi_store(void *p, vi x) { memcpy(p, &x, 4); }
/* a.low * b.low + a.high * b.high of the two int16 in every lane */
PL_INLINE vi vi_dot16(vi a, vi b) { return (vi)((int16_t)a * (int16_t)b + (int16_t)(a >> 16) * (int16_t)(b >> 16)); }
PL_INLINE vi vi_dot16_add(vi acc, vi a, vi b) { return acc + vi_dot16(a, b); }
/* Two bytes for every lane, as int16. */
PL_INLINE vi vi_load_u8_pairs(const uint8_t *p) { return (vi)p[0] | (vi)p[1] << 16; }
PL_INLINE vi vi_load_u8(const uint8_t *p) { return *p; }
PL_INLINE vi vi_mul(vi a, vi b) { return a * b; }
PL_INLINE vi vi_add(vi a, vi b) { return a + b; }
PL_INLINE vi vi_or(vi a, vi b) { return a | b; }
PL_INLINE vi vi_shr_and(vi a, int shift, uint8_t mask) { return a >> shift & mask * 0x01010101u; }
PL_INLINE vi vi_shl_and(vi a, int shift, uint8_t mask) { return a << shift & mask * 0x01010101u; }
PL_INLINE vi vi_lut16(const uint8_t *table, vi index)
{
    return (uint32_t)table[index & 15] | (uint32_t)table[index >> 8 & 15] << 8 | (uint32_t)table[index >> 16 & 15] << 16 |
           (uint32_t)table[index >> 24 & 15] << 24;
}
PL_INLINE vi vi_bits(const uint8_t *word, int part, uint8_t value)
{
    uint32_t bits = (uint32_t)word[part / 2] >> (part % 2 * 4);
    return ((bits & 1) | (bits & 2) << 7 | (bits & 4) << 14 | (bits & 8) << 21) * value;
}
/* Bytewise: sums modulo 256, and averages rounded up. */
PL_INLINE vi vi_add_u8(vi a, vi b) { return ((a & 0x7f7f7f7fu) + (b & 0x7f7f7f7fu)) ^ ((a ^ b) & 0x80808080u); }
PL_INLINE vi vi_avg_u8(vi a, vi b) { return (a | b) - ((a ^ b) >> 1 & 0x7f7f7f7fu); }
/* Byte i of every lane in all bytes of that lane. */
PL_INLINE vi vi_spread(vi x, int i) { return (x >> (8 * i) & 255) * 0x01010101u; }
/* Lane r: bits 4 r ... 4 r + 3 of the 64-bit word, r counted over all rows. */
PL_INLINE vi vi_nibbles(const uint8_t *word, int part) { return word[part / 2] >> (part % 2 * 4) & 15u; }
/* Minus the bytes of w in which this bit of `signs` is set. */
PL_INLINE vi vi_negate(vi w, vi signs, const int bit)
{
    vi ones = signs >> bit & 0x01010101u;
    return vi_add_u8(w ^ ones * 255, ones);
}
PL_INLINE vi vi_and(vi a, vi b) { return a & b; }
PL_INLINE vi vi_xor(vi a, vi b) { return a ^ b; }
PL_INLINE vi vi_shl_lanes(vi a, const int n) { return a << n; } /* int32, without sign */
PL_INLINE vi vi_shr_lanes(vi a, const int n) { return a >> n; }
/* Codebook entries, 8 values or 4, of indices that `bits` bits hold: bytes i = 0..3 of `low` and of `high` are the two bytes of
 * number i of a lane. Number i goes to w[2 i], w[2 i + 1] (8 values) or w[i] (4); `bias`: xor of every byte, 0 or 128. */
PL_INLINE const uint8_t *book_entry(const pl_codebook *book, const int bits, const int bytes, const uint8_t *low, vi high, int i)
{
    return book->values + bytes * (low[i] | (bits > 8 ? (high >> (8 * i) & 255) << 8 : 0));
}
PL_INLINE void vi_look_up8(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[8])
{
    for (int i = 0; i < 4; i++)
        for (int h = 0; h < 2; h++)
            w[2 * i + h] = vi_load(book_entry(book, bits, 8, low, high, i) + 4 * h) ^ (uint32_t)bias * 0x01010101u;
}
PL_INLINE void vi_look_up4(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[4])
{
    for (int i = 0; i < 4; i++)
        w[i] = vi_load(book_entry(book, bits, 4, low, high, i)) ^ (uint32_t)bias * 0x01010101u;
}
PL_INLINE vi vi_signed(vi w) { return w ^ 0x80808080u; }
PL_INLINE vi vi_dot_s(vi acc, vi w, vi a)
{
    for (int j = 0; j < 32; j += 8)
        acc += (uint32_t)((int8_t)(w >> j) * (int8_t)(a >> j));
    return acc;
}
PL_INLINE vi vi_dot_u(vi acc, vi w, vi a) { return vi_dot_s(acc, w, a); } /* unsigned codes are below 128 */
PL_INLINE vf vi_to_f(vi a) { return (float)(int32_t)a; }

#include "../kernels/all.inc"
