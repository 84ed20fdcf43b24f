#ifndef PL_BLOCKS_H
#define PL_BLOCKS_H
/* Tensor types of GGUF: the exact layout of their blocks, and the small floats inside them.
 *
 * Layouts are little-endian, as in the file; every struct has alignment 1, so a block may lie at any address.
 * Number formats: IEEE 754 binary16, bfloat16, and OCP Microscaling E8M0 (a bare power of two). */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "types/types.h"

#define PL_QK 32    /* elements of a small block, and of a sub-block of the others */
#define PL_QK_K 256 /* elements of a super-block: 8 sub-blocks of 32 */

/* ---- blocks of 32 ---- d, m: binary16; qs: byte l holds elements l (low nibble) and l + 16 (high nibble). */

#pragma pack(push, 1)

typedef struct { /* d * (q - 8) */
    uint16_t d;
    uint8_t qs[16];
} pl_block_q4_0;

typedef struct { /* d * q + m */
    uint16_t d;
    uint16_t m;
    uint8_t qs[16];
} pl_block_q4_1;

typedef struct { /* d * (q - 16); bit l of qh is bit 4 of element l */
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
} pl_block_q5_0;

typedef struct { /* d * q + m */
    uint16_t d;
    uint16_t m;
    uint8_t qh[4];
    uint8_t qs[16];
} pl_block_q5_1;

typedef struct { /* d * q */
    uint16_t d;
    int8_t qs[32];
} pl_block_q8_0;

typedef struct { /* d * table[q] */
    uint16_t d;
    uint8_t qs[16];
} pl_block_iq4_nl;

typedef struct { /* 2^(e - 127) * e2m1(q) */
    uint8_t e;
    uint8_t qs[16];
} pl_block_mxfp4;

/* ---- super-blocks of 256 ---- */

typedef struct { /* per 16: d * scale * q - dmin * min; low nibble of scales: scale, high: min */
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d;
    uint16_t dmin;
} pl_block_q2_k;

typedef struct { /* per 16: d * (scale - 32) * (q - 4), q of 3 bits: bit 2 from hmask */
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
} pl_block_q3_k;

typedef struct { /* per 32: d * scale * q - dmin * min; scales: 8 scales and 8 mins of 6 bits */
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qs[128];
} pl_block_q4_k;

typedef struct { /* as Q4_K with bit 4 of q in qh */
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
} pl_block_q5_k;

typedef struct { /* per 16: d * scale * (q - 32) */
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
} pl_block_q6_k;

typedef struct { /* d * (trit - 1): five trits in a byte of qs, four in one of qh */
    uint8_t qs[48];
    uint8_t qh[4];
    uint16_t d;
} pl_block_tq1_0;

typedef struct { /* d * (q - 1), q of 2 bits */
    uint8_t qs[64];
    uint16_t d;
} pl_block_tq2_0;

/* The codebook types: an index names 8 (or 4) magnitudes, signs come apart. */

typedef struct { /* per 32: four bytes of indices, then 4 × 7 bits of signs and 4 bits of scale */
    uint16_t d;
    uint8_t qs[64];
} pl_block_iq2_xxs;

typedef struct { /* per 8: 9 bits of index, 7 of signs; per 16: 4 bits of scale */
    uint16_t d;
    uint16_t qs[32];
    uint8_t scales[8];
} pl_block_iq2_xs;

typedef struct { /* per 8: 10 bits of index (qs, qh), 8 of signs; per 16: 4 bits of scale */
    uint16_t d;
    uint8_t qs[32];
    uint8_t signs[32];
    uint8_t qh[8];
    uint8_t scales[8];
} pl_block_iq2_s;

typedef struct { /* per 4: 8 bits of index; per 32: 4 × 7 bits of signs and 4 bits of scale */
    uint16_t d;
    uint8_t qs[64];
    uint8_t scales[32];
} pl_block_iq3_xxs;

typedef struct { /* per 4: 9 bits of index (qs, qh); per 8: 8 signs; per 32: 4 bits of scale */
    uint16_t d;
    uint8_t qs[64];
    uint8_t qh[8];
    uint8_t signs[32];
    uint8_t scales[4];
} pl_block_iq3_s;

typedef struct { /* per 8: 11 bits of index (qs, qh); per 32: 3 bits of scale and the sign of the shift of 1/8 */
    uint16_t d;
    uint8_t qs[32];
    uint16_t qh[8];
} pl_block_iq1_s;

typedef struct { /* as IQ1_S, the shift per 8, the scale per 16; d is spread over the top nibbles of scales */
    uint8_t qs[32];
    uint8_t qh[16];
    uint16_t scales[4];
} pl_block_iq1_m;

typedef struct { /* per 32: d * (scale - 32) * table[q] */
    uint16_t d;
    uint16_t scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128];
} pl_block_iq4_xs;

#pragma pack(pop)

#define PL_QUANTIZED_TYPE(NAME, name, number, elements, bytes, ...) \
    static_assert(sizeof(pl_block_##name) == (bytes), "the layout of " #NAME);
#include "types/types.def"

/* ---- small floats ---- exact for every bit pattern; NaN keeps its payload */

static inline float pl_f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float pl_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00) /* inf, nan */
        return pl_f32_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x400) { /* subnormal: a multiple of 2^-24, which is a normal float32 */
        float value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    return pl_f32_from_bits(sign | ((magnitude << 13) + (112u << 23)));
}

static inline float pl_bf16_to_f32(uint16_t b) { return pl_f32_from_bits((uint32_t)b << 16); }

/* 2^(e - 128), finite for every e: the scale of MXFP4 with its values doubled to integers. (255 is NaN in the MX specification;
 * GGUF's own tools read it as a number, too.) */
static inline float pl_e8m0_to_f32_half(uint8_t e)
{
    return pl_f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

#endif
