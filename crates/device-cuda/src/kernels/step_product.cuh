// A product of step.cu: the row is normed and quantised by every block, its blocks of weights come through the ring.

#if __CUDA_ARCH__ >= 900

// What the computing warps share of a product, in dynamic shared memory.
struct LinearRoom {
    i8* quantized;      // [n_blocks · 256]
    float* x_scales;    // [n_blocks · 2], where activations are in groups
    int* x_sums;        // likewise
    int* sums;          // [tiles, 16]; in groups floats, [tiles, 2 · n_blocks, 16]
};

// Small things in static shared memory.
struct __align__(16) StepScratch {
    float chunks[2][FOURS / 2 * STEP_WARPS];  // sums of squares, by norm
    float largest[STEP_WARPS];
    int sums[STEP_WARPS];
};

// A warp's share of a product: an equal part of the blocks of 256 columns of several stages, neighbours as far as possible.
template <bool GROUPED>
struct Multiplier {
    const StepArgs& a;
    const StepLinear& linear;
    const LinearRoom& room;
    const MyTiles& tiles;

    __device__ __forceinline__ void run(Ring& ring) const {
        u32 first = 0;
        do {
            const u32 end = min(tiles.n, first + linear.tiles_at_once), n_stages = (end - first) * linear.n_pieces;
            u32 slot = ring.slot + threadIdx.x;
            run_tiles(ring, first, end);
            // After the last: results may be sent.
            if (end < tiles.n) barrier_of_step();
            else hear(SET_BACK);
            if (slot >= a.n_stages) slot -= a.n_stages;
            if (threadIdx.x < n_stages) arrive(ring.empty + slot * 8);
            first = end;
        } while (first < tiles.n);
    }

    __device__ __forceinline__ void run_tiles(Ring& ring, u32 first, u32 end) const {
        const u32 warp = threadIdx.x / 32, n = (end - first) * linear.n_blocks, end_unit = (warp + 1) * n / STEP_WARPS;
        u32 unit = warp * n / STEP_WARPS, tile = (u32)(((float)unit + 0.5f) * linear.inverse_n_blocks), block = unit - tile * linear.n_blocks;
        u32 piece = (u32)(((float)block + 0.5f) * a.inverse_stage_blocks);
        Ring at = ring;
        at.advance(tile * linear.n_pieces + piece, a.n_stages);
        while (unit < end_unit) {
            const u32 first_block = piece * a.stage_blocks, end_block = min(linear.n_blocks, first_block + a.stage_blocks);
            const u32 n_here = min(end_block - block, end_unit - unit), turn = block - first_block;
            await(at.full + at.slot * 8, at.parity);
            run_blocks(at.stages + at.slot * a.stage_bytes, first + tile, first_block, turn, turn + n_here);
            unit += n_here;
            block = end_block;
            piece++;
            if (end_block == linear.n_blocks) {
                block = piece = 0;
                tile++;
            }
            at.advance(1, a.n_stages);
        }
        ring.advance((end - first) * linear.n_pieces, a.n_stages);
    }

    // Blocks `turn` to `end` of a stage, which begins at `first_block` of a tile.
    __device__ __forceinline__ void run_blocks(u32 stage, u32 tile, u32 first_block, u32 turn, u32 end) const {
        const u32 lane = threadIdx.x & 31, thread = lane & 3, line = lane / 4;
        u32 x = (u32)__cvta_generic_to_shared(room.quantized) + (first_block + turn) * 256 + thread * 16;
        u32 words = stage + line * a.row_bytes + turn * 64 + thread * 16;
        const u32 high = 8 * a.row_bytes;
        int sums[4][4] = {};
        // Of groups: a thread of four has a segment of a block and half of the rows. All eight tokens are the same, so each has all sums.
        const u32 half = lane & 1, odd = lane / 2 & 1, row = line + half * 8, n_groups = linear.n_groups;
        float* products = (float*)room.sums + (tile * linear.n_blocks * 2 + (first_block + turn) * 2 + odd) * 16 + row;
        u32 segment = (first_block + turn) * 2 + odd, scales = stage + 16 * a.row_bytes + row * a.scale_bytes + (turn * 2 + odd) * 4;
        float weight_scale = 0.0f;
        if (GROUPED && n_groups <= 1) {
            const u32 of = tiles.row(tile << tiles.log_rows) + (linear.is_gate ? line + half * (linear.n / 2) : row);
            weight_scale = __ldg(linear.scales + (n_groups == 0 ? 0 : of));
        }
        const float* x_scales = room.x_scales;
        const int* x_sums = room.x_sums;
#pragma unroll 2
        for (; turn < end; turn++) {
            const uint4 low_words = load_shared(words), high_words = load_shared(words + high);
            const uint4 x0 = load_shared(x), x1 = load_shared(x + 64), x2 = load_shared(x + 128), x3 = load_shared(x + 192);
            if constexpr (GROUPED) {
                if (n_groups > 1) asm volatile("ld.shared.f32 %0, [%1];" : "=f"(weight_scale) : "r"(scales));
                const float scale = weight_scale * x_scales[segment];
                const int x_sum = x_sums[segment];
                int first[4][4] = {}, second[4][4] = {};
                multiply_slots(first, low_words.x, high_words.x, low_words.y, high_words.y, x0, x1);
                multiply_slots(second, low_words.z, high_words.z, low_words.w, high_words.w, x2, x3);
                int sum = 0;
#pragma unroll
                for (int slot = 0; slot < 4; slot++) {
                    const int low = odd ? second[slot][0] : first[slot][0], high = odd ? second[slot][2] : first[slot][2];
                    sum += (half ? high : low) >> (2 * slot);
                }
                *products = (float)(sum - x_sum) * scale;
                products += 32;
                segment += 2;
                scales += 8;
            } else {
                multiply_slots(sums, low_words.x, high_words.x, low_words.y, high_words.y, x0, x1);
                multiply_slots(sums, low_words.z, high_words.z, low_words.w, high_words.w, x2, x3);
            }
            words += 64;
            x += 256;
        }
        if (!GROUPED && thread == 0) {
            int* of_tile = room.sums + tile * 16;
            atomicAdd_block(of_tile + line, together(sums, 0));
            atomicAdd_block(of_tile + line + 8, together(sums, 2));
        }
    }

    // Slots of codes give sums that are 1, 4, 16 and 64 times too large.
    __device__ __forceinline__ static int together(const int (&sums)[4][4], int part) {
        return sums[0][part] + (sums[1][part] >> 2) + (sums[2][part] >> 4) + (sums[3][part] >> 6);
    }

    __device__ __forceinline__ static void multiply_slots(int (&sums)[4][4], u32 low0, u32 high0, u32 low1, u32 high1, uint4 x0, uint4 x1) {
        const u32 first[4] = {x0.x, x0.y, x0.z, x0.w}, second[4] = {x1.x, x1.y, x1.z, x1.w};
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

    __device__ __forceinline__ static u32 chunk_of(int turn) { return turn / 2 * STEP_WARPS + threadIdx.x / 32; }
    __device__ __forceinline__ static u32 four_of(int turn) { return (chunk_of(turn) * CHUNK_COLUMNS + column_in_chunk()) / 4 + turn % 2 * 8; }

    __device__ __forceinline__ void load(const float* x, u32 k) {
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            fours[turn] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (four_of(turn) * 4 < k) fours[turn] = __ldcg((const float4*)x + four_of(turn));
        }
    }

    // Results of the operation before, as they come.
    __device__ __forceinline__ void receive(const u32* mail, u32 k) {
        bool all;
        do {
            all = true;
#pragma unroll
            for (int turn = 0; turn < FOURS; turn++) {
                uint4 bits = make_uint4(0, 0, 0, 0);
                if (four_of(turn) * 4 < k) bits = look(mail + four_of(turn) * 4);
                all &= has_come(bits);
                fours[turn] = make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w));
            }
        } while (!all);
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

    // One RMSNorm of a whole row; `weights` are this thread's.
    __device__ __forceinline__ void norm(const StepRow& weights, float epsilon, const StepLinear& linear, float* chunks) {
        sum_squares(chunks, linear.n_blocks);
        barrier_of_step();
        // Those of the widths that are most common, then all others, which are zero beyond the row.
        const int FEW = 3, ALL = FOURS / 2 * STEP_WARPS / 4;
        float4 lanes = *(const float4*)chunks;
#pragma unroll
        for (int four = 1; four < FEW; four++) lanes = added(lanes, ((const float4*)chunks)[four]);
        if (linear.n_blocks > FEW * 4) {
#pragma unroll
            for (int four = FEW; four < ALL; four++) lanes = added(lanes, ((const float4*)chunks)[four]);
        }
        const float factor = inverse_rms(sum_of_four(lanes), linear.k, epsilon);
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            if (turn / 2 * STEP_WARPS >= linear.n_blocks) break;
            const float4 x = fours[turn], w = weights.fours[turn];
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
    __device__ __forceinline__ float quantise(const StepLinear& linear, const LinearRoom& room, StepScratch& scratch) const {
        float largest = 0.0f;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            if (turn / 2 * STEP_WARPS >= linear.n_blocks) break;
            largest = fmaxf(largest, largest_of_four(fours[turn]));
        }
        // Magnitudes: their bits are in their order.
        largest = __uint_as_float(__reduce_max_sync(FULL_WARP, __float_as_uint(largest)));
        if ((threadIdx.x & 31) == 0) scratch.largest[threadIdx.x / 32] = largest;
        barrier_of_step();
        largest = 1e-5f;
#pragma unroll
        for (int warp = 0; warp < STEP_WARPS; warp++) largest = fmaxf(largest, scratch.largest[warp]);
        const float inverse_scale = inverse_absmax_scale(largest);
        int sum = 0;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            if (turn / 2 * STEP_WARPS >= linear.n_blocks) break;
            const u32 bits = quantise_four(fours[turn], inverse_scale, sum);
            if (chunk_of(turn) < linear.n_blocks) ((u32*)room.quantized)[four_of(turn)] = bits;
        }
        sum = __reduce_add_sync(FULL_WARP, sum);
        if ((threadIdx.x & 31) == 0) scratch.sums[threadIdx.x / 32] = sum;
        return inverse_scale;
    }

    // A scale for each 128 columns, which half a warp has; the part begins at four `first`.
    __device__ __forceinline__ void quantise_groups(const StepLinear& linear, const LinearRoom& room, u32 first) const {
        const bool is_upper = threadIdx.x & 16;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn += 2) {
            const u32 chunk = first / 64 + chunk_of(turn);
            if (chunk >= linear.n_blocks) break;
            const u32 magnitude = __float_as_uint(fmaxf(largest_of_four(fours[turn]), largest_of_four(fours[turn + 1])));
            const u32 of_lower = __reduce_max_sync(FULL_WARP, is_upper ? 0 : magnitude), of_upper = __reduce_max_sync(FULL_WARP, is_upper ? magnitude : 0);
            const float inverse_scale = inverse_absmax_scale(larger(1e-5f, __uint_as_float(is_upper ? of_upper : of_lower)));
            int sum = 0;
            ((u32*)room.quantized)[first + four_of(turn)] = quantise_four(fours[turn], inverse_scale, sum);
            ((u32*)room.quantized)[first + four_of(turn + 1)] = quantise_four(fours[turn + 1], inverse_scale, sum);
            const int lower_sum = __reduce_add_sync(FULL_WARP, is_upper ? 0 : sum), upper_sum = __reduce_add_sync(FULL_WARP, is_upper ? sum : 0);
            if ((threadIdx.x & 15) == 0) {
                const u32 group = chunk * 2 + is_upper;
                room.x_scales[group] = 1.0f / inverse_scale;
                room.x_sums[group] = is_upper ? upper_sum : lower_sum;
            }
        }
    }
};

// Waits for the operation before, norms and quantises the row; returns its inverse scale, if it has one. Does `meanwhile` before it waits.
template <typename Meanwhile>
__device__ __forceinline__ float prepare_row(const StepArgs& a, const StepLinear& linear, const LinearRoom& room, StepScratch& scratch, const u32* mail, Meanwhile meanwhile) {
    // Norm weights do not depend on the operations before. Without norms nothing is loaded, but registers are defined: else the compiler must take them
    // for values of the operation before.
    StepRow weights, row;
    weights.load(linear.norms.weights[0], linear.norms.n > 0 ? linear.k : 0);
    meanwhile();
    float inverse_scale = 0.0f;
    u32 first = 0;
    while (true) {
        const u32 left = linear.k - first * 4;
        if (linear.receives) row.receive(mail + first * 4, left);
        else row.load(linear.x + first * 4, left);
        // Rows in parts have neither norms nor one scale.
        const u32 next = first + FOURS * STEP_THREADS;
        const bool is_last = next >= linear.n_blocks * 64;
        if (is_last) announce(LOADED);
#pragma unroll 1
        for (u32 norm = 0; norm < linear.norms.n; norm++) {
            if (norm > 0) weights.load(linear.norms.weights[1], linear.k);
            row.norm(weights, norm == 0 ? linear.norms.epsilons[0] : linear.norms.epsilons[1], linear, scratch.chunks[norm]);
        }
        if (linear.in_groups) row.quantise_groups(linear, room, first);
        else inverse_scale = row.quantise(linear, room, scratch);
        if (is_last) break;
        first = next;
    }
    barrier_of_step();
    return inverse_scale;
}

__device__ __forceinline__ void multiply_row(const StepArgs& a, const StepLinear& linear, char* shared, StepScratch& scratch, Ring& ring, const Mail& mail) {
    const u32 filled = linear.n_blocks * 256;
    LinearRoom room;
    room.quantized = (i8*)shared;
    room.x_scales = (float*)(shared + filled);
    room.x_sums = (int*)(room.x_scales + (linear.in_groups ? filled / 128 : 0));
    room.sums = room.x_sums + (linear.in_groups ? filled / 128 : 0);
    const MyTiles tiles(a, linear);
    if (tiles.n == 0) {
        announce(LOADED);
        return hear(SET_BACK);
    }
    const u32 n_out = tiles.n << tiles.log_rows, half_n = linear.n / 2;
    // What does not depend on the operation before.
    const u32 my_index = threadIdx.x, my_row = tiles.row(min(my_index, n_out - 1));
    float weight_scale = 0.0f, up_scale = 0.0f, before = 0.0f;
    if (my_index < n_out) {
        if (!linear.in_groups) {
            weight_scale = __ldg(linear.scales + (linear.n_groups == 0 ? 0 : my_row));
            if (linear.is_gate) up_scale = __ldg(linear.scales + (linear.n_groups == 0 ? 0 : my_row + half_n));
        }
        // Written at least two operations ago.
        if (linear.add) before = __ldcg(linear.out + my_row);
    }
    if (!linear.in_groups)
        for (u32 index = threadIdx.x; index < tiles.n * 16; index += STEP_THREADS) room.sums[index] = 0;
    const float inverse_scale = prepare_row(a, linear, room, scratch, mail.in, [&] {
        if (my_index >= n_out || linear.in_groups) return;
        weight_scale = weight_inverse_scale(weight_scale);
        if (linear.is_gate) up_scale = weight_inverse_scale(up_scale);
    });
    // They end with the barrier after which results may be sent.
    if (linear.in_groups) Multiplier<true>{a, linear, room, tiles}.run(ring);
    else Multiplier<false>{a, linear, room, tiles}.run(ring);

    int x_sum = 0;
#pragma unroll
    for (int warp = 0; warp < STEP_WARPS; warp++) x_sum += scratch.sums[warp];
    const u32 n_segments = (linear.k + 127) / 128;
    for (u32 index = my_index; index < n_out; index += STEP_THREADS) {
        const u32 out_row = tiles.row(index), tile = index >> tiles.log_rows, inside = index & ((1 << tiles.log_rows) - 1);
        float y = 0.0f, up = 0.0f;
        if (linear.in_groups) {
            const float* products = (const float*)room.sums + tile * linear.n_blocks * 2 * 16 + inside;
#pragma unroll 8
            for (int segment = 0; segment < (int)n_segments; segment++) {
                y += products[segment * 16];
                if (linear.is_gate) up += products[segment * 16 + 8];
            }
        } else {
            if (index != my_index) {
                weight_scale = weight_inverse_scale(__ldg(linear.scales + (linear.n_groups == 0 ? 0 : out_row)));
                if (linear.is_gate) up_scale = weight_inverse_scale(__ldg(linear.scales + (linear.n_groups == 0 ? 0 : out_row + half_n)));
            }
            y = dequantise_inverse(room.sums[tile * 16 + inside] - x_sum, weight_scale, inverse_scale);
            if (linear.is_gate) up = dequantise_inverse(room.sums[tile * 16 + 8 + inside] - x_sum, up_scale, inverse_scale);
        }
        if (linear.is_gate) y = gated(linear.activation, y, up);
        if (linear.add) y = (index == my_index ? before : __ldcg(linear.out + out_row)) + y;
        if (mail.out != nullptr) send(mail.out + out_row, y);
        linear.out[out_row] = y;
    }
}

#endif
