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
        mask_scores<TILE / 16>(scores, greatest, tile * TILE, limits);
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
        split.store(a.out + ((u64)token_of(row) * a.n_heads + head_of(row)) * DIM, half);
    }
}

// Rotates the key of a token as rope_append does and puts it and the value into the cache, by all threads.
template <int DIM>
__device__ __forceinline__ void append_last(const AttentionRotatingArgs& args, u32 token, u32 kv_head, u32 block, u32 row) {
    const AttentionMmaArgs& a = args.of;
    const u64 place = (((u64)block * a.n_kv_heads + kv_head) * BLOCK_TOKENS + row) * DIM;
    const float* key = a.qkv + ((u64)token * (a.n_heads + 2 * a.n_kv_heads) + a.n_heads + kv_head) * DIM;
    const float* value = key + a.n_kv_heads * DIM;
    const u32 thread = threadIdx.x, pair = thread % (DIM / 2);
    if (thread < DIM / 2) {
        const float x = key[pair], y = key[DIM / 2 + pair];
        const float cos = args.cos[(u64)token * (DIM / 2) + pair], sin = args.sin[(u64)token * (DIM / 2) + pair];
        store((Half*)a.keys + place + pair, x * cos - y * sin);
        store((Half*)a.keys + place + DIM / 2 + pair, y * cos + x * sin);
    } else if (thread < DIM) {
        store((Half*)a.values + place + pair, value[pair]);
        store((Half*)a.values + place + DIM / 2 + pair, value[DIM / 2 + pair]);
    }
}

template <int DIM>
__device__ __forceinline__ void attention_mma_one_body(const AttentionRotatingArgs& args) {
    const AttentionMmaArgs& a = args.of;
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
        takes_all ? n_tiles : min(n_tiles, (split + 1) * SPLIT_TILES), n_positions, blockIdx.y,
    };
    // Keys and values of steps before are there before this step's are: only the tile of the last position waits for it.
    const bool is_old = (one.first_tile + RING - 1) * TILE < n_positions;
    // The last position's block puts it into the cache, if nobody did before: its tile is fetched behind a barrier.
    const bool rotates = args.cos != nullptr;
    const auto append = [&] {
        const u32 block = one.blocks[(n_positions - 1) / BLOCK_TOKENS];
        if (rotates && one.end_tile == n_tiles) append_last<DIM>(args, token, one.kv_head, block, (n_positions - 1) % BLOCK_TOKENS);
    };
    if (!is_old) {
        await_predecessors();
        append();
        if (rotates) barrier_of_heads();
    }
    for (u32 tile = 0; tile < RING - 1; tile++) one.fetch(one.first_tile + tile);
    if (is_old) {
        await_predecessors();
        append();
    }
    u32 queries[DIM / 16][4];
    const float* first_query = a.qkv + (u64)token * (a.n_heads + 2 * a.n_kv_heads) * DIM + first_head * DIM;
    // Each warp reads them for itself, into the slot that is not fetched yet: DIM · 32 bytes a warp.
    const u32 of_queries = one.keys(one.first_tile + RING - 1) + threadIdx.x / 32 * 16 * DIM * 2;
    const auto query = [&](u32 row) { return first_query + min(row, sharing - 1) * DIM; };
    if (rotates) load_rotated<DIM, SHARING_MAX>(queries, of_queries, args, query, [&](u32) { return token; });
    else load_queries<DIM, SHARING_MAX>(queries, of_queries, a.scale, query);
    Partial<DIM / WARPS> total;
    one.run(total, queries);
    float* out = a.out + ((u64)token * a.n_heads + first_head) * DIM;
    if (takes_all || n_present == 1) {
        one.store_all(total, out);
    } else {
        one.share(total, out, first_head, split, n_present);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_mma_prompt_64(const AttentionMmaArgs a) { attention_mma_prompt_body<64>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_mma_prompt_128(const AttentionMmaArgs a) { attention_mma_prompt_body<128>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_mma_one_64(const AttentionRotatingArgs a) { attention_mma_one_body<64>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_mma_one_128(const AttentionRotatingArgs a) { attention_mma_one_body<128>(a); }
