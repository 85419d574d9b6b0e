// rope_append: norms and rotates query and key heads in place, and writes keys and values into their cache slots. One warp a head. Or, where attention
// rotates its queries itself, keys and values alone, which nobody reads but from the cache.
#define WARPS 8
#define HEAD_DIM_MAX 256

struct RopeAppendArgs {
    float* qkv;             // [m, (n_heads + 2·n_kv_heads)·head_dim]
    const float* q_norm;    // [head_dim], or null
    const float* k_norm;    // [head_dim], or null
    void* keys;             // of the layer: [n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim]
    void* values;           // likewise
    const float* cos;       // [m, head_dim / 2]
    const float* sin;       // [m, head_dim / 2]
    const u32* slots;       // [m]: block · BLOCK_TOKENS + row
    u32 n_heads;
    u32 n_kv_heads;
    u32 head_dim;
    float epsilon;
    u32 first_head;         // 0, or n_heads: keys and values alone
    u32 unused;
};

template <typename Element>
__device__ __forceinline__ void rope_append_body(const RopeAppendArgs& a) {
    __shared__ __align__(16) float heads[WARPS][HEAD_DIM_MAX];
    await_predecessors();
    admit_successor();
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x & 31, dim = a.head_dim, half = dim / 2;
    const u32 head = a.first_head + blockIdx.y * WARPS + warp, token = blockIdx.x;
    const u32 n_rotated = a.n_heads + a.n_kv_heads;
    if (head >= n_rotated + a.n_kv_heads) return;
    float* row = a.qkv + ((u64)token * (n_rotated + a.n_kv_heads) + head) * dim;
    float* values = heads[warp];
    const u32 pairs = HEAD_DIM_MAX / 2 / 32;
#pragma unroll
    for (u32 turn = 0; turn < 2 * pairs; turn++)
        if (turn * 32 + lane < dim) values[turn * 32 + lane] = row[turn * 32 + lane];
    float cosines[pairs], sines[pairs];
#pragma unroll
    for (u32 turn = 0; turn < pairs; turn++) {
        const bool inside = head < n_rotated && turn * 32 + lane < half;
        cosines[turn] = inside ? a.cos[(u64)token * half + turn * 32 + lane] : 0.0f;
        sines[turn] = inside ? a.sin[(u64)token * half + turn * 32 + lane] : 0.0f;
    }
    __syncwarp();
    const u32 kv_head = head < n_rotated ? head - a.n_heads : head - n_rotated;
    const u64 slot = a.slots[token];
    const u64 place = ((slot / BLOCK_TOKENS * a.n_kv_heads + kv_head) * BLOCK_TOKENS + slot % BLOCK_TOKENS) * dim;
    if (head >= n_rotated) {
        for (u32 index = lane; index < dim; index += 32) store((Element*)a.values + place + index, values[index]);
        return;
    }
    const float* norm = head < a.n_heads ? a.q_norm : a.k_norm;
    if (norm != nullptr) {
        const float sum = squares_of_chunk(four_of_row(values, column_in_chunk(), dim), four_of_row(values, column_in_chunk() + 32, dim));
        const float factor = inverse_rms(sum, dim, a.epsilon);
        __syncwarp();
        for (u32 index = lane; index < dim; index += 32) values[index] = (values[index] * factor) * norm[index];
        __syncwarp();
    }
#pragma unroll
    for (u32 turn = 0; turn < pairs; turn++) {
        const u32 pair = turn * 32 + lane;
        if (pair >= half) break;
        const float x = values[pair], y = values[half + pair], cos = cosines[turn], sin = sines[turn];
        const float low = x * cos - y * sin, high = y * cos + x * sin;
        if (a.first_head == 0) {
            row[pair] = low;
            row[half + pair] = high;
        }
        if (head >= a.n_heads) {
            store((Element*)a.keys + place + pair, low);
            store((Element*)a.keys + place + half + pair, high);
        }
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) rope_append_f32(const RopeAppendArgs a) { rope_append_body<float>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) rope_append_f16(const RopeAppendArgs a) { rope_append_body<Half>(a); }
