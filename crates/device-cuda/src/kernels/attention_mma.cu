// attention over a cache of halves (attention_mma.cuh).
// Tiles of keys and values of a token alone that are on their way or in use: few, so that three tokens share a multiprocessor.
#define RING 2
// Query heads of a token alone that a block takes at most.
#define SHARING_MAX 4

template <int DIM>
__device__ __forceinline__ void attention_mma_prompt_body(const AttentionMmaArgs& a) {
    extern __shared__ __align__(128) char shared[];
    const int TILE_SIZE = TILE * DIM * 2;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x & 31, line = lane / 4, sharing = 1 << a.log_sharing;
    const u32 first_head = blockIdx.x * sharing, kv_head = first_head / (a.n_heads / a.n_kv_heads), width = (a.n_heads + 2 * a.n_kv_heads) * DIM;
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    admit_successor();
    await_predecessors();
    const u32 first_token = a.tokens[blockIdx.y * 2], n_tokens = a.tokens[blockIdx.y * 2 + 1];
    const u32* blocks = a.blocks + a.table_starts[first_token];
    const u32 n_positions = a.positions[first_token + n_tokens - 1] + 1, n_tiles = (n_positions + TILE - 1) / TILE;
    // A row that is not there repeats the last token's.
    const auto token_of = [&](u32 row) { return first_token + min((warp * 16 + row) >> a.log_sharing, n_tokens - 1); };
    const auto head_of = [&](u32 row) { return first_head + (row & (sharing - 1)); };
    const auto keys = [&](u32 tile) { return base + (tile & 1) * TILE_SIZE; };
    const auto values = [&](u32 tile) { return base + (2 + (tile & 1)) * TILE_SIZE; };
    const auto fetch = [&](u32 tile) {
        if (tile < n_tiles) {
            fetch_tiles<DIM>(a, keys(tile), values(tile), blocks, kv_head, tile * TILE, n_positions);
        }
        end_fetch();
    };
    u32 queries[DIM / 16][4];
    load_queries<DIM, 16>(queries, base + warp * 16 * DIM * 2, a.scale, [&](u32 row) { return a.qkv + (u64)token_of(row) * width + head_of(row) * DIM; });
    __syncthreads();
    fetch(0);
    const u32 limits[2] = {a.positions[token_of(line)] + 1, a.positions[token_of(line + 8)] + 1};
    const u32 lowest_limit = a.positions[token_of(0)] + 1;
    // The splits so far lie in shared memory: registers hold one.
    float* kept = (float*)(shared + 4 * TILE_SIZE) + threadIdx.x;
    Partial<DIM> split;
    split.begin();
    for (u32 tile = 0; tile < n_tiles; tile++) {
        fetch(tile + 1);
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        float scores[TILE / 8][4], greatest[2];
        score_keys<DIM, TILE / 16>(scores, queries, keys(tile), 0);
        if ((tile + 1) * TILE <= lowest_limit) mask_scores<TILE / 16>(scores, greatest, tile * TILE, limits, true);
        else mask_scores<TILE / 16>(scores, greatest, tile * TILE, limits, false);
        split.rescale(greatest);
        u32 weights[TILE / 16][4];
        weigh<TILE / 16>(weights, scores, split.largest);
        split.template add_tile<DIM>(weights, values(tile), 0);
        if ((tile + 1) % SPLIT_TILES == 0 && tile + 1 < n_tiles) {
            put_together(kept, split, tile / SPLIT_TILES * SPLIT, limits);
            split.keep(kept);
            split.begin();
        }
        __syncthreads();
    }
    put_together(kept, split, (n_tiles - 1) / SPLIT_TILES * SPLIT, limits);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 row = line + half * 8;
        if ((warp * 16 + row) >> a.log_sharing >= n_tokens) continue;
        float* out = a.out + ((u64)token_of(row) * a.n_heads + head_of(row)) * DIM + (lane & 3) * 2;
        const float factor = 1.0f / split.sums[half * 2];
#pragma unroll
        for (int tile = 0; tile < DIM / 8; tile++)
            *(float2*)(out + tile * 8) = make_float2(split.values[tile][half * 2] * factor, split.values[tile][half * 2 + 1] * factor);
    }
}

// Tokens alone whose heads have not been rotated: attention behind rope_append, by which a token's key and value go into the cache.
struct AttentionRopeArgs {
    AttentionMmaArgs of;
    const float* q_norm;    // [DIM], or null
    const float* k_norm;    // [DIM], or null
    const float* cos;       // [m, DIM / 2]
    const float* sin;       // [m, DIM / 2]
    const u32* slots;       // [m]: block · BLOCK_TOKENS + row
    float epsilon;
    u32 unused;
};

// rope_append of a block's query heads, and of the key and value that they share.
template <int DIM>
struct RopeHeads {
    const AttentionRopeArgs& a;
    u32 queries;    // shared memory, [16, DIM] as piece_of lays it; rows that are not there keep what stands in memory
    Half* last;     // shared memory, [2, DIM]: key and value
    float* heads;   // shared memory, [WARPS, DIM]
    u32 token, first_head, kv_head;

    // A warp a head: queries, then key and value.
    __device__ __forceinline__ void run() const {
        const u32 sharing = 1 << a.of.log_sharing, warp = threadIdx.x / 32;
#pragma unroll 1
        for (u32 item = warp; item < sharing + 2; item += WARPS) turn(item, sharing, heads + warp * DIM);
    }

    __device__ __forceinline__ void turn(u32 item, u32 sharing, float* values) const {
        const u32 lane = threadIdx.x & 31, head = item < sharing ? first_head + item : a.of.n_heads + (item - sharing) * a.of.n_kv_heads + kv_head;
        const float* row = a.of.qkv + ((u64)token * (a.of.n_heads + 2 * a.of.n_kv_heads) + head) * DIM;
        const bool turns = item <= sharing;
        const float* norm = !turns ? nullptr : item < sharing ? a.q_norm : a.k_norm;
        float cosines[DIM / 64], sines[DIM / 64];
#pragma unroll
        for (int index = 0; index < DIM / 64; index++) {
            cosines[index] = turns ? a.cos[(u64)token * (DIM / 2) + index * 32 + lane] : 0.0f;
            sines[index] = turns ? a.sin[(u64)token * (DIM / 2) + index * 32 + lane] : 0.0f;
        }
        __syncwarp();
#pragma unroll
        for (int index = 0; index < DIM / 32; index++) values[index * 32 + lane] = row[index * 32 + lane];
        __syncwarp();
        if (norm != nullptr) {
            float sum = 0.0f;
#pragma unroll
            for (int index = 0; index < DIM / LANES; index++) {
                const float value = values[index * LANES + (lane & (LANES - 1))];
                sum += value * value;
            }
            sum = __shfl_sync(FULL_WARP, sum_lanes(sum), 0);
            const float factor = 1.0f / sqrtf(sum / (float)DIM + a.epsilon);
            __syncwarp();
#pragma unroll
            for (int index = 0; index < DIM / 32; index++) values[index * 32 + lane] = (values[index * 32 + lane] * factor) * norm[index * 32 + lane];
            __syncwarp();
        }
#pragma unroll
        for (int index = 0; index < DIM / 64; index++) {
            const u32 pair = index * 32 + lane;
            const float x = values[pair], y = values[DIM / 2 + pair];
            const float low = turns ? x * cosines[index] - y * sines[index] : x, high = turns ? y * cosines[index] + x * sines[index] : y;
            if (item < sharing) {
                put_query(item, pair, low);
                put_query(item, DIM / 2 + pair, high);
            } else {
                store(last + (item - sharing) * DIM + pair, low);
                store(last + (item - sharing) * DIM + DIM / 2 + pair, high);
            }
        }
    }

    __device__ __forceinline__ void put_query(u32 row, u32 column, float value) const {
        const u32 bits = pack_halves(value * a.of.scale, 0.0f);
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(queries + piece_of<DIM>(row, column / 8) + column % 8 * 2), "h"((u16)bits) : "memory");
    }

    // Key and value go into the cache.
    __device__ __forceinline__ void append() const {
        const u32 part = threadIdx.x / (DIM / 8), piece = threadIdx.x % (DIM / 8);
        if (part >= 2) return;
        const u64 slot = a.slots[token], place = ((slot / BLOCK_TOKENS * a.of.n_kv_heads + kv_head) * BLOCK_TOKENS + slot % BLOCK_TOKENS) * DIM;
        ((uint4*)((part == 0 ? a.of.keys : a.of.values) + place))[piece] = ((const uint4*)(last + part * DIM))[piece];
    }
};

template <int DIM>
__device__ __forceinline__ void attention_mma_rope_body(const AttentionRopeArgs& args) {
    extern __shared__ __align__(128) char shared[];
    __shared__ float greatest_of_warps[WARPS * 16];
    __shared__ __align__(16) Half last[2 * DIM];
    __shared__ float heads[WARPS * DIM];
    const AttentionMmaArgs& a = args.of;
    const u32 sharing = 1 << a.log_sharing, split = blockIdx.x % a.n_splits, first_head = blockIdx.x / a.n_splits * sharing;
    const u32 base = (u32)__cvta_generic_to_shared(shared), lane = threadIdx.x & 31, heads_of_kv = a.n_heads / a.n_kv_heads;
    admit_successor();
    const u32 token = a.tokens[blockIdx.y], n_positions = a.positions[token] + 1;
    const u32 n_tiles = (n_positions + TILE - 1) / TILE, n_present = (n_tiles + SPLIT_TILES - 1) / SPLIT_TILES;
    if (split >= n_present) return;
    const bool takes_all = a.n_splits == 1;
    const AttentionOne<DIM, RING> one{
        a, a.blocks + a.table_starts[token], base, greatest_of_warps, first_head / heads_of_kv, split * SPLIT_TILES,
        takes_all ? n_tiles : min(n_tiles, (split + 1) * SPLIT_TILES), n_positions, blockIdx.y, (const uint4*)last, nullptr,
    };
    // What steps before have left in the cache is there before this step's heads are; the last position's row is put in its place later.
    for (u32 tile = 0; tile < RING - 1; tile++) one.fetch(one.first_tile + tile);
    await_predecessors();
    // Queries lie in the slot that is not fetched yet.
    const RopeHeads<DIM> rope{args, one.keys(one.first_tile + RING - 1), last, heads, token, first_head, one.kv_head};
    rope.run();
    __syncthreads();
    if (one.end_tile == n_tiles && first_head % heads_of_kv == 0) rope.append();
    u32 queries[DIM / 16][4];
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) load_matrices(queries[step], rope.queries + piece_of<DIM>(lane & 15, step * 2 + lane / 16));
    Partial<DIM / WARPS> total;
    one.run(total, queries);
    float* out = a.out + ((u64)token * a.n_heads + first_head) * DIM;
    if (takes_all || n_present == 1) {
        one.store_all(total, out, first_head);
    } else {
        one.share(total, out, first_head, split, n_present);
    }
}

template <int DIM>
__device__ __forceinline__ void attention_mma_one_body(const AttentionMmaArgs& a) {
    extern __shared__ __align__(128) char shared[];
    __shared__ float greatest_of_warps[WARPS * 16];
    const u32 sharing = 1 << a.log_sharing, split = blockIdx.x % a.n_splits, first_head = blockIdx.x / a.n_splits * sharing;
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    admit_successor();
    const u32 token = a.tokens[blockIdx.y], n_positions = a.positions[token] + 1;
    const u32 n_tiles = (n_positions + TILE - 1) / TILE, n_present = (n_tiles + SPLIT_TILES - 1) / SPLIT_TILES;
    if (split >= n_present) return;
    const bool takes_all = a.n_splits == 1;
    const AttentionOne<DIM, RING> one{
        a, a.blocks + a.table_starts[token], base, greatest_of_warps, first_head / (a.n_heads / a.n_kv_heads), split * SPLIT_TILES,
        takes_all ? n_tiles : min(n_tiles, (split + 1) * SPLIT_TILES), n_positions, blockIdx.y, nullptr, nullptr,
    };
    // Keys and values of steps before are there before this step's are: only the tile of the last position waits for it.
    const bool is_old = (one.first_tile + RING - 1) * TILE < n_positions;
    if (!is_old) await_predecessors();
    for (u32 tile = 0; tile < RING - 1; tile++) one.fetch(one.first_tile + tile);
    if (is_old) await_predecessors();
    u32 queries[DIM / 16][4];
    const float* first_query = a.qkv + (u64)token * (a.n_heads + 2 * a.n_kv_heads) * DIM + first_head * DIM;
    // Each warp reads them for itself, into the slot that is not fetched yet: DIM · 32 bytes a warp.
    load_queries<DIM, SHARING_MAX>(queries, one.keys(one.first_tile + RING - 1) + threadIdx.x / 32 * 16 * DIM * 2, a.scale, [&](u32 row) { return first_query + min(row, sharing - 1) * DIM; });
    Partial<DIM / WARPS> total;
    one.run(total, queries);
    float* out = a.out + ((u64)token * a.n_heads + first_head) * DIM;
    if (takes_all || n_present == 1) {
        one.store_all(total, out, first_head);
    } else {
        one.share(total, out, first_head, split, n_present);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_mma_prompt_64(const AttentionMmaArgs a) { attention_mma_prompt_body<64>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_mma_prompt_128(const AttentionMmaArgs a) { attention_mma_prompt_body<128>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_mma_one_64(const AttentionMmaArgs a) { attention_mma_one_body<64>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_mma_one_128(const AttentionMmaArgs a) { attention_mma_one_body<128>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_mma_rope_64(const AttentionRopeArgs a) { attention_mma_rope_body<64>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_mma_rope_128(const AttentionRopeArgs a) { attention_mma_rope_body<128>(a); }
