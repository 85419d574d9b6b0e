// Attention of step.cu: rotates and appends the token's key and value, then goes as attention_mma.cuh.

#if __CUDA_ARCH__ >= 900

// Tiles of keys and values of a block.
#define STEP_RING 3

// rope_append of the heads of one block of attention: query rows as halves, scaled; key and value as halves.
template <int DIM>
struct StepHeads {
    const StepAttention& a;
    u32 queries;    // shared memory, [16, DIM] as piece_of lays it
    Half* last;     // [2, DIM]
    float* heads;   // [STEP_WARPS, DIM]
    const u32* mail;
    u32 first_head, kv_head;

    // A warp a head: queries, then key and value.
    __device__ __forceinline__ void run() const {
        const u32 sharing = 1 << a.of.log_sharing, item = threadIdx.x / 32, lane = threadIdx.x & 31;
        if (item >= sharing + 2) return;
        const u32 head = item < sharing ? first_head + item : a.of.n_heads + (item - sharing) * a.of.n_kv_heads + kv_head;
        float* values = heads + item * DIM;
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
#pragma unroll
        for (int turn = 0; turn < DIM / 32; turn++) values[turn * 32 + lane] = row[turn];
        __syncwarp();
        if (norm != nullptr) {
            const float sum = squares_of_chunk(four_of_row(values, column_in_chunk(), DIM), four_of_row(values, column_in_chunk() + 32, DIM));
            const float factor = inverse_rms(sum, DIM, a.epsilon);
            __syncwarp();
#pragma unroll
            for (int turn = 0; turn < DIM / 32; turn++) values[turn * 32 + lane] = (values[turn * 32 + lane] * factor) * norms[turn];
            __syncwarp();
        }
#pragma unroll
        for (int turn = 0; turn < DIM / 64; turn++) {
            const u32 pair = turn * 32 + lane;
            const float x = values[pair], y = values[DIM / 2 + pair];
            const float low = turns ? x * cosines[turn] - y * sines[turn] : x, high = turns ? y * cosines[turn] + x * sines[turn] : y;
            if (item < sharing) {
                put_query(item, pair, low);
                put_query(item, DIM / 2 + pair, high);
            } else {
                store(last + (item - sharing) * DIM + pair, low);
                store(last + (item - sharing) * DIM + DIM / 2 + pair, high);
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
    __device__ __forceinline__ void put_query(u32 row, u32 column, float value) const {
        const u32 bits = pack_halves(value * a.of.scale, 0.0f);
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(queries + piece_of<DIM>(row, column / 8) + column % 8 * 2), "h"((u16)bits) : "memory");
    }

    // Key and value go into the cache.
    __device__ __forceinline__ void append() const {
        const u32 part = threadIdx.x / (DIM / 8), piece = threadIdx.x % (DIM / 8);
        if (part >= 2) return;
        const u64 slot = *a.slots, place = ((slot / BLOCK_TOKENS * a.of.n_kv_heads + kv_head) * BLOCK_TOKENS + slot % BLOCK_TOKENS) * DIM;
        ((uint4*)((part == 0 ? a.of.keys : a.of.values) + place))[piece] = ((const uint4*)(last + part * DIM))[piece];
    }
};

template <int DIM>
__device__ __forceinline__ void attend(const StepAttention& a, char* shared, float* greatest_of_warps, Mail mail, u32 item) {
    const u32 sharing = 1 << a.of.log_sharing, n_items = (a.of.n_heads >> a.of.log_sharing) * a.of.n_splits;
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    const u32 token = a.of.tokens[0], n_positions = a.of.positions[token] + 1;
    const u32 n_tiles = (n_positions + TILE - 1) / TILE, n_present = (n_tiles + SPLIT_TILES - 1) / SPLIT_TILES;
    const bool takes_all = a.of.n_splits == 1;
    // Behind the ring of tiles and the weights of a tile.
    char* behind = shared + STEP_RING * 2 * TILE * DIM * 2 + 16 * TILE * 2;
    // There are as many blocks as items at least.
    const u32 split = item % a.of.n_splits, first_head = item / a.of.n_splits * sharing, heads_of_kv = a.of.n_heads / a.of.n_kv_heads;
    const bool has_work = item < n_items && split < n_present;
    const AttentionOne<DIM, STEP_RING> one{
        a.of, a.of.blocks + a.of.table_starts[token], base, greatest_of_warps, first_head / heads_of_kv, split * SPLIT_TILES,
        takes_all ? n_tiles : min(n_tiles, (split + 1) * SPLIT_TILES), n_positions, 0, (const uint4*)behind, mail.out,
    };
    const StepHeads<DIM> heads{a, base + (u32)(behind - shared) + 4 * DIM, (Half*)behind, (float*)(behind + 4 * DIM + 32 * DIM), mail.in, first_head, one.kv_head};
    if (has_work) {
        if (threadIdx.x < THREADS) {
#pragma unroll 1
            for (u32 tile = 0; tile < STEP_RING - 1; tile++) one.fetch(one.first_tile + tile);
        }
        heads.run();
    }
    announce(LOADED);
    hear(SET_BACK);
    if (has_work && threadIdx.x < THREADS) {
        if (one.end_tile == n_tiles && first_head % heads_of_kv == 0) heads.append();
        u32 queries[DIM / 16][4];
        const u32 lane = threadIdx.x & 31;
#pragma unroll
        for (int part = 0; part < DIM / 16; part++) load_matrices(queries[part], heads.queries + piece_of<DIM>(lane & 15, part * 2 + lane / 16));
        Partial<DIM / WARPS> total;
        one.run(total, queries);
        float* out = a.of.out + (u64)first_head * DIM;
        if (takes_all || n_present == 1) one.store_all(total, out, first_head);
        else one.share(total, out, first_head, split, n_present);
    }
}

#endif
