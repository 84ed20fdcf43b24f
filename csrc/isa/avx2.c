/* The tier avx2 (AVX2, FMA, F16C): dot products by vpmaddubsw and vpmaddwd. */
#include "isa.h"

#if PL_X86
PL_TARGET_BEGIN("avx2,fma,f16c")

#define TIER avx2
#define S_BIAS 0
#define DOT_PARTS 1
#define KV_WHOLE 1 /* attention: vpmaddwd multiplies two of a lane and adds them up */
/* A Zen 3 core keeps up with memory when it reads several streams, 512 bytes at a time, and asks little ahead; others do when they
 * read one and ask far ahead (kernels/README.md). */
#define GEMV_PANELS 4
#define GEMV_AHEAD 512
#define FLOAT_STREAMS 4
#define SMALL_BATCH_TOKENS 5 /* 1 panel x 5 tokens: 10 sums in int16, beside two registers of codes */
#define SMALL_BATCH_STEPS(STEP) STEP(2) STEP(3) STEP(4) STEP(5)
/* More tokens are faster with tiles: of codes that are put together of two parts or multiplied by scales, and where scales are
 * for 16 k; of codes that come from a table. Tiles of 5-bit codes with whole scales are faster from 8 on. */
#define SMALL_BATCH_MOST(f) \
    ((f)->max_code == 31 && (f)->offset_kind == OFFSET_INT                 ? 7 \
     : ((f)->max_code > 15 && !(f)->is_signed) || (f)->scales_per_32 == 2 ? 8 \
     : (f)->is_signed && (f)->type != PL_TYPE_Q8_0                        ? 16 \
                                                                          : PL_SMALL_BATCH)
#define SMALL_BATCH_IN_ORDER(f, n) ((f)->max_code == 31 ? (n) > 2 : (f)->max_code == 7 && (n) > 4) /* of two parts */

#include "x86_256.h"

/* w: codes in [0, 127]; two products are at most 2 * 127 * 127 and never saturate int16. */
PL_INLINE vi vi_dot_u(vi acc, vi w, vi a)
{
    return vi_here(_mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1))));
}
/* The same in steps: pairs of products stay in int16 until several groups are added up. */
PL_INLINE vi vi_part_first(vi w, vi a) { return _mm256_maddubs_epi16(w, a); }
PL_INLINE vi vi_part(vi part, vi w, vi a) { return vi_here(_mm256_add_epi16(part, _mm256_maddubs_epi16(w, a))); }
PL_INLINE vi vi_widen_first(vi part) { return _mm256_madd_epi16(part, _mm256_set1_epi16(1)); }
PL_INLINE vi vi_widen(vi acc, vi part) { return vi_here(_mm256_add_epi32(acc, _mm256_madd_epi16(part, _mm256_set1_epi16(1)))); }
#define WHOLE_SCALES 1
/* The low int16 of every lane twice; products of int16, their low halves. */
PL_INLINE vi vi_twice16(vi a)
{
    const __m256i low = _mm256_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12,
                                         13, 12, 13);
    return _mm256_shuffle_epi8(a, low);
}
PL_INLINE vi vi_load_i8_lanes(const int8_t *p) { return _mm256_cvtepi8_epi32(load_8_bytes(p)); }
PL_INLINE vi vi_mul16(vi a, vi b) { return _mm256_mullo_epi16(a, b); }
/* Sums widened, each product times the int16 of `scales` at its place. */
PL_INLINE vi vi_widen_by(vi acc, vi part, vi scales) { return vi_here(_mm256_add_epi32(acc, _mm256_madd_epi16(part, scales))); }
/* What sums of codes whose zero is 32 have too much (has_wrapping_sums), in int16 too; pair_sum: of the 4 groups. */
PL_INLINE vi vi_part_zero(const int16_t *pair_sum)
{
    int32_t both;
    memcpy(&both, pair_sum, sizeof both);
    return _mm256_slli_epi16(_mm256_set1_epi32(both), 5);
}
PL_INLINE vi vi_part_less(vi part, vi zero) { return _mm256_sub_epi16(part, zero); }
/* Two groups of codes up to 63 at once. Sums in other registers than the addends (vi_here ties them) spare a move for each: Q6_K
 * 7 % faster; where sums of int16 live longer, Q4_0 is 5 to 15 % slower. */
PL_INLINE vi vi_dot2_u(vi acc, vi w, vi a, vi w1, vi a1)
{
    vi part, first = _mm256_maddubs_epi16(w, a), second = _mm256_maddubs_epi16(w1, a1), sum;
    __asm__("vpaddw %2, %1, %0" : "=x"(part) : "x"(first), "x"(second));
    part = _mm256_madd_epi16(part, _mm256_set1_epi16(1));
    __asm__("vpaddd %2, %1, %0" : "=x"(sum) : "x"(acc), "x"(part));
    return sum;
}
/* Sums of pairs of int16: half of the products of a register of int8, but no widening. */
#define PREFERS_INT16 1
PL_INLINE vi vi_dot16_sum(vi acc, vi a, vi b) { return vi_here(_mm256_add_epi32(acc, _mm256_madd_epi16(a, b))); }
/* w: int8. |w| times the activation with w's sign: at most 2 * 128 * 127, below 32768. */
PL_INLINE vi vi_dot_s(vi acc, vi w, vi a) { return vi_dot_u(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(a, w)); }

/* Of each 16 int8: the sum of all at 4 i and 4 i + 1, and of all at 4 i + 2 and 4 i + 3. */
PL_INLINE void vi_pair_sums(const int8_t *q, int16_t *sums)
{
    vi pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), vi_load(q));
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
    int32_t both[2] = {_mm256_extract_epi32(pairs, 0), _mm256_extract_epi32(pairs, 4)};
    memcpy(sums, both, sizeof both);
}
PL_INLINE vi vi_magnitudes(vi w) { return _mm256_abs_epi8(w); }
PL_INLINE vi vi_is_negative(vi w) { return _mm256_cmpgt_epi8(_mm256_setzero_si256(), w); } /* all bits of a byte */

#define HAND_TILES 1
#include "avx2_tile.h"
#include "../kernels/all.inc"

PL_TARGET_END
#else
typedef int pl_tier_avx2_is_empty;
#endif
