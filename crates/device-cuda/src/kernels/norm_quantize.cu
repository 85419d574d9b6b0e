// norm_quantize: norms of each row, then int8 with one scale a row (quantise::absmax) or a group of 128 columns (quantise::absmax_groups), or
// the numbers themselves. One block a row, wide where there are few; of many rows that are not too long several a block, a warp each.

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
    u32 m;
    u32 unused;
};

// Where four columns of this block's row go.
__device__ __forceinline__ char4* place_of_four(const NormQuantizeArgs& a, u32 column) {
    const u64 place = a.in_tiles ? place_in_tiles(blockIdx.x, column, a.m) : (u64)blockIdx.x * a.stride + column;
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
            const u64 place = a.in_tiles ? segment_in_tiles(token, group, a.m) : (u64)token * a.n_groups + group;
            a.scales[place] = 1.0f / inverse_scale;
            a.sums[place] = sum;
        }
    }
}

template <int THREADS>
__device__ __forceinline__ void norm_quantize_body(const NormQuantizeArgs& a) {
    extern __shared__ float row[];
    __shared__ float scratch[32];
    __shared__ __align__(16) float chunks[CHUNKS_MAX];
    __shared__ int integer_scratch[32];
    prefetch_norms(a.norms, a.k);
    await_predecessors();
    admit_successor();
    const float* x = a.x + (u64)blockIdx.x * a.k;
    copy_row<THREADS>(row, x, a.k);
    norm_block<THREADS>(row, a.k, a.norms, chunks);
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

// Pieces of an int8 row with one scale, k a multiple of 64: a thread keeps PIECES times sixteen numbers in registers from the first to the last, which
// lie in memory as wgmma reads them: of four neighbouring threads' 64 columns every fourth four. THREADS threads, a multiple of 32, have a row together;
// 0: all of the block. What an instruction does for one number counts: many rows are bound by that.
template <int PIECES, int THREADS>
struct Pieces {
    // Few rows are bound by latency: weights of a norm come while squares are added up.
    static const bool LOADS_EARLY = PIECES == 1;

    float4 values[PIECES][4];

    __device__ __forceinline__ static u32 n_threads() { return THREADS > 0 ? THREADS : blockDim.x; }
    __device__ __forceinline__ static u32 thread() { return THREADS > 0 ? threadIdx.x % THREADS : threadIdx.x; }
    __device__ __forceinline__ static u32 index_of(int piece) { return piece * n_threads() + thread(); }
    __device__ __forceinline__ static u32 first_of(int piece) { return index_of(piece) / 4 * 64 + index_of(piece) % 4 * 4; }

    // Zeros beyond the row.
    __device__ __forceinline__ void load(const float* row, u32 k) {
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
            for (int part = 0; part < 4; part++)
                values[piece][part] = first_of(piece) < k ? *(const float4*)(row + first_of(piece) + part * 16) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }

    // Σ of squares of the chunk that half a warp's pieces are.
    __device__ __forceinline__ float squares_of(int piece) const {
        const float4(&x)[4] = values[piece];
        const float4 even = added(square_of_four(x[0]), square_of_four(x[2])), odd = added(square_of_four(x[1]), square_of_four(x[3]));
        float sum = sum_of_four(added(even, odd));
        sum += __shfl_xor_sync(FULL_WARP, sum, 8);
        sum += __shfl_xor_sync(FULL_WARP, sum, 4);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        return sum + __shfl_xor_sync(FULL_WARP, sum, 1);
    }

    // Σ of squares of the row, for all threads that have it. `chunks` is room for CHUNKS_MAX if they are more than a warp, and nobody reads it before.
    __device__ __forceinline__ float sum_of_squares(float* chunks) const {
        float sums[PIECES];
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) sums[piece] = squares_of(piece);
        if constexpr (THREADS == 32) {
            // Each half has two of the four lanes of chunks: c mod 4 is half, or half + 2.
            float even = 0.0f, odd = 0.0f;
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) (piece % 2 == 0 ? even : odd) += sums[piece];
            const float sum = even + odd;
            return sum + __shfl_xor_sync(FULL_WARP, sum, 16);
        }
        const u32 n = PIECES * n_threads() / 16;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++)
            if (thread() % 16 == 0) chunks[index_of(piece) / 16] = sums[piece];
        if (thread() >= n && thread() < (n + 3) / 4 * 4) chunks[thread()] = 0.0f;
        __syncthreads();
        return sum_of_chunks(chunks, n);
    }

    // Those beyond the row are not used.
    __device__ __forceinline__ static void load_weights(float4 (&to)[4], const float* weights, int piece, u32 k) {
#pragma unroll
        for (int part = 0; part < 4; part++) to[part] = __ldg((const float4*)(weights + (first_of(piece) < k ? first_of(piece) : 0) + part * 16));
    }

    __device__ __forceinline__ void norm(const float* weights, float factor, u32 k, const float4 (&loaded)[4]) {
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            if (first_of(piece) >= k) break;
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const float4 w = LOADS_EARLY ? loaded[part] : __ldg((const float4*)(weights + first_of(piece) + part * 16));
                float4& v = values[piece][part];
                v = make_float4((v.x * factor) * w.x, (v.y * factor) * w.y, (v.z * factor) * w.z, (v.w * factor) * w.w);
            }
        }
    }

    // The largest magnitude of the row, for all threads that have it. `scratch` is 32 floats that nobody reads before.
    __device__ __forceinline__ float largest(float* scratch) const {
        float largest = 0.0f;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const float4 v = values[piece][part];
                // NaN is passed over.
                largest = fmaxf(fmaxf(largest, fabsf(v.x)), fabsf(v.y));
                largest = fmaxf(fmaxf(largest, fabsf(v.z)), fabsf(v.w));
            }
        if constexpr (THREADS == 32) return __uint_as_float(__reduce_max_sync(FULL_WARP, __float_as_uint(largest)));
        return largest_magnitude_of_block(largest, scratch);
    }

    // Stores the row of `token`, quantised; returns the sum of this thread's integers.
    __device__ __forceinline__ int store(const NormQuantizeArgs& a, u32 token, float inverse_scale) const {
        int sum = 0;
        // Of a tile of this token's place, the first of a row of tiles.
        i8* const of_token = a.quantized + (u64)(token / TILE_TOKENS) * TILE_BYTES + token % TILE_TOKENS * 128;
        const u64 row_of_tiles = (u64)n_tiles_of(a.m) * TILE_BYTES;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            const u32 index = index_of(piece), group = index / 4, first = first_of(piece);
            if (first >= a.stride) break;
            u32 words[4];
#pragma unroll
            for (int part = 0; part < 4; part++) {
                words[part] = four_quantised(values[piece][part], inverse_scale);
                sum = __dp4a((int)words[part], 0x01010101, sum);
            }
            if (a.in_tiles) {
                const u32 place = ((group % 2 * 4 + index % 4) ^ (token & 7)) * 16;
                *(uint4*)(of_token + group / 2 * row_of_tiles + place) = make_uint4(words[0], words[1], words[2], words[3]);
            } else {
#pragma unroll
                for (int part = 0; part < 4; part++) *(u32*)(a.quantized + (u64)token * a.stride + first + part * 16) = words[part];
            }
        }
        return sum;
    }
};

template <int PIECES, int THREADS>
__device__ __forceinline__ void norm_quantize_pieces_body(const NormQuantizeArgs& a) {
    const bool IS_WARP = THREADS == 32;
    __shared__ __align__(16) float chunks[IS_WARP ? 1 : 2][IS_WARP ? 4 : CHUNKS_MAX];
    __shared__ float scratch[32];
    __shared__ int integer_scratch[32];
    // Many rows find weights near.
    if (THREADS == 0) prefetch_norms(a.norms, a.k);
    await_predecessors();
    admit_successor();
    const u32 token = IS_WARP ? blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32 : blockIdx.x;
    if (token >= a.m) return;
    Pieces<PIECES, THREADS> row;
    row.load(a.x + (u64)token * a.k, a.k);
#pragma unroll 1
    for (u32 norm = 0; norm < a.norms.n; norm++) {
        const float* weights = norm == 0 ? a.norms.weights[0] : a.norms.weights[1];
        float4 loaded[4];
        if constexpr (Pieces<PIECES, THREADS>::LOADS_EARLY) row.load_weights(loaded, weights, 0, a.k);
        const float sum = row.sum_of_squares(chunks[IS_WARP ? 0 : norm]);
        row.norm(weights, inverse_rms(sum, a.k, norm == 0 ? a.norms.epsilons[0] : a.norms.epsilons[1]), a.k, loaded);
    }
    const float inverse_scale = inverse_absmax_scale(larger(1e-5f, row.largest(scratch)));
    int sum = __reduce_add_sync(FULL_WARP, row.store(a, token, inverse_scale));
    if constexpr (!IS_WARP) {
        if ((threadIdx.x & 31) == 0) integer_scratch[threadIdx.x / 32] = sum;
        __syncthreads();
        if (threadIdx.x >= 32) return;
        sum = __reduce_add_sync(FULL_WARP, threadIdx.x < blockDim.x / 32 ? integer_scratch[threadIdx.x] : 0);
    }
    if ((threadIdx.x & 31) == 0) {
        a.scales[token] = inverse_scale;
        a.sums[token] = sum;
    }
}

#define NORM_QUANTIZE_PIECES(name, threads, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const NormQuantizeArgs a) { norm_quantize_pieces_body<__VA_ARGS__>(a); }

NORM_QUANTIZE_PIECES(norm_quantize_pieces, 1024, 1, 1, 0)
NORM_QUANTIZE_PIECES(norm_quantize_warps, 128, 4, 5, 32)
NORM_QUANTIZE_PIECES(norm_quantize_four_warps, 128, 5, 4, 128)
NORM_QUANTIZE_PIECES(norm_quantize_sixteen_warps, 512, 1, 2, 512)
