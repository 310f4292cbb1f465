// What is computed element by element.
//
// Defines: relu, relu_grad, dropout, images and running_average of tinyft/backends/reference.py,
// and what follows a convolution that cuBLAS computed. No thread here waits for another.
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
