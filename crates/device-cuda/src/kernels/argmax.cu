// argmax: index of the largest value of each row, the lowest where several are equal, 0 if none is above −∞; and whether a value is NaN or
// +∞. Blocks share a row: the largest of a 64-bit key (value, then the lowest index) is found by atomics, in any order the same.
struct ArgmaxArgs {
    const float* values;   // [m, width]
    u64* best;             // [m, 2]: key; 1 if a value is NaN or +∞
    u32 width;
    u32 forgets;           // nobody looks at the values afterwards: for step.cu, which then leaves none
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
    bool damaged = false;
#pragma unroll 4
    for (u32 column = blockIdx.x * blockDim.x + threadIdx.x; column < a.width; column += gridDim.x * blockDim.x) {
        const float value = row[column];
        damaged |= is_damaged(value);
        if (value > best) {
            best = value;
            index = column;
        }
    }
    keep_best(a.best + blockIdx.y * 2, key_of(best, index), damaged, keys);
}
