// A product of step.cu: of the row that every block has quantised (step_row.cuh) and the weights that come through the ring.

#if __CUDA_ARCH__ >= 900

// A warp multiplies its share of a product: some of the blocks of 256 columns of this block's tiles. Where all stages are in the ring together, those are
// neighbours (StepShare); a stage is free when all its blocks are done. Otherwise shares go by the stages as they come. In groups, a stage is two warps', one half
// each, and a slot of the ring always the same two's; of whole rows, blocks are STEP_WARPS apart, so that each stage is freed by every warp: in both no warp can be
// a whole round behind another, and take one stage for the next. Stages are freed while others multiply, not at the end, when memory has results to carry.
template <bool GROUPED>
struct Multiplier {
    const StepArgs& a;
    const StepLinear& linear;
    const MyTiles& tiles;
    const LinearRoom& room;
    const u32 n_blocks, row_bytes;
    const bool interleaves;
    Ring at;
    u32 n_left, tile, block, first_block;  // of neighbours: blocks left to this warp, and where it is
    bool is_there;                         // whether its first stage is

    __device__ __forceinline__ Multiplier(const StepArgs& args, const StepLinear& of, const StepPlan& plan, const MyTiles& mine, const LinearRoom& of_row, const Ring& ring)
        : a(args), linear(of), tiles(mine), room(of_row), n_blocks(of.n_blocks), row_bytes(plan.row_bytes), interleaves(of.interleaves), at(ring) {
        const StepShare share = plan.shares[threadIdx.x / 32];
        at.slot = share.slot;
        at.parity = share.parity;
        n_left = share.n_left;
        tile = share.tile;
        block = share.block;
        first_block = share.first_block;
        is_there = n_left > 0;
        if (is_there) await(at.full + at.slot * 8, at.parity);
    }

    __device__ __forceinline__ void run() {
        if (interleaves && GROUPED) run_halves();
        else if (interleaves) run_interleaved();
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

    __device__ __forceinline__ void run_halves() {
        const u32 pair = threadIdx.x / 64, half = threadIdx.x / 32 & 1;
        for (u32 of_tile = 0; of_tile < tiles.n; of_tile++)
            for (u32 from = 0; from < n_blocks; from += a.stage_blocks, at.advance(1, a.n_stages)) {
                if (at.slot % (STEP_WARPS / 2) != pair) continue;
                const u32 n_here = min(a.stage_blocks, n_blocks - from), n_first = (n_here + 1) / 2;
                await(at.full + at.slot * 8, at.parity);
                run_blocks<1>(of_tile, from, from + (half ? n_first : 0), half ? n_here - n_first : n_first);
                free(STAGE_PARTS / 2);
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

// How a sum of integers becomes a float: numerics::dequantise, with all that does not depend on the sum found before. It is easy where both scales are ordinary.
struct Dequantiser {
    float divisor, reciprocal;

    __device__ __forceinline__ Dequantiser(float weight_inverse_scale, float x_inverse_scale) {
        divisor = x_inverse_scale * weight_inverse_scale;
        reciprocal = reciprocal_of_ordinary(divisor);
    }
    __device__ __forceinline__ float of(int sum, bool is_easy) const { return is_easy ? quotient_by((float)sum, divisor, reciprocal) : (float)sum / divisor; }
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

// Where a product has its sums: [tiles, 16] integers, which take turns with those of the product before; in groups [tiles, 2 · n_blocks, 16] floats. Up stands
// eight rows behind the gate.
__device__ __forceinline__ int* sums_of(int* sums, const MyTiles& tiles, u32 tile_words, u32 index) {
    return sums + (index >> tiles.log_rows) * tile_words + (index & ((1 << tiles.log_rows) - 1));
}

template <bool GROUPED>
__device__ __forceinline__ void multiply_row(const StepArgs& a, const StepLinear& linear, const StepPlan& plan, char* shared, StepScratch& scratch, const Ring& ring,
                                             const Mail& mail) {
    const MyTiles tiles(a, linear, plan);
    const u32 n_blocks = linear.n_blocks, filled = n_blocks * 256, turn = plan.turn;
    LinearRoom room;
    room.quantized = (i8*)shared + 2 * a.sums_bytes;
    room.weights = (float*)(room.quantized + filled);
    room.x_scales = room.weights + (linear.norms.n > 0 ? filled : 0);
    room.x_sums = (int*)(room.x_scales + filled / 128);
    room.sums = GROUPED ? room.x_sums + filled / 128 : (int*)(shared + turn * a.sums_bytes);
    // What does not depend on the operation before.
    Multiplier<GROUPED> multiplier(a, linear, plan, tiles, room, ring);
    const u32 n_out = tiles.n << tiles.log_rows, half_n = linear.n / 2, first_index = threadIdx.x;
    const bool is_gate = linear.is_gate, adds = linear.add, sends = threadIdx.x < SENDING_WARPS * 32;
    float* const out = linear.out;
    const float* const scales = linear.scales;
    float scale = 1.0f, up_scale = 1.0f, before = 0.0f;
    const u32 first_row = tiles.row(min(first_index, n_out - 1));
    if constexpr (!GROUPED) {
#pragma unroll 1
        for (u32 index = threadIdx.x; index < tiles.n * 16; index += STEP_THREADS) room.sums[index] = 0;
        if (threadIdx.x == 0) scratch.sums[turn] = 0;
        if (sends) {
            const u32 place = linear.n_groups == 0 ? 0 : first_row;
            scale = __ldg(scales + place);
            if (is_gate) up_scale = __ldg(scales + (linear.n_groups == 0 ? 0 : place + half_n));
            // This thread has written it, at least two operations ago.
            if (adds) before = __ldcg(out + first_row);
            mail.await_room();
        }
    }
    const int NARROW = GROUPED ? NARROW_CHUNKS_IN_GROUPS : NARROW_CHUNKS;
    const float inverse_scale = n_blocks <= NARROW * STEP_WARPS ? prepare_row<GROUPED, NARROW>(linear, room, scratch, mail, turn)
                                                                : prepare_row<GROUPED, WIDE_CHUNKS>(linear, room, scratch, mail, turn);
    // What results need is found before the products, which all wait for: behind them a result is a few instructions away.
    const Dequantiser dequantiser(scale, inverse_scale), up_dequantiser(up_scale, inverse_scale);
    const bool is_easy = is_ordinary(scale) && is_ordinary(up_scale) && is_ordinary(inverse_scale);
    barrier_of_step();
    multiplier.run();
    if constexpr (GROUPED) {
        barrier_of_step();
        mail.await_room();
#pragma unroll 1
        for (u32 index = threadIdx.x; index < n_out; index += STEP_THREADS) {
            const u32 row = tiles.row(index);
            if (adds) before = __ldcg(out + row);
            const float* products = (const float*)sums_of(room.sums, tiles, n_blocks * 2 * 16, index);
            float y = sum_of_segments(products, n_blocks * 2);
            if (is_gate) y = gated(linear.activation, y, sum_of_segments(products + 8, n_blocks * 2));
            if (adds) y = before + y;
            mail.send_result(row, y);
            out[row] = y;
        }
        // Products are read until here.
        barrier_of_step();
        return;
    }
    // The others could go on without this barrier, but then what they do comes between the last products.
    barrier_of_step();
    if (!sends) return;
    const int x_sum = scratch.sums[turn];
    if (first_index < n_out) {
        const int* const sums = sums_of(room.sums, tiles, 16, first_index);
        float y = dequantiser.of(sums[0] - x_sum, is_easy);
        if (is_gate) y = gated(linear.activation, y, up_dequantiser.of(sums[8] - x_sum, is_easy));
        if (adds) y = before + y;
        mail.send_result(first_row, y);
        out[first_row] = y;
    }
    // Where a block has more than these warps have threads.
#pragma unroll 1
    for (u32 index = first_index + SENDING_WARPS * 32; index < n_out; index += SENDING_WARPS * 32) {
        const u32 row = tiles.row(index), place = linear.n_groups == 0 ? 0 : row;
        const int* sums = sums_of(room.sums, tiles, 16, index);
        float y = (float)(sums[0] - x_sum) / (__ldg(scales + place) * inverse_scale);
        if (is_gate) y = gated(linear.activation, y, (float)(sums[8] - x_sum) / (__ldg(scales + (linear.n_groups == 0 ? 0 : place + half_n)) * inverse_scale));
        if (adds) y = __ldcg(out + row) + y;
        mail.send_result(row, y);
        out[row] = y;
    }
}

#endif
