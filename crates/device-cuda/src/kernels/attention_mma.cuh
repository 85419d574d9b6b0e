// attention over a cache of halves on the tensor cores (mma.sync m16n8k16, f32 sums), after FlashAttention-2 (arXiv 2307.08691 §3.1). One order
// for every token, whoever is beside it and however its prompt was cut: positions in splits of 256, of which each goes by tiles of 64 with a
// running largest score; splits are put together ascending. Sums of softmax are products with ones, so the order of all sums is
// that of mma. Not the reference's order: decision 0017.
//
// `attention_mma_prompt`: tokens of one sequence that stand together in a step. A block takes 64 rows (a query head of a token each, of heads
// that share keys), a warp 16 of them and all positions. `attention_mma_one`: a token alone. A block takes its heads that share keys and one split
// or all of them; its warps share the keys of a tile, then the columns of the values, which changes no sum. Where splits have blocks of their
// own, the last to finish puts them together.
#define TILE 64
#define SPLIT 256
#define SPLIT_TILES (SPLIT / TILE)
#define WARPS 4
#define THREADS (WARPS * 32)

struct AttentionMmaArgs {
    const float* qkv;         // [m, (n_heads + 2·n_kv_heads)·DIM]
    const Half* keys;         // of the layer: [n_blocks, n_kv_heads, BLOCK_TOKENS, DIM]
    const Half* values;       // likewise
    float* out;               // [m, n_heads·DIM]
    const u32* positions;     // [m]
    const u32* table_starts;  // [m]: where the block table of the token's sequence begins
    const u32* blocks;        // block tables, one after another
    const u32* tokens;        // [grid.y] tokens alone, or [grid.y, 2]: first token, number of tokens
    float* partials;          // [grid.y, n_heads, n_splits, DIM + 2]: values, largest score, sum
    u32* n_arrived;           // [grid.y, n_heads >> log_sharing], zero between launches
    u32 n_heads;
    u32 n_kv_heads;
    u32 log_sharing;          // 2^this query heads, which share keys, are rows of a block
    u32 n_splits;             // blocks for splits of a token; 1: one block takes all
    float scale;              // of scores, times log2 e
    u32 unused;
};

// Two halves of 1.
#define ONES 0x3c003c00u

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two halves of a register, the first lower.
__device__ __forceinline__ u32 pack_halves(float low, float high) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

__device__ __forceinline__ void multiply_halves(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared)
                 : "memory");
}

__device__ __forceinline__ void load_transposed(u32 (&to)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared)
                 : "memory");
}

// Where 16 bytes of a row of WIDTH halves lie: neighbouring rows in different banks.
template <int WIDTH>
__device__ __forceinline__ u32 piece_of(u32 row, u32 piece) {
    return row * WIDTH * 2 + ((piece ^ (row & 7)) * 16);
}

// What a split, or several, make of rows `line` and `line + 8`: COLUMNS / 8 tiles of values, largest scores, sums.
template <int COLUMNS>
struct Partial {
    float values[COLUMNS / 8][4];
    float sums[4];  // [0], [1] of the first row, [2], [3] of the second, in pairs equal
    float largest[2];

    __device__ __forceinline__ void begin() {
#pragma unroll
        for (int tile = 0; tile < COLUMNS / 8; tile++)
#pragma unroll
            for (int part = 0; part < 4; part++) values[tile][part] = 0.0f;
#pragma unroll
        for (int part = 0; part < 4; part++) sums[part] = 0.0f;
        largest[0] = largest[1] = NEGATIVE_INFINITY;
    }

    // Makes room for scores up to `greatest`, by row.
    __device__ __forceinline__ void rescale(const float (&greatest)[2]) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float next = larger(largest[half], greatest[half]);
            const float factor = next == NEGATIVE_INFINITY ? 1.0f : exp2_fast(largest[half] - next);
            largest[half] = next;
#pragma unroll
            for (int part = half * 2; part < half * 2 + 2; part++) {
                sums[part] *= factor;
#pragma unroll
                for (int tile = 0; tile < COLUMNS / 8; tile++) values[tile][part] *= factor;
            }
        }
    }

    // Adds the next split for rows that see something of it.
    __device__ __forceinline__ void add(const Partial& next, const bool (&sees)[2]) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (!sees[half]) continue;
            const float greatest = larger(largest[half], next.largest[half]);
            const float ours = exp2_fast(largest[half] - greatest), theirs = exp2_fast(next.largest[half] - greatest);
            largest[half] = greatest;
#pragma unroll
            for (int part = half * 2; part < half * 2 + 2; part++) {
                sums[part] = __fmaf_rn(sums[part], ours, next.sums[part] * theirs);
#pragma unroll
                for (int tile = 0; tile < COLUMNS / 8; tile++)
                    values[tile][part] = __fmaf_rn(values[tile][part], ours, next.values[tile][part] * theirs);
            }
        }
    }

    // Keeps this in shared memory, a column of THREADS floats apart from those of other threads, or takes it back.
    __device__ __forceinline__ void keep(float* to) const {
#pragma unroll
        for (int index = 0; index < COLUMNS / 2; index++) to[index * THREADS] = values[index / 4][index % 4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            to[(COLUMNS / 2 + half) * THREADS] = sums[half * 2];
            to[(COLUMNS / 2 + 2 + half) * THREADS] = largest[half];
        }
    }
    __device__ __forceinline__ void take(const float* from) {
#pragma unroll
        for (int index = 0; index < COLUMNS / 2; index++) values[index / 4][index % 4] = from[index * THREADS];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sums[half * 2] = sums[half * 2 + 1] = from[(COLUMNS / 2 + half) * THREADS];
            largest[half] = from[(COLUMNS / 2 + 2 + half) * THREADS];
        }
    }

    // Stores the results of this thread's row of a half at `to`, where that row begins.
    __device__ __forceinline__ void store(float* to, int half) const {
        float* out = to + (threadIdx.x & 3) * 2;
        const float factor = 1.0f / sums[half * 2];
#pragma unroll
        for (int tile = 0; tile < COLUMNS / 8; tile++)
            *(float2*)(out + tile * 8) = make_float2(values[tile][half * 2] * factor, values[tile][half * 2 + 1] * factor);
    }

    // Adds weights[16, TILE] · values[TILE, COLUMNS], the values from column `first_column` of rows of DIM.
    template <int DIM>
    __device__ __forceinline__ void add_tile(const u32 (&weights)[TILE / 16][4], u32 tile, u32 first_column) {
        const u32 lane = threadIdx.x & 31;
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) {
#pragma unroll
            for (int pair = 0; pair < COLUMNS / 16; pair++) {
                u32 matrices[4];
                load_transposed(matrices, tile + piece_of<DIM>(step * 16 + (lane & 15), first_column / 8 + pair * 2 + lane / 16));
                multiply_halves(values[pair * 2], weights[step], matrices[0], matrices[1]);
                multiply_halves(values[pair * 2 + 1], weights[step], matrices[2], matrices[3]);
            }
            multiply_halves(sums, weights[step], ONES, ONES);
        }
    }
};

// Where those of a tile of keys or values lie as wgmma reads them (wgmma.cuh): 64 columns of all rows, then the next.
template <int DIM>
__device__ __forceinline__ u32 piece_of_tile(u32 row, u32 piece) {
    return piece / 8 * (TILE * 128) + row * 128 + ((piece % 8) ^ (row & 7)) * 16;
}

// Starts to fetch TILE rows from position `first` of keys and values; rows from `n_positions` on become zeros.
template <int DIM, bool FOR_WGMMA = false>
__device__ __forceinline__ void fetch_tiles(const AttentionMmaArgs& a, u32 keys, u32 values, const u32* blocks, u32 kv_head, u32 first, u32 n_positions) {
    // All at once: each is far away.
    u32 blocks_of_tile[TILE / BLOCK_TOKENS];
#pragma unroll
    for (int index = 0; index < TILE / BLOCK_TOKENS; index++) blocks_of_tile[index] = blocks[min(first + index * BLOCK_TOKENS, n_positions - 1) / BLOCK_TOKENS];
#pragma unroll
    for (int step = 0; step < TILE * DIM / 8 / THREADS; step++) {
        const u32 item = step * THREADS + threadIdx.x, row = item / (DIM / 8), piece = item % (DIM / 8), position = first + row;
        const u64 block = blocks_of_tile[step * (THREADS / (DIM / 8)) / BLOCK_TOKENS];
        const u64 place = ((block * a.n_kv_heads + kv_head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * DIM + piece * 8;
        const u32 n_bytes = position < n_positions ? 16 : 0, to = FOR_WGMMA ? piece_of_tile<DIM>(row, piece) : piece_of<DIM>(row, piece);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(keys + to), "l"(a.keys + place), "r"(n_bytes) : "memory");
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(values + to), "l"(a.values + place), "r"(n_bytes) : "memory");
    }
}

__device__ __forceinline__ void end_fetch() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Puts the first `ROWS` of 16 query rows of a warp, scaled, as halves into shared memory at `to` and reads all back as `queries`. `query` gives a row's
// place. Rows that are not there are what stands in memory: nothing is read of their results.
template <int DIM, int ROWS, typename Query>
__device__ __forceinline__ void load_queries(u32 (&queries)[DIM / 16][4], u32 to, float scale, Query query) {
    const u32 lane = threadIdx.x & 31;
#pragma unroll 4
    for (u32 item = lane; item < ROWS * DIM / 8; item += 32) {
        const u32 row = item / (DIM / 8), piece = item % (DIM / 8);
        const float4* from = (const float4*)(query(row) + piece * 8);
        const float4 low = from[0], high = from[1];
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + piece_of<DIM>(row, piece)), "r"(pack_halves(low.x * scale, low.y * scale)),
                     "r"(pack_halves(low.z * scale, low.w * scale)), "r"(pack_halves(high.x * scale, high.y * scale)),
                     "r"(pack_halves(high.z * scale, high.w * scale))
                     : "memory");
    }
    __syncwarp();
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) load_matrices(queries[step], to + piece_of<DIM>(lane & 15, step * 2 + lane / 16));
}

// Of kernels that may rotate queries themselves.
struct AttentionRotatingArgs {
    AttentionMmaArgs of;
    const float* cos;  // [m, DIM / 2], or null: queries have been rotated
    const float* sin;  // likewise
};

// load_queries of rows that are to be rotated as rope_append does; `token` gives a row's token.
template <int DIM, int ROWS, typename Query, typename Token>
__device__ __forceinline__ void load_rotated(u32 (&queries)[DIM / 16][4], u32 to, const AttentionRotatingArgs& a, Query query, Token token) {
    const u32 lane = threadIdx.x & 31;
    const float scale = a.of.scale;
#pragma unroll (ROWS / 4)
    for (u32 item = lane; item < ROWS * DIM / 16; item += 32) {
        const u32 row = item / (DIM / 16), piece = item % (DIM / 16);
        const float* from = query(row) + piece * 8;
        const u64 angles = (u64)token(row) * (DIM / 2) + piece * 8;
        u32 low[4], high[4];
#pragma unroll
        for (int four = 0; four < 2; four++) {
            const float4 x = ((const float4*)from)[four], y = ((const float4*)(from + DIM / 2))[four];
            const float4 cos = __ldg((const float4*)(a.cos + angles) + four), sin = __ldg((const float4*)(a.sin + angles) + four);
            low[four * 2] = pack_halves((x.x * cos.x - y.x * sin.x) * scale, (x.y * cos.y - y.y * sin.y) * scale);
            low[four * 2 + 1] = pack_halves((x.z * cos.z - y.z * sin.z) * scale, (x.w * cos.w - y.w * sin.w) * scale);
            high[four * 2] = pack_halves((y.x * cos.x + x.x * sin.x) * scale, (y.y * cos.y + x.y * sin.y) * scale);
            high[four * 2 + 1] = pack_halves((y.z * cos.z + x.z * sin.z) * scale, (y.w * cos.w + x.w * sin.w) * scale);
        }
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + piece_of<DIM>(row, piece)), "r"(low[0]), "r"(low[1]), "r"(low[2]), "r"(low[3]) : "memory");
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + piece_of<DIM>(row, piece + DIM / 16)), "r"(high[0]), "r"(high[1]), "r"(high[2]), "r"(high[3]) : "memory");
    }
    __syncwarp();
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) load_matrices(queries[step], to + piece_of<DIM>(lane & 15, step * 2 + lane / 16));
}

// scores[16, 16 · PAIRS] of keys from row `first_key` of a tile.
template <int DIM, int PAIRS>
__device__ __forceinline__ void score_keys(float (&scores)[PAIRS * 2][4], const u32 (&queries)[DIM / 16][4], u32 tile, u32 first_key) {
    const u32 lane = threadIdx.x & 31;
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
        for (int part = 0; part < 4; part++) scores[pair * 2][part] = scores[pair * 2 + 1][part] = 0.0f;
#pragma unroll
    for (int step = 0; step < DIM / 16; step++)
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            u32 matrices[4];
            load_matrices(matrices, tile + piece_of<DIM>(first_key + pair * 16 + (lane & 7) + lane / 16 * 8, step * 2 + (lane / 8 & 1)));
            multiply_halves(scores[pair * 2], queries[step], matrices[0], matrices[1]);
            multiply_halves(scores[pair * 2 + 1], queries[step], matrices[2], matrices[3]);
        }
}

// The largest score of each row, for its four threads.
template <int PAIRS>
__device__ __forceinline__ void find_greatest(const float (&scores)[PAIRS * 2][4], float (&greatest)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        // What is no number is passed over.
        float of_thread = fmaxf(scores[0][half * 2], scores[0][half * 2 + 1]);
#pragma unroll
        for (int tile = 1; tile < PAIRS * 2; tile++) of_thread = fmaxf(fmaxf(of_thread, scores[tile][half * 2]), scores[tile][half * 2 + 1]);
        greatest[half] = fmaxf(of_thread, NEGATIVE_INFINITY);
        greatest[half] = fmaxf(greatest[half], __shfl_xor_sync(FULL_WARP, greatest[half], 1));
        greatest[half] = fmaxf(greatest[half], __shfl_xor_sync(FULL_WARP, greatest[half], 2));
    }
}

// Scores of positions from `limits` on become −∞; the largest of each row as above. The first key is at `first`.
template <int PAIRS>
__device__ __forceinline__ void mask_scores(float (&scores)[PAIRS * 2][4], float (&greatest)[2], u32 first, const u32 (&limits)[2]) {
#pragma unroll
    for (int tile = 0; tile < PAIRS * 2; tile++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const u32 position = first + tile * 8 + (threadIdx.x & 3) * 2 + (part & 1);
            if (position >= limits[part / 2]) scores[tile][part] = NEGATIVE_INFINITY;
        }
    find_greatest<PAIRS>(scores, greatest);
}

// Numerators as halves, in the order in which the next product reads them. A row that has seen nothing has weights 0.
template <int PAIRS>
__device__ __forceinline__ void weigh(u32 (&weights)[PAIRS][4], const float (&scores)[PAIRS * 2][4], const float (&largest)[2]) {
    const float first = largest[0] == NEGATIVE_INFINITY ? 0.0f : largest[0], second = largest[1] == NEGATIVE_INFINITY ? 0.0f : largest[1];
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            const float* s = scores[pair * 2 + tile];
            weights[pair][tile * 2] = pack_halves(exp2_fast(s[0] - first), exp2_fast(s[1] - first));
            weights[pair][tile * 2 + 1] = pack_halves(exp2_fast(s[2] - second), exp2_fast(s[3] - second));
        }
}

// Puts the splits kept so far before `split`, which begins at position `first`.
template <int DIM>
__device__ __forceinline__ void put_together(const float* kept, Partial<DIM>& split, u32 first, const u32 (&limits)[2]) {
    if (first == 0) return;
    const bool sees[2] = {limits[0] > first, limits[1] > first};
    Partial<DIM> total;
    total.take(kept);
    total.add(split, sees);
    split = total;
}

// A result of a row whose splits others have left: [n_present, DIM + 2], values and behind them largest score and sum of weights.
template <int DIM>
__device__ __forceinline__ float value_of_splits(const float* of_row, u32 column, u32 n_present) {
    float2 facts = __ldcg((const float2*)(of_row + DIM));
    float value = __ldcg(of_row + column);
#pragma unroll 4
    for (u32 next = 1; next < n_present; next++) {
        const float* of_next = of_row + next * (DIM + 2);
        const float2 theirs = __ldcg((const float2*)(of_next + DIM));
        const float greatest = larger(facts.x, theirs.x), factor = exp2_fast(facts.x - greatest), their_factor = exp2_fast(theirs.x - greatest);
        value = __fmaf_rn(value, factor, __ldcg(of_next + column) * their_factor);
        facts = make_float2(greatest, __fmaf_rn(facts.y, factor, theirs.y * their_factor));
    }
    return value * (1.0f / facts.y);
}

// A barrier of the THREADS threads that share a token's heads; a kernel may have others.
__device__ __forceinline__ void barrier_of_heads() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// `RING` tiles of keys and values are on their way or in use.
template <int DIM, int RING>
struct AttentionOne {
    static const int TILE_SIZE = TILE * DIM * 2;
    // Columns of values of a warp.
    static const int COLUMNS = DIM / WARPS;

    const AttentionMmaArgs& a;
    const u32* blocks;
    u32 base;     // shared memory: the ring of tiles (keys, values), then weights [16, TILE]
    float* greatest_of_warps;  // [WARPS, 16]
    u32 kv_head;
    u32 first_tile, end_tile;
    u32 n_positions;
    u32 token_place;   // of the token among those that stand alone

    __device__ __forceinline__ u32 keys(u32 tile) const { return base + (tile % RING) * 2 * TILE_SIZE; }
    __device__ __forceinline__ u32 values(u32 tile) const { return keys(tile) + TILE_SIZE; }
    __device__ __forceinline__ u32 weights() const { return base + RING * 2 * TILE_SIZE; }

    __device__ __forceinline__ void fetch(u32 tile) const {
        if (tile < end_tile) {
            fetch_tiles<DIM>(a, keys(tile), values(tile), blocks, kv_head, tile * TILE, n_positions);
        }
        end_fetch();
    }

    // Scores of this warp's 16 keys, weights of all through shared memory, values of this warp's columns.
    __device__ __forceinline__ void add_tile(Partial<COLUMNS>& split, const u32 (&queries)[DIM / 16][4], u32 tile) const {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x & 31, line = lane / 4;
        const u32 limits[2] = {n_positions, n_positions};
        float scores[2][4], greatest[2];
        score_keys<DIM, 1>(scores, queries, keys(tile), warp * 16);
        mask_scores<1>(scores, greatest, tile * TILE + warp * 16, limits);
        if ((lane & 3) == 0) {
            greatest_of_warps[warp * 16 + line] = greatest[0];
            greatest_of_warps[warp * 16 + line + 8] = greatest[1];
        }
        barrier_of_heads();
#pragma unroll
        for (u32 other = 0; other < WARPS; other++) {
            greatest[0] = larger(greatest[0], greatest_of_warps[other * 16 + line]);
            greatest[1] = larger(greatest[1], greatest_of_warps[other * 16 + line + 8]);
        }
        split.rescale(greatest);
        u32 ours[1][4];
        weigh<1>(ours, scores, split.largest);
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const u32 row = line + (part & 1) * 8, piece = warp * 2 + part / 2;
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(weights() + piece_of<TILE>(row, piece) + (lane & 3) * 4), "r"(ours[0][part]) : "memory");
        }
        barrier_of_heads();
        u32 all[TILE / 16][4];
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) load_matrices(all[step], weights() + piece_of<TILE>(lane & 15, step * 2 + lane / 16));
        split.template add_tile<DIM>(all, values(tile), warp * COLUMNS);
    }

    // All splits of tiles first_tile..end_tile, put together.
    __device__ __forceinline__ void run(Partial<COLUMNS>& total, const u32 (&queries)[DIM / 16][4]) const {
        const bool sees[2] = {true, true};
        Partial<COLUMNS> split;
        split.begin();
        for (u32 tile = first_tile; tile < end_tile; tile++) {
            asm volatile("cp.async.wait_group %0;" ::"n"(RING - 2) : "memory");
            barrier_of_heads();
            // The slot of the tile before this one is free since the barrier.
            fetch(tile + RING - 1);
            add_tile(split, queries, tile);
            if (tile + 1 == end_tile || (tile + 1) % SPLIT_TILES == 0) {
                if (tile / SPLIT_TILES == first_tile / SPLIT_TILES) total = split;
                else total.add(split, sees);
                split.begin();
            }
        }
    }

    // Stores what `total` has of the columns of this warp into rows of `width` from `to`: values · factor. Heads that share keys are four at most, so all
    // are in the first half of the rows.
    __device__ __forceinline__ void store(const Partial<COLUMNS>& total, float* to, u32 stride, float factor) const {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x & 31, row = lane / 4;
        if (row >> a.log_sharing) return;
        float* out = to + (u64)row * stride + warp * COLUMNS + (lane & 3) * 2;
#pragma unroll
        for (int tile = 0; tile < COLUMNS / 8; tile++) *(float2*)(out + tile * 8) = make_float2(total.values[tile][0] * factor, total.values[tile][1] * factor);
    }

    // The same for the token's heads.
    __device__ __forceinline__ void store_all(const Partial<COLUMNS>& total, float* out) const { store(total, out, DIM, 1.0f / total.sums[0]); }

    // Leaves this split for the last block of the token's heads, or puts all splits together if this is it.
    __device__ __forceinline__ void share(const Partial<COLUMNS>& total, float* out, u32 first_head, u32 split, u32 n_present) const {
        __shared__ u32 n_before;
        const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, stride = a.n_splits * (DIM + 2), sharing = 1 << a.log_sharing;
        float* partials = a.partials + ((u64)token_place * a.n_heads + first_head) * stride;
        store(total, partials + split * (DIM + 2), stride, 1.0f);
        const u32 row = lane / 4;
        if (warp == 0 && (lane & 3) == 0 && row < sharing)
            *(float2*)(partials + (u64)row * stride + split * (DIM + 2) + DIM) = make_float2(total.largest[0], total.sums[0]);
        __threadfence();
        barrier_of_heads();
        u32* counter = a.n_arrived + token_place * (a.n_heads >> a.log_sharing) + (first_head >> a.log_sharing);
        if (threadIdx.x == 0) n_before = atomicAdd(counter, 1);
        barrier_of_heads();
        if (n_before + 1 < n_present) return;
        __threadfence();
        if (threadIdx.x == 0) *counter = 0;
        for (u32 index = threadIdx.x; index < sharing * DIM; index += THREADS) {
            out[index] = value_of_splits<DIM>(partials + (u64)(index / DIM) * stride, index % DIM, n_present);
        }
    }
};
