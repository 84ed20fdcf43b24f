/* An index of lines by their bytes. */
#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#define LONGEST_PAIR 256 /* bytes of two pieces that are put together on the stack */

uint64_t pl_hash_bytes(const uint8_t *p, int64_t n)
{
    uint64_t hash = (uint64_t)n * 0x9e3779b97f4a7c15u, part;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&part, p, 8);
        hash = (hash ^ part) * 0xff51afd7ed558ccdu;
        hash ^= hash >> 32;
    }
    part = 0;
    for (int64_t i = 0; i < n; i++)
        part |= (uint64_t)p[i] << 8 * i;
    hash = (hash ^ part) * 0xff51afd7ed558ccdu;
    return hash ^ hash >> 29;
}

/* Where the line with these bytes is, or would be. */
static pl_line *slot_of(const pl_lines *lines, uint64_t hash, const uint8_t *begin, int64_t length)
{
    const uint64_t mask = (uint64_t)(lines->n_slots - 1);
    for (uint64_t i = hash & mask;; i = (i + 1) & mask) {
        pl_line *line = &lines->slots[i];
        if (line->number < 0 || (line->hash == (uint32_t)(hash >> 32) && line->length == length &&
                                 memcmp(lines->text + line->begin, begin, (size_t)length) == 0))
            return line;
    }
}

int pl_index_lines(pl_lines *lines, const uint8_t *text, int64_t n)
{
    int64_t n_lines = 0;
    for (const uint8_t *p = text; (p = memchr(p, '\n', (size_t)(text + n - p))) != NULL; p++)
        n_lines++;
    if (n > INT32_MAX)
        return PL_EINVAL;
    for (lines->n_slots = 16; lines->n_slots < 2 * n_lines;)
        lines->n_slots *= 2;
    lines->text = text;
    lines->slots = malloc((size_t)lines->n_slots * sizeof *lines->slots);
    if (!lines->slots)
        return PL_ENOMEM;
    memset(lines->slots, 0xff, (size_t)lines->n_slots * sizeof *lines->slots);
    const uint8_t *begin = text;
    for (int32_t number = 0; number < n_lines; number++) {
        const uint8_t *end = memchr(begin, '\n', (size_t)(text + n - begin));
        uint64_t hash = pl_hash_bytes(begin, end - begin);
        pl_line *line = slot_of(lines, hash, begin, end - begin);
        if (line->number < 0)
            *line = (pl_line){(uint32_t)(hash >> 32), number, (int32_t)(begin - text), (int32_t)(end - begin)};
        begin = end + 1;
    }
    return PL_OK;
}

int32_t pl_find_line(const pl_lines *lines, const uint8_t *begin, int64_t length)
{
    return slot_of(lines, pl_hash_bytes(begin, length), begin, length)->number;
}

int32_t pl_find_pair(const pl_lines *lines, const uint8_t *begin, int64_t left, int64_t right)
{
    uint8_t few[LONGEST_PAIR], *pair = left + right < LONGEST_PAIR ? few : malloc((size_t)(left + right) + 1);
    if (!pair)
        return -1;
    memcpy(pair, begin, (size_t)left);
    pair[left] = ' ';
    memcpy(pair + left + 1, begin + left, (size_t)right);
    int32_t number = pl_find_line(lines, pair, left + 1 + right);
    if (pair != few)
        free(pair);
    return number;
}
