/* Quantization of weights: what is given is checked here, in slices that stay in the cache; the work is done by the
 * tier's quantize_weights (kernels/quantize_*.inc). */
#include "types/quantize.h"
#include "api.h"
#include "types/blocks.h"
#include "kernels/kernels.h"
#include "types/quantize_iq.h"

#define SLICE 32768 /* elements checked, then quantized: 128 KB */

int pl_quantize_known(int type)
{
    switch (type) {
    case PL_TYPE_IQ1_S:
    case PL_TYPE_IQ1_M:
    case PL_TYPE_IQ2_XXS:
    case PL_TYPE_IQ2_XS: return 2;
    default: return pl_type_find(type) ? 1 : PL_EINVAL;
    }
}

static int all_finite(const float *x, int64_t n)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}

static int check_importance(int type, const float *importance, int64_t n)
{
    if (!importance)
        return pl_quantize_known(type) == 2 ? PL_QUANTIZE_EIMPORTANCE : PL_OK;
    int bad = !all_finite(importance, n);
    for (int64_t i = 0; i < n; i++)
        bad |= importance[i] < 0.0f;
    return bad ? PL_QUANTIZE_EIMPORTANCE : PL_OK;
}

/* The searches by halves need a codebook of few levels; decoding takes any. */
static int codebook_usable(int type)
{
    int by_halves = type == PL_TYPE_IQ2_S || type == PL_TYPE_IQ1_S || type == PL_TYPE_IQ1_M;
    return !pl_codebook_missing(type) && (!by_halves || pl_iq_halves_of(type));
}

int pl_quantize(int type, const float *src, int64_t n_rows, int64_t n_cols, const float *importance, void *dst)
{
    const pl_type_info *info = pl_type_find(type);
    if (pl_quantize_known(type) < 0 || n_rows < 0 || n_cols < 0 || n_cols % info->block_elements)
        return PL_EINVAL;
    if (!codebook_usable(type))
        return PL_EINVAL;
    int rc = check_importance(type, importance, n_cols);
    if (rc)
        return rc;
    if (n_cols == 0)
        return PL_OK;
    int64_t row_bytes = n_cols / info->block_elements * info->block_bytes;
    int64_t step = SLICE / n_cols > 0 ? SLICE / n_cols : 1;
    for (int64_t row = 0; row < n_rows; row += step) {
        int64_t rows = n_rows - row < step ? n_rows - row : step;
        if (!all_finite(src + row * n_cols, rows * n_cols))
            return PL_QUANTIZE_ENAN;
        pl_quantize_job job = {type, src + row * n_cols, rows, n_cols, importance, (uint8_t *)dst + row * row_bytes};
        pl_kernels_current()->quantize_weights(&job);
    }
    return PL_OK;
}
