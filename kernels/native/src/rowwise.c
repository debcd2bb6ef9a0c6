/* Norm, rotary embedding, gated activation: each row by itself. */
#include "common.h"
#include "parallel.h"

typedef struct {
    const void *x;
    long x_stride;
    const void *weight;
    void *y;
    long y_stride, width;
    float eps;
    int is_bf16, weight_bf16;
} RmsNorm;

static void rms_norm(const void *job, long first, long end) {
    const RmsNorm n = *(const RmsNorm *)job;
    for (long r = first; r < end; r++) {
        __m512 squares = _mm512_setzero_ps();
        for (long i = 0; i < n.width; i += LANES) {
            const __m512 v = load(n.x, r * n.x_stride + i, lanes_left(n.width - i), n.is_bf16);
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        const float mean = _mm512_reduce_add_ps(squares) / (float)n.width;
        const __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + n.eps));
        for (long i = 0; i < n.width; i += LANES) {
            const __mmask16 mask = lanes_left(n.width - i);
            const __m512 v = _mm512_mul_ps(load(n.x, r * n.x_stride + i, mask, n.is_bf16), factor);
            store(n.y, r * n.y_stride + i, mask, _mm512_mul_ps(v, load(n.weight, i, mask, n.weight_bf16)), n.is_bf16);
        }
    }
}

API void expertmesh_rms_norm(const void *x, long x_stride, const void *weight, void *y, long y_stride, long rows,
                             long width, float eps, int is_bf16, int weight_bf16, int threads) {
    const RmsNorm norm = {x, x_stride, weight, y, y_stride, width, eps, is_bf16, weight_bf16};
    rows_in_parallel(threads, rows, width * (is_bf16 ? 2 : 4), rms_norm, &norm);
}

typedef struct {
    const void *x;
    long x_stride;
    void *y;
    long width;
    int is_bf16;
} Swiglu;

static void swiglu(const void *job, long first, long end) {
    const Swiglu s = *(const Swiglu *)job;
    for (long r = first; r < end; r++)
        for (long i = 0; i < s.width; i += LANES) {
            const __mmask16 mask = lanes_left(s.width - i);
            store(s.y, r * s.width + i, mask,
                  swiglu512(load(s.x, r * s.x_stride + i, mask, s.is_bf16),
                            load(s.x, r * s.x_stride + s.width + i, mask, s.is_bf16)),
                  s.is_bf16);
        }
}

/* x [rows, 2 * width], gate then up, to y [rows, width]. */
API void expertmesh_swiglu(const void *x, long x_stride, void *y, long rows, long width, int is_bf16, int threads) {
    const Swiglu job = {x, x_stride, y, width, is_bf16};
    rows_in_parallel(threads, rows, 2 * width * (is_bf16 ? 2 : 4), swiglu, &job);
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

typedef struct {
    const void *x;
    long token_stride, head_stride;
    const float *cos, *sin;
    long angle_stride;
    void *y;
    long y_token_stride, y_head_stride, heads, half;
    int interleaved, is_bf16;
} Rope;

static void rope(const void *job, long first, long end) {
    const Rope r = *(const Rope *)job;
    for (long t = first; t < end; t++)
        for (long h = 0; h < r.heads; h++)
            for (long i = 0; i < r.half; i += LANES) {
                const __mmask16 mask = lanes_left(r.half - i);
                const long from = t * r.token_stride + h * r.head_stride, to = t * r.y_token_stride + h * r.y_head_stride;
                const __m512 c = load(r.cos, t * r.angle_stride + i, mask, 0);
                const __m512 s = load(r.sin, t * r.angle_stride + i, mask, 0);
                __m512 a, b;
                if (r.interleaved) {
                    load_pairs(r.x, from + 2 * i, mask, r.is_bf16, &a, &b);
                } else {
                    a = load(r.x, from + i, mask, r.is_bf16);
                    b = load(r.x, from + r.half + i, mask, r.is_bf16);
                }
                const __m512 turned_a = _mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s));
                const __m512 turned_b = _mm512_add_ps(_mm512_mul_ps(b, c), _mm512_mul_ps(a, s));
                if (r.interleaved) {
                    store_pairs(r.y, to + 2 * i, mask, r.is_bf16, turned_a, turned_b);
                } else {
                    store(r.y, to + i, mask, turned_a, r.is_bf16);
                    store(r.y, to + r.half + i, mask, turned_b, r.is_bf16);
                }
            }
}

/* y [tokens, heads, 2 * half] of x, both with the given strides; cos and sin fp32 [tokens, half]. */
API void expertmesh_rope(const void *x, long token_stride, long head_stride, const float *cos, const float *sin,
                         long angle_stride, void *y, long y_token_stride, long y_head_stride, long tokens, long heads,
                         long half, int interleaved, int is_bf16, int threads) {
    const Rope job = {x, token_stride,   head_stride,   cos,   sin,  angle_stride,
                      y, y_token_stride, y_head_stride, heads, half, interleaved, is_bf16};
    rows_in_parallel(threads, tokens, heads * half * (is_bf16 ? 4 : 8), rope, &job);
}
