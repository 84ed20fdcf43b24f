#ifndef PL_PACK_H
#define PL_PACK_H
/* Between pack.c and pack_codebook.c. */
#include <stdint.h>

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

/* Row r of one block of an IQ1, IQ2, IQ3 or TQ1_0 type; dst: the panel block, zeroed before its first row. */
void pl_pack_codebook(int type, const uint8_t *src, int r, uint8_t *dst);

#endif
