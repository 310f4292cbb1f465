// Batch normalisation, forward and backward, with the sum and the ReLU that may follow in the same
// pass.
//
// Defines: batch_norm_train, batch_norm_eval and their gradients of tinyft/backends/reference.py.
//
// x is seen as rows of C channels. A block has 32 neighbouring channels (a line of 128 bytes, the
// unit in which memory is read) and 8 lanes of threads that go through the rows of its share
// together: thread 32 * lane + i has channel 32 * blockIdx.x + i and the rows lane, lane + 8, ...
// of share blockIdx.y. Sums are made in double: each block writes its own, and a second kernel adds
// those in order, so that bits repeat.
//
// A mean of 1000 is off by up to 3e-5 as a float, and so would be everything that is normalised.
// What is missing, `rest`, is subtracted after it: forward it is left of the sum itself, backward
// it is the mean of x - mean. Both only where the mean is the batch's own.
typedef REAL real;
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
extern "C" __global__ void moments(
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

extern "C" __global__ void finish_moments(
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
extern "C" __global__ void normalise(
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
extern "C" __global__ void gradient_sums(
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

extern "C" __global__ void finish_sums(
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
extern "C" __global__ void gradient(
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
