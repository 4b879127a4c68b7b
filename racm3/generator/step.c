/* One decoding step: every row of the batch reads one token, through all layers in one call. Several rows may be
   tokens of one sequence that follow each other: they have the same keys and values, and lengths one apart.

   native.py compiles this and calls it; model_runner.py has the same arithmetic in torch, its twin in tests.
   What a step costs is reading the weights, so each is read once for all rows, in the order in which it lies. A row's
   sums run over inputs and tokens in their order, whatever else is in the batch: results are the same bit by bit.

   Letters in shapes: R rows, H heads, G key/value heads, E width of a head, D width, F width of the MLP, S tokens.
   WEIGHT_BYTES: 4 for float32 weights, 2 for bfloat16, 1 for int8; keys and values are float32 with the first, else
   bfloat16. */

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16, PANEL = 32, TILE = 8 }; /* numbers of a vector; outputs and rows that are summed at once */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef vector loose __attribute__((aligned(4))); /* wherever it lies */

#if WEIGHT_BYTES == 4
typedef float number;
typedef float cached;
static inline void widen(const number *p, vector *left, vector *right) {
    *left = *(const vector *)p;
    *right = *(const vector *)(p + LANES);
}
static inline float loaded(cached x) { return x; }
static inline vector lanes(const cached *p) { return *(const loose *)p; }
static inline cached stored(float x) { return x; }
#else
typedef uint16_t cached; /* bfloat16: the upper half of a float32 */
static inline float loaded(cached x) {
    uint32_t whole = (uint32_t)x << 16;
    float result;
    memcpy(&result, &whole, 4);
    return result;
}
typedef cached sixteen __attribute__((vector_size(2 * LANES), aligned(2)));
static inline vector lanes(const cached *p) {
    return (vector)(__builtin_convertvector(*(const sixteen *)p, bits) << 16);
}
static inline cached stored(float x) { /* rounded to the nearest, to the even one of two */
    uint32_t whole;
    memcpy(&whole, &x, 4);
    return (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
}
#if WEIGHT_BYTES == 2
typedef uint16_t number;
typedef number numbers __attribute__((vector_size(2 * LANES)));
static inline void widen(const number *p, vector *left, vector *right) {
    *left = (vector)(__builtin_convertvector(*(const numbers *)p, bits) << 16);
    *right = (vector)(__builtin_convertvector(*(const numbers *)(p + LANES), bits) << 16);
}
#else
typedef int8_t number;
typedef uint16_t pairs __attribute__((vector_size(2 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
/* Left and right lie in turns. Taken as the upper of four bytes they are 2^24 times as large; scales make up for it. */
static inline void widen(const number *p, vector *left, vector *right) {
    const bits pair = __builtin_convertvector(*(const pairs *)p, bits);
    *left = __builtin_convertvector((integers)(pair << 24), vector);
    *right = __builtin_convertvector((integers)(pair >> 8 << 24), vector);
}
#endif
#endif

typedef struct {
    const number *panels; /* (outputs / PANEL, inputs, PANEL), filled up with zeros */
    const float *scales;  /* (outputs,) filled up, of int8 */
    int64_t inputs, outputs;
} Matrix;

typedef struct {
    Matrix qkv, out, gate_up, down; /* gate_up: each panel is half gate, half up */
    const float *head_scales;       /* (H + G, E): norm weights of queries and keys */
} Layer;

typedef struct { /* where a row's keys and values lie: of layer 0 (G, room, E), the next layer's a stride further on */
    cached *keys, *values;
    int64_t stride, room, length;
    const cached *shared_keys, *shared_values; /* the same of the prompt before them */
    int64_t shared_stride, shared_room, shared_length;
} Row;

typedef struct {
    int64_t layers, width, heads, groups, head_dim, mlp_width;
    float floor, head_floor; /* what norms add to the sum of squares */
} Shape;

/* out (rows, PANEL) = x (rows, inputs) times a panel. */
static inline __attribute__((always_inline)) void
tile(int rows, const Matrix *m, int64_t panel, const float *x, float *out) {
    const int64_t inputs = m->inputs;
    const number *w = m->panels + panel * inputs * PANEL;
    vector left[TILE] = {0}, right[TILE] = {0};
    for (int64_t k = 0; k < inputs; k++, w += PANEL) {
        vector a, b;
        widen(w, &a, &b);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            left[r] += a * x[r * inputs + k];
            right[r] += b * x[r * inputs + k];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        memcpy(out + r * PANEL, &left[r], sizeof(vector));
        memcpy(out + r * PANEL + LANES, &right[r], sizeof(vector));
#if WEIGHT_BYTES == 1
        for (int i = 0; i < PANEL; i++) out[r * PANEL + i] *= m->scales[panel * PANEL + i];
#endif
    }
}

/* As many of the rows as fit in a tile; returns how many. */
static int tiled(int64_t rows, const Matrix *m, int64_t panel, const float *x, float *out) {
    switch (rows) {
        case 1: return tile(1, m, panel, x, out), 1;
        case 2: return tile(2, m, panel, x, out), 2;
        case 3: return tile(3, m, panel, x, out), 3;
        case 4: return tile(4, m, panel, x, out), 4;
        case 5: return tile(5, m, panel, x, out), 5;
        case 6: return tile(6, m, panel, x, out), 6;
        case 7: return tile(7, m, panel, x, out), 7;
        default: return tile(TILE, m, panel, x, out), TILE;
    }
}

static float squares(const float *x, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

/* e^x for x <= 0, or any that does not overflow: 2^n times a polynomial (Cephes' expf). */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = rintf(x * 1.44269504f), f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    const uint32_t power = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &power, 4);
    return p * scale;
}

/* Norm and rotary position of one head (E,), whose pairs lie beside each other; angles are (cos, sin) of each pair. */
static void turn(float *head, const float *scales, const float *angles, int64_t width, float floor) {
    const float unit = 1.0f / sqrtf(squares(head, width) + floor);
#pragma omp simd
    for (int64_t i = 0; i < width; i += 2) {
        const float a = head[i] * unit * scales[i], b = head[i + 1] * unit * scales[i + 1];
        head[i] = a * angles[i] - b * angles[i + 1];
        head[i + 1] = a * angles[i + 1] + b * angles[i];
    }
}

/* The sum of a vector's numbers, half by half. */
static inline float total(vector v) {
    typedef float half __attribute__((vector_size(2 * LANES)));
    typedef float quarter __attribute__((vector_size(LANES)));
    const union { vector whole; half halves[2]; } x = {v};
    const union { half whole; quarter quarters[2]; } y = {x.halves[0] + x.halves[1]};
    const quarter z = y.quarters[0] + y.quarters[1];
    return z[0] + z[2] + (z[1] + z[3]);
}

/* The product of a query and a key, (E,): whole vectors first, in their order, then what is left. */
static inline float product_of(const float *q, const cached *key, int64_t width) {
    vector sum = {0};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) sum += *(const loose *)(q + i) * lanes(key + i);
    float result = total(sum);
    for (; i < width; i++) result += q[i] * loaded(key[i]);
    return result;
}

/* scores (tokens,) of a query; returns the largest of them and of `largest`. */
static float scored(const float *q, const cached *keys, int64_t tokens, int64_t width, float *scores, float largest) {
    for (int64_t t = 0; t < tokens; t++) {
        scores[t] = product_of(q, keys + t * width, width);
        largest = scores[t] > largest ? scores[t] : largest;
    }
    return largest;
}

/* `count` vectors of y += the sum of values, each times its weight, token after token. */
static inline __attribute__((always_inline)) void
summed(int count, const float *weights, const cached *values, int64_t tokens, int64_t width, float *y) {
    vector sums[4];
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) sums[j] = *(const loose *)(y + j * LANES);
    for (int64_t t = 0; t < tokens; t++, values += width)
#pragma GCC unroll 4
        for (int j = 0; j < count; j++) sums[j] += weights[t] * lanes(values + j * LANES);
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) *(loose *)(y + j * LANES) = sums[j];
}

/* y (E,) += the sum of values, each times its weight. */
static void gathered(const float *weights, const cached *values, int64_t tokens, int64_t width, float *y) {
    int64_t i = 0;
    for (int64_t left; (left = (width - i) / LANES); i += (left > 4 ? 4 : left) * LANES) switch (left) {
            case 1: summed(1, weights, values + i, tokens, width, y + i); break;
            case 2: summed(2, weights, values + i, tokens, width, y + i); break;
            case 3: summed(3, weights, values + i, tokens, width, y + i); break;
            default: summed(4, weights, values + i, tokens, width, y + i);
        }
    if (i < width)
        for (int64_t t = 0; t < tokens; t++, values += width)
            for (int64_t j = i; j < width; j++) y[j] += weights[t] * loaded(values[j]);
}

/* Keep one row's key and value of one key/value head: qkv (H + 2 G, E) of the row. */
static void keep(const Shape *s, const Layer *layer, int64_t number_of_layer, const Row *row, int64_t group, float *qkv,
                 const float *angles) {
    const int64_t E = s->head_dim;
    const int64_t place = number_of_layer * row->stride + (group * row->room + row->length) * E;
    float *k = qkv + (s->heads + group) * E, *v = k + s->groups * E;
    turn(k, layer->head_scales + (s->heads + group) * E, angles, E, s->head_floor);
    for (int64_t i = 0; i < E; i++) {
        row->keys[place + i] = stored(k[i]);
        row->values[place + i] = stored(v[i]);
    }
}

/* What one row's queries of one key/value head see: qkv (H + 2 G, E) of the row -> its y (H, E). */
static void attend(const Shape *s, const Layer *layer, int64_t number_of_layer, const Row *row, int64_t group,
                   float *qkv, const float *angles, float *scores, float *y) {
    const int64_t E = s->head_dim, per_group = s->heads / s->groups;
    const int64_t own = number_of_layer * row->stride + group * row->room * E;
    const int64_t shared = number_of_layer * row->shared_stride + group * row->shared_room * E;
    const cached *keys = row->keys + own, *values = row->values + own;
    const int64_t before = row->shared_length, after = row->length + 1, tokens = before + after;
    for (int64_t head = group * per_group; head < (group + 1) * per_group; head++) {
        float *q = qkv + head * E, *seen = y + head * E;
        turn(q, layer->head_scales + head * E, angles, E, s->head_floor);
        const float root = 1.0f / sqrtf((float)E);
        for (int64_t i = 0; i < E; i++) q[i] *= root, seen[i] = 0;
        float largest = -INFINITY, sum = 0;
        largest = scored(q, row->shared_keys + shared, before, E, scores, largest);
        largest = scored(q, keys, after, E, scores + before, largest);
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < tokens; t++) sum += scores[t] = exponential(scores[t] - largest);
        gathered(scores, row->shared_values + shared, before, E, seen);
        gathered(scores + before, values, after, E, seen);
        for (int64_t i = 0; i < E; i++) seen[i] /= sum;
    }
}

enum finish { STORE, ADD, GATE };

/* y = x (count, inputs) times a matrix, each row times its unit (NULL: 1); ADD: y += that; GATE: y = silu(gate) * up. */
static void multiply(const Matrix *m, const float *x, int64_t count, const float *units, enum finish finish, float *y) {
    const int64_t width = finish == GATE ? LANES : PANEL; /* outputs of a panel */
#pragma omp for schedule(dynamic)
    for (int64_t start = 0; start < m->outputs; start += width) {
        const int64_t columns = m->outputs - start < width ? m->outputs - start : width;
        float sums[TILE * PANEL] __attribute__((aligned(64)));
        for (int64_t r = 0, n; r < count; r += n) {
            n = tiled(count - r, m, start / width, x + r * m->inputs, sums);
            for (int64_t i = 0; i < n; i++) {
                const float unit = units ? units[r + i] : 1.0f, *sum = sums + i * PANEL;
                float *out = y + (r + i) * m->outputs + start;
                if (finish == STORE)
                    for (int64_t j = 0; j < columns; j++) out[j] = sum[j] * unit;
                else if (finish == ADD)
                    for (int64_t j = 0; j < columns; j++) out[j] += sum[j] * unit;
                else
                    for (int64_t j = 0; j < columns; j++) {
                        const float gate = sum[j] * unit;
                        out[j] = gate / (1.0f + exponential(-gate)) * (sum[LANES + j] * unit);
                    }
            }
        }
    }
}

/* What norms multiply with, of each row of x (count, width). */
static void measure(const float *x, int64_t count, int64_t width, float floor, float *units) {
    for (int64_t r = 0; r < count; r++) units[r] = 1.0f / sqrtf(squares(x + r * width, width) + floor);
}

/* x (count, D): embeddings of the tokens in, their hidden states out. angles (positions, E), scores (threads, most_tokens).
   qkv (count, H + 2 G, E), y (count, H, E), hidden (count, F) and units (threads, count) are for use. */
void step(const Shape *s, const Layer *layers, const Row *rows, int64_t count, const float *angles, float *x,
          float *qkv, float *y, float *hidden, float *units, float *scores, int64_t most_tokens, int threads) {
    const int64_t E = s->head_dim, inner = s->heads * E, all = inner + 2 * s->groups * E;
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
        float *own_units = units + me * count, *own_scores = scores + me * most_tokens;
        for (int64_t l = 0; l < s->layers; l++) {
            const Layer *layer = &layers[l];
            measure(x, count, s->width, s->floor, own_units);
            multiply(&layer->qkv, x, count, own_units, STORE, qkv);
#pragma omp for schedule(static)
            for (int64_t item = 0; item < count * s->groups; item++) { /* all, before a row sees those of others */
                const int64_t r = item % count;
                const float *turned = angles + (rows[r].shared_length + rows[r].length) * E;
                keep(s, layer, l, &rows[r], item / count, qkv + r * all, turned);
            }
#pragma omp for schedule(dynamic)
            for (int64_t item = 0; item < count * s->groups; item++) { /* rows of one head together: they may share */
                const int64_t r = item % count;
                const float *turned = angles + (rows[r].shared_length + rows[r].length) * E;
                attend(s, layer, l, &rows[r], item / count, qkv + r * all, turned, own_scores, y + r * inner);
            }
            multiply(&layer->out, y, count, NULL, ADD, x);
            measure(x, count, s->width, s->floor, own_units);
            multiply(&layer->gate_up, x, count, own_units, GATE, hidden);
            multiply(&layer->down, hidden, count, NULL, ADD, x);
        }
    }
}

/* out (count, outputs) = the norm of x (count, inputs) times a matrix. units (threads, count) are for use. */
void product(const Matrix *m, const float *x, int64_t count, float floor, float *units, float *out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float *own_units = units + omp_get_thread_num() * count;
        measure(x, count, m->inputs, floor, own_units);
        multiply(m, x, count, own_units, STORE, out);
    }
}
