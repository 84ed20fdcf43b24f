/* Codebooks laid out for the search of quantize_iq*.inc. */
#include "types/quantize_iq.h"
#include "types/blocks.h"
#include <stddef.h>

static float iq2_xxs[8 * 256], iq2_xs[8 * 512], iq3_xxs[4 * 256], iq3_s[4 * 512];
static const pl_iq_codebook books[] = {{iq2_xxs, 256}, {iq2_xs, 512}, {iq3_xxs, 256}, {iq3_s, 512}};
static pl_iq_halves iq2_s, iq1;
static int iq2_s_usable, iq1_usable;

const pl_iq_codebook *pl_iq_codebook_of(int type)
{
    switch (type) {
    case PL_TYPE_IQ2_XXS: return &books[0];
    case PL_TYPE_IQ2_XS: return &books[1];
    case PL_TYPE_IQ3_XXS: return &books[2];
    case PL_TYPE_IQ3_S: return &books[3];
    default: return NULL;
    }
}

const pl_iq_halves *pl_iq_halves_of(int type)
{
    switch (type) {
    case PL_TYPE_IQ2_S: return iq2_s_usable ? &iq2_s : NULL;
    case PL_TYPE_IQ1_S:
    case PL_TYPE_IQ1_M: return iq1_usable ? &iq1 : NULL;
    default: return NULL;
    }
}

/* (entries, dims) -> (dims, entries) */
static void transpose(const int8_t *values, int n, int dims, float *out)
{
    int entries = n / dims;
    for (int i = 0; i < n; i++)
        out[i % dims * entries + i / dims] = (float)values[i];
}

/* The distinct values in ascending order; how many, or 4 when there are more than three. */
static int find_levels(const int8_t *values, int n, float levels[3])
{
    int seen[256] = {0}, count = 0;
    for (int i = 0; i < n; i++)
        seen[values[i] + 128] = 1;
    for (int v = 0; v < 256; v++)
        if (seen[v]) {
            if (count == 3)
                return 4;
            levels[count++] = (float)(v - 128);
        }
    for (int i = count; i < 3; i++)
        levels[i] = levels[count - 1];
    return count;
}

static int half_pattern(const int8_t *four, const float levels[3])
{
    int pattern = 0;
    for (int i = 3; i >= 0; i--)
        pattern = 3 * pattern + ((float)four[i] > levels[0]) + ((float)four[i] > levels[1]);
    return pattern;
}

/* Values times `unit` plus `shift`. */
static void fill_levels(const float levels[3], float unit, float shift, pl_iq_halves *out)
{
    for (int q = 0; q < PL_IQ_ROW; q++) {
        out->pad[q] = q < PL_IQ_HALVES ? 0.0f : PL_IQ_NEVER;
        for (int i = 0, rest = q < PL_IQ_HALVES ? q : 0; i < 4; i++, rest /= 3)
            out->level[i][q] = unit * levels[rest % 3] + shift;
    }
}

/* 1 when done, 0 for a codebook that cannot be searched by halves. */
static int fill_halves(const int8_t *values, int n, float unit, float shift, pl_iq_halves *out)
{
    float levels[3];
    if (find_levels(values, n, levels) > 3)
        return 0;
    fill_levels(levels, unit, shift, out);
    for (int p = 0; p < PL_IQ_HALVES; p++)
        for (int q = 0; q < PL_IQ_ROW; q++)
            out->penalty[p][q] = PL_IQ_NEVER;
    for (int e = n / 8 - 1; e >= 0; e--) {
        int p = half_pattern(values + 8 * e, levels), q = half_pattern(values + 8 * e + 4, levels);
        out->penalty[p][q] = 0.0f;
        out->entry[p][q] = (uint16_t)e;
    }
    return 1;
}

void pl_iq_take_codebook(int type, const int8_t *values, int n)
{
    switch (type) {
    case PL_TYPE_IQ2_XXS: transpose(values, n, 8, iq2_xxs); break;
    case PL_TYPE_IQ2_XS: transpose(values, n, 8, iq2_xs); break;
    case PL_TYPE_IQ3_XXS: transpose(values, n, 4, iq3_xxs); break;
    case PL_TYPE_IQ3_S: transpose(values, n, 4, iq3_s); break;
    case PL_TYPE_IQ2_S: iq2_s_usable = fill_halves(values, n, 1.0f, 0.0f, &iq2_s); break;
    case PL_TYPE_IQ1_S:
    case PL_TYPE_IQ1_M: iq1_usable = fill_halves(values, n, 8.0f, 1.0f, &iq1); break;
    default: break;
    }
}
