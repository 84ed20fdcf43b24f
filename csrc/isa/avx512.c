/* The tier avx512: F, BW, VL, VNNI. */
#include "isa.h"

#if PL_X86
PL_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")

#define TIER avx512

#include "x86_512.h"

/* Two registers of 16-bit indices into a table of 16-bit entries: one permutation knows 64 of them, and the indices' higher
 * bits choose between permutations. No loads that depend on indices: a gather takes ten times as long. */
typedef struct {
    __m512i a, b;
} two_registers;
PL_INLINE two_registers look_up_64(const uint16_t *t, two_registers i)
{
    __m512i low = _mm512_loadu_si512(t), high = _mm512_loadu_si512(t + 32);
    return (two_registers){_mm512_permutex2var_epi16(low, i.a, high), _mm512_permutex2var_epi16(low, i.b, high)};
}
#define LOOK_UP_TWICE(HALF, N) \
    PL_INLINE two_registers look_up_##N(const uint16_t *t, two_registers i) \
    { \
        const __m512i bit = _mm512_set1_epi16(HALF); \
        two_registers x = look_up_##HALF(t, i), y = look_up_##HALF(t + (HALF), i); \
        return (two_registers){_mm512_mask_blend_epi16(_mm512_test_epi16_mask(i.a, bit), x.a, y.a), \
                               _mm512_mask_blend_epi16(_mm512_test_epi16_mask(i.b, bit), x.b, y.b)}; \
    }
LOOK_UP_TWICE(64, 128)
LOOK_UP_TWICE(128, 256)
LOOK_UP_TWICE(256, 512)
LOOK_UP_TWICE(512, 1024)
LOOK_UP_TWICE(1024, 2048)

/* Lane r, 16 bits each: the entries of numbers 0 and 2 in a, of 1 and 3 in b. */
PL_INLINE two_registers book_entries(const pl_codebook *book, const int bits, const uint8_t *low, vi high)
{
    const __m512i even = _mm512_set1_epi16(255);
    __m512i x = _mm512_loadu_si512(low);
    two_registers i = {_mm512_and_si512(x, even), _mm512_srli_epi16(x, 8)};
    if (bits > 8) {
        i.a = _mm512_or_si512(i.a, _mm512_slli_epi16(high, 8));
        i.b = _mm512_or_si512(i.b, _mm512_andnot_si512(even, high));
    }
    switch (bits) {
    case 8: return look_up_256(book->codes, i);
    case 9: return look_up_512(book->codes, i);
    case 10: return look_up_1024(book->codes, i);
    default: return look_up_2048(book->codes, i);
    }
}
/* Entry i in both 16-bit words of its lane, the second one shifted right by `shift`. */
PL_INLINE __m512i entry_twice(two_registers e, int i, int shift)
{
    const __m128i first = _mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
    __m512i word = _mm512_broadcast_i32x4(_mm_add_epi8(first, _mm_set1_epi8((char)(i / 2 * 2))));
    return _mm512_srlv_epi16(_mm512_shuffle_epi8(i % 2 ? e.b : e.a, word), _mm512_set1_epi32(shift << 16));
}
PL_INLINE __m512i book_levels(const pl_codebook *book, int bias)
{
    __m128i levels = _mm_xor_si128(_mm_loadu_si128((const __m128i *)book->levels), _mm_set1_epi8((char)bias));
    return _mm512_broadcast_i32x4(levels);
}
/* Codebook entries, 8 values or 4, of indices that `bits` bits hold: bytes i = 0..3 of `low` and of `high` are the two bytes of
 * number i of a lane. Number i goes to w[2 i], w[2 i + 1] (8 values) or w[i] (4); `bias`: xor of every byte, 0 or 128. */
PL_INLINE void vi_look_up8(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[8])
{
    two_registers e = book_entries(book, bits, low, high);
    __m512i levels = book_levels(book, bias);
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        __m512i codes = entry_twice(e, i, 2);
        w[2 * i] = _mm512_shuffle_epi8(levels, vi_shr_and(codes, 0, 3));
        w[2 * i + 1] = _mm512_shuffle_epi8(levels, vi_shr_and(codes, 4, 3));
    }
}
PL_INLINE void vi_look_up4(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[4])
{
    two_registers e = book_entries(book, bits, low, high);
    __m512i levels = book_levels(book, bias);
    PL_UNROLL
    for (int i = 0; i < 4; i++)
        w[i] = _mm512_shuffle_epi8(levels, vi_shr_and(entry_twice(e, i, 4), 0, 15));
}

#include "../kernels/all.inc"

PL_TARGET_END
#else
typedef int pl_tier_avx512_is_empty;
#endif
