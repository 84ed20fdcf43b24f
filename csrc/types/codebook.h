#ifndef PL_CODEBOOK_H
#define PL_CODEBOOK_H
/* The codebooks in the forms that the kernels look up. An entry is 8 values (IQ1_*, IQ2_*) or 4 (IQ3_*). */
#include <stdint.h>

typedef struct {
    /* The values as bytes, entry by entry: for tiers that load an entry by its address. Those of IQ1 are 8 * (v + 1),
     * which leaves room for the shift of 1/8 below. 16 bytes more before them and after them may be read. */
    const uint8_t *values;
    /* The same as 16 bits per entry, for tiers that permute whole tables: the codes of values in `levels`.
     *   8 values: 2 bits each, 0 2 4 6 from the lowest bits of the low byte on, 1 3 5 7 in the high byte
     *   4 values: 4 bits each, 0 and 2 in the low byte, 1 and 3 in the high one */
    const uint16_t *codes;
    const uint8_t *levels; /* (16,) */
    /* The codes once more, for tiers that permute whole tables of bytes: [entries / 128][2][128], plane 0 the first half of an
     * entry's values, plane 1 the other one.
     *   8 values: value i = 0..3 of the half in bits 2 i, 2 i + 1
     *   4 values: value i = 0, 1 of half h in nibble i, 3 bits, and bit h of the nibble left free: for its sign */
    const uint8_t *planes;
    /* What a byte of `planes` (of 4 values: those of both planes) has for value i = 0..3, by 6 bits: codes, shifted right by 2 for
     * values that are in the upper nibble, and signs: of 8 values, bit 4 + i or (i > 1) i - 2; of 4, the free bit. Where codes have
     * signs, 128 is added to values. */
    const uint8_t (*plane_values)[64];
} pl_codebook;

/* The codebook of a type, NULL when the type has none or it has not been set. */
const pl_codebook *pl_codebook_of(int type);

/* Its values as they were given, entry by entry. NULL likewise. */
const int8_t *pl_codebook_values(int type);

#endif
