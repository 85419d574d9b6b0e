// attention of prompts over a cache of halves on Hopper's tensor cores (wgmma, which reads keys and values from shared memory once for 64 rows, mma.sync
// for each 16): `attention_mma_prompt` with the same sums in the same order, to the bit.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Warpgroups of 64 rows that share keys and values, each at its own pace, so that one multiplies while the other finds weights; and one that copies.
#define WARPGROUPS 2
#define WGMMA_THREADS ((WARPGROUPS + 1) * THREADS)
// Tiles of keys or values in shared memory, and so many of them on their way.
#define SLOTS 8
#define IN_FLIGHT 3

#define PLACES_OF(d, first) "+f"(d[(first) / 4][0]), "+f"(d[(first) / 4][1]), "+f"(d[(first) / 4][2]), "+f"(d[(first) / 4][3])
#define PLACES_OF_16(d, first) PLACES_OF(d, first), PLACES_OF(d, first + 4), PLACES_OF(d, first + 8), PLACES_OF(d, first + 12)
#define PLACES_OF_32(d, first) PLACES_OF_16(d, first), PLACES_OF_16(d, first + 16)
#define WGMMA_HALVES(n, places, following, ...) \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" places "}, " following \
                 : __VA_ARGS__ \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right))

// sums[64, 64] (+)= left[64, 16] · rightᵀ[64, 16]: the first of a sum, or another.
__device__ __forceinline__ void multiply_keys(float (&sums)[8][4], const u32 (&left)[4], u64 right, bool is_first) {
    if (is_first) WGMMA_HALVES(64, PLACES_32, "{%32,%33,%34,%35}, %36, 0, 1, 1, 0;", PLACES_OF_32(sums, 0));
    else WGMMA_HALVES(64, PLACES_32, "{%32,%33,%34,%35}, %36, 1, 1, 1, 0;", PLACES_OF_32(sums, 0));
}

// sums[64, DIM] += left[64, 16] · right[16, DIM].
__device__ __forceinline__ void multiply_values(float (&sums)[8][4], const u32 (&left)[4], u64 right) {
    WGMMA_HALVES(64, PLACES_32, "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;", PLACES_OF_32(sums, 0));
}
__device__ __forceinline__ void multiply_values(float (&sums)[16][4], const u32 (&left)[4], u64 right) {
    WGMMA_HALVES(128, PLACES_64, "{%64,%65,%66,%67}, %68, 1, 1, 1, 1;", PLACES_OF_32(sums, 0), PLACES_OF_32(sums, 32));
}

// A descriptor of values, whose rows are what is added up over: those of the next 64 columns are a tile's half behind, of the next eight rows 1,024 bytes.
__device__ __forceinline__ u64 describe_values(u32 shared) {
    const u64 swizzled = 1, columns_step = TILE * 128 >> 4, rows_step = 1024 >> 4;
    return (u64)(shared >> 4) | (columns_step << 16) | (rows_step << 32) | (swizzled << 62);
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void await_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// The ring of tiles in shared memory: keys of tile 0, then keys of each next tile and values of the one before it, as they are multiplied.
struct Slots {
    u32 tiles, full, empty;  // tiles, and barriers of each: it has been filled, all warps have read it
};
__device__ __forceinline__ u32 item_of_keys(u32 tile) { return tile == 0 ? 0 : 2 * tile - 1; }
__device__ __forceinline__ u32 item_of_values(u32 tile) { return 2 * tile + 2; }

// The copying warpgroup.
template <int DIM>
struct Copier {
    static const int PIECES = DIM / 8;
    // Rows copied at a time.
    static const int ROWS = THREADS / PIECES;

    const AttentionMmaArgs& a;
    const Slots& slots;
    const u32* table;
    u32 kv_head, n_positions;

    // Block `lane % 4` of a tile.
    __device__ __forceinline__ u32 look_up(u32 tile) const {
        return __ldg(table + min(tile * TILE + threadIdx.x % 4 * BLOCK_TOKENS, n_positions - 1) / BLOCK_TOKENS);
    }

    __device__ __forceinline__ void run(u32 n_tiles) const {
        // Behind the last tile's keys there are none, but they are multiplied as if there were.
        const u32 n_items = item_of_values(n_tiles - 1) + 1;
        u32 of_keys = look_up(0), of_values = of_keys;
        for (u32 item = 0; item < n_items + IN_FLIGHT; item++) {
            if (item < n_items) {
                const u32 slot = item % SLOTS, tile = item / 2;
                if (item >= SLOTS) await(slots.empty + slot * 8, (item / SLOTS - 1) & 1);
                if (item == 0) {
                    copy(a.keys, slot, 0, of_keys);
                    of_keys = look_up(1);
                } else if (item % 2 == 1) {
                    // Keys of tile + 1; its values come two items later.
                    copy(a.keys, slot, tile + 1, of_keys);
                } else {
                    copy(a.values, slot, tile - 1, of_values);
                    of_values = of_keys;
                    of_keys = look_up(tile + 1);
                }
            }
            end_fetch();
            if (item >= IN_FLIGHT) {
                asm volatile("cp.async.wait_group %0;" ::"n"(IN_FLIGHT) : "memory");
                // What copies have written is read by the tensor cores.
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                arrive(slots.full + (item - IN_FLIGHT) % SLOTS * 8);
            }
        }
    }

    // Rows from `n_positions` on become zeros.
    __device__ __forceinline__ void copy(const Half* numbers, u32 slot, u32 tile, u32 block) const {
        if (tile * TILE >= n_positions) return;
        const u32 to = slots.tiles + slot * TILE * DIM * 2;
        if ((tile + 1) * TILE <= n_positions) copy_rows<true>(numbers, to, block, 0);
        else copy_rows<false>(numbers, to, block, n_positions - tile * TILE);
    }

    template <bool IS_WHOLE>
    __device__ __forceinline__ void copy_rows(const Half* numbers, u32 to, u32 block, u32 n_rows) const {
        const u32 thread = threadIdx.x % THREADS, first_row = thread / PIECES, piece = thread % PIECES;
        const char* from = (const char*)(numbers + (u64)kv_head * BLOCK_TOKENS * DIM + first_row * DIM + piece * 8);
        const u32 block_bytes = a.n_kv_heads * BLOCK_TOKENS * DIM * 2;
#pragma unroll
        for (int of_tile = 0; of_tile < TILE / BLOCK_TOKENS; of_tile++) {
            const char* of_block = from + (u64)__shfl_sync(FULL_WARP, block, of_tile) * block_bytes;
#pragma unroll
            for (int row = 0; row < BLOCK_TOKENS; row += ROWS) {
                const u32 place = to + of_tile * BLOCK_TOKENS * 128 + piece_of_tile<DIM>(row + first_row, piece);
                const u32 n_bytes = IS_WHOLE || of_tile * BLOCK_TOKENS + row + first_row < n_rows ? 16 : 0;
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(of_block + row * DIM * 2), "r"(n_bytes) : "memory");
            }
        }
    }
};

template <int DIM>
__device__ __forceinline__ void attention_wgmma_body(const AttentionRotatingArgs& args) {
    const AttentionMmaArgs& a = args.of;
    extern __shared__ __align__(1024) char shared[];
    __shared__ u64 full[SLOTS], empty[SLOTS];
    const int TILE_SIZE = TILE * DIM * 2;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x & 31, line = lane / 4, sharing = 1 << a.log_sharing;
    const u32 first_head = blockIdx.x * sharing, kv_head = first_head / (a.n_heads / a.n_kv_heads), width = (a.n_heads + 2 * a.n_kv_heads) * DIM;
    const Slots slots{(u32)__cvta_generic_to_shared(shared), (u32)__cvta_generic_to_shared(full), (u32)__cvta_generic_to_shared(empty)};
    if (threadIdx.x < SLOTS) {
        make_barrier(slots.full + threadIdx.x * 8, THREADS);
        make_barrier(slots.empty + threadIdx.x * 8, WARPGROUPS * 4);
    }
    __syncthreads();
    admit_successor();
    await_predecessors();
    const u32 first_token = a.tokens[blockIdx.y * 2], n_tokens = a.tokens[blockIdx.y * 2 + 1];
    const u32 first_position = a.positions[first_token], n_positions = first_position + n_tokens, n_tiles = (n_positions + TILE - 1) / TILE;
    if (warp >= WARPGROUPS * 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        Copier<DIM>{a, slots, a.blocks + a.table_starts[first_token], kv_head, n_positions}.run(n_tiles);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    // All rows see all of these tiles.
    const u32 n_seen = (first_position + 1) / TILE;
    // A row that is not there repeats the last token's.
    const auto token_of = [&](u32 row) { return first_token + min((warp * 16 + row) >> a.log_sharing, n_tokens - 1); };
    const auto head_of = [&](u32 row) { return first_head + (row & (sharing - 1)); };
    const auto await_item = [&](u32 item) { await(slots.full + item % SLOTS * 8, item / SLOTS & 1); };
    const auto free_item = [&](u32 item) {
        if (lane == 0) arrive(slots.empty + item % SLOTS * 8);
    };
    const auto place_of = [&](u32 item) { return slots.tiles + item % SLOTS * TILE_SIZE; };
    // The splits so far lie in shared memory: registers hold one. Until then queries are there.
    char* const of_warpgroup = shared + SLOTS * TILE_SIZE + warp / 4 * (THREADS * (DIM / 2 + 4) * 4);
    float* kept = (float*)of_warpgroup + threadIdx.x % THREADS;
    u32 queries[DIM / 16][4];
    const auto query = [&](u32 row) { return a.qkv + (u64)token_of(row) * width + head_of(row) * DIM; };
    const u32 of_queries = (u32)__cvta_generic_to_shared(of_warpgroup) + warp % 4 * 16 * DIM * 2;
    if (args.cos == nullptr) load_queries<DIM, 16>(queries, of_queries, a.scale, query);
    else load_rotated<DIM, 16>(queries, of_queries, args, query, token_of);
    const u32 limits[2] = {a.positions[token_of(line)] + 1, a.positions[token_of(line + 8)] + 1};
    Partial<DIM> split;
    split.begin();

    const auto score = [&](float (&scores)[TILE / 8][4], u32 tile) {
        const u32 item = item_of_keys(tile), keys = place_of(item);
        await_item(item);
        begin_products();
#pragma unroll
        for (int step = 0; step < DIM / 16; step++)
            multiply_keys(scores, queries[step], describe(keys + step / 4 * (TILE * 128) + step % 4 * 32), step == 0);
        end_products();
    };
    float even[TILE / 8][4], odd[TILE / 8][4];
    score(even, 0);
    await_products();
    free_item(0);
    const auto add_tile = [&](float (&scores)[TILE / 8][4], float (&next)[TILE / 8][4], u32 tile) {
        // While the weights of this tile are found. Behind the last tile nobody looks at them.
        score(next, tile + 1);
        float greatest[2];
        if (tile < n_seen) find_greatest<TILE / 16>(scores, greatest);
        else mask_scores<TILE / 16>(scores, greatest, tile * TILE, limits);
        split.rescale(greatest);
        u32 weights[TILE / 16][4];
        weigh<TILE / 16>(weights, scores, split.largest);
        const u32 item = item_of_values(tile), values = place_of(item);
        await_item(item);
        begin_products();
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) multiply_values(split.values, weights[step], describe_values(values + step * 2048));
        end_products();
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) multiply_halves(split.sums, weights[step], ONES, ONES);
        await_products();
        free_item(item_of_keys(tile + 1));
        free_item(item);
        if ((tile + 1) % SPLIT_TILES == 0 && tile + 1 < n_tiles) {
            put_together(kept, split, tile / SPLIT_TILES * SPLIT, limits);
            split.keep(kept);
            split.begin();
        }
    };
#pragma unroll 1
    for (u32 tile = 0; tile < n_tiles; tile += 2) {
        add_tile(even, odd, tile);
        if (tile + 1 < n_tiles) add_tile(odd, even, tile + 1);
    }
    put_together(kept, split, (n_tiles - 1) / SPLIT_TILES * SPLIT, limits);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 row = line + half * 8;
        if ((warp * 16 + row) >> a.log_sharing >= n_tokens) continue;
        split.store(a.out + ((u64)token_of(row) * a.n_heads + head_of(row)) * DIM, half);
    }
}

#define ATTENTION_WGMMA(dim) \
    extern "C" __global__ void __launch_bounds__(WGMMA_THREADS, 1) attention_wgmma_##dim(const AttentionRotatingArgs a) { attention_wgmma_body<dim>(a); }
#else
// No wgmma here: the host does not ask for these kernels.
#define ATTENTION_WGMMA(dim) \
    extern "C" __global__ void attention_wgmma_##dim() {}
#endif

ATTENTION_WGMMA(64)
ATTENTION_WGMMA(128)
