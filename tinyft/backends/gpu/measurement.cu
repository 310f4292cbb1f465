// What an update did to a parameter, as sums.
//
// Defines: update_sums of tinyft/backends/reference.py.
typedef REAL real;
#define THREADS 256
#define SUMS 8

// The sum of `value` over the block, in thread 0, added in pairs. All threads must call it.
__device__ double over_block(double value) {
    __shared__ double values[THREADS];
    values[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
        __syncthreads();
    }
    double result = values[0];
    __syncthreads();
    return result;
}

// partial (blocks, 8): each block's sums over its elements.
extern "C" __global__ void update_sums(
    const real* before, const real* after, const real* gradient, double* partial, long long size) {
    double sums[SUMS] = {};
    const long long threads = gridDim.x * (long long)THREADS;
    for (long long i = blockIdx.x * (long long)THREADS + threadIdx.x; i < size; i += threads) {
        double w = before[i], v = after[i], g = gradient[i], d = v - w;
        sums[0] += w * w; sums[1] += v * v; sums[2] += d * d; sums[3] += w * d;
        sums[4] += g * g; sums[5] += g * d; sums[6] += g * w; sums[7] += d != 0;
    }
    for (int i = 0; i < SUMS; i++) {
        double sum = over_block(sums[i]);
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
