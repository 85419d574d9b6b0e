// The head of step.cu, where nobody looks at logits: the final norm and the screen of all rows (screen.cu has the idea), then the exact logits of those that may
// win, and the best of them. Each warp takes whole stages of the ring, of rows of the int8 copy; what is found of a row stays with its block.

#if __CUDA_ARCH__ >= 900

// What the two operations share in dynamic shared memory.
struct HeadRoom {
    i8* quantized;   // [screen_stride]
    float* normed;   // [n_blocks · 256]
    float* weights;  // likewise, of the norm
    float* uppers;   // [stages of the block, rows of a stage]: upper bounds
    u32* may_win;    // likewise: those that may be the largest
    __device__ __forceinline__ HeadRoom(char* from, const StepHead& head, u32 n_rows) {
        const u32 filled = head.n_blocks * 256;
        quantized = (i8*)from;
        normed = (float*)(from + filled);
        weights = normed + filled;
        uppers = weights + filled;
        may_win = (u32*)uppers + n_rows;
    }
};

// Which stages of rows a block has: every n_product_blocks-th.
struct MyRows {
    u32 n_stages, n_of_stage;
    __device__ __forceinline__ MyRows(const StepArgs& a, const StepHead& head) {
        n_of_stage = head.rows_of_stage;
        n_stages = blockIdx.x < a.n_product_blocks && blockIdx.x < head.n_stages ? (head.n_stages - 1 - blockIdx.x) / a.n_product_blocks + 1 : 0;
    }
    __device__ __forceinline__ u32 first_row(const StepArgs& a, u32 stage) const { return (stage * a.n_product_blocks + blockIdx.x) * n_of_stage; }
};

// The streaming warp.
__device__ __forceinline__ void stream_rows(const StepArgs& a, const StepHead& head, Ring& ring, u64 policy) {
    const MyRows rows(a, head);
    const u32 n = head.n, stride = head.screen_stride;
    const i8* from = head.quantized;
    for (u32 stage = 0; stage < rows.n_stages; stage++) {
        const u32 first = rows.first_row(a, stage), n_bytes = min(rows.n_of_stage, n - first) * stride, full = ring.full + ring.slot * 8;
        await(ring.empty + ring.slot * 8, ring.parity);
        if ((threadIdx.x & 31) == 0) {
            expect(full, n_bytes);
            fetch(ring.stages + ring.slot * a.stage_bytes, from + (u64)first * stride, n_bytes, full, policy);
        }
        __syncwarp();
        if (a.scale_bytes > 0) arrive_with_pieces(full);
        ring.advance(1, a.n_stages);
    }
}

// The sum over the computing warps of two numbers, for all of their threads. `scratch` is room for STEP_WARPS.
__device__ __forceinline__ float2 sums_of_step(float2 value, float2* scratch) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value.x += __shfl_xor_sync(FULL_WARP, value.x, step);
        value.y += __shfl_xor_sync(FULL_WARP, value.y, step);
    }
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = value;
    barrier_of_step();
    value = scratch[0];
#pragma unroll
    for (int warp = 1; warp < STEP_WARPS; warp++) value = make_float2(value.x + scratch[warp].x, value.y + scratch[warp].y);
    return value;
}

// The largest over the computing warps, for all of their threads; likewise.
__device__ __forceinline__ float largest_of_step(float value, float* scratch) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, step));
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = value;
    barrier_of_step();
    value = scratch[0];
#pragma unroll
    for (int warp = 1; warp < STEP_WARPS; warp++) value = fmaxf(value, scratch[warp]);
    return value;
}

// Norms the row and quantises it as screen_quantize does: its scale, and the norms of the row and of what is left of it, rounded up.
__device__ __forceinline__ float4 quantise_for_head(const StepHead& head, const HeadRoom& room, StepScratch& scratch, const Mail& mail) {
    const float infinite = __int_as_float(0x7f800000);
    const u32 k = head.k, n_blocks = head.n_blocks;
    StepRow<WIDE_CHUNKS> row;
    row.load_weights(head.norms.weights[0], k, room.weights);
    row.receive(mail.in, k);
    mail.have_read();
    row.norm_all(head.norms, k, scratch, room.weights);
    float largest = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < WIDE_CHUNKS; chunk++) {
        const u32 column = StepRow<WIDE_CHUNKS>::first_column() + chunk * StepRow<WIDE_CHUNKS>::STEP_COLUMNS;
        if (column >= n_blocks * 256) break;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float4 x = row.fours[chunk][half];
            *(float4*)(room.normed + column + half * 32) = x;
            // What is no number counts as infinite.
            const bool finite = fabsf(x.x) < infinite && fabsf(x.y) < infinite && fabsf(x.z) < infinite && fabsf(x.w) < infinite;
            largest = fmaxf(largest, finite ? StepRow<WIDE_CHUNKS>::largest_of_four(x) : infinite);
        }
    }
    largest = largest_of_step(largest, scratch.largest);
    const bool finite = largest < infinite;
    const float scale = finite ? largest / 127.0f : 0.0f, inverse_scale = scale > 1e-30f ? 127.0f / largest : 0.0f;
    float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll 1
    for (u32 turn = 0; turn < WIDE_CHUNKS; turn++) {
        // Of its own fours again: beyond the row they are zero.
        const u32 chunk = turn * STEP_WARPS + threadIdx.x / 32;
        if (chunk >= n_blocks) break;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 four = (chunk * CHUNK_COLUMNS + column_in_chunk()) / 4 + half * 8;
            const float4 x = ((const float4*)room.normed)[four];
            const float values[4] = {x.x, x.y, x.z, x.w};
            u32 bits = 0;
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const int q = finite ? quantise_one(values[part], inverse_scale) : 0;
                bits |= (u32)(q & 0xff) << (8 * part);
                const float rest = values[part] - q * scale;
                sums.x = __fmaf_rn(values[part], values[part], sums.x);
                sums.y = __fmaf_rn(rest, rest, sums.y);
            }
            ((u32*)room.quantized)[four] = bits;
        }
    }
    sums = sums_of_step(sums, scratch.pairs);
    // Sums of squares round by far less than a thousandth; the rest loses 2⁻²³ of a value.
    const float whole = sqrtf(sums.x) * 1.001f, left = sqrtf(sums.y) * 1.001f + whole * 1e-6f;
    return finite ? make_float4(scale, whole + 1e-30f, left + 1e-30f, 0.0f) : make_float4(0.0f, infinite, infinite, 0.0f);
}

// This block's rows: their upper bounds, and the largest lower bound to all others.
__device__ __noinline__ void screen_head(const StepArgs& a, const StepHead& head, char* shared, StepScratch& scratch, const Ring ring, const Mail mail) {
    const MyRows rows(a, head);
    const HeadRoom room(shared + 2 * a.sums_bytes, head, rows.n_stages * rows.n_of_stage);
    const u32 n = head.n, n_pieces = head.screen_stride / 16, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const float *scales = head.scales, rounding = head.rounding;
    const float2* row_norms = (const float2*)head.row_norms;
    const float4 token = quantise_for_head(head, room, scratch, mail);
    const u32 x = (u32)__cvta_generic_to_shared(room.quantized) + lane * 16;
    // Stages that follow each other in a slot of the ring are the same warp's, so that none takes one for another.
    Ring at = ring;
    float lowest = NEGATIVE_INFINITY;
#pragma unroll 1
    for (u32 stage = 0; stage < rows.n_stages; stage++, at.advance(1, a.n_stages)) {
        if (at.slot % STEP_WARPS != warp) continue;
        const u32 first = rows.first_row(a, stage), n_here = min(rows.n_of_stage, n - first), from = at.stages + at.slot * a.stage_bytes + lane * 16;
#pragma unroll 1
        for (u32 row = 0; row < n_here; row += 4) {
            // Lanes 0 to 3 have what is known of a row each.
            const u32 mine = min(row + (lane & 3), n_here - 1);
            const float scale = __ldg(scales + first + mine);
            const float2 norms = __ldg(row_norms + first + mine);
            if (row == 0) await(at.full + at.slot * 8, at.parity);
            int sums[4] = {};
            for (u32 piece = lane; piece < n_pieces; piece += 32) {
                const u32 offset = (piece - lane) * 16;
                const uint4 values = load_shared(x + offset);
#pragma unroll
                for (int part = 0; part < 4; part++) {
                    const uint4 weights = load_shared(from + min(row + part, n_here - 1) * n_pieces * 16 + offset);
                    sums[part] = __dp4a((int)weights.x, (int)values.x, sums[part]);
                    sums[part] = __dp4a((int)weights.y, (int)values.y, sums[part]);
                    sums[part] = __dp4a((int)weights.z, (int)values.z, sums[part]);
                    sums[part] = __dp4a((int)weights.w, (int)values.w, sums[part]);
                }
            }
#pragma unroll
            for (int part = 0; part < 4; part++) sums[part] = __reduce_add_sync(FULL_WARP, sums[part]);
            const int sum = (lane & 2) ? ((lane & 1) ? sums[3] : sums[2]) : ((lane & 1) ? sums[1] : sums[0]);
            const float logit = (float)sum * (scale * token.x), off = bound(norms, token, rounding);
            if (lane < 4 && row + lane < n_here) room.uppers[stage * rows.n_of_stage + row + lane] = logit + off;
            lowest = fmaxf(lowest, logit - off);
        }
        __syncwarp();
        if (lane == 0) arrive(at.empty + at.slot * 8, STAGE_PARTS);
    }
    // Rows beyond the last of the head cannot win.
    if (rows.n_stages > 0)
        for (u32 row = n - min(n, rows.first_row(a, rows.n_stages - 1)) + threadIdx.x; row < rows.n_of_stage; row += STEP_THREADS)
            room.uppers[(rows.n_stages - 1) * rows.n_of_stage + row] = NEGATIVE_INFINITY;
    barrier_of_step();
    lowest = largest_of_step(lowest, scratch.largest);
    mail.await_room();
    if (threadIdx.x == 0) mail.send_result(blockIdx.x, lowest);
}

// The exact logit of a row, by half a warp, in the order of numerics::dot: row and token are in shared memory.
template <typename Element>
__device__ __forceinline__ float dot_by_half(const float* x, const Element* row, u32 k) {
    float sum = 0.0f;
    const u32 first_column = threadIdx.x & (LANES - 1);
    const int n = n_turns(first_column, k, LANES);
#pragma unroll 8
    for (int turn = 0; turn < n; turn++) sum += x[turn * LANES + first_column] * as_float(row[turn * LANES + first_column]);
    return __shfl_sync(FULL_WARP, sum_lanes(sum), 0, LANES);
}

// The best of the rows whose upper bounds are not below the largest lower bound. The last block to find its own says which it is.
__device__ __noinline__ void best_of_head(const StepArgs& a, const StepHead& head, char* shared, StepScratch& scratch, const Mail mail) {
    const MyRows rows(a, head);
    const u32 n_rows = rows.n_stages * rows.n_of_stage, warp = threadIdx.x / 32, lane = threadIdx.x & 31, half = lane / LANES;
    const HeadRoom room(shared + 2 * a.sums_bytes, head, n_rows);
    const u32 k = head.k, dtype = head.dtype, row_bytes = head.row_bytes, exact_rows = head.exact_rows;
    const char* from = (const char*)head.rows;
    float threshold = NEGATIVE_INFINITY;
    for (u32 block = threadIdx.x; block < a.n_product_blocks; block += STEP_THREADS) {
        u32 bits;
        do bits = look_at_word(mail.in + block);
        while (bits == NOT_COME);
        threshold = fmaxf(threshold, __uint_as_float(bits));
    }
    mail.have_read();
    if (threadIdx.x == 0) scratch.n_kept = 0;
    barrier_of_step();
    threshold = largest_of_step(threshold, scratch.largest);
    for (u32 row = threadIdx.x; row < n_rows; row += STEP_THREADS)
        if (!(room.uppers[row] < threshold)) room.may_win[atomicAdd_block(&scratch.n_kept, 1)] = row;
    barrier_of_step();
    const u32 n_kept = scratch.n_kept;
    // Nothing is in the ring any more.
    const u32 slot = (warp * 2 + half) * row_bytes;
    char* to = shared - a.n_stages * a.stage_bytes + slot;
    u64 key = 0;
    bool damaged = false;
#pragma unroll 1
    for (u32 item = warp * 2 < exact_rows ? warp * 2 : n_kept; item < n_kept; item += exact_rows) {
        const u32 kept = room.may_win[min(item + half, n_kept - 1)], stage = kept / rows.n_of_stage, row = min(head.n - 1, rows.first_row(a, stage) + kept % rows.n_of_stage);
        for (u32 piece = lane & (LANES - 1); piece < row_bytes / 16; piece += LANES) fetch_piece((u32)__cvta_generic_to_shared(to) + piece * 16, from + (u64)row * row_bytes + piece * 16);
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncwarp();
        const float logit = dtype == 0 ? dot_by_half(room.normed, (const float*)to, k) : dtype == 1 ? dot_by_half(room.normed, (const Half*)to, k) : dot_by_half(room.normed, (const u16*)to, k);
        damaged |= is_damaged(logit);
        const u64 of_row = key_of(logit, row);
        key = of_row > key ? of_row : key;
        __syncwarp();
    }
    const u64 other = __shfl_xor_sync(FULL_WARP, key, LANES);
    key = other > key ? other : key;
    damaged = __any_sync(FULL_WARP, damaged);
    if (lane == 0) {
        scratch.keys[warp] = key;
        scratch.damaged[warp] = damaged;
    }
    barrier_of_step();
    if (threadIdx.x != 0) return;
    for (u32 of_warp = 1; of_warp < STEP_WARPS; of_warp++) {
        key = scratch.keys[of_warp] > key ? scratch.keys[of_warp] : key;
        damaged |= scratch.damaged[of_warp] != 0;
    }
    // Key, whether any is damaged, blocks that have said theirs: zero between launches.
    u64* found = head.found;
    if (key != 0) atomicMax(found, key);
    if (damaged) atomicMax(found + 1, (u64)1);
    __threadfence();
    if (atomicAdd(found + 2, (u64)1) + 1 < a.n_product_blocks) return;
    __threadfence();
    head.best[0] = atomicExch(found, (u64)0);
    head.best[1] = atomicExch(found + 1, (u64)0);
    found[2] = 0;
}

#endif
