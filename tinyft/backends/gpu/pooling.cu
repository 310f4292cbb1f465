// Pooling: the largest of each window, the mean and the largest of a whole picture, and their
// gradients.
//
// Defines: max_pool2d, global_average_pool, global_max_pool and their gradients of
// tinyft/backends/reference.py.
//
// One thread a result, and no thread waits for another. A gradient is gathered: each pixel looks
// for the windows that chose it. Windows that added to their pixels would need atomic additions,
// whose order changes from run to run, and the bits with it.
typedef REAL real;
#define EACH(i, size) \
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < size; \
         i += gridDim.x * (long long)blockDim.x)

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
