// bit_linear for several tokens, int8, on Hopper's tensor cores (wgmma): 64 out features × TOKENS tokens at once. Weights go from memory to
// registers as they are packed and are decoded there with a shift and a mask; activations come by bulk copies (tiles, mma.cuh) into a ring of
// stages of 256 columns in shared memory, which wgmma reads itself. Two warpgroups of 64 · ROW_TILES rows share the activations; a thread of each
// fetches.
//
// Few rows of output are not enough for all multiprocessors: the blocks of a cluster share the columns and send each other their integers, each
// adds up those of every n-th eight of tokens, which is exact in any order. Where scales are for 128 columns (GROUPED), each such segment's integers become floats and
// are added up ascending (numerics::dequantise_segments), and columns are not shared.
#define WARPGROUPS 2
#define THREADS (WARPGROUPS * 128)
#define STAGES_MAX 8
// Columns of a stage: one packed block of weights.
#define BLOCK_COLUMNS 256
// Up to so many, weights are prefetched.
#define FEW_TOKENS 256

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int TOKENS, int ROW_TILES, bool GATE, bool GROUPED>
struct Tiles {
    static const int PIECES = (TOKENS + TILE_TOKENS - 1) / TILE_TOKENS;
    static const int SCALE_BYTES = GROUPED ? PIECES * TILE_TOKENS * 4 : 0;
    // A stage: activations of its two segments, then scales of these, then sums.
    static const int SEGMENT_BYTES = PIECES * TILE_BYTES;
    static const int FETCHED_BYTES = 2 * SEGMENT_BYTES + 4 * SCALE_BYTES;
    static const int STAGE_BYTES = (FETCHED_BYTES + 1023) / 1024 * 1024;
    static const int BLOCK_ROWS = WARPGROUPS * 64 * ROW_TILES;
    static const int N_SUMS = TOKENS / 2;
    // As tiles.rs takes memory for them. A constant, since each thread finds its place in the ring several times a stage.
    static const u32 N_STAGES = GROUPED ? 6 : TOKENS > 128 ? 5 : TOKENS > 64 || (TOKENS == 64 && !GATE) ? 6 : 8;
    // Stages that are asked for before one is read. A pair's are fetched into those that the pair before last and the first half of the last have read;
    // where stages go one by one, each two turns after it was read, so that the warpgroups need not keep step.
    static const u32 N_AHEAD = N_STAGES - (GROUPED ? 2 : 3);
    // Words from a token's sums to the next one's, where they are shared: a warp that puts its sums there meets no bank twice.
    static const int STRIDE = BLOCK_ROWS + 4;

    static const int KINDS = GATE ? 2 : 1;
    // Rows of results of a block, and tiles of them of a warpgroup.
    static const int OUT_ROWS = BLOCK_ROWS / KINDS;
    // Whether a tile has rows of both gate and up, eight of one and then eight of the other, which are then a thread's.
    static const bool IS_PAIRED = GATE && ROW_TILES == 1;
    static const int OUT_TILES = IS_PAIRED ? 1 : ROW_TILES / KINDS;
    // Results of a thread, of an eight of tokens and a tile.
    static const int N_RESULTS = IS_PAIRED ? 2 : 4;
    typedef BlockScales<TOKENS, BLOCK_ROWS, KINDS> Scales;

    const BitLinearTilesArgs& a;
    u32 stages, full, empty;  // shared memory: the ring, and a barrier for each stage
    u32 received;             // barrier of the sums that other blocks of the cluster send
    Scales& scales;           // where columns are not in groups
    u32 first_token, first_block, end_block;

    // Starts to fetch the `turn`th block of columns; by one thread, whose warpgroup waits for it: copies are few and large.
    __device__ __forceinline__ void fetch_stage(u32 turn) const {
        const u32 slot = turn % N_STAGES, round = turn / N_STAGES, block = first_block + turn;
        if (block >= end_block) return;
        if (round > 0) await(empty + slot * 8, (round - 1) & 1);
        expect_bytes(full + slot * 8, FETCHED_BYTES);
        const u32 stage = stages + slot * STAGE_BYTES, n_tiles = n_tiles_of(a.m);
#pragma unroll
        for (u32 segment = 0; segment < 2; segment++) {
            const u64 tile = (u64)(block * 2 + segment) * n_tiles + first_token / TILE_TOKENS;
            fetch(stage + segment * SEGMENT_BYTES, a.x + tile * TILE_BYTES, SEGMENT_BYTES, full + slot * 8);
            if (!GROUPED) continue;
            const u32 scales = stage + 2 * SEGMENT_BYTES + segment * SCALE_BYTES;
            fetch(scales, a.x_scales + tile * TILE_TOKENS, SCALE_BYTES, full + slot * 8);
            fetch(scales + 2 * SCALE_BYTES, a.x_sums + tile * TILE_TOKENS, SCALE_BYTES, full + slot * 8);
        }
    }

    // First row of weights, and one beyond the last, that tile `tile` of this warpgroup may have.
    __device__ __forceinline__ u32 first_row(int tile) const {
        const u32 warpgroup = threadIdx.x / 128;
        if (GATE) return tile * (a.n / 2) + blockIdx.x * (BLOCK_ROWS / 2) + warpgroup * 64;
        return blockIdx.x * BLOCK_ROWS + (warpgroup * ROW_TILES + tile) * 64;
    }
    __device__ __forceinline__ u32 end_row(int tile, int half) const { return GATE && (IS_PAIRED ? half : tile) == 0 ? a.n / 2 : a.n; }
    __device__ __forceinline__ u32 row(int tile, int half) const {
        const u32 warp = threadIdx.x / 32, line = (threadIdx.x & 31) / 4;
        if (IS_PAIRED) return half * (a.n / 2) + blockIdx.x * OUT_ROWS + warp * 8 + line;
        return first_row(tile) + (warp & 3) * 16 + line + half * 8;
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
        const u32 scales = stage + 2 * SEGMENT_BYTES + segment * SCALE_BYTES + (threadIdx.x & 3) * 8;
        float weight_scales[ROW_TILES][2];
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 group = min((block * 2 + segment) / a.group_segments, a.n_groups - 1);
                const u64 place = (u64)min(row(tile, half), end_row(tile, half) - 1) * a.n_groups + group;
                weight_scales[tile][half] = __ldg(a.scales + (a.n_groups == 0 ? 0 : place));
            }
#pragma unroll
        for (int eight = 0; eight < TOKENS / 8; eight++) {
            const u32 place = scales + eight * 32;
            float x_scales[2];
            int x_sums[2];
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x_scales[0]), "=f"(x_scales[1]) : "r"(place));
            asm volatile("ld.shared.v2.s32 {%0, %1}, [%2];" : "=r"(x_sums[0]), "=r"(x_sums[1]) : "r"(place + 2 * SCALE_BYTES));
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

    // Puts the sums, or products where columns are in groups, where all threads find them: [TOKENS][STRIDE] words in the stages, which
    // no copy or product uses any more.
    __device__ __forceinline__ void share(const int (&sums)[ROW_TILES][N_SUMS], const float (&y)[GROUPED ? ROW_TILES : 1][GROUPED ? N_SUMS : 1]) const {
        const u32 local_row = (threadIdx.x / 32 & 3) * 16 + (threadIdx.x & 31) / 4, warpgroup = threadIdx.x / 128;
        const u32 first = stages + (((threadIdx.x & 3) * 2) * STRIDE + warpgroup * ROW_TILES * 64 + local_row) * 4;
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int index = 0; index < N_SUMS; index++) {
                const u32 place = first + ((index / 4 * 8 + (index & 1)) * STRIDE + tile * 64 + (index / 2 & 1) * 8) * 4;
                int word;
                if constexpr (GROUPED) word = __float_as_int(y[tile][index]);
                else word = sums[tile][index];
                asm volatile("st.shared.s32 [%0], %1;" ::"r"(place), "r"(word) : "memory");
            }
    }

    // Four rows' products of a token of the block, `at` where the first of them is shared by the cluster's blocks.
    __device__ __forceinline__ void add_up(float (&y)[4], u32 at, const float (&inverse)[4], bool is_near, u32 token) const {
        int sums[4] = {};
        if (a.n_splits == 1) {
            asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];" : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3]) : "r"(at));
        } else {
#pragma unroll 1
            for (u32 split = 0; split < a.n_splits; split++) add_remote_words(sums, at, split);
        }
        if constexpr (GROUPED) {
#pragma unroll
            for (int part = 0; part < 4; part++) y[part] = __int_as_float(sums[part]);
            return;
        }
        const float x_inverse_scale = scales.x_inverse[token];
        const int x_sum = scales.x_sums[token];
        if (is_near && is_ordinary(x_inverse_scale)) {
#pragma unroll
            for (int part = 0; part < 4; part++) y[part] = quotient_of_ordinary(small_integer(sums[part] - x_sum), x_inverse_scale * inverse[part]);
            return;
        }
#pragma unroll 1
        for (int part = 0; part < 4; part++) {
            const float of_row = part == 0 ? inverse[0] : part == 1 ? inverse[1] : part == 2 ? inverse[2] : inverse[3];
            const int sum = part == 0 ? sums[0] : part == 1 ? sums[1] : part == 2 ? sums[2] : sums[3];
            const float quotient = dequantise_inverse(sum - x_sum, of_row, x_inverse_scale);
            if (part == 0) y[0] = quotient;
            else if (part == 1) y[1] = quotient;
            else if (part == 2) y[2] = quotient;
            else y[3] = quotient;
        }
    }

    // Inverse scales of four rows of weights, and whether all are ordinary.
    __device__ __forceinline__ bool load_inverse_scales(float (&inverse)[4], u32 first_row, u32 end) const {
        bool is_near = true;
#pragma unroll
        for (int part = 0; part < 4; part++) {
            inverse[part] = weight_inverse_scale(__ldg(a.scales + (a.n_groups == 0 ? 0 : min(first_row + part, end - 1))));
            is_near = is_near && is_ordinary(inverse[part]);
        }
        return is_near;
    }

    // Starts to fetch the scales of the block's rows, which are not there beyond the last, and of its tokens.
    __device__ __forceinline__ void fetch_row_scales() const {
        const u32 row = threadIdx.x, kind = row / OUT_ROWS, place = kind * (a.n / KINDS) + blockIdx.x * OUT_ROWS + row % OUT_ROWS;
        if (row < BLOCK_ROWS) copy_word(scales.of_rows + row, a.scales + (a.n_groups == 0 ? 0 : min(place, a.n - 1)));
    }
    __device__ __forceinline__ void fetch_token_scales() const {
        const u32 token = min(first_token + threadIdx.x, a.m - 1);
        if (threadIdx.x >= TOKENS) return;
        copy_word(scales.x_inverse + threadIdx.x, a.x_scales + token);
        copy_word(scales.x_sums + threadIdx.x, a.x_sums + token);
    }

    // Finds what the block's integers are divided by, if its rows have one scale. All threads together, between barriers.
    __device__ __forceinline__ bool find_divisors() const {
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
        // The division of SiLU would be in the code once for each result.
        bool is_plain = (!GATE || a.activation == RELU2) && (blockIdx.x + 1) * OUT_ROWS <= a.n / KINDS && a.n_blocks * BLOCK_COLUMNS * 127 < SMALL_INTEGER_END;
        if (threadIdx.x < BLOCK_ROWS) is_plain = is_plain && scales.of_rows[threadIdx.x] == scales.of_rows[threadIdx.x / OUT_ROWS * OUT_ROWS];
#pragma unroll
        for (u32 kind = 0; kind < KINDS; kind++) {
            const u32 token = threadIdx.x;
            if (token >= TOKENS) break;
            const float inverse = weight_inverse_scale(scales.of_rows[kind * OUT_ROWS]), x_inverse = scales.x_inverse[token], divisor = x_inverse * inverse;
            is_plain = is_plain && is_ordinary(inverse) && is_ordinary(x_inverse);
            scales.divisors[kind][token] = divisor;
            scales.reciprocals[kind][token] = reciprocal_of_ordinary(divisor);
            if (kind == 0) scales.biases[token] = SMALL_INTEGER_BIAS - scales.x_sums[token];
        }
        return __syncthreads_and(is_plain);
    }

    // Results of rows eight apart and two neighbouring tokens from `token` of the block: sums lie as wgmma leaves them.
    template <int N>
    __device__ __forceinline__ void divide(float (&y)[N], const int* sums, u32 kind, u32 token) const {
        const float2 divisor = *(const float2*)(scales.divisors[kind] + token), reciprocal = *(const float2*)(scales.reciprocals[kind] + token);
        const int2 bias = *(const int2*)(scales.biases + token);
#pragma unroll
        for (int half = 0; half < N / 2; half++) {
            y[half * 2] = quotient_by(biased_integer(sums[half * 2] + bias.x), divisor.x, reciprocal.x);
            y[half * 2 + 1] = quotient_by(biased_integer(sums[half * 2 + 1] + bias.y), divisor.y, reciprocal.y);
        }
    }

    // Results of tile `tile` of the block's eight of tokens `eight`; `sums` are those of all tiles, `stride` integers apart.
    __device__ __forceinline__ void results(float (&y)[N_RESULTS], const int* sums, int stride, int tile, u32 eight) const {
        const u32 token = eight * 8 + (threadIdx.x & 3) * 2;
        if constexpr (IS_PAIRED) {
            float up[2];
            divide(y, sums, 0, token);
            divide(up, sums + 2, 1, token);
#pragma unroll
            for (int part = 0; part < 2; part++) y[part] = gated(RELU2, y[part], up[part]);
        } else {
            divide(y, sums + tile * stride, 0, token);
            if constexpr (GATE) {
                float up[4];
                divide(up, sums + stride, 1, token);
#pragma unroll
                for (int part = 0; part < 4; part++) y[part] = gated(RELU2, y[part], up[part]);
            }
        }
    }

    // Where the results of this thread go, of its first two tokens of eight `eight`.
    __device__ __forceinline__ float* place_of(u32 eight) const {
        return a.out + (u64)(first_token + eight * 8 + (threadIdx.x & 3) * 2) * a.width + row(0, 0);
    }
    __device__ __forceinline__ u32 offset_of(int tile, int part) const { return tile * 64 + part / 2 * 8 + (part & 1) * a.width; }
    __device__ __forceinline__ bool has_token(u32 eight, int part) const { return first_token + eight * 8 + (threadIdx.x & 3) * 2 + (part & 1) < a.m; }

    // What stands there, or −0, to which any number may be added.
    __device__ __forceinline__ void load_residual(float (&before)[OUT_TILES][4], u32 eight) const {
        const float* from = place_of(eight);
#pragma unroll
        for (int tile = 0; tile < OUT_TILES; tile++)
#pragma unroll
            for (int part = 0; part < 4; part++) before[tile][part] = !GATE && a.add && has_token(eight, part) ? from[offset_of(tile, part)] : -0.0f;
    }
    __device__ __forceinline__ void store_results(const int* sums, int stride, const float (&before)[OUT_TILES][4], u32 eight) const {
        float* to = place_of(eight);
#pragma unroll
        for (int tile = 0; tile < OUT_TILES; tile++) {
            float y[N_RESULTS];
            results(y, sums, stride, tile, eight);
#pragma unroll
            for (int part = 0; part < N_RESULTS; part++)
                if (has_token(eight, part)) to[offset_of(tile, part)] = GATE ? y[part] : before[tile][part] + y[part];
        }
    }

    // Stores the results of all the block's tokens from where the sums are.
    __device__ __forceinline__ void store_sums(const int (&sums)[ROW_TILES][N_SUMS]) const {
        // So many residuals are on their way at a time.
        const int AT_ONCE = OUT_TILES == 1 ? (TOKENS >= 32 ? 4 : 2) : 2;
#pragma unroll
        for (int first = 0; first < TOKENS / 8; first += AT_ONCE) {
            float before[AT_ONCE][OUT_TILES][4];
#pragma unroll
            for (int turn = 0; turn < AT_ONCE; turn++) load_residual(before[turn], first + turn);
#pragma unroll
            for (int turn = 0; turn < AT_ONCE; turn++) store_results(&sums[0][(first + turn) * 4], N_SUMS, before[turn], first + turn);
        }
    }

    __device__ __forceinline__ u32 n_eights() const { return (min((u32)TOKENS, a.m - first_token) + 7) / 8; }
    __device__ __forceinline__ u32 n_slots() const { return (n_eights() + a.n_splits - 1) / a.n_splits; }
    // Where block `rank` of the cluster puts its sums of a tile of the `slot`th eight of this or another block.
    __device__ __forceinline__ u32 place_of_sums(u32 rank, u32 slot, int tile) const {
        return stages + (((rank * n_slots() + slot) * ROW_TILES + tile) * THREADS + threadIdx.x) * 16;
    }
    // Bytes that come to block `rank`.
    __device__ __forceinline__ u32 n_bytes_received(u32 rank) const {
        return (n_eights() + a.n_splits - 1 - rank) / a.n_splits * (a.n_splits - 1) * ROW_TILES * THREADS * 16;
    }

    // Sends each block of the cluster its eights' sums.
    __device__ __forceinline__ void send_sums(const int (&sums)[ROW_TILES][N_SUMS], u32 rank) const {
        u32 owner = 0, slot = 0;
        const u32 end = n_eights();
#pragma unroll
        for (u32 eight = 0; eight < TOKENS / 8; eight++) {
            if (eight >= end) break;
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++) {
                // Its own stay where this thread will look for them.
                if (owner == rank) keep_words(&sums[tile][eight * 4], place_of_sums(rank, slot, tile));
                else send_words(&sums[tile][eight * 4], place_of_sums(rank, slot, tile), received, owner);
            }
            if (++owner == a.n_splits) owner = 0, slot++;
        }
    }

    // Adds up what came, and stores the results.
    __device__ __forceinline__ void store_received(u32 rank) const {
        u32 slot = 0;
#pragma unroll 1
        for (u32 eight = rank; eight < n_eights(); eight += a.n_splits, slot++) {
            float before[OUT_TILES][4];
            load_residual(before, eight);
            if (slot == 0) await(received, 0);
            int sums[ROW_TILES][4] = {};
#pragma unroll 4
            for (u32 split = 0; split < a.n_splits; split++)
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; tile++) {
                    int words[4];
                    asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                                 : "r"(place_of_sums(split, slot, tile)));
#pragma unroll
                    for (int part = 0; part < 4; part++) sums[tile][part] += words[part];
                }
            store_results(sums[0], 4, before, eight);
        }
    }

    // Writes the products, neighbouring threads neighbouring rows; each block of a cluster a share of the tokens. The code is short: a block runs
    // it once.
    __device__ __forceinline__ void store() const {
        const u32 rank = blockIdx.y % a.n_splits, n_tokens = min((u32)TOKENS, a.m - first_token);
        const u32 rows = GATE ? BLOCK_ROWS / 2 : BLOCK_ROWS, fours = rows / 4, inside = threadIdx.x % fours * 4, tokens_step = THREADS / fours * a.n_splits;
        const u32 first_row = blockIdx.x * rows + inside, end = GATE ? a.n / 2 : a.n;
        if (first_row >= end) return;
        // Where rows of a gate lie: each warpgroup has 64 of gate and 64 of up behind, or they are in pairs.
        const u32 OF_KIND = IS_PAIRED ? 8 : 64, at = stages + (GATE ? inside / OF_KIND * 2 * OF_KIND + inside % OF_KIND : inside) * 4;
        float inverse[4], inverse_of_up[4];
        bool is_near = false;
        if constexpr (!GROUPED) {
            is_near = load_inverse_scales(inverse, first_row, end) && a.n_blocks * BLOCK_COLUMNS * 127 < SMALL_INTEGER_END;
            if constexpr (GATE) is_near = load_inverse_scales(inverse_of_up, end + first_row, a.n) && is_near;
        }
        float* const out = a.out + (u64)first_token * a.width + first_row;
        const bool is_whole = first_row + 4 <= end && a.width % 4 == 0 && ((u64)a.out & 15) == 0;
        // So many tokens' residuals are on their way at a time.
        const int AT_ONCE = 4;
#pragma unroll 1
        for (u32 first = rank * (THREADS / fours) + threadIdx.x / fours; first < n_tokens; first += tokens_step * AT_ONCE) {
            float4 before[AT_ONCE];
#pragma unroll
            for (int turn = 0; turn < AT_ONCE; turn++) {
                const u32 token = first + turn * tokens_step;
                before[turn] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (a.add && is_whole && token < n_tokens) before[turn] = *(const float4*)(out + (u64)token * a.width);
            }
#pragma unroll
            for (int turn = 0; turn < AT_ONCE; turn++) {
                // All turns are computed side by side, those beyond the last token, too, and not stored.
                const bool is_there = first + turn * tokens_step < n_tokens;
                const u32 token = is_there ? first + turn * tokens_step : first;
                float y[4];
                add_up(y, at + token * STRIDE * 4, inverse, is_near, token);
                if constexpr (GATE) {
                    float up[4];
                    add_up(up, at + (token * STRIDE + OF_KIND) * 4, inverse_of_up, is_near, token);
#pragma unroll
                    for (int part = 0; part < 4; part++) y[part] = gated(a.activation, y[part], up[part]);
                }
                float* to = out + (u64)token * a.width;
                if (!is_there) continue;
                if (is_whole) {
                    const float4 was = before[turn];
                    *(float4*)to = a.add ? make_float4(was.x + y[0], was.y + y[1], was.z + y[2], was.w + y[3]) : make_float4(y[0], y[1], y[2], y[3]);
                } else {
#pragma unroll
                    for (int part = 0; part < 4; part++)
                        if (first_row + part < end) to[part] = a.add ? to[part] + y[part] : y[part];
                }
            }
        }
    }

    __device__ __forceinline__ void load_words(uint4 (&words)[ROW_TILES][2], const uint4* const (&rows)[ROW_TILES][2], u32 block) const {
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) words[tile][half] = block < end_block ? __ldg(rows[tile][half] + block * 4) : make_uint4(0, 0, 0, 0);
    }

    // Asks the second-level cache for the block's weights behind the first two blocks of columns: where few blocks of tokens share them, memory would be waited
    // for at each pair of stages.
    __device__ __forceinline__ void prefetch_words(const uint4* const (&rows)[ROW_TILES][2]) const {
        const u32 lane = threadIdx.x & 3;
#pragma unroll 1
        for (u32 block = first_block + 2 + lane / 2; block < end_block; block += 2)
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
                for (int half = 0; half < 2; half++) asm volatile("prefetch.global.L2 [%0];" ::"l"(rows[tile][half] - lane + block * 4 + lane % 2 * 2));
    }

    __device__ __forceinline__ u32 stage_of(u32 turn) const { return stages + turn % N_STAGES * STAGE_BYTES; }
    __device__ __forceinline__ void await_stage(u32 turn) const { await(full + turn % N_STAGES * 8, turn / N_STAGES & 1); }
    // Says that this warpgroup has read a stage.
    __device__ __forceinline__ void free_stage(u32 turn) const {
        if ((threadIdx.x & 127) == 0) arrive(empty + turn % N_STAGES * 8);
    }

    // All blocks of columns, two at a time: products of one chunk run while the next is decoded, and only between pairs does nothing run. (The
    // compiler waits for each product where they run on into another turn of the loop.)
    __device__ __forceinline__ void multiply_pairs(int (&sums)[ROW_TILES][N_SUMS], const uint4* const (&rows)[ROW_TILES][2], uint4 (&next)[2][ROW_TILES][2]) const {
        u32 block = first_block;
#pragma unroll 1
        for (; block + 1 < end_block; block += 2) {
            const u32 turn = block - first_block;
            // A warpgroup each: what one thread does, all of its warpgroup wait for.
            if ((threadIdx.x & 127) == 0) fetch_stage(turn + N_AHEAD + threadIdx.x / 128);
            uint4 words[2][ROW_TILES][2];
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; tile++) words[half][tile][0] = next[half][tile][0], words[half][tile][1] = next[half][tile][1];
            load_words(next[0], rows, block + 2);
            load_words(next[1], rows, block + 3);
            await_stage(turn);
            await_stage(turn + 1);
            const u32 first_stage = stage_of(turn), second_stage = stage_of(turn + 1);
#pragma unroll
            for (int chunk = 0; chunk < 8; chunk++) {
                multiply_block(sums, words[chunk / 4], chunk < 4 ? first_stage : second_stage, chunk % 4);
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (chunk == 4) free_stage(turn);
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            free_stage(turn + 1);
        }
        if (block >= end_block) return;
        await_stage(block - first_block);
#pragma unroll
        for (int chunk = 0; chunk < 4; chunk++) {
            multiply_block(sums, next[0], stage_of(block - first_block), chunk);
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }

    // The same where columns are in groups, a block at a time.
    __device__ __forceinline__ void multiply_groups(
        float (&y)[GROUPED ? ROW_TILES : 1][GROUPED ? N_SUMS : 1], int (&sums)[ROW_TILES][N_SUMS], const uint4* const (&rows)[ROW_TILES][2], uint4 (&next)[2][ROW_TILES][2]) const {
#pragma unroll 1
        for (u32 block = first_block; block < end_block; block++) {
            const u32 turn = block - first_block;
            if (threadIdx.x == 0) fetch_stage(turn + N_AHEAD);
            uint4 words[ROW_TILES][2];
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    words[tile][half] = next[0][tile][half];
                    next[0][tile][half] = next[1][tile][half];
                }
            load_words(next[1], rows, block + 2);
            await_stage(turn);
#pragma unroll
            for (int chunk = 0; chunk < 4; chunk++) {
                multiply_block(sums, words, stage_of(turn), chunk);
                if (chunk & 1) {
                    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
                    if constexpr (GROUPED) add_segment(y, sums, stage_of(turn), block, chunk / 2);
                }
            }
            free_stage(turn);
        }
    }

    __device__ __forceinline__ void run() const {
        int sums[ROW_TILES][N_SUMS] = {};
        float y[GROUPED ? ROW_TILES : 1][GROUPED ? N_SUMS : 1] = {};
        const uint4* rows[ROW_TILES][2];
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                rows[tile][half] = a.words + (u64)min(row(tile, half), end_row(tile, half) - 1) * a.n_blocks * 4 + (threadIdx.x & 3);
        uint4 next[2][ROW_TILES][2];
        load_words(next[0], rows, first_block);
        load_words(next[1], rows, first_block + 1);
        if constexpr (!GROUPED) fetch_row_scales();
        if (a.m <= FEW_TOKENS) prefetch_words(rows);
        await_predecessors();
        // A warp each: one thread would take longer than the first of them needs to come.
        if ((threadIdx.x & 31) == 0 && threadIdx.x / 32 < N_AHEAD) fetch_stage(threadIdx.x / 32);
        if constexpr (GROUPED) {
            multiply_groups(y, sums, rows, next);
            // All stages have been read.
            __syncthreads();
        } else {
            fetch_token_scales();
            multiply_pairs(sums, rows, next);
            if (a.n_splits > 1) arrive_at_cluster();
            const bool is_plain = find_divisors();
            // All stages of all blocks have been read.
            if (a.n_splits > 1) await_cluster();
            if (is_plain) {
                const u32 rank = blockIdx.y % a.n_splits;
                if (a.n_splits == 1) return store_sums(sums);
                send_sums(sums, rank);
                return store_received(rank);
            }
        }
        share(sums, y);
        __syncthreads();
        if (a.n_splits > 1) cluster_barrier();
        store();
        // Nobody leaves while others read here.
        if (a.n_splits > 1) {
            __syncthreads();
            cluster_barrier();
        }
    }
};

template <int TOKENS, int ROW_TILES, bool GATE, bool GROUPED>
__device__ __forceinline__ void bit_linear_tiles_body(const BitLinearTilesArgs& a) {
    extern __shared__ __align__(1024) char stages[];
    typedef Tiles<TOKENS, ROW_TILES, GATE, GROUPED> Body;
    __shared__ u64 full[STAGES_MAX], empty[STAGES_MAX], received;
    __shared__ typename Body::Scales scales;
    const u32 first_full = (u32)__cvta_generic_to_shared(full), first_empty = (u32)__cvta_generic_to_shared(empty);
    const u32 blocks_each = (a.n_blocks + a.n_splits - 1) / a.n_splits, rank = blockIdx.y % a.n_splits, first_block = rank * blocks_each;
    const Body tiles{
        a, (u32)__cvta_generic_to_shared(stages), first_full, first_empty, (u32)__cvta_generic_to_shared(&received), scales, blockIdx.y / a.n_splits * TOKENS,
        first_block, min(a.n_blocks, first_block + blocks_each),
    };
    if (threadIdx.x == 0) {
        for (u32 slot = 0; slot < Body::N_STAGES; slot++) {
            make_barrier(first_full + slot * 8, 1);
            make_barrier(first_empty + slot * 8, WARPGROUPS);
        }
        make_barrier(tiles.received, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        if (a.n_splits > 1) expect_bytes(tiles.received, tiles.n_bytes_received(rank));
    }
    admit_successor();
    __syncthreads();
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
BIT_LINEAR_TILES(bit_linear_tiles_gate_16, 1, 16, 1, true, false)
BIT_LINEAR_TILES(bit_linear_tiles_gate_32, 1, 32, 1, true, false)
BIT_LINEAR_TILES(bit_linear_tiles_gate_64, 1, 64, 1, true, false)
BIT_LINEAR_TILES(bit_linear_tiles_gate_128, 1, 128, 2, true, false)
BIT_LINEAR_TILES(bit_linear_tiles_groups_16, 2, 16, 1, false, true)
BIT_LINEAR_TILES(bit_linear_tiles_groups_32, 2, 32, 1, false, true)
BIT_LINEAR_TILES(bit_linear_tiles_groups_64, 2, 64, 1, false, true)
