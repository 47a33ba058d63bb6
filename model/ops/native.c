/* The operators of model/plain.py between the matrix products, one pass over each row; fp32, rows contiguous.
 *
 * Sums are vectorised by `omp simd`, so the code needs no unsafe math: NaN and infinity go through as they should.
 * Rows are shared among `threads` of torch's own pool; what is summed over rows is summed by thread, then in order. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define NORM_EPS 1e-5f
#define SHARED(entries) if (parallel : threads > 1 && (entries) >= 16384) num_threads(threads) schedule(static)
#define BEGIN(part) (rows * (part) / threads)

/* e^v within 2 units in the last place; inputs are held to [-87, 88], where the result is a normal number. */
static inline float exponential(float v) {
    v = v < -87.0f ? -87.0f : v;
    v = v > 88.0f ? 88.0f : v;
    float n = rintf(v * 1.44269504f);
    float r = v - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* Phi(v), the standard normal distribution, and v times its density: GELU is v * Phi, its slope the sum of both.
 * erf as in Abramowitz & Stegun 7.1.26, within 1.5e-7; its exponential is the density's. */
static inline void gelu_parts(float v, float *share, float *bell) {
    float t = 1.0f / (1.0f + 0.23164189f * fabsf(v));
    float e = exponential(-0.5f * v * v);
    float series =
        ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    float tail = 0.5f * series * e;
    *share = v < 0.0f ? tail : 1.0f - tail;
    *bell = v * e * 0.39894228f;
}

/* Rows of `left` and, behind them, those of `right`, or those that `tokens` pick of it. */
void join(int64_t threads, int64_t rows, int64_t width, int64_t d, const float *left, const float *right,
          const int64_t *tokens, float *joined) {
#pragma omp parallel for SHARED(rows * (width + d))
    for (int64_t row = 0; row < rows; row++) {
        float *line = joined + row * (width + d);
        memcpy(line, left + row * width, width * sizeof(float));
        memcpy(line + width, right + (tokens ? tokens[row] : row) * d, d * sizeof(float));
    }
}

/* LayerNorm(x + GELU(product + term)) of rows of d entries, those of x `stride` entries apart; term is one row, or a
 * table of which `tokens` pick rows.
 * Kept for the way back: the normalised rows, the GELU's slopes in the product's place (what stays in the cache is
 * most of the speed), and each row's inverse deviation. */
void residual_norm(int64_t threads, int64_t rows, int64_t d, int64_t stride, const float *x, float *product,
                   const float *term, const int64_t *tokens, const float *weight, const float *bias, float *out,
                   float *normed, float *rstd) {
#pragma omp parallel for SHARED(rows * d)
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict old = x + row * stride, *restrict shift = tokens ? term + tokens[row] * d : term;
        float *restrict active = product + row * d, *restrict kept = normed + row * d, *restrict made = out + row * d;
        float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < d; c++) {
            float v = active[c] + shift[c], share, bell;
            gelu_parts(v, &share, &bell);
            float total = old[c] + v * share;
            kept[c] = total;
            active[c] = share + bell;
            sum += total;
        }
        float mean = sum / d;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < d; c++) {
            float centred = kept[c] - mean;
            kept[c] = centred;
            squares += centred * centred;
        }
        float scale = 1.0f / sqrtf(squares / d + NORM_EPS);
        rstd[row] = scale;
#pragma omp simd
        for (int64_t c = 0; c < d; c++) {
            float value = kept[c] * scale;
            kept[c] = value;
            made[c] = value * weight[c] + bias[c];
        }
    }
}

/* The rows `from` to `to` of residual_norm_backward; `sums` takes their sums for weight, bias and term.  (3, d) */
static void backward_rows(int64_t from, int64_t to, int64_t d, float *grad, const float *normed, float *slope,
                          const float *rstd, const float *weight, float *restrict sums) {
    float *restrict grad_weight = sums, *restrict grad_bias = sums + d, *restrict grad_term = sums + 2 * d;
    memset(sums, 0, 3 * d * sizeof(float));
    for (int64_t row = from; row < to; row++) {
        const float *restrict kept = normed + row * d;
        float *restrict upper = grad + row * d, *restrict slopes = slope + row * d;
        float along = 0.0f, level = 0.0f;
#pragma omp simd reduction(+ : along, level)
        for (int64_t c = 0; c < d; c++) {
            float scaled = upper[c] * weight[c];
            grad_weight[c] += upper[c] * kept[c];
            grad_bias[c] += upper[c];
            along += scaled * kept[c];
            level += scaled;
        }
        along /= d;
        level /= d;
        float scale = rstd[row];
#pragma omp simd
        for (int64_t c = 0; c < d; c++) {
            float value = (upper[c] * weight[c] - level - kept[c] * along) * scale;
            float on_product = value * slopes[c];
            upper[c] = value;
            slopes[c] = on_product;
            grad_term[c] += on_product;
        }
    }
}

/* Gradients of residual_norm: of x in the place of the upper gradient, of the product in that of the slopes, and
 * summed over the rows those of weight, bias and term; `sums` is scratch.  (threads, 3, d) */
void residual_norm_backward(int64_t threads, int64_t rows, int64_t d, float *grad, const float *normed, float *slope,
                            const float *rstd, const float *weight, float *restrict sums, float *restrict grad_weight,
                            float *restrict grad_bias, float *restrict grad_term) {
#pragma omp parallel for SHARED(rows * d)
    for (int64_t part = 0; part < threads; part++)
        backward_rows(BEGIN(part), BEGIN(part + 1), d, grad, normed, slope, rstd, weight, sums + part * 3 * d);
    float *into[3] = {grad_weight, grad_bias, grad_term};
    for (int which = 0; which < 3; which++) {
        float *restrict total = into[which];
        memcpy(total, sums + which * d, d * sizeof(float));
        for (int64_t part = 1; part < threads; part++) {
            const float *restrict more = sums + (part * 3 + which) * d;
            for (int64_t c = 0; c < d; c++) total[c] += more[c];
        }
    }
}

/* Put a block of new rows into `state`, which holds older ones; the new rows' mean (d), and the sum of their squared
 * distances from it. Returns how many rows changed by less than `limit`, squared and summed. */
int64_t settle(int64_t threads, int64_t rows, int64_t d, float limit, float *state, const float *new_rows,
               double *restrict mean, double *distance) {
    int64_t still = 0;
    memset(mean, 0, d * sizeof(double));
    for (int64_t row = 0; row < rows; row++) {
        float *restrict old = state + row * d;
        const float *restrict new = new_rows + row * d;
        float change = 0.0f;
#pragma omp simd reduction(+ : change)
        for (int64_t c = 0; c < d; c++) {
            float difference = new[c] - old[c];
            change += difference * difference;
            old[c] = new[c];
            mean[c] += new[c];
        }
        still += change < limit;
    }
    for (int64_t c = 0; c < d; c++) mean[c] /= rows;
    *distance = 0.0;
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict new = new_rows + row * d;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < d; c++) {
            float apart = new[c] - (float)mean[c];
            sum += apart * apart;
        }
        *distance += sum;
    }
    return still;
}

/* Logits become `factor` times the cross-entropy's gradient, in place; losses in nats. */
void softmax_gradient(int64_t threads, int64_t rows, int64_t columns, float factor, float *logits,
                      const int64_t *targets, float *losses) {
#pragma omp parallel for SHARED(rows * columns)
    for (int64_t row = 0; row < rows; row++) {
        float *restrict line = logits + row * columns;
        float highest = line[0], sum = 0.0f;
        float at_target = line[targets[row]];
#pragma omp simd reduction(max : highest)
        for (int64_t c = 0; c < columns; c++) highest = line[c] > highest ? line[c] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < columns; c++) {
            float share = exponential(line[c] - highest);
            line[c] = share;
            sum += share;
        }
        losses[row] = logf(sum) + (highest - at_target);
        float scale = factor / sum;
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) line[c] *= scale;
        line[targets[row]] -= factor;
    }
}

/* The Euclidean norm of `count` entries. */
double norm(int64_t threads, int64_t count, const float *values) {
    double total = 0.0;
    for (int64_t begin = 0; begin < count; begin += 4096) { /* short sums in fp32, their sum in fp64 */
        int64_t end = begin + 4096 < count ? begin + 4096 : count;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = begin; c < end; c++) sum += values[c] * values[c];
        total += sum;
    }
    return sqrt(total);
}

/* One step of Adam on `shrink` times the gradient; `rate` and `root` hold the corrections of both moments, `new1` and
 * `new2` the shares of the new gradient in them: 1 - beta, which fp32 cannot take from a beta near 1. */
void adam(int64_t threads, int64_t count, float shrink, float rate, float root, float new1, float new2, float eps,
          float *restrict values, const float *restrict grad, float *restrict mean, float *restrict square) {
#pragma omp parallel for simd SHARED(count)
    for (int64_t c = 0; c < count; c++) {
        float slope = grad[c] * shrink;
        float first = mean[c] + new1 * (slope - mean[c]);
        float second = square[c] + new2 * (slope * slope - square[c]);
        mean[c] = first;
        square[c] = second;
        values[c] -= rate * first / (sqrtf(second) / root + eps);
    }
}
