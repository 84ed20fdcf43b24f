/* Scanning the string arrays of a GGUF file's metadata.
 *
 * An array of strings is a sequence of (length, bytes) with no index, so reaching string i means reading all lengths
 * before it. Token lists hold some 10^5 strings. Everything here reads untrusted bytes: each length is compared with
 * what is left of the file before it is used. */
#include "api.h"

#include <string.h>

/* The length field at p: `width` bytes (4 in version 1, 8 later), bytes reversed when `big`. */
static uint64_t read_length(const uint8_t *p, int32_t width, int32_t big)
{
    uint64_t value = 0;
    for (int32_t i = 0; i < width; i++) {
        int32_t shift = 8 * (big ? width - 1 - i : i);
        value |= (uint64_t)p[i] << shift;
    }
    return value;
}

int64_t pl_gguf_scan_strings(const uint8_t *data, uint64_t size, uint64_t start, uint64_t count, int32_t width, int32_t big,
                             uint64_t *offsets, uint64_t *lengths)
{
    if ((width != 4 && width != 8) || start > size || size > INT64_MAX) {
        return PL_EINVAL;
    }
    uint64_t pos = start;
    for (uint64_t i = 0; i < count; i++) {
        if (size - pos < (uint64_t)width) {
            return PL_EINVAL;
        }
        uint64_t length = read_length(data + pos, width, big);
        pos += (uint64_t)width;
        if (size - pos < length) {
            return PL_EINVAL;
        }
        if (offsets) {
            offsets[i] = pos;
        }
        if (lengths) {
            lengths[i] = length;
        }
        pos += length;
    }
    return (int64_t)pos;
}

int64_t pl_gguf_join_strings(const uint8_t *data, uint64_t size, uint64_t count, const uint64_t *offsets, const uint64_t *lengths,
                             uint8_t separator, uint8_t *out, uint64_t out_size)
{
    uint64_t used = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t offset = offsets[i], length = lengths[i];
        if (offset > size || length > size - offset || out_size - used < 1 || length > out_size - used - 1) {
            return PL_EINVAL;
        }
        memcpy(out + used, data + offset, (size_t)length);
        out[used + length] = separator;
        used += length + 1;
    }
    return (int64_t)used;
}
