/* Norm, rotary embedding, gated activation: each row by itself. */
#include "common.h"

/* Rows worth another thread; below, one computes all. */
enum { PARALLEL_ELEMENTS = 1 << 14 };

API void expertmesh_rms_norm(const void *x, long x_stride, const void *weight, void *y, long y_stride, long rows,
                             long width, float eps, int is_bf16, int weight_bf16, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > PARALLEL_ELEMENTS)
    for (long r = 0; r < rows; r++) {
        __m512 squares = _mm512_setzero_ps();
        for (long i = 0; i < width; i += LANES) {
            const __m512 v = load(x, r * x_stride + i, lanes_left(width - i), is_bf16);
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        const float mean = _mm512_reduce_add_ps(squares) / (float)width;
        const __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
        for (long i = 0; i < width; i += LANES) {
            const __mmask16 mask = lanes_left(width - i);
            const __m512 v = _mm512_mul_ps(load(x, r * x_stride + i, mask, is_bf16), factor);
            store(y, r * y_stride + i, mask, _mm512_mul_ps(v, load(weight, i, mask, weight_bf16)), is_bf16);
        }
    }
}

/* x [rows, 2 * width], gate then up, to y [rows, width]. */
API void expertmesh_swiglu(const void *x, long x_stride, void *y, long rows, long width, int is_bf16, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > PARALLEL_ELEMENTS)
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < width; i += LANES) {
            const __mmask16 mask = lanes_left(width - i);
            store(y, r * width + i, mask,
                  swiglu512(load(x, r * x_stride + i, mask, is_bf16), load(x, r * x_stride + width + i, mask, is_bf16)),
                  is_bf16);
        }
}

/* 16 neighbouring pairs (a, b) from 2 i on, and back. */
INLINE void load_pairs(const void *x, long i, __mmask16 mask, int is_bf16, __m512 *a, __m512 *b) {
    if (is_bf16) {
        const __m512i pairs = _mm512_maskz_loadu_epi32(mask, (const bf16 *)x + i);
        *a = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        *b = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u)));
        return;
    }
    const __m512i pairs_at = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const float *p = (const float *)x + i;
    *a = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, pairs_at, p, 4);
    *b = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, pairs_at, p + 1, 4);
}

INLINE void store_pairs(void *y, long i, __mmask16 mask, int is_bf16, __m512 a, __m512 b) {
    if (is_bf16) {
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
        const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b)), 16);
        _mm512_mask_storeu_epi32((bf16 *)y + i, mask, _mm512_or_si512(low, high));
        return;
    }
    const __m512i pairs_at = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    float *p = (float *)y + i;
    _mm512_mask_i32scatter_ps(p, mask, pairs_at, a, 4);
    _mm512_mask_i32scatter_ps(p + 1, mask, pairs_at, b, 4);
}

/* y [tokens, heads, 2 * half] of x, both with the given strides; cos and sin fp32 [tokens, half]. */
API void expertmesh_rope(const void *x, long token_stride, long head_stride, const float *cos, const float *sin,
                         long angle_stride, void *y, long y_token_stride, long y_head_stride, long tokens, long heads,
                         long half, int interleaved, int is_bf16, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (tokens * heads * half > PARALLEL_ELEMENTS)
    for (long t = 0; t < tokens; t++)
        for (long h = 0; h < heads; h++)
            for (long i = 0; i < half; i += LANES) {
                const __mmask16 mask = lanes_left(half - i);
                const long from = t * token_stride + h * head_stride, to = t * y_token_stride + h * y_head_stride;
                const __m512 c = load(cos, t * angle_stride + i, mask, 0), s = load(sin, t * angle_stride + i, mask, 0);
                __m512 a, b;
                if (interleaved) {
                    load_pairs(x, from + 2 * i, mask, is_bf16, &a, &b);
                } else {
                    a = load(x, from + i, mask, is_bf16);
                    b = load(x, from + half + i, mask, is_bf16);
                }
                const __m512 turned_a = _mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s));
                const __m512 turned_b = _mm512_add_ps(_mm512_mul_ps(b, c), _mm512_mul_ps(a, s));
                if (interleaved) {
                    store_pairs(y, to + 2 * i, mask, is_bf16, turned_a, turned_b);
                } else {
                    store(y, to + i, mask, turned_a, is_bf16);
                    store(y, to + half + i, mask, turned_b, is_bf16);
                }
            }
}
