// What each thread computes by itself, element by element: no thread here waits for another.
//
// Defines of tinyft/backends/reference.py: relu, relu_grad, dropout, images, running_average; the
// pooling kernels; adam_step and sgd_step. And what surrounds a convolution: `finish` after a
// product by cuBLAS, `turn` and `add_partial` for the two gradients.
typedef REAL real;
#define EACH(i, size) \
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < size; \
         i += gridDim.x * (long long)blockDim.x)

extern "C" __global__ void relu(const real* x, real* out, long long size) {
    EACH(i, size) out[i] = x[i] <= 0 ? 0 : x[i];  // NaN stays
}

extern "C" __global__ void relu_grad(const real* dout, const real* out, real* dx, long long size) {
    EACH(i, size) dx[i] = out[i] <= 0 ? 0 : dout[i];
}

extern "C" __global__ void running_average(
    const real* running, const real* value, real* out, real keep, real weight, long long size) {
    EACH(i, size) out[i] = keep * running[i] + weight * value[i];
}

// Bytes (..., C) as numbers around zero.
extern "C" __global__ void images(
    const unsigned char* pixels, const float* mean, const float* std, real* out, long long size,
    int C) {
    EACH(i, size) out[i] = (pixels[i] / (real)255 - mean[i % C]) / std[i % C];
}

// Philox4x32-10 (tinyft/backends/philox.py): four random words from a counter and a key.
__device__ void philox(unsigned counter[4], unsigned key0, unsigned key1) {
    for (int turn = 0; turn < 10; turn++) {
        unsigned long long first = counter[0] * 0xD2511F53ull, second = counter[2] * 0xCD9E8D57ull;
        unsigned high0 = first >> 32, low0 = first, high1 = second >> 32, low1 = second;
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// Block b of the stream decides about elements 4 b to 4 b + 3: kept if the word is at least
// `threshold`.
extern "C" __global__ void dropout(
    const real* x, real* out, long long size, unsigned threshold, real scale,
    unsigned key0, unsigned key1, unsigned stream0, unsigned stream1) {
    EACH(block, (size + 3) / 4) {
        unsigned words[4] = {(unsigned)block, (unsigned)(block >> 32), stream0, stream1};
        philox(words, key0, key1);
        for (int e = 0; e < 4 && 4 * block + e < size; e++) {
            long long i = 4 * block + e;
            out[i] = words[e] >= threshold ? x[i] * scale : 0;
        }
    }
}

// -------------------------------------------------------------------------- around a convolution

// Into out (rows, F): relu(out + bias + residual), each of the three if it is there.
extern "C" __global__ void finish(
    real* out, const real* bias, const real* residual, long long size, int F, int relu) {
    EACH(i, size) {
        real value = out[i];
        if (bias) value += bias[i % F];
        if (residual) value += residual[i];
        out[i] = relu && value <= 0 ? 0 : value;
    }
}

// turned[r, s, f, c] = weight[R - 1 - r, S - 1 - s, c, f], from (R, S, C, F) to (R, S, wide_F,
// wide_C), with zeros in what is wider: the weight of the convolution that is the gradient of the
// input.
extern "C" __global__ void turn(
    const real* weight, real* turned, int R, int S, int C, int F, int wide_C, int wide_F) {
    const int size = R * S * wide_F * wide_C;
    EACH(at, size) {
        int i = at;  // divided as 32 bits, which is faster
        int c = i % wide_C, f = i / wide_C % wide_F, place = R * S - 1 - i / wide_C / wide_F;
        turned[i] = c < C && f < F ? weight[((size_t)place * C + c) * F + f] : 0;
    }
}

// sum[i] = partial[0, i] + partial[1, i] + ..., always in that order, so that bits repeat.
extern "C" __global__ void add_partial(const real* partial, real* sum, long long size, int shares) {
    EACH(i, size) {
        real total = 0;
        for (int z = 0; z < shares; z++) total += partial[z * size + i];
        sum[i] = total;
    }
}

// ------------------------------------------------------------------------------------------ pooling

// One thread a result. A gradient is gathered: each pixel looks for the windows that chose it.
// Windows that added to their pixels would need atomic additions, whose order changes from run to
// run, and the bits with it.

// Windows of kernel x kernel pixels on x (N, H, W, C); out and place are (N, P, Q, C).
struct Pool { int N, H, W, C, P, Q, kernel, stride, padding; };

// place: r * kernel + s of the first maximum in row-major order. Padding never wins, a NaN does.
extern "C" __global__ void max_pool(const real* x, real* out, unsigned short* place, Pool p) {
    EACH(i, (long long)p.N * p.P * p.Q * p.C) {
        int c = i % p.C, q = i / p.C % p.Q, row = i / p.C / p.Q % p.P, n = i / p.C / p.Q / p.P;
        real best = log((real)0);  // minus infinity, which a window of padding keeps
        int nothing = p.kernel * p.kernel, found = nothing;
        for (int r = 0; r < p.kernel; r++) for (int s = 0; s < p.kernel; s++) {
            int h = row * p.stride + r - p.padding, w = q * p.stride + s - p.padding;
            if (h < 0 || w < 0 || h >= p.H || w >= p.W) continue;
            real pixel = x[(((long long)n * p.H + h) * p.W + w) * p.C + c];
            if (found == nothing || pixel > best || (pixel != pixel && best == best)) {
                best = pixel;
                found = r * p.kernel + s;
            }
        }
        out[i] = best;
        place[i] = found;
    }
}

extern "C" __global__ void max_pool_grad(
    const real* dout, const unsigned short* place, real* dx, Pool p) {
    EACH(i, (long long)p.N * p.H * p.W * p.C) {
        int c = i % p.C, w = i / p.C % p.W, h = i / p.C / p.W % p.H, n = i / p.C / p.W / p.H;
        real sum = 0;
        // Place (r, s) of window (row, q) is this pixel if row * stride + r = h + padding, and so
        // for s, q.
        for (int r = 0; r < p.kernel; r++) for (int s = 0; s < p.kernel; s++) {
            int down = h + p.padding - r, right = w + p.padding - s;
            if (down < 0 || right < 0 || down % p.stride || right % p.stride) continue;
            int row = down / p.stride, q = right / p.stride;
            if (row >= p.P || q >= p.Q) continue;
            long long at = (((long long)n * p.P + row) * p.Q + q) * p.C + c;
            if (place[at] == r * p.kernel + s) sum += dout[at];
        }
        dx[i] = sum;
    }
}

// The pooled arrays are (N, C), x is (N, pixels, C). Neighbouring threads have neighbouring
// channels.
extern "C" __global__ void average_pool(const real* x, real* out, int N, int pixels, int C) {
    EACH(i, (long long)N * C) {
        const real* picture = x + i / C * pixels * C + i % C;
        double sum = 0;
        for (int pixel = 0; pixel < pixels; pixel++) sum += picture[(long long)pixel * C];
        out[i] = sum / pixels;
    }
}

extern "C" __global__ void average_pool_grad(const real* dout, real* dx, int N, int pixels, int C) {
    EACH(i, (long long)N * pixels * C) dx[i] = dout[i / C / pixels * C + i % C] / pixels;
}

extern "C" __global__ void largest(
    const real* x, real* out, long long* place, int N, int pixels, int C) {
    EACH(i, (long long)N * C) {
        const real* picture = x + i / C * pixels * C + i % C;
        real best = picture[0];
        int found = 0;
        for (int pixel = 1; pixel < pixels; pixel++) {
            real value = picture[(long long)pixel * C];
            if (value > best || (value != value && best == best)) { best = value; found = pixel; }
        }
        out[i] = best;
        place[i] = found;
    }
}

extern "C" __global__ void largest_grad(
    const real* dout, const long long* place, real* dx, int N, int pixels, int C) {
    EACH(i, (long long)N * pixels * C) {
        long long pooled = i / C / pixels * C + i % C;
        dx[i] = place[pooled] == i / C % pixels ? dout[pooled] : 0;
    }
}

// --------------------------------------------------------------------------------------- optimizers

// A ResNet has 60 to 160 parameters, most of them small: launching a kernel for each would take
// longer than the arithmetic. So one launch gets a table, and block (i, j) takes elements of the
// table's row j.
struct Update {
    real* parameter;
    const real* gradient;
    real* average;         // of the gradient; for SGD its velocity, or nothing
    real* average_square;  // of its square; Adam only
    long long size;
    real decay, momentum, fresh, square_momentum, square_fresh, correction, rate, eps;
};

// decay = 1 - lr * weight_decay, fresh = 1 - momentum, and the corrections for averages that began
// at 0: correction = 1 - square_momentum^step, rate = lr / (1 - momentum^step).
extern "C" __global__ void adam(const Update* updates) {
    const Update u = updates[blockIdx.y];
    EACH(i, u.size) {
        real g = u.gradient[i];
        real average = u.average[i] * u.momentum + u.fresh * g;
        real square = u.average_square[i] * u.square_momentum + u.square_fresh * (g * g);
        u.average[i] = average;
        u.average_square[i] = square;
        real root = sqrt(square / u.correction);
        u.parameter[i] = u.parameter[i] * u.decay - u.rate * average / (root + u.eps);
    }
}

// rate = lr.
extern "C" __global__ void sgd(const Update* updates) {
    const Update u = updates[blockIdx.y];
    EACH(i, u.size) {
        real step = u.gradient[i];
        if (u.average) step = u.average[i] = u.average[i] * u.momentum + step;
        u.parameter[i] = u.parameter[i] * u.decay - u.rate * step;
    }
}
