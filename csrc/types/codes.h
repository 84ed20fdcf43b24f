#ifndef PL_CODES_H
#define PL_CODES_H
/* Codes of a few bits, as they lie in file blocks and in panels (panel.h). r: the row within a panel of 16. */
#include <stdint.h>
#include <string.h>

/* ---- file blocks ---- */

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

/* ---- panels: one row's part of a sub-block of 32 k ---- */

/* Row r's 4 bits of a 64-bit word of 16 rows. */
static inline void pl_put_nibble(uint8_t *word, int r, unsigned nibble)
{
    word[r / 2] = (uint8_t)(word[r / 2] | (nibble & 15) << (r % 2 * 4));
}

/* bits: bit l is that of element l of row r's 32; eight words, one per group of 4 k */
static inline void pl_put_bits(uint8_t *words, int r, uint32_t bits)
{
    for (int g = 0; g < 8; g++)
        pl_put_nibble(words + 8 * g, r, bits >> (4 * g));
}

/* q: 16 bytes, byte l = code l | code l + 16 << 4 (the file's order in 32-wide types): 4-byte moves. */
static inline void pl_put_nibbles(uint8_t *codes4, int r, const uint8_t *q)
{
    for (int v = 0; v < 4; v++)
        memcpy(codes4 + v * 64 + r * 4, q + v * 4, 4);
}

/* The same from 32 separate codes below 16. */
static inline void pl_put_codes4(uint8_t *codes4, int r, const uint8_t *q)
{
    for (int v = 0; v < 4; v++) { /* four codes at once: they are too small to reach each other when shifted */
        uint32_t low, high;
        memcpy(&low, q + 4 * v, 4);
        memcpy(&high, q + 4 * v + 16, 4);
        low |= high << 4;
        memcpy(codes4 + v * 64 + r * 4, &low, 4);
    }
}

static inline void pl_put_codes2(uint8_t *codes2, int r, const uint8_t *q)
{
    for (int h = 0; h < 2; h++) {
        uint32_t word = 0;
        for (int f = 0; f < 4; f++) {
            uint32_t four;
            memcpy(&four, q + 4 * (2 * f + h), 4);
            word |= four << (2 * f);
        }
        memcpy(codes2 + h * 64 + r * 4, &word, 4);
    }
}

static inline void pl_put16(uint8_t *at, int r, uint16_t value) { memcpy(at + 2 * r, &value, 2); }

#endif
