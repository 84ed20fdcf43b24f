/* Quantization of weights: what is given is read and checked here, in slices that stay in the cache; the work is done
 * by the tier's quantize_weights (kernels/quantize_*.inc). */
#include "types/quantize.h"
#include "api.h"
#include "types/blocks.h"
#include "kernels/kernels.h"
#include "types/quantize_iq.h"
#include <stdlib.h>

#define SLICE 8192 /* elements read, then quantized: 32 KB */

int pl_quantize_known(int type)
{
    const pl_type_info *info = pl_type_find(type);
    return info ? 1 + info->needs_importance : PL_EINVAL;
}

static int check_importance(const pl_type_info *info, const float *importance, int64_t n)
{
    if (!importance)
        return info->needs_importance ? PL_QUANTIZE_EIMPORTANCE : PL_OK;
    int bad = !pl_kernels_current()->read_weights(PL_TYPE_F32, importance, n, NULL);
    for (int64_t i = 0; i < n; i++)
        bad |= importance[i] < 0.0f;
    return bad ? PL_QUANTIZE_EIMPORTANCE : PL_OK;
}

/* Rows whose columns are whole blocks; `values` holds a slice of them, unused for float32. */
static int quantize_rows(pl_quantize_job job, int stored, const uint8_t *src, uint8_t *dst, float *values)
{
    const pl_type_info *info = pl_type_find(job.type);
    const pl_kernels *kernels = pl_kernels_current();
    int64_t size = stored == PL_TYPE_F32 ? 4 : 2, n_rows = job.n_rows;
    int64_t row_bytes = job.n_cols / info->block_elements * info->block_bytes, step = SLICE / job.n_cols > 0 ? SLICE / job.n_cols : 1;
    for (int64_t row = 0; row < n_rows; row += step) {
        const uint8_t *from = src + row * job.n_cols * size;
        job.n_rows = n_rows - row < step ? n_rows - row : step;
        if (!kernels->read_weights(stored, from, job.n_rows * job.n_cols, values))
            return PL_QUANTIZE_ENAN;
        job.src = values ? values : (const float *)(const void *)from;
        job.dst = dst + row * row_bytes;
        kernels->quantize_weights(&job);
    }
    return PL_OK;
}

int pl_quantize(int type, int stored, const void *src, int64_t n_rows, int64_t n_cols, const float *importance, void *dst)
{
    const pl_type_info *info = pl_type_find(type);
    int is_float = stored == PL_TYPE_F32, is_short = stored == PL_TYPE_F16 || stored == PL_TYPE_BF16;
    if (!info || n_rows < 0 || n_cols < 0 || n_cols % info->block_elements || !pl_iq_searchable(type) || !(is_float || is_short))
        return PL_EINVAL;
    int rc = check_importance(info, importance, n_cols);
    if (rc || n_cols == 0)
        return rc;
    float *values = NULL;
    if (is_short && !(values = malloc((size_t)(n_cols > SLICE ? n_cols : SLICE) * sizeof(float))))
        return PL_ENOMEM;
    pl_quantize_job job = {.type = type, .n_rows = n_rows, .n_cols = n_cols, .importance = importance};
    rc = quantize_rows(job, stored, src, dst, values);
    free(values);
    return rc;
}
