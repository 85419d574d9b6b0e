// bit_linear, int8 with a scale for each 128 activations, and weight scales for the tensor, a row, or groups of whole 128s: a segment of 128
// columns has one weight scale and one activation scale. Integers of a segment are exact; segments are added up ascending
// (numerics::dequantise_segments).
//
// Four threads share a row, eight rows a warp; the warps of a block take blocks of columns of the same rows and leave each segment's product
// in shared memory, where one thread adds them up in their order.
#define WARPS 8
#define BLOCK_ROWS 8

struct BitLinearGroupsArgs {
    const i8* x;           // [m, n_blocks · 256]
    const float* x_scales; // [m, n_segments]
    const int* x_sums;     // [m, n_segments]
    const uint4* words;    // pack_int8: [n, n_blocks, 4]
    const float* scales;   // [1] or [n, n_groups]
    float* out;            // [m, width], first column
    u32 m;
    u32 n;
    u32 n_blocks;
    u32 n_segments;        // of 128 columns, the last partly filled
    u32 n_groups;          // weight scales of a row; 0: one for the matrix
    u32 group_segments;    // segments that share a weight scale
    u32 width;
    u32 add;
};

// Σ x · code over 16 columns of a word, by slots whose results are 1, 4, 16 and 64 times too large.
__device__ __forceinline__ void dot_word(u32 word, int4 x, int (&sums)[4]) {
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sums[0]) : "r"(word & 0x03030303u), "r"(x.x));
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sums[1]) : "r"(word & 0x0c0c0c0cu), "r"(x.y));
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sums[2]) : "r"(word & 0x30303030u), "r"(x.z));
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sums[3]) : "r"(word & 0xc0c0c0c0u), "r"(x.w));
}

template <int TOKENS>
__device__ __forceinline__ void bit_linear_groups_body(const BitLinearGroupsArgs& a) {
    // [BLOCK_ROWS, TOKENS, n_segments]
    extern __shared__ float products[];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, thread = lane & 3, line = lane >> 2;
    const u32 first_row = blockIdx.x * BLOCK_ROWS, first_token = blockIdx.y * TOKENS;
    const u32 row = min(first_row + line, a.n - 1);
    const uint4* words = a.words + (u64)row * a.n_blocks * 4 + thread;
    const float* scales = a.scales + (u64)row * a.n_groups;
    admit_successor();
    uint4 next = warp < a.n_blocks ? __ldg(words + warp * 4) : make_uint4(0, 0, 0, 0);
    await_predecessors();
#pragma unroll 1
    for (u32 block = warp; block < a.n_blocks; block += WARPS) {
        const uint4 current = next;
        if (block + WARPS < a.n_blocks) next = __ldg(words + (block + WARPS) * 4);
        int sums[TOKENS][2];
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const u32 token = min(first_token + t, a.m - 1);
            const i8* x = a.x + ((u64)token * a.n_blocks + block) * 256 + thread * 16;
            int low[4] = {}, high[4] = {};
            dot_word(current.x, *(const int4*)x, low);
            dot_word(current.y, *(const int4*)(x + 64), low);
            dot_word(current.z, *(const int4*)(x + 128), high);
            dot_word(current.w, *(const int4*)(x + 192), high);
            sums[t][0] = low[0] + (low[1] >> 2) + (low[2] >> 4) + (low[3] >> 6);
            sums[t][1] = high[0] + (high[1] >> 2) + (high[2] >> 4) + (high[3] >> 6);
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int sum = sums[t][half];
                sum += __shfl_xor_sync(FULL_WARP, sum, 1);
                sum += __shfl_xor_sync(FULL_WARP, sum, 2);
                const u32 segment = block * 2 + half;
                if (thread != ((t * 2 + half) & 3) || segment >= a.n_segments) continue;
                const u64 place = (u64)min(first_token + t, a.m - 1) * a.n_segments + segment;
                const float weight_scale = a.n_groups == 0 ? a.scales[0] : scales[segment / a.group_segments];
                products[(line * TOKENS + t) * a.n_segments + segment] = (float)(sum - a.x_sums[place]) * (weight_scale * a.x_scales[place]);
            }
    }
    __syncthreads();
    for (u32 index = threadIdx.x; index < BLOCK_ROWS * TOKENS; index += blockDim.x) {
        const u32 out_row = first_row + index % BLOCK_ROWS, token = first_token + index / BLOCK_ROWS;
        if (out_row >= a.n || token >= a.m) continue;
        const float* of_segments = products + (index % BLOCK_ROWS * TOKENS + index / BLOCK_ROWS) * a.n_segments;
        float y = 0.0f;
#pragma unroll 8
        for (int segment = 0; segment < (int)a.n_segments; segment++) y += of_segments[segment];
        float* out = a.out + (u64)token * a.width + out_row;
        *out = a.add ? *out + y : y;
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) bit_linear_groups_1(const BitLinearGroupsArgs a) { bit_linear_groups_body<1>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) bit_linear_groups_8(const BitLinearGroupsArgs a) { bit_linear_groups_body<8>(a); }
