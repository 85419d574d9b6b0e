// A product of step.cu: the row is normed and quantised by every block, its blocks of weights come through the ring.

#if __CUDA_ARCH__ >= 900

// What the computing warps share of a product, in dynamic shared memory.
struct LinearRoom {
    i8* quantized;      // [n_blocks · 256], as place_of_word lays it
    float* weights;     // [n_blocks · 256], of a norm; each thread reads what it has fetched itself
    float* x_scales;    // [n_blocks · 2], where activations are in groups
    int* x_sums;        // likewise
    int* sums;          // [tiles, 16]; in groups floats, [tiles, 2 · n_blocks, 16]
};

// Where word `word` of a block of 256 activations lies: a thread of four multiplies words that are 16 apart and those beside them together, so they are
// neighbours.
__device__ __forceinline__ u32 place_of_word(u32 word) {
    const u32 quarter = word / 16, thread = word / 4 % 4, slot = word % 4;
    return ((quarter / 2 * 2 + slot / 2) * 4 + thread) * 4 + slot % 2 * 2 + quarter % 2;
}

// Small things in static shared memory.
struct __align__(16) StepScratch {
    // Of the head.
    u64 keys[STEP_WARPS];
    float2 pairs[STEP_WARPS];
    u32 n_kept;
    __align__(16) float chunks[2][FOURS / 2 * STEP_WARPS];  // sums of squares, by norm
    __align__(16) float largest[(STEP_WARPS + 3) / 4 * 4];  // of each warp, zeros behind
    int sums[STEP_WARPS];
};

// A warp's share of a product: some of the blocks of 256 columns of this block's tiles. Where all stages are in the ring together, those are neighbours, and
// where a share begins is found before the row has come; a stage is free when all its blocks are done. Otherwise they are STEP_WARPS apart, so that stages are
// freed in the order in which they come, each by every warp: so none can be a whole round behind another, and take one stage for the next. Stages are freed
// while others multiply, not at the end, when memory has results to carry.
template <bool GROUPED>
struct Multiplier {
    const StepArgs& a;
    const StepLinear& linear;
    const MyTiles& tiles;
    const LinearRoom& room;
    const u32 n_blocks, row_bytes, n_stages;
    const bool interleaves;
    Ring at;
    u32 n_left, tile, block, first_block;  // of neighbours: blocks left to this warp, and where it is
    bool is_there;                         // whether its first stage is

    __device__ __forceinline__ Multiplier(const StepArgs& args, const StepLinear& of, const MyTiles& mine, const LinearRoom& of_row, Ring& ring)
        : a(args), linear(of), tiles(mine), room(of_row), n_blocks(of.n_blocks), row_bytes(row_bytes_of(args, of)), n_stages(mine.n * of.n_pieces),
          interleaves(of.interleaves), at(ring) {
        ring.advance(n_stages, a.n_stages);
        is_there = false;
        if (interleaves) return;
        const u32 warp = threadIdx.x / 32, n_all = tiles.n * n_blocks, unit = warp * n_all / STEP_WARPS;
        n_left = (warp + 1) * n_all / STEP_WARPS - unit;
        tile = (u32)(((float)unit + 0.5f) * linear.inverse_n_blocks);
        block = unit - tile * n_blocks;
        const u32 piece = (u32)(((float)block + 0.5f) * a.inverse_stage_blocks);
        first_block = piece * a.stage_blocks;
        at.advance(tile * linear.n_pieces + piece, a.n_stages);
        is_there = n_left > 0;
        if (is_there) await(at.full + at.slot * 8, at.parity);
    }

    __device__ __forceinline__ void run() {
        if (interleaves) run_interleaved();
        else run_neighbours();
    }

    __device__ __forceinline__ void run_neighbours() {
        while (n_left > 0) {
            if (!is_there) await(at.full + at.slot * 8, at.parity);
            is_there = false;
            const u32 end_block = min(n_blocks, first_block + a.stage_blocks), n = min(n_left, end_block - block);
            run_blocks<1>(tile, first_block, block, n);
            // Whoever has the last block frees what is not there.
            free(n + (block + n == end_block ? STAGE_PARTS - (end_block - first_block) : 0));
            n_left -= n;
            block = first_block = end_block;
            if (end_block == n_blocks) {
                block = first_block = 0;
                tile++;
            }
            at.advance(1, a.n_stages);
        }
    }

    // So many parts of the stage.
    __device__ __forceinline__ void free(u32 n_parts) const {
        __syncwarp();
        if ((threadIdx.x & 31) == 0) arrive(at.empty + at.slot * 8, n_parts);
    }

    __device__ __forceinline__ void run_interleaved() {
        // Of the stage's blocks, or behind them, the next that is this warp's.
        u32 next = threadIdx.x / 32;
        for (u32 of_tile = 0; of_tile < tiles.n; of_tile++)
            for (u32 from = 0; from < n_blocks; from += a.stage_blocks) {
                const u32 n_here = min(a.stage_blocks, n_blocks - from);
                await(at.full + at.slot * 8, at.parity);
                if (next < n_here) {
                    const u32 n = (n_here - next + STEP_WARPS - 1) / STEP_WARPS;
                    run_blocks<STEP_WARPS>(of_tile, from, from + next, n);
                    next += n * STEP_WARPS;
                }
                next -= n_here;
                free(STAGE_PARTS / STEP_WARPS);
                at.advance(1, a.n_stages);
            }
    }

    // `n` blocks of the stage, from `block`, STEP apart; the stage's first is `from`.
    template <int STEP>
    __device__ __forceinline__ void run_blocks(u32 of_tile, u32 from, u32 block, u32 n) const {
        const u32 lane = threadIdx.x & 31, thread = lane & 3, line = lane / 4, stage = at.stages + at.slot * a.stage_bytes, high = 8 * row_bytes;
        u32 words = stage + line * row_bytes + (block - from) * 64 + thread * 16;
        u32 x = (u32)__cvta_generic_to_shared(room.quantized) + block * 256 + thread * 16;
        int sums[4][4] = {};
        // Of groups: a thread of four has a segment of a block and half of the rows. All eight tokens are the same, so each has all sums.
        const u32 half = lane & 1, odd = lane / 2 & 1, row = line + half * 8;
        u32 segment = block * 2 + odd, scales = stage + 16 * a.row_bytes + row * a.scale_bytes + ((block - from) * 2 + odd) * 4;
        float* products = (float*)room.sums + (of_tile * n_blocks * 2 + segment) * 16 + row;
        const bool has_scales = GROUPED && linear.n_groups > 1;
        float weight_scale = 0.0f;
        if (GROUPED && !has_scales) {
            const u32 of = tiles.row(of_tile << tiles.log_rows) + (linear.is_gate ? line + half * (linear.n / 2) : row);
            weight_scale = __ldg(linear.scales + (linear.n_groups == 0 ? 0 : of));
        }
#pragma unroll 2
        for (int turn = 0; turn < (int)n; turn++) {
            const uint4 low_words = load_shared(words), high_words = load_shared(words + high);
            const uint4 x0 = load_shared(x), x1 = load_shared(x + 64), x2 = load_shared(x + 128), x3 = load_shared(x + 192);
            words += STEP * 64;
            x += STEP * 256;
            if constexpr (GROUPED) {
                if (has_scales) asm volatile("ld.shared.f32 %0, [%1];" : "=f"(weight_scale) : "r"(scales));
                const float scale = weight_scale * room.x_scales[segment];
                const int x_sum = room.x_sums[segment];
                int first[4][4] = {}, second[4][4] = {};
                multiply_slots(first, low_words.x, high_words.x, low_words.y, high_words.y, x0, x1);
                multiply_slots(second, low_words.z, high_words.z, low_words.w, high_words.w, x2, x3);
                int sum = 0;
#pragma unroll
                for (int slot = 0; slot < 4; slot++) {
                    const int of_low = odd ? second[slot][0] : first[slot][0], of_high = odd ? second[slot][2] : first[slot][2];
                    sum += (half ? of_high : of_low) >> (2 * slot);
                }
                *products = (float)(sum - x_sum) * scale;
                products += STEP * 32;
                segment += STEP * 2;
                scales += STEP * 8;
            } else {
                multiply_slots(sums, low_words.x, high_words.x, low_words.y, high_words.y, x0, x1);
                multiply_slots(sums, low_words.z, high_words.z, low_words.w, high_words.w, x2, x3);
            }
        }
        if (!GROUPED && thread == 0) {
            int* of_rows = room.sums + of_tile * 16 + line;
            atomicAdd_block(of_rows, together(sums, 0));
            atomicAdd_block(of_rows + 8, together(sums, 2));
        }
    }

    // Slots of codes give sums that are 1, 4, 16 and 64 times too large.
    __device__ __forceinline__ static int together(const int (&sums)[4][4], int part) {
        return sums[0][part] + (sums[1][part] >> 2) + (sums[2][part] >> 4) + (sums[3][part] >> 6);
    }

    __device__ __forceinline__ static void multiply_slots(int (&sums)[4][4], u32 low0, u32 high0, u32 low1, u32 high1, uint4 x0, uint4 x1) {
        const u32 first[4] = {x0.x, x0.z, x1.x, x1.z}, second[4] = {x0.y, x0.w, x1.y, x1.w};
#pragma unroll
        for (int slot = 0; slot < 4; slot++) {
            const u32 mask = 0x03030303u << (2 * slot);
            const u32 weights[4] = {low0 & mask, high0 & mask, low1 & mask, high1 & mask};
            multiply_codes(sums[slot], weights, first[slot], second[slot]);
        }
    }
};

// Part of the row of a product as this thread has it, zeros beyond the row: a warp has chunks of 256 columns, STEP_WARPS apart, and of each two
// fours a thread (column_in_chunk).
struct StepRow {
    float4 fours[FOURS];
    u32 first_place;  // of its quantised numbers, in words: found before they are

    __device__ __forceinline__ static u32 chunk_of(int turn) { return turn / 2 * STEP_WARPS + threadIdx.x / 32; }
    __device__ __forceinline__ static u32 four_of(int turn) { return (chunk_of(turn) * CHUNK_COLUMNS + column_in_chunk()) / 4 + turn % 2 * 8; }
    // Where its quantised numbers lie: the second four of a chunk is two threads behind the first.
    __device__ __forceinline__ u32 place_of(int turn) const { return first_place + turn / 2 * (STEP_WARPS * CHUNK_COLUMNS / 4) + turn % 2 * 8; }

    __device__ __forceinline__ void load(const float* x, u32 k) {
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            fours[turn] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (four_of(turn) * 4 < k) fours[turn] = __ldcg((const float4*)x + four_of(turn));
        }
    }

    // Results of the operation before, as they come.
    __device__ __forceinline__ void receive(const u32* mail, u32 k) {
        // Only what has not come is looked at again: all blocks look at the same place.
        u32 missing = 0;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            fours[turn] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (four_of(turn) * 4 < k) missing |= 1 << turn;
        }
        while (missing != 0) {
#pragma unroll
            for (int turn = 0; turn < FOURS; turn++)
                if (missing >> turn & 1) fours[turn] = look(mail + four_of(turn) * 4);
#pragma unroll
            for (int turn = 0; turn < FOURS; turn++)
                if (has_come(fours[turn])) missing &= ~(1 << turn);
        }
    }

    // Sums of squares of this warp's chunks into `chunks`.
    __device__ __forceinline__ void sum_squares(float* chunks, u32 n_chunks) const {
        const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32;
        if (n_chunks <= STEP_WARPS) {
            const float sum = squares_of_chunk(fours[0], fours[1]);
            // Those that are not there are zero.
            if (lane < FOURS / 2) chunks[lane * STEP_WARPS + warp] = lane == 0 ? sum : 0.0f;
            return;
        }
        // The same for four chunks, each half and quarter of the warp going on with fewer of them.
        static_assert(FOURS == 8, "four chunks a warp");
        float sums[FOURS / 2];
#pragma unroll
        for (int chunk = 0; chunk < FOURS / 2; chunk++) sums[chunk] = squares_of_sixteen(fours[chunk * 2], fours[chunk * 2 + 1]);
        const bool is_upper = lane & 16, is_odd = lane & 8;
        float first = is_upper ? sums[2] : sums[0], second = is_upper ? sums[3] : sums[1];
        first += __shfl_xor_sync(FULL_WARP, is_upper ? sums[0] : sums[2], 16);
        second += __shfl_xor_sync(FULL_WARP, is_upper ? sums[1] : sums[3], 16);
        float sum = is_odd ? second : first;
        sum += __shfl_xor_sync(FULL_WARP, is_odd ? first : second, 8);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        if ((lane & 7) == 0) chunks[lane / 8 * STEP_WARPS + warp] = sum;
    }

    // Starts to fetch this thread's norm weights.
    __device__ __forceinline__ static void fetch_weights(const float* weights, u32 k, u32 n_blocks, const LinearRoom& room) {
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            if (chunk_of(turn) >= n_blocks) break;
            const u32 four = four_of(turn), n_bytes = four * 4 < k ? 16 : 0, to = (u32)__cvta_generic_to_shared(room.weights) + four * 16;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(weights + (n_bytes > 0 ? four * 4 : 0)), "r"(n_bytes) : "memory");
        }
    }

    // One RMSNorm of a whole row, whose weights are on their way.
    __device__ __forceinline__ void norm(float epsilon, u32 k, u32 n_blocks, const LinearRoom& room, float* chunks) {
        sum_squares(chunks, n_blocks);
        barrier_of_step();
        // Those of the widths that are most common, then all others, which are zero beyond the row.
        const int FEW = 3, ALL = FOURS / 2 * STEP_WARPS / 4;
        float4 lanes = *(const float4*)chunks;
#pragma unroll
        for (int four = 1; four < FEW; four++) lanes = added(lanes, ((const float4*)chunks)[four]);
        if (n_blocks > FEW * 4) {
#pragma unroll
            for (int four = FEW; four < ALL; four++) lanes = added(lanes, ((const float4*)chunks)[four]);
        }
        const float factor = inverse_rms(sum_of_four(lanes), k, epsilon);
        asm volatile("cp.async.wait_all;" ::: "memory");
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            if (chunk_of(turn) >= n_blocks) break;
            const float4 x = fours[turn], w = ((const float4*)room.weights)[four_of(turn)];
            fours[turn] = make_float4((x.x * factor) * w.x, (x.y * factor) * w.y, (x.z * factor) * w.z, (x.w * factor) * w.w);
        }
    }

    // quantise_one of four: adding 1.5 · 2²³ rounds ties to even, and the lowest byte is the integer. No value is larger than the largest, so none is
    // beyond ±127; what is no number is 0.
    __device__ __forceinline__ static u32 quantise_four(float4 x, float inverse_scale, int& sum) {
        const float parts[4] = {x.x * inverse_scale, x.y * inverse_scale, x.z * inverse_scale, x.w * inverse_scale};
        u32 q[4];
#pragma unroll
        for (int part = 0; part < 4; part++) q[part] = __float_as_uint((parts[part] == parts[part] ? parts[part] : 0.0f) + 12582912.0f);
        const u32 bits = __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
        sum = __dp4a((int)bits, 0x01010101, sum);
        return bits;
    }

    __device__ __forceinline__ static float largest_of_four(float4 x) {
        // What is no number is passed over, as by `larger`.
        return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fmaxf(fabsf(x.w), 0.0f)));
    }

    // One scale for a whole row. Its sum is the sum of `scratch.sums` after the next barrier; returns the inverse scale.
    __device__ __forceinline__ float quantise(u32 n_blocks, const LinearRoom& room, StepScratch& scratch) const {
        float largest = 0.0f;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            if (turn / 2 * STEP_WARPS >= n_blocks) break;
            largest = fmaxf(largest, largest_of_four(fours[turn]));
        }
        // Magnitudes: their bits are in their order.
        largest = __uint_as_float(__reduce_max_sync(FULL_WARP, __float_as_uint(largest)));
        if ((threadIdx.x & 31) == 0) scratch.largest[threadIdx.x / 32] = largest;
        barrier_of_step();
        largest = 1e-5f;
#pragma unroll
        for (int four = 0; four < (STEP_WARPS + 3) / 4; four++) largest = fmaxf(largest, largest_of_four(((const float4*)scratch.largest)[four]));
        const float inverse_scale = inverse_absmax_scale(largest);
        int sum = 0;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            if (turn / 2 * STEP_WARPS >= n_blocks) break;
            const u32 bits = quantise_four(fours[turn], inverse_scale, sum);
            if (chunk_of(turn) < n_blocks) ((u32*)room.quantized)[place_of(turn)] = bits;
        }
        sum = __reduce_add_sync(FULL_WARP, sum);
        if ((threadIdx.x & 31) == 0) scratch.sums[threadIdx.x / 32] = sum;
        return inverse_scale;
    }

    // A scale for each 128 columns, which half a warp has; the part begins at four `first`.
    __device__ __forceinline__ void quantise_groups(u32 n_blocks, const LinearRoom& room, u32 first) const {
        const bool is_upper = threadIdx.x & 16;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn += 2) {
            const u32 chunk = first / 64 + chunk_of(turn);
            if (chunk >= n_blocks) break;
            const u32 magnitude = __float_as_uint(fmaxf(largest_of_four(fours[turn]), largest_of_four(fours[turn + 1])));
            const u32 of_lower = __reduce_max_sync(FULL_WARP, is_upper ? 0 : magnitude), of_upper = __reduce_max_sync(FULL_WARP, is_upper ? magnitude : 0);
            const float inverse_scale = inverse_absmax_scale(larger(1e-5f, __uint_as_float(is_upper ? of_upper : of_lower)));
            int sum = 0;
            ((u32*)room.quantized)[first + place_of(turn)] = quantise_four(fours[turn], inverse_scale, sum);
            ((u32*)room.quantized)[first + place_of(turn + 1)] = quantise_four(fours[turn + 1], inverse_scale, sum);
            const int lower_sum = __reduce_add_sync(FULL_WARP, is_upper ? 0 : sum), upper_sum = __reduce_add_sync(FULL_WARP, is_upper ? sum : 0);
            if ((threadIdx.x & 15) == 0) {
                const u32 group = chunk * 2 + is_upper;
                room.x_scales[group] = 1.0f / inverse_scale;
                room.x_sums[group] = is_upper ? upper_sum : lower_sum;
            }
        }
    }
};

// Waits for the operation before, norms and quantises the row; returns its inverse scale, if it has one.
template <bool GROUPED>
__device__ __forceinline__ float prepare_row(const StepLinear& linear, const LinearRoom& room, StepScratch& scratch, const Mail& mail) {
    StepRow row;
    row.first_place = StepRow::chunk_of(0) * (CHUNK_COLUMNS / 4) + place_of_word(column_in_chunk() / 4);
    // Otherwise the compiler finds it again at each use.
    asm volatile("" : "+r"(row.first_place));
    const u32 k = linear.k, n_blocks = linear.n_blocks, n_norms = linear.norms.n;
    const float epsilon = linear.norms.epsilons[0];
    const bool receives = linear.receives;
    float inverse_scale = 0.0f;
    u32 first = 0;
    while (true) {
        const u32 left = k - first * 4;
        if (receives) row.receive(mail.in + first * 4, left);
        else row.load(linear.x + first * 4, left);
        // Rows in parts have neither norms nor one scale.
        const u32 next = first + FOURS * STEP_THREADS;
        const bool is_last = !GROUPED || next >= n_blocks * 64;
        if (is_last) mail.have_read();
#pragma unroll 1
        for (u32 norm = 0; norm < n_norms; norm++) {
            if (norm > 0) StepRow::fetch_weights(linear.norms.weights[1], k, n_blocks, room);
            row.norm(norm == 0 ? epsilon : linear.norms.epsilons[1], k, n_blocks, room, scratch.chunks[norm]);
        }
        if constexpr (GROUPED) row.quantise_groups(n_blocks, room, first);
        else inverse_scale = row.quantise(n_blocks, room, scratch);
        if (is_last) break;
        first = next;
    }
    return inverse_scale;
}

// How a sum of integers becomes a float: numerics::dequantise, with all that does not depend on the sum found before.
struct Dequantiser {
    float divisor, reciprocal;
    bool is_easy;

    __device__ __forceinline__ Dequantiser(float weight_inverse_scale, float x_inverse_scale) {
        divisor = x_inverse_scale * weight_inverse_scale;
        reciprocal = reciprocal_of_ordinary(divisor);
        is_easy = is_ordinary(weight_inverse_scale) && is_ordinary(x_inverse_scale);
    }
    __device__ __forceinline__ float of(int sum) const { return is_easy ? quotient_by((float)sum, divisor, reciprocal) : (float)sum / divisor; }
};

// Σ of products of `n` segments of a row, ascending, those of the next segments on their way while others are added up.
__device__ __forceinline__ float sum_of_segments(const float* products, int n) {
    const int AHEAD = 4;
    float y = 0.0f, next[AHEAD];
#pragma unroll
    for (int part = 0; part < AHEAD; part++) next[part] = part < n ? products[part * 16] : 0.0f;
#pragma unroll 2
    for (int first = 0; first < n; first += AHEAD) {
        float now[AHEAD];
#pragma unroll
        for (int part = 0; part < AHEAD; part++) {
            now[part] = next[part];
            const int segment = first + AHEAD + part;
            next[part] = segment < n ? products[segment * 16] : 0.0f;
        }
        // Zeros behind the end change nothing.
#pragma unroll
        for (int part = 0; part < AHEAD; part++) y += now[part];
    }
    return y;
}

template <bool GROUPED>
__device__ __forceinline__ void multiply_row(const StepArgs& a, const StepLinear& linear, char* shared, StepScratch& scratch, Ring& ring, const Mail& mail, u32& turn) {
    const MyTiles tiles(a, linear);
    if (tiles.n == 0) return mail.have_read();
    const u32 k = linear.k, n_blocks = linear.n_blocks, filled = n_blocks * 256;
    LinearRoom room;
    room.quantized = (i8*)shared + 2 * a.sums_bytes;
    room.weights = (float*)(room.quantized + filled);
    room.x_scales = room.weights + (linear.norms.n > 0 ? filled : 0);
    room.x_sums = (int*)(room.x_scales + filled / 128);
    // Sums of integers take turns: those of the product before are read while these are set to zero.
    room.sums = GROUPED ? room.x_sums + filled / 128 : (int*)(shared + turn * a.sums_bytes);
    turn ^= 1;
    // What does not depend on the operation before.
    if (linear.norms.n > 0) StepRow::fetch_weights(linear.norms.weights[0], k, n_blocks, room);
    Multiplier<GROUPED> multiplier(a, linear, tiles, room, ring);
    const bool is_gate = linear.is_gate, adds = linear.add;
    const u32 n_out = tiles.n << tiles.log_rows, half_n = linear.n / 2, activation = linear.activation, n_groups = linear.n_groups;
    const float* scales = linear.scales;
    const auto sums_of = [&](u32 index) { return room.sums + (index >> tiles.log_rows) * (GROUPED ? n_blocks * 2 * 16 : 16) + (index & ((1 << tiles.log_rows) - 1)); };
    const u32 my_index = threadIdx.x, my_row = tiles.row(min(my_index, n_out - 1));
    const int* my_sums = sums_of(my_index);
    float* const out = linear.out;
    float *const my_out = out + my_row, *const my_mail = mail.out == nullptr ? nullptr : mail.out + my_row;
    float weight_scale = 1.0f, up_scale = 1.0f, before = 0.0f;
    if (my_index < n_out) {
        if (!GROUPED) {
            weight_scale = weight_inverse_scale(__ldg(scales + (n_groups == 0 ? 0 : my_row)));
            if (is_gate) up_scale = weight_inverse_scale(__ldg(scales + (n_groups == 0 ? 0 : my_row + half_n)));
        }
        // Written at least two operations ago.
        if (adds) before = __ldcg(my_out);
    }
    if (!GROUPED)
        for (u32 index = threadIdx.x; index < tiles.n * 16; index += STEP_THREADS) room.sums[index] = 0;
    const float inverse_scale = prepare_row<GROUPED>(linear, room, scratch, mail);
    const Dequantiser dequantiser(weight_scale, inverse_scale), up_dequantiser(up_scale, inverse_scale);
    barrier_of_step();
    multiplier.run();
    const u32 lane = threadIdx.x & 31;
    int x_sum = 0;
    if (!GROUPED) x_sum = __reduce_add_sync(FULL_WARP, lane < STEP_WARPS ? scratch.sums[lane] : 0);
    barrier_of_step();

    // Up stands eight rows behind the gate.
    if (my_index < n_out) {
        float y, up = 0.0f;
        if constexpr (GROUPED) {
            y = sum_of_segments((const float*)my_sums, n_blocks * 2);
            if (is_gate) up = sum_of_segments((const float*)my_sums + 8, n_blocks * 2);
        } else {
            y = dequantiser.of(my_sums[0] - x_sum);
            if (is_gate) up = up_dequantiser.of(my_sums[8] - x_sum);
        }
        if (is_gate) y = gated(activation, y, up);
        if (adds) y = before + y;
        if (my_mail != nullptr) send(my_mail, y);
        *my_out = y;
    }
#pragma unroll 1
    for (u32 index = my_index + STEP_THREADS; index < n_out; index += STEP_THREADS) {
        const u32 row = tiles.row(index);
        const int* sums = sums_of(index);
        float y, up = 0.0f;
        if constexpr (GROUPED) {
            y = sum_of_segments((const float*)sums, n_blocks * 2);
            if (is_gate) up = sum_of_segments((const float*)sums + 8, n_blocks * 2);
        } else {
            y = dequantise(sums[0] - x_sum, __ldg(scales + (n_groups == 0 ? 0 : row)), inverse_scale);
            if (is_gate) up = dequantise(sums[8] - x_sum, __ldg(scales + (n_groups == 0 ? 0 : row + half_n)), inverse_scale);
        }
        if (is_gate) y = gated(activation, y, up);
        if (adds) y = __ldcg(out + row) + y;
        if (mail.out != nullptr) send(mail.out + row, y);
        out[row] = y;
    }
    // Products of groups are read until here.
    if (GROUPED) barrier_of_step();
}

#endif
