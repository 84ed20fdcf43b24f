/* Primitives of the 256-bit x86 tiers (AVX2, FMA, F16C): 8 lanes, two registers per panel group. Included inside a
 * tier's target region; the tier adds TIER, S_BIAS, vi_dot_u and vi_dot_s. */
#define VL 8
#ifndef TOKENS_TILE
#define TOKENS_TILE 4 /* 1 panel x 4 tokens: 8 integer sums in 16 registers; the 8 float sums may wait in L1 */
#endif
#define PANELS_TILE 1
#define FLOAT_TOKENS 6 /* 12 sums */
#define FLOAT_STEPS(STEP) STEP(6) STEP(5) STEP(4) STEP(3) STEP(2) STEP(1)
#define ROWS_TILE 6    /* attention: 6 rows x 2 registers of keys or dims: 12 of 16 */
#define KEYS_TILE 2
#define SCORE_SUMS 1
#define DIMS_TILE 2
#define WIDE_ROWS 2 /* up to here, twice as many registers of keys or dims: 8 sums, 4 of these, one of rows */

typedef __m256 vf;
typedef __m256i vi;

PL_INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
PL_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
PL_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
PL_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
PL_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
PL_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
PL_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
PL_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
PL_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
PL_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
PL_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
PL_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
PL_INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
PL_INLINE vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
PL_INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
PL_INLINE vf vf_pick_less(vf a, vf b, vf x, vf y) /* a < b ? x : y, by lane */
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
PL_INLINE unsigned vf_mask_not_above(vf a, vf b) /* bit l: a <= b in lane l */
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ));
}
PL_INLINE vf vf_lut16_f(const float *table, vf index) /* index: whole, 0 ... 15 */
{
    __m256i i = _mm256_cvtps_epi32(index);
    vf low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), i), high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28))); /* bit 3 becomes the sign */
}
PL_INLINE void vf_transpose(vf *r) /* VL registers of VL lanes */
{
    __m256 a[8], b[8];
    PL_UNROLL
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    PL_UNROLL
    for (int i = 0; i < 8; i += 4) /* half l of b[i + k]: element 4 l + k of rows i ... i + 3 */
    {
        b[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a[i]), _mm256_castps_pd(a[i + 2])));
        b[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a[i]), _mm256_castps_pd(a[i + 2])));
        b[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a[i + 1]), _mm256_castps_pd(a[i + 3])));
        b[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a[i + 1]), _mm256_castps_pd(a[i + 3])));
    }
    PL_UNROLL
    for (int k = 0; k < 4; k++) {
        r[k] = _mm256_permute2f128_ps(b[k], b[4 + k], 0x20);
        r[4 + k] = _mm256_permute2f128_ps(b[k], b[4 + k], 0x31);
    }
}
PL_INLINE vf vf_gather(const float *p, const int32_t *at)
{
    return _mm256_i32gather_ps(p, _mm256_loadu_si256((const __m256i *)at), 4);
}
/* The same where at[0] is the least of them, and the largest at most 7 more. */
#define HAS_GATHER_NEAR 1
PL_INLINE vf vf_gather_near(const float *p, const int32_t *at)
{
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(p + at[0]),
                                    _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)at), _mm256_set1_epi32(at[0])));
}
PL_INLINE vf vf_exp2i(vf n)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
PL_INLINE vf vf_scale2(vf p, vf n) /* p * 2^n, p and the result normal: n is added to the exponent */
{
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
PL_INLINE int vf_any_above(vf a, vf limit) { return _mm256_movemask_ps(_mm256_cmp_ps(a, limit, _CMP_NLE_UQ)) != 0; } /* or NaN */
PL_INLINE vf vf_select_below(int first, int limit, vf x, vf y)
{
    __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), lane);
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(below));
}
PL_INLINE vf vf_swap(vf a, const int distance) /* lane l from l ^ distance */
{
    return distance == 1   ? _mm256_permute_ps(a, 0xb1)
           : distance == 2 ? _mm256_permute_ps(a, 0x4e)
                           : _mm256_permute2f128_ps(a, a, 1);
}
PL_INLINE float vf_hsum(vf a)
{
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
PL_INLINE float vf_hmax(vf a)
{
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

/* The low 16 bits of 8 int32 (each in [0, 65535]). */
PL_INLINE __m128i low_halves(__m256i a) { return _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)); }
PL_INLINE __m128i load_8_bytes(const void *p) { return _mm_loadl_epi64((const __m128i *)p); }

PL_INLINE vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
PL_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
PL_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
PL_INLINE void vf_store_bf16(uint16_t *p, vf x) /* round to nearest even */
{
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    u = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    _mm_storeu_si128((__m128i *)p, low_halves(_mm256_srli_epi32(u, 16)));
}
PL_INLINE vf vf_load_i8(const int8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8_bytes(p))); }
PL_INLINE vf vf_load_u8(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8_bytes(p))); }
PL_INLINE vf vf_load_u4(const uint8_t *p, int high) /* the low or high nibbles of 8 bytes */
{
    __m256i bytes = _mm256_cvtepu8_epi32(load_8_bytes(p));
    return _mm256_cvtepi32_ps(high ? _mm256_srli_epi32(bytes, 4) : _mm256_and_si256(bytes, _mm256_set1_epi32(15)));
}
PL_INLINE vf vf_load_i4(const uint8_t *p, int high) { return vf_sub(vf_load_u4(p, high), vf_set1(8.0f)); } /* minus 8 */
PL_INLINE vf vf_load_e8m0(const uint8_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(load_8_bytes(p)), 23));
}
PL_INLINE void vf_store_i8(int8_t *p, vf x)
{
    __m256i i = _mm256_cvtps_epi32(x);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}
PL_INLINE void vf_store_u16(uint16_t *p, vf x) { _mm_storeu_si128((__m128i *)p, low_halves(_mm256_cvtps_epi32(x))); } /* whole numbers, 0 ... 65535 */
PL_INLINE void vf_store_i16(int16_t *p, vf x) /* rounded */
{
    __m256i i = _mm256_cvtps_epi32(x);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)));
}
/* Lanes in the order of vi_pair16's, of consecutive ones, and back; lanes with even and with odd numbers. */
PL_INLINE void vf_pair(vf a, vf b, vf *out)
{
    out[0] = _mm256_permute2f128_ps(a, b, 0x20);
    out[1] = _mm256_permute2f128_ps(a, b, 0x31);
}
PL_INLINE void vf_unpair(vf a, vf b, vf *out) { vf_pair(a, b, out); }
PL_INLINE void vf_unzip(vf a, vf b, vf *out)
{
    __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), odd = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
    out[0] = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
    out[1] = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
}

PL_INLINE vi vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
PL_INLINE vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
PL_INLINE void vi_store(void *p, vi x) { _mm256_storeu_si256((__m256i *)p, x); }
PL_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
PL_INLINE vi vi_mul(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
/* a.low * b.low + a.high * b.high of the two int16 in every lane */
PL_INLINE vi vi_dot16(vi a, vi b) { return _mm256_madd_epi16(a, b); }
#ifndef vi_dot16_add
PL_INLINE vi vi_dot16_add(vi acc, vi a, vi b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
#endif
/* The compiler may not move additions across this, nor sums from register to register. gcc would gather additions of many groups
 * into trees and keep every product in memory until then, Q4_0 at 261 instead of 365 Gop/s. */
PL_INLINE vi vi_here(vi x)
{
    __asm__("" : "+x"(x));
    return x;
}
#define vi_here(x) vi_here(x)
#ifndef vi_in_order
#define vi_in_order(x) __asm__ volatile("" : "+x"(x) : : "memory")
#endif
/* Two bytes for every lane, as int16. */
PL_INLINE vi vi_load_u8_pairs(const uint8_t *p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)); }
PL_INLINE vi vi_load_i8_16(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }
PL_INLINE vi vi_load_u8_2(const uint8_t *p, const uint8_t *q) /* lane l: p[l] and q[l], as int16 */
{
    return _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(load_8_bytes(p), load_8_bytes(q)));
}
/* Half bytes of int16 up to 255, less 8. */
PL_INLINE vi vi_low4_16(vi a) { return _mm256_sub_epi16(_mm256_and_si256(a, _mm256_set1_epi16(15)), _mm256_set1_epi16(8)); }
PL_INLINE vi vi_high4_16(vi a) { return _mm256_sub_epi16(_mm256_srli_epi16(a, 4), _mm256_set1_epi16(8)); }
/* int16 of a beside those of b, two for every lane; 4 lanes of out[0], then 4 of out[1], and so on, have consecutive ones. */
PL_INLINE void vi_pair16(vi a, vi b, vi *out)
{
    out[0] = _mm256_unpacklo_epi16(a, b);
    out[1] = _mm256_unpackhi_epi16(a, b);
}
PL_INLINE vi vi_load_u8(const uint8_t *p) { return _mm256_cvtepu8_epi32(load_8_bytes(p)); }
PL_INLINE vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
PL_INLINE vi vi_shr_and(vi a, int shift, uint8_t mask)
{
    return _mm256_and_si256(_mm256_srli_epi16(a, shift), _mm256_set1_epi8((char)mask));
}
PL_INLINE vi vi_shl_and(vi a, int shift, uint8_t mask) /* mask: no bit that comes from the byte below */
{
    return _mm256_and_si256(_mm256_slli_epi16(a, shift), _mm256_set1_epi8((char)mask));
}
PL_INLINE vi vi_lut16(const uint8_t *table, vi index)
{
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), index);
}
/* Byte i of the register looks at bit i % 8 of byte i / 8 of its half of the word. */
PL_INLINE vi vi_bits(const uint8_t *word, int part, uint8_t value)
{
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    int32_t half;
    memcpy(&half, word + 4 * part, 4);
    __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(half), spread);
    __m256i on = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    return _mm256_and_si256(on, _mm256_set1_epi8((char)value));
}
/* Bytewise: sums modulo 256, and averages rounded up. */
PL_INLINE vi vi_add_u8(vi a, vi b) { return _mm256_add_epi8(a, b); }
PL_INLINE vi vi_avg_u8(vi a, vi b) { return _mm256_avg_epu8(a, b); }
/* Byte i of every lane in all bytes of that lane. */
PL_INLINE vi vi_spread(vi x, int i)
{
    const __m128i first = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(_mm_add_epi8(first, _mm_set1_epi8((char)i))));
}
/* Lane r: bits 4 r ... 4 r + 3 of the 64-bit word, r counted over all rows. */
PL_INLINE vi vi_nibbles(const uint8_t *word, int part)
{
    const __m256i shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    int32_t half;
    memcpy(&half, word + 4 * part, 4);
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(half), shift), _mm256_set1_epi32(15));
}
/* Minus the bytes of w in which this bit of `signs` is set. */
PL_INLINE vi vi_negate(vi w, vi signs, const int bit)
{
    __m256i minus = bit == 7 ? signs : _mm256_slli_epi16(signs, 7 - bit);
    return _mm256_sign_epi8(w, _mm256_or_si256(minus, _mm256_set1_epi8(1))); /* zero would make a zero */
}
PL_INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
PL_INLINE vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
PL_INLINE vi vi_shl_lanes(vi a, const int n) { return _mm256_slli_epi32(a, n); } /* int32, without sign */
PL_INLINE vi vi_shr_lanes(vi a, const int n) { return _mm256_srli_epi32(a, n); }

/* Codebook entries, 8 values or 4, of indices that `bits` bits hold: bytes i = 0..3 of `low` and of `high` are the two bytes of
 * number i of a lane. Number i goes to w[2 i], w[2 i + 1] (8 values) or w[i] (4); `bias`: xor of every byte, 0 or 128. */
typedef struct {
    const uint8_t *bytes; /* 8 bits: where they are in the panel */
    uint64_t words[2][4]; /* more: numbers 0 and 2 of each lane, then 1 and 3; in whole registers, which is twice as fast as
                           * through memory or word by word */
} whole_indices;
PL_INLINE void four_words(vi x, uint64_t words[4])
{
    __m128i low = _mm256_castsi256_si128(x), high = _mm256_extracti128_si256(x, 1);
    words[0] = (uint64_t)_mm_cvtsi128_si64(low);
    words[1] = (uint64_t)_mm_extract_epi64(low, 1);
    words[2] = (uint64_t)_mm_cvtsi128_si64(high);
    words[3] = (uint64_t)_mm_extract_epi64(high, 1);
}
PL_INLINE void find_indices(whole_indices *found, const int bits, const uint8_t *low, vi high)
{
    const __m256i even = _mm256_set1_epi16(255);
    found->bytes = low;
    if (bits > 8) {
        vi x = vi_load(low);
        four_words(_mm256_or_si256(_mm256_and_si256(x, even), _mm256_slli_epi16(high, 8)), found->words[0]);
        four_words(_mm256_or_si256(_mm256_srli_epi16(x, 8), _mm256_andnot_si256(even, high)), found->words[1]);
    }
}
/* The entry (bytes: 4 or 8) of lane r's number i. */
PL_INLINE uint64_t book_entry(const pl_codebook *book, const int bits, const int bytes, const whole_indices *found, int r, int i)
{
    uint64_t values = 0;
    size_t index = bits > 8 ? (uint16_t)(found->words[i % 2][r / 2] >> (32 * (r % 2) + 16 * (i / 2))) : found->bytes[4 * r + i];
    memcpy(&values, book->values + (size_t)bytes * index, (size_t)bytes);
    return values;
}
PL_INLINE __m256 two_halves(__m128i low, __m128i high)
{
    return _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}
PL_INLINE vi with_bias(__m256 w, int bias)
{
    return bias ? _mm256_xor_si256(_mm256_castps_si256(w), _mm256_set1_epi8((char)bias)) : _mm256_castps_si256(w);
}
PL_INLINE void vi_look_up8(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[8])
{
    whole_indices found;
    find_indices(&found, bits, low, high);
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        __m128i rows[4]; /* 2 j and 2 j + 1 */
        PL_UNROLL
        for (int j = 0; j < 4; j++)
            rows[j] = _mm_set_epi64x((int64_t)book_entry(book, bits, 8, &found, 2 * j + 1, i),
                                     (int64_t)book_entry(book, bits, 8, &found, 2 * j, i));
        __m256 even = two_halves(rows[0], rows[2]), odd = two_halves(rows[1], rows[3]);
        w[2 * i] = with_bias(_mm256_shuffle_ps(even, odd, 0x88), bias);
        w[2 * i + 1] = with_bias(_mm256_shuffle_ps(even, odd, 0xdd), bias);
    }
}
PL_INLINE void vi_look_up4(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[4])
{
    whole_indices found;
    find_indices(&found, bits, low, high);
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        __m256i row[8]; /* an entry everywhere in a register, which is a mere load; then blends, which any port takes */
        PL_UNROLL
        for (int r = 0; r < 8; r++)
            row[r] = _mm256_set1_epi32((int32_t)book_entry(book, bits, 4, &found, r, i));
        __m256i a = _mm256_blend_epi32(_mm256_blend_epi32(row[0], row[1], 0x02), _mm256_blend_epi32(row[2], row[3], 0x08), 0x0c);
        __m256i b = _mm256_blend_epi32(_mm256_blend_epi32(row[4], row[5], 0x20), _mm256_blend_epi32(row[6], row[7], 0x80), 0xc0);
        w[i] = with_bias(_mm256_castsi256_ps(_mm256_blend_epi32(a, b, 0xf0)), bias);
    }
}

/* For one token: entries taken 8 k at a time, in two registers that hold rows 0, 1, 4, 5 and 2, 3, 6, 7 of 8, and integer sums
 * brought back into the order of rows once for many (vi_sum_lanes). */
#define BOOK_BY_8 1
PL_INLINE vi vi_broadcast8(const int8_t *q)
{
    int64_t eight;
    memcpy(&eight, q, 8);
    return _mm256_set1_epi64x(eight);
}
PL_INLINE vi vi_minus(vi x) { return _mm256_sub_epi8(_mm256_setzero_si256(), x); }
/* `minus` where this bit of a byte of `signs` is set, else x */
PL_INLINE vi vi_choose(vi x, vi minus, vi signs, const int bit)
{
    return _mm256_blendv_epi8(x, minus, bit == 7 ? signs : _mm256_slli_epi16(signs, 7 - bit));
}
PL_INLINE void vi_zip_lanes(vi a, vi b, vi out[2])
{
    out[0] = _mm256_unpacklo_epi32(a, b);
    out[1] = _mm256_unpackhi_epi32(a, b);
}
PL_INLINE void vi_zip_bytes(vi a, vi b, vi out[2])
{
    out[0] = _mm256_unpacklo_epi8(a, b);
    out[1] = _mm256_unpackhi_epi8(a, b);
}
PL_INLINE vi vi_sum_lanes(vi a, vi b)
{
    vf x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd)));
}
/* In every 8 bytes as int16: the sums of q[0..7] and q[8..15], then zeros; zeros, then those of q[16..23] and q[24..31]. */
PL_INLINE void vi_sums_of_8(const int8_t *q, vi sums[2])
{
    vi pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), vi_load(q)), fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    vi eights = _mm256_hadd_epi32(fours, fours);
    eights = _mm256_packs_epi32(eights, eights);
    sums[0] = _mm256_and_si256(_mm256_permute4x64_epi64(eights, 0x00), _mm256_set1_epi64x(0xffffffff));
    sums[1] = _mm256_andnot_si256(_mm256_set1_epi64x(0xffffffff), _mm256_permute4x64_epi64(eights, 0xaa));
}
/* Indices of 16 bits: those of rows 0, 1, 4, 5, four of each, then those of rows 2, 3, 6, 7. */
PL_INLINE void vi_put_indices(vi low, vi high, uint16_t indices[32])
{
    vi both[2];
    vi_zip_bytes(low, high, both);
    vi_store(indices, both[0]);
    vi_store(indices + 16, both[1]);
}
/* Entries of two rows, 8 values each: the second is loaded to where it belongs, and blended, which any port does. */
PL_INLINE __m128i two_entries8(const uint8_t *values, size_t first, size_t second)
{
    return _mm_blend_epi32(load_8_bytes(values + 8 * first), _mm_loadu_si128((const __m128i *)(values + 8 * second - 8)), 0xc);
}
/* The same of four rows, 4 values each. */
PL_INLINE __m128i four_entries4(const uint8_t *values, size_t i0, size_t i1, size_t i2, size_t i3)
{
    __m128i a = _mm_loadu_si128((const __m128i *)(values + 4 * i0));
    a = _mm_blend_epi32(a, _mm_loadu_si128((const __m128i *)(values + 4 * i1 - 4)), 0x2);
    a = _mm_blend_epi32(a, _mm_loadu_si128((const __m128i *)(values + 4 * i2 - 8)), 0x4);
    return _mm_blend_epi32(a, _mm_loadu_si128((const __m128i *)(values + 4 * i3 - 12)), 0x8);
}
/* Number i of every row's four indices of 8 bits (as panels have them) or 16 (vi_put_indices). */
PL_INLINE void vi_entries8_8(const pl_codebook *book, const uint8_t *index, const int i, vi w[2])
{
    const uint8_t *values = book->values, *at = index + i;
    w[0] = _mm256_set_m128i(two_entries8(values, at[16], at[20]), two_entries8(values, at[0], at[4]));
    w[1] = _mm256_set_m128i(two_entries8(values, at[24], at[28]), two_entries8(values, at[8], at[12]));
}
PL_INLINE void vi_entries8_16(const pl_codebook *book, const uint16_t *index, const int i, vi w[2])
{
    const uint8_t *values = book->values;
    const uint16_t *at = index + i;
    w[0] = _mm256_set_m128i(two_entries8(values, at[8], at[12]), two_entries8(values, at[0], at[4]));
    w[1] = _mm256_set_m128i(two_entries8(values, at[24], at[28]), two_entries8(values, at[16], at[20]));
}
PL_INLINE vi vi_entries4_8(const pl_codebook *book, const uint8_t *index, const int i)
{
    const uint8_t *values = book->values, *at = index + i;
    return _mm256_set_m128i(four_entries4(values, at[16], at[20], at[24], at[28]), four_entries4(values, at[0], at[4], at[8], at[12]));
}
PL_INLINE vi vi_entries4_16(const pl_codebook *book, const uint16_t *index, const int i)
{
    const uint8_t *values = book->values;
    const uint16_t *at = index + i;
    return _mm256_set_m128i(four_entries4(values, at[8], at[12], at[24], at[28]),
                            four_entries4(values, at[0], at[4], at[16], at[20]));
}
PL_INLINE vi vi_signed(vi w) { return _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80)); }
PL_INLINE vf vi_to_f(vi a) { return _mm256_cvtepi32_ps(a); }
