/* Codebooks laid out for the search of quantize_iq*.inc. */
#include "types/quantize_iq.h"
#include "types/codebook_index.h"
#include <stddef.h>

/* Of each codebook what its search needs: the values of its entries by lanes, or its halves. */
#define STORAGE_ENTRIES(name, entries, dims) static float name##_lanes[(entries) * (dims)];
#define STORAGE_HALVES(name, entries, dims) static pl_iq_halves name##_halves;
#define PL_CODEBOOK(NAME, name, entries, dims, low, high, search) STORAGE_##search(name, entries, dims)
#include "types/types.def"

#define ENTRIES(name, entries) .lanes = name##_lanes, .list = {name##_lanes, entries}
#define HALVES(name, entries) .halves = &name##_halves
static struct {
    int dims, low;
    float *lanes; /* or NULL: searched by halves */
    pl_iq_codebook list;
    pl_iq_halves *halves; /* or NULL: entry by entry */
    int usable;
} searches[PL_CODEBOOK_COUNT] = {
#define PL_CODEBOOK(NAME, name, entries, dims_, low_, high, search) \
    [PL_CODEBOOK_##NAME] = {.dims = dims_, .low = low_, search(name, entries)},
#include "types/types.def"
};

const pl_iq_codebook *pl_iq_codebook_of(int type)
{
    int index = pl_codebook_index(type);
    return index != PL_CODEBOOK_NONE && searches[index].lanes && searches[index].usable ? &searches[index].list : NULL;
}

const pl_iq_halves *pl_iq_halves_of(int type)
{
    int index = pl_codebook_index(type);
    return index != PL_CODEBOOK_NONE && searches[index].usable ? searches[index].halves : NULL;
}

int pl_iq_searchable(int type)
{
    int index = pl_codebook_index(type);
    return index == PL_CODEBOOK_NONE || searches[index].usable;
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
    int index = pl_codebook_index(type);
    if (index == PL_CODEBOOK_NONE)
        return;
    if (searches[index].lanes) {
        transpose(values, n, searches[index].dims, searches[index].lanes);
        searches[index].usable = 1;
    } else { /* of IQ1, whose values can be negative, eighths that leave room for its shift */
        int eighths = searches[index].low < 0;
        searches[index].usable = fill_halves(values, n, eighths ? 8.0f : 1.0f, eighths ? 1.0f : 0.0f, searches[index].halves);
    }
}
