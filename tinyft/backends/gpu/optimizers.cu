// The optimizer steps, for many parameters in one launch.
//
// Defines: adam_step and sgd_step of tinyft/backends/reference.py. No thread here waits for
// another.
//
// A ResNet has 60 to 160 parameters, most of them small: launching a kernel for each would take
// longer than the arithmetic. So the kernel gets a table, and block (i, j) takes elements of the
// table's row j.
typedef REAL real;

struct Update {
    real* parameter;
    const real* gradient;
    real* average;         // of the gradient; for SGD its velocity, or nothing
    real* average_square;  // of its square; Adam only
    long long size;
    real decay, momentum, fresh, square_momentum, square_fresh, correction, rate, eps;
};
#define EACH(i) \
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < u.size; \
         i += gridDim.x * (long long)blockDim.x)

// decay = 1 - lr * weight_decay, fresh = 1 - momentum, and the corrections for averages that began
// at 0: correction = 1 - square_momentum^step, rate = lr / (1 - momentum^step).
extern "C" __global__ void adam(const Update* updates) {
    const Update u = updates[blockIdx.y];
    EACH(i) {
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
    EACH(i) {
        real step = u.gradient[i];
        if (u.average) step = u.average[i] = u.average[i] * u.momentum + step;
        u.parameter[i] = u.parameter[i] * u.decay - u.rate * step;
    }
}
