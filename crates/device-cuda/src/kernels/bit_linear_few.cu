// bit_linear for 2 to 64 tokens, int8, on the tensor cores (mma.sync m16n8k32), straight from 2-bit weights: a warp decodes its weights in
// registers with a shift and a mask, and multiplies them with every token. The warps of a block split the columns and add integers in
// shared memory, which is exact in any order.
#define WARPS 8

template <int TOKEN_TILES, int ROW_TILES>
__device__ __forceinline__ void bit_linear_few_body(const BitLinearMmaArgs& a) {
    const int BLOCK_ROWS = ROW_TILES * 16;
    __shared__ int totals[BLOCK_ROWS][TOKEN_TILES * 8 + 1];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, thread = lane & 3, line = lane >> 2;
    const u32 first_row = blockIdx.x * BLOCK_ROWS, first_token = blockIdx.y * TOKEN_TILES * 8;
    admit_successor();
    const uint4* words[ROW_TILES][2];
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 row = first_row + tile * 16 + half * 8 + line;
            words[tile][half] = a.words + (u64)(row < a.n ? row : a.n - 1) * a.n_blocks * 4 + thread;
        }
    uint4 held[ROW_TILES][2];
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            held[tile][half] = warp < a.n_blocks ? __ldg(words[tile][half] + warp * 4) : make_uint4(0, 0, 0, 0);
    for (u32 index = threadIdx.x; index < BLOCK_ROWS * (TOKEN_TILES * 8 + 1); index += blockDim.x) (&totals[0][0])[index] = 0;
    const i8* x[TOKEN_TILES];
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) {
        const u32 token = first_token + tile * 8 + line;
        x[tile] = a.x + (u64)(token < a.m ? token : a.m - 1) * a.n_blocks * 256 + thread * 16;
    }
    await_predecessors();
    int sums[ROW_TILES][TOKEN_TILES][4] = {};
    for (u32 block = warp; block < a.n_blocks; block += WARPS) {
        uint4 current[ROW_TILES][2];
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                current[tile][half] = held[tile][half];
                if (block + WARPS < a.n_blocks) held[tile][half] = __ldg(words[tile][half] + (block + WARPS) * 4);
            }
        // The next chunk's activations are on their way while this one's are multiplied.
        uint4 next[TOKEN_TILES];
#pragma unroll
        for (int tile = 0; tile < TOKEN_TILES; tile++) next[tile] = *(const uint4*)(x[tile] + block * 256);
#pragma unroll
        for (int chunk = 0; chunk < 4; chunk++) {
            uint4 values[TOKEN_TILES];
#pragma unroll
            for (int tile = 0; tile < TOKEN_TILES; tile++) {
                values[tile] = next[tile];
                if (chunk < 3) next[tile] = *(const uint4*)(x[tile] + block * 256 + (chunk + 1) * 64);
            }
#pragma unroll
            for (int step = 0; step < 2; step++) {
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; tile++) {
                    const u32 low = word_of(current[tile][0], chunk), high = word_of(current[tile][1], chunk);
                    const u32 weights[4] = {(low >> (4 * step)) & 0x03030303u, (high >> (4 * step)) & 0x03030303u,
                                            (low >> (4 * step + 2)) & 0x03030303u, (high >> (4 * step + 2)) & 0x03030303u};
#pragma unroll
                    for (int tokens = 0; tokens < TOKEN_TILES; tokens++)
                        multiply_codes(sums[tile][tokens], weights, word_of(values[tokens], 2 * step), word_of(values[tokens], 2 * step + 1));
                }
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
        for (int tokens = 0; tokens < TOKEN_TILES; tokens++)
#pragma unroll
            for (int part = 0; part < 4; part++)
                atomicAdd(&totals[tile * 16 + (part / 2) * 8 + line][tokens * 8 + thread * 2 + (part & 1)], sums[tile][tokens][part]);
    __syncthreads();
    for (u32 index = threadIdx.x; index < BLOCK_ROWS * TOKEN_TILES * 8; index += blockDim.x) {
        const u32 row = first_row + index % BLOCK_ROWS, token = first_token + index / BLOCK_ROWS;
        if (row >= a.n || token >= a.m) continue;
        const int sum = totals[index % BLOCK_ROWS][index / BLOCK_ROWS] - a.x_sums[token];
        // numerics::dequantise
        const float y = dequantise(sum, a.scales[a.row_scales ? row : 0], a.x_inverse_scales[token]);
        float* out = a.out + (u64)token * a.width + row;
        *out = a.add ? *out + y : y;
    }
}

#define BIT_LINEAR_FEW(name, tiles, rows) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) name(const BitLinearMmaArgs a) { bit_linear_few_body<tiles, rows>(a); }

BIT_LINEAR_FEW(bit_linear_few_1, 1, 2)
BIT_LINEAR_FEW(bit_linear_few_2, 2, 2)
BIT_LINEAR_FEW(bit_linear_few_4, 4, 2)
BIT_LINEAR_FEW(bit_linear_few_8, 8, 2)
BIT_LINEAR_FEW(bit_linear_few_narrow_1, 1, 1)
BIT_LINEAR_FEW(bit_linear_few_narrow_2, 2, 1)
BIT_LINEAR_FEW(bit_linear_few_narrow_4, 4, 1)
BIT_LINEAR_FEW(bit_linear_few_narrow_8, 8, 1)
