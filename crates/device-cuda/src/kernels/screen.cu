// The largest logits of a dense head without reading all of it: an int8 copy of the head says which rows can win, and only those are
// multiplied exactly, in the order of numerics::dot. All others become −∞.
//
// A row w is s·q + r, a token x is t·p + e (q, p integers). So |w·x − s·t·(q·p)| ≤ ‖r‖‖x‖ + ‖s·q‖‖e‖, to which comes what the exact sum itself
// rounds: at most (k/16 + 5)·2⁻²⁴·‖w‖‖x‖. Norms are measured and rounded up. A row is out if its upper bound is below the largest lower bound.
// Non-finite rows and tokens have infinite bounds, so they are never out.
#define WARPS 8
// Bytes of a row of the head that half a warp has in shared memory.
#define EXACT_BYTES 2560
// Groups of sixteen rows that a block of `screen_best` looks at.
#define GROUPS_MAX 1024

struct ScreenPackArgs {
    const void* head;     // [n, stride]
    i8* quantized;        // [n, screen_stride], zero beyond k
    float* scales;        // [n]
    float* norms;         // [n, 2]: ‖w‖, ‖r‖, rounded up
    u32 n;
    u32 k;
    u32 stride;
    u32 screen_stride;
};

struct ScreenQuantizeArgs {
    const float* x;       // [m, k]
    i8* quantized;        // [m, screen_stride], zero beyond k
    float* tokens;        // [m, 4]: scale, ‖x‖, ‖e‖, nothing
    int* thresholds;      // [m]: largest lower bound, as an ordered integer; set to that of −∞
    u32 k;
    u32 screen_stride;
    u32 in_tiles;         // quantized lies in tiles (mma.cuh)
    u32 unused;
};

struct ScreenExactArgs {
    const float* x;       // [m, k]
    const void* head;     // [n, stride]
    const float* norms;   // [n, 2]
    const float* tokens;  // [m, 4]
    const int* thresholds;
    float* out;           // [m, n]
    u32 n;
    u32 k;
    u32 stride;
    float rounding;
    const float* uppers;  // [m, ⌈n / 16⌉] and
    u64* best;            // [m, 2], as for argmax: of `screen_best`
};

__device__ __forceinline__ float sum_of_block(float value, float* scratch) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(FULL_WARP, value, step);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = scratch[0];
    for (u32 warp = 1; warp < blockDim.x / 32; warp++) value += scratch[warp];
    return value;
}

// A block quantises one row: the scale, and the norms of the row and of what is left of it, rounded up. `place_of` says where a column goes.
template <typename Element, typename PlaceOf>
__device__ __forceinline__ float3 quantise_for_screen(const Element* row, u32 k, u32 stride, PlaceOf place_of) {
    __shared__ float scratch[32];
    const int n = n_turns(threadIdx.x, k, WARPS * 32), n_filled = n_turns(threadIdx.x, stride, WARPS * 32);
    float largest = 0.0f;
    bool finite = true;
#pragma unroll 8
    for (int turn = 0; turn < n; turn++) {
        const float value = fabsf(as_float(row[turn * WARPS * 32 + threadIdx.x]));
        finite &= value < __int_as_float(0x7f800000);
        largest = larger(largest, value);
    }
    largest = largest_of_block(largest, scratch);
    finite = __syncthreads_and(finite);
    const float scale = finite ? largest / 127.0f : 0.0f;
    const float inverse_scale = scale > 1e-30f ? 127.0f / largest : 0.0f;
    float whole = 0.0f, left = 0.0f;
#pragma unroll 8
    for (int turn = 0; turn < n_filled; turn++) {
        const u32 column = turn * WARPS * 32 + threadIdx.x;
        const float value = column < k ? as_float(row[column]) : 0.0f;
        const int q = finite ? quantise_one(value, inverse_scale) : 0;
        *place_of(column) = q;
        const float rest = value - q * scale;
        whole = __fmaf_rn(value, value, whole);
        left = __fmaf_rn(rest, rest, left);
    }
    // Sums of squares round by far less than a thousandth; the rest loses 2⁻²³ of a value.
    whole = sqrtf(sum_of_block(whole, scratch)) * 1.001f;
    left = sqrtf(sum_of_block(left, scratch)) * 1.001f + whole * 1e-6f;
    const float infinite = __int_as_float(0x7f800000);
    return finite ? make_float3(scale, whole + 1e-30f, left + 1e-30f) : make_float3(0.0f, infinite, infinite);
}

template <typename Element>
__device__ __forceinline__ void screen_pack_body(const ScreenPackArgs& a) {
    await_predecessors();
    const u32 row = blockIdx.x;
    const Element* from = (const Element*)a.head + (u64)row * a.stride;
    i8* to = a.quantized + (u64)row * a.screen_stride;
    const float3 result = quantise_for_screen(from, a.k, a.screen_stride, [&](u32 column) { return to + column; });
    if (threadIdx.x == 0) {
        a.scales[row] = result.x;
        a.norms[row * 2] = result.y;
        a.norms[row * 2 + 1] = result.z;
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_pack_f32(const ScreenPackArgs a) { screen_pack_body<float>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_pack_f16(const ScreenPackArgs a) { screen_pack_body<Half>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_pack_bf16(const ScreenPackArgs a) { screen_pack_body<u16>(a); }

extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_quantize(const ScreenQuantizeArgs a) {
    await_predecessors();
    admit_successor();
    const u32 token = blockIdx.x;
    const float3 result = quantise_for_screen(a.x + (u64)token * a.k, a.k, a.screen_stride, [&](u32 column) {
        const u64 in_tiles = place_in_tiles(token, column & ~3u, gridDim.x) + (column & 3);
        return a.quantized + (a.in_tiles ? in_tiles : (u64)token * a.screen_stride + column);
    });
    if (threadIdx.x == 0) {
        ((float4*)a.tokens)[token] = make_float4(result.x, result.y, result.z, 0.0f);
        a.thresholds[token] = ordered(NEGATIVE_INFINITY);
    }
}

// One token: a warp takes ROWS rows at a time.
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_one(const ScreenArgs a) {
    const int ROWS = 4;
    extern __shared__ uint4 x[];
    __shared__ float scratch[32];
    const u32 lane = threadIdx.x & 31, pieces = a.screen_stride / 16;
    admit_successor();
    const u32 first = (blockIdx.x * WARPS + threadIdx.x / 32) * ROWS;
    const uint4* rows[ROWS];
    uint4 held[ROWS][2];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        rows[r] = (const uint4*)(a.quantized + (u64)min(first + r, a.n - 1) * a.screen_stride);
#pragma unroll
        for (int step = 0; step < 2; step++) held[r][step] = lane + step * 32 < pieces ? __ldcs(rows[r] + lane + step * 32) : make_uint4(0, 0, 0, 0);
    }
    await_predecessors();
    for (u32 piece = threadIdx.x; piece < pieces; piece += blockDim.x) x[piece] = ((const uint4*)a.x)[piece];
    __syncthreads();
    int sums[ROWS] = {};
    for (u32 piece = lane; piece < pieces; piece += 64) {
#pragma unroll
        for (int step = 0; step < 2; step++) {
            if (piece + step * 32 >= pieces) break;
            const uint4 values = x[piece + step * 32];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const uint4 weights = held[r][step];
                if (piece + step * 32 + 64 < pieces) held[r][step] = __ldcs(rows[r] + piece + step * 32 + 64);
                sums[r] = __dp4a((int)weights.x, (int)values.x, sums[r]);
                sums[r] = __dp4a((int)weights.y, (int)values.y, sums[r]);
                sums[r] = __dp4a((int)weights.z, (int)values.z, sums[r]);
                sums[r] = __dp4a((int)weights.w, (int)values.w, sums[r]);
            }
        }
    }
    const float4 token = *(const float4*)a.tokens;
    float lowest = NEGATIVE_INFINITY;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int sum = __reduce_add_sync(FULL_WARP, sums[r]);
        if (first + r >= a.n) continue;
        const float logit = (float)sum * (a.scales[first + r] * token.x);
        if (lane == 0) a.out[first + r] = logit;
        lowest = fmaxf(lowest, logit - bound(((const float2*)a.norms)[first + r], token, a.rounding));
    }
    lowest = largest_of_block(lowest, scratch);
    if (threadIdx.x == 0) atomicMax(a.thresholds, ordered(lowest));
}

__device__ __forceinline__ void multiply(int (&sums)[4], const u32 (&weights)[4], u32 x0, u32 x1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(x0), "r"(x1));
}

// Up to TOKEN_TILES · 8 tokens: a warp takes 32 rows.
template <int TOKEN_TILES>
__device__ __forceinline__ void screen_few_body(const ScreenArgs& a) {
    __shared__ int lowest[TOKEN_TILES * 8];
    const u32 lane = threadIdx.x & 31, thread = lane & 3, line = lane >> 2;
    const u32 first_row = (blockIdx.x * WARPS + threadIdx.x / 32) * 32, first_token = blockIdx.y * TOKEN_TILES * 8;
    const i8* rows[2][2];
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            rows[tile][half] = a.quantized + (u64)min(first_row + tile * 16 + half * 8 + line, a.n - 1) * a.screen_stride + thread * 16;
    const i8* x[TOKEN_TILES];
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++)
        x[tile] = a.x + (u64)min(first_token + tile * 8 + line, a.m - 1) * a.screen_stride + thread * 16;
    if (threadIdx.x < TOKEN_TILES * 8) lowest[threadIdx.x] = ordered(NEGATIVE_INFINITY);
    admit_successor();
    await_predecessors();
    __syncthreads();
    int sums[2][TOKEN_TILES][4] = {};
#pragma unroll 2
    for (u32 column = 0; column < a.screen_stride; column += 64) {
        uint4 weights[2][2], values[TOKEN_TILES];
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) weights[tile][half] = __ldg((const uint4*)(rows[tile][half] + column));
#pragma unroll
        for (int tile = 0; tile < TOKEN_TILES; tile++) values[tile] = *(const uint4*)(x[tile] + column);
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            const u32 first[4] = {weights[tile][0].x, weights[tile][1].x, weights[tile][0].y, weights[tile][1].y};
            const u32 second[4] = {weights[tile][0].z, weights[tile][1].z, weights[tile][0].w, weights[tile][1].w};
#pragma unroll
            for (int tokens = 0; tokens < TOKEN_TILES; tokens++) {
                multiply(sums[tile][tokens], first, values[tokens].x, values[tokens].y);
                multiply(sums[tile][tokens], second, values[tokens].z, values[tokens].w);
            }
        }
    }
#pragma unroll
    for (int tokens = 0; tokens < TOKEN_TILES; tokens++)
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            const u32 inside = tokens * 8 + thread * 2 + odd, token = first_token + inside;
            const float4 facts = ((const float4*)a.tokens)[min(token, a.m - 1)];
            float best = NEGATIVE_INFINITY;
#pragma unroll
            for (int tile = 0; tile < 2; tile++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const u32 row = first_row + tile * 16 + half * 8 + line;
                    if (row >= a.n || token >= a.m) continue;
                    const float logit = (float)sums[tile][tokens][half * 2 + odd] * (a.scales[row] * facts.x);
                    a.out[(u64)token * a.n + row] = logit;
                    best = fmaxf(best, logit - bound(((const float2*)a.norms)[row], facts, a.rounding));
                }
#pragma unroll
            for (int step = 4; step < 32; step *= 2) best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, step));
            if (line == 0) atomicMax(&lowest[inside], ordered(best));
        }
    __syncthreads();
    if (threadIdx.x < TOKEN_TILES * 8 && first_token + threadIdx.x < a.m) atomicMax(a.thresholds + first_token + threadIdx.x, lowest[threadIdx.x]);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_few_1(const ScreenArgs a) { screen_few_body<1>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_few_2(const ScreenArgs a) { screen_few_body<2>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_few_4(const ScreenArgs a) { screen_few_body<4>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_few_8(const ScreenArgs a) { screen_few_body<8>(a); }

// The exact logit of a row, by half a warp, whose first lane gets it. The row comes through shared memory, EXACT_BYTES at a time, in copies that are on
// their way together: read where they are needed, weights would wait for memory at each few links, whatever the loop says.
template <typename Element>
__device__ __forceinline__ float exact_logit(const ScreenExactArgs& a, const float* x, u32 row) {
    extern __shared__ __align__(16) char rows[];
    const u32 lane = threadIdx.x & (LANES - 1), n_bytes = a.k * (u32)sizeof(Element);
    const char* head = (const char*)a.head + (u64)row * a.stride * sizeof(Element);
    const Element* held = (const Element*)(rows + threadIdx.x / LANES * EXACT_BYTES);
    const u32 to = (u32)__cvta_generic_to_shared(held);
    const bool is_aligned = a.stride * sizeof(Element) % 16 == 0;
    float sum = 0.0f;
    for (u32 first = 0; first < n_bytes; first += EXACT_BYTES) {
        const u32 end = min((u32)EXACT_BYTES, n_bytes - first);
        if (is_aligned) {
            for (u32 place = lane * 16; place < end; place += LANES * 16)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + place), "l"(head + first + place) : "memory");
            asm volatile("cp.async.wait_all;" ::: "memory");
        } else {
            for (u32 index = lane; index < end / sizeof(Element); index += LANES) ((Element*)held)[index] = ((const Element*)(head + first))[index];
        }
        __syncwarp();
        const float* of_x = x + first / sizeof(Element) + lane;
        const int n = n_turns(lane, end / sizeof(Element), LANES);
#pragma unroll 8
        for (int turn = 0; turn < n; turn++) sum += of_x[turn * LANES] * as_float(held[turn * LANES + lane]);
        __syncwarp();
    }
    return sum_lanes(sum);
}

// A warp looks at 32 rows of one token; each half of it multiplies one row that may win.
template <typename Element>
__device__ __forceinline__ void screen_exact_body(const ScreenExactArgs& a) {
    await_predecessors();
    admit_successor();
    const u32 lane = threadIdx.x & 31, token = blockIdx.y, half = lane / LANES;
    const u32 part = (blockIdx.x * WARPS + threadIdx.x / 32) * 32;
    if (part >= a.n) return;
    const float4 facts = ((const float4*)a.tokens)[token];
    const float threshold = from_ordered(a.thresholds[token]);
    const float* x = a.x + (u64)token * a.k;
    float* out = a.out + (u64)token * a.n;
    const u32 row = part + lane;
    bool may_win = false;
    if (row < a.n) {
        may_win = !(out[row] + bound(((const float2*)a.norms)[row], facts, a.rounding) < threshold);
        if (!may_win) out[row] = NEGATIVE_INFINITY;
    }
    u32 left = __ballot_sync(FULL_WARP, may_win);
    while (left != 0) {
        const u32 low = __ffs(left) - 1;
        left &= left - 1;
        const u32 high = left == 0 ? low : __ffs(left) - 1;
        left &= left - 1;
        const u32 winner = part + (half == 0 ? low : high);
        const float sum = exact_logit<Element>(a, x, winner);
        if ((lane & (LANES - 1)) == 0) out[winner] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_exact_f32(const ScreenExactArgs a) { screen_exact_body<float>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_exact_f16(const ScreenExactArgs a) { screen_exact_body<Half>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_exact_bf16(const ScreenExactArgs a) { screen_exact_body<u16>(a); }

// The best of a token without its logits: blocks share a token's groups of sixteen rows; of those that may hold it, warps multiply each row that may win.
template <typename Element>
__device__ __forceinline__ void screen_best_body(const ScreenExactArgs& a) {
    __shared__ u32 kept[GROUPS_MAX];
    __shared__ u32 n_kept;
    __shared__ u64 keys[WARPS];
    if (threadIdx.x == 0) n_kept = 0;
    __syncthreads();
    await_predecessors();
    admit_successor();
    const u32 lane = threadIdx.x & 31, token = blockIdx.y, n_groups = (a.n + 15) / 16, n_each = (n_groups + gridDim.x - 1) / gridDim.x;
    const u32 first = blockIdx.x * n_each, end = min(n_groups, first + n_each);
    const float4 facts = ((const float4*)a.tokens)[token];
    const float threshold = from_ordered(a.thresholds[token]);
    const float* x = a.x + (u64)token * a.k;
#pragma unroll 4
    for (u32 group = first + threadIdx.x; group < end; group += WARPS * 32)
        if (!(a.uppers[(u64)token * n_groups + group] < threshold)) kept[atomicAdd(&n_kept, 1)] = group;
    __syncthreads();
    u64 key = 0;
    bool damaged = false;
    for (u32 item = threadIdx.x / 32; item < n_kept; item += WARPS) {
        const u32 first_row = kept[item] * 16, row = first_row + (lane & 15);
        const bool may_win = lane < 16 && row < a.n && !(a.out[(u64)token * a.n + row] + bound(((const float2*)a.norms)[row], facts, a.rounding) < threshold);
        u32 left = __ballot_sync(FULL_WARP, may_win);
        while (left != 0) {
            const u32 low = __ffs(left) - 1;
            left &= left - 1;
            const u32 high = left == 0 ? low : __ffs(left) - 1;
            left &= left - 1;
            const u32 winner = first_row + (lane < 16 ? low : high);
            const float logit = __shfl_sync(FULL_WARP, exact_logit<Element>(a, x, winner), 0, LANES);
            damaged |= is_damaged(logit);
            const u64 of_winner = key_of(logit, winner);
            key = of_winner > key ? of_winner : key;
        }
    }
    keep_best(a.best + token * 2, key, damaged, keys);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_best_f32(const ScreenExactArgs a) { screen_best_body<float>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_best_f16(const ScreenExactArgs a) { screen_best_body<Half>(a); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) screen_best_bf16(const ScreenExactArgs a) { screen_best_body<u16>(a); }
