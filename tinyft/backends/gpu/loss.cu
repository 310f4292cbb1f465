// The loss of a classifier.
//
// Defines: softmax_cross_entropy and its gradient of tinyft/backends/reference.py.
//
// A block has one row of logits (N, C), and its threads the classes c = threadIdx.x, + THREADS, ...
typedef REAL real;
#define THREADS 128
#define FOR_CLASSES(c) for (int c = threadIdx.x; c < C; c += THREADS)

// The sum (or largest) of `value` over the block, in every thread: half of the threads add the
// other half's values to their own, and again, always in the same pairs. All threads must call it.
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
    largest = over_block(largest, true);
    FOR_CLASSES(c) sum += exp(row[c] - largest);
    double shift = largest + log(over_block(sum));
    int label = labels[blockIdx.x];
    FOR_CLASSES(c) {
        double log_probability = row[c] - shift, wanted = target(c, label, C, smoothing, weights);
        log_probabilities[(long long)blockIdx.x * C + c] = log_probability;
        if (wanted != 0) loss -= wanted * log_probability;  // 0 * -inf must not become NaN
    }
    loss = over_block(loss);
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = loss;
        row_weights[blockIdx.x] = weights ? weights[label] : 1;
    }
}

// One block: the rows' losses by the rows' weights.
extern "C" __global__ void mean_loss(
    const double* losses, const double* row_weights, real* loss, int N) {
    double sum = 0, weight = 0;
    for (int n = threadIdx.x; n < N; n += THREADS) { sum += losses[n]; weight += row_weights[n]; }
    sum = over_block(sum);
    weight = over_block(weight);
    if (threadIdx.x == 0) *loss = sum / weight;
}

extern "C" __global__ void cross_entropy_grad(
    const real* log_probabilities, const long long* labels, const real* weights, real* dlogits,
    int N, int C, real smoothing) {
    double weight = 0, wanted = 0;
    for (int n = threadIdx.x; n < N; n += THREADS) weight += weights ? weights[labels[n]] : 1;
    weight = over_block(weight);
    int label = labels[blockIdx.x];
    FOR_CLASSES(c) wanted += target(c, label, C, smoothing, weights);
    wanted = over_block(wanted);
    FOR_CLASSES(c) {
        long long at = (long long)blockIdx.x * C + c;
        double probability = exp((double)log_probabilities[at]);
        dlogits[at] = (probability * wanted - target(c, label, C, smoothing, weights)) / weight;
    }
}
