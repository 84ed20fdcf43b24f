/* Primitives of the Arm tiers (Advanced SIMD of armv8.0): 4 lanes, four registers per panel group. Included inside a
 * tier's target region; the tier adds TIER, vi_dot_u and vi_dot_s. Dot products are of int8, so S_BIAS is 0. */
#define VL 4
#ifndef TOKENS_TILE
#define TOKENS_TILE 6 /* 2 registers of rows x 6 tokens: 12 integer and 12 float sums in 32 registers */
#endif
#define TILE_REGISTERS 2
#define PANELS_TILE 1
#define CENTERED_CODES 1
/* gcc would load the inputs of several steps before the first product, and then has no registers left for the sums. */
#define tile_step_end() __asm__ volatile("" ::: "memory")
#define FLOAT_TOKENS 5 /* 20 sums */
#define FLOAT_STEPS(STEP) STEP(5) STEP(4) STEP(1)
#define ROWS_TILE 4    /* attention: 4 rows x 4 registers of keys or dims: 16 of 32 */
#define KEYS_TILE 4
#define SCORE_SUMS 1
#define DIMS_TILE 4
#define WIDE_ROWS 2
#define S_BIAS 0

typedef float32x4_t vf;
typedef int32x4_t vi;

PL_INLINE vf vf_zero(void) { return vdupq_n_f32(0.0f); }
PL_INLINE vf vf_set1(float x) { return vdupq_n_f32(x); }
PL_INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
PL_INLINE void vf_store(float *p, vf x) { vst1q_f32(p, x); }
PL_INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
PL_INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
PL_INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
PL_INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
/* A NaN in one operand gives the other, as on the other tiers. */
/* b when one is NaN, as on the other tiers: a value that is clamped from one side stays NaN. */
PL_INLINE vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
PL_INLINE vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
PL_INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
PL_INLINE vf vf_fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
PL_INLINE vf vf_abs(vf a) { return vabsq_f32(a); }
PL_INLINE vf vf_round(vf a) { return vrndnq_f32(a); }
PL_INLINE vf vf_sqrt(vf a) { return vsqrtq_f32(a); }
PL_INLINE vf vf_pick_less(vf a, vf b, vf x, vf y) { return vbslq_f32(vcltq_f32(a, b), x, y); } /* by lane */
PL_INLINE unsigned vf_mask_not_above(vf a, vf b)                                               /* bit l: a <= b in lane l */
{
    static const uint32_t bits[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcleq_f32(a, b), vld1q_u32(bits)));
}
PL_INLINE vf vf_lut16_f(const float *table, vf index) /* index: whole, 0 ... 15 */
{
    uint32x4_t i = vcvtq_u32_f32(index);
    float32x4_t x = vdupq_n_f32(table[vgetq_lane_u32(i, 0)]);
    x = vld1q_lane_f32(table + vgetq_lane_u32(i, 1), x, 1);
    x = vld1q_lane_f32(table + vgetq_lane_u32(i, 2), x, 2);
    return vld1q_lane_f32(table + vgetq_lane_u32(i, 3), x, 3);
}
PL_INLINE vf vf_swap(vf a, const int distance) /* lane l from l ^ distance */
{
    return distance == 1 ? vrev64q_f32(a) : vextq_f32(a, a, 2);
}
PL_INLINE vf first_pairs(vf a, vf b) /* the low (of last_pairs: the high) halves of a and b */
{
    return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
PL_INLINE vf last_pairs(vf a, vf b)
{
    return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
PL_INLINE void vf_transpose(vf *r) /* VL registers of VL lanes */
{
    vf even_low = vtrn1q_f32(r[0], r[1]), odd_low = vtrn2q_f32(r[0], r[1]);
    vf even_high = vtrn1q_f32(r[2], r[3]), odd_high = vtrn2q_f32(r[2], r[3]);
    r[0] = first_pairs(even_low, even_high);
    r[1] = first_pairs(odd_low, odd_high);
    r[2] = last_pairs(even_low, even_high);
    r[3] = last_pairs(odd_low, odd_high);
}
PL_INLINE vf vf_gather(const float *p, const int32_t *at)
{
    const float found[4] = {p[at[0]], p[at[1]], p[at[2]], p[at[3]]};
    return vld1q_f32(found);
}
PL_INLINE vf vf_exp2i(vf n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23)); }
PL_INLINE vf vf_scale2(vf p, vf n) /* p * 2^n, p and the result normal: n is added to the exponent */
{
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
}
PL_INLINE int vf_any_above(vf a, vf limit) { return vminvq_u32(vcleq_f32(a, limit)) == 0; } /* or NaN */
PL_INLINE vf vf_select_below(int first, int limit, vf x, vf y)
{
    static const int32_t lanes[4] = {0, 1, 2, 3};
    int32x4_t lane = vaddq_s32(vld1q_s32(lanes), vdupq_n_s32(first));
    return vbslq_f32(vcltq_s32(lane, vdupq_n_s32(limit)), x, y);
}
PL_INLINE float vf_hsum(vf a)
{
    float32x4_t pairs = vpaddq_f32(a, a);
    return vgetq_lane_f32(vpaddq_f32(pairs, pairs), 0);
}
PL_INLINE float vf_hmax(vf a) { return vmaxnmvq_f32(a); }

PL_INLINE vf vf_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
PL_INLINE void vf_store_f16(uint16_t *p, vf x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
PL_INLINE vf vf_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
PL_INLINE void vf_store_bf16(uint16_t *p, vf x) /* round to nearest even */
{
    uint32x4_t u = vreinterpretq_u32_f32(x);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    u = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    vst1_u16(p, vshrn_n_u32(u, 16));
}
/* 4 bytes, in the low half of a register */
PL_INLINE uint8x8_t load_4_bytes(const void *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    return vreinterpret_u8_u32(vdup_n_u32(four));
}
PL_INLINE uint32x4_t widen_u8(uint8x8_t x) { return vmovl_u16(vget_low_u16(vmovl_u8(x))); }
PL_INLINE vf vf_load_i8(const int8_t *p)
{
    int16x8_t words = vmovl_s8(vreinterpret_s8_u8(load_4_bytes(p)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
PL_INLINE vf vf_load_u8(const uint8_t *p) { return vcvtq_f32_u32(widen_u8(load_4_bytes(p))); }
PL_INLINE vf vf_load_u4(const uint8_t *p, int high) /* the low or high nibbles of 4 bytes */
{
    uint8x8_t bytes = load_4_bytes(p);
    return vcvtq_f32_u32(widen_u8(high ? vshr_n_u8(bytes, 4) : vand_u8(bytes, vdup_n_u8(15))));
}
PL_INLINE vf vf_load_i4(const uint8_t *p, int high) { return vf_sub(vf_load_u4(p, high), vf_set1(8.0f)); } /* minus 8 */
PL_INLINE vf vf_load_e8m0(const uint8_t *p) { return vreinterpretq_f32_u32(vshlq_n_u32(widen_u8(load_4_bytes(p)), 23)); }
PL_INLINE void vf_store_i8(int8_t *p, vf x)
{
    int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(x));
    int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    memcpy(p, &four, 4);
}
PL_INLINE void vf_store_u16(uint16_t *p, vf x) { vst1_u16(p, vqmovn_u32(vcvtnq_u32_f32(x))); } /* whole numbers, 0 ... 65535 */

PL_INLINE vi vi_of_u8(uint8x16_t x) { return vreinterpretq_s32_u8(x); }
PL_INLINE uint8x16_t vi_u8(vi x) { return vreinterpretq_u8_s32(x); }

PL_INLINE vi vi_set1(int32_t x) { return vdupq_n_s32(x); }
PL_INLINE vi vi_load(const void *p) { return vi_of_u8(vld1q_u8((const uint8_t *)p)); }
PL_INLINE void vi_store(void *p, vi x) { vst1q_u8((uint8_t *)p, vi_u8(x)); }
/* a.low * b.low + a.high * b.high of the two int16 in every lane */
PL_INLINE vi vi_dot16(vi a, vi b)
{
    int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    return vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
}
PL_INLINE vi vi_dot16_add(vi acc, vi a, vi b) { return vaddq_s32(acc, vi_dot16(a, b)); }
/* Two bytes for every lane, as int16. */
PL_INLINE vi vi_load_u8_pairs(const uint8_t *p) { return vreinterpretq_s32_u16(vmovl_u8(vld1_u8(p))); }
PL_INLINE vi vi_load_u8(const uint8_t *p) { return vreinterpretq_s32_u32(widen_u8(load_4_bytes(p))); }
PL_INLINE vi vi_mul(vi a, vi b) { return vmulq_s32(a, b); }
PL_INLINE vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
PL_INLINE vi vi_or(vi a, vi b) { return vorrq_s32(a, b); }
/* The shift is known when compiled; no mask where the shift leaves no other bits. */
PL_INLINE vi vi_shr_and(vi a, int shift, uint8_t mask)
{
    uint8x16_t x = vi_u8(a);
    switch (shift) {
    case 0: break;
    case 2: x = vshrq_n_u8(x, 2); break;
    case 4: x = vshrq_n_u8(x, 4); break;
    case 6: x = vshrq_n_u8(x, 6); break;
    default: x = vshlq_u8(x, vdupq_n_s8((int8_t)-shift));
    }
    return vi_of_u8(mask == 255 >> shift ? x : vandq_u8(x, vdupq_n_u8(mask)));
}
PL_INLINE vi vi_shl_and(vi a, int shift, uint8_t mask)
{
    uint8x16_t x = vi_u8(a);
    switch (shift) {
    case 0: break;
    case 2: x = vshlq_n_u8(x, 2); break;
    case 4: x = vshlq_n_u8(x, 4); break;
    default: x = vshlq_u8(x, vdupq_n_s8((int8_t)shift));
    }
    return vi_of_u8(vandq_u8(x, vdupq_n_u8(mask)));
}
PL_INLINE vi vi_lut16(const uint8_t *table, vi index) { return vi_of_u8(vqtbl1q_u8(vld1q_u8(table), vi_u8(index))); }
/* Byte i of the register looks at bit i % 8 of byte i / 8 of its quarter of the word. */
PL_INLINE vi vi_bits(const uint8_t *word, int part, uint8_t value)
{
    const uint8x8_t bit = vcreate_u8(0x8040201008040201ull);
    uint8x16_t bytes = vcombine_u8(vdup_n_u8(word[2 * part]), vdup_n_u8(word[2 * part + 1]));
    return vi_of_u8(vandq_u8(vtstq_u8(bytes, vcombine_u8(bit, bit)), vdupq_n_u8(value)));
}
/* Bytewise: sums modulo 256, and averages rounded up. */
PL_INLINE vi vi_add_u8(vi a, vi b) { return vi_of_u8(vaddq_u8(vi_u8(a), vi_u8(b))); }
PL_INLINE vi vi_avg_u8(vi a, vi b) { return vi_of_u8(vrhaddq_u8(vi_u8(a), vi_u8(b))); }
/* Byte i of every lane in all bytes of that lane. */
PL_INLINE vi vi_spread(vi x, int i)
{
    static const uint8_t first[16] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    return vi_of_u8(vqtbl1q_u8(vi_u8(x), vaddq_u8(vld1q_u8(first), vdupq_n_u8((uint8_t)i))));
}
/* Lane r: bits 4 r ... 4 r + 3 of the 64-bit word, r counted over all rows. */
PL_INLINE vi vi_nibbles(const uint8_t *word, int part)
{
    static const int32_t shift[4] = {0, -4, -8, -12};
    uint16_t quarter;
    memcpy(&quarter, word + 2 * part, 2);
    return vreinterpretq_s32_u32(vandq_u32(vshlq_u32(vdupq_n_u32(quarter), vld1q_s32(shift)), vdupq_n_u32(15)));
}
/* Minus the bytes of w in which this bit of `signs` is set. */
PL_INLINE vi vi_negate(vi w, vi signs, const int bit)
{
    uint8x16_t minus = vtstq_u8(vi_u8(signs), vdupq_n_u8((uint8_t)(1 << bit)));
    return vi_of_u8(vsubq_u8(veorq_u8(vi_u8(w), minus), minus));
}
PL_INLINE vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
PL_INLINE vi vi_xor(vi a, vi b) { return veorq_s32(a, b); }
PL_INLINE vi vi_shl_lanes(vi a, const int n) { return vshlq_s32(a, vdupq_n_s32(n)); } /* int32, without sign */
PL_INLINE vi vi_shr_lanes(vi a, const int n)
{
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-n)));
}

/* Codebook entries, 8 values or 4, of indices that `bits` bits hold: bytes i = 0..3 of `low` and of `high` are the two bytes of
 * number i of a lane. Number i goes to w[2 i], w[2 i + 1] (8 values) or w[i] (4). The Arm tiers have no bias. */
PL_INLINE const uint8_t *book_entry(const pl_codebook *book, const int bits, int bytes, const uint8_t *low, const uint8_t *high,
                                    int i)
{
    return book->values + bytes * (low[i] | (bits > 8 ? high[i] << 8 : 0));
}
PL_INLINE void vi_look_up8(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[8])
{
    uint8_t h[16];
    (void)bias;
    if (bits > 8)
        vi_store(h, high);
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        uint8x8_t row[4];
        PL_UNROLL
        for (int r = 0; r < 4; r++)
            row[r] = vld1_u8(book_entry(book, bits, 8, low, h, 4 * r + i));
        vi first = vi_of_u8(vcombine_u8(row[0], row[1])), last = vi_of_u8(vcombine_u8(row[2], row[3]));
        w[2 * i] = vuzp1q_s32(first, last);
        w[2 * i + 1] = vuzp2q_s32(first, last);
    }
}
PL_INLINE void vi_look_up4(const pl_codebook *book, const int bits, int bias, const uint8_t *low, vi high, vi w[4])
{
    uint8_t h[16];
    (void)bias;
    if (bits > 8)
        vi_store(h, high);
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        uint32_t row[4];
        PL_UNROLL
        for (int r = 0; r < 4; r++)
            memcpy(&row[r], book_entry(book, bits, 4, low, h, 4 * r + i), 4);
        w[i] = vsetq_lane_s32((int32_t)row[0], vdupq_n_s32(0), 0);
        w[i] = vsetq_lane_s32((int32_t)row[1], w[i], 1);
        w[i] = vsetq_lane_s32((int32_t)row[2], w[i], 2);
        w[i] = vsetq_lane_s32((int32_t)row[3], w[i], 3);
    }
}
PL_INLINE vi vi_signed(vi w) { return vi_of_u8(veorq_u8(vi_u8(w), vdupq_n_u8(0x80))); }
PL_INLINE vf vi_to_f(vi a) { return vcvtq_f32_s32(a); }
