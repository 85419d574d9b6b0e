// bit_linear of f32 rows (models whose weights alone are ternary), and logits of a ternary head: per group numerics::dot_trits × scale, groups
// added up ascending.
//
// A weight is the two top bits of a float: 0, 2.0 or −2.0. So one shift, one mask and one fused multiply-add do it: x · 2 · trit is exact, so
// fusing rounds as adding x · trit would, only at twice the size; halving the sum at the end is exact. Four threads share a row, each with
// four of its 16 lanes.
#define WARPS 8
#define ROWS_PER_THREAD 2
#define WARP_ROWS (8 * ROWS_PER_THREAD)

struct BitLinearF32Args {
    const float* x;        // [m, x_stride]
    const uint4* words;    // pack_f32: [n, n_blocks, 4]
    const float* scales;   // [1] or [n, n_groups]
    float* out;            // [m, width], first column
    u32 m;
    u32 n;
    u32 k;
    u32 x_stride;
    u32 n_groups;
    u32 group_chunks;      // chunks of 16 columns in a group; the last may be partly filled
    u32 one_scale;         // scales are one for the matrix
    u32 width;
    u32 add;
    u32 split;             // 1: the warps of a block take groups of the same rows; 0: all groups of their own rows
};

__device__ __forceinline__ float4 load_four(const float* x, u32 column, u32 k, bool aligned) {
    if (aligned && column + 4 <= k) return *(const float4*)(x + column);
    return make_float4(column < k ? x[column] : 0.0f, column + 1 < k ? x[column + 1] : 0.0f, column + 2 < k ? x[column + 2] : 0.0f,
                       column + 3 < k ? x[column + 3] : 0.0f);
}

__device__ __forceinline__ void add_four(float4& lanes, float4 x, u32 codes) {
    lanes.x = __fmaf_rn(x.x, __int_as_float((codes << 30) & 0xc0000000u), lanes.x);
    lanes.y = __fmaf_rn(x.y, __int_as_float((codes << 28) & 0xc0000000u), lanes.y);
    lanes.z = __fmaf_rn(x.z, __int_as_float((codes << 26) & 0xc0000000u), lanes.z);
    lanes.w = __fmaf_rn(x.w, __int_as_float((codes << 24) & 0xc0000000u), lanes.w);
}

template <int TOKENS>
__device__ __forceinline__ void bit_linear_f32_body(const BitLinearF32Args& a) {
    // [rows of the block][tokens][n_groups]
    extern __shared__ float products[];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, thread = lane & 3, line = lane >> 2;
    const u32 rows_of_block = a.split ? WARP_ROWS : WARP_ROWS * WARPS;
    const u32 first_row = blockIdx.x * rows_of_block + (a.split ? 0 : warp * WARP_ROWS);
    const u32 first_token = blockIdx.y * TOKENS;
    const bool aligned = a.x_stride % 4 == 0;
    const u32 n_blocks = (a.k + 255) / 256;
    const u32* words[ROWS_PER_THREAD];
#pragma unroll
    for (int r = 0; r < ROWS_PER_THREAD; r++) {
        const u32 row = first_row + r * 8 + line;
        words[r] = (const u32*)(a.words + ((u64)(row < a.n ? row : a.n - 1) * n_blocks * 4 + thread));
    }
    const float* x[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) x[t] = a.x + (u64)(first_token + t < a.m ? first_token + t : a.m - 1) * a.x_stride;
    admit_successor();
    await_predecessors();
    const u32 groups_each = a.split ? (a.n_groups + WARPS - 1) / WARPS : a.n_groups;
    const u32 first_group = a.split ? warp * groups_each : 0;
    const u32 end_group = min(a.n_groups, first_group + groups_each);
    const u32 n_chunks = (a.k + LANES - 1) / LANES;
    for (u32 group = first_group; group < end_group; group++) {
        float4 lanes[ROWS_PER_THREAD][TOKENS] = {};
        const u32 end = min(n_chunks, (group + 1) * a.group_chunks);
        // A word holds four chunks. Whole words of a group first: their loads are in flight together.
        const u32 first = group * a.group_chunks;
        const int n_words = aligned && (first & 3) == 0 && end * LANES <= a.k ? (int)(end - first) / 4 : 0;
#pragma unroll 2
        for (int word = 0; word < n_words; word++) {
            const u32 chunk = first + word * 4;
            u32 codes[ROWS_PER_THREAD];
#pragma unroll
            for (int r = 0; r < ROWS_PER_THREAD; r++) codes[r] = __ldg(words[r] + (chunk / 16) * 16 + (chunk & 15) / 4);
#pragma unroll
            for (int part = 0; part < 4; part++) {
#pragma unroll
                for (int t = 0; t < TOKENS; t++) {
                    const float4 values = *(const float4*)(x[t] + (chunk + part) * LANES + thread * 4);
#pragma unroll
                    for (int r = 0; r < ROWS_PER_THREAD; r++) add_four(lanes[r][t], values, codes[r] >> (8 * part));
                }
            }
        }
        for (u32 chunk = first + n_words * 4; chunk < end; chunk++) {
#pragma unroll
            for (int r = 0; r < ROWS_PER_THREAD; r++) {
                const u32 codes = __ldg(words[r] + (chunk / 16) * 16 + (chunk & 15) / 4) >> (8 * (chunk & 3));
#pragma unroll
                for (int t = 0; t < TOKENS; t++)
                    add_four(lanes[r][t], load_four(x[t], chunk * LANES + thread * 4, a.k, aligned), codes);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS_PER_THREAD; r++)
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float dot = sum_lanes_of_four(lanes[r][t]) * 0.5f;
                const u32 row = first_row + r * 8 + line;
                if (thread == 0) {
                    const u64 scale = a.one_scale ? 0 : (u64)(row < a.n ? row : a.n - 1) * a.n_groups + group;
                    const u32 inside = (a.split ? 0 : warp * WARP_ROWS) + r * 8 + line;
                    products[(inside * TOKENS + t) * a.n_groups + group] = dot * a.scales[scale];
                }
            }
    }
    __syncthreads();
    for (u32 index = threadIdx.x; index < rows_of_block * TOKENS; index += blockDim.x) {
        const u32 row = blockIdx.x * rows_of_block + index % rows_of_block, token = first_token + index / rows_of_block;
        if (row >= a.n || token >= a.m) continue;
        const float* of_groups = products + (index % rows_of_block * TOKENS + index / rows_of_block) * a.n_groups;
        float y = 0.0f;
        for (u32 group = 0; group < a.n_groups; group++) y += of_groups[group];
        float* out = a.out + (u64)token * a.width + row;
        *out = a.add ? *out + y : y;
    }
}

// The same for one token, groups of 128 columns and whole blocks of 256: a thread has four rows, and its four share what is left to add of them, each one's.
#define ONE_ROWS 4
#define ONE_BLOCK_ROWS (8 * ONE_ROWS)

__device__ __forceinline__ float4 selected(bool second, float4 a, float4 b) {
    return make_float4(second ? b.x : a.x, second ? b.y : a.y, second ? b.z : a.z, second ? b.w : a.w);
}

// `kept` plus what the thread `step` places away gives.
__device__ __forceinline__ float4 exchanged(float4 kept, float4 given, int step) {
    return make_float4(kept.x + __shfl_xor_sync(FULL_WARP, given.x, step), kept.y + __shfl_xor_sync(FULL_WARP, given.y, step),
                       kept.z + __shfl_xor_sync(FULL_WARP, given.z, step), kept.w + __shfl_xor_sync(FULL_WARP, given.w, step));
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 4) bit_linear_f32_one(const BitLinearF32Args a) {
    // x[k], then [ONE_BLOCK_ROWS][n_groups + 1] products
    extern __shared__ __align__(16) float shared[];
    float* products = shared + a.k;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, thread = lane & 3, line = lane >> 2, n_blocks = a.k / 256, stride = a.n_groups + 1;
    admit_successor();
    await_predecessors();
    for (u32 four = threadIdx.x; four < a.k / 4; four += WARPS * 32) ((float4*)shared)[four] = ((const float4*)a.x)[four];
#pragma unroll 1
    for (u32 first = blockIdx.x * ONE_BLOCK_ROWS; first < a.n; first += gridDim.x * ONE_BLOCK_ROWS) {
        __syncthreads();
        const u32 my_row = min(first + thread * 8 + line, a.n - 1);
#pragma unroll 1
        for (u32 block = warp; block < n_blocks; block += WARPS) {
            uint4 codes[ONE_ROWS];
#pragma unroll
            for (int r = 0; r < ONE_ROWS; r++) codes[r] = __ldg(a.words + ((u64)min(first + r * 8 + line, a.n - 1) * n_blocks + block) * 4 + thread);
            const float2 scales = a.one_scale ? make_float2(a.scales[0], a.scales[0]) : __ldg((const float2*)(a.scales + (u64)my_row * a.n_groups + block * 2));
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float4 lanes[ONE_ROWS] = {};
#pragma unroll
                for (int part = 0; part < 8; part++) {
                    const float4 x = *(const float4*)(shared + (block * 16 + half * 8 + part) * LANES + thread * 4);
#pragma unroll
                    for (int r = 0; r < ONE_ROWS; r++) add_four(lanes[r], x, word_of(codes[r], half * 2 + part / 4) >> (8 * (part % 4)));
                }
                // As sum_lanes_of_four.
                const bool is_upper = thread & 2, is_odd = thread & 1;
                const float4 even = exchanged(selected(is_upper, lanes[0], lanes[2]), selected(is_upper, lanes[2], lanes[0]), 2);
                const float4 odd = exchanged(selected(is_upper, lanes[1], lanes[3]), selected(is_upper, lanes[3], lanes[1]), 2);
                const float4 mine = exchanged(selected(is_odd, even, odd), selected(is_odd, odd, even), 1);
                products[(thread * 8 + line) * stride + block * 2 + half] = (sum_of_four(mine) * 0.5f) * (half == 0 ? scales.x : scales.y);
            }
        }
        __syncthreads();
        const u32 row = first + threadIdx.x;
        if (threadIdx.x >= ONE_BLOCK_ROWS || row >= a.n) continue;
        float y = 0.0f;
#pragma unroll 8
        for (int group = 0; group < (int)a.n_groups; group++) y += products[threadIdx.x * stride + group];
        a.out[row] = a.add ? a.out[row] + y : y;
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) bit_linear_f32_1(const BitLinearF32Args a) { bit_linear_f32_body<1>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) bit_linear_f32_4(const BitLinearF32Args a) { bit_linear_f32_body<4>(a); }
