// The GPU's roofs: a kernel that only reads, and one that only multiplies int8 on the tensor cores. Results are written so that nothing is
// left out by the compiler.
struct RoofArgs {
    const uint4* bytes;   // [n]
    u32* out;             // [blocks · threads]
    u64 n;
    u32 rounds;
    u32 unused;
};

extern "C" __global__ void __launch_bounds__(512) roof_read(const RoofArgs a) {
    const u64 stride = (u64)gridDim.x * blockDim.x, index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u32 sum = 0;
#pragma unroll 8
    for (u64 place = index; place < a.n; place += stride) {
        const uint4 words = __ldcs(a.bytes + place);
        sum += (words.x ^ words.y) + (words.z ^ words.w);
    }
    a.out[index] = sum;
}

extern "C" __global__ void __launch_bounds__(256) roof_multiply(const RoofArgs a) {
    int sums[8][4] = {};
    const u32 x = threadIdx.x * 2654435761u, y = blockIdx.x * 2246822519u;
    for (u32 round = 0; round < a.rounds; round++) {
#pragma unroll
        for (int tile = 0; tile < 8; tile++)
            asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                         : "+r"(sums[tile][0]), "+r"(sums[tile][1]), "+r"(sums[tile][2]), "+r"(sums[tile][3])
                         : "r"(x), "r"(y), "r"(x ^ y), "r"(x + y), "r"(x - y), "r"(y ^ round));
    }
    u32 sum = 0;
#pragma unroll
    for (int tile = 0; tile < 8; tile++)
#pragma unroll
        for (int part = 0; part < 4; part++) sum += sums[tile][part];
    a.out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
