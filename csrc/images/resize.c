/* Bilinear resizing of 8-bit RGB images, bit for bit as Pillow up to 12 resizes them.
 *
 * Each side has its own pass through uint8, the width first: a triangle filter, as wide as the step between two output
 * pixels when shrinking, whose weights are computed in double and rounded to 22-bit fixed point. Rows are narrowed when
 * the second pass first needs them and kept in a ring only as long as it does: a tall image costs no tall buffer. */
#include "api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHANNELS = 3, WEIGHT_BITS = 32 - 8 - 2, MAX_SIDE = 1 << 24 };

typedef struct {
    int32_t max_count; /* weights kept for each output pixel */
    int32_t *starts;   /* (n_out,) the first input pixel */
    int32_t *counts;   /* (n_out,) input pixels */
    int32_t *weights;  /* (n_out, max_count) in units of 2^-22 */
} filter;

static void free_filter(filter *f)
{
    free(f->starts);
    free(f->counts);
    free(f->weights);
}

/* The weights of output pixel i. `scratch`: (max_count,). */
static void fill_weights(filter *f, int32_t i, int32_t n_in, double step, double *scratch)
{
    double width = step < 1.0 ? 1.0 : step; /* half of the triangle's base, in input pixels */
    double inverse = 1.0 / width, center = (i + 0.5) * step, sum = 0.0;
    int32_t start = (int32_t)(center - width + 0.5), end = (int32_t)(center + width + 0.5);
    start = start < 0 ? 0 : start;
    end = end > n_in ? n_in : end;
    for (int32_t k = 0; k < end - start; k++) {
        double distance = fabs((k + start - center + 0.5) * inverse);
        scratch[k] = distance < 1.0 ? 1.0 - distance : 0.0;
        sum += scratch[k];
    }
    f->starts[i] = start;
    f->counts[i] = end - start;
    for (int32_t k = 0; k < end - start; k++) {
        double weight = sum != 0.0 ? scratch[k] / sum : scratch[k];
        f->weights[(int64_t)i * f->max_count + k] = (int32_t)(0.5 + weight * (1 << WEIGHT_BITS));
    }
}

static int make_filter(filter *f, int32_t n_in, int32_t n_out)
{
    double step = (double)n_in / n_out;
    f->max_count = (int32_t)ceil(step < 1.0 ? 1.0 : step) * 2 + 1;
    f->starts = malloc((size_t)n_out * sizeof *f->starts);
    f->counts = malloc((size_t)n_out * sizeof *f->counts);
    f->weights = malloc((size_t)n_out * (size_t)f->max_count * sizeof *f->weights);
    double *scratch = malloc((size_t)f->max_count * sizeof *scratch);
    int ok = f->starts && f->counts && f->weights && scratch;
    for (int32_t i = 0; ok && i < n_out; i++) {
        fill_weights(f, i, n_in, step, scratch);
    }
    free(scratch);
    return ok ? PL_OK : PL_ENOMEM;
}

/* A sum of weights times pixels, which began at one half. No sum is below 0. */
static uint8_t to_pixel(int32_t sum)
{
    int32_t value = sum >> WEIGHT_BITS;
    return (uint8_t)(value > 255 ? 255 : value);
}

/* src (n, 3) -> dst (n_out, 3) */
static void resize_row(const filter *f, const uint8_t *src, uint8_t *dst, int32_t n_out)
{
    for (int32_t i = 0; i < n_out; i++) {
        const int32_t *weights = f->weights + (int64_t)i * f->max_count;
        const uint8_t *pixel = src + (int64_t)f->starts[i] * CHANNELS;
        int32_t red = 1 << (WEIGHT_BITS - 1), green = red, blue = red;
        for (int32_t k = 0; k < f->counts[i]; k++, pixel += CHANNELS) {
            red += weights[k] * pixel[0];
            green += weights[k] * pixel[1];
            blue += weights[k] * pixel[2];
        }
        dst[i * CHANNELS] = to_pixel(red);
        dst[i * CHANNELS + 1] = to_pixel(green);
        dst[i * CHANNELS + 2] = to_pixel(blue);
    }
}

/* The sum of `count` rows of the ring from row `start` of the image on, by their weights. sums, dst: (n_values,) */
static void blend_rows(const uint8_t *ring, int32_t ring_rows, const int32_t *weights, int32_t start, int32_t count, int32_t *sums,
                       uint8_t *dst, int32_t n_values)
{
    for (int32_t j = 0; j < n_values; j++) {
        sums[j] = 1 << (WEIGHT_BITS - 1);
    }
    for (int32_t k = 0; k < count; k++) {
        const uint8_t *row = ring + (int64_t)((start + k) % ring_rows) * n_values;
        int32_t weight = weights[k];
        for (int32_t j = 0; j < n_values; j++) {
            sums[j] += weight * row[j];
        }
    }
    for (int32_t j = 0; j < n_values; j++) {
        dst[j] = to_pixel(sums[j]);
    }
}

int pl_resize_rgb(const uint8_t *src, int32_t height, int32_t width, uint8_t *dst, int32_t new_height, int32_t new_width)
{
    if (height < 1 || width < 1 || new_height < 1 || new_width < 1 || height > MAX_SIDE || width > MAX_SIDE ||
        new_height > MAX_SIDE || new_width > MAX_SIDE) {
        return PL_EINVAL;
    }
    filter columns = {0}, rows = {0};
    uint8_t *ring = NULL;
    int32_t *sums = NULL;
    int code = make_filter(&columns, width, new_width);
    code = code == PL_OK ? make_filter(&rows, height, new_height) : code;
    int32_t n_values = new_width * CHANNELS, ring_rows = rows.max_count < height ? rows.max_count : height;
    if (code == PL_OK) {
        ring = malloc((size_t)ring_rows * (size_t)n_values);
        sums = malloc((size_t)n_values * sizeof *sums);
        code = ring && sums ? PL_OK : PL_ENOMEM;
    }
    for (int32_t i = 0, ready = 0; code == PL_OK && i < new_height; i++) {
        for (; ready < rows.starts[i] + rows.counts[i]; ready++) {
            uint8_t *narrowed = ring + (int64_t)(ready % ring_rows) * n_values;
            resize_row(&columns, src + (int64_t)ready * width * CHANNELS, narrowed, new_width);
        }
        blend_rows(ring, ring_rows, rows.weights + (int64_t)i * rows.max_count, rows.starts[i], rows.counts[i], sums,
                   dst + (int64_t)i * n_values, n_values);
    }
    free(ring);
    free(sums);
    free_filter(&columns);
    free_filter(&rows);
    return code;
}
