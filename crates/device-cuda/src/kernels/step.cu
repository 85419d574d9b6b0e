// A step of one token as one kernel: its products and attention are operations of a list, which one block on each multiprocessor works off
// together with all others, with a barrier over the grid between operations. What a kernel for each operation costs (its start, code and
// constants from afar, weights that are asked for only then) is paid once.
//
// A warp of its own streams the weights of this block's rows through a ring in shared memory (bulk copies), operations ahead: weights depend on
// nothing, so memory works while others wait at a barrier. Eleven warps compute. Every block norms and quantises the row for itself, as
// bit_linear_one does. A product goes by tiles of 16 rows (of a gate 8, and 8 of up) on the tensor cores: the row of activations is every one of
// eight tokens, of which one is kept. Attention rotates and appends the token's key and value itself; tiles of older positions are asked for
// before the barrier. All results are those of the kernels of single operations.
#define STEP_WARPS 11
#define STEP_THREADS (STEP_WARPS * 32)
#define STAGES_MAX 32
// Most fours of a row for each thread.
#define FOURS_MAX 10
// Likewise, of norm weights that are read before the row is there.
#define HELD_FOURS_MAX 5

struct StepLinear {
    const float* x;       // [k]
    Norms norms;
    const u8* words;      // pack_int8: [n, n_blocks, 64 bytes]
    const float* scales;  // [1], [n] or [n, n_groups]
    float* out;           // [n], of a gate [n / 2]
    u32 n;
    u32 k;
    u32 n_blocks;         // blocks of 256 columns
    u32 n_groups;         // weight scales of a row; 0: one for the matrix
    u32 in_groups;        // activations have a scale for each 128 columns
    u32 add;
    u32 is_gate;
    u32 activation;
    u32 first_block;      // of the grid, that has the first tile
    u32 unused;
};

struct StepAttention {
    AttentionMmaArgs of;  // keys and values are written, too
    const float* q_norm;  // [DIM], or null
    const float* k_norm;  // [DIM], or null
    const float* cos;     // [DIM / 2]
    const float* sin;     // [DIM / 2]
    const u32* slots;     // [1]: block · BLOCK_TOKENS + row
    float epsilon;
    u32 dim;
};

#define STEP_LINEAR 0
#define STEP_ATTENTION 1

struct __align__(16) StepOperation {
    u32 kind;
    u32 unused[3];
    union {
        StepLinear linear;
        StepAttention attention;
        u64 words[22];
    };
};

struct StepArgs {
    const StepOperation* operations;
    u32* barrier;         // [0]: blocks that have arrived, ever; [32]: that when this launch began
    u32 n_operations;
    u32 n_stages;
    u32 stage_blocks;     // blocks of 256 columns of a stage
    u32 row_bytes;        // from one row of a stage to the next: neighbouring rows in different banks
    u32 scale_bytes;      // likewise, of scales behind the rows
    u32 stage_bytes;
};

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ void barrier_of_step() { asm volatile("bar.sync 2, %0;" ::"n"(STEP_THREADS) : "memory"); }

__device__ __forceinline__ void make_barrier(u32 barrier, u32 n) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(n) : "memory"); }

__device__ __forceinline__ void arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory"); }

__device__ __forceinline__ void expect(u32 barrier, u32 n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(n_bytes) : "memory");
}

__device__ __forceinline__ void await(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(barrier), "r"(parity)
        : "memory");
}

// Weights are read once: they leave the cache first.
__device__ __forceinline__ void fetch(u32 to, const void* from, u32 n_bytes, u32 barrier, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from),
                 "r"(n_bytes), "r"(barrier), "l"(policy)
                 : "memory");
}

__device__ __forceinline__ uint4 load_shared(u32 from) {
    uint4 bits;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "r"(from));
    return bits;
}

// This block's tiles of a product: `first`, `first + gridDim.x` and so on.
struct MyTiles {
    u32 first, n, rows;
    __device__ __forceinline__ MyTiles(u32 n_rows, u32 is_gate, u32 first_block) {
        rows = is_gate ? 8 : 16;
        const u32 n_tiles = n_rows / 16;
        first = (blockIdx.x + gridDim.x - first_block) % gridDim.x;
        n = first < n_tiles ? (n_tiles - first + gridDim.x - 1) / gridDim.x : 0;
    }
    // Of output `index` of this block.
    __device__ __forceinline__ u32 row(u32 index) const { return (first + index / rows * gridDim.x) * rows + index % rows; }
};

// The ring of stages in shared memory.
struct Ring {
    u32 stages, full, empty, slot, parity;
    __device__ __forceinline__ void next(u32 n_stages) {
        if (++slot == n_stages) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// The streaming warp.
__device__ __forceinline__ void stream_weights(const StepArgs& a, Ring ring) {
    const u32 lane = threadIdx.x & 31, line = lane & 15;
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    ring.parity = 1;
    for (u32 index = 0; index < a.n_operations; index++) {
        const StepOperation& operation = a.operations[index];
        if (operation.kind != STEP_LINEAR) continue;
        const StepLinear& linear = operation.linear;
        const u32 n_blocks = linear.n_blocks, n_groups = linear.n_groups;
        const MyTiles tiles(linear.n, linear.is_gate, linear.first_block);
        const bool has_scales = n_groups > 1;
        for (u32 tile = 0; tile < tiles.n; tile++) {
            const u32 row = tiles.row(tile * tiles.rows) + (linear.is_gate ? (line & 7) + line / 8 * (linear.n / 2) : line);
            for (u32 block = 0; block < n_blocks; block += a.stage_blocks) {
                const u32 n = min(a.stage_blocks, n_blocks - block), to = ring.stages + ring.slot * a.stage_bytes, full = ring.full + ring.slot * 8;
                await(ring.empty + ring.slot * 8, ring.parity);
                if (lane == 0) expect(full, 16 * n * 64 + (has_scales ? 16 * n * 8 : 0));
                __syncwarp();
                if (lane < 16) {
                    fetch(to + line * a.row_bytes, linear.words + ((u64)row * n_blocks + block) * 64, n * 64, full, policy);
                } else if (has_scales) {
                    fetch(to + 16 * a.row_bytes + line * a.scale_bytes, linear.scales + (u64)row * n_groups + block * 2, n * 8, full, policy);
                }
                ring.next(a.n_stages);
            }
        }
    }
}

// What the computing warps share of a product, in dynamic shared memory.
struct LinearRoom {
    i8* quantized;      // [n_blocks · 256]
    float* squares;     // [n_blocks · 256], where there are norms
    float* x_scales;    // [n_blocks · 2], where activations are in groups
    int* x_sums;        // likewise
    int* sums;          // [tiles, 16]; in groups floats, [tiles, 2 · n_blocks, 16]
};

// Small things in static shared memory.
struct StepScratch {
    float largest[STEP_WARPS];
    int sums[STEP_WARPS];
    float factor;
};

// Σ of squares of a row in the order of numerics::sum_of_squares, by one warp, `n` multiple-of-16 links of each lane, zeros beyond the row.
__device__ __forceinline__ float chain_of_squares(const float* squares, u32 n) {
    const float* of_lane = squares + (threadIdx.x & (LANES - 1));
    float sum = 0.0f, now[16], next[16];
#pragma unroll
    for (int link = 0; link < 16; link++) now[link] = of_lane[link * LANES];
#pragma unroll 1
    for (u32 first = 16; first < n; first += 16) {
#pragma unroll
        for (int link = 0; link < 16; link++) next[link] = of_lane[(first + link) * LANES];
#pragma unroll
        for (int link = 0; link < 16; link++) {
            sum += now[link];
            now[link] = next[link];
        }
    }
#pragma unroll
    for (int link = 0; link < 16; link++) sum += now[link];
    return sum_lanes(sum);
}

// A warp's share of a product: blocks of 256 columns by turns, through all tiles and stages.
struct Multiplier {
    const StepArgs& a;
    const StepLinear& linear;
    const LinearRoom& room;

    __device__ __forceinline__ void run(const MyTiles& tiles, Ring& ring) const {
        const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, thread = lane & 3, line = lane / 4;
        const u32 x = (u32)__cvta_generic_to_shared(room.quantized) + thread * 16;
        u32 turn = warp;
        for (u32 tile = 0; tile < tiles.n; tile++) {
            int sums[4][4] = {};
            for (u32 first = 0; first < linear.n_blocks; first += a.stage_blocks) {
                const u32 n = min(a.stage_blocks, linear.n_blocks - first), stage = ring.stages + ring.slot * a.stage_bytes;
                await(ring.full + ring.slot * 8, ring.parity);
#pragma unroll 1
                for (; turn < n; turn += STEP_WARPS) {
                    const u32 words = stage + line * a.row_bytes + turn * 64 + thread * 16;
                    multiply_block(sums, load_shared(words), load_shared(words + 8 * a.row_bytes), x + (first + turn) * 256);
                    if (linear.in_groups) store_segments(sums, stage, tile, first, turn);
                }
                turn -= n;
                __syncwarp();
                if (lane == 0) arrive(ring.empty + ring.slot * 8);
                ring.next(a.n_stages);
            }
            if (!linear.in_groups && thread == 0) {
                int* of_tile = room.sums + tile * 16;
                atomicAdd_block(of_tile + line, together(sums, 0));
                atomicAdd_block(of_tile + line + 8, together(sums, 2));
            }
        }
    }

    // Slots of codes give sums that are 1, 4, 16 and 64 times too large; first half of a block, then the other.
    __device__ __forceinline__ void multiply_block(int (&sums)[4][4], uint4 low, uint4 high, u32 x) const {
        const uint4 x0 = load_shared(x), x1 = load_shared(x + 64);
        multiply_slots(sums, low.x, high.x, low.y, high.y, x0, x1);
        if (linear.in_groups) {
            keep_first_half(sums);
        }
        const uint4 x2 = load_shared(x + 128), x3 = load_shared(x + 192);
        multiply_slots(sums, low.z, high.z, low.w, high.w, x2, x3);
    }

    // In groups both halves of a block have sums of their own: the first is put beside the second, whose products are in other registers.
    __device__ __forceinline__ void keep_first_half(int (&sums)[4][4]) const {
        // Registers 1 and 3 repeat 0 and 2, since all eight tokens are the same.
        const int low = together(sums, 0), high = together(sums, 2);
#pragma unroll
        for (int slot = 0; slot < 4; slot++) sums[slot][0] = sums[slot][1] = sums[slot][2] = sums[slot][3] = 0;
        sums[0][1] = low;
        sums[0][3] = high;
    }

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

    // What the two segments of a block add to their rows; all sums begin again.
    __device__ __forceinline__ void store_segments(int (&sums)[4][4], u32 stage, u32 tile, u32 first, u32 turn) const {
        const u32 lane = threadIdx.x & 31, thread = lane & 3, line = lane / 4, segment = (first + turn) * 2 + (thread & 1);
        // Register 1 began with the first half's sum: what the second half added is in register 0.
        const int low = thread == 0 ? sums[0][1] - sums[0][0] : together(sums, 0), high = thread == 0 ? sums[0][3] - sums[0][2] : together(sums, 2);
        if (thread < 2) {
            const float x_scale = room.x_scales[segment];
            const int x_sum = room.x_sums[segment];
            float* products = (float*)room.sums + (tile * linear.n_blocks * 2 + segment) * 16;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 row = line + half * 8;
                float weight_scale;
                if (linear.n_groups > 1) {
                    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(weight_scale) : "r"(stage + 16 * a.row_bytes + row * a.scale_bytes + (turn * 2 + thread) * 4));
                } else {
                    const MyTiles tiles(linear.n, linear.is_gate, linear.first_block);
                    const u32 of = tiles.row(tile * tiles.rows) + (linear.is_gate ? line + half * (linear.n / 2) : row);
                    weight_scale = __ldg(linear.scales + (linear.n_groups == 0 ? 0 : of));
                }
                const int sum = half == 0 ? low : high;
                products[row] = (float)(sum - x_sum) * (weight_scale * x_scale);
            }
        }
#pragma unroll
        for (int slot = 0; slot < 4; slot++) sums[slot][0] = sums[slot][1] = sums[slot][2] = sums[slot][3] = 0;
    }
};

// The row of a product as this thread has it: fours threadIdx.x, threadIdx.x + STEP_THREADS and so on, FOURS of them, zeros beyond the row.
template <int FOURS>
struct StepRow {
    float4 fours[FOURS];

    __device__ __forceinline__ void load(const float* x, u32 k) {
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            const u32 four = turn * STEP_THREADS + threadIdx.x;
            fours[turn] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (four * 4 < k) fours[turn] = __ldcg((const float4*)x + four);
        }
    }

    // One RMSNorm; `held` are this thread's weights, unless the row is so long that they are read when they are needed.
    __device__ __forceinline__ void norm(const StepRow& held, const float* weights, float epsilon, const StepLinear& linear, const LinearRoom& room, StepScratch& scratch) {
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            const u32 four = turn * STEP_THREADS + threadIdx.x;
            const float4 x = fours[turn];
            if (four < linear.n_blocks * 64) ((float4*)room.squares)[four] = make_float4(x.x * x.x, x.y * x.y, x.z * x.z, x.w * x.w);
        }
        barrier_of_step();
        if (threadIdx.x < 32) {
            const float sum = chain_of_squares(room.squares, linear.n_blocks * 16);
            if (threadIdx.x == 0) scratch.factor = 1.0f / sqrtf(sum / (float)linear.k + epsilon);
        }
        barrier_of_step();
        const float factor = scratch.factor;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            const u32 four = turn * STEP_THREADS + threadIdx.x;
            const float4 x = fours[turn], w = FOURS <= HELD_FOURS_MAX ? held.fours[turn] : __ldg((const float4*)weights + min(four, linear.k / 4 - 1));
            fours[turn] = make_float4((x.x * factor) * w.x, (x.y * factor) * w.y, (x.z * factor) * w.z, (x.w * factor) * w.w);
        }
    }

    __device__ __forceinline__ static u32 quantise_four(float4 x, float inverse_scale, int& sum) {
        const int q[4] = {quantise_one(x.x, inverse_scale), quantise_one(x.y, inverse_scale), quantise_one(x.z, inverse_scale), quantise_one(x.w, inverse_scale)};
        sum += (q[0] + q[1]) + (q[2] + q[3]);
        return (u32)(q[0] & 255) | (u32)(q[1] & 255) << 8 | (u32)(q[2] & 255) << 16 | (u32)q[3] << 24;
    }

    __device__ __forceinline__ static float largest_of_four(float largest, float4 x) {
        largest = larger(larger(largest, fabsf(x.x)), fabsf(x.y));
        return larger(larger(largest, fabsf(x.z)), fabsf(x.w));
    }

    // One scale for the row. Its sum is the sum of `scratch.sums` after the next barrier; returns the inverse scale.
    __device__ __forceinline__ float quantise(const StepLinear& linear, const LinearRoom& room, StepScratch& scratch) const {
        float largest = 0.0f;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) largest = largest_of_four(largest, fours[turn]);
        // Magnitudes: their bits are in their order.
        largest = __uint_as_float(__reduce_max_sync(FULL_WARP, __float_as_uint(largest)));
        if ((threadIdx.x & 31) == 0) scratch.largest[threadIdx.x / 32] = largest;
        barrier_of_step();
        largest = 1e-5f;
#pragma unroll
        for (int warp = 0; warp < STEP_WARPS; warp++) largest = larger(largest, scratch.largest[warp]);
        const float inverse_scale = inverse_absmax_scale(largest);
        int sum = 0;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            const u32 four = turn * STEP_THREADS + threadIdx.x, bits = quantise_four(fours[turn], inverse_scale, sum);
            if (four < linear.n_blocks * 64) ((u32*)room.quantized)[four] = bits;
        }
        sum = __reduce_add_sync(FULL_WARP, sum);
        if ((threadIdx.x & 31) == 0) scratch.sums[threadIdx.x / 32] = sum;
        return inverse_scale;
    }

    // A scale for each 128 columns, which a warp has together.
    __device__ __forceinline__ void quantise_groups(const StepLinear& linear, const LinearRoom& room) const {
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            const u32 four = turn * STEP_THREADS + threadIdx.x;
            if (four - (threadIdx.x & 31) >= linear.n_blocks * 64) break;
            const float largest = larger(1e-5f, __uint_as_float(__reduce_max_sync(FULL_WARP, __float_as_uint(largest_of_four(0.0f, fours[turn])))));
            const float inverse_scale = inverse_absmax_scale(largest);
            int sum = 0;
            ((u32*)room.quantized)[four] = quantise_four(fours[turn], inverse_scale, sum);
            sum = __reduce_add_sync(FULL_WARP, sum);
            if ((threadIdx.x & 31) == 0) {
                room.x_scales[four / 32] = 1.0f / inverse_scale;
                room.x_sums[four / 32] = sum;
            }
        }
    }
};

// Waits until all blocks have arrived `target` times in all.
__device__ __forceinline__ void await_grid(const u32* arrived, u32 target) {
    if (threadIdx.x == 0) {
        u32 n;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(arrived) : "memory");
        while ((int)(n - target) < 0);
    }
    barrier_of_step();
}

// Waits for the operations before, norms and quantises the row; returns its inverse scale, if it has one.
template <int FOURS>
__device__ __forceinline__ float prepare_row(const StepArgs& a, const StepLinear& linear, const LinearRoom& room, StepScratch& scratch, u32 target) {
    // Norm weights do not depend on the operations before.
    const bool holds = FOURS <= HELD_FOURS_MAX;
    StepRow<FOURS> held, row;
    // Without norms nothing is loaded, but registers are defined: else the compiler must take them for values of the operation before.
    if (holds) held.load(linear.norms.weights[0], linear.norms.n > 0 ? linear.k : 0);
    await_grid(a.barrier, target);
    row.load(linear.x, linear.k);
#pragma unroll 1
    for (u32 norm = 0; norm < linear.norms.n; norm++) {
        const float* weights = norm == 0 ? linear.norms.weights[0] : linear.norms.weights[1];
        if (holds && norm > 0) held.load(weights, linear.k);
        row.norm(held, weights, norm == 0 ? linear.norms.epsilons[0] : linear.norms.epsilons[1], linear, room, scratch);
    }
    float inverse_scale = 0.0f;
    if (linear.in_groups) row.quantise_groups(linear, room);
    else inverse_scale = row.quantise(linear, room, scratch);
    barrier_of_step();
    return inverse_scale;
}

__device__ __forceinline__ void multiply_row(const StepArgs& a, const StepLinear& linear, char* shared, StepScratch& scratch, Ring& ring, u32 target) {
    const u32 filled = linear.n_blocks * 256;
    LinearRoom room;
    room.quantized = (i8*)shared;
    room.squares = (float*)(shared + filled);
    room.x_scales = room.squares + (linear.norms.n > 0 ? filled : 0);
    room.x_sums = (int*)(room.x_scales + (linear.in_groups ? filled / 128 : 0));
    room.sums = room.x_sums + (linear.in_groups ? filled / 128 : 0);
    const MyTiles tiles(linear.n, linear.is_gate, linear.first_block);
    const u32 n_out = tiles.n * tiles.rows, half_n = linear.n / 2;
    // What does not depend on the operation before.
    const u32 my_row = tiles.row(min(threadIdx.x, max(n_out, 1u) - 1));
    float weight_scale = 0.0f, up_scale = 0.0f, before = 0.0f;
    if (threadIdx.x < n_out) {
        if (!linear.in_groups) {
            weight_scale = __ldg(linear.scales + (linear.n_groups == 0 ? 0 : my_row));
            if (linear.is_gate) up_scale = __ldg(linear.scales + (linear.n_groups == 0 ? 0 : my_row + half_n));
        }
        // Written at least two operations ago.
        if (linear.add) before = __ldcg(linear.out + my_row);
    }
    if (!linear.in_groups)
        for (u32 index = threadIdx.x; index < tiles.n * 16; index += STEP_THREADS) room.sums[index] = 0;
    float inverse_scale = 0.0f;
    if (filled <= 2 * 4 * STEP_THREADS) inverse_scale = prepare_row<2>(a, linear, room, scratch, target);
    else if (filled <= 3 * 4 * STEP_THREADS) inverse_scale = prepare_row<3>(a, linear, room, scratch, target);
    else if (filled <= 5 * 4 * STEP_THREADS) inverse_scale = prepare_row<5>(a, linear, room, scratch, target);
    else inverse_scale = prepare_row<FOURS_MAX>(a, linear, room, scratch, target);
    int x_sum = 0;
#pragma unroll
    for (int warp = 0; warp < STEP_WARPS; warp++) x_sum += scratch.sums[warp];
    const Multiplier multiplier{a, linear, room};
    multiplier.run(tiles, ring);
    barrier_of_step();

    const u32 n_segments = (linear.k + 127) / 128;
    for (u32 index = threadIdx.x; index < n_out; index += STEP_THREADS) {
        const u32 out_row = tiles.row(index), tile = index / tiles.rows, inside = index % tiles.rows;
        float y = 0.0f, up = 0.0f;
        if (linear.in_groups) {
            const float* products = (const float*)room.sums + tile * linear.n_blocks * 2 * 16 + inside;
#pragma unroll 8
            for (int segment = 0; segment < (int)n_segments; segment++) {
                y += products[segment * 16];
                if (linear.is_gate) up += products[segment * 16 + 8];
            }
        } else {
            if (index >= STEP_THREADS) {
                weight_scale = __ldg(linear.scales + (linear.n_groups == 0 ? 0 : out_row));
                if (linear.is_gate) up_scale = __ldg(linear.scales + (linear.n_groups == 0 ? 0 : out_row + half_n));
            }
            y = dequantise(room.sums[tile * 16 + inside] - x_sum, weight_scale, inverse_scale);
            if (linear.is_gate) up = dequantise(room.sums[tile * 16 + 8 + inside] - x_sum, up_scale, inverse_scale);
        }
        if (linear.is_gate) y = gated(linear.activation, y, up);
        if (linear.add) y = (index < STEP_THREADS ? before : __ldcg(linear.out + out_row)) + y;
        linear.out[out_row] = y;
    }
}

// rope_append of the heads of one block of attention: query rows as halves, scaled, rows beyond the last repeating them; key and value as halves.
template <int DIM>
struct StepHeads {
    const StepAttention& a;
    u32 queries;    // shared memory, [16, DIM] as piece_of lays it
    Half* last;     // [2, DIM]
    float* heads;   // [WARPS, DIM]
    u32 first_head, kv_head;

    __device__ __forceinline__ void run() const {
        const u32 warp = threadIdx.x / 32, sharing = 1 << a.of.log_sharing;
        for (u32 item = warp; item < sharing + 2; item += WARPS) {
            const u32 head = item < sharing ? first_head + item : a.of.n_heads + (item - sharing) * a.of.n_kv_heads + kv_head;
            turn_head(item, head);
        }
    }

    __device__ __forceinline__ void turn_head(u32 item, u32 head) const {
        const u32 lane = threadIdx.x & 31, sharing = 1 << a.of.log_sharing;
        float* values = heads + threadIdx.x / 32 * DIM;
        const float* row = a.of.qkv + (u64)head * DIM;
        const bool turns = item <= sharing;
        float cosines[DIM / 64], sines[DIM / 64];
#pragma unroll
        for (int turn = 0; turn < DIM / 64; turn++) {
            const u32 pair = turn * 32 + lane;
            cosines[turn] = turns ? a.cos[pair] : 0.0f;
            sines[turn] = turns ? a.sin[pair] : 0.0f;
        }
#pragma unroll
        for (int turn = 0; turn < DIM / 32; turn++) values[turn * 32 + lane] = __ldcg(row + turn * 32 + lane);
        __syncwarp();
        const float* norm = !turns ? nullptr : item < sharing ? a.q_norm : a.k_norm;
        if (norm != nullptr) {
            float sum = 0.0f;
#pragma unroll
            for (int turn = 0; turn < DIM / LANES; turn++) {
                const float value = values[turn * LANES + (lane & (LANES - 1))];
                sum += value * value;
            }
            sum = __shfl_sync(FULL_WARP, sum_lanes(sum), 0);
            const float factor = 1.0f / sqrtf(sum / (float)DIM + a.epsilon);
            __syncwarp();
#pragma unroll
            for (int turn = 0; turn < DIM / 32; turn++) values[turn * 32 + lane] = (values[turn * 32 + lane] * factor) * norm[turn * 32 + lane];
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
        __syncwarp();
    }

    __device__ __forceinline__ void put_query(u32 item, u32 column, float value) const {
        const u32 bits = pack_halves(value * a.of.scale, 0.0f);
        for (u32 row = item; row < 16; row += 1 << a.of.log_sharing)
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

// A call: together with a product's it would have too few registers.
template <int DIM>
__device__ __noinline__ void attend(const StepArgs& step, const StepAttention& a, char* shared, float* greatest_of_warps, u32 target) {
    const u32 sharing = 1 << a.of.log_sharing, n_items = (a.of.n_heads >> a.of.log_sharing) * a.of.n_splits;
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    const u32 token = a.of.tokens[0], n_positions = a.of.positions[token] + 1;
    const u32 n_tiles = (n_positions + TILE - 1) / TILE, n_present = (n_tiles + SPLIT_TILES - 1) / SPLIT_TILES;
    const bool takes_all = a.of.n_splits == 1;
    // Behind the ring of tiles and the weights of a tile.
    char* behind = shared + RING * 2 * TILE * DIM * 2 + 16 * TILE * 2;
    bool is_first = true;
    for (u32 item = blockIdx.x; item < n_items || is_first; item += gridDim.x) {
        const u32 split = item % a.of.n_splits, first_head = item / a.of.n_splits * sharing, heads_of_kv = a.of.n_heads / a.of.n_kv_heads;
        const bool has_work = item < n_items && split < n_present && threadIdx.x < THREADS;
        const AttentionOne<DIM> one{
            a.of, a.of.blocks + a.of.table_starts[token], base, greatest_of_warps, first_head / heads_of_kv, split * SPLIT_TILES,
            takes_all ? n_tiles : min(n_tiles, (split + 1) * SPLIT_TILES), n_positions, 0, (const uint4*)behind,
        };
        if (has_work)
            for (u32 tile = 0; tile < RING - 1; tile++) one.fetch(one.first_tile + tile);
        if (is_first) await_grid(step.barrier, target);
        is_first = false;
        if (!has_work) continue;
        const StepHeads<DIM> heads{a, base + (u32)(behind - shared) + 4 * DIM, (Half*)behind, (float*)(behind + 4 * DIM + 32 * DIM), first_head, one.kv_head};
        heads.run();
        barrier_of_heads();
        if (one.end_tile == n_tiles && first_head % heads_of_kv == 0) heads.append();
        u32 queries[DIM / 16][4];
        const u32 lane = threadIdx.x & 31;
#pragma unroll
        for (int part = 0; part < DIM / 16; part++) load_matrices(queries[part], heads.queries + piece_of<DIM>(lane & 15, part * 2 + lane / 16));
        Partial<DIM / WARPS> total;
        one.run(total, queries);
        float* out = a.of.out + (u64)first_head * DIM;
        if (takes_all || n_present == 1) {
            const float factors[2] = {1.0f / total.sums[0], 1.0f / total.sums[2]};
            one.store(total, out, DIM, factors);
        } else {
            one.share(total, out, first_head, split, n_present);
        }
        // The next heads' tiles go where these are still read.
        barrier_of_heads();
    }
}

extern "C" __global__ void __launch_bounds__(STEP_THREADS + 32, 1) step_one(const StepArgs a) {
    extern __shared__ __align__(128) char shared[];
    __shared__ u64 full[STAGES_MAX], empty[STAGES_MAX];
    __shared__ StepOperation operations[2];
    __shared__ StepScratch scratch;
    __shared__ float greatest_of_warps[WARPS * 16];
    const u32 room_of_ring = a.n_stages * a.stage_bytes;
    Ring ring{(u32)__cvta_generic_to_shared(shared), (u32)__cvta_generic_to_shared(full), (u32)__cvta_generic_to_shared(empty), 0, 0};
    const u32 n_pieces = sizeof(StepOperation) / 16;
    if (threadIdx.x == 0) {
        for (u32 slot = 0; slot < a.n_stages; slot++) {
            make_barrier(ring.full + slot * 8, 1);
            make_barrier(ring.empty + slot * 8, STEP_WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (threadIdx.x < n_pieces) ((uint4*)operations)[threadIdx.x] = __ldg((const uint4*)a.operations + threadIdx.x);
    __syncthreads();
    if (threadIdx.x >= STEP_THREADS) return stream_weights(a, ring);
    u32 target = a.barrier[32];
    for (u32 index = 0; index < a.n_operations; index++) {
        uint4 next = make_uint4(0, 0, 0, 0);
        const bool brings_next = threadIdx.x < n_pieces && index + 1 < a.n_operations;
        if (brings_next) next = __ldg((const uint4*)(a.operations + index + 1) + threadIdx.x);
        const StepOperation& operation = operations[index & 1];
        if (operation.kind == STEP_LINEAR) multiply_row(a, operation.linear, shared + room_of_ring, scratch, ring, target);
        else if (operation.attention.dim == 128) attend<128>(a, operation.attention, shared + room_of_ring, greatest_of_warps, target);
        else attend<64>(a, operation.attention, shared + room_of_ring, greatest_of_warps, target);
        if (brings_next) ((uint4*)(operations + (index + 1 & 1)))[threadIdx.x] = next;
        barrier_of_step();
        target += gridDim.x;
        // The end of the kernel is the last barrier.
        if (index + 1 < a.n_operations && threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(a.barrier) : "memory");
    }
    // All blocks have read where this launch began: they have arrived at least once since.
    if (blockIdx.x == 0 && threadIdx.x == 0 && a.n_operations > 1) a.barrier[32] = target - gridDim.x;
}

#else
// No bulk copies here: the host does not ask for this kernel.
extern "C" __global__ void step_one(const StepArgs a) {}
#endif
