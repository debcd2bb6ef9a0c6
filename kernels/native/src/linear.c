/* Linear layers, one small product a head, and the routed experts' feed-forward. */
#include "background.h"
#include "gemm.h"
#include "parallel.h"

/* Parts for each thread: enough that one which is late leaves little for the others to wait for. */
enum { PARTS_PER_THREAD = 4 };

typedef struct {
    const void *weights;
    long n, k, n_stride, k_stride;
    int is_bf16;
    char *packed;
    long panel_step; /* bytes from one packed panel to the next */
} Packing;

static void pack_panels(void *job, Parts *parts) {
    const Packing w = *(const Packing *)job;
    const long lines = panel_lines(w.k, w.is_bf16);
    for (long p; next_part(parts, &p);) {
        const long lanes = w.n - p * LANES < LANES ? w.n - p * LANES : LANES;
        for (long line = 0; line < lines; line++)
            for (long lane = 0; lane < lanes; lane++) {
                char *to = w.packed + p * w.panel_step + line * LINE_BYTES + lane * 4;
                const long row = (p * LANES + lane) * w.n_stride;
                if (!w.is_bf16) {
                    memcpy(to, (const float *)w.weights + row + line * w.k_stride, 4);
                    continue;
                }
                const bf16 *from = (const bf16 *)w.weights + row + 2 * line * w.k_stride;
                if (2 * line < w.k) memcpy(to, from, 2);
                if (2 * line + 1 < w.k) memcpy(to + 2, from + w.k_stride, 2);
            }
    }
}

static void pack_alone(void *job) { in_parallel(1, panels(((Packing *)job)->n), pack_panels, job); }

/* weights [n, k] with the given strides (elements) to panels; `packed` is zeroed by the caller. Of the places
   for panels every `every`-th is filled, so that gate and up can take turns. 0 threads: in the background. */
API void expertmesh_pack(const void *weights, long n, long k, long n_stride, long k_stride, int is_bf16, void *packed,
                         long every, int threads) {
    Packing packing = {weights, n, k, n_stride, k_stride, is_bf16, packed, every * panel_bytes(k, is_bf16)};
    if (threads)
        in_parallel(threads, panels(n), pack_panels, &packing);
    else
        in_background(pack_alone, &packing);
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

/* `units` cut into parts of a whole number of `step`s. */
INLINE long units_per_part(long units, long step, int threads) {
    const long wanted = (units + threads * PARTS_PER_THREAD - 1) / (threads * PARTS_PER_THREAD);
    return (wanted + step - 1) / step * step;
}

typedef struct {
    Product product;
    Output out;
    long rows, cached_rows, panels, panels_per_part, parts_per_row_group;
} LinearJob;

/* Row group after row group, so that one stays in the cache while all threads pass over the panels. */
static void linear_parts(void *job, Parts *parts) {
    const LinearJob j = *(const LinearJob *)job;
    for (long part; next_part(parts, &part);) {
        const long from = part / j.parts_per_row_group * j.cached_rows;
        const long to = j.rows - from < j.cached_rows ? j.rows : from + j.cached_rows;
        const long first = part % j.parts_per_row_group * j.panels_per_part;
        const long end = j.panels - first < j.panels_per_part ? j.panels : first + j.panels_per_part;
        for (long panel = first; panel < end; panel += BLOCK_PANELS)
            for (long row = from; row < to; row += BLOCK_ROWS)
                rows_by_panels(&j.product, &j.out, row, (int)(to - row < BLOCK_ROWS ? to - row : BLOCK_ROWS), panel,
                               end - panel < BLOCK_PANELS ? end : panel + BLOCK_PANELS);
    }
    product_end(&j.product);
}

/* y [rows, n] = x [rows, k] times packed weights [n, k] transposed, plus bias. */
API void expertmesh_linear(const void *x, long x_stride, long rows, long k, const void *weights, long n,
                           const void *bias, void *y, long y_stride, int is_bf16, int y_bf16, int path, int threads) {
    void *owned;
    const void *whole = padded_rows(x, &x_stride, rows, k, is_bf16, &owned);
    LinearJob job = {{whole, x_stride, weights, panel_lines(k, is_bf16), is_bf16, path},
                     {y, y_stride, n, bias, is_bf16, y_bf16},
                     rows, cached_rows(k, is_bf16), panels(n), units_per_part(panels(n), BLOCK_PANELS, threads), 0};
    job.parts_per_row_group = (job.panels + job.panels_per_part - 1) / job.panels_per_part;
    in_parallel(threads, (rows + job.cached_rows - 1) / job.cached_rows * job.parts_per_row_group, linear_parts, &job);
    free(owned);
}

typedef struct {
    const void *x;
    long x_stride, x_head_stride, rows, k;
    const char *weights;
    long n;
    void *y;
    long y_stride, y_head_stride;
    int is_bf16, path;
} HeadProductJob;

static void head_product_parts(void *job, Parts *parts) {
    const HeadProductJob j = *(const HeadProductJob *)job;
    const int is_bf16 = j.is_bf16;
    const long matrix_bytes = panels(j.n) * panel_bytes(j.k, is_bf16);
    const long n_row_blocks = (j.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (long part; next_part(parts, &part);) {
        const long head = part / n_row_blocks, row = part % n_row_blocks * BLOCK_ROWS;
        const int n_rows = (int)(j.rows - row < BLOCK_ROWS ? j.rows - row : BLOCK_ROWS);
        long stride = j.x_stride;
        void *owned;
        const void *whole = padded_rows(element(j.x, row * j.x_stride + head * j.x_head_stride, is_bf16), &stride, n_rows,
                                        j.k, is_bf16, &owned);
        const Product product = {whole, stride, j.weights + head * matrix_bytes, panel_lines(j.k, is_bf16), is_bf16,
                                 j.path};
        const Output out = {element(j.y, row * j.y_stride + head * j.y_head_stride, is_bf16), j.y_stride, j.n, NULL,
                            is_bf16, is_bf16};
        rows_by_panels(&product, &out, 0, n_rows, 0, panels(j.n));
        free(owned);
    }
    const Product any = {NULL, 0, NULL, 0, is_bf16, j.path};
    product_end(&any);
}

/* y [rows, heads, n] with strides: head h of x [rows, heads, k] times the h-th of `heads` packed matrices [n, k]. */
API void expertmesh_head_product(const void *x, long x_stride, long x_head_stride, long rows, long heads, long k,
                                 const void *weights, long n, void *y, long y_stride, long y_head_stride, int is_bf16, int path,
                                 int threads) {
    HeadProductJob job = {x, x_stride, x_head_stride, rows, k, weights, n, y, y_stride, y_head_stride, is_bf16, path};
    in_parallel(threads, heads * ((rows + BLOCK_ROWS - 1) / BLOCK_ROWS), head_product_parts, &job);
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

/* The routed experts' feed-forward, for the `n_active` experts that have rows. */
typedef struct {
    const char *x;
    const void *const *gate_up, *const *down; /* of each expert */
    char *h, *y;
    long x_stride, d, f_pairs, h_width, up_lines, down_lines;
    const long *experts, *starts, *counts; /* of the active: which it is, its first row, its rows */
    long n_active, units_per_part;
    int is_bf16, path;
} ExpertsJob;

/* First half, counted in pairs of panels (gate, up) of one expert after the other. */
static void gate_up_parts(void *job, Parts *parts) {
    const ExpertsJob j = *(const ExpertsJob *)job;
    const long pairs = j.f_pairs;
    for (long part; next_part(parts, &part);) {
        long unit = part * j.units_per_part, end = unit + j.units_per_part;
        if (end > pairs * j.n_active) end = pairs * j.n_active;
        while (unit < end) {
            const long a = unit / pairs, from = unit % pairs;
            const long to = from + (end - unit) < pairs ? from + (end - unit) : pairs;
            const Product product = {element(j.x, j.starts[a] * j.x_stride, j.is_bf16), j.x_stride,
                                     j.gate_up[j.experts[a]], j.up_lines, j.is_bf16, j.path};
            for (long pair = from; pair < to; pair += 2)
                for (long row = 0; row < j.counts[a]; row += BLOCK_ROWS)
                    swiglu_panels(&product, element(j.h, j.starts[a] * j.h_width, j.is_bf16), j.h_width, row,
                                  (int)(j.counts[a] - row < BLOCK_ROWS ? j.counts[a] - row : BLOCK_ROWS), pair,
                                  to - pair < 2 ? to : pair + 2);
            unit += to - from;
        }
    }
    const Product any = {NULL, 0, NULL, 0, j.is_bf16, j.path};
    product_end(&any);
}

/* Second half, counted in panels of one expert after the other. */
static void down_parts(void *job, Parts *parts) {
    const ExpertsJob j = *(const ExpertsJob *)job;
    const long width = panels(j.d);
    for (long part; next_part(parts, &part);) {
        long unit = part * j.units_per_part, end = unit + j.units_per_part;
        if (end > width * j.n_active) end = width * j.n_active;
        while (unit < end) {
            const long a = unit / width, from = unit % width;
            const long to = from + (end - unit) < width ? from + (end - unit) : width;
            const Product product = {element(j.h, j.starts[a] * j.h_width, j.is_bf16), j.h_width,
                                     j.down[j.experts[a]], j.down_lines, j.is_bf16, j.path};
            const Output out = {element(j.y, j.starts[a] * j.d, j.is_bf16), j.d, j.d, NULL, j.is_bf16, j.is_bf16};
            for (long panel = from; panel < to; panel += BLOCK_PANELS)
                for (long row = 0; row < j.counts[a]; row += BLOCK_ROWS)
                    rows_by_panels(&product, &out, row,
                                   (int)(j.counts[a] - row < BLOCK_ROWS ? j.counts[a] - row : BLOCK_ROWS), panel,
                                   to - panel < BLOCK_PANELS ? to : panel + BLOCK_PANELS);
            unit += to - from;
        }
    }
    const Product any = {NULL, 0, NULL, 0, j.is_bf16, j.path};
    product_end(&any);
}

/* y [rows, d]: every expert's rows through its packed gate_up [2 * f_panels * 16, d], whose panels take
   turns, and down [d, f]. `h` is scratch: rows times padded width of f, which is a whole number of lines. */
API void expertmesh_grouped_ffn(const void *x, long x_stride, long rows, long d, long f, const void *const *gate_up,
                                const void *const *down, const long *rows_per_expert, long n_experts, void *h, void *y,
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
    const long pairs = panels(f);
    ExpertsJob job = {whole, gate_up, down, h, y, x_stride, d, pairs, padded_k(pairs * LANES, is_bf16),
                      panel_lines(d, is_bf16), panel_lines(f, is_bf16), experts, starts, counts, n_active,
                      units_per_part(pairs * n_active, 2, threads), is_bf16, path};
    in_parallel(threads, n_active ? (pairs * n_active + job.units_per_part - 1) / job.units_per_part : 0, gate_up_parts, &job);
    job.units_per_part = units_per_part(panels(d) * n_active, BLOCK_PANELS, threads);
    in_parallel(threads, n_active ? (panels(d) * n_active + job.units_per_part - 1) / job.units_per_part : 0, down_parts, &job);
    free(experts);
    free(owned);
}
