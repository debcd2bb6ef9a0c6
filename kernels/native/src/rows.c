/* Rows moved by index, grouped by key, and summed with weights. */
#include "common.h"
#include "parallel.h"

static int in_range(const int64_t *index, long n, long limit) {
    for (long i = 0; i < n; i++)
        if (index[i] < 0 || index[i] >= limit) return 0;
    return 1;
}

typedef struct {
    const char *x;
    long x_stride_bytes;
    const int64_t *index;
    long row_bytes;
    char *y;
    long y_stride_bytes;
} Move;

static void gather(const void *job, long first, long end) {
    const Move m = *(const Move *)job;
    for (long i = first; i < end; i++)
        memcpy(m.y + i * m.y_stride_bytes, m.x + m.index[i] * m.x_stride_bytes, m.row_bytes);
}

static void scatter(const void *job, long first, long end) {
    const Move m = *(const Move *)job;
    for (long i = first; i < end; i++)
        memcpy(m.y + m.index[i] * m.y_stride_bytes, m.x + i * m.x_stride_bytes, m.row_bytes);
}

/* y[i] = x[index[i]]; gives 0 and does nothing when an index is not below `x_rows`. */
API int expertmesh_gather_rows(const char *x, long x_stride_bytes, long x_rows, const int64_t *index, long rows,
                               long row_bytes, char *y, long y_stride_bytes, int threads) {
    if (!in_range(index, rows, x_rows)) return 0;
    const Move move = {x, x_stride_bytes, index, row_bytes, y, y_stride_bytes};
    rows_in_parallel(threads, rows, row_bytes, gather, &move);
    return 1;
}

/* y[index[i]] = x[i]; gives 0 and does nothing when an index is not below `y_rows`. */
API int expertmesh_scatter_rows(const char *x, long x_stride_bytes, const int64_t *index, long rows, long row_bytes,
                                char *y, long y_stride_bytes, long y_rows, int threads) {
    if (!in_range(index, rows, y_rows)) return 0;
    const Move move = {x, x_stride_bytes, index, row_bytes, y, y_stride_bytes};
    rows_in_parallel(threads, rows, row_bytes, scatter, &move);
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

typedef struct {
    const void *x;
    long top_k, width;
    const float *weights;
    float *y;
    int is_bf16;
} WeightedSum;

static void weighted_sum(const void *job, long first, long end) {
    const WeightedSum s = *(const WeightedSum *)job;
    for (long t = first; t < end; t++)
        for (long i = 0; i < s.width; i += LANES) {
            const __mmask16 mask = lanes_left(s.width - i);
            __m512 sum = _mm512_setzero_ps();
            for (long k = 0; k < s.top_k; k++)
                sum = _mm512_fmadd_ps(load(s.x, (t * s.top_k + k) * s.width + i, mask, s.is_bf16),
                                      _mm512_set1_ps(s.weights[t * s.top_k + k]), sum);
            store(s.y, t * s.width + i, mask, sum, 0);
        }
}

/* y fp32 [tokens, width] = the sum over k, in order, of weights[token][k] times x[token][k][width]. */
API void expertmesh_weighted_sum(const void *x, long tokens, long top_k, long width, const float *weights, float *y,
                                 int is_bf16, int threads) {
    const WeightedSum sum = {x, top_k, width, weights, y, is_bf16};
    rows_in_parallel(threads, tokens, top_k * width * (is_bf16 ? 2 : 4), weighted_sum, &sum);
}
