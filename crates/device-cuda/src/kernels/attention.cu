// attention: each token over positions 0..=its own, through the block table, in the order of numerics: scores in 16 lanes, the softmax's
// sum in 16 lanes over positions, values added in position order. A block takes HEADS query heads of one token that share keys and values.
//
// Positions go by windows whose scores fit shared memory; beyond one window the scores are computed twice, since the largest must be known
// before the first exponential. Tiles of values are fetched two ahead, the first two before any score is known.
#define PAIRS_MAX 4

struct AttentionArgs {
    const float* qkv;         // [m, (n_heads + 2·n_kv_heads)·head_dim]
    const void* keys;         // of the layer: [n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim]
    const void* values;       // likewise
    float* out;               // [m, n_heads·head_dim]
    const u32* positions;     // [m]
    const u32* table_starts;  // [m]: where the block table of the token's sequence begins
    const u32* blocks;        // block tables, one after another
    const u32* tokens;        // [grid.y]: which tokens
    u32 n_heads;
    u32 n_kv_heads;
    u32 head_dim;
    u32 window;               // positions whose scores are held, a multiple of `tile`
    u32 tile;                 // positions of a tile of values, a multiple of BLOCK_TOKENS
    float scale;
};

__device__ __forceinline__ float4 four(const float* from) { return *(const float4*)from; }
__device__ __forceinline__ float4 four(const Half* from) {
    const uint2 bits = *(const uint2*)from;
    const float2 low = two_halves(bits.x), high = two_halves(bits.y);
    return make_float4(low.x, low.y, high.x, high.y);
}

// Four numbers of a row of `dim` from `column`, zeros beyond its end.
template <typename Element>
__device__ __forceinline__ float4 load_cached(const Element* row, u32 column, u32 dim) {
    return make_float4(column < dim ? as_float(row[column]) : 0.0f, column + 1 < dim ? as_float(row[column + 1]) : 0.0f,
                       column + 2 < dim ? as_float(row[column + 2]) : 0.0f, column + 3 < dim ? as_float(row[column + 3]) : 0.0f);
}

template <int HEADS, typename Element>
struct Attention {
    const AttentionArgs& a;
    const u32* blocks;
    float* queries;   // [HEADS, dim_padded]
    float* scores;    // [HEADS, window]
    Element* tiles;   // [2, tile, head_dim]
    u32 kv_head;
    u32 dim_padded;
    u32 n_positions;

    __device__ __forceinline__ u64 place(u32 position) const {
        const u64 block = blocks[position / BLOCK_TOKENS];
        return ((block * a.n_kv_heads + kv_head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * a.head_dim;
    }

    // Starts to fetch the values of tile `index`; always one group.
    __device__ __forceinline__ void fetch(u32 index) const {
        const u32 first = index * a.tile, end = min(n_positions, first + a.tile);
        const u32 to = (u32)__cvta_generic_to_shared(tiles + (index & 1) * a.tile * a.head_dim);
        const u32 lane = threadIdx.x & 31, row_bytes = a.head_dim * sizeof(Element);
#pragma unroll 1
        for (u32 position = first + threadIdx.x / 32; position < end; position += blockDim.x / 32) {
            const char* from = (const char*)((const Element*)a.values + place(position));
            const u32 row = to + (position - first) * row_bytes;
            if (row_bytes % 16 == 0) {
                for (u32 byte = lane * 16; byte < row_bytes; byte += 512)
                    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(row + byte), "l"(from + byte));
            } else {
                for (u32 byte = lane * 4; byte < row_bytes; byte += 128)
                    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(row + byte), "l"(from + byte));
            }
        }
        asm volatile("cp.async.commit_group;");
    }

    __device__ __forceinline__ void add_products(float4 (&lanes)[HEADS], float4 k, u32 column) const {
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
            const float4 q = *(const float4*)(queries + head * dim_padded + column);
            lanes[head].x += q.x * k.x;
            lanes[head].y += q.y * k.y;
            lanes[head].z += q.z * k.z;
            lanes[head].w += q.w * k.w;
        }
    }

    // Scores of positions first..end, and the largest seen by this thread. Four threads share a position.
    __device__ __forceinline__ void score(u32 first, u32 end, float (&largest)[HEADS]) const {
        const u32 thread = threadIdx.x & 3, quads = blockDim.x / 4;
        for (u32 base = first; base < end; base += quads) {
            const u32 position = base + threadIdx.x / 4;
            const Element* key = (const Element*)a.keys + place(min(position, end - 1));
            float4 lanes[HEADS] = {};
            const int n = dim_padded / LANES, n_whole = a.head_dim % LANES == 0 ? n : 0;
            // Whole chunks: their loads are in flight together. Then those with an end inside.
#pragma unroll 8
            for (int turn = 0; turn < n_whole; turn++) add_products(lanes, four(key + turn * LANES + thread * 4), turn * LANES + thread * 4);
#pragma unroll 1
            for (int turn = n_whole; turn < n; turn++)
                add_products(lanes, load_cached(key, turn * LANES + thread * 4, a.head_dim), turn * LANES + thread * 4);
#pragma unroll
            for (int head = 0; head < HEADS; head++) {
                const float score = sum_lanes_of_four(lanes[head]) * a.scale;
                if (thread == 0 && position < end) {
                    scores[head * a.window + position - first] = score;
                    largest[head] = larger(largest[head], score);
                }
            }
        }
    }

    __device__ void run(u32 first_head, u32 token) {
        __shared__ float scratch[32];
        __shared__ float inverse_sums[HEADS];
        const u32 dim = a.head_dim, n_windows = (n_positions + a.window - 1) / a.window;
        fetch(0);
        fetch(1);
        const float* query = a.qkv + ((u64)token * (a.n_heads + 2 * a.n_kv_heads) + first_head) * dim;
        for (u32 index = threadIdx.x; index < HEADS * dim_padded; index += blockDim.x) {
            const u32 column = index % dim_padded;
            queries[index] = column < dim ? query[index / dim_padded * dim + column] : 0.0f;
        }
        __syncthreads();
        float largest[HEADS];
#pragma unroll
        for (int head = 0; head < HEADS; head++) largest[head] = NEGATIVE_INFINITY;
        // Warp w sums the numerators of head w in 16 lanes; every thread adds up values for up to PAIRS_MAX pairs of head and column.
        float sum = 0.0f, out[PAIRS_MAX] = {};
        // First all windows for the largest scores, then all for the rest: the second time a lone window's scores are still there.
#pragma unroll 1
        for (u32 turn = 0; turn < 2 * n_windows; turn++) {
            const bool is_second = turn >= n_windows;
            const u32 first = (is_second ? turn - n_windows : turn) * a.window, end = min(n_positions, first + a.window);
            __syncthreads();
            if (!is_second || n_windows > 1) score(first, end, largest);
            if (turn + 1 == n_windows) {
#pragma unroll
                for (int head = 0; head < HEADS; head++) largest[head] = largest_of_block(largest[head], scratch);
            }
            if (!is_second) continue;
            __syncthreads();
#pragma unroll
            for (int head = 0; head < HEADS; head++)
                for (u32 index = threadIdx.x; index < end - first; index += blockDim.x)
                    scores[head * a.window + index] = exp_exact(scores[head * a.window + index] - largest[head]);
            __syncthreads();
            if (threadIdx.x / 32 < HEADS) {
                const float* numerators = scores + threadIdx.x / 32 * a.window + (threadIdx.x & (LANES - 1));
                const int n = n_turns(threadIdx.x & (LANES - 1), end - first, LANES);
#pragma unroll 4
                for (int turn = 0; turn < n; turn++) sum += numerators[turn * LANES];
            }
            for (u32 tile = first / a.tile; tile * a.tile < end; tile++) {
                asm volatile("cp.async.wait_group 1;");
                __syncthreads();
                const u32 tile_first = tile * a.tile, n = min(end - tile_first, a.tile);
                const Element* values = tiles + (tile & 1) * a.tile * dim;
#pragma unroll
                for (int pair = 0; pair < PAIRS_MAX; pair++) {
                    const u32 index = pair * blockDim.x + threadIdx.x;
                    if (index >= HEADS * dim) continue;
                    const float* weights = scores + index / dim * a.window + (tile_first - first);
                    const Element* column = values + index % dim;
#pragma unroll 8
                    for (int position = 0; position < (int)n; position++) out[pair] += weights[position] * as_float(column[position * dim]);
                }
                __syncthreads();
                fetch(tile + 2);
            }
        }
        sum = sum_lanes(sum);
        if (threadIdx.x / 32 < HEADS && (threadIdx.x & 31) == 0) inverse_sums[threadIdx.x / 32] = 1.0f / sum;
        __syncthreads();
#pragma unroll
        for (int pair = 0; pair < PAIRS_MAX; pair++) {
            const u32 index = pair * blockDim.x + threadIdx.x;
            if (index < HEADS * dim) a.out[((u64)token * a.n_heads + first_head) * dim + index] = out[pair] * inverse_sums[index / dim];
        }
    }
};

template <int HEADS, typename Element>
__device__ __forceinline__ void attention_body(const AttentionArgs& a) {
    extern __shared__ float shared[];
    admit_successor();
    await_predecessors();
    const u32 token = a.tokens[blockIdx.y], sharing = a.n_heads / a.n_kv_heads;
    const u32 tiles_of_kv_head = sharing / HEADS, kv_head = blockIdx.x / tiles_of_kv_head;
    const u32 dim_padded = (a.head_dim + LANES - 1) / LANES * LANES;
    float* scores = shared + HEADS * dim_padded;
    Attention<HEADS, Element> attention{
        a, a.blocks + a.table_starts[token], shared, scores, (Element*)(scores + HEADS * a.window), kv_head, dim_padded, a.positions[token] + 1,
    };
    attention.run(kv_head * sharing + blockIdx.x % tiles_of_kv_head * HEADS, token);
}

#define ATTENTION(name, heads, element) \
    extern "C" __global__ void __launch_bounds__(256, 2) name(const AttentionArgs a) { attention_body<heads, element>(a); }

ATTENTION(attention_f32_1, 1, float)
ATTENTION(attention_f32_2, 2, float)
ATTENTION(attention_f32_4, 4, float)
ATTENTION(attention_f16_1, 1, Half)
ATTENTION(attention_f16_2, 2, Half)
ATTENTION(attention_f16_4, 4, Half)
