// argmax: index of the largest value of each row, the lowest where several are equal, 0 if none is above −∞; and whether a value is NaN or
// +∞. Blocks share a row: the largest of a 64-bit key (value, then the lowest index) is found by atomics, in any order the same.
struct ArgmaxArgs {
    const float* values;   // [m, width]
    u64* best;             // [m, 2]: key; 1 if a value is NaN or +∞
    u32 width;
    u32 unused;
};

extern "C" __global__ void __launch_bounds__(256) argmax_begin(const ArgmaxArgs a) {
    await_predecessors();
    admit_successor();
    const u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < a.width) a.best[index] = 0;
}

extern "C" __global__ void __launch_bounds__(256) argmax(const ArgmaxArgs a) {
    __shared__ u64 keys[8];
    await_predecessors();
    admit_successor();
    const float* row = a.values + (u64)blockIdx.y * a.width;
    float best = NEGATIVE_INFINITY;
    u32 index = 0;
    int damaged = 0;
#pragma unroll 4
    for (u32 column = blockIdx.x * blockDim.x + threadIdx.x; column < a.width; column += gridDim.x * blockDim.x) {
        const float value = row[column];
        damaged |= !(value < __int_as_float(0x7f800000));
        if (value > best) {
            best = value;
            index = column;
        }
    }
    // −∞ has key 0 and index 0, which is also what stands there at the beginning.
    // + 0: the two zeros are equal.
    const u32 bits = __float_as_int(best + 0.0f);
    u64 key = best == NEGATIVE_INFINITY ? 0 : ((u64)((bits >> 31) ? ~bits : bits | 0x80000000u) << 32) | (0xffffffffu - index);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const u64 other = __shfl_xor_sync(FULL_WARP, key, step);
        key = other > key ? other : key;
    }
    if ((threadIdx.x & 31) == 0) keys[threadIdx.x / 32] = key;
    damaged = __syncthreads_or(damaged);
    if (threadIdx.x == 0) {
        for (u32 warp = 1; warp < blockDim.x / 32; warp++) key = keys[warp] > key ? keys[warp] : key;
        atomicMax(a.best + blockIdx.y * 2, key);
        if (damaged) atomicMax(a.best + blockIdx.y * 2 + 1, (u64)1);
    }
}
