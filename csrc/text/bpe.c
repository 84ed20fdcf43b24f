/* Byte-level BPE from text to token ids: each word (words.c) is merged once (merge.c) and then remembered. */
#include "text/bpe.h"
#include "text/words.h"

#include <stdlib.h>
#include <string.h>

/* ---- the model ---- */

/* A letter for each byte, GPT-2's alphabet: visible Latin-1 stands for itself, the others for characters from U+0100 on. */
static void find_letters(pl_bpe *bpe)
{
    for (int byte = 0, spare = 0x100; byte < 256; byte++) {
        int visible = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        int code = visible ? byte : spare++, wide = code >= 0x80;
        uint8_t *letter = bpe->letters[byte];
        letter[0] = (uint8_t)(wide ? 0xc0 | code >> 6 : code);
        letter[1] = (uint8_t)(wide ? 0x80 | (code & 0x3f) : 0);
        bpe->missing[byte] = pl_piece_id(bpe, letter, 1 + wide) < 0;
    }
}

static int fill(pl_bpe *bpe, const uint8_t *pieces, int64_t piece_bytes, const uint8_t *hidden, int64_t n_pieces,
                const uint8_t *merges, int64_t merge_bytes)
{
    bpe->text = malloc((size_t)(piece_bytes + merge_bytes) + 1);
    bpe->hidden = malloc((size_t)n_pieces + 1);
    if (!bpe->text || !bpe->hidden)
        return PL_ENOMEM;
    memcpy(bpe->text, pieces, (size_t)piece_bytes);
    memcpy(bpe->text + piece_bytes, merges, (size_t)merge_bytes);
    memcpy(bpe->hidden, hidden, (size_t)n_pieces);
    int code = pl_index_lines(&bpe->pieces, bpe->text, piece_bytes);
    if (code == PL_OK)
        code = pl_index_lines(&bpe->merges, bpe->text + piece_bytes, merge_bytes);
    if (code == PL_OK)
        find_letters(bpe);
    return code;
}

pl_bpe *pl_bpe_new(const uint8_t *pieces, int64_t piece_bytes, const uint8_t *hidden, int64_t n_pieces, const uint8_t *merges,
                   int64_t merge_bytes, int whole_words)
{
    pl_bpe *bpe = calloc(1, sizeof *bpe);
    if (!bpe)
        return NULL;
    bpe->whole_words = whole_words;
    if (fill(bpe, pieces, piece_bytes, hidden, n_pieces, merges, merge_bytes) == PL_OK)
        return bpe;
    pl_bpe_free(bpe);
    return NULL;
}

void pl_bpe_free(pl_bpe *bpe)
{
    if (!bpe)
        return;
    free(bpe->text);
    free(bpe->hidden);
    free(bpe->pieces.slots);
    free(bpe->merges.slots);
    free(bpe);
}

/* ---- words met before ---- */

enum { CACHE_SLOTS = 1 << 17, CACHE_WORDS = 1 << 16, CACHE_BYTES = 1 << 20, LONGEST = 64, KEY = 16, OWN_IDS = 3 };

/* Most words are short and have few ids: all of them is then in one slot, half a cache line. */
typedef struct {
    uint64_t key[2];       /* the bytes and zeros; of a word of more than KEY its hash, and where it begins in `words` */
    int32_t ids[OWN_IDS];  /* if there are more, where they begin in `ids` */
    uint8_t length, n_ids; /* length 0: nothing is here */
} remembered;

struct pl_word_cache {
    remembered *slots;
    uint8_t *words;
    int32_t *ids;
    uint32_t n, n_bytes, n_ids;
};

pl_word_cache *pl_word_cache_new(void)
{
    pl_word_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return NULL;
    cache->slots = calloc(CACHE_SLOTS, sizeof *cache->slots);
    cache->words = malloc(CACHE_BYTES);
    cache->ids = malloc(CACHE_BYTES * sizeof *cache->ids);
    if (cache->slots && cache->words && cache->ids)
        return cache;
    pl_word_cache_free(cache);
    return NULL;
}

void pl_word_cache_free(pl_word_cache *cache)
{
    if (!cache)
        return;
    free(cache->slots);
    free(cache->words);
    free(cache->ids);
    free(cache);
}

/* Of a word of n bytes, with `left` bytes of text from its beginning on: its key -> its hash. */
static inline uint64_t key_of(const uint8_t *word, int64_t n, int64_t left, uint64_t key[2])
{
    if (n > KEY)
        return key[0] = pl_hash_bytes(word, n);
    key[0] = key[1] = 0;
    if (left >= KEY) { /* two loads and masks, in the place of a copy of n bytes (all tiers are little-endian) */
        memcpy(key, word, KEY);
        key[0] &= n < 8 ? ((uint64_t)1 << 8 * n) - 1 : UINT64_MAX;
        key[1] &= n < 8 ? 0 : n < 16 ? ((uint64_t)1 << 8 * (n - 8)) - 1 : UINT64_MAX;
    } else
        memcpy(key, word, (size_t)n);
    uint64_t hash = (key[0] ^ (uint64_t)n << 56) * 0xff51afd7ed558ccdu;
    hash = (hash ^ hash >> 32 ^ key[1]) * 0xc4ceb9fe1a85ec53u;
    return hash ^ hash >> 29;
}

/* Where a word is in the cache, or would be. */
static inline remembered *slot_of(const pl_word_cache *cache, const uint8_t *word, int64_t n, const uint64_t key[2], uint64_t hash)
{
    for (uint64_t i = hash;; i++) {
        remembered *slot = &cache->slots[i & (CACHE_SLOTS - 1)];
        if (!slot->length)
            return slot;
        if (slot->length != n || slot->key[0] != key[0])
            continue;
        if (n <= KEY ? slot->key[1] == key[1] : memcmp(cache->words + slot->key[1], word, (size_t)n) == 0)
            return slot;
    }
}

static void remember(pl_word_cache *cache, const uint8_t *word, int64_t n, uint64_t key[2], uint64_t hash, const int32_t *ids,
                     int64_t n_ids)
{
    if (cache->n == CACHE_WORDS || cache->n_bytes + n > CACHE_BYTES || cache->n_ids + n_ids > CACHE_BYTES) {
        memset(cache->slots, 0, CACHE_SLOTS * sizeof *cache->slots);
        cache->n = cache->n_bytes = cache->n_ids = 0;
    }
    remembered *slot = slot_of(cache, word, n, key, hash);
    *slot = (remembered){{key[0], key[1]}, {(int32_t)cache->n_ids}, (uint8_t)n, (uint8_t)n_ids};
    if (n > KEY) {
        slot->key[1] = cache->n_bytes;
        memcpy(cache->words + cache->n_bytes, word, (size_t)n);
        cache->n_bytes += (uint32_t)n;
    }
    if (n_ids > OWN_IDS) {
        memcpy(cache->ids + cache->n_ids, ids, (size_t)n_ids * sizeof *ids);
        cache->n_ids += (uint32_t)n_ids;
    } else
        memcpy(slot->ids, ids, (size_t)n_ids * sizeof *ids);
    cache->n++;
}

/* The ids of a word, of LONGEST bytes at the most and with `left` bytes of text from its beginning on -> their number,
 * PL_ENOMEM. */
static inline int64_t remembered_ids(const pl_bpe *bpe, pl_word_cache *cache, const uint8_t *word, int64_t n, int64_t left,
                                     int32_t *ids)
{
    uint64_t key[2] = {0, 0}, hash = key_of(word, n, left, key);
    const remembered *slot = slot_of(cache, word, n, key, hash);
    if (!slot->length) {
        int64_t count = pl_merge_word(bpe, word, n, ids);
        if (count >= 0)
            remember(cache, word, n, key, hash, ids, count);
        return count;
    }
    const int32_t *from = slot->n_ids > OWN_IDS ? cache->ids + slot->ids[0] : slot->ids;
    for (int i = 0; i < slot->n_ids; i++)
        ids[i] = from[i];
    return slot->n_ids;
}

int pl_bpe_encode(const pl_bpe *bpe, const pl_words *words, pl_word_cache *cache, const uint8_t *text, int64_t n,
                  pl_encoding *run)
{
    while (run->position < n) {
        const uint8_t *word = text + run->position;
        int64_t end = words ? pl_next_word(words, text, n, run->position) : n;
        if (end < 0) {
            run->block = (int32_t)(-1 - end);
            return PL_ENEEDS_BLOCK;
        }
        int64_t length = end - run->position;
        int32_t *ids = run->ids + run->n_ids;
        int64_t count = cache && length <= LONGEST ? remembered_ids(bpe, cache, word, length, n - run->position, ids)
                                                   : pl_merge_word(bpe, word, length, ids);
        if (count < 0)
            return (int)count;
        run->n_ids += count;
        run->position = end;
    }
    return PL_OK;
}
