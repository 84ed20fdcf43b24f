/* Primitives of the 512-bit x86 tiers (F, BW, VL, VNNI; F16C): 16 lanes, one register per panel group. Included inside a tier's
 * target region; the tier adds TIER. */
#define VL 16
#define TOKENS_TILE 6 /* 2 panels x 6 tokens: 12 integer and 12 float sums in 32 registers */
#define PANELS_TILE 2
#define SMALL_BATCH_TOKENS 8 /* 2 panels x 8 tokens: 16 integer sums; the 16 float sums wait in L1 */
#define WEIGHTS_LOCALITY 2 /* where the CPU follows a stream by itself: lines asked for into L1 wait in its few buffers (Zen 4) */
#define SMALL_BATCH_STEPS(STEP) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(8)
#define SMALL_BATCH_IN_ORDER(f, n) ((f)->max_code == 63 && (n) == 8)
#ifndef vi_in_order
#define vi_in_order(x) __asm__ volatile("" : "+v"(x) : : "memory")
#endif
#define FLOAT_TOKENS 12      /* 2 panels x 12 tokens: 24 sums; with 6, loads of weights and activations were the limit */
#define FLOAT_STREAMS 4
#define FLOAT_STEPS(STEP) STEP(12) STEP(4) STEP(3) STEP(2) STEP(1)
#define ROWS_TILE 6          /* attention: 6 rows x 2 registers of keys x 2 sums, or x 4 registers of dims: 24 of 32 */
#define KEYS_TILE 2
#define SCORE_SUMS 2
#define DIMS_TILE 4
#define WIDE_ROWS 3
#define KV_WHOLE 1           /* attention: vpdpwssd multiplies two of a lane and adds them up */
#define KV_AHEAD 2           /* and into the second cache: Zen 4 waits for the few misses that its first one may have */
#define kv_prefetch_line(p) __builtin_prefetch(p, 0, 2)
#define S_BIAS 128 /* vpdpbusd wants unsigned weights: signed codes are stored + 128 */

typedef __m512 vf;
typedef __m512i vi;

PL_INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
PL_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
PL_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
PL_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
PL_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
PL_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
PL_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
PL_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
PL_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
PL_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
PL_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
PL_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
PL_INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
PL_INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
PL_INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
PL_INLINE vf vf_pick_less(vf a, vf b, vf x, vf y) /* a < b ? x : y, by lane */
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
PL_INLINE unsigned vf_mask_not_above(vf a, vf b) /* bit l: a <= b in lane l */ { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
PL_INLINE vf vf_lut16_f(const float *table, vf index) /* index: whole, 0 ... 15 */
{
    return _mm512_permutexvar_ps(_mm512_cvtps_epi32(index), _mm512_loadu_ps(table));
}
PL_INLINE vf vf_gather(const float *p, const int32_t *at) { return _mm512_i32gather_ps(_mm512_loadu_si512(at), p, 4); }
PL_INLINE void vf_transpose(vf *r) /* VL registers of VL lanes */
{
    __m512 a[16], b[16];
    PL_UNROLL
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    PL_UNROLL
    for (int i = 0; i < 16; i += 4) /* quarter l of b[i + k]: element 4 l + k of rows i ... i + 3 */
    {
        b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a[i]), _mm512_castps_pd(a[i + 2])));
        b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a[i]), _mm512_castps_pd(a[i + 2])));
        b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a[i + 1]), _mm512_castps_pd(a[i + 3])));
        b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a[i + 1]), _mm512_castps_pd(a[i + 3])));
    }
    PL_UNROLL
    for (int k = 0; k < 4; k++) {
        __m512 even_low = _mm512_shuffle_f32x4(b[k], b[4 + k], 0x88), odd_low = _mm512_shuffle_f32x4(b[k], b[4 + k], 0xdd);
        __m512 even_high = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0x88);
        __m512 odd_high = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0xdd);
        r[k] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        r[4 + k] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        r[8 + k] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
        r[12 + k] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
}
/* 2^n for integral n in [-126, 127] */
PL_INLINE vf vf_exp2i(vf n)
{
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
PL_INLINE vf vf_scale2(vf p, vf n) { return _mm512_scalef_ps(p, n); } /* p * 2^n, both results normal */
PL_INLINE int vf_any_above(vf a, vf limit) { return _mm512_cmp_ps_mask(a, limit, _CMP_NLE_UQ) != 0; } /* or NaN */
/* lane < limit ? x : y, lanes counted from `first` */
PL_INLINE vf vf_select_below(int first, int limit, vf x, vf y)
{
    __m512i lane =
        _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(first));
    return _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(limit)), y, x);
}
PL_INLINE vf vf_swap(vf a, const int distance) /* lane l from l ^ distance */
{
    switch (distance) {
    case 1: return _mm512_permute_ps(a, 0xb1);
    case 2: return _mm512_permute_ps(a, 0x4e);
    case 4: return _mm512_shuffle_f32x4(a, a, 0xb1);
    default: return _mm512_shuffle_f32x4(a, a, 0x4e);
    }
}
PL_INLINE float vf_hsum(vf a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
PL_INLINE float vf_hmax(vf a)
{
    __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

PL_INLINE vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
PL_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
PL_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
PL_INLINE void vf_store_bf16(uint16_t *p, vf x) /* round to nearest even */
{
    __m512i u = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    u = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16)));
}
PL_INLINE vf vf_load_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
PL_INLINE vf vf_load_u8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
PL_INLINE vf vf_load_i4(const uint8_t *p, int high) /* nibbles minus 8; a lookup sees the low 4 bits of an index only */
{
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_permutexvar_ps(high ? _mm512_srli_epi32(bytes, 4) : bytes, table);
}
/* 2^(e - 127) for e >= 1; 0 for e = 0 */
PL_INLINE vf vf_load_e8m0(const uint8_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)), 23));
}
PL_INLINE void vf_store_i8(int8_t *p, vf x) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))); }
PL_INLINE void vf_store_u16(uint16_t *p, vf x) /* whole numbers, 0 ... 65535 */
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
}

PL_INLINE void vf_store_i16(int16_t *p, vf x) /* rounded */
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
}
/* Lanes in the order of vi_pair16's, of consecutive ones, and back; lanes with even and with odd numbers. */
PL_INLINE void vf_pair(vf a, vf b, vf *out)
{
    out[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    out[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
}
PL_INLINE void vf_unpair(vf a, vf b, vf *out)
{
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    out[0] = _mm512_permutex2var_ps(a, low, b);
    out[1] = _mm512_permutex2var_ps(a, high, b);
}
PL_INLINE void vf_unzip(vf a, vf b, vf *out)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    out[0] = _mm512_permutex2var_ps(a, even, b);
    out[1] = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}

PL_INLINE vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
PL_INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
PL_INLINE void vi_store(void *p, vi x) { _mm512_storeu_si512(p, x); }
PL_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
PL_INLINE vi vi_mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
/* a.low * b.low + a.high * b.high of the two int16 in every lane */
PL_INLINE vi vi_dot16(vi a, vi b) { return _mm512_madd_epi16(a, b); }
PL_INLINE vi vi_dot16_add(vi acc, vi a, vi b) { return _mm512_dpwssd_epi32(acc, a, b); }
/* A product of int16 does twice what one of floats does. */
#define PREFERS_INT16 1
#define INT16_TOKENS 8
#define INT16_SIDE 2
PL_INLINE vi vi_dot16_sum(vi acc, vi a, vi b) { return vi_dot16_add(acc, a, b); }
/* Two bytes for every lane, as int16. */
PL_INLINE vi vi_load_u8_pairs(const uint8_t *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
PL_INLINE vi vi_load_i8_16(const int8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
PL_INLINE vi vi_load_u8_2(const uint8_t *p, const uint8_t *q) /* lane l: p[l] and q[l], as int16 */
{
    __m128i a = _mm_loadu_si128((const __m128i *)p), b = _mm_loadu_si128((const __m128i *)q);
    return _mm512_cvtepu8_epi16(_mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b)));
}
/* Half bytes of int16 up to 255, less 8. */
PL_INLINE vi vi_low4_16(vi a) { return _mm512_sub_epi16(_mm512_and_si512(a, _mm512_set1_epi16(15)), _mm512_set1_epi16(8)); }
PL_INLINE vi vi_high4_16(vi a) { return _mm512_sub_epi16(_mm512_srli_epi16(a, 4), _mm512_set1_epi16(8)); }
/* int16 of a beside those of b, two for every lane; 4 lanes of out[0], then 4 of out[1], and so on, have consecutive ones. */
PL_INLINE void vi_pair16(vi a, vi b, vi *out)
{
    out[0] = _mm512_unpacklo_epi16(a, b);
    out[1] = _mm512_unpackhi_epi16(a, b);
}
PL_INLINE vi vi_load_u8(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
PL_INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
PL_INLINE vi vi_shr_and(vi a, int shift, uint8_t mask)
{
    return _mm512_and_si512(_mm512_srli_epi16(a, (unsigned)shift), _mm512_set1_epi8((char)mask));
}
PL_INLINE vi vi_shl_and(vi a, int shift, uint8_t mask) /* mask: no bit that comes from the byte below */
{
    return _mm512_and_si512(_mm512_slli_epi16(a, (unsigned)shift), _mm512_set1_epi8((char)mask));
}
PL_INLINE vi vi_lut16(const uint8_t *table, vi index)
{
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), index);
}
/* `value` in the bytes whose bit is set in the group's 64-bit word; `part` is the register within the panel group */
PL_INLINE vi vi_bits(const uint8_t *word, int part, uint8_t value)
{
    uint64_t m;
    (void)part;
    memcpy(&m, word, 8);
    return _mm512_maskz_mov_epi8((__mmask64)m, _mm512_set1_epi8((char)value));
}
/* Bytewise: sums modulo 256, and averages rounded up. */
PL_INLINE vi vi_add_u8(vi a, vi b) { return _mm512_add_epi8(a, b); }
PL_INLINE vi vi_avg_u8(vi a, vi b) { return _mm512_avg_epu8(a, b); }
/* Byte i of every lane in all bytes of that lane. */
PL_INLINE vi vi_spread(vi x, int i)
{
    const __m128i first = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_add_epi8(first, _mm_set1_epi8((char)i))));
}
/* Lane r: bits 4 r ... 4 r + 3 of the 64-bit word, r counted over all rows. */
PL_INLINE vi vi_nibbles(const uint8_t *word, int part)
{
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    __m512i bits = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i *)word));
    (void)part;
    return _mm512_and_si512(_mm512_srlv_epi32(_mm512_permutexvar_epi32(half, bits), shift), _mm512_set1_epi32(15));
}
/* Minus the bytes of w in which this bit of `signs` is set. */
PL_INLINE vi vi_negate(vi w, vi signs, const int bit)
{
    __mmask64 minus = _mm512_test_epi8_mask(signs, _mm512_set1_epi8((char)(1 << bit)));
    return _mm512_mask_sub_epi8(w, minus, _mm512_setzero_si512(), w);
}
PL_INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
PL_INLINE vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
PL_INLINE vi vi_shl_lanes(vi a, const int n) { return _mm512_slli_epi32(a, (unsigned)n); } /* int32, without sign */
PL_INLINE vi vi_shr_lanes(vi a, const int n) { return _mm512_srli_epi32(a, (unsigned)n); }

PL_INLINE vi vi_signed(vi w) { return _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)); }
PL_INLINE vi vi_dot_u(vi acc, vi w, vi a) { return _mm512_dpbusd_epi32(acc, w, a); }
PL_INLINE vi vi_dot_s(vi acc, vi w, vi a) { return _mm512_dpbusd_epi32(acc, w, a); }
PL_INLINE vf vi_to_f(vi a) { return _mm512_cvtepi32_ps(a); }
/* a * x + b of the low 4 bits of every lane. */
#define LINEAR_NIBBLES 1
PL_INLINE vf vf_linear_nibbles(vi x, float a, float b)
{
    const __m512 table = _mm512_setr_ps(b, a + b, 2 * a + b, 3 * a + b, 4 * a + b, 5 * a + b, 6 * a + b, 7 * a + b, 8 * a + b,
                                        9 * a + b, 10 * a + b, 11 * a + b, 12 * a + b, 13 * a + b, 14 * a + b, 15 * a + b);
    return _mm512_permutexvar_ps(x, table);
}

/* Activations to codes (quantize_activations_16.inc), lane 8 c + b being block b of chunk c. */
#define BLOCKS_IN_LANES 1
/* Lane b of what is returned, b < 8: the largest lane of a[b] (largest: 1), or their sum; lane 8 + b: of b[b]. */
PL_INLINE __m512 vf_either(__m512 a, __m512 b, const int largest) { return largest ? _mm512_max_ps(a, b) : _mm512_add_ps(a, b); }
PL_INLINE __m512 reduce_eight(const vf *r, const int largest)
{
    __m512 a[4], b[2];
    PL_UNROLL
    for (int i = 0; i < 4; i++) /* quarters 0, 1: of register i; 2, 3: of register i + 4 */
        a[i] = vf_either(_mm512_shuffle_f32x4(r[i], r[i + 4], 0x44), _mm512_shuffle_f32x4(r[i], r[i + 4], 0xee), largest);
    PL_UNROLL
    for (int i = 0; i < 2; i++) /* quarters: of registers i, i + 4, i + 2, i + 6 */
        b[i] = vf_either(_mm512_shuffle_f32x4(a[i], a[i + 2], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 2], 0xdd), largest);
    __m512 c = vf_either(_mm512_unpacklo_ps(b[0], b[1]), _mm512_unpackhi_ps(b[0], b[1]), largest);
    return vf_either(c, _mm512_shuffle_ps(c, c, 0x4e), largest);
}
PL_INLINE vf vf_reduce_8(const vf *a, const vf *b, const int largest)
{
    const __m512i order = _mm512_setr_epi32(0, 1, 8, 9, 4, 5, 12, 13, 16, 17, 24, 25, 20, 21, 28, 29);
    __m512 first = reduce_eight(a, largest);
    return _mm512_permutex2var_ps(first, order, a == b ? first : reduce_eight(b, largest));
}
/* In every lane: the largest of the 8 of its half. */
PL_INLINE vf vf_max_of_halves(vf a)
{
    a = _mm512_max_ps(a, _mm512_shuffle_f32x4(a, a, 0xb1));
    a = _mm512_max_ps(a, _mm512_shuffle_ps(a, a, 0x4e));
    return _mm512_max_ps(a, _mm512_shuffle_ps(a, a, 0xb1));
}
PL_INLINE vf vf_set_lanes(vf a, unsigned lanes, float x) { return _mm512_mask_mov_ps(a, (__mmask16)lanes, _mm512_set1_ps(x)); }
PL_INLINE vi vi_set_lanes(vi a, unsigned lanes, int32_t x) { return _mm512_mask_set1_epi32(a, (__mmask16)lanes, x); }
PL_INLINE float vf_lane(vf a, int i) { return _mm512_cvtss_f32(_mm512_permutexvar_ps(_mm512_set1_epi32(i), a)); }
PL_INLINE vf vf_lut8_f(const float *table, vf index) /* index: whole, 0 ... 7 */
{
    return _mm512_permutexvar_ps(_mm512_cvtps_epi32(index), _mm512_castps256_ps512(_mm256_loadu_ps(table)));
}
PL_INLINE vi vf_bits(vf a) { return _mm512_castps_si512(a); }
PL_INLINE vi vi_rounded(vf a) { return _mm512_cvtps_epi32(a); }
PL_INLINE vi vi_blend(unsigned lanes, vi a, vi b) { return _mm512_mask_mov_epi32(a, (__mmask16)lanes, b); } /* b in these lanes */
PL_INLINE vi vi_even_twice(vi a) { return _mm512_shuffle_epi32(a, _MM_PERM_CCAA); }
PL_INLINE vi vi_low_words(vi a, vi b) /* the low halves of a's and of b's lanes */
{
    return _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16));
}
/* 64 floats, at most 127, rounded to int8. */
PL_INLINE vi vi_codes_of(const vf x[4])
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i a = _mm512_packs_epi32(_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1]));
    __m512i b = _mm512_packs_epi32(_mm512_cvtps_epi32(x[2]), _mm512_cvtps_epi32(x[3]));
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
}
PL_INLINE void vi_store_halves(vi a, void *low, void *high)
{
    _mm256_storeu_si256((__m256i *)low, _mm512_castsi512_si256(a));
    _mm256_storeu_si256((__m256i *)high, _mm512_extracti64x4_epi64(a, 1));
}
/* Sums of 16 bytes each of a[4] and of b[4], the first of two in `even`, the second in `odd`: lanes 0 ... 7 of a, 8 ... 15 of b. */
PL_INLINE __m512i sums_of_16(const vi *a)
{
    __m512i s[4];
    PL_UNROLL
    for (int i = 0; i < 4; i++)
        s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), a[i]);
    __m512i x = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
    __m512i y = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y)); /* quarter q of register i: lane 4 q + i */
}
PL_INLINE void vi_sums_of_16(const vi *a, const vi *b, vi *even, vi *odd)
{
    const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27);
    __m512i first = sums_of_16(a), second = a == b ? first : sums_of_16(b);
    *even = _mm512_permutex2var_epi32(first, order, second);
    *odd = _mm512_permutex2var_epi32(first, _mm512_add_epi32(order, _mm512_set1_epi32(4)), second);
}
/* Lane i of the four, side by side, at to + i * stride, for n lanes (8 or 16). */
PL_INLINE void vi_store_by_lane(const vi w[4], const int n, uint8_t *to, const int64_t stride)
{
    __m512i a = _mm512_unpacklo_epi32(w[0], w[1]), b = _mm512_unpackhi_epi32(w[0], w[1]);
    __m512i c = _mm512_unpacklo_epi32(w[2], w[3]), d = _mm512_unpackhi_epi32(w[2], w[3]);
    const __m512i rows[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                             _mm512_unpackhi_epi64(b, d)};
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        _mm_storeu_si128((__m128i *)(void *)(to + i * stride), _mm512_castsi512_si128(rows[i]));
        _mm_storeu_si128((__m128i *)(void *)(to + (4 + i) * stride), _mm512_extracti32x4_epi32(rows[i], 1));
        if (n == 16) {
            _mm_storeu_si128((__m128i *)(void *)(to + (8 + i) * stride), _mm512_extracti32x4_epi32(rows[i], 2));
            _mm_storeu_si128((__m128i *)(void *)(to + (12 + i) * stride), _mm512_extracti32x4_epi32(rows[i], 3));
        }
    }
}
