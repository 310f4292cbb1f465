// What needs sums over many elements: batch normalisation, the loss, and what an update did.
//
// Defines of tinyft/backends/reference.py: batch_norm_train, batch_norm_eval, their gradients,
// softmax_cross_entropy, its gradient, and update_sums.
//
// Sums are made in double: each block writes its own, and a second kernel adds those in order, so
// that bits repeat.
typedef REAL real;

// The sum (or largest) of `value` over the block, in every thread: half of the threads add the
// other half's values to their own, and again, always in the same pairs. All threads must call it.
template <int THREADS>
__device__ double over_block(double value, bool largest = false) {
    __shared__ double values[THREADS];
    values[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            double other = values[threadIdx.x + half];
            if (!largest) values[threadIdx.x] += other;
            else if (!(values[threadIdx.x] >= other)) values[threadIdx.x] = other;
        }
        __syncthreads();
    }
    double result = values[0];
    __syncthreads();
    return result;
}

// ------------------------------------------------------------------------------- batch normalisation

// x is seen as rows of C channels. A block has 32 neighbouring channels (a line of 128 bytes, the
// unit in which memory is read) and 8 lanes of threads that go through the rows of its share
// together: thread 32 * lane + i has channel 32 * blockIdx.x + i and the rows lane, lane + 8, ...
// of share blockIdx.y. The sum and the ReLU that may follow are made in the same pass.
//
// A mean of 1000 is off by up to 3e-5 as a float, and so would be everything that is normalised.
// What is missing, `rest`, is subtracted after it: forward it is left of the sum itself, backward
// it is the mean of x - mean. Both only where the mean is the batch's own.
#define LANES 8

struct Rows { long long first, end; };  // of this thread; it steps by LANES

__device__ int channel_of() { return blockIdx.x * 32 + threadIdx.x % 32; }

__device__ Rows rows_of(long long rows, int share) {
    long long first = blockIdx.y * (long long)share, end = first + share;
    return {first + threadIdx.x / 32, end < rows ? end : rows};
}

// The sum of `value` over the lanes of this thread's channel, in every thread. All threads must
// call it.
__device__ double over_lanes(double value) {
    __shared__ double lanes[LANES * 32];
    lanes[threadIdx.x] = value;
    __syncthreads();
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane * 32 + threadIdx.x % 32];
    __syncthreads();
    return sum;
}

// partial[share] = two rows of C: sums of x - origin and of its square. The origin, the channel's
// first value, keeps the digits of a small variance beside a large mean.
extern "C" __global__ void batch_norm_moments(
    const real* x, double* partial, long long rows, int C, int share) {
    int c = channel_of();
    Rows r = rows_of(rows, share);
    double sum = 0, square = 0;
    if (c < C) {
        double origin = x[c];
        for (long long row = r.first; row < r.end; row += LANES) {
            double value = x[row * C + c] - origin;
            sum += value;
            square += value * value;
        }
    }
    sum = over_lanes(sum);
    square = over_lanes(square);
    if (c < C && threadIdx.x < 32) {
        partial[(blockIdx.y * 2LL) * C + c] = sum;
        partial[(blockIdx.y * 2LL + 1) * C + c] = square;
    }
}

// The N sums over all shares, in every thread of the channel.
template <int N>
__device__ void total(const double* partial, int shares, int C, int c, double (&sums)[N]) {
    for (int i = 0; i < N; i++) sums[i] = 0;
    for (int share = threadIdx.x / 32; c < C && share < shares; share += LANES)
        for (int i = 0; i < N; i++) sums[i] += partial[((long long)share * N + i) * C + c];
    for (int i = 0; i < N; i++) sums[i] = over_lanes(sums[i]);
}

extern "C" __global__ void batch_norm_finish_moments(
    const double* partial, const real* x, real* mean, real* variance, real* rest, int shares,
    long long rows, int C) {
    int c = channel_of();
    double sums[2];
    total(partial, shares, C, c, sums);
    if (c >= C || threadIdx.x >= 32) return;
    double exact = x[c] + sums[0] / rows;
    mean[c] = exact;
    rest[c] = exact - mean[c];
    variance[c] = (sums[1] - sums[0] * (sums[0] / rows)) / rows;
}

// out = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual), the last two if asked
// for.
extern "C" __global__ void batch_norm_normalise(
    const real* x, const real* weight, const real* bias, const real* mean, const real* variance,
    const real* rest, const real* residual, real* out, long long rows, int C, int share, real eps,
    int relu) {
    int c = channel_of();
    if (c >= C) return;
    real centre = mean[c], scale = weight[c] / sqrt(variance[c] + eps), shift = bias[c];
    real away = rest ? rest[c] : 0;
    Rows r = rows_of(rows, share);
    for (long long row = r.first; row < r.end; row += LANES) {
        long long at = row * C + c;
        real value = (x[at] - centre - away) * scale + shift;
        if (residual) value += residual[at];
        out[at] = relu && value <= 0 ? 0 : value;  // NaN stays
    }
}

// dout where the ReLU let something through, if there was one.
__device__ real passed(const real* dout, const real* out, long long at) {
    return out && out[at] <= 0 ? 0 : dout[at];
}

// partial[share] = three rows of C: sums of dout, of dout * (x - mean) / sqrt(variance + eps), and
// of x - mean.
extern "C" __global__ void batch_norm_gradient_sums(
    const real* dout, const real* x, const real* mean, const real* variance, const real* out,
    double* partial, long long rows, int C, int share, real eps) {
    int c = channel_of();
    Rows r = rows_of(rows, share);
    double sum = 0, product = 0, away = 0;
    if (c < C) {
        real centre = mean[c];
        for (long long row = r.first; row < r.end; row += LANES) {
            long long at = row * C + c;
            real d = passed(dout, out, at);
            sum += d;
            product += (double)d * (x[at] - centre);
            away += x[at] - centre;
        }
        product /= sqrt((double)variance[c] + eps);
    }
    sum = over_lanes(sum);
    product = over_lanes(product);
    away = over_lanes(away);
    if (c < C && threadIdx.x < 32) {
        partial[(blockIdx.y * 3LL) * C + c] = sum;
        partial[(blockIdx.y * 3LL + 1) * C + c] = product;
        partial[(blockIdx.y * 3LL + 2) * C + c] = away;
    }
}

extern "C" __global__ void batch_norm_finish_gradient_sums(
    const double* partial, const real* variance, real* dweight, real* dbias, real* rest, int shares,
    long long rows, int C, real eps, int train) {
    int c = channel_of();
    double sums[3];
    total(partial, shares, C, c, sums);
    if (c >= C || threadIdx.x >= 32) return;
    double missing = train ? sums[2] / rows : 0;
    rest[c] = missing;
    dbias[c] = sums[0];
    dweight[c] = sums[1] - missing / sqrt((double)variance[c] + eps) * sums[0];
}

// dx = weight / std * dout, less (dbias + normalised * dweight) / rows if the statistics were the
// batch's; dresidual, if there was a ReLU to pass, is what is left of dout behind it.
extern "C" __global__ void batch_norm_gradient(
    const real* dout, const real* x, const real* weight, const real* mean, const real* variance,
    const real* rest, const real* out, const real* dweight, const real* dbias, real* dx,
    real* dresidual, long long rows, int C, int share, real eps, int train) {
    int c = channel_of();
    if (c >= C) return;
    real centre = mean[c], inverse_std = 1 / sqrt(variance[c] + eps);
    real scale = weight[c] * inverse_std, constant = train ? dbias[c] / rows : 0;
    real slope = train ? dweight[c] * inverse_std / rows : 0, away = rest[c];
    Rows r = rows_of(rows, share);
    for (long long row = r.first; row < r.end; row += LANES) {
        long long at = row * C + c;
        real d = passed(dout, out, at);
        if (dresidual) dresidual[at] = d;
        dx[at] = train ? (d - constant - (x[at] - centre - away) * slope) * scale : d * scale;
    }
}

// --------------------------------------------------------------------------------------------- loss

#define ROW_THREADS 128
// A block has one row of logits (N, C), its threads the classes c = threadIdx.x, + ROW_THREADS, ...
#define FOR_CLASSES(c) for (int c = threadIdx.x; c < C; c += ROW_THREADS)

// What class c should get: 1 - e on the label and e / C everywhere, times the class's weight.
__device__ double target(int c, int label, int C, double e, const real* weights) {
    return (e / C + (c == label ? 1 - e : 0)) * (weights ? weights[c] : 1);
}

// log_probabilities (N, C), and of each row: the loss, and the weight of its label.
extern "C" __global__ void cross_entropy(
    const real* logits, const long long* labels, const real* weights, real* log_probabilities,
    double* losses, double* row_weights, int C, real smoothing) {
    const real* row = logits + (long long)blockIdx.x * C;
    double largest = row[0], sum = 0, loss = 0;
    FOR_CLASSES(c) if (row[c] > largest) largest = row[c];
    largest = over_block<ROW_THREADS>(largest, true);
    FOR_CLASSES(c) sum += exp(row[c] - largest);
    double shift = largest + log(over_block<ROW_THREADS>(sum));
    int label = labels[blockIdx.x];
    FOR_CLASSES(c) {
        double log_probability = row[c] - shift, wanted = target(c, label, C, smoothing, weights);
        log_probabilities[(long long)blockIdx.x * C + c] = log_probability;
        if (wanted != 0) loss -= wanted * log_probability;  // 0 * -inf must not become NaN
    }
    loss = over_block<ROW_THREADS>(loss);
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = loss;
        row_weights[blockIdx.x] = weights ? weights[label] : 1;
    }
}

// One block: the rows' losses by the rows' weights.
extern "C" __global__ void mean_loss(
    const double* losses, const double* row_weights, real* loss, int N) {
    double sum = 0, weight = 0;
    for (int n = threadIdx.x; n < N; n += ROW_THREADS) { sum += losses[n]; weight += row_weights[n]; }
    sum = over_block<ROW_THREADS>(sum);
    weight = over_block<ROW_THREADS>(weight);
    if (threadIdx.x == 0) *loss = sum / weight;
}

extern "C" __global__ void cross_entropy_grad(
    const real* log_probabilities, const long long* labels, const real* weights, real* dlogits,
    int N, int C, real smoothing) {
    double weight = 0, wanted = 0;
    for (int n = threadIdx.x; n < N; n += ROW_THREADS) weight += weights ? weights[labels[n]] : 1;
    weight = over_block<ROW_THREADS>(weight);
    int label = labels[blockIdx.x];
    FOR_CLASSES(c) wanted += target(c, label, C, smoothing, weights);
    wanted = over_block<ROW_THREADS>(wanted);
    FOR_CLASSES(c) {
        long long at = (long long)blockIdx.x * C + c;
        double probability = exp((double)log_probabilities[at]);
        dlogits[at] = (probability * wanted - target(c, label, C, smoothing, weights)) / weight;
    }
}

// -------------------------------------------------------------------------------------- measurement

#define SUM_THREADS 256
#define SUMS 8

// partial (blocks, 8): each block's sums over its elements.
extern "C" __global__ void update_sums(
    const real* before, const real* after, const real* gradient, double* partial, long long size) {
    double sums[SUMS] = {};
    const long long threads = gridDim.x * (long long)SUM_THREADS;
    for (long long i = blockIdx.x * (long long)SUM_THREADS + threadIdx.x; i < size; i += threads) {
        double w = before[i], v = after[i], g = gradient[i], d = v - w;
        sums[0] += w * w; sums[1] += v * v; sums[2] += d * d; sums[3] += w * d;
        sums[4] += g * g; sums[5] += g * d; sums[6] += g * w; sums[7] += d != 0;
    }
    for (int i = 0; i < SUMS; i++) {
        double sum = over_block<SUM_THREADS>(sums[i]);
        if (threadIdx.x == 0) partial[blockIdx.x * SUMS + i] = sum;
    }
}

// One block: the blocks' sums, added in order.
extern "C" __global__ void finish_update_sums(const double* partial, double* out, int blocks) {
    int i = threadIdx.x;
    if (i >= SUMS) return;
    double sum = 0;
    for (int block = 0; block < blocks; block++) sum += partial[block * SUMS + i];
    out[i] = sum;
}
