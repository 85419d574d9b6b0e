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
    const u64 place = a.in_tiles ? place_in_tiles(blockIdx.x, column, a.stride / 256) : (u64)blockIdx.x * a.stride + column;
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
            const u64 place = a.in_tiles ? segment_in_tiles(token, group, a.stride / 256) : (u64)token * a.n_groups + group;
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
