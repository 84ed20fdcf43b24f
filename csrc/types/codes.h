#ifndef PL_CODES_H
#define PL_CODES_H
/* Codes of a few bits, as they lie in file blocks; row_words.h has those in panels. */
#include <stdint.h>
#include <string.h>

/* Of the blocks of 32: low nibbles are elements 0–15, high ones 16–31. */
static inline void pl_split_nibbles(const uint8_t *qs, int8_t *q)
{
    for (int l = 0; l < 16; l++) {
        q[l] = (int8_t)(qs[l] & 15);
        q[l + 16] = (int8_t)(qs[l] >> 4);
    }
}

static inline void pl_join_nibbles(const uint8_t *q, uint8_t *qs)
{
    for (int l = 0; l < 16; l++)
        qs[l] = (uint8_t)((q[l] & 15) | q[l + 16] << 4);
}

/* Two bits per element: bytes 0–31 hold sub-blocks 0–3, bytes 32–63 sub-blocks 4–7, lowest bits first. */
static inline void pl_split_pairs(const uint8_t *qs, int sub, int8_t *q)
{
    const uint8_t *bytes = qs + 32 * (sub / 4);
    for (int l = 0; l < 32; l++)
        q[l] = (int8_t)((bytes[l] >> 2 * (sub % 4)) & 3);
}

/* Two bits per element, four sub-blocks of 32 in 32 bytes. */
static inline void pl_join_pairs(const uint8_t *q, uint8_t *qs)
{
    for (int half = 0; half < 2; half++, q += 128, qs += 32)
        for (int l = 0; l < 32; l++)
            qs[l] = (uint8_t)((q[l] & 3) | (q[l + 32] & 3) << 2 | (q[l + 64] & 3) << 4 | q[l + 96] << 6);
}

static inline uint32_t pl_load_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void pl_subtract(int8_t *q, int offset)
{
    for (int l = 0; l < 32; l++)
        q[l] = (int8_t)(q[l] - offset);
}

static inline void pl_decode_scales(float *scale, float *min, float low, float high)
{
    scale[0] = low;
    scale[1] = high;
    min[0] = min[1] = 0.0f;
}

#endif
