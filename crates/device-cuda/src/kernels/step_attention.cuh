// Attention of step.cu: rotates and appends the token's key and value, then gives what attention_mma_one gives, every sum in its order, with fewer
// steps that wait for each other: scores of all tiles of a split (or of as many as there is room for) come first, from eight warps, and only then the
// largest of each tile, weights and values, tile by tile.

#if __CUDA_ARCH__ >= 900

// Keys of a warp's product, and how many of them are in a split.
#define STRIP 16
#define STRIPS (SPLIT / STRIP)
#define STRIPS_OF_TILE (TILE / STRIP)
#define SCORE_WARPS (STRIPS / 2)
// Rows of queries: heads that share keys, filled up.
#define QUERY_ROWS 8

// What attention has in shared memory.
template <int DIM>
struct AttentionRoom {
    static const u32 TILE_BYTES_OF_HEAD = TILE * DIM * 2;
    char* shared;
    u32 base, n_tiles;

    __device__ __forceinline__ AttentionRoom(char* from, u32 n_tiles_of_room) : shared(from), base((u32)__cvta_generic_to_shared(from)), n_tiles(n_tiles_of_room) {}
    // Of tile `index` of those that are there together.
    __device__ __forceinline__ u32 keys(u32 index) const { return base + index * 2 * TILE_BYTES_OF_HEAD; }
    __device__ __forceinline__ u32 values(u32 index) const { return keys(index) + TILE_BYTES_OF_HEAD; }
    // Halves, [tiles, QUERY_ROWS, TILE] as piece_of lays them.
    __device__ __forceinline__ u32 weights(u32 index) const { return keys(n_tiles) + index * QUERY_ROWS * TILE * 2; }
    // Halves, [QUERY_ROWS, DIM], likewise.
    __device__ __forceinline__ u32 queries() const { return weights(SPLIT_TILES); }
    // [QUERY_ROWS, STRIPS]: largest score of a strip.
    __device__ __forceinline__ float* greatest() const { return (float*)(shared + (queries() - base) + QUERY_ROWS * DIM * 2); }
    // [2, DIM]: the token's key and value.
    __device__ __forceinline__ Half* last() const { return (Half*)(greatest() + QUERY_ROWS * STRIPS); }
    // [STEP_WARPS, DIM]
    __device__ __forceinline__ float* heads() const { return (float*)(last() + 2 * DIM); }
};

// rope_append of the heads of one block of attention: query rows as halves, scaled; key and value as halves, in the tile of the last position, too.
template <int DIM>
struct StepHeads {
    const StepAttention& a;
    const AttentionRoom<DIM>& room;
    const u32* mail;
    u32 first_head, kv_head;
    u32 last_tile;  // of those in shared memory, or NOT_COME: it is not there
    u32 last_row;   // of it

    // A warp a head: queries, then key and value.
    __device__ __forceinline__ void run() const {
        const u32 sharing = 1 << a.of.log_sharing, item = threadIdx.x / 32, lane = threadIdx.x & 31;
        if (item >= sharing + 2) return;
        const u32 head = item < sharing ? first_head + item : a.of.n_heads + (item - sharing) * a.of.n_kv_heads + kv_head;
        const bool turns = item <= sharing;
        const float* norm = !turns ? nullptr : item < sharing ? a.q_norm : a.k_norm;
        float cosines[DIM / 64], sines[DIM / 64], norms[DIM / 32], row[DIM / 32];
#pragma unroll
        for (int turn = 0; turn < DIM / 64; turn++) {
            cosines[turn] = turns ? a.cos[turn * 32 + lane] : 0.0f;
            sines[turn] = turns ? a.sin[turn * 32 + lane] : 0.0f;
        }
#pragma unroll
        for (int turn = 0; turn < DIM / 32; turn++) norms[turn] = norm != nullptr ? norm[turn * 32 + lane] : 1.0f;
        receive(row, head);
        if (norm != nullptr) {
            float* values = room.heads() + item * DIM;
#pragma unroll
            for (int turn = 0; turn < DIM / 32; turn++) values[turn * 32 + lane] = row[turn];
            __syncwarp();
            const float sum = squares_of_chunk(four_of_row(values, column_in_chunk(), DIM), four_of_row(values, column_in_chunk() + 32, DIM));
            const float factor = inverse_rms(sum, DIM, a.epsilon);
#pragma unroll
            for (int turn = 0; turn < DIM / 32; turn++) row[turn] = (row[turn] * factor) * norms[turn];
        }
#pragma unroll
        for (int turn = 0; turn < DIM / 64; turn++) {
            const u32 pair = turn * 32 + lane;
            const float x = row[turn], y = row[DIM / 64 + turn];
            const float low = turns ? x * cosines[turn] - y * sines[turn] : x, high = turns ? y * cosines[turn] + x * sines[turn] : y;
            if (item < sharing) {
                put(room.queries(), item, pair, pack_halves(low * a.of.scale, 0.0f));
                put(room.queries(), item, DIM / 2 + pair, pack_halves(high * a.of.scale, 0.0f));
            } else {
                Half halves[2];
                store(halves, low);
                store(halves + 1, high);
                Half* last = room.last() + (item - sharing) * DIM;
                last[pair] = halves[0];
                last[DIM / 2 + pair] = halves[1];
                if (last_tile == NOT_COME) continue;
                const u32 tile = item == sharing ? room.keys(last_tile) : room.values(last_tile);
                put(tile, last_row, pair, halves[0].bits);
                put(tile, last_row, DIM / 2 + pair, halves[1].bits);
            }
        }
    }

    // A head of the product before, as it comes.
    __device__ __forceinline__ void receive(float (&row)[DIM / 32], u32 head) const {
        const u32 first = head * DIM + (threadIdx.x & 31);
        bool all;
        do {
            all = true;
#pragma unroll
            for (int turn = 0; turn < DIM / 32; turn++) {
                const u32 bits = look_at_word(mail + first + turn * 32);
                all &= bits != NOT_COME;
                row[turn] = __uint_as_float(bits);
            }
        } while (!all);
    }

    // Rows of queries that are not there keep what stands in memory: nothing is read of their results.
    __device__ __forceinline__ static void put(u32 to, u32 row, u32 column, u32 bits) {
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(to + piece_of<DIM>(row, column / 8) + column % 8 * 2), "h"((u16)bits) : "memory");
    }

    // Key and value go into the cache.
    __device__ __forceinline__ void append(u64 slot) const {
        const u32 part = threadIdx.x / (DIM / 8), piece = threadIdx.x % (DIM / 8);
        if (part >= 2) return;
        const u64 place = ((slot / BLOCK_TOKENS * a.of.n_kv_heads + kv_head) * BLOCK_TOKENS + slot % BLOCK_TOKENS) * DIM;
        ((uint4*)((part == 0 ? a.of.keys : a.of.values) + place))[piece] = ((const uint4*)(room.last() + part * DIM))[piece];
    }
};

// Splits of one block of attention.
template <int DIM>
struct StepSplits {
    // Columns of values of a warp, and the warps that have some.
    static const int COLUMNS = 16, VALUE_WARPS = DIM / COLUMNS;

    const AttentionMmaArgs& a;
    const AttentionRoom<DIM>& room;
    const u32* blocks;
    u32 kv_head, n_positions;

    // Starts to fetch `n` tiles from `first`. Rows from `n_positions` on become zeros; that of the last position is put there by StepHeads.
    __device__ __forceinline__ void fetch(u32 first, u32 n) const {
        const u32 PIECES = DIM / 8;
        for (u32 item = threadIdx.x; item < n * TILE * PIECES; item += STEP_THREADS) {
            const u32 row = item / PIECES % TILE, piece = item % PIECES, index = item / PIECES / TILE, position = (first + index) * TILE + row;
            if (position + 1 == n_positions) continue;
            const u64 block = blocks[min(position, n_positions - 1) / BLOCK_TOKENS];
            const u64 place = ((block * a.n_kv_heads + kv_head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * DIM + piece * 8;
            const u32 n_bytes = position < n_positions ? 16 : 0, to = piece_of<DIM>(row, piece);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(room.keys(index) + to), "l"(a.keys + place), "r"(n_bytes) : "memory");
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(room.values(index) + to), "l"(a.values + place), "r"(n_bytes) : "memory");
        }
    }

    // Scores of this warp's strips of `n` tiles from `first`, of which there are two at most, strips apart by half of a split.
    __device__ __forceinline__ void score(float (&scores)[2][2][4], u32 first, u32 n) const {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x & 31, line = lane / 4;
        u32 queries[DIM / 16][4];
#pragma unroll
        for (int part = 0; part < DIM / 16; part += 2) {
            u32 matrices[4];
            load_matrices(matrices, room.queries() + piece_of<DIM>(lane & 7, part * 2 + lane / 8));
#pragma unroll
            for (int step = 0; step < 2; step++) {
                queries[part + step][0] = matrices[step * 2];
                queries[part + step][2] = matrices[step * 2 + 1];
                queries[part + step][1] = queries[part + step][3] = 0;
            }
        }
        // Both at once, since each is a chain; where the second is not there it is the first again.
        const u32 tile = warp / STRIPS_OF_TILE, inside = warp % STRIPS_OF_TILE * STRIP, tiles[2] = {min(tile, n - 1), min(tile + STRIPS / 2 / STRIPS_OF_TILE, n - 1)};
        const u32 row = inside + (lane & 7) + lane / 16 * 8, piece = lane / 8 & 1;
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int part = 0; part < 4; part++) scores[half][0][part] = scores[half][1][part] = 0.0f;
#pragma unroll
        for (int step = 0; step < DIM / 16; step++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 matrices[4];
                load_matrices(matrices, room.keys(tiles[half]) + piece_of<DIM>(row, step * 2 + piece));
                multiply_halves(scores[half][0], queries[step], matrices[0], matrices[1]);
                multiply_halves(scores[half][1], queries[step], matrices[2], matrices[3]);
            }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 limits[2] = {n_positions, n_positions};
            float greatest[2];
            mask_scores<1>(scores[half], greatest, (first + tiles[half]) * TILE + inside, limits);
            if ((lane & 3) == 0 && tile + half * 2 < n) room.greatest()[line * STRIPS + half * SCORE_WARPS + warp] = greatest[0];
        }
    }

    // Adds `n` tiles from `first` to `split`.
    __device__ __forceinline__ void add_tiles(Partial<COLUMNS>& split, u32 first, u32 n) const {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x & 31, line = lane / 4;
        float scores[2][2][4];
        if (warp < SCORE_WARPS) score(scores, first, n);
        barrier_of_step();
        // The running largest of each tile, and what stood before is multiplied by.
        float largest[SPLIT_TILES], factors[SPLIT_TILES], before = split.largest[0];
        const float4* greatest = (const float4*)(room.greatest() + line * STRIPS);
#pragma unroll
        for (int index = 0; index < SPLIT_TILES; index++) {
            const float4 strips = greatest[index];
            // None of them is NaN.
            const float of_tile = fmaxf(fmaxf(strips.x, strips.y), fmaxf(strips.z, strips.w)), next = index < n ? fmaxf(before, of_tile) : before;
            factors[index] = next == NEGATIVE_INFINITY ? 1.0f : exp2_fast(before - next);
            largest[index] = before = next;
        }
        if (warp < SCORE_WARPS) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 strip = half * SCORE_WARPS + warp, index = strip / STRIPS_OF_TILE;
                if (index >= n) break;
                const float of_tile = half == 0 ? (warp < STRIPS_OF_TILE ? largest[0] : largest[1]) : (warp < STRIPS_OF_TILE ? largest[2] : largest[3]);
                const float least = of_tile == NEGATIVE_INFINITY ? 0.0f : of_tile;
#pragma unroll
                for (int eight = 0; eight < 2; eight++) {
                    const float* of = scores[half][eight];
                    const u32 to = room.weights(index) + piece_of<TILE>(line, strip % STRIPS_OF_TILE * 2 + eight) + (lane & 3) * 4;
                    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(pack_halves(exp2_fast(of[0] - least), exp2_fast(of[1] - least))) : "memory");
                }
            }
        }
        barrier_of_step();
        if (warp >= VALUE_WARPS) {
            // It may have scores of the next tiles of the split.
            split.largest[0] = largest[SPLIT_TILES - 1];
            return;
        }
        // What is read of two tiles comes first, so that products wait for each other only. What is not there is not used.
#pragma unroll
        for (int pair = 0; pair < SPLIT_TILES; pair += 2) {
            if (pair >= n) break;
            u32 weights[2][TILE / 16][2], values[2][TILE / 16][4];
#pragma unroll
            for (int index = 0; index < 2; index++) {
                const u32 there = min((u32)(pair + index), n - 1);
#pragma unroll
                for (int step = 0; step < TILE / 16; step += 2) {
                    u32 matrices[4];
                    load_matrices(matrices, room.weights(there) + piece_of<TILE>(lane & 7, step * 2 + lane / 8));
#pragma unroll
                    for (int part = 0; part < 4; part++) weights[index][step + part / 2][part % 2] = matrices[part];
                }
#pragma unroll
                for (int step = 0; step < TILE / 16; step++)
                    load_transposed(values[index][step], room.values(there) + piece_of<DIM>(step * 16 + (lane & 15), warp * (COLUMNS / 8) + lane / 16));
            }
#pragma unroll
            for (int index = 0; index < 2; index++) {
                if (pair + index >= n) break;
                const float factor = factors[pair + index];
                split.largest[0] = largest[pair + index];
                split.sums[0] *= factor;
                split.sums[1] *= factor;
#pragma unroll
                for (int eight = 0; eight < COLUMNS / 8; eight++) {
                    split.values[eight][0] *= factor;
                    split.values[eight][1] *= factor;
                }
#pragma unroll
                for (int step = 0; step < TILE / 16; step++) {
                    const u32 of_step[4] = {weights[index][step][0], 0, weights[index][step][1], 0}, ones = 0x3c003c00u;
                    multiply_halves(split.values[0], of_step, values[index][step][0], values[index][step][1]);
                    multiply_halves(split.values[1], of_step, values[index][step][2], values[index][step][3]);
                    multiply_halves(split.sums, of_step, ones, ones);
                }
            }
        }
    }

    // Puts the last position's key and value where its tile has them, of those from `first`.
    __device__ __forceinline__ void put_last(u32 first) const {
        const u32 part = threadIdx.x / (DIM / 8), piece = threadIdx.x % (DIM / 8), tile = (n_positions - 1) / TILE - first;
        if (part >= 2) return;
        const uint4 bits = ((const uint4*)room.last())[part * (DIM / 8) + piece];
        const u32 to = (part == 0 ? room.keys(tile) : room.values(tile)) + piece_of<DIM>((n_positions - 1) % TILE, piece);
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w) : "memory");
    }

    // All splits of tiles `first` to `end`, put together. The first tiles are on their way.
    __device__ __forceinline__ void run(Partial<COLUMNS>& total, u32 first, u32 end) const {
        const bool sees[2] = {true, false};
        Partial<COLUMNS> split;
        split.begin();
#pragma unroll 1
        for (u32 tile = first; tile < end; ) {
            const u32 n = min(room.n_tiles, end - tile);
            if (tile > first) {
                barrier_of_step();
                fetch(tile, n);
                asm volatile("cp.async.wait_all;" ::: "memory");
                if ((tile + n) * TILE >= n_positions) put_last(tile);
                barrier_of_step();
            }
            add_tiles(split, tile, n);
            tile += n;
            if (tile == end || tile % SPLIT_TILES == 0) {
                if ((tile - 1) / SPLIT_TILES == first / SPLIT_TILES) total = split;
                else total.add(split, sees);
                split.begin();
            }
        }
    }

    // Stores what `total` has of the columns of this warp into rows of `stride` from `to`: values · factor.
    __device__ __forceinline__ void store_rows(const Partial<COLUMNS>& total, float* to, u32 stride, float factor) const {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x & 31, row = lane / 4;
        if (warp >= VALUE_WARPS || row >> a.log_sharing) return;
        float* out = to + (u64)row * stride + warp * COLUMNS + (lane & 3) * 2;
#pragma unroll
        for (int eight = 0; eight < COLUMNS / 8; eight++) *(float2*)(out + eight * 8) = make_float2(total.values[eight][0] * factor, total.values[eight][1] * factor);
    }

    // The same for the token's heads, and to whoever waits for it.
    __device__ __forceinline__ void store_all(const Partial<COLUMNS>& total, float* out, const Mail& mail, u32 first_head) const {
        const float factor = 1.0f / total.sums[0];
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x & 31, row = lane / 4;
        if (warp < VALUE_WARPS && row >> a.log_sharing == 0) {
            const u32 to = (first_head + row) * DIM + warp * COLUMNS + (lane & 3) * 2;
#pragma unroll
            for (int eight = 0; eight < COLUMNS / 8; eight++) mail.send_result(to + eight * 8, make_float2(total.values[eight][0] * factor, total.values[eight][1] * factor));
        }
        store_rows(total, out, DIM, factor);
    }

    // Leaves this split for the last block of the token's heads, or puts all splits together if this is it.
    __device__ __forceinline__ void share(const Partial<COLUMNS>& total, float* out, const Mail& mail, u32 first_head, u32 split, u32 n_present) const {
        __shared__ u32 n_before;
        const u32 lane = threadIdx.x & 31, stride = a.n_splits * (DIM + 2), sharing = 1 << a.log_sharing, row = lane / 4;
        float* partials = a.partials + (u64)first_head * stride;
        store_rows(total, partials + split * (DIM + 2), stride, 1.0f);
        if (threadIdx.x < 32 && (lane & 3) == 0 && row < sharing)
            *(float2*)(partials + (u64)row * stride + split * (DIM + 2) + DIM) = make_float2(total.largest[0], total.sums[0]);
        __threadfence();
        barrier_of_step();
        u32* counter = a.n_arrived + (first_head >> a.log_sharing);
        if (threadIdx.x == 0) n_before = atomicAdd(counter, 1);
        barrier_of_step();
        if (n_before + 1 < n_present) return;
        __threadfence();
        if (threadIdx.x == 0) *counter = 0;
        for (u32 index = threadIdx.x; index < sharing * DIM; index += STEP_THREADS) {
            const float value = value_of_splits<DIM>(partials + (u64)(index / DIM) * stride, index % DIM, n_present);
            out[index] = value;
            mail.send_result(first_head * DIM + index, value);
        }
    }
};

// Whether this block has heads: there are as many blocks as items at least.
__device__ __forceinline__ bool attends(const StepArgs& step, const StepAttention& a) {
    return blockIdx.x - step.first_attention < (a.of.n_heads >> a.of.log_sharing) * a.of.n_splits;
}

// A function of its own, as are those of the head: so that the registers of products are not those of all. And one for blocks that do nothing else (APART): it would
// save and load registers of the others' loop, from the second-level cache.
template <int DIM, bool APART>
__device__ __noinline__ void attend(u32 item, u32 n_tiles_of_room, const StepAttention& a, char* shared, const Mail mail) {
    const u32 sharing = 1 << a.of.log_sharing;
    const u32 token = a.of.tokens[0], n_positions = a.of.positions[token] + 1;
    const u32 n_tiles = (n_positions + TILE - 1) / TILE, n_present = (n_tiles + SPLIT_TILES - 1) / SPLIT_TILES;
    const bool takes_all = a.of.n_splits == 1;
    const u32 split = item % a.of.n_splits, first_head = item / a.of.n_splits * sharing, heads_of_kv = a.of.n_heads / a.of.n_kv_heads;
    if (split >= n_present) return mail.pass();
    const u32 first_tile = split * SPLIT_TILES, end_tile = takes_all ? n_tiles : min(n_tiles, first_tile + SPLIT_TILES), slot = *a.slots;
    const AttentionRoom<DIM> room(shared, n_tiles_of_room);
    const StepSplits<DIM> splits{a.of, room, a.of.blocks + a.of.table_starts[token], first_head / heads_of_kv, n_positions};
    const u32 last = n_tiles - 1 - first_tile, n_first = min(room.n_tiles, end_tile - first_tile);
    const StepHeads<DIM> heads{a, room, mail.in, first_head, splits.kv_head, end_tile == n_tiles && last < n_first ? last : NOT_COME, (n_positions - 1) % TILE};
    splits.fetch(first_tile, n_first);
    mail.await_room();
    heads.run();
    mail.have_read();
    asm volatile("cp.async.wait_all;" ::: "memory");
    barrier_of_step();
    Partial<StepSplits<DIM>::COLUMNS> total;
    splits.run(total, first_tile, end_tile);
    float* out = a.of.out + (u64)first_head * DIM;
    if (takes_all || n_present == 1) splits.store_all(total, out, mail, first_head);
    else splits.share(total, out, mail, first_head, split, n_present);
    // Nobody waits for these.
    if (end_tile == n_tiles && first_head % heads_of_kv == 0) heads.append(slot);
    barrier_of_step();
}

#endif
