// A step of one token as one kernel: its products and attention are operations of a list, which one block on each multiprocessor works off
// together with all others. What a kernel for each operation costs (its start, code and constants from afar, weights that are asked for only then) is
// paid once.
//
// A warp of its own streams the weights of this block's rows through a ring in shared memory (bulk copies), operations ahead: weights depend on
// nothing, so memory works while others wait. Ten warps compute. Every block norms and quantises the row for itself, as
// bit_linear_one does. A product goes by tiles of 16 rows (of a gate 8, and 8 of up) on the tensor cores: the row of activations is every one of
// eight tokens, of which one is kept. Attention rotates and appends the token's key and value itself; tiles of older positions are asked for
// before the new ones are known. All results are those of the kernels of single operations.
//
// There is no barrier over the grid. A result is sent to a mailbox, where a pattern that no result has stands before, and whoever needs it
// looks until it has come: one way through the cache instead of a fence, a counter and a load. Operation g (counted over all launches) sends to mailbox
// g mod 4. When all blocks are known to have read a mailbox (each says in the next one that it has), a warp of its own sets it back, and says so to
// its block before that sends again; so nobody sends to a mailbox that is not set back.
#define STEP_WARPS 10
#define STEP_THREADS (STEP_WARPS * 32)
#define STAGES_MAX 32
#define MAILBOXES 4
// Operations of the list that are in shared memory: the one that is worked on and those beside it.
#define OPERATIONS_HELD 4
// Fours of a row for each thread that are in registers at a time: all of a row with norms or one scale.
#define FOURS 7

// The code of a layer is kept short: a multiprocessor holds some 2,000 instructions, and each line that it must fetch again costs as much as a
// row's largest value. So there is one way for all widths, and what only the host needs to divide, it divides.

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
    u32 receives;         // x comes by mail; otherwise it is in memory
    u32 n_tiles_each;     // tiles that each block has
    u32 n_tiles_over;     // blocks that have one more
    u32 n_pieces;         // stages of a tile
    u32 tiles_at_once;    // whose stages are freed together
    float inverse_n_blocks;
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
    u32* mail;            // [MAILBOXES, mailbox_words]: results, then a word of each block that has read the mailbox before
    u32* n_sent;          // operations that have sent to them, ever
    u32 n_operations;
    u32 n_stages;
    u32 stage_blocks;     // blocks of 256 columns of a stage
    u32 row_bytes;        // from one row of a stage to the next: neighbouring rows in different banks
    u32 scale_bytes;      // likewise, of scales behind the rows
    u32 stage_bytes;
    u32 mailbox_words;
    u32 n_results;        // of a mailbox, a multiple of four
    u32 n_product_blocks; // blocks that have tiles of products
    u32 first_attention;  // block that has the first heads: where they are few, heads have blocks of their own, whose code stays with them
    float inverse_stage_blocks;
    u32 attention_room;   // where in shared memory attention works: over the ring if its blocks have no products
};

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ void barrier_of_step() { asm volatile("bar.sync 2, %0;" ::"n"(STEP_THREADS) : "memory"); }

// What the housekeeping warp and the computing ones tell each other: the row has been read; a mailbox is set back, results may be sent.
#define LOADED 3
#define SET_BACK 4
__device__ __forceinline__ void announce(int barrier) { asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(STEP_THREADS + 32) : "memory"); }
__device__ __forceinline__ void hear(int barrier) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(STEP_THREADS + 32) : "memory"); }

__device__ __forceinline__ uint4 look(const u32* mail) {
    uint4 bits;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "l"(mail) : "memory");
    return bits;
}

__device__ __forceinline__ u32 look_at_word(const u32* mail) {
    u32 bits;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(bits) : "l"(mail) : "memory");
    return bits;
}

__device__ __forceinline__ bool has_come(uint4 bits) { return bits.x != NOT_COME && bits.y != NOT_COME && bits.z != NOT_COME && bits.w != NOT_COME; }

// The mailboxes of an operation. The last of a launch sends nothing: the first of the next has its number.
struct Mail {
    const u32* in;
    float* out;  // or null
    __device__ __forceinline__ Mail(const StepArgs& a, u32 number, bool is_last) {
        in = a.mail + (u64)((number - 1) % MAILBOXES) * a.mailbox_words;
        out = is_last ? nullptr : (float*)(a.mail + (u64)(number % MAILBOXES) * a.mailbox_words);
    }
};

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

// This block's tiles of a product: `first`, `first + n_blocks` and so on.
struct MyTiles {
    u32 first, n, log_rows, n_blocks;
    __device__ __forceinline__ MyTiles(const StepArgs& a, const StepLinear& linear) {
        log_rows = linear.is_gate ? 3 : 4;
        n_blocks = a.n_product_blocks;
        first = blockIdx.x - linear.first_block + (blockIdx.x < linear.first_block ? n_blocks : 0);
        n = blockIdx.x >= n_blocks ? 0 : linear.n_tiles_each + (first < linear.n_tiles_over ? 1 : 0);
    }
    // Of output `index` of this block.
    __device__ __forceinline__ u32 row(u32 index) const { return ((first + (index >> log_rows) * n_blocks) << log_rows) + (index & ((1 << log_rows) - 1)); }
};

// The ring of stages in shared memory.
struct Ring {
    u32 stages, full, empty, slot, parity;
    // By at most once around.
    __device__ __forceinline__ void advance(u32 n, u32 n_stages) {
        slot += n;
        if (slot >= n_stages) {
            slot -= n_stages;
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
        const MyTiles tiles(a, linear);
        const bool has_scales = n_groups > 1;
        for (u32 tile = 0; tile < tiles.n; tile++) {
            const u32 row = tiles.row(tile << tiles.log_rows) + (linear.is_gate ? (line & 7) + line / 8 * (linear.n / 2) : line);
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
                ring.advance(1, a.n_stages);
            }
        }
    }
}

// What the computing warps share of a product, in dynamic shared memory.
struct LinearRoom {
    i8* quantized;      // [n_blocks · 256]
    float* squares;     // [16, n_blocks · 16 + 4], where there are norms (place_of_square)
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

// Where the square of link `link` of lane `lane` of a sum lies: links of a lane together, so that one load brings four.
__device__ __forceinline__ u32 place_of_square(u32 lane, u32 link, u32 n_links) { return lane * (n_links + 4) + link; }

__device__ __forceinline__ float add_fours(float sum, const float4 (&fours)[4]) {
#pragma unroll
    for (int four = 0; four < 4; four++) sum = (((sum + fours[four].x) + fours[four].y) + fours[four].z) + fours[four].w;
    return sum;
}

// Σ of squares of a row in the order of numerics::sum_of_squares, by one warp; `n` links of each lane, a multiple of 16, zeros beyond the row.
__device__ __forceinline__ float chain_of_squares(const float* squares, u32 n) {
    const float4* of_lane = (const float4*)(squares + place_of_square(threadIdx.x & (LANES - 1), 0, n));
    const u32 last = n / 4 - 4;
    float sum = 0.0f;
    float4 now[4], next[4];
#pragma unroll
    for (int four = 0; four < 4; four++) now[four] = of_lane[four];
    // Two turns at a time, so that nothing is moved between registers.
#pragma unroll 1
    for (u32 first = 0; first <= last; first += 8) {
#pragma unroll
        for (int four = 0; four < 4; four++) next[four] = of_lane[min(first + 4, last) + four];
        sum = add_fours(sum, now);
        if (first == last) break;
#pragma unroll
        for (int four = 0; four < 4; four++) now[four] = of_lane[min(first + 8, last) + four];
        sum = add_fours(sum, next);
    }
    return sum_lanes(sum);
}

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

// Part of the row of a product as this thread has it: fours threadIdx.x, threadIdx.x + STEP_THREADS and so on, zeros beyond the row.
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

    // Results of the operation before, as they come.
    __device__ __forceinline__ void receive(const u32* mail, u32 k) {
        bool all;
        do {
            all = true;
#pragma unroll
            for (int turn = 0; turn < FOURS; turn++) {
                const u32 four = turn * STEP_THREADS + threadIdx.x;
                uint4 bits = make_uint4(0, 0, 0, 0);
                if (four * 4 < k) bits = look(mail + four * 4);
                all &= has_come(bits);
                fours[turn] = make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w));
            }
        } while (!all);
    }

    // One RMSNorm of a whole row; `weights` are this thread's. While one warp sums, the others do `meanwhile`.
    template <typename Meanwhile>
    __device__ __forceinline__ void norm(const StepRow& weights, float epsilon, const StepLinear& linear, const LinearRoom& room, StepScratch& scratch, Meanwhile meanwhile) {
        const u32 n_links = linear.n_blocks * 16;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            const u32 four = turn * STEP_THREADS + threadIdx.x;
            if (turn * STEP_THREADS >= linear.n_blocks * 64) break;
            const float4 x = fours[turn];
            if (four < linear.n_blocks * 64) {
                float* to = room.squares + place_of_square(four % 4 * 4, four / 4, n_links);
                to[0] = x.x * x.x;
                to[n_links + 4] = x.y * x.y;
                to[2 * (n_links + 4)] = x.z * x.z;
                to[3 * (n_links + 4)] = x.w * x.w;
            }
        }
        barrier_of_step();
        if (threadIdx.x < 32) {
            const float sum = chain_of_squares(room.squares, n_links);
            if (threadIdx.x == 0) scratch.factor = 1.0f / sqrtf(sum / (float)linear.k + epsilon);
        } else {
            meanwhile();
        }
        barrier_of_step();
        const float factor = scratch.factor;
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            if (turn * STEP_THREADS >= linear.n_blocks * 64) break;
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
            if (turn * STEP_THREADS >= linear.n_blocks * 64) break;
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
            const u32 four = turn * STEP_THREADS + threadIdx.x;
            if (turn * STEP_THREADS >= linear.n_blocks * 64) break;
            const u32 bits = quantise_four(fours[turn], inverse_scale, sum);
            if (four < linear.n_blocks * 64) ((u32*)room.quantized)[four] = bits;
        }
        sum = __reduce_add_sync(FULL_WARP, sum);
        if ((threadIdx.x & 31) == 0) scratch.sums[threadIdx.x / 32] = sum;
        return inverse_scale;
    }

    // A scale for each 128 columns, which a warp has together; the part begins at four `first`.
    __device__ __forceinline__ void quantise_groups(const StepLinear& linear, const LinearRoom& room, u32 first) const {
#pragma unroll
        for (int turn = 0; turn < FOURS; turn++) {
            const u32 four = first + turn * STEP_THREADS + threadIdx.x;
            if (four - (threadIdx.x & 31) >= linear.n_blocks * 64) break;
            const float largest = larger(1e-5f, __uint_as_float(__reduce_max_sync(FULL_WARP, __float_as_uint(largest_of_four(fours[turn])))));
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

// Waits for the operation before, norms and quantises the row; returns its inverse scale, if it has one. All but the first warp do `meanwhile` once.
template <typename Meanwhile>
__device__ __forceinline__ float prepare_row(const StepArgs& a, const StepLinear& linear, const LinearRoom& room, StepScratch& scratch, const u32* mail, Meanwhile meanwhile) {
    // Norm weights do not depend on the operations before. Without norms nothing is loaded, but registers are defined: else the compiler must take them
    // for values of the operation before.
    StepRow weights, row;
    weights.load(linear.norms.weights[0], linear.norms.n > 0 ? linear.k : 0);
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
            row.norm(weights, norm == 0 ? linear.norms.epsilons[0] : linear.norms.epsilons[1], linear, room, scratch, [&] {
                if (norm == 0) meanwhile();
            });
        }
        if (linear.in_groups) row.quantise_groups(linear, room, first);
        else inverse_scale = row.quantise(linear, room, scratch);
        if (is_last) break;
        first = next;
    }
    if (linear.norms.n == 0 && threadIdx.x >= 32) meanwhile();
    barrier_of_step();
    return inverse_scale;
}

__device__ __forceinline__ void multiply_row(const StepArgs& a, const StepLinear& linear, char* shared, StepScratch& scratch, Ring& ring, const Mail& mail) {
    const u32 filled = linear.n_blocks * 256;
    LinearRoom room;
    room.quantized = (i8*)shared;
    room.squares = (float*)(shared + filled);
    room.x_scales = room.squares + (linear.norms.n > 0 ? filled + LANES * 4 : 0);
    room.x_sums = (int*)(room.x_scales + (linear.in_groups ? filled / 128 : 0));
    room.sums = room.x_sums + (linear.in_groups ? filled / 128 : 0);
    const MyTiles tiles(a, linear);
    if (tiles.n == 0) {
        announce(LOADED);
        return hear(SET_BACK);
    }
    const u32 n_out = tiles.n << tiles.log_rows, half_n = linear.n / 2;
    // What does not depend on the operation before.
    // The first warp has enough to do.
    const u32 my_index = threadIdx.x - 32, my_row = tiles.row(min(my_index, n_out - 1));
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
    for (u32 index = my_index; index < n_out; index += STEP_THREADS - 32) {
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
    char* behind = shared + RING * 2 * TILE * DIM * 2 + 16 * TILE * 2;
    // There are as many blocks as items at least.
    const u32 split = item % a.of.n_splits, first_head = item / a.of.n_splits * sharing, heads_of_kv = a.of.n_heads / a.of.n_kv_heads;
    const bool has_work = item < n_items && split < n_present;
    const AttentionOne<DIM> one{
        a.of, a.of.blocks + a.of.table_starts[token], base, greatest_of_warps, first_head / heads_of_kv, split * SPLIT_TILES,
        takes_all ? n_tiles : min(n_tiles, (split + 1) * SPLIT_TILES), n_positions, 0, (const uint4*)behind, mail.out,
    };
    const StepHeads<DIM> heads{a, base + (u32)(behind - shared) + 4 * DIM, (Half*)behind, (float*)(behind + 4 * DIM + 32 * DIM), mail.in, first_head, one.kv_head};
    if (has_work) {
        if (threadIdx.x < THREADS) {
#pragma unroll 1
            for (u32 tile = 0; tile < RING - 1; tile++) one.fetch(one.first_tile + tile);
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

// The housekeeping warp: says that this block has read a mailbox, sets back the one before it once all blocks have said so, and brings operations.
__device__ __forceinline__ void keep_house(const StepArgs& a, u32 number, StepOperation* operations) {
    const u32 lane = threadIdx.x & 31;
    const u32 n_each = ((a.n_results + gridDim.x - 1) / gridDim.x + 3) / 4 * 4, first = blockIdx.x * n_each, end = min(a.n_results, first + n_each);
    const auto mailbox = [&](u32 index) { return a.mail + (u64)((number + index) % MAILBOXES) * a.mailbox_words; };
    hear(LOADED);
    announce(SET_BACK);
    for (u32 index = 0; index < a.n_operations; index++) {
        // Where the one before this one was, which has ended.
        if (index + 3 < a.n_operations && lane < sizeof(StepOperation) / 16)
            ((uint4*)(operations + (index + 3) % OPERATIONS_HELD))[lane] = __ldg((const uint4*)(a.operations + index + 3) + lane);
        if (index > 0) {
            const u32* have_read = mailbox(index - 1) + a.n_results;
            for (u32 block = lane; block < gridDim.x; block += 32)
                while (look_at_word(have_read + block) == NOT_COME) {}
            __syncwarp();
        }
        __threadfence();
        // After all of the operation before have been seen: whoever sees this may set those back. The last operation's number is the next launch's.
        if (lane == 0 && index + 1 < a.n_operations)
            asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(mailbox(index) + a.n_results + blockIdx.x), "r"(1) : "memory");
        // What the first operation of a launch would set back, the last of the launch before has.
        if (index > 0) {
            u32* old = mailbox(index - 2);
            for (u32 word = first + lane * 4; word < end; word += 128)
                asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(old + word), "r"(NOT_COME) : "memory");
            if (lane == 0) asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(old + a.n_results + blockIdx.x), "r"(NOT_COME) : "memory");
            __threadfence();
        }
        if (index + 1 < a.n_operations) {
            // In this order: so the computing warps are never two operations ahead.
            hear(LOADED);
            announce(SET_BACK);
        }
    }
}

extern "C" __global__ void __launch_bounds__(STEP_THREADS + 64, 1) step_one(const StepArgs a) {
    extern __shared__ __align__(128) char shared[];
    __shared__ u64 full[STAGES_MAX], empty[STAGES_MAX];
    __shared__ StepOperation operations[OPERATIONS_HELD];
    __shared__ StepScratch scratch;
    __shared__ float greatest_of_warps[WARPS * 16];
    const u32 room_of_ring = a.n_stages * a.stage_bytes;
    Ring ring{(u32)__cvta_generic_to_shared(shared), (u32)__cvta_generic_to_shared(full), (u32)__cvta_generic_to_shared(empty), 0, 0};
    const u32 n_pieces = sizeof(StepOperation) / 16;
    if (threadIdx.x == 0) {
        for (u32 slot = 0; slot < a.n_stages; slot++) {
            make_barrier(ring.full + slot * 8, 1);
            make_barrier(ring.empty + slot * 8, 1);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    for (u32 piece = threadIdx.x; piece < min(3u, a.n_operations) * n_pieces; piece += blockDim.x) ((uint4*)operations)[piece] = __ldg((const uint4*)a.operations + piece);
    __syncthreads();
    const u32 number = *a.n_sent;
    if (threadIdx.x >= STEP_THREADS + 32) return stream_weights(a, ring);
    if (threadIdx.x >= STEP_THREADS) return keep_house(a, number, operations);
#pragma unroll 1
    for (u32 index = 0; index < a.n_operations; index++) {
        const StepOperation& operation = operations[index % OPERATIONS_HELD];
        const Mail mail(a, number + index, index + 1 == a.n_operations);
        if (operation.kind == STEP_LINEAR) multiply_row(a, operation.linear, shared + room_of_ring, scratch, ring, mail);
        else if (operation.attention.dim == 128) attend<128>(operation.attention, shared + a.attention_room, greatest_of_warps, mail, blockIdx.x - a.first_attention);
        else attend<64>(operation.attention, shared + a.attention_room, greatest_of_warps, mail, blockIdx.x - a.first_attention);
        barrier_of_step();
    }
    // The last has not sent. All blocks have read theirs, since they have sent since.
    if (blockIdx.x == 0 && threadIdx.x == 0) *a.n_sent = number + a.n_operations - 1;
}

#else
// No bulk copies here: the host does not ask for this kernel.
extern "C" __global__ void step_one(const StepArgs a) {}
#endif
