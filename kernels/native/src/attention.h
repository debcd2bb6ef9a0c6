/* What both forms of attention share. */
#ifndef EXPERTMESH_ATTENTION_H
#define EXPERTMESH_ATTENTION_H

#include "common.h"

typedef struct {
    const void *q; /* [tokens, heads, width] with strides */
    long q_token_stride, q_head_stride, heads, width;
    const char *cache; /* entries of `width` elements */
    long block_tokens, value_dim;
    float scale;
    long tile_keys;
    char *y; /* [tokens, heads, value_dim] */
    int is_bf16;
} Attention;

/* Successive queries, one sequence after the other. */
typedef struct {
    const long *tables; /* blocks of each sequence, rows of `table_stride` */
    long table_stride;
    const long *query_lens, *context_lens;
    long n_sequences, n_tokens;
} Sequences;

INLINE const char *cache_entry(const Attention *a, const long *table, long position) {
    const long slot = table[position / a->block_tokens] * a->block_tokens + position % a->block_tokens;
    return element(a->cache, slot * a->width, a->is_bf16);
}

/* 32 values back from the order in which unpacking two rows of bf16 interleaves them. */
INLINE void in_order(__m512 *a, __m512 *b) {
    const __m512 lo = *a, hi = *b;
    const __m512 first = _mm512_shuffle_f32x4(lo, hi, 0x44), second = _mm512_shuffle_f32x4(lo, hi, 0xee);
    *a = _mm512_shuffle_f32x4(first, first, 0xd8); /* lo0 hi0 lo1 hi1 */
    *b = _mm512_shuffle_f32x4(second, second, 0xd8);
}

void attention_avx512(const Attention *a, const Sequences *sequences, int threads);
/* bf16 only; tile_keys must be a multiple of 32. */
void attention_amx(const Attention *a, const Sequences *sequences, int threads);

#endif
