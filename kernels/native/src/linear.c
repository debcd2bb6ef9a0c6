/* Linear layers, one small product a head, and the routed experts' feed-forward. */
#include "gemm.h"

/* weights [n, k] with the given strides (elements) to panels; `packed` is zeroed by the caller. */
API void expertmesh_pack(const void *weights, long n, long k, long n_stride, long k_stride, int is_bf16, void *packed,
                         int threads) {
    const long lines = panel_lines(k, is_bf16);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long p = 0; p < panels(n); p++) {
        const long lanes = n - p * LANES < LANES ? n - p * LANES : LANES;
        for (long line = 0; line < lines; line++)
            for (long lane = 0; lane < lanes; lane++) {
                char *to = (char *)packed + (p * lines + line) * LINE_BYTES + lane * 4;
                const long row = (p * LANES + lane) * n_stride;
                if (!is_bf16) {
                    memcpy(to, (const float *)weights + row + line * k_stride, 4);
                    continue;
                }
                const bf16 *from = (const bf16 *)weights + row + 2 * line * k_stride;
                if (2 * line < k) memcpy(to, from, 2);
                if (2 * line + 1 < k) memcpy(to + 2, from + k_stride, 2);
            }
    }
}

typedef struct {
    void *y;
    long y_stride, n;
    const void *bias; /* of the weights' type, or NULL */
    int bias_bf16, y_bf16;
} Output;

/* Rows `row` .. `row` + rows - 1 of all columns of panels `first` .. `end` - 1. */
static void rows_by_panels(const Product *product, const Output *out, long row, int rows, long first, long end) {
    float c[BLOCK_ROWS][BLOCK_COLUMNS] __attribute__((aligned(64)));
    for (long panel = first; panel < end; panel += BLOCK_PANELS) {
        const int n_panels = end - panel < BLOCK_PANELS ? (int)(end - panel) : BLOCK_PANELS;
        product_block(product, row, rows, panel, n_panels, c);
        for (int p = 0; p < n_panels; p++) {
            const long column = (panel + p) * LANES;
            const __mmask16 mask = lanes_left(out->n - column);
            const __m512 bias = out->bias ? load(out->bias, column, mask, out->bias_bf16) : _mm512_setzero_ps();
            for (int r = 0; r < rows; r++)
                store(out->y, (row + r) * out->y_stride + column, mask,
                      _mm512_add_ps(_mm512_load_ps(&c[r][p * LANES]), bias), out->y_bf16);
        }
    }
}

/* Rows that stay in the second-level cache while the panels pass by, a few at a time. */
INLINE long cached_rows(long k, int is_bf16) {
    const long rows = (1 << 19) / (padded_k(k, is_bf16) * (is_bf16 ? 2 : 4)) / BLOCK_ROWS * BLOCK_ROWS;
    return rows < BLOCK_ROWS ? BLOCK_ROWS : rows;
}

/* y [rows, n] = x [rows, k] times packed weights [n, k] transposed, plus bias. */
API void expertmesh_linear(const void *x, long x_stride, long rows, long k, const void *weights, long n,
                           const void *bias, void *y, long y_stride, int is_bf16, int y_bf16, int path, int threads) {
    void *owned;
    const void *whole = padded_rows(x, &x_stride, rows, k, is_bf16, &owned);
    const Product product = {whole, x_stride, weights, panel_lines(k, is_bf16), is_bf16, path};
    const Output out = {y, y_stride, n, bias, is_bf16, y_bf16};
    const long cached = cached_rows(k, is_bf16);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        long first, end;
        share(panels(n), thread, threads, &first, &end);
        for (long from = 0; from < rows; from += cached) {
            const long to = rows - from < cached ? rows : from + cached;
            for (long panel = first; panel < end; panel += BLOCK_PANELS)
                for (long row = from; row < to; row += BLOCK_ROWS)
                    rows_by_panels(&product, &out, row, (int)(to - row < BLOCK_ROWS ? to - row : BLOCK_ROWS), panel,
                                   end - panel < BLOCK_PANELS ? end : panel + BLOCK_PANELS);
        }
        product_end(&product);
    }
    free(owned);
}

/* y [rows, heads, n] with strides: head h of x [rows, heads, k] times the h-th of `heads` packed matrices [n, k]. */
API void expertmesh_head_product(const void *x, long x_stride, long x_head_stride, long rows, long heads, long k,
                                 const void *weights, long n, void *y, long y_stride, long y_head_stride, int is_bf16, int path,
                                 int threads) {
    const long matrix_bytes = panels(n) * panel_bytes(k, is_bf16);
    const long n_row_blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long task = 0; task < heads * n_row_blocks; task++) {
        const long head = task / n_row_blocks, row = task % n_row_blocks * BLOCK_ROWS;
        const int n_rows = (int)(rows - row < BLOCK_ROWS ? rows - row : BLOCK_ROWS);
        long stride = x_stride;
        void *owned;
        const void *whole = padded_rows(element(x, row * x_stride + head * x_head_stride, is_bf16), &stride, n_rows, k,
                                        is_bf16, &owned);
        const Product product = {whole, stride, (const char *)weights + head * matrix_bytes, panel_lines(k, is_bf16),
                                 is_bf16, path};
        const Output out = {element(y, row * y_stride + head * y_head_stride, is_bf16), y_stride, n, NULL, is_bf16, is_bf16};
        rows_by_panels(&product, &out, 0, n_rows, 0, panels(n));
        product_end(&product);
        free(owned);
    }
}

/* h = swiglu of panel pairs `first` .. `end` - 1: even panels are gate, odd ones up. */
static void swiglu_panels(const Product *product, void *h, long h_width, long row, int rows, long first, long end) {
    float c[BLOCK_ROWS][BLOCK_COLUMNS] __attribute__((aligned(64)));
    for (long pair = first; pair < end; pair += 2) {
        const int n_pairs = end - pair < 2 ? 1 : 2;
        product_block(product, row, rows, 2 * pair, 2 * n_pairs, c);
        for (int p = 0; p < n_pairs; p++)
            for (int r = 0; r < rows; r++)
                store(h, (row + r) * h_width + (pair + p) * LANES, 0xffff,
                      swiglu512(_mm512_load_ps(&c[r][2 * p * LANES]), _mm512_load_ps(&c[r][(2 * p + 1) * LANES])),
                      product->is_bf16);
    }
}

/* y [rows, d]: every expert's rows through its packed gate_up [2 * f_panels * 16 interleaved by panel, d]
   and down [d, f]. `h` is scratch: rows times padded width of f, which is a whole number of lines. */
API void expertmesh_grouped_ffn(const void *x, long x_stride, long rows, long d, long f, const void *gate_up,
                                const void *down, const long *rows_per_expert, long n_experts, void *h, void *y,
                                int is_bf16, int path, int threads) {
    long *experts = malloc(3 * (n_experts + 1) * sizeof(long)), *starts = experts + n_experts, *counts = starts + n_experts;
    long n_active = 0;
    for (long e = 0, start = 0; e < n_experts; start += rows_per_expert[e++])
        if (rows_per_expert[e]) {
            experts[n_active] = e;
            starts[n_active] = start;
            counts[n_active++] = rows_per_expert[e];
        }
    void *owned;
    const void *whole = padded_rows(x, &x_stride, rows, d, is_bf16, &owned);
    const long pairs = panels(f), h_width = padded_k(pairs * LANES, is_bf16);
    const long up_lines = panel_lines(d, is_bf16), down_lines = panel_lines(f, is_bf16);
    const long up_bytes = 2 * pairs * up_lines * LINE_BYTES, down_bytes = panels(d) * down_lines * LINE_BYTES;
#pragma omp parallel num_threads(threads)
    {
        long first, end;
#pragma omp for schedule(static)
        for (int thread = 0; thread < threads; thread++) {
            share(pairs * n_active, thread, threads, &first, &end);
            for (long unit = first; unit < end;) {
                const long a = unit / pairs, from = unit % pairs;
                const long to = from + (end - unit) < pairs ? from + (end - unit) : pairs;
                const Product product = {element(whole, starts[a] * x_stride, is_bf16), x_stride,
                                         (const char *)gate_up + experts[a] * up_bytes, up_lines, is_bf16, path};
                for (long pair = from; pair < to; pair += 2)
                    for (long row = 0; row < counts[a]; row += BLOCK_ROWS)
                        swiglu_panels(&product, element(h, starts[a] * h_width, is_bf16), h_width, row,
                                      (int)(counts[a] - row < BLOCK_ROWS ? counts[a] - row : BLOCK_ROWS), pair,
                                      to - pair < 2 ? to : pair + 2);
                unit += to - from;
            }
        }
#pragma omp for schedule(static)
        for (int thread = 0; thread < threads; thread++) {
            share(panels(d) * n_active, thread, threads, &first, &end);
            for (long unit = first; unit < end;) {
                const long a = unit / panels(d), from = unit % panels(d);
                const long to = from + (end - unit) < panels(d) ? from + (end - unit) : panels(d);
                const Product product = {element(h, starts[a] * h_width, is_bf16), h_width,
                                         (const char *)down + experts[a] * down_bytes, down_lines, is_bf16, path};
                const Output out = {element(y, starts[a] * d, is_bf16), d, d, NULL, is_bf16, is_bf16};
                for (long panel = from; panel < to; panel += BLOCK_PANELS)
                    for (long row = 0; row < counts[a]; row += BLOCK_ROWS)
                        rows_by_panels(&product, &out, row,
                                       (int)(counts[a] - row < BLOCK_ROWS ? counts[a] - row : BLOCK_ROWS), panel,
                                       to - panel < BLOCK_PANELS ? to : panel + BLOCK_PANELS);
                unit += to - from;
            }
            const Product any = {NULL, 0, NULL, 0, is_bf16, path};
            product_end(&any);
        }
    }
    free(experts);
    free(owned);
}
