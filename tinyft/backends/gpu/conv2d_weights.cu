// What happens to weights around a convolution: turned round before one, partial sums added after
// one. No thread here waits for another.
typedef REAL real;

// turned[r, s, f, c] = weight[R - 1 - r, S - 1 - s, c, f], from (R, S, C, F) to (R, S, wide_F,
// wide_C), with zeros in what is wider: the weight of the convolution that is the gradient of the
// input.
extern "C" __global__ void turn(
    const real* weight, real* turned, int R, int S, int C, int F, int wide_C, int wide_F) {
    const int size = R * S * wide_F * wide_C;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
        int c = i % wide_C, f = i / wide_C % wide_F, place = R * S - 1 - i / wide_C / wide_F;
        turned[i] = c < C && f < F ? weight[((size_t)place * C + c) * F + f] : 0;
    }
}

// sum[i] = partial[0, i] + partial[1, i] + ..., always in that order, so that bits repeat.
extern "C" __global__ void add_partial(const real* partial, real* sum, long long size, int shares) {
    const long long threads = gridDim.x * (long long)blockDim.x;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < size; i += threads) {
        real total = 0;
        for (int z = 0; z < shares; z++) total += partial[z * size + i];
        sum[i] = total;
    }
}
