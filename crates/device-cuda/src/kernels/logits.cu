// logits over a dense head: out[r, v] = numerics::dot(x[r], head[v]). Two threads share a row, each with eight of its 16 lanes; a block
// takes 128 rows for up to TOKENS tokens, whose values lie in shared memory.
#define WARPS 8
#define BLOCK_ROWS (WARPS * 16)

struct LogitsArgs {
    const float* x;      // [m, k]
    const void* head;    // [n_vocab, stride], zero beyond k
    float* out;          // [m, n_vocab]
    u32 m;
    u32 n_vocab;
    u32 k;
    u32 stride;          // elements, a multiple of 16
};

struct Eight {
    float values[8];
};

__device__ __forceinline__ Eight load_eight(const float* from) {
    const float4 low = __ldg((const float4*)from), high = __ldg((const float4*)from + 1);
    return Eight{{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

// bfloat16
__device__ __forceinline__ Eight load_eight(const u16* from) {
    const uint4 words = __ldg((const uint4*)from);
    const u32 pairs[4] = {words.x, words.y, words.z, words.w};
    Eight eight;
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
        eight.values[2 * pair] = __int_as_float(pairs[pair] << 16);
        eight.values[2 * pair + 1] = __int_as_float(pairs[pair] & 0xffff0000u);
    }
    return eight;
}

__device__ __forceinline__ Eight load_eight(const Half* from) {
    const uint4 words = __ldg((const uint4*)from);
    const u32 pairs[4] = {words.x, words.y, words.z, words.w};
    Eight eight;
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
        const float2 two = two_halves(pairs[pair]);
        eight.values[2 * pair] = two.x;
        eight.values[2 * pair + 1] = two.y;
    }
    return eight;
}

template <typename Element, int TOKENS>
__device__ __forceinline__ void logits_body(const LogitsArgs& a) {
    extern __shared__ float x[];
    const u32 lane = threadIdx.x & 31, thread = lane & 1;
    const u32 row = blockIdx.x * BLOCK_ROWS + (threadIdx.x / 32) * 16 + lane / 2;
    const u32 first_token = blockIdx.y * TOKENS;
    admit_successor();
    await_predecessors();
    for (u32 index = threadIdx.x; index < TOKENS * a.stride; index += blockDim.x) {
        const u32 token = first_token + index / a.stride, column = index % a.stride;
        x[index] = token < a.m && column < a.k ? a.x[(u64)token * a.k + column] : 0.0f;
    }
    __syncthreads();
    const Element* head = (const Element*)a.head + (u64)(row < a.n_vocab ? row : a.n_vocab - 1) * a.stride + thread * 8;
    float lanes[TOKENS][8] = {};
#pragma unroll 8
    for (int turn = 0; turn < (int)a.stride / LANES; turn++) {
        const u32 column = turn * LANES;
        const Eight weights = load_eight(head + column);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const float4 low = *(const float4*)(x + t * a.stride + column + thread * 8);
            const float4 high = *(const float4*)(x + t * a.stride + column + thread * 8 + 4);
            const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int l = 0; l < 8; l++) lanes[t][l] += values[l] * weights.values[l];
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
#pragma unroll
        for (int l = 0; l < 8; l++) lanes[t][l] += __shfl_down_sync(FULL_WARP, lanes[t][l], 1, 2);
#pragma unroll
        for (int half = 4; half > 0; half /= 2)
#pragma unroll
            for (int l = 0; l < half; l++) lanes[t][l] += lanes[t][l + half];
        if (thread == 0 && row < a.n_vocab && first_token + t < a.m) a.out[(u64)(first_token + t) * a.n_vocab + row] = lanes[t][0];
    }
}

#define LOGITS(name, element, tokens) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) name(const LogitsArgs a) { logits_body<element, tokens>(a); }

LOGITS(logits_f32_1, float, 1)
LOGITS(logits_f32_4, float, 4)
LOGITS(logits_f16_1, Half, 1)
LOGITS(logits_f16_4, Half, 4)
LOGITS(logits_bf16_1, u16, 1)
LOGITS(logits_bf16_4, u16, 4)
