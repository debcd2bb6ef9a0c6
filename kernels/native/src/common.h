/* What every kernel shares: bf16 loads and stores, exp.

   Element types: `is_bf16` is a constant wherever these are inlined. Rows are row-major; strides
   count elements. Every kernel computes a row from that row alone, in one fixed order of
   operations, whatever the number of rows and threads: results are the same bit for bit. */
#ifndef EXPERTMESH_COMMON_H
#define EXPERTMESH_COMMON_H

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

enum { LANES = 16 };

/* The lanes that hold elements when `n` are left. */
INLINE __mmask16 lanes_left(long n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }

INLINE __m512 widen(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

INLINE __m512 load(const void *p, long i, __mmask16 mask, int is_bf16) {
    if (is_bf16) return widen(_mm256_maskz_loadu_epi16(mask, (const bf16 *)p + i));
    return _mm512_maskz_loadu_ps(mask, (const float *)p + i);
}

INLINE void store(void *p, long i, __mmask16 mask, __m512 v, int is_bf16) {
    if (is_bf16)
        _mm256_mask_storeu_epi16((bf16 *)p + i, mask, (__m256i)_mm512_cvtneps_pbh(v));
    else
        _mm512_mask_storeu_ps((float *)p + i, mask, v);
}

INLINE char *element(const void *p, long i, int is_bf16) { return (char *)p + i * (is_bf16 ? 2 : 4); }

/* exp(x), within 2 units in the last place; 0 below the smallest normal number, infinity above the largest. */
INLINE __m512 exp512(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.9875691500e-4f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
    y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    y = _mm512_scalef_ps(y, n);
    y = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_LT_OQ), y,
                             _mm512_setzero_ps());
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(88.8f), _CMP_GT_OQ), y,
                                _mm512_set1_ps(__builtin_inff()));
}

/* 1 / (1 + exp(-x)) */
INLINE __m512 sigmoid512(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 minus_x = _mm512_sub_ps(_mm512_setzero_ps(), x);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp512(minus_x)));
}

/* silu(gate) * up */
INLINE __m512 swiglu512(__m512 gate, __m512 up) {
    return _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid512(gate)), up);
}

#endif
