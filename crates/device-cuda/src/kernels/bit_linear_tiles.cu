// bit_linear for several tokens, int8, on Hopper's tensor cores (wgmma): 64 out features × TOKENS tokens at once. Weights go from memory to
// registers as they are packed and are decoded there with a shift and a mask; activations come by bulk copies (tiles.cuh) into a ring of
// stages of 256 columns in shared memory, which wgmma reads itself. Two warpgroups of 64 · ROW_TILES rows share the activations; one
// thread fetches.
//
// Few rows of output are not enough for all multiprocessors: the blocks of a cluster share the columns and add up integers through distributed
// shared memory, which is exact in any order. Where scales are for 128 columns (GROUPED), each such segment's integers become floats and
// are added up ascending (numerics::dequantise_segments), and columns are not shared.
#define WARPGROUPS 2
#define THREADS (WARPGROUPS * 128)
#define STAGES_MAX 8
// Columns of a stage: one packed block of weights.
#define BLOCK_COLUMNS 256

struct BitLinearTilesArgs {
    const i8* x;           // tiles (mma.cuh): [n_tiles, 2 · n_blocks]
    const float* x_scales; // inverse, [m]; or of groups, tiled [n_tiles, 2 · n_blocks, 32]
    const int* x_sums;     // likewise
    const uint4* words;    // pack_int8: [n, n_blocks, 4]
    const float* scales;   // [1], [n] or [n, n_groups]
    float* out;            // [m, width], first column
    u32 m;
    u32 n;
    u32 n_blocks;
    u32 width;
    u32 n_groups;          // weight scales of a row; 0: one for the matrix
    u32 group_segments;    // segments of 128 columns that share a weight scale
    u32 add;
    u32 activation;        // of the gate
    u32 n_splits;          // blocks of a cluster
    u32 n_stages;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// sums[64 rows, TOKENS] += codes[64, 32] · activations[32, TOKENS], a warpgroup together; `x` describes the activations in shared memory.
__device__ __forceinline__ void multiply_tile(int (&sums)[8], const u32 (&weights)[4], u64 x) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k32.s32.u8.s8 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7}, "
                 "{%8,%9,%10,%11}, %12, 1;"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]), "+r"(sums[4]), "+r"(sums[5]), "+r"(sums[6]), "+r"(sums[7])
                 : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(x));
}

__device__ __forceinline__ void multiply_tile(int (&sums)[16], const u32 (&weights)[4], u64 x) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
                 "{%16,%17,%18,%19}, %20, 1;"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]), "+r"(sums[4]), "+r"(sums[5]), "+r"(sums[6]), "+r"(sums[7]),
                   "+r"(sums[8]), "+r"(sums[9]), "+r"(sums[10]), "+r"(sums[11]), "+r"(sums[12]), "+r"(sums[13]), "+r"(sums[14]), "+r"(sums[15])
                 : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(x));
}

__device__ __forceinline__ void multiply_tile(int (&sums)[32], const u32 (&weights)[4], u64 x) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, %36, 1;"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]), "+r"(sums[4]), "+r"(sums[5]), "+r"(sums[6]), "+r"(sums[7]),
                   "+r"(sums[8]), "+r"(sums[9]), "+r"(sums[10]), "+r"(sums[11]), "+r"(sums[12]), "+r"(sums[13]), "+r"(sums[14]), "+r"(sums[15]),
                   "+r"(sums[16]), "+r"(sums[17]), "+r"(sums[18]), "+r"(sums[19]), "+r"(sums[20]), "+r"(sums[21]), "+r"(sums[22]), "+r"(sums[23]),
                   "+r"(sums[24]), "+r"(sums[25]), "+r"(sums[26]), "+r"(sums[27]), "+r"(sums[28]), "+r"(sums[29]), "+r"(sums[30]), "+r"(sums[31])
                 : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(x));
}

__device__ __forceinline__ void multiply_tile(int (&sums)[64], const u32 (&weights)[4], u64 x) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,"
                 "%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,"
                 "%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, 1;"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]), "+r"(sums[4]), "+r"(sums[5]), "+r"(sums[6]), "+r"(sums[7]),
                   "+r"(sums[8]), "+r"(sums[9]), "+r"(sums[10]), "+r"(sums[11]), "+r"(sums[12]), "+r"(sums[13]), "+r"(sums[14]), "+r"(sums[15]),
                   "+r"(sums[16]), "+r"(sums[17]), "+r"(sums[18]), "+r"(sums[19]), "+r"(sums[20]), "+r"(sums[21]), "+r"(sums[22]), "+r"(sums[23]),
                   "+r"(sums[24]), "+r"(sums[25]), "+r"(sums[26]), "+r"(sums[27]), "+r"(sums[28]), "+r"(sums[29]), "+r"(sums[30]), "+r"(sums[31]),
                   "+r"(sums[32]), "+r"(sums[33]), "+r"(sums[34]), "+r"(sums[35]), "+r"(sums[36]), "+r"(sums[37]), "+r"(sums[38]), "+r"(sums[39]),
                   "+r"(sums[40]), "+r"(sums[41]), "+r"(sums[42]), "+r"(sums[43]), "+r"(sums[44]), "+r"(sums[45]), "+r"(sums[46]), "+r"(sums[47]),
                   "+r"(sums[48]), "+r"(sums[49]), "+r"(sums[50]), "+r"(sums[51]), "+r"(sums[52]), "+r"(sums[53]), "+r"(sums[54]), "+r"(sums[55]),
                   "+r"(sums[56]), "+r"(sums[57]), "+r"(sums[58]), "+r"(sums[59]), "+r"(sums[60]), "+r"(sums[61]), "+r"(sums[62]), "+r"(sums[63])
                 : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(x));
}

__device__ __forceinline__ void multiply_tile(int (&sums)[80], const u32 (&weights)[4], u64 x) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n160k32.s32.u8.s8 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,"
                 "%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,"
                 "%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79}, "
                 "{%80,%81,%82,%83}, %84, 1;"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]), "+r"(sums[4]), "+r"(sums[5]), "+r"(sums[6]), "+r"(sums[7]),
                   "+r"(sums[8]), "+r"(sums[9]), "+r"(sums[10]), "+r"(sums[11]), "+r"(sums[12]), "+r"(sums[13]), "+r"(sums[14]), "+r"(sums[15]),
                   "+r"(sums[16]), "+r"(sums[17]), "+r"(sums[18]), "+r"(sums[19]), "+r"(sums[20]), "+r"(sums[21]), "+r"(sums[22]), "+r"(sums[23]),
                   "+r"(sums[24]), "+r"(sums[25]), "+r"(sums[26]), "+r"(sums[27]), "+r"(sums[28]), "+r"(sums[29]), "+r"(sums[30]), "+r"(sums[31]),
                   "+r"(sums[32]), "+r"(sums[33]), "+r"(sums[34]), "+r"(sums[35]), "+r"(sums[36]), "+r"(sums[37]), "+r"(sums[38]), "+r"(sums[39]),
                   "+r"(sums[40]), "+r"(sums[41]), "+r"(sums[42]), "+r"(sums[43]), "+r"(sums[44]), "+r"(sums[45]), "+r"(sums[46]), "+r"(sums[47]),
                   "+r"(sums[48]), "+r"(sums[49]), "+r"(sums[50]), "+r"(sums[51]), "+r"(sums[52]), "+r"(sums[53]), "+r"(sums[54]), "+r"(sums[55]),
                   "+r"(sums[56]), "+r"(sums[57]), "+r"(sums[58]), "+r"(sums[59]), "+r"(sums[60]), "+r"(sums[61]), "+r"(sums[62]), "+r"(sums[63]),
                   "+r"(sums[64]), "+r"(sums[65]), "+r"(sums[66]), "+r"(sums[67]), "+r"(sums[68]), "+r"(sums[69]), "+r"(sums[70]), "+r"(sums[71]),
                   "+r"(sums[72]), "+r"(sums[73]), "+r"(sums[74]), "+r"(sums[75]), "+r"(sums[76]), "+r"(sums[77]), "+r"(sums[78]), "+r"(sums[79])
                 : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(x));
}


// A descriptor of activations in shared memory: rows of 128 bytes, swizzled, those of the next eight tokens 1,024 bytes behind.
__device__ __forceinline__ u64 describe(u32 shared) {
    const u64 swizzled = 1, unused = 1, tokens_step = 1024 >> 4;
    return (u64)(shared >> 4) | (unused << 16) | (tokens_step << 32) | (swizzled << 62);
}

__device__ __forceinline__ void make_barrier(u32 barrier, u32 n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(n_arrivals) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void expect_bytes(u32 barrier, u32 n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(n_bytes) : "memory");
}

__device__ __forceinline__ void await(u32 barrier, u32 parity) {
    asm volatile(
        "{\n .reg .pred done;\n"
        "again:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        " @done bra ready;\n bra again;\nready:\n}" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void fetch(u32 to, const void* from, u32 n_bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(n_bytes),
                 "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

// Adds four words of shared memory of block `rank` of the cluster.
__device__ __forceinline__ void add_remote_words(int (&sums)[4], u32 shared, u32 rank) {
    u32 address;
    int words[4];
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
    asm volatile("ld.shared::cluster.v4.s32 {%0, %1, %2, %3}, [%4];" : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(address));
#pragma unroll
    for (int part = 0; part < 4; part++) sums[part] += words[part];
}

template <int TOKENS, int ROW_TILES, bool GATE, bool GROUPED>
struct Tiles {
    static const int PIECES = (TOKENS + TILE_TOKENS - 1) / TILE_TOKENS;
    static const int SCALE_BYTES = GROUPED ? 2 * TILE_TOKENS * 4 : 0;
    // A stage: activations of its two segments, then scales and sums of these.
    static const int SEGMENT_BYTES = PIECES * TILE_BYTES;
    static const int FETCHED_BYTES = 2 * SEGMENT_BYTES + PIECES * 2 * SCALE_BYTES;
    static const int STAGE_BYTES = (FETCHED_BYTES + 1023) / 1024 * 1024;
    static const int BLOCK_ROWS = WARPGROUPS * 64 * ROW_TILES;
    static const int N_SUMS = TOKENS / 2;

    const BitLinearTilesArgs& a;
    u32 stages, full, empty;  // shared memory: the ring, and a barrier for each stage
    float* x_inverse_scales;  // [TOKENS] of the block's tokens, where columns are not in groups
    int* x_sums;              // likewise
    u32 first_token, first_block, end_block;

    // Starts to fetch the `turn`th block of columns; by one thread.
    __device__ __forceinline__ void fetch_stage(u32 turn) const {
        const u32 n_pieces = (a.m + TILE_TOKENS - 1) / TILE_TOKENS, slot = turn % a.n_stages, round = turn / a.n_stages, block = first_block + turn;
        if (block >= end_block) return;
        if (round > 0) await(empty + slot * 8, (round - 1) & 1);
        expect_bytes(full + slot * 8, FETCHED_BYTES);
        const u32 stage = stages + slot * STAGE_BYTES;
#pragma unroll 1
        for (u32 piece = 0; piece < PIECES; piece++) {
            const u64 tile = min(first_token / TILE_TOKENS + piece, n_pieces - 1);
            const i8* from = a.x + (tile * a.n_blocks + block) * 2 * TILE_BYTES;
            fetch(stage + piece * TILE_BYTES, from, TILE_BYTES, full + slot * 8);
            fetch(stage + SEGMENT_BYTES + piece * TILE_BYTES, from + TILE_BYTES, TILE_BYTES, full + slot * 8);
            if (!GROUPED) continue;
            const u64 place = (tile * a.n_blocks + block) * 2 * TILE_TOKENS;
            const u32 scales = stage + 2 * SEGMENT_BYTES + piece * 2 * SCALE_BYTES;
            fetch(scales, a.x_scales + place, SCALE_BYTES, full + slot * 8);
            fetch(scales + SCALE_BYTES, a.x_sums + place, SCALE_BYTES, full + slot * 8);
        }
    }

    // First row of weights, and one beyond the last, that tile `tile` of this warpgroup may have.
    __device__ __forceinline__ u32 first_row(int tile) const {
        const u32 warpgroup = threadIdx.x / 128;
        if (GATE) return tile * (a.n / 2) + blockIdx.x * (BLOCK_ROWS / 2) + warpgroup * 64;
        return blockIdx.x * BLOCK_ROWS + (warpgroup * ROW_TILES + tile) * 64;
    }
    __device__ __forceinline__ u32 end_row(int tile) const { return GATE && tile == 0 ? a.n / 2 : a.n; }
    __device__ __forceinline__ u32 row(int tile, int half) const {
        return first_row(tile) + (threadIdx.x / 32 & 3) * 16 + (threadIdx.x & 31) / 4 + half * 8;
    }
    // The token of register `index` of the sums.
    __device__ __forceinline__ u32 token(int index) const {
        return first_token + index / 4 * 8 + (threadIdx.x & 3) * 2 + (index & 1);
    }

    __device__ __forceinline__ void multiply_block(int (&sums)[ROW_TILES][N_SUMS], const uint4 (&words)[ROW_TILES][2], u32 stage, int chunk) const {
        u32 weights[2][ROW_TILES][4];
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++) {
                const u32 low = word_of(words[tile][0], chunk), high = word_of(words[tile][1], chunk);
                weights[step][tile][0] = (low >> (4 * step)) & 0x03030303u;
                weights[step][tile][1] = (high >> (4 * step)) & 0x03030303u;
                weights[step][tile][2] = (low >> (4 * step + 2)) & 0x03030303u;
                weights[step][tile][3] = (high >> (4 * step + 2)) & 0x03030303u;
                // Decoded before the first product begins: a register written between products makes the compiler wait for each.
                asm volatile("" : "+r"(weights[step][tile][0]), "+r"(weights[step][tile][1]), "+r"(weights[step][tile][2]), "+r"(weights[step][tile][3]));
            }
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++) multiply_tile(sums[tile], weights[step][tile], describe(stage + chunk / 2 * SEGMENT_BYTES + (chunk % 2 * 2 + step) * 32));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    }

    // What a segment of 128 columns adds to `y`; its sums begin again.
    __device__ __forceinline__ void add_segment(float (&y)[ROW_TILES][N_SUMS], int (&sums)[ROW_TILES][N_SUMS], u32 stage, u32 block, int segment) const {
        const u32 scales = stage + 2 * SEGMENT_BYTES + segment * TILE_TOKENS * 4 + (threadIdx.x & 3) * 8;
        float weight_scales[ROW_TILES][2];
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 group = min((block * 2 + segment) / a.group_segments, a.n_groups - 1);
                const u64 place = (u64)min(row(tile, half), end_row(tile) - 1) * a.n_groups + group;
                weight_scales[tile][half] = __ldg(a.scales + (a.n_groups == 0 ? 0 : place));
            }
#pragma unroll
        for (int eight = 0; eight < TOKENS / 8; eight++) {
            const u32 place = scales + eight / 4 * 2 * SCALE_BYTES + eight % 4 * 32;
            float x_scales[2];
            int x_sums[2];
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x_scales[0]), "=f"(x_scales[1]) : "r"(place));
            asm volatile("ld.shared.v2.s32 {%0, %1}, [%2];" : "=r"(x_sums[0]), "=r"(x_sums[1]) : "r"(place + SCALE_BYTES));
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
                for (int part = 0; part < 4; part++) {
                    int& sum = sums[tile][eight * 4 + part];
                    y[tile][eight * 4 + part] += (float)(sum - x_sums[part & 1]) * (weight_scales[tile][part / 2] * x_scales[part & 1]);
                    sum = 0;
                }
        }
    }

    // `token` of the block.
    __device__ __forceinline__ float scaled(int sum, u32 token, u32 row) const {
        return dequantise(sum - x_sums[token], __ldg(a.scales + (a.n_groups == 0 ? 0 : row)), x_inverse_scales[token]);
    }

    // Of the rows of this thread.
    __device__ __forceinline__ void load_inverse_scales(float (&inverse)[ROW_TILES][2]) const {
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                inverse[tile][half] = weight_inverse_scale(__ldg(a.scales + (a.n_groups == 0 ? 0 : min(row(tile, half), end_row(tile) - 1))));
    }

    // Products of this block's own sums, from registers. `y` holds them where columns are in groups.
    __device__ __forceinline__ void store_sums(const int (&sums)[ROW_TILES][N_SUMS], const float (&y)[GROUPED ? ROW_TILES : 1][GROUPED ? N_SUMS : 1]) const {
        float inverse[ROW_TILES][2];
        if (!GROUPED) load_inverse_scales(inverse);
#pragma unroll
        for (int eight = 0; eight < TOKENS / 8; eight++) {
            // What a product is added to is loaded before the first store: the compiler must take each store for a change of what is loaded next.
            float before[ROW_TILES][4];
            if (!GATE) {
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
                    for (int part = 0; part < 4; part++) {
                        const u32 at = min(token(eight * 4 + part), a.m - 1), of = min(row(tile, part / 2), a.n - 1);
                        before[tile][part] = a.add ? a.out[(u64)at * a.width + of] : 0.0f;
                    }
            }
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const int index = eight * 4 + part, half = part / 2;
                const u32 at = token(index);
                if (at >= a.m) continue;
                float products[ROW_TILES];
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; tile++) {
                    if constexpr (GROUPED) products[tile] = y[tile][index];
                    else products[tile] = dequantise_inverse(sums[tile][index] - x_sums[at - first_token], inverse[tile][half], x_inverse_scales[at - first_token]);
                    float* out = a.out + (u64)at * a.width + row(tile, half);
                    if (!GATE && row(tile, half) < a.n) *out = a.add ? before[tile][part] + products[tile] : products[tile];
                }
                if (GATE && row(0, half) < a.n / 2)
                    a.out[(u64)at * a.width + row(0, half)] = gated(a.activation, products[0], products[ROW_TILES - 1]);
            }
        }
    }

    // Adds up the sums of the cluster's blocks, each block a share of the tokens.
    __device__ __forceinline__ void store_cluster_sums(const int (&sums)[ROW_TILES][N_SUMS]) const {
        // [TOKENS][BLOCK_ROWS + 8] in the stages, which no copy or product uses any more.
        const u32 stride = BLOCK_ROWS + 8, local_row = (threadIdx.x / 32 & 3) * 16 + (threadIdx.x & 31) / 4, warpgroup = threadIdx.x / 128;
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int index = 0; index < N_SUMS; index++) {
                const u32 at = (warpgroup * ROW_TILES + tile) * 64 + local_row + (index / 2 & 1) * 8;
                const u32 place = stages + ((token(index) - first_token) * stride + at) * 4;
                asm volatile("st.shared.s32 [%0], %1;" ::"r"(place), "r"(sums[tile][index]) : "memory");
            }
        __syncthreads();
        cluster_barrier();
        const u32 rank = blockIdx.y % a.n_splits, tokens = min((u32)TOKENS, a.m - first_token), rows = GATE ? BLOCK_ROWS / 2 : BLOCK_ROWS;
        // Four rows at a time.
        for (u32 index = rank * THREADS + threadIdx.x; index < tokens * rows / 4; index += a.n_splits * THREADS) {
            const u32 token = index / (rows / 4), inside = index % (rows / 4) * 4;
            // Where rows of a gate lie: each warpgroup has 64 of gate and 64 of up behind.
            const u32 at = stages + (token * stride + (GATE ? inside / 64 * 128 + inside % 64 : inside)) * 4;
            const u32 first_row = blockIdx.x * rows + inside, end = GATE ? a.n / 2 : a.n;
            float* out = a.out + (u64)(first_token + token) * a.width + first_row;
            float before[4];
#pragma unroll
            for (int part = 0; part < 4; part++) before[part] = a.add && first_row + part < end ? out[part] : 0.0f;
            int first[4] = {}, second[4] = {};
            for (u32 split = 0; split < a.n_splits; split++) {
                add_remote_words(first, at, split);
                if (GATE) add_remote_words(second, at + 64 * 4, split);
            }
#pragma unroll
            for (int part = 0; part < 4; part++) {
                if (first_row + part >= end) continue;
                float y = scaled(first[part], token, first_row + part);
                if (GATE) y = gated(a.activation, y, scaled(second[part], token, end + first_row + part));
                out[part] = a.add ? before[part] + y : y;
            }
        }
        // Nobody leaves while others read here.
        __syncthreads();
        cluster_barrier();
    }

    __device__ __forceinline__ void load_words(uint4 (&words)[ROW_TILES][2], const uint4* const (&rows)[ROW_TILES][2], u32 block) const {
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) words[tile][half] = block < end_block ? __ldg(rows[tile][half] + block * 4) : make_uint4(0, 0, 0, 0);
    }

    __device__ __forceinline__ void run() const {
        int sums[ROW_TILES][N_SUMS] = {};
        float y[GROUPED ? ROW_TILES : 1][GROUPED ? N_SUMS : 1] = {};
        const uint4* rows[ROW_TILES][2];
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                rows[tile][half] = a.words + (u64)min(row(tile, half), end_row(tile) - 1) * a.n_blocks * 4 + (threadIdx.x & 3);
        uint4 next[ROW_TILES][2], later[ROW_TILES][2];
        load_words(next, rows, first_block);
        load_words(later, rows, first_block + 1);
        await_predecessors();
        if (!GROUPED && threadIdx.x < TOKENS) {
            const u32 token = min(first_token + threadIdx.x, a.m - 1);
            x_inverse_scales[threadIdx.x] = a.x_scales[token];
            x_sums[threadIdx.x] = a.x_sums[token];
        }
        __syncthreads();
        // A stage is filled again two turns after it was read, so that the warpgroups need not keep step.
        if (threadIdx.x == 0)
            for (u32 turn = 0; turn + 2 < a.n_stages; turn++) fetch_stage(turn);
#pragma unroll 1
        for (u32 block = first_block; block < end_block; block++) {
            const u32 turn = block - first_block, slot = turn % a.n_stages, stage = stages + slot * STAGE_BYTES;
            if (threadIdx.x == 0) fetch_stage(turn + a.n_stages - 2);
            uint4 words[ROW_TILES][2];
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    words[tile][half] = next[tile][half];
                    next[tile][half] = later[tile][half];
                }
            load_words(later, rows, block + 2);
            await(full + slot * 8, turn / a.n_stages & 1);
#pragma unroll
            for (int chunk = 0; chunk < 4; chunk++) {
                multiply_block(sums, words, stage, chunk);
                if constexpr (GROUPED) {
                    if (chunk & 1) {
                        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
                        add_segment(y, sums, stage, block, chunk / 2);
                    }
                } else {
                    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                }
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if ((threadIdx.x & 127) == 0) arrive(empty + slot * 8);
        }
        if (!GROUPED && a.n_splits > 1) {
            // All stages have been read.
            __syncthreads();
            store_cluster_sums(sums);
        } else {
            store_sums(sums, y);
        }
    }
};

template <int TOKENS, int ROW_TILES, bool GATE, bool GROUPED>
__device__ __forceinline__ void bit_linear_tiles_body(const BitLinearTilesArgs& a) {
    extern __shared__ __align__(1024) char stages[];
    __shared__ u64 full[STAGES_MAX], empty[STAGES_MAX];
    __shared__ float x_inverse_scales[TOKENS];
    __shared__ int x_sums[TOKENS];
    const u32 first_full = (u32)__cvta_generic_to_shared(full), first_empty = (u32)__cvta_generic_to_shared(empty);
    if (threadIdx.x == 0) {
        for (u32 slot = 0; slot < a.n_stages; slot++) {
            make_barrier(first_full + slot * 8, 1);
            make_barrier(first_empty + slot * 8, WARPGROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    admit_successor();
    __syncthreads();
    const u32 blocks_each = (a.n_blocks + a.n_splits - 1) / a.n_splits, first_block = blockIdx.y % a.n_splits * blocks_each;
    const Tiles<TOKENS, ROW_TILES, GATE, GROUPED> tiles{
        a, (u32)__cvta_generic_to_shared(stages), first_full, first_empty, x_inverse_scales, x_sums, blockIdx.y / a.n_splits * TOKENS, first_block,
        min(a.n_blocks, first_block + blocks_each),
    };
    tiles.run();
}

#define BIT_LINEAR_TILES(name, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(THREADS, blocks) name(const BitLinearTilesArgs a) { bit_linear_tiles_body<__VA_ARGS__>(a); }
#else
// No wgmma here: the host does not ask for these kernels.
#define BIT_LINEAR_TILES(name, blocks, ...) \
    extern "C" __global__ void name(const BitLinearTilesArgs a) {}
#endif

BIT_LINEAR_TILES(bit_linear_tiles_16, 2, 16, 1, false, false)
BIT_LINEAR_TILES(bit_linear_tiles_32, 2, 32, 1, false, false)
BIT_LINEAR_TILES(bit_linear_tiles_64, 2, 64, 1, false, false)
BIT_LINEAR_TILES(bit_linear_tiles_128, 1, 128, 2, false, false)
BIT_LINEAR_TILES(bit_linear_tiles_160, 1, 160, 1, false, false)
BIT_LINEAR_TILES(bit_linear_tiles_gate_16, 1, 16, 2, true, false)
BIT_LINEAR_TILES(bit_linear_tiles_gate_32, 1, 32, 2, true, false)
BIT_LINEAR_TILES(bit_linear_tiles_gate_64, 1, 64, 2, true, false)
BIT_LINEAR_TILES(bit_linear_tiles_gate_128, 1, 128, 2, true, false)
BIT_LINEAR_TILES(bit_linear_tiles_groups_16, 2, 16, 1, false, true)
BIT_LINEAR_TILES(bit_linear_tiles_groups_32, 2, 32, 1, false, true)
BIT_LINEAR_TILES(bit_linear_tiles_groups_64, 2, 64, 1, false, true)
