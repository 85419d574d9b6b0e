// attention for tokens of one sequence that stand together in a step (a prompt): a block takes 16 rows, each a query head of a token, that
// share keys and values, and multiplies tiles of 64 positions with all of them from shared memory. Order of every sum as in attention.cu.
//
// Rows see up to their own position. What a row may not see has weight 0: adding 0 · value changes no bit of a finite sum. Sums of scores are
// split in registers as 4 rows × 4 positions × 4 lanes a thread; there is no fused multiply-add, and no way round it: 16 lanes are 16 sums.
#define ROWS 16
#define TILE 64
#define THREADS 256

struct AttentionTileArgs {
    const float* qkv;         // [m, (n_heads + 2·n_kv_heads)·DIM]
    const void* keys;         // of the layer: [n_blocks, n_kv_heads, BLOCK_TOKENS, DIM]
    const void* values;       // likewise
    float* out;               // [m, n_heads·DIM]
    const u32* positions;     // [m]
    const u32* table_starts;  // [m]: where the block table of the token's sequence begins
    const u32* blocks;        // block tables, one after another
    const u32* tiles;         // [grid.y, 2]: first token, number of tokens
    u32 n_heads;
    u32 n_kv_heads;
    u32 window;               // positions whose scores are held, a multiple of TILE
    float scale;
};

__device__ __forceinline__ int ordered(float value) {
    const int bits = __float_as_int(value);
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

__device__ __forceinline__ float from_ordered(int key) { return __int_as_float(key >= 0 ? key : key ^ 0x7fffffff); }

__device__ __forceinline__ float4 four(const float* from) { return *(const float4*)from; }
__device__ __forceinline__ float4 four(const Half* from) {
    const uint2 bits = *(const uint2*)from;
    const float2 low = two_halves(bits.x), high = two_halves(bits.y);
    return make_float4(low.x, low.y, high.x, high.y);
}

template <int DIM, int SHARING, typename Element>
struct AttentionTile {
    static const int STRIDE = DIM + LANES;
    static const int ROWS_PER_THREAD = ROWS * DIM / THREADS;

    const AttentionTileArgs& a;
    const u32* blocks;
    float* queries;    // [ROWS, DIM]
    Element* buffers;  // [2, TILE, STRIDE]
    float* scores;     // [ROWS, window + 4]
    int* largest;      // [ROWS], ordered
    const u32* limits; // [ROWS]: positions that a row sees
    u32 kv_head;
    u32 n_positions;   // that any row sees

    // Starts to fetch tile `index` of keys or values into buffer `index & 1`; rows beyond `n_positions` become zeros. Always one group.
    __device__ __forceinline__ void fetch(const void* from, u32 index) const {
        const int PIECE = 16 / sizeof(Element);
        Element* buffer = buffers + (index & 1) * TILE * STRIDE;
        if (index * TILE < n_positions) {
#pragma unroll
            for (int step = 0; step < TILE * DIM / PIECE / THREADS; step++) {
                const u32 item = step * THREADS + threadIdx.x, row = item / (DIM / PIECE), piece = item % (DIM / PIECE);
                const u32 position = index * TILE + row;
                const u32 n_bytes = position < n_positions ? 16 : 0;
                const u64 block = blocks[min(position, n_positions - 1) / BLOCK_TOKENS];
                const u64 place = ((block * a.n_kv_heads + kv_head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * DIM + piece * PIECE;
                const Element* line = (const Element*)from + place;
                const u32 to = (u32)__cvta_generic_to_shared(buffer + row * STRIDE + piece * PIECE);
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(line), "r"(n_bytes));
            }
        }
        asm volatile("cp.async.commit_group;");
    }

    // Scores of the tiles of positions first..end into `scores` from column 0; what a row does not see becomes −∞.
    __device__ __forceinline__ void score(u32 first, u32 end) const {
        const u32 thread = threadIdx.x & 3, quad = threadIdx.x / 4, first_row = quad / 16 * 4, column_of_quad = quad % 16;
        float best[4] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY, NEGATIVE_INFINITY, NEGATIVE_INFINITY};
        const u32 last = (end + TILE - 1) / TILE;
        fetch(a.keys, first / TILE);
        for (u32 tile = first / TILE; tile < last; tile++) {
            if (tile + 1 < last) fetch(a.keys, tile + 1);
            else asm volatile("cp.async.commit_group;");
            asm volatile("cp.async.wait_group 1;");
            __syncthreads();
            const Element* keys = buffers + (tile & 1) * TILE * STRIDE + column_of_quad * STRIDE + thread * 4;
            const float* rows = queries + first_row * DIM + thread * 4;
            float4 lanes[4][4] = {};
#pragma unroll 2
            for (int column = 0; column < DIM; column += LANES) {
                float4 q[4], k[4];
#pragma unroll
                for (int index = 0; index < 4; index++) {
                    q[index] = *(const float4*)(rows + index * DIM + column);
                    k[index] = four(keys + index * 16 * STRIDE + column);
                }
#pragma unroll
                for (int row = 0; row < 4; row++)
#pragma unroll
                    for (int place = 0; place < 4; place++) {
                        lanes[row][place].x += q[row].x * k[place].x;
                        lanes[row][place].y += q[row].y * k[place].y;
                        lanes[row][place].z += q[row].z * k[place].z;
                        lanes[row][place].w += q[row].w * k[place].w;
                    }
            }
#pragma unroll
            for (int row = 0; row < 4; row++)
#pragma unroll
                for (int place = 0; place < 4; place++) {
                    const float sum = sum_lanes_of_four(lanes[row][place]) * a.scale;
                    const u32 position = tile * TILE + place * 16 + column_of_quad;
                    const float seen = position < limits[first_row + row] ? sum : NEGATIVE_INFINITY;
                    if (thread == 0) scores[(first_row + row) * (a.window + 4) + position - first] = seen;
                    best[row] = larger(best[row], seen);
                }
            __syncthreads();
        }
        if (thread == 0) {
#pragma unroll
            for (int row = 0; row < 4; row++) atomicMax(largest + first_row + row, ordered(best[row]));
        }
        __syncthreads();
    }

    __device__ void run(u32 first_token, u32 n_tokens, u32 first_head) const {
        __shared__ float inverse_sums[ROWS];
        const u32 n_windows = (n_positions + a.window - 1) / a.window, width = a.window + 4;
        for (u32 window = 0; window < n_windows; window++) score(window * a.window, min(n_positions, (window + 1) * a.window));
        const u32 sum_row = threadIdx.x / LANES, column = threadIdx.x % DIM, first_row = threadIdx.x / DIM * ROWS_PER_THREAD;
        float sum = 0.0f, out[ROWS_PER_THREAD] = {};
        for (u32 window = 0; window < n_windows; window++) {
            const u32 first = window * a.window, end = min(n_positions, first + a.window), last = (end + TILE - 1) / TILE;
            if (n_windows > 1) score(first, end);
            fetch(a.values, first / TILE);
            const u32 n = (last - first / TILE) * TILE;
            for (u32 row = 0; row < ROWS; row++) {
                const float greatest = from_ordered(largest[row]);
                for (u32 index = threadIdx.x; index < n; index += THREADS) {
                    const float score = scores[row * width + index];
                    scores[row * width + index] = first + index < limits[row] ? exp_exact(score - greatest) : 0.0f;
                }
            }
            __syncthreads();
            const float* numerators = scores + sum_row * width + (threadIdx.x & (LANES - 1));
#pragma unroll 8
            for (int turn = 0; turn < (int)n / LANES; turn++) sum += numerators[turn * LANES];
            for (u32 tile = first / TILE; tile < last; tile++) {
                if (tile + 1 < last) fetch(a.values, tile + 1);
                else asm volatile("cp.async.commit_group;");
                asm volatile("cp.async.wait_group 1;");
                __syncthreads();
                const Element* values = buffers + (tile & 1) * TILE * STRIDE + column;
                const float* weights = scores + first_row * width + tile * TILE - first;
#pragma unroll 2
                for (int position = 0; position < TILE; position += 4) {
                    float value[4];
#pragma unroll
                    for (int part = 0; part < 4; part++) value[part] = as_float(values[(position + part) * STRIDE]);
#pragma unroll
                    for (int row = 0; row < ROWS_PER_THREAD; row++) {
                        const float4 weight = *(const float4*)(weights + row * width + position);
                        out[row] += weight.x * value[0];
                        out[row] += weight.y * value[1];
                        out[row] += weight.z * value[2];
                        out[row] += weight.w * value[3];
                    }
                }
                __syncthreads();
            }
        }
        sum = sum_lanes(sum);
        if ((threadIdx.x & (LANES - 1)) == 0) inverse_sums[sum_row] = 1.0f / sum;
        __syncthreads();
#pragma unroll
        for (int row = 0; row < ROWS_PER_THREAD; row++) {
            const u32 token = (first_row + row) / SHARING, head = (first_row + row) % SHARING;
            if (token >= n_tokens) continue;
            a.out[((u64)(first_token + token) * a.n_heads + first_head + head) * DIM + column] = out[row] * inverse_sums[first_row + row];
        }
    }
};

template <int DIM, int SHARING, typename Element>
__device__ __forceinline__ void attention_tile_body(const AttentionTileArgs& a) {
    extern __shared__ float shared[];
    __shared__ int largest[ROWS];
    __shared__ u32 limits[ROWS];
    admit_successor();
    await_predecessors();
    const u32 first_token = a.tiles[blockIdx.y * 2], n_tokens = a.tiles[blockIdx.y * 2 + 1];
    const u32 tiles_of_kv_head = a.n_heads / a.n_kv_heads / SHARING, kv_head = blockIdx.x / tiles_of_kv_head;
    const u32 first_head = blockIdx.x * SHARING, width = (a.n_heads + 2 * a.n_kv_heads) * DIM;
    if (threadIdx.x < ROWS) {
        // A row that is not there repeats the last token's.
        limits[threadIdx.x] = a.positions[first_token + min(threadIdx.x / SHARING, n_tokens - 1)] + 1;
        largest[threadIdx.x] = ordered(NEGATIVE_INFINITY);
    }
    for (u32 index = threadIdx.x; index < ROWS * DIM; index += THREADS) {
        const u32 row = index / DIM, token = first_token + min(row / SHARING, n_tokens - 1);
        shared[index] = a.qkv[(u64)token * width + (first_head + row % SHARING) * DIM + index % DIM];
    }
    __syncthreads();
    Element* buffers = (Element*)(shared + ROWS * DIM);
    const AttentionTile<DIM, SHARING, Element> tile{
        a, a.blocks + a.table_starts[first_token], shared, buffers, (float*)(buffers + 2 * TILE * (DIM + LANES)), largest, limits, kv_head,
        a.positions[first_token + n_tokens - 1] + 1,
    };
    tile.run(first_token, n_tokens, first_head);
}

#define ATTENTION_TILE(name, dim, sharing, element) \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) name(const AttentionTileArgs a) { attention_tile_body<dim, sharing, element>(a); }

ATTENTION_TILE(attention_tile_64_f32_1, 64, 1, float)
ATTENTION_TILE(attention_tile_64_f32_2, 64, 2, float)
ATTENTION_TILE(attention_tile_64_f32_4, 64, 4, float)
ATTENTION_TILE(attention_tile_128_f32_1, 128, 1, float)
ATTENTION_TILE(attention_tile_128_f32_2, 128, 2, float)
ATTENTION_TILE(attention_tile_128_f32_4, 128, 4, float)
ATTENTION_TILE(attention_tile_64_f16_1, 64, 1, Half)
ATTENTION_TILE(attention_tile_64_f16_2, 64, 2, Half)
ATTENTION_TILE(attention_tile_64_f16_4, 64, 4, Half)
ATTENTION_TILE(attention_tile_128_f16_1, 128, 1, Half)
ATTENTION_TILE(attention_tile_128_f16_2, 128, 2, Half)
ATTENTION_TILE(attention_tile_128_f16_4, 128, 4, Half)
