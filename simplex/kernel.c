/* Rows of sparsemax (alpha = 2) and entmax-1.5, and the product of their Jacobian with a vector.

   The same Newton iteration as solvers.newton, run only on the scores that can be in the support: those above
   max - 1/(alpha-1). Sums are double. The file includes itself once for float and once for double. */
#ifndef REAL
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define REAL float
#define NAME(f) f##_f32
#include "kernel.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(f) f##_f64
#include "kernel.c"

#else
#define BLOCK 32
#define CHUNK 512

/* b (x - max) of the scores above max - 1/b, in order; returns how many. The difference is taken before it is compared:
   max - 1/b would be rounded to max where the scores have a large common offset. */
static int64_t NAME(candidates)(const REAL *x, int64_t n, REAL max, REAL beta, REAL *z) {
    const REAL reach = -1 / beta;
    int64_t count = 0, i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        int any = 0;
#pragma omp simd reduction(| : any)
        for (int j = 0; j < BLOCK; j++) any |= x[i + j] - max > reach;
        if (!any) continue;
        for (int j = 0; j < BLOCK; j++) {
            z[count] = beta * (x[i + j] - max);
            count += x[i + j] - max > reach;
        }
    }
    for (; i < n; i++) {
        z[count] = beta * (x[i] - max);
        count += x[i] - max > reach;
    }
    return count;
}

/* u = -tau in [n^-b, 1]: the distance from the threshold to the row maximum. */
static double NAME(threshold)(const REAL *z, int64_t count, int root) {
    const double tolerance = sizeof(REAL) == 4 ? 1e-8 : 4e-16;
    double u = 1;
    for (int step = 0; step < 100; step++) {
        double sum = 0, slope = 0, move;
        if (root) {
#pragma omp simd reduction(+ : sum, slope)
            for (int64_t i = 0; i < count; i++) {
                double v = u + z[i];
                v = v > 0 ? v : 0;
                sum += v * v;
                slope += v;
            }
            move = (sum - sqrt(sum)) / slope;
        } else {
#pragma omp simd reduction(+ : sum, slope)
            for (int64_t i = 0; i < count; i++) {
                double v = u + z[i];
                sum += v > 0 ? v : 0;
                slope += v > 0 ? 1 : 0;
            }
            move = (sum - 1) / slope;
        }
        u -= move;
        if (!(move > tolerance * u)) break;
    }
    return u;
}

static void NAME(forward_row)(const REAL *x, REAL *p, int64_t n, int root, REAL *z) {
    REAL max = -INFINITY;
    int bad = 0;
#pragma omp simd reduction(max : max) reduction(| : bad)
    for (int64_t i = 0; i < n; i++) {
        max = x[i] > max ? x[i] : max;
        bad |= !(x[i] < INFINITY);
    }
    if (bad || max == -INFINITY) {
        for (int64_t i = 0; i < n; i++) p[i] = NAN;
        return;
    }
    const REAL beta = root ? (REAL)0.5 : (REAL)1;
    const REAL u = (REAL)NAME(threshold)(z, NAME(candidates)(x, n, max, beta, z), root);
    if (root) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            REAL v = u + beta * (x[i] - max);
            v = v > 0 ? v : 0;
            p[i] = v * v;
        }
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            REAL v = u + (x[i] - max);
            p[i] = v > 0 ? v : 0;
        }
    }
}

static void NAME(backward_row)(const REAL *p, const REAL *g, REAL *out, int64_t n, int root) {
    double product = 0, total = 0;
    for (int64_t from = 0; from < n; from += CHUNK) {
        const int64_t to = from + CHUNK < n ? from + CHUNK : n;
        REAL sg = 0, s = 0;
        if (root) {
#pragma omp simd reduction(+ : sg, s)
            for (int64_t i = from; i < to; i++) {
                const REAL r = (REAL)sqrt(p[i]);
                sg += r * g[i];
                s += r;
            }
        } else {
#pragma omp simd reduction(+ : sg, s)
            for (int64_t i = from; i < to; i++) {
                sg += p[i] > 0 ? g[i] : 0;
                s += p[i] > 0 ? 1 : 0;
            }
        }
        product += sg;
        total += s;
    }
    const REAL mean = (REAL)(product / total);
    if (!(total > 0)) {
        for (int64_t i = 0; i < n; i++) out[i] = NAN;
    } else if (root) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = (REAL)sqrt(p[i]) * (g[i] - mean);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = p[i] > 0 ? g[i] - mean : 0;
    }
}

/* x, p: rows * n, contiguous. root: 1 for alpha = 1.5, 0 for alpha = 2. Returns 0, or 1 when out of memory. */
int NAME(forward)(const REAL *x, REAL *p, int64_t rows, int64_t n, int root, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        REAL *z = malloc((size_t)(n + 1) * sizeof(REAL));
        failed = z == NULL;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            if (z != NULL) NAME(forward_row)(x + row * n, p + row * n, n, root, z);
        free(z);
    }
    return failed;
}

int NAME(backward)(const REAL *p, const REAL *g, REAL *out, int64_t rows, int64_t n, int root, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++)
        NAME(backward_row)(p + row * n, g + row * n, out + row * n, n, root);
    return 0;
}
#endif
