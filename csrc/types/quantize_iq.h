/* What the search of the codebook types looks things up in: codebooks laid out for vector lanes. Filled when codebook.c
 * is given them, then read only. */
#ifndef PL_QUANTIZE_IQ_H
#define PL_QUANTIZE_IQ_H
#include <stdint.h>

#define PL_IQ_HALVES 81   /* patterns of four coordinates with three levels each */
#define PL_IQ_ROW 96      /* the same, padded to whole registers */
#define PL_IQ_NEVER 1e30f /* a cost that no candidate reaches */

/* A small codebook, searched entry by entry, one entry a lane. Coordinate i of entry e: values[i * n + e]. */
typedef struct {
    const float *values;
    int n; /* entries, a multiple of 16 */
} pl_iq_codebook;

/* A codebook of eight coordinates with three levels, searched by halves of four coordinates. The pattern of a half is a
 * number of four base-3 digits (which level), its first coordinate lowest. */
typedef struct {
    float level[4][PL_IQ_ROW];               /* [coordinate][pattern]: its value; IQ1: in eighths, shifted by + 1/8 */
    float pad[PL_IQ_ROW];                    /* 0 for a pattern, PL_IQ_NEVER after the last */
    float penalty[PL_IQ_HALVES][PL_IQ_ROW];  /* [first half][second half]: 0 for an entry, else PL_IQ_NEVER */
    uint16_t entry[PL_IQ_HALVES][PL_IQ_ROW]; /* its number; of equal entries the first */
} pl_iq_halves;

/* The types searched entry by entry: IQ2_XXS, IQ2_XS, IQ3_XXS, IQ3_S; NULL for others. */
const pl_iq_codebook *pl_iq_codebook_of(int type);
/* IQ2_S, IQ1_S and IQ1_M; NULL for others, and when the codebook has more than three levels. */
const pl_iq_halves *pl_iq_halves_of(int type);

/* 1 when the quantizer of `type` has what it searches: its codebook has been set, and is one that the search can take. Such a
 * codebook may still be decoded. 1 for a type without a codebook. */
int pl_iq_searchable(int type);

/* values: (n) entry by entry, 8 (IQ3: 4) each, as codebook.c has checked them. */
void pl_iq_take_codebook(int type, const int8_t *values, int n);

#endif
