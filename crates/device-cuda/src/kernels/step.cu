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
// g mod 8. When all blocks are known to have read a mailbox (each says in the next one that it has), a warp of its own sets it back, and says so to
// its block before that sends again; so nobody sends to a mailbox that is not set back. The same warp finds what its block does of operations to come.

#if __CUDA_ARCH__ >= 900

// What this block does of operations, one after another: by one warp.
struct Planner {
    const StepArgs& a;
    Ring at;
    u32 turn;

    __device__ __forceinline__ void plan(const StepOperation& operation, StepPlan& plan) {
        const u32 lane = threadIdx.x & 31;
        plan.slot = at.slot;
        plan.parity = at.parity;
        if (operation.kind == STEP_ATTENTION) plan.what = !attends(a, operation.attention) ? PLAN_NOTHING : operation.attention.dim == 128 ? PLAN_ATTENTION_128 : PLAN_ATTENTION_64;
        else if (operation.kind != STEP_LINEAR) plan.what = blockIdx.x >= a.n_product_blocks ? PLAN_NOTHING : operation.kind == STEP_SCREEN ? PLAN_SCREEN : PLAN_BEST;
        if (operation.kind != STEP_LINEAR) return;
        const StepLinear& linear = operation.linear;
        const MyTiles tiles(a, linear);
        plan.what = tiles.n == 0 ? PLAN_NOTHING : linear.in_groups ? PLAN_PRODUCT_IN_GROUPS : PLAN_PRODUCT;
        plan.first_tile = tiles.first;
        plan.n_tiles = tiles.n;
        plan.turn = turn;
        plan.row_bytes = row_bytes_of(a, linear);
        turn ^= 1;
        if (lane < STEP_WARPS) {
            const u32 n_all = linear.interleaves ? 0 : tiles.n * linear.n_blocks, unit = lane * n_all / STEP_WARPS;
            StepShare share;
            share.n_left = (lane + 1) * n_all / STEP_WARPS - unit;
            share.tile = (u32)(((float)unit + 0.5f) * linear.inverse_n_blocks);
            share.block = unit - share.tile * linear.n_blocks;
            const u32 piece = (u32)(((float)share.block + 0.5f) * a.inverse_stage_blocks);
            share.first_block = piece * a.stage_blocks;
            Ring first = at;
            first.advance(share.tile * linear.n_pieces + piece, a.n_stages);
            share.slot = first.slot;
            share.parity = first.parity;
            plan.shares[lane] = share;
        }
        at.advance(tiles.n * linear.n_pieces, a.n_stages);
    }
};

// The housekeeping warp: says that this block has read a mailbox, sets back the one before it once all blocks have said so, and brings operations.
__device__ __forceinline__ void keep_house(const StepArgs& a, u32 number, StepOperation* operations, StepPlan* plans, Planner planner, Progress& progress) {
    const u32 lane = threadIdx.x & 31;
    const u32 n_results = n_words_of_results(a), n_each = ((n_results + gridDim.x - 1) / gridDim.x + 3) / 4 * 4, first = blockIdx.x * n_each, end = min(n_results, first + n_each);
    const auto mailbox = [&](u32 index) { return a.mail + (u64)((number + index) % MAILBOXES) * a.mailbox_words; };
    for (u32 index = 0; index < a.n_operations; index++) {
        while (Progress::look_at(progress.n_read) < (index + 1) * STEP_WARPS) {}
        // Where the one before this one was, which has ended.
        const u32 coming = index + OPERATIONS_HELD - 1;
        if (coming < a.n_operations && lane < sizeof(StepOperation) / 16)
            ((uint4*)(operations + coming % OPERATIONS_HELD))[lane] = __ldg((const uint4*)(a.operations + coming) + lane);
        __syncwarp();
        if (coming < a.n_operations) planner.plan(operations[coming % OPERATIONS_HELD], plans[coming % OPERATIONS_HELD]);
        if (index > 0) {
            const u32* have_read = mailbox(index - 1) + n_results;
            for (u32 block = lane; block < gridDim.x; block += 32)
                while (look_at_word(have_read + block) == NOT_COME) {}
            __syncwarp();
        }
        __threadfence();
        // After all of the operation before have been seen: whoever sees this may set those back. The last operation's number is the next launch's.
        if (lane == 0 && index + 1 < a.n_operations)
            asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(mailbox(index) + n_results + blockIdx.x), "r"(1) : "memory");
        // What the first operation of a launch would set back, the last of the launch before has.
        if (index > 0) {
            u32* old = mailbox(index - 2);
            for (u32 word = first + lane * 4; word < end; word += 128)
                asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(old + word), "r"(NOT_COME) : "memory");
            if (lane == 0) asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(old + n_results + blockIdx.x), "r"(NOT_COME) : "memory");
        }
        __threadfence();
        __syncwarp();
        if (lane == 0) asm volatile("st.relaxed.cta.shared.u32 [%0], %1;" ::"r"((u32)__cvta_generic_to_shared(&progress.n_kept)), "r"(index + 1) : "memory");
    }
}

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 1) step_one(const StepArgs a) {
    extern __shared__ __align__(128) char shared[];
    __shared__ u64 full[STAGES_MAX], empty[STAGES_MAX];
    __shared__ StepOperation operations[OPERATIONS_HELD];
    __shared__ StepPlan plans[OPERATIONS_HELD];
    __shared__ StepScratch scratch;
    __shared__ Progress progress;
    const u32 room_of_ring = a.n_stages * a.stage_bytes;
    Ring ring{(u32)__cvta_generic_to_shared(shared), (u32)__cvta_generic_to_shared(full), (u32)__cvta_generic_to_shared(empty), 0, 0};
    const u32 n_pieces = sizeof(StepOperation) / 16;
    if (threadIdx.x == 0) {
        for (u32 slot = 0; slot < a.n_stages; slot++) {
            make_barrier(ring.full + slot * 8, a.scale_bytes > 0 ? 33 : 1);
            make_barrier(ring.empty + slot * 8, STAGE_PARTS);
        }
        progress.n_read = progress.n_kept = 0;
        progress.number = *a.n_sent % MAILBOXES + MAILBOXES;
        scratch.begin();
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    for (u32 piece = threadIdx.x; piece < min(OPERATIONS_HELD - 1u, a.n_operations) * n_pieces; piece += blockDim.x) ((uint4*)operations)[piece] = __ldg((const uint4*)a.operations + piece);
    __syncthreads();
    if (threadIdx.x >= STEP_THREADS + 32) {
        __syncthreads();
        return stream_weights(a, ring);
    }
    if (threadIdx.x >= STEP_THREADS) {
        Planner planner{a, ring, 0};
#pragma unroll 1
        for (u32 index = 0; index < min(OPERATIONS_HELD - 1u, a.n_operations); index++) planner.plan(operations[index], plans[index]);
        __syncthreads();
        return keep_house(a, progress.number, operations, plans, planner, progress);
    }
    __syncthreads();
    char *const scratch_of_operations = shared + room_of_ring, *const attention_room = shared + a.attention_room;
    const u32 item = blockIdx.x - a.first_attention;
    if (blockIdx.x >= a.n_product_blocks) {
#pragma unroll 1
        for (u32 index = 0; index < a.n_operations; index++) {
            const u32 what = plans[index % OPERATIONS_HELD].what;
            const StepAttention& attention = operations[index % OPERATIONS_HELD].attention;
            const Mail mail(a, index, progress);
            if (what == PLAN_ATTENTION_128) attend<128, true>(item, a.attention_tiles, attention, attention_room, mail);
            else if (what == PLAN_ATTENTION_64) attend<64, true>(item, a.attention_tiles, attention, attention_room, mail);
            else mail.pass();
        }
        return;
    }
#pragma unroll 1
    for (u32 index = 0; index < a.n_operations; index++) {
        u32 what = plans[index % OPERATIONS_HELD].what;
        // Products follow each other without the way around all else: their code is what is near.
#pragma unroll 1
        while (what == PLAN_PRODUCT) {
            const Mail mail(a, index, progress);
            multiply_row<false>(a, operations[index % OPERATIONS_HELD].linear, plans[index % OPERATIONS_HELD], scratch_of_operations, scratch, ring, mail);
            what = ++index == a.n_operations ? PLAN_NOTHING : plans[index % OPERATIONS_HELD].what;
        }
        if (index == a.n_operations) break;
        const StepOperation& operation = operations[index % OPERATIONS_HELD];
        const StepPlan& plan = plans[index % OPERATIONS_HELD];
        const Mail mail(a, index, progress);
        if (what == PLAN_PRODUCT_IN_GROUPS) multiply_row<true>(a, operation.linear, plan, scratch_of_operations, scratch, ring, mail);
        else if (what == PLAN_NOTHING) mail.pass();
        else if (what == PLAN_ATTENTION_128) attend<128, false>(item, a.attention_tiles, operation.attention, attention_room, mail);
        else if (what == PLAN_ATTENTION_64) attend<64, false>(item, a.attention_tiles, operation.attention, attention_room, mail);
        else if (what == PLAN_SCREEN) screen_head(a, operation.head, scratch_of_operations, scratch, Ring{ring.stages, ring.full, ring.empty, plan.slot, plan.parity}, mail);
        else best_of_head(a, operation.head, scratch_of_operations, scratch, mail);
    }
    // The last has not sent. All blocks have read theirs, since they have sent since.
    if (blockIdx.x == 0 && threadIdx.x == 0) *a.n_sent += a.n_operations - 1;
}

#else
// No bulk copies here: the host does not ask for this kernel.
extern "C" __global__ void step_one(const StepArgs a) {}
#endif
