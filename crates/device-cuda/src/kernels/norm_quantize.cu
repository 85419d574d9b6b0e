// norm_quantize: norms of each row, then int8 with one scale a row (quantise::absmax) or a group of 128 columns (quantise::absmax_groups), or
// the numbers themselves. One block a row: wide where
// there are few rows, narrow where there are so many that the chains of several norms hide each other.

struct NormQuantizeArgs {
    const float* x;      // [m, k]
    Norms norms;
    i8* quantized;       // [m, stride], zero beyond k; or null
    float* values;       // [m, stride], zero beyond k; or null
    float* scales;       // [m, n_groups]; inverse scales [m] without groups
    int* sums;           // [m, n_groups] or [m], Σ quantized
    u32 k;
    u32 stride;
    u32 n_groups;        // groups of a row that have their own scales, or 0
    u32 in_tiles;        // quantized lies in tiles (mma.cuh), and so do scales and sums of groups
};

// Where four columns of this block's row go.
__device__ __forceinline__ char4* place_of_four(const NormQuantizeArgs& a, u32 column) {
    const u64 place = a.in_tiles ? place_in_tiles(blockIdx.x, column, gridDim.x) : (u64)blockIdx.x * a.stride + column;
    return (char4*)(a.quantized + place);
}

// Groups of 128 columns, a warp each.
template <int THREADS>
__device__ __forceinline__ void quantise_groups(const NormQuantizeArgs& a, const float* row) {
    const u32 lane = threadIdx.x & 31;
    const u32 token = blockIdx.x, n_groups = a.in_tiles ? a.stride / 128 : a.n_groups;
#pragma unroll 1
    for (u32 group = threadIdx.x / 32; group * 128 < a.stride; group += THREADS / 32) {
        float values[4], largest = 1e-5f;
#pragma unroll
        for (u32 part = 0; part < 4; part++) {
            const u32 index = group * 128 + lane * 4 + part;
            values[part] = index < a.k ? row[index] : 0.0f;
            largest = larger(largest, fabsf(values[part]));
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) largest = larger(largest, __shfl_xor_sync(FULL_WARP, largest, step));
        const float inverse_scale = inverse_absmax_scale(largest);
        int q[4];
#pragma unroll
        for (u32 part = 0; part < 4; part++) q[part] = quantise_one(values[part], inverse_scale);
        *place_of_four(a, group * 128 + lane * 4) = make_char4(q[0], q[1], q[2], q[3]);
        const int sum = __reduce_add_sync(FULL_WARP, (q[0] + q[1]) + (q[2] + q[3]));
        if (lane == 0 && group < n_groups) {
            const u64 place = a.in_tiles ? segment_in_tiles(token, group, gridDim.x) : (u64)token * a.n_groups + group;
            a.scales[place] = 1.0f / inverse_scale;
            a.sums[place] = sum;
        }
    }
}

template <int THREADS>
__device__ __forceinline__ void norm_quantize_body(const NormQuantizeArgs& a) {
    extern __shared__ float row[];
    __shared__ float scratch[32];
    __shared__ int integer_scratch[32];
    prefetch_norms(a.norms, a.k);
    await_predecessors();
    admit_successor();
    const float* x = a.x + (u64)blockIdx.x * a.k;
    copy_row<THREADS>(row, x, a.k);
    norm_block<THREADS>(row, a.k, a.norms, scratch);
    if (a.values != nullptr) {
        float* out = a.values + (u64)blockIdx.x * a.stride;
        for (u32 index = threadIdx.x; index < a.stride; index += blockDim.x) out[index] = index < a.k ? row[index] : 0.0f;
        return;
    }
    if (a.n_groups > 0) return quantise_groups<THREADS>(a, row);
    const float largest = larger(1e-5f, largest_of_block(largest_of_thread<THREADS>(row, a.k), scratch));
    const float inverse_scale = inverse_absmax_scale(largest);
    int sum = 0;
    const int n = n_turns(threadIdx.x, a.stride / 4, THREADS);
#pragma unroll 1
    for (int turn = 0; turn < n; turn++) {
        const u32 four = turn * THREADS + threadIdx.x;
        int q[4];
        const float4 values = four_of_row(row, four * 4, a.k);
        const float parts[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
        for (u32 part = 0; part < 4; part++) {
            q[part] = quantise_one(parts[part], inverse_scale);
            sum += q[part];
        }
        *place_of_four(a, four * 4) = make_char4(q[0], q[1], q[2], q[3]);
    }
    sum = sum_of_block(sum, integer_scratch);
    if (threadIdx.x == 0) {
        a.scales[blockIdx.x] = inverse_scale;
        a.sums[blockIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(512) norm_quantize(const NormQuantizeArgs a) { norm_quantize_body<512>(a); }
extern "C" __global__ void __launch_bounds__(128) norm_quantize_narrow(const NormQuantizeArgs a) { norm_quantize_body<128>(a); }

// This thread's pieces of a row of k numbers, zeros beyond.
template <int PIECES>
__device__ __forceinline__ void load_pieces(float4 (&pieces)[PIECES][4], const float* row, u32 k) {
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        const u32 index = piece * blockDim.x + threadIdx.x, first = index / 4 * 64 + index % 4 * 4;
#pragma unroll
        for (u32 part = 0; part < 4; part++)
            pieces[piece][part] = first < k ? *(const float4*)(row + first + part * 16) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
}

// norm_quantize of several int8 rows with one scale each, k a multiple of 64: a thread keeps PIECES times sixteen numbers in registers from the
// first to the last, which lie in memory as wgmma reads them, and shared memory holds the row for the chain of the norm only. What an instruction
// does for one number counts: many rows are bound by that.
template <int PIECES>
__device__ __forceinline__ void norm_quantize_pieces_body(const NormQuantizeArgs& a) {
    extern __shared__ float row[];
    __shared__ float scratch[33];
    __shared__ int integer_scratch[32];
    prefetch_norms(a.norms, a.k);
    await_predecessors();
    admit_successor();
    // Piece `index` holds four times four numbers: 4 · (index % 4) and every 16 behind, of 64.
    float4 values[PIECES][4];
    load_pieces<PIECES>(values, a.x + (u64)blockIdx.x * a.k, a.k);
#pragma unroll 1
    for (u32 norm = 0; norm < a.norms.n; norm++) {
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            const u32 index = piece * blockDim.x + threadIdx.x, first = index / 4 * 64 + index % 4 * 4;
            if (first >= a.k) break;
#pragma unroll
            for (u32 part = 0; part < 4; part++) *(float4*)(row + first + part * 16) = values[piece][part];
        }
        const float* weights = norm == 0 ? a.norms.weights[0] : a.norms.weights[1];
        const float factor = inverse_rms_of_block(row, a.k, norm == 0 ? a.norms.epsilons[0] : a.norms.epsilons[1], scratch + 32);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            const u32 index = piece * blockDim.x + threadIdx.x, first = index / 4 * 64 + index % 4 * 4;
            if (first >= a.k) break;
#pragma unroll
            for (u32 part = 0; part < 4; part++) {
                const float4 w = __ldg((const float4*)(weights + first + part * 16));
                float4& v = values[piece][part];
                v = make_float4((v.x * factor) * w.x, (v.y * factor) * w.y, (v.z * factor) * w.z, (v.w * factor) * w.w);
            }
        }
    }
    float largest = 0.0f;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (u32 part = 0; part < 4; part++) {
            const float4 v = values[piece][part];
            // NaN is passed over.
            largest = fmaxf(fmaxf(largest, fabsf(v.x)), fabsf(v.y));
            largest = fmaxf(fmaxf(largest, fabsf(v.z)), fabsf(v.w));
        }
    const float inverse_scale = inverse_absmax_scale(larger(1e-5f, largest_magnitude_of_block(largest, scratch)));
    int sum = 0;
    const u32 token = blockIdx.x;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        const u32 index = piece * blockDim.x + threadIdx.x, group = index / 4, first = group * 64 + index % 4 * 4;
        if (first >= a.stride) break;
        u32 words[4];
#pragma unroll
        for (u32 part = 0; part < 4; part++) {
            const float4 v = values[piece][part];
            words[part] = four_quantised(v, inverse_scale);
            sum = __dp4a((int)words[part], 0x01010101, sum);
        }
        if (a.in_tiles) {
            const u64 tile = (u64)(group / 2) * n_tiles_of(gridDim.x) + token / TILE_TOKENS;
            const u32 place = token % TILE_TOKENS * 128 + ((group % 2 * 4 + index % 4) ^ (token & 7)) * 16;
            *(uint4*)(a.quantized + tile * TILE_BYTES + place) = make_uint4(words[0], words[1], words[2], words[3]);
        } else {
#pragma unroll
            for (u32 part = 0; part < 4; part++) *(u32*)(a.quantized + (u64)token * a.stride + first + part * 16) = words[part];
        }
    }
    sum = __reduce_add_sync(FULL_WARP, sum);
    if ((threadIdx.x & 31) == 0) integer_scratch[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    sum = __reduce_add_sync(FULL_WARP, threadIdx.x < blockDim.x / 32 ? integer_scratch[threadIdx.x] : 0);
    if (threadIdx.x == 0) {
        a.scales[token] = inverse_scale;
        a.sums[token] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(1024) norm_quantize_pieces_1(const NormQuantizeArgs a) { norm_quantize_pieces_body<1>(a); }
extern "C" __global__ void __launch_bounds__(512) norm_quantize_pieces_2(const NormQuantizeArgs a) { norm_quantize_pieces_body<2>(a); }
