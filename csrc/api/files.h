#ifndef PL_API_FILES_H
#define PL_API_FILES_H
#include "api/status.h"

/* ---- GGUF (gguf_scan.c) ---- */

/* Scans `count` strings from byte `start` of a file of `size` bytes; a string is a length of `width` (4 or 8) bytes,
 * big-endian when `big`, and its bytes. Fills offsets[i] (bytes, from the file's start) and lengths[i] (bytes) where
 * those are not NULL, each `count` long. Returns the byte after the last string; PL_EINVAL when one runs outside. */
int64_t pl_gguf_scan_strings(const uint8_t *data, uint64_t size, uint64_t start, uint64_t count, int32_t width, int32_t big,
                             uint64_t *offsets, uint64_t *lengths);

/* Copies the strings at offsets[i], each followed by `separator`, one after another to `out`.
 * Returns the bytes written; PL_EINVAL when a string is outside `size` or the text outgrows `out_size`. */
int64_t pl_gguf_join_strings(const uint8_t *data, uint64_t size, uint64_t count, const uint64_t *offsets, const uint64_t *lengths,
                             uint8_t separator, uint8_t *out, uint64_t out_size);

/* ---- Mapped files (mapping.c) ---- */

typedef struct pl_mapping pl_mapping;
/* From now on pages of [start, start + bytes), a mapping of a file, read as zeros when the file has lost them, instead of
 * ending the process by SIGBUS. pl_mapping_free comes before the mapping ends. NULL: out of memory. */
pl_mapping *pl_mapping_guard(const void *start, uint64_t bytes);
void pl_mapping_free(pl_mapping *mapping);
/* Pages that were found lost so far. */
int64_t pl_mapping_lost(const pl_mapping *mapping);

/* ---- Images (resize.c) ---- */

/* src (height, width, 3) -> dst (new_height, new_width, 3), bilinear, bit for bit as Pillow up to 12 (width first).
 * PL_EINVAL: a side below 1 or above 2^24. */
int pl_resize_rgb(const uint8_t *src, int32_t height, int32_t width, uint8_t *dst, int32_t new_height, int32_t new_width);

#endif
