// The row of a product of step.cu: every block receives it, norms and quantises it. All of a block's warps do the same, so what counts is how few instructions
// a warp has: rows are taken by a fixed number of chunks a warp, one for those of a model's hidden size.

#if __CUDA_ARCH__ >= 900

// Chunks of 256 columns of a warp, at most: of narrow rows, the same in groups, and of wide ones.
#define NARROW_CHUNKS 1
#define NARROW_CHUNKS_IN_GROUPS 2
#define WIDE_CHUNKS 4

// What the computing warps share of a product, in dynamic shared memory.
struct LinearRoom {
    i8* quantized;      // [n_blocks · 256], as place_of_word lays it
    float* weights;     // [n_blocks · 256], of a wide row's norm; each thread reads what it has fetched itself
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
    __align__(16) float chunks[2][WIDE_CHUNKS * STEP_WARPS];       // sums of squares, by norm
    __align__(16) float few_chunks[2][(STEP_WARPS + 3) / 4 * 4];   // of narrow rows, zeros behind
    __align__(16) float largest[(STEP_WARPS + 3) / 4 * 4];         // of each warp, zeros behind
    int sums[2];      // of quantised rows, by turn
    int damaged[STEP_WARPS];

    // By one thread.
    __device__ __forceinline__ void begin() {
        for (u32 warp = STEP_WARPS; warp < sizeof(largest) / sizeof(float); warp++) few_chunks[0][warp] = few_chunks[1][warp] = largest[warp] = 0.0f;
        sums[0] = sums[1] = 0;
    }
};

// Part of the row as a thread has it, and the norm weights of its columns, which are asked for before they are needed: of wide rows, by way of shared memory.
template <int CHUNKS>
struct StepRow {
    static const bool IN_REGISTERS = CHUNKS < WIDE_CHUNKS;
    // Of each chunk two fours, 32 columns apart (column_in_chunk), zeros beyond the row. Chunks of a warp are STEP_WARPS apart.
    float4 fours[CHUNKS][2];
    float4 weights[IN_REGISTERS ? CHUNKS : 1][2];

    static const u32 STEP_COLUMNS = STEP_WARPS * CHUNK_COLUMNS;

    __device__ __forceinline__ static u32 first_column() { return threadIdx.x / 32 * CHUNK_COLUMNS + column_in_chunk(); }

    // A bit for each chunk that this warp has. Rows are whole multiples of 64 columns, so a thread has both of a chunk's fours or none.
    __device__ __forceinline__ static u32 chunks_of_thread(u32 k) {
        u32 chunks = 0;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) chunks |= first_column() + chunk * STEP_COLUMNS < k ? 1 << chunk : 0;
        return chunks;
    }

    __device__ __forceinline__ void load_weights(const float* from, u32 k, float* room) {
        const u32 mine = chunks_of_thread(k), to = (u32)__cvta_generic_to_shared(room + first_column());
        from += first_column();
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int column = chunk * STEP_COLUMNS + half * 32;
                if (!(mine >> chunk & 1)) continue;
                if constexpr (IN_REGISTERS) weights[chunk][half] = __ldg((const float4*)(from + column));
                else fetch_piece(to + column * 4, from + column);
            }
    }

    // A row in memory.
    __device__ __forceinline__ void load(const float* from, u32 k) {
        const u32 mine = chunks_of_thread(k);
        from += first_column();
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                fours[chunk][half] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (mine >> chunk & 1) fours[chunk][half] = __ldcg((const float4*)(from + chunk * STEP_COLUMNS + half * 32));
            }
    }

    // Results of the operation before, as they come.
    __device__ __forceinline__ void receive(const u32* mail, u32 k) {
        u32 missing = chunks_of_thread(k);
        const u32* from = mail + first_column();
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) fours[chunk][0] = fours[chunk][1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        while (missing != 0) {
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (missing >> chunk & 1) fours[chunk][half] = look(from + chunk * STEP_COLUMNS + half * 32);
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++)
                if (max(largest_bits(fours[chunk][0]), largest_bits(fours[chunk][1])) != NOT_COME) missing &= ~(1 << chunk);
        }
    }

    // NOT_COME is larger than all others.
    __device__ __forceinline__ static u32 largest_bits(float4 four) {
        return max(max(__float_as_uint(four.x), __float_as_uint(four.y)), max(__float_as_uint(four.z), __float_as_uint(four.w)));
    }

    // One RMSNorm of the whole row. `sums` is room for as many floats as there are chunks, zeros behind.
    __device__ __forceinline__ void norm(float epsilon, u32 k, float* sums, const float* room) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const float sum = squares_of_chunk(fours[chunk][0], fours[chunk][1]);
            if ((threadIdx.x & 31) == 0) sums[chunk * STEP_WARPS + threadIdx.x / 32] = sum;
        }
        barrier_of_step();
        float4 lanes = *(const float4*)sums;
#pragma unroll
        for (int four = 1; four < (CHUNKS * STEP_WARPS + 3) / 4; four++) lanes = added(lanes, ((const float4*)sums)[four]);
        const float factor = inverse_rms(sum_of_four(lanes), k, epsilon);
        if constexpr (!IN_REGISTERS) asm volatile("cp.async.wait_all;" ::: "memory");
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float4 x = fours[chunk][half];
                float4 w;
                if constexpr (IN_REGISTERS) w = weights[chunk][half];
                else if (first_column() + chunk * STEP_COLUMNS < k) w = *(const float4*)(room + first_column() + chunk * STEP_COLUMNS + half * 32);
                else break;
                fours[chunk][half] = make_float4((x.x * factor) * w.x, (x.y * factor) * w.y, (x.z * factor) * w.z, (x.w * factor) * w.w);
            }
    }

    // All norms of a row. Weights of the first are on their way.
    __device__ __forceinline__ void norm_all(const Norms& norms, u32 k, StepScratch& scratch, float* room) {
        const u32 n = norms.n;
#pragma unroll 1
        for (u32 index = 0; index < n; index++) {
            if (index > 0) load_weights(norms.weights[1], k, room);
            norm(norms.epsilons[index], k, CHUNKS == 1 ? scratch.few_chunks[index] : scratch.chunks[index], room);
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

    // Where a chunk's quantised numbers lie, in words: those of the second four two threads behind.
    __device__ __forceinline__ static u32 first_place() { return threadIdx.x / 32 * (CHUNK_COLUMNS / 4) + place_of_word(column_in_chunk() / 4); }

    // One scale for a whole row, whose inverse is returned. What its numbers sum up to is added up in `scratch`.
    __device__ __forceinline__ float quantise(u32 n_blocks, const LinearRoom& room, StepScratch& scratch, u32 turn) const {
        const u32 warp = threadIdx.x / 32;
        float largest = 0.0f;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) largest = fmaxf(largest, fmaxf(largest_of_four(fours[chunk][0]), largest_of_four(fours[chunk][1])));
        // Magnitudes: their bits are in their order.
        largest = __uint_as_float(__reduce_max_sync(FULL_WARP, __float_as_uint(largest)));
        if ((threadIdx.x & 31) == 0) scratch.largest[warp] = largest;
        barrier_of_step();
        largest = 1e-5f;
#pragma unroll
        for (int four = 0; four < (STEP_WARPS + 3) / 4; four++) largest = fmaxf(largest, largest_of_four(((const float4*)scratch.largest)[four]));
        const float inverse_scale = inverse_absmax_scale(largest);
        u32* to = (u32*)room.quantized + first_place();
        int sum = 0;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            if (chunk * STEP_WARPS + warp >= n_blocks) break;
#pragma unroll
            for (int half = 0; half < 2; half++) to[chunk * (STEP_COLUMNS / 4) + half * 8] = quantise_four(fours[chunk][half], inverse_scale, sum);
        }
        sum = __reduce_add_sync(FULL_WARP, sum);
        if ((threadIdx.x & 31) == 0) atomicAdd_block(&scratch.sums[turn], sum);
        return inverse_scale;
    }

    // A scale for each 128 columns, which half a warp has; the part begins at block `first`.
    __device__ __forceinline__ void quantise_groups(u32 n_blocks, const LinearRoom& room, u32 first) const {
        const bool is_upper = threadIdx.x & 16;
        u32* to = (u32*)room.quantized + first * (CHUNK_COLUMNS / 4) + first_place();
#pragma unroll
        for (int turn = 0; turn < CHUNKS; turn++) {
            const u32 block = first + turn * STEP_WARPS + threadIdx.x / 32;
            if (block >= n_blocks) break;
            const u32 magnitude = __float_as_uint(fmaxf(largest_of_four(fours[turn][0]), largest_of_four(fours[turn][1])));
            const u32 of_lower = __reduce_max_sync(FULL_WARP, is_upper ? 0 : magnitude), of_upper = __reduce_max_sync(FULL_WARP, is_upper ? magnitude : 0);
            const float inverse_scale = inverse_absmax_scale(larger(1e-5f, __uint_as_float(is_upper ? of_upper : of_lower)));
            int sum = 0;
#pragma unroll
            for (int half = 0; half < 2; half++) to[turn * (STEP_COLUMNS / 4) + half * 8] = quantise_four(fours[turn][half], inverse_scale, sum);
            const int lower_sum = __reduce_add_sync(FULL_WARP, is_upper ? 0 : sum), upper_sum = __reduce_add_sync(FULL_WARP, is_upper ? sum : 0);
            if ((threadIdx.x & 15) == 0) {
                const u32 group = block * 2 + is_upper;
                room.x_scales[group] = 1.0f / inverse_scale;
                room.x_sums[group] = is_upper ? upper_sum : lower_sum;
            }
        }
    }
};

// Waits for the operation before, norms and quantises the row; returns its inverse scale, if it has one.
template <bool GROUPED, int CHUNKS>
__device__ __forceinline__ float prepare_row(const StepLinear& linear, const LinearRoom& room, StepScratch& scratch, const Mail& mail, u32 turn) {
    StepRow<CHUNKS> row;
    const u32 k = linear.k, n_blocks = linear.n_blocks;
    if (linear.norms.n > 0) row.load_weights(linear.norms.weights[0], k, room.weights);
    float inverse_scale = 0.0f;
    u32 first = 0;
    while (true) {
        const u32 left = k - first * CHUNK_COLUMNS;
        if (linear.receives) row.receive(mail.in + first * CHUNK_COLUMNS, left);
        else row.load(linear.x + first * CHUNK_COLUMNS, left);
        // Only wide rows in groups come in parts: those have no norms.
        const u32 next = first + CHUNKS * STEP_WARPS;
        const bool is_last = !GROUPED || CHUNKS < WIDE_CHUNKS || next >= n_blocks;
        if (is_last) mail.have_read();
        row.norm_all(linear.norms, k, scratch, room.weights);
        if constexpr (GROUPED) row.quantise_groups(n_blocks, room, first);
        else inverse_scale = row.quantise(n_blocks, room, scratch, turn);
        if (is_last) break;
        first = next;
    }
    return inverse_scale;
}

#endif
