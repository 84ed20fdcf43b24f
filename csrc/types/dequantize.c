/* Blocks to integers (pl_decode32) and to float32 (pl_dequantize).
 *
 * There is one decoder per type, and it gives integers with a scale and a minimum. float32 values follow as
 * scale * q - min, one rounding per operation, which is what the `gguf` Python package computes: scales are products
 * of a binary16 and a few bits (exact in float32), and what it multiplies afterwards are the same integers. */
#include "api.h"
#include "types/types.h"

int pl_decode32(int type, const uint8_t *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_type_info *info = pl_type_find(type);
    if (!info || !info->decode || sub < 0 || sub >= info->block_elements / 32)
        return PL_EINVAL;
    return info->decode(block, sub, q, scale, min);
}

static int dequantize_blocks(const pl_type_info *info, const uint8_t *src, float *dst, int64_t n)
{
    for (; n > 0; n -= info->block_elements, src += info->block_bytes) {
        for (int sub = 0; sub < info->block_elements / 32; sub++, dst += 32) {
            int8_t q[32];
            float scale[2], min[2];
            int rc = info->decode(src, sub, q, scale, min);
            if (rc)
                return rc;
            for (int l = 0; l < 16; l++)
                dst[l] = scale[0] * (float)q[l] - min[0];
            for (int l = 16; l < 32; l++)
                dst[l] = scale[1] * (float)q[l] - min[1];
        }
    }
    return PL_OK;
}

int pl_dequantize(int type, const void *src, float *dst, int64_t n)
{
    const pl_type_info *info = pl_type_find(type);
    if (!info || n < 0 || n % info->block_elements)
        return PL_EINVAL;
    if (n == 0)
        return PL_OK;
    if (!info->is_float)
        return dequantize_blocks(info, src, dst, n);
    info->to_float(src, dst, n);
    return PL_OK;
}
