// Convolution as one matrix product whose left operand is never built. README.md explains this
// file.
//
// Defines: conv2d, conv2d_input_grad and conv2d_weight_grad of tinyft/backends/reference.py.
//
//   gather        out[m, f]     = sum over k of A(m, k) * weight[k, f]    m = (n, p, q)
//   weight_grad   dweight[k, f] = sum over m of A(m, k) * dout[m, f]      k = (r, s, c)
//
//   A(m, k) = x[n, h / spread, w / spread, c]   h = p * step + r - pad_h   w = q * step + s - pad_w
//             and 0 where that is outside of x, or between two of its pixels
//
// Forward: step = stride, spread = 1. The gradient of the input is a convolution too: x is the
// output's gradient, its pixels spread apart by the stride, step = 1, and the weight is turned
// round (`turn`).
//
// C, and the length of a row of weight or dout, are multiples of 4 (conv2d.py pads), so that every
// load from global memory is 16 bytes (of floats).

// A block computes BM x BN results, BK products at a time; its 8 warps stand 4 x 2, each with WM x
// WN.
#ifndef BM
#define BM 128
#endif
#ifndef BN
#define BN 64
#endif
#define BK 16
#define THREADS 256
#define WM (BM / 4)
#define WN (BN / 2)
// Unrolled, so that small arrays stay in registers.
#define FOR(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)

typedef REAL real;
struct __align__(16) real4 { real x, y, z, w; };
// x is (N, H, W, C), out (N, P, Q, F), the kernel R x S.
struct Problem { int N, H, W, C, P, Q, F, R, S, step, spread, pad_h, pad_w; };

// ------------------------------------------------------------------------- which pixel is A(m, k)?

struct Window { int n, h, w; };   // of a row m: the picture, and the upper left corner in it
struct Tap { int r, s, c; };      // of a column k: the place in the window, and the channel

__device__ Window window_of(const Problem& p, int m) {
    int row = m / p.Q;
    return {row / p.P, row % p.P * p.step - p.pad_h, m % p.Q * p.step - p.pad_w};
}

__device__ Tap tap_of(const Problem& p, int k) {
    int place = k / p.C;
    return {place / p.S, place % p.S, k % p.C};
}

// The loops below step through m or k without a division: there would be more of those than
// products.
__device__ void advance(Window& v, const Problem& p, int by) {
    for (v.w += by * p.step; v.w + p.pad_w >= p.Q * p.step; v.w -= p.Q * p.step) {
        v.h += p.step;
        if (v.h + p.pad_h >= p.P * p.step) { v.h -= p.P * p.step; v.n++; }
    }
}

__device__ void advance(Tap& t, const Problem& p, int by) {
    for (t.c += by; t.c >= p.C; t.c -= p.C) if (++t.s == p.S) { t.s = 0; t.r++; }
}

__device__ real4 zero4() { return {0, 0, 0, 0}; }

// A(m, k) and the next three columns: the only place that knows about padding and strides.
__device__ real4 patch(const real* x, const Problem& p, const Window& v, const Tap& t) {
    int h = v.h + t.r, w = v.w + t.s;
    if (v.n >= p.N || t.r >= p.R || h < 0 || w < 0) return zero4();
    if (p.spread > 1) {
        if (h % p.spread || w % p.spread) return zero4();
        h /= p.spread; w /= p.spread;
    }
    if (h >= p.H || w >= p.W) return zero4();
    return *(const real4*)(x + (((size_t)v.n * p.H + h) * p.W + w) * p.C + t.c);
}

// Four neighbours of a row of a plain matrix (rows, columns).
__device__ real4 line(const real* matrix, int rows, int columns, int i, int j) {
    return i < rows && j < columns ? *(const real4*)(matrix + (size_t)i * columns + j) : zero4();
}

__device__ int padded(int F) { return (F + 3) / 4 * 4; }

// ----------------------------------------------------- a warp's WM x WN results, kept in registers

// step adds As * Bs, BK products deep; their elements lie at As[x * ax + k * ak] and Bs[y * by + k
// * bk]. each(f) calls f(x, y, result) for every result that this thread holds.
#ifdef TF32
// The tensor cores: one instruction multiplies 16 x 8 by 8 x 8. TF32 numbers are floats with 10
// bits of fraction; products are added in float. Which element sits in whose register is the
// instruction's choice (PTX manual, "mma.m16n8k8"): lane 4 g + t of the warp has rows g, g + 8 and
// columns t, t + 4.
#ifndef CPU  // two instructions that C++ has no words for; the tests' stand-in has its own
#define CVT_TF32(u, v) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(v))
#define MMA_TF32(c, a, b) \
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 " \
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), \
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])))
#endif
__device__ real rounded(real v) { unsigned u; CVT_TF32(u, v); return __uint_as_float(u); }
struct Piece {
    real c[WM / 16][WN / 8][4] = {};
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    __device__ void step(const real* As, int ax, int ak, const real* Bs, int by, int bk) {
        _Pragma("unroll") for (int k = t; k < BK; k += 8) {
            real a[WM / 16][4], b[WN / 8][2];
            FOR(i, WM / 16) FOR(e, 4)
                a[i][e] = As[(16 * i + g + e % 2 * 8) * ax + (k + e / 2 * 4) * ak];
            FOR(j, WN / 8) FOR(e, 2) b[j][e] = Bs[(8 * j + g) * by + (k + e * 4) * bk];
            FOR(i, WM / 16) FOR(j, WN / 8) MMA_TF32(c[i][j], a[i], b[j]);
        }
    }
    template <class Each> __device__ void each(Each f) {
        FOR(i, WM / 16) FOR(j, WN / 8) FOR(e, 4)
            f(16 * i + g + e / 2 * 8, 8 * j + 2 * t + e % 2, c[i][j][e]);
    }
};
#else
// Plain multiply-adds: lane 4 g + t has rows g + 8 i and columns t + 4 j.
__device__ real rounded(real v) { return v; }
struct Piece {
    real c[WM / 8][WN / 4] = {};
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    __device__ void step(const real* As, int ax, int ak, const real* Bs, int by, int bk) {
        FOR(k, BK) {
            real a[WM / 8], b[WN / 4];
            FOR(i, WM / 8) a[i] = As[(g + 8 * i) * ax + k * ak];
            FOR(j, WN / 4) b[j] = Bs[(t + 4 * j) * by + k * bk];
            FOR(i, WM / 8) FOR(j, WN / 4) c[i][j] += a[i] * b[j];
        }
    }
    template <class Each> __device__ void each(Each f) {
        FOR(i, WM / 8) FOR(j, WN / 4) f(g + 8 * i, t + 4 * j, c[i][j]);
    }
};
#endif

__device__ void put(real* shared, const real4& v) {
    *(real4*)shared = {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)};
}

// ------------------------------------------------------------------------------------- the kernels

// relu(A * weight + bias + residual), each of the three if it is there.
// Block (i, j) has rows m from BM * i and columns f from BN * j.
extern "C" __global__ void __launch_bounds__(THREADS) gather(
    const real* x, const real* weight, const real* bias, const real* residual, real* out, Problem p,
    int relu) {
    const int LA = BK + 4, LB = BN + 8;  // how far apart rows are: no two lanes meet in a bank
    __shared__ __align__(16) real As[2][BM * LA];
    __shared__ __align__(16) real Bs[2][BK * LB];
    const int M = p.N * p.P * p.Q, K = p.R * p.S * p.C, m0 = blockIdx.x * BM, f0 = blockIdx.y * BN;
    const int wm = threadIdx.x / 64 * WM, wn = threadIdx.x / 32 % 2 * WN;
    // This thread fetches four columns of A from every 64th row, and four of weight from every
    // ROWS-th.
    const int ai = threadIdx.x / 4, ak = threadIdx.x % 4 * 4;
    const int ROWS = THREADS / (BN / 4);
    const int bk = threadIdx.x / (BN / 4), bf = threadIdx.x % (BN / 4) * 4;
    real4 a[BM / 64], b[BK / ROWS];
    Window v[BM / 64];
    FOR(e, BM / 64) v[e] = window_of(p, m0 + ai + 64 * e);
    Tap t = tap_of(p, ak);
    Piece piece;
    // Slice k is fetched while the one before is multiplied.
    for (int k = 0, now = 0; k < K + BK; k += BK, now ^= 1) {
        if (k < K) {
            FOR(e, BM / 64) a[e] = patch(x, p, v[e], t);
            FOR(e, BK / ROWS) b[e] = line(weight, K, padded(p.F), k + bk + ROWS * e, f0 + bf);
            advance(t, p, BK);
        }
        if (k > 0) piece.step(As[now ^ 1] + wm * LA, LA, 1, Bs[now ^ 1] + wn, 1, LB);
        if (k < K) {
            FOR(e, BM / 64) put(As[now] + (ai + 64 * e) * LA + ak, a[e]);
            FOR(e, BK / ROWS) put(Bs[now] + (bk + ROWS * e) * LB + bf, b[e]);
        }
        __syncthreads();
    }
    piece.each([&](int i, int j, real value) {
        int m = m0 + wm + i, f = f0 + wn + j;
        if (m >= M || f >= p.F) return;
        size_t at = (size_t)m * p.F + f;
        if (bias) value += bias[f];
        if (residual) value += residual[at];
        out[at] = relu && value <= 0 ? 0 : value;  // NaN stays
    });
}

// Partial sum z of the weight's gradient, over `share` rows m (a multiple of BK) from share * z.
// Block (i, j, z) has rows k from BM * i and columns f from BN * j.
extern "C" __global__ void __launch_bounds__(THREADS) weight_grad(
    const real* x, const real* dout, real* partial, Problem p, int share) {
    const int LA = BM + 8, LB = BN + 8;
    __shared__ __align__(16) real As[2][BK * LA];
    __shared__ __align__(16) real Bs[2][BK * LB];
    const int M = p.N * p.P * p.Q, K = p.R * p.S * p.C, k0 = blockIdx.x * BM, f0 = blockIdx.y * BN;
    const int first = blockIdx.z * share, end = min(first + share, M);
    const int wm = threadIdx.x / 64 * WM, wn = threadIdx.x / 32 % 2 * WN;
    const int AROWS = THREADS / (BM / 4), BROWS = THREADS / (BN / 4);
    const int am = threadIdx.x / (BM / 4), ak = threadIdx.x % (BM / 4) * 4;
    const int bm = threadIdx.x / (BN / 4), bf = threadIdx.x % (BN / 4) * 4;
    real4 a[BK / AROWS], b[BK / BROWS];
    Window v[BK / AROWS];
    FOR(e, BK / AROWS) v[e] = window_of(p, first + am + AROWS * e);
    const Tap t = tap_of(p, k0 + ak);
    Piece piece;
    for (int m = first, now = 0; m < end + BK; m += BK, now ^= 1) {
        if (m < end) {
            FOR(e, BK / AROWS) { a[e] = patch(x, p, v[e], t); advance(v[e], p, BK); }
            FOR(e, BK / BROWS) b[e] = line(dout, M, padded(p.F), m + bm + BROWS * e, f0 + bf);
        }
        if (m > first) piece.step(As[now ^ 1] + wm, 1, LA, Bs[now ^ 1] + wn, 1, LB);
        if (m < end) {
            FOR(e, BK / AROWS) put(As[now] + (am + AROWS * e) * LA + ak, a[e]);
            FOR(e, BK / BROWS) put(Bs[now] + (bm + BROWS * e) * LB + bf, b[e]);
        }
        __syncthreads();
    }
    piece.each([&](int i, int j, real value) {
        int k = k0 + wm + i, f = f0 + wn + j;
        if (k < K && f < p.F) partial[((size_t)blockIdx.z * K + k) * p.F + f] = value;
    });
}
