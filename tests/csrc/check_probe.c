/* The loops that measure a tier: probe_read must read every word once, and the others must count what they compute. */
#include "check.h"

static void check_read(int blocks, int streams, int64_t ahead)
{
    enum { BLOCK = 1024 }; /* bytes that one step of a stream reads at most: 16 registers */
    size_t bytes = (size_t)(blocks * streams * BLOCK);
    begin_case("probe_read bytes=%d streams=%d ahead=%d", (int)bytes, streams, (int)ahead);
    uint32_t *words = guarded(bytes, 0), want = 0;
    for (size_t i = 0; i < bytes / sizeof *words; i++)
        want += words[i] = random_bits();
    for (int k = 0; k < n_tiers; k++) {
        uint32_t got = tiers[k]->probe_read((const uint8_t *)words, (int64_t)bytes, streams, ahead);
        if (got != want)
            fail(tiers[k], "the words add up to %08x, not %08x", got, want);
    }
    guarded_free(tiers[0], words);
}

/* Operations per round are the tier's own; they must be proportional to the rounds. */
static int64_t units(const pl_kernels *tier, int bits, int64_t rounds)
{
    volatile uint32_t sink = 0;
    return bits ? tier->probe_dot(rounds, bits, &sink) : tier->probe_fma(rounds, &sink);
}

static void check_units(const pl_kernels *tier, int bits) /* 0: probe_fma */
{
    begin_case(bits ? "probe_dot bits=%d" : "probe_fma", bits);
    int64_t one = units(tier, bits, 1), many = units(tier, bits, 1000);
    if (one <= 0 || many != 1000 * one || units(tier, bits, 0) != 0)
        fail(tier, "%lld operations in one round, %lld in 1000", (long long)one, (long long)many);
}

void check_probe(void)
{
    for (int streams = 1; streams <= 4; streams++)
        for (int64_t ahead = 0; ahead <= 4096; ahead += 2048)
            check_read(1 + random_below(5), streams, ahead);
    for (int k = 0; k < n_tiers; k++) {
        check_units(tiers[k], 0);
        for (int bits = 4; bits <= 8; bits++)
            check_units(tiers[k], bits);
        check_units(tiers[k], 16);
    }
}
