/* Rows moved by index, grouped by key, and summed with weights. */
#include "common.h"

/* Bytes worth another thread. */
enum { PARALLEL_BYTES = 1 << 18 };

static int in_range(const int64_t *index, long n, long limit) {
    for (long i = 0; i < n; i++)
        if (index[i] < 0 || index[i] >= limit) return 0;
    return 1;
}

/* y[i] = x[index[i]]; gives 0 and does nothing when an index is not below `x_rows`. */
API int expertmesh_gather_rows(const char *x, long x_stride_bytes, long x_rows, const int64_t *index, long rows,
                               long row_bytes, char *y, long y_stride_bytes, int threads) {
    if (!in_range(index, rows, x_rows)) return 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * row_bytes > PARALLEL_BYTES)
    for (long i = 0; i < rows; i++) memcpy(y + i * y_stride_bytes, x + index[i] * x_stride_bytes, row_bytes);
    return 1;
}

/* y[index[i]] = x[i]; gives 0 and does nothing when an index is not below `y_rows`. */
API int expertmesh_scatter_rows(const char *x, long x_stride_bytes, const int64_t *index, long rows, long row_bytes,
                                char *y, long y_stride_bytes, long y_rows, int threads) {
    if (!in_range(index, rows, y_rows)) return 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * row_bytes > PARALLEL_BYTES)
    for (long i = 0; i < rows; i++) memcpy(y + index[i] * y_stride_bytes, x + i * x_stride_bytes, row_bytes);
    return 1;
}

/* A stable counting sort: `order` lists the rows of key 0, then of key 1, and so on; `counts` how many each
   has. Gives 0 and does nothing when a key is not below `groups`. */
API int expertmesh_group_rows(const int64_t *keys, long rows, long groups, int64_t *order, long *counts) {
    if (!in_range(keys, rows, groups)) return 0;
    long *next = calloc(groups + 1, sizeof(long));
    for (long g = 0; g < groups; g++) counts[g] = 0;
    for (long i = 0; i < rows; i++) counts[keys[i]]++;
    for (long g = 0; g + 1 < groups; g++) next[g + 1] = next[g] + counts[g];
    for (long i = 0; i < rows; i++) order[next[keys[i]]++] = i;
    free(next);
    return 1;
}

/* y fp32 [tokens, width] = the sum over k, in order, of weights[token][k] times x[token][k][width]. */
API void expertmesh_weighted_sum(const void *x, long tokens, long top_k, long width, const float *weights, float *y,
                                 int is_bf16, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (tokens * top_k * width > PARALLEL_BYTES)
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < width; i += LANES) {
            const __mmask16 mask = lanes_left(width - i);
            __m512 sum = _mm512_setzero_ps();
            for (long k = 0; k < top_k; k++)
                sum = _mm512_fmadd_ps(load(x, (t * top_k + k) * width + i, mask, is_bf16),
                                      _mm512_set1_ps(weights[t * top_k + k]), sum);
            store(y, t * width + i, mask, sum, 0);
        }
}
