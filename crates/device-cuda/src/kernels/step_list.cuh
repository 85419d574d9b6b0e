// The list of operations of step.cu, the mailboxes of their results and the ring of their weights.

#define STEP_WARPS 10
#define STEP_THREADS (STEP_WARPS * 32)
// Those, and one each that keeps house and streams weights.
#define ALL_THREADS (STEP_THREADS + 2 * 32)
// The first warps send results of products of whole rows.
#define SENDING_WARPS 2
#define STAGES_MAX 32
// Parts by which a stage is freed: at least its blocks, and as many for each warp.
#define STAGE_PARTS (16 * STEP_WARPS)
// A power of two.
#define MAILBOXES 8
// Of the results in a mailbox, at different addresses: all blocks look at the same results at a time.
#define MAIL_COPIES 2
// How many operations the housekeeping warp may be behind the computing ones: whoever sends knows that all have set back the mailbox, if there are four
// more mailboxes than that.
#define LAG 4
// Operations of the list that are in shared memory: the one before that which is worked on, and those behind.
#define OPERATIONS_HELD 8

// The code of a layer is kept short: a multiprocessor holds some 2,000 instructions, and each line that it must fetch again costs as much as a
// row's largest value. So there is one way for all widths, and what only the host needs to divide, it divides.

struct StepLinear {
    const float* x;       // [k]
    Norms norms;
    const u8* words;      // pack_int8: [n, n_blocks, 64 bytes]
    const float* scales;  // [n, n_groups] where activations are in groups; otherwise [1] or [n], inverse
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
    u32 interleaves;      // not all stages are in the ring together: warps have blocks of columns by turns
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

// Of a token whose logits nobody looks at: the screen of the head's rows, and the best of those that may win.
struct StepHead {
    Norms norms;             // the final norm
    const i8* quantized;     // [n, screen_stride]: int8 copy of the rows (screen.cu)
    const float* scales;     // [n]
    const float* row_norms;  // [n, 2]
    const void* rows;        // [n, row_bytes]
    u64* best;               // [2], as for argmax
    u64* found;              // [3]: what blocks have found so far, zero between launches
    u32 n;
    u32 k;
    u32 n_blocks;            // blocks of 256 columns
    u32 screen_stride;
    u32 row_bytes;
    u32 dtype;               // 0 f32, 1 f16, 2 bf16
    float rounding;
    u32 rows_of_stage;
    u32 n_stages;            // of all rows
    u32 exact_rows;          // that are multiplied exactly at a time, two a warp
};

#define STEP_LINEAR 0
#define STEP_ATTENTION 1
#define STEP_SCREEN 2
#define STEP_BEST 3

struct __align__(16) StepOperation {
    u32 kind;
    u32 unused[3];
    union {
        StepLinear linear;
        StepAttention attention;
        StepHead head;
        u64 words[22];
    };
};

struct StepArgs {
    const StepOperation* operations;
    u32* mail;            // [MAILBOXES, mailbox_words]: copies of results, then a word of each block that has read the mailbox before
    u32* n_sent;          // operations that have sent to them, ever
    u32 n_operations;
    u32 n_stages;
    u32 stage_blocks;     // blocks of 256 columns of a stage
    u32 row_bytes;        // from one row of a stage to the next: neighbouring rows in different banks
    u32 scale_bytes;      // likewise, of scales behind the rows
    u32 stage_bytes;
    u32 mailbox_words;
    u32 n_results;        // of a copy, a multiple of four
    u32 n_product_blocks; // blocks that have tiles of products
    u32 first_attention;  // block that has the first heads: where they are few, heads have blocks of their own, whose code stays with them
    float inverse_stage_blocks;
    u32 attention_room;   // where in shared memory attention works: over the ring if its blocks have no products
    u32 attention_tiles;  // tiles of keys and values that it has there at a time: a split, or half of one
    u32 sums_bytes;       // of sums of products at the start of the scratch, twice
};

#if __CUDA_ARCH__ >= 900

// A warp's share of a product whose stages are in the ring together: how many of its blocks of columns, the first's tile, place in it, and the first block of its
// stage, and where in the ring that is. Of others, where the product begins in the ring, and no blocks.
struct __align__(16) StepShare {
    u32 n_left, tile, block, first_block;
    u32 slot, parity, unused[2];
};

// What a block does of an operation: found by the housekeeping warp, so that the others need not each find it.
struct StepPlan {
    StepShare shares[STEP_WARPS];
    u32 first_tile, n_tiles;
    u32 slot, parity;  // of the ring, where it begins
    u32 what;          // PLAN_...
    u32 turn;          // of two places for sums, and what is found of a row
    u32 row_bytes;     // from one row of a stage to the next
    u32 unused;
};

// What a block does: one thing to look at for all that it depends on.
#define PLAN_PRODUCT 0
#define PLAN_PRODUCT_IN_GROUPS 1
#define PLAN_NOTHING 2
#define PLAN_ATTENTION_64 3
#define PLAN_ATTENTION_128 4
#define PLAN_SCREEN 5
#define PLAN_BEST 6

__device__ __forceinline__ void barrier_of_step() { asm volatile("bar.sync 2, %0;" ::"n"(STEP_THREADS) : "memory"); }

// What the housekeeping warp and the computing ones tell each other, in shared memory.
struct Progress {
    u32 n_read;  // rows that warps have read of the operations' before, all computing warps together
    u32 n_kept;  // operations that the housekeeping warp is done with
    u32 number;  // of the launch's first operation, among as many as there are mailboxes; looked at again each time, since registers are few

    // What other warps write meanwhile.
    __device__ __forceinline__ static u32 look_at(const u32& number) {
        u32 bits;
        asm volatile("ld.relaxed.cta.shared.u32 %0, [%1];" : "=r"(bits) : "r"((u32)__cvta_generic_to_shared(&number)) : "memory");
        return bits;
    }
};

// Words of a mailbox's results.
__device__ __forceinline__ u32 n_words_of_results(const StepArgs& a) { return MAIL_COPIES * a.n_results; }

// A result for others who look whether it has come: nothing equals what stands there before.
#define NOT_COME 0xffffffffu
__device__ __forceinline__ float sent(float value) { return __float_as_uint(value) == NOT_COME ? __uint_as_float(0x7fffffffu) : value; }
__device__ __forceinline__ void send(float* to, float value) { asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(sent(value)) : "memory"); }
__device__ __forceinline__ void send(float* to, float2 values) {
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(sent(values.x)), "f"(sent(values.y)) : "memory");
}

__device__ __forceinline__ float4 look(const u32* mail) {
    float4 bits;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(bits.x), "=f"(bits.y), "=f"(bits.z), "=f"(bits.w) : "l"(mail) : "memory");
    return bits;
}

__device__ __forceinline__ u32 look_at_word(const u32* mail) {
    u32 bits;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(bits) : "l"(mail) : "memory");
    return bits;
}

// The mailboxes of an operation. The last of a launch sends nothing: the first of the next has its number.
struct Mail {
    const u32* in;
    float* out;  // or null
    u32 n_results;
    u32 index;   // of the operation in the list
    Progress& progress;
    __device__ __forceinline__ Mail(const StepArgs& a, u32 of_index, Progress& of_block) : index(of_index), progress(of_block) {
        const u32 number = Progress::look_at(progress.number) + index;
        in = a.mail + (number - 1) % MAILBOXES * a.mailbox_words + blockIdx.x % MAIL_COPIES * a.n_results;
        n_results = a.n_results;
        out = index + 1 == a.n_operations ? nullptr : (float*)(a.mail + number % MAILBOXES * a.mailbox_words);
    }

    // A block that does nothing of an operation. Its warps stay together, and wait until the operations behind it are there.
    __device__ __forceinline__ void pass() const {
        barrier_of_step();
        have_read();
        await_room();
    }

    // Before anything is sent: until `out` has been set back.
    __device__ __forceinline__ void await_room() const {
        while (Progress::look_at(progress.n_kept) + LAG < index + 1) {}
    }

    // To all who wait for it: a float, or two neighbours.
    template <typename Result>
    __device__ __forceinline__ void send_result(u32 place, Result value) const {
        if (out == nullptr) return;
#pragma unroll
        for (int copy = 0; copy < MAIL_COPIES; copy++) send(out + copy * n_results + place, value);
    }

    // This warp needs nothing of `in` any more.
    __device__ __forceinline__ void have_read() const {
        __syncwarp();
        if ((threadIdx.x & 31) == 0) asm volatile("red.relaxed.cta.shared.add.u32 [%0], 1;" ::"r"((u32)__cvta_generic_to_shared(&progress.n_read)) : "memory");
    }
};

__device__ __forceinline__ void make_barrier(u32 barrier, u32 n) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(n) : "memory"); }

__device__ __forceinline__ void arrive(u32 barrier, u32 n) { asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(n) : "memory"); }

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
    __device__ __forceinline__ MyTiles(const StepArgs& a, const StepLinear& linear, const StepPlan& plan)
        : first(plan.first_tile), n(plan.n_tiles), log_rows(linear.is_gate ? 3 : 4), n_blocks(a.n_product_blocks) {}
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
    __device__ __forceinline__ void advance(u32 n, u32 n_stages) {
        slot += n;
        while (slot >= n_stages) {
            slot -= n_stages;
            parity ^= 1;
        }
    }
};

// Of `n_bytes` from `from` to shared memory, pieces of 16 that this lane has.
__device__ __forceinline__ void fetch_piece(u32 to, const void* from) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory"); }

// Arrives when all pieces that this thread has asked for are there.
__device__ __forceinline__ void arrive_with_pieces(u32 barrier) { asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory"); }

// Where weights are what is waited for, whole rows lie as they do in memory, so that one copy fetches all; otherwise rows begin in different banks.
__device__ __forceinline__ bool is_copied_whole(const StepLinear& linear) { return linear.n_pieces == 1 && linear.interleaves; }
// How far apart rows of a stage are.
__device__ __forceinline__ u32 row_bytes_of(const StepArgs& a, const StepLinear& linear) { return is_copied_whole(linear) ? linear.n_blocks * 64 : a.row_bytes; }

__device__ __forceinline__ void stream_rows(const StepArgs& a, const StepHead& head, Ring& ring, u64 policy);

// The streaming warp. A copy costs it some 26 cycles, since each lane's goes by itself: so weights go by as few copies as can be, and scales, which are few bytes
// of many rows, by pieces.
__device__ __forceinline__ void stream_weights(const StepArgs& a, Ring ring) {
    const u32 lane = threadIdx.x & 31, line = lane & 15;
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    ring.parity = 1;
    for (u32 index = 0; index < a.n_operations; index++) {
        const StepOperation& operation = a.operations[index];
        if (operation.kind == STEP_SCREEN) stream_rows(a, operation.head, ring, policy);
        if (operation.kind != STEP_LINEAR) continue;
        const StepLinear& linear = operation.linear;
        const u32 n_blocks = linear.n_blocks, n_groups = linear.n_groups, half_n = linear.n / 2, row_bytes = row_bytes_of(a, linear);
        const u8* words = linear.words;
        const float* scales = linear.scales;
        const MyTiles tiles(a, linear);
        const bool has_scales = n_groups > 1, is_gate = linear.is_gate, is_whole = is_copied_whole(linear);
        const u32 n_rows_of_copy = !is_whole ? 1 : is_gate ? 8 : 16;
        for (u32 tile = 0; tile < tiles.n; tile++) {
            const u32 row = tiles.row(tile << tiles.log_rows) + (is_gate ? (line & 7) + line / 8 * half_n : line);
            for (u32 block = 0; block < n_blocks; block += a.stage_blocks) {
                const u32 n = min(a.stage_blocks, n_blocks - block), to = ring.stages + ring.slot * a.stage_bytes, full = ring.full + ring.slot * 8;
                await(ring.empty + ring.slot * 8, ring.parity);
                if (lane == 0) expect(full, 16 * n * 64);
                __syncwarp();
                if (lane < 16 && line % n_rows_of_copy == 0)
                    fetch(to + line * row_bytes, words + ((u64)row * n_blocks + block) * 64, n_rows_of_copy * n * 64, full, policy);
                if (a.scale_bytes > 0) {
                    const u32 to_scales = to + 16 * a.row_bytes + line * a.scale_bytes;
                    const char* from = (const char*)(scales + (u64)row * n_groups + block * 2);
                    for (u32 piece = lane / 16; has_scales && piece < n / 2; piece += 2) fetch_piece(to_scales + piece * 16, from + piece * 16);
                    arrive_with_pieces(full);
                }
                ring.advance(1, a.n_stages);
            }
        }
    }
}

#endif
