/* The tier avx512vbmi (avx512, VBMI, GFNI): a permutation of bytes looks up twice as many indices as one of 16 bits, in a table
 * twice as long, at the same cost. */
#include "isa.h"

#if PL_X86
PL_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")

#define TIER avx512vbmi
#define BOOK_PLANES 1
/* A few tokens one by one: of types whose tiles take longer to be decoded than so. */
#define GEMV_MOST(f) \
    ((f)->next_codes ? 5 : !(f)->book_codes ? 1 : (f)->entry_values == 8 && (f)->index_bits < 11 ? 3 : 2)

#include "x86_512.h"

/* Byte i: bit 24 + i of its lane. */
#define TOP_NIBBLE_BITS 1
PL_INLINE vi vi_top_nibble_bits(vi x)
{
    const __m512i at = _mm512_set1_epi64(0x3b3a39381b1a1918); /* the bits that bytes begin with */
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(at, x), _mm512_set1_epi8(1));
}
/* The digits in base 3 of the number whose 256 / 243, rounded down, a byte is (TQ1_0): [half of the bytes][0..2, or 3 and 4][128],
 * two bits each. */
#define DIGIT(x, power) ((((x) * 243 + 255) >> 8) / (power) % 3)
#define DIGITS_012(x) DIGIT(x, 81) | DIGIT(x, 27) << 2 | DIGIT(x, 9) << 4
#define DIGITS_34(x) DIGIT(x, 3) | DIGIT(x, 1) << 2
#define FOUR(D, x) D(x), D((x) + 1), D((x) + 2), D((x) + 3)
#define SIXTEEN(D, x) FOUR(D, x), FOUR(D, (x) + 4), FOUR(D, (x) + 8), FOUR(D, (x) + 12)
#define SIXTY_FOUR(D, x) SIXTEEN(D, x), SIXTEEN(D, (x) + 16), SIXTEEN(D, (x) + 32), SIXTEEN(D, (x) + 48)
#define HALF_OF_256(D, x) {SIXTY_FOUR(D, x), SIXTY_FOUR(D, (x) + 64)}
static const uint8_t digit_tables[2][2][128] = {{HALF_OF_256(DIGITS_012, 0), HALF_OF_256(DIGITS_34, 0)},
                                                {HALF_OF_256(DIGITS_012, 128), HALF_OF_256(DIGITS_34, 128)}};
#define SECOND(x) (x) >> 2 & 3
#define THIRD(x) (x) >> 4 & 3
static const uint8_t two_bits[2][64] = {{SIXTY_FOUR(SECOND, 0)}, {SIXTY_FOUR(THIRD, 0)}};

/* planes[…] = entries from `table` on, of which one permutation knows 128, where `here` is set. Bytes that were not found yet are
 * indices. */
PL_INLINE void permute_128(const __m512i table[4], __mmask64 here, vi planes[2])
{
    planes[0] = _mm512_mask2_permutex2var_epi8(table[0], planes[0], here, table[1]);
    planes[1] = _mm512_mask2_permutex2var_epi8(table[2], planes[1], here, table[3]);
}
PL_INLINE void load_tables(const uint8_t *from, __m512i table[4])
{
    PL_UNROLL
    for (int i = 0; i < 4; i++)
        table[i] = vi_load(from + 64 * i);
}
/* The five digits of every byte, first to last. */
#define HAS_DIGIT_TABLE 1
PL_INLINE void vi_five_digits(vi x, vi digits[5])
{
    const __m512i first = _mm512_set1_epi8(3), second = vi_load(two_bits[0]), third = vi_load(two_bits[1]);
    const __mmask64 upper = _mm512_movepi8_mask(x);
    vi planes[2] = {x, x};
    __m512i table[4];
    load_tables(digit_tables[0][0], table);
    permute_128(table, ~upper, planes);
    load_tables(digit_tables[1][0], table);
    permute_128(table, upper, planes);
    digits[0] = _mm512_and_si512(planes[0], first);
    digits[1] = _mm512_permutexvar_epi8(planes[0], second);
    digits[2] = _mm512_permutexvar_epi8(planes[0], third);
    digits[3] = _mm512_and_si512(planes[1], first);
    digits[4] = _mm512_permutexvar_epi8(planes[1], second);
}
/* Bytes of codes (codebook.h: planes) of n registers of indices, whose byte i of a lane is number i of a row's indices: byte i of
 * planes[r][0] and planes[r][1] are its entry's. high: what indices have above 8 bits. */
PL_INLINE void vi_look_up_planes(const pl_codebook *book, const int bits, const int n, const vi *low, const vi *high,
                                 vi (*planes)[2])
{
    const __m512i top = _mm512_set1_epi8((char)128);
    const uint8_t *from = book->planes;
    __m512i part[4], here = _mm512_setzero_si512(), table[4];
    PL_UNROLL
    for (int r = 0; r < n; r++) {
        planes[r][0] = planes[r][1] = low[r];
        part[r] = _mm512_or_si512(_mm512_and_si512(low[r], top), bits > 8 ? high[r] : here);
    }
    for (int t = 0; t < 1 << (bits - 8); t++) {
        load_tables(from, table);
        PL_UNROLL
        for (int r = 0; r < n; r++) /* of a book of 256 the mask costs less so */
            permute_128(table, bits > 8 ? _mm512_cmpeq_epi8_mask(part[r], here) : ~_mm512_movepi8_mask(low[r]), planes[r]);
        load_tables(from + 256, table);
        here = _mm512_or_si512(here, top);
        PL_UNROLL
        for (int r = 0; r < n; r++)
            permute_128(table, bits > 8 ? _mm512_cmpeq_epi8_mask(part[r], here) : _mm512_movepi8_mask(low[r]), planes[r]);
        here = _mm512_add_epi8(here, _mm512_set1_epi8((char)129)); /* without the highest bit, and one more */
        from += 512;
        if (bits > 8) /* the book does not fit in registers, and the compiler would copy it to the stack */
            __asm__("" : "+r"(from));
    }
}
/* Of both planes, 8 values to an entry: bytes side by side, rows 0, 1 of each 4 in out[0], rows 2, 3 in out[1]. */
PL_INLINE void vi_zip_planes(const vi planes[2], vi out[2])
{
    out[0] = _mm512_unpacklo_epi8(planes[0], planes[1]);
    out[1] = _mm512_unpackhi_epi8(planes[0], planes[1]);
}
/* Signs (`signs` of quant_format) in the order of vi_zip_planes: byte 2 i + h of a row has those of values 4 h ... 4 h + 3 of its
 * entry i, in the bits of plane_values. An affine map over bits, whose matrix is what is given, transposes it. */
PL_INLINE void vi_zipped_signs(vi signs, vi out[2])
{
    const __m512i bits = _mm512_set1_epi64(0x0110022004400880);
    const __m128i rows = _mm_setr_epi8(0, 0, 1, 0, 0, 0, 3, 2, 4, 4, 5, 4, 4, 4, 7, 6);
    __m512i first = _mm512_shuffle_epi8(signs, _mm512_broadcast_i32x4(rows));
    __m512i second = _mm512_shuffle_epi8(signs, _mm512_broadcast_i32x4(_mm_add_epi8(rows, _mm_set1_epi8(8))));
    out[0] = _mm512_gf2p8affine_epi64_epi8(bits, first, 0);
    out[1] = _mm512_gf2p8affine_epi64_epi8(bits, second, 0);
}
/* The same in the order of planes: byte i of a row has those of the values 0 ... 3 of its entry i (out[0]) and of values 4 ... 7
 * (out[1]); where 4 values make an entry, those of its entries i and 4 + i. */
PL_INLINE void vi_plane_signs(vi signs, const int values, vi out[2])
{
    const __m512i first = _mm512_set1_epi32(values == 8 ? 0x10204080 : 0x04400880);
    const __m512i second = _mm512_set1_epi32(values == 8 ? 0x01020408 : 0x01100220);
    const __m512i shift = _mm512_set1_epi64((long long)2 << 32); /* the second row's bits are beside those of the first */
    const __m128i rows = values == 8 ? _mm_setr_epi8(5, 4, 1, 0, 7, 6, 3, 2, 13, 12, 9, 8, 15, 14, 11, 10)
                                     : _mm_setr_epi8(7, 5, 3, 1, 6, 4, 2, 0, 15, 13, 11, 9, 14, 12, 10, 8);
    signs = _mm512_shuffle_epi8(signs, _mm512_broadcast_i32x4(rows));
    out[0] = _mm512_srlv_epi32(_mm512_gf2p8affine_epi64_epi8(first, signs, 0), shift);
    out[1] = _mm512_srlv_epi32(_mm512_gf2p8affine_epi64_epi8(second, signs, 0), shift);
}
/* Signs of values 4 ... 7 in the order of planes whose last one is not stored: it makes the number of minus signs even. */
PL_INLINE vi vi_plane_sevens(const vi signs[2])
{
    const __m512i last = _mm512_set1_epi8(2), parity = _mm512_set1_epi64((long long)0x33 << 48);
    __m512i all = _mm512_ternarylogic_epi32(signs[0], signs[1], last, 0xb4); /* of both halves, without the last */
    return _mm512_ternarylogic_epi32(signs[1], _mm512_gf2p8affine_epi64_epi8(all, parity, 0), last, 0xdc);
}
/* Value i of bytes of codes, of signs in the same order, and of a register of plane_values; values: of an entry. */
PL_INLINE vi vi_plane_value(const vi table[4], const int values, vi codes, vi signs, const int i, const int has_signs)
{
    const int shift = values == 8 ? i / 2 * 2 : i % 2 * 2;
    if (values == 4 && has_signs)
        codes = _mm512_or_si512(codes, _mm512_and_si512(signs, _mm512_set1_epi8(i < 2 ? 0x11 : 0x22)));
    if (shift)
        codes = _mm512_srli_epi16(codes, (unsigned)shift);
    if (values == 8 && has_signs) /* two codes of 2 bits and their signs */
        codes = _mm512_ternarylogic_epi32(codes, signs, _mm512_set1_epi8(i < 2 ? 0x30 : 0x03), 0xd8);
    return _mm512_permutexvar_epi8(codes, table[i]);
}
/* Two blocks of activations in the order in which dot products take them: of planes (values: of an entry), or zipped ones. */
PL_INLINE void vi_put_plane_inputs(const int8_t *first, const int8_t *second, const int values, const int zipped, int8_t *out)
{
    uint8_t order[64];
    PL_UNROLL
    for (int i = 0; i < 32; i++)
        order[i] = (uint8_t)(zipped        ? i % 8 * 4 + i / 8
                             : values == 8 ? i % 4 * 8 + i / 4
                                           : i / 16 * 16 + i % 4 * 4 + i / 4 % 4);
    PL_UNROLL
    for (int i = 0; i < 32; i++)
        order[32 + i] = (uint8_t)(32 + order[i]);
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)first)),
                                      _mm256_loadu_si256((const __m256i *)second), 1);
    vi_store(out, _mm512_permutexvar_epi8(vi_load(order), both));
}
/* Sums over 8 of q[0..31] of two blocks, as int16. */
PL_INLINE void vi_put_sums_of_8(const int8_t *first, const int8_t *second, int16_t *out)
{
    const __m256i ones = _mm256_set1_epi8(1), pairs = _mm256_set1_epi16(1);
    __m256i a = _mm256_maddubs_epi16(ones, _mm256_loadu_si256((const __m256i *)first));
    __m256i b = _mm256_maddubs_epi16(ones, _mm256_loadu_si256((const __m256i *)second));
    __m256i fours = _mm256_packs_epi32(_mm256_madd_epi16(a, pairs), _mm256_madd_epi16(b, pairs)); /* by halves of a and b in turn */
    fours = _mm256_madd_epi16(_mm256_permute4x64_epi64(fours, 0xd8), pairs);
    _mm_storeu_si128((__m128i *)out, _mm_packs_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1)));
}
/* `times` (int16, negative) times both int16 in turn, in lanes of int32. */
PL_INLINE vi vi_times_in_turn(const int16_t *two, int16_t times)
{
    const uint64_t in_turn = (uint64_t)(uint16_t)times << 48 | (uint16_t)times;
    int32_t both;
    memcpy(&both, two, 4);
    return _mm512_madd_epi16(_mm512_set1_epi32(both), _mm512_set1_epi64((long long)in_turn));
}
PL_INLINE vi vi_broadcast8(const int8_t *q)
{
    int64_t eight;
    memcpy(&eight, q, 8);
    return _mm512_set1_epi64(eight);
}
/* Sums of rows 0, 1 and of rows 2, 3, whose lanes are of k 0..15 and 16..31 in turn: `half` of rows 0, 1, 2, 3. */
PL_INLINE vi vi_half_sums(const vi sums[2], const int half)
{
    __m512 a = _mm512_castsi512_ps(sums[0]), b = _mm512_castsi512_ps(sums[1]);
    return _mm512_castps_si512(half ? _mm512_shuffle_ps(a, b, 0xdd) : _mm512_shuffle_ps(a, b, 0x88));
}
PL_INLINE vi vi_zero_between(vi bytes, const int half) /* bytes as int16, of the rows of out[half] of vi_zip_planes */
{
    return half ? _mm512_unpackhi_epi8(bytes, _mm512_setzero_si512()) : _mm512_unpacklo_epi8(bytes, _mm512_setzero_si512());
}

/* The same in the order of k, without signs (x86_256.h): a byte of every lane's 4 begins where its code does. */
PL_INLINE __m512i codes_from(vi plane, const int first, const int step)
{
    uint64_t at = 0;
    PL_UNROLL
    for (int j = 0; j < 8; j++)
        at |= (uint64_t)((first + j % 4 * step + j / 4 * 32) & 63) << 8 * j;
    return _mm512_multishift_epi64_epi8(_mm512_set1_epi64((long long)at), plane);
}
PL_INLINE void vi_look_up8(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[8])
{
    const __m512i index = vi_load(low);
    int32_t levels;
    vi planes[1][2];
    memcpy(&levels, book->levels, 4);
    const __m512i values = _mm512_xor_si512(_mm512_set1_epi32(levels), _mm512_set1_epi8((char)bias));
    vi_look_up_planes(book, bits, 1, &index, &high, planes);
    PL_UNROLL
    for (int i = 0; i < 4; i++)
        PL_UNROLL
    for (int h = 0; h < 2; h++)
        w[2 * i + h] = _mm512_permutexvar_epi8(codes_from(planes[0][h], 8 * i, 2), values);
}
PL_INLINE void vi_look_up4(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[4])
{
    const __m128i bit_0_free = _mm_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m128i bit_1_free = _mm_setr_epi8(0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7);
    const __m512i index = vi_load(low);
    vi planes[1][2];
    __m128i levels = _mm_xor_si128(_mm_loadu_si128((const __m128i *)book->levels), _mm_set1_epi8((char)bias));
    const __m512i first = _mm512_broadcast_i32x4(_mm_shuffle_epi8(levels, bit_0_free));
    const __m512i second = _mm512_broadcast_i32x4(_mm_shuffle_epi8(levels, bit_1_free));
    vi_look_up_planes(book, bits, 1, &index, &high, planes);
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        w[i] = _mm512_permutexvar_epi8(codes_from(planes[0][0], 8 * i, 4), first);
        w[i] = _mm512_mask_permutexvar_epi8(w[i], 0xcccccccccccccccc, codes_from(planes[0][1], 8 * i - 8, 4), second);
    }
}

#include "../kernels/integer.inc"

PL_TARGET_END
#else
typedef int pl_tier_avx512vbmi_is_empty;
#endif
