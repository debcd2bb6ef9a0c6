/* The choice of experts: scores, groups, the best k; of equals the lowest index. */
#include "common.h"
#include "parallel.h"

#include <math.h>

enum { SELECT_GREEDY = 0, SELECT_GROUP_MAX = 1, SELECT_GROUP_TOP2 = 2 };

/* The index of the largest of n values that are not taken; the first of equals. One must not be taken. */
static long best_of(const float *values, const uint8_t *taken, long n) {
    long best = 0;
    while (taken[best]) best++;
    for (long i = best + 1; i < n; i++)
        if (!taken[i] && values[i] > values[best]) best = i;
    return best;
}

static float group_merit(const float *choice, long size, int selection) {
    float first = -INFINITY, second = -INFINITY;
    for (long i = 0; i < size; i++) {
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return selection == SELECT_GROUP_TOP2 && size > 1 ? first + second : first;
}

static void scores_of(const float *logits, long n, int sigmoid, float *scores) {
    __m512 top = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    if (!sigmoid)
        for (long i = 0; i < n; i += LANES) {
            const __mmask16 mask = lanes_left(n - i);
            top = _mm512_mask_max_ps(top, mask, top, load(logits, i, mask, 0));
        }
    const __m512 max = _mm512_set1_ps(sigmoid ? 0.0f : _mm512_reduce_max_ps(top));
    for (long i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        const __m512 v = load(logits, i, mask, 0);
        const __m512 score = sigmoid ? sigmoid512(v) : exp512(_mm512_sub_ps(v, max));
        store(scores, i, mask, score, 0);
        total = _mm512_mask_add_ps(total, mask, total, score);
    }
    if (sigmoid) return;
    const __m512 sum = _mm512_set1_ps(_mm512_reduce_add_ps(total));
    for (long i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        store(scores, i, mask, _mm512_div_ps(load(scores, i, mask, 0), sum), 0);
    }
}

typedef struct {
    const float *logits;
    long stride;
    const float *bias;
    long experts;
    int sigmoid, selection;
    long top_k, n_groups, top_k_groups;
    int renormalise;
    float scale;
    float *weights;
    int64_t *ids;
} Gate;

static void gate(const void *job, long first, long end) {
    const Gate g = *(const Gate *)job;
    const long size = g.experts / g.n_groups;
    float *scores = malloc((2 * g.experts + g.n_groups) * sizeof(float));
    float *choice = scores + g.experts, *merit = choice + g.experts;
    uint8_t *taken = malloc(g.experts), *kept = malloc(g.n_groups);
    for (long t = first; t < end; t++) {
        scores_of(g.logits + t * g.stride, g.experts, g.sigmoid, scores);
        for (long e = 0; e < g.experts; e++) choice[e] = g.bias ? scores[e] + g.bias[e] : scores[e];
        memset(taken, 0, g.experts);
        if (g.selection != SELECT_GREEDY && g.top_k_groups < g.n_groups) {
            for (long n = 0; n < g.n_groups; n++) merit[n] = group_merit(choice + n * size, size, g.selection);
            memset(kept, 0, g.n_groups);
            for (long i = 0; i < g.top_k_groups; i++) kept[best_of(merit, kept, g.n_groups)] = 1;
            for (long n = 0; n < g.n_groups; n++)
                if (!kept[n]) memset(taken + n * size, 1, size);
        }
        float sum = 0;
        for (long i = 0; i < g.top_k; i++) {
            const long e = best_of(choice, taken, g.experts);
            taken[e] = 1;
            g.ids[t * g.top_k + i] = e;
            g.weights[t * g.top_k + i] = scores[e];
            sum += scores[e];
        }
        for (long i = 0; i < g.top_k; i++) {
            const float weight = g.weights[t * g.top_k + i];
            g.weights[t * g.top_k + i] = (g.renormalise ? weight / (sum + 1e-20f) : weight) * g.scale;
        }
    }
    free(scores);
    free(taken);
    free(kept);
}

/* weights fp32 and ids int64 [tokens, top_k] of logits fp32 [tokens, experts]. */
API void expertmesh_gate(const float *logits, long stride, const float *bias, long tokens, long experts, int sigmoid,
                         int selection, long top_k, long n_groups, long top_k_groups, int renormalise, float scale,
                         float *weights, int64_t *ids, int threads) {
    const Gate job = {logits, stride,   bias,         experts,     sigmoid, selection, top_k,
                      n_groups, top_k_groups, renormalise, scale,   weights,   ids};
    rows_in_parallel(threads, tokens, experts * (long)sizeof(float), gate, &job);
}
