// How the largest of many values is kept by many blocks, in any order the same: as a 64-bit key, the value and then the lowest index.

// Whether a logit is no number or +∞.
__device__ __forceinline__ bool is_damaged(float value) { return !(value < __int_as_float(0x7f800000)); }

// −∞ has key 0, which is also what stands there at the beginning.
__device__ __forceinline__ u64 key_of(float value, u32 index) {
    // + 0: the two zeros are equal.
    const u32 bits = __float_as_int(value + 0.0f);
    return value > NEGATIVE_INFINITY ? ((u64)((bits >> 31) ? ~bits : bits | 0x80000000u) << 32) | (0xffffffffu - index) : 0;
}

// Keeps the largest key of a block at `best`, and behind it whether any of its values is damaged. `keys` holds one of each warp.
__device__ __forceinline__ void keep_best(u64* best, u64 key, bool damaged, u64* keys) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const u64 other = __shfl_xor_sync(FULL_WARP, key, step);
        key = other > key ? other : key;
    }
    if ((threadIdx.x & 31) == 0) keys[threadIdx.x / 32] = key;
    const bool any_damaged = __syncthreads_or(damaged);
    if (threadIdx.x != 0) return;
    for (u32 warp = 1; warp < blockDim.x / 32; warp++) key = keys[warp] > key ? keys[warp] : key;
    if (key != 0) atomicMax(best, key);
    if (any_damaged) atomicMax(best + 1, (u64)1);
}
