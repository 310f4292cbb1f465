"""Blocked matrix product on packed panels; the register block itself comes from simd.make_microkernel."""

from tinyft.backends.cpu.simd import helper, MR, NR, NV, LANES, make_microkernel

micro_wide = make_microkernel(MR, NV)
micro_narrow = make_microkernel(MR, 1)
micro_wide2 = make_microkernel(2, NV)  # the last rows when M is not a multiple of MR
micro_narrow2 = make_microkernel(2, 1)


@helper
def panel_offset(row, col, rows, cols):
    """Where element (row, col) of a packed rows x cols matrix lives.

    Packed means: cut into panels of NR columns (a last panel of LANES if cols is an odd multiple of LANES);
    each panel is stored row after row, so the micro-kernel reads it with stride one."""
    p = col // NR * NR
    width = NR if p + NR <= cols else LANES
    return p * rows + row * width + (col - p)


@helper
def gemm(A, ao, ars, aks, B, bo, brows, k0, C, co, crs, M, N, K, acc):
    """C[M, N] (+)= A[M, K] @ B[k0 : k0+K, N]; M even, N a multiple of LANES, K >= 1.

    A element (i, k) is at ao + i*ars + k*aks; B is a packed matrix of `brows` rows that starts at bo."""
    full = M - M % MR
    j = 0
    while j + NR <= N:
        b = bo + j * brows + k0 * NR
        for i in range(0, full, MR):
            micro_wide(A, ao + i * ars, ars, aks, B, b, C, co + i * crs + j, crs, K, acc)
        for i in range(full, M, 2):
            micro_wide2(A, ao + i * ars, ars, aks, B, b, C, co + i * crs + j, crs, K, acc)
        j += NR
    if j < N:
        b = bo + j * brows + k0 * LANES
        for i in range(0, full, MR):
            micro_narrow(A, ao + i * ars, ars, aks, B, b, C, co + i * crs + j, crs, K, acc)
        for i in range(full, M, 2):
            micro_narrow2(A, ao + i * ars, ars, aks, B, b, C, co + i * crs + j, crs, K, acc)
