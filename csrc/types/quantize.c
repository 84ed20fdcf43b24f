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
    const pl_type_info *info = pl_type_find(type);
    return info ? 1 + info->needs_importance : PL_EINVAL;
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

static int check_importance(const pl_type_info *info, const float *importance, int64_t n)
{
    if (!importance)
        return info->needs_importance ? PL_QUANTIZE_EIMPORTANCE : PL_OK;
    int bad = !all_finite(importance, n);
    for (int64_t i = 0; i < n; i++)
        bad |= importance[i] < 0.0f;
    return bad ? PL_QUANTIZE_EIMPORTANCE : PL_OK;
}

int pl_quantize(int type, const float *src, int64_t n_rows, int64_t n_cols, const float *importance, void *dst)
{
    const pl_type_info *info = pl_type_find(type);
    if (!info || n_rows < 0 || n_cols < 0 || n_cols % info->block_elements || !pl_iq_searchable(type))
        return PL_EINVAL;
    int rc = check_importance(info, importance, n_cols);
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
