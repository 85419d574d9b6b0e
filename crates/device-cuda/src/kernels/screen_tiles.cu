// Screened logits of several tokens on Hopper's tensor cores (wgmma, int8): 128 rows of the head × TOKENS tokens a block. Rows go from memory to the
// registers that wgmma reads, a stage of 256 columns ahead; tokens come by bulk copies into a ring of stages in shared memory (tiles, mma.cuh), in whose
// order of columns sixteen neighbouring ones are a thread's. Besides the logits it leaves each token's largest lower bound, and the largest upper
// bound of each sixteen rows, so that whoever looks for the best (`screen_best`) passes over most logits.
#define WARPGROUPS 2
#define THREADS (WARPGROUPS * 128)
#define STAGES_MAX 8
#define BLOCK_ROWS 128
#define BLOCK_COLUMNS 256

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What screening needs of a block's rows and tokens.
template <int TOKENS>
struct ScreenFacts {
    float4 tokens[TOKENS];
    float2 norms[BLOCK_ROWS];
    float scales[BLOCK_ROWS];
    int lowest[TOKENS];
};

template <int TOKENS>
struct ScreenTiles {
    static const int SEGMENT_BYTES = (TOKENS + TILE_TOKENS - 1) / TILE_TOKENS * TILE_BYTES;
    static const int STAGE_BYTES = 2 * SEGMENT_BYTES;
    static const int N_SUMS = TOKENS / 2;

    const ScreenArgs& a;
    u32 stages, full, empty;  // shared memory: the ring, and barriers of its stages
    u32 n_stages, n_blocks;
    ScreenFacts<TOKENS>& facts;

    __device__ __forceinline__ u32 first_row() const { return blockIdx.x * BLOCK_ROWS + threadIdx.x / 32 * 16; }

    // A stage is filled again two turns after it was read, so that the warpgroups need not keep step, where there are enough of them.
    __device__ __forceinline__ u32 n_ahead() const { return n_stages - (TOKENS > 128 ? 1 : 2); }

    // Starts to fetch the tokens' `turn`th block of columns; by one thread.
    __device__ __forceinline__ void fetch_stage(u32 turn) const {
        const u32 slot = turn % n_stages, round = turn / n_stages;
        if (turn >= n_blocks) return;
        if (round > 0) await(empty + slot * 8, (round - 1) & 1);
        expect_bytes(full + slot * 8, STAGE_BYTES);
#pragma unroll
        for (u32 segment = 0; segment < 2; segment++)
            fetch(stages + slot * STAGE_BYTES + segment * SEGMENT_BYTES, a.x + (u64)(turn * 2 + segment) * n_tiles_of(a.m) * TILE_BYTES, SEGMENT_BYTES, full + slot * 8);
    }

    __device__ __forceinline__ void load_words(uint4 (&words)[4][2], const uint4* const (&rows)[2], u32 block) const {
#pragma unroll
        for (int chunk = 0; chunk < 4; chunk++)
#pragma unroll
            for (int half = 0; half < 2; half++) words[chunk][half] = block < n_blocks ? __ldcs(rows[half] + block * 16 + chunk * 4) : make_uint4(0, 0, 0, 0);
    }

    __device__ __forceinline__ void multiply_stage(int (&sums)[N_SUMS], const uint4 (&words)[4][2], u32 stage) const {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int chunk = 0; chunk < 4; chunk++) {
            const u32 at = stage + chunk / 2 * SEGMENT_BYTES + chunk % 2 * 64;
            const u32 first[4] = {words[chunk][0].x, words[chunk][1].x, words[chunk][0].y, words[chunk][1].y};
            const u32 second[4] = {words[chunk][0].z, words[chunk][1].z, words[chunk][0].w, words[chunk][1].w};
            multiply_bytes(sums, first, describe(at));
            multiply_bytes(sums, second, describe(at + 32));
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    }

    __device__ __forceinline__ void run() const {
        const u32 lane = threadIdx.x & 31;
        int sums[N_SUMS] = {};
        const uint4* rows[2];
#pragma unroll
        for (int half = 0; half < 2; half++)
            rows[half] = (const uint4*)(a.quantized + (u64)min(first_row() + lane / 4 + half * 8, a.n - 1) * a.screen_stride) + (lane & 3);
        uint4 next[4][2];
        load_words(next, rows, 0);
        if (threadIdx.x < BLOCK_ROWS) {
            const u32 row = min(blockIdx.x * BLOCK_ROWS + threadIdx.x, a.n - 1);
            facts.scales[threadIdx.x] = __ldg(a.scales + row);
            facts.norms[threadIdx.x] = __ldg((const float2*)a.norms + row);
        }
        await_predecessors();
        if (threadIdx.x == 0)
            for (u32 turn = 0; turn < n_ahead(); turn++) fetch_stage(turn);
        for (u32 token = threadIdx.x; token < TOKENS; token += THREADS) {
            facts.lowest[token] = ordered(NEGATIVE_INFINITY);
            facts.tokens[token] = ((const float4*)a.tokens)[min(token, a.m - 1)];
        }
#pragma unroll 1
        for (u32 turn = 0; turn < n_blocks; turn++) {
            if (threadIdx.x == 0) fetch_stage(turn + n_ahead());
            uint4 words[4][2];
#pragma unroll
            for (int chunk = 0; chunk < 4; chunk++) words[chunk][0] = next[chunk][0], words[chunk][1] = next[chunk][1];
            load_words(next, rows, turn + 1);
            const u32 slot = turn % n_stages;
            await(full + slot * 8, turn / n_stages & 1);
            multiply_stage(sums, words, stages + slot * STAGE_BYTES);
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if ((threadIdx.x & 127) == 0) arrive(empty + slot * 8);
        }
        __syncthreads();
        store(sums);
        __syncthreads();
        for (u32 token = threadIdx.x; token < min((u32)TOKENS, a.m); token += THREADS) atomicMax(a.thresholds + token, facts.lowest[token]);
    }

    // Stores logits and bounds. A thread has two rows, eight apart, and two neighbouring tokens of each eight: two sums of the first row, two of the second.
    __device__ __forceinline__ void store(const int (&sums)[N_SUMS]) const {
        const u32 lane = threadIdx.x & 31, inside = threadIdx.x / 32 * 16 + lane / 4, row = first_row() + lane / 4;
        const float2 norms[2] = {facts.norms[inside], facts.norms[inside + 8]};
        const float scales[2] = {facts.scales[inside], facts.scales[inside + 8]};
#pragma unroll
        for (int index = 0; index < N_SUMS; index += 4) {
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                const u32 token = index / 4 * 8 + (lane & 3) * 2 + odd;
                const float4 of_token = facts.tokens[token];
                float low = NEGATIVE_INFINITY, high = NEGATIVE_INFINITY;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    if (row + half * 8 >= a.n) continue;
                    const float logit = (float)sums[index + half * 2 + odd] * (scales[half] * of_token.x), room = bound(norms[half], of_token, a.rounding);
                    if (token < a.m) a.out[(u64)token * a.n + row + half * 8] = logit;
                    low = fmaxf(low, logit - room);
                    high = fmaxf(high, logit + room);
                }
#pragma unroll
                for (int step = 4; step < 32; step *= 2) {
                    low = fmaxf(low, __shfl_xor_sync(FULL_WARP, low, step));
                    high = fmaxf(high, __shfl_xor_sync(FULL_WARP, high, step));
                }
                if (lane < 4 && token < a.m) {
                    atomicMax(&facts.lowest[token], ordered(low));
                    if (first_row() < a.n) a.uppers[(u64)token * ((a.n + 15) / 16) + first_row() / 16] = high;
                }
            }
        }
    }
};

template <int TOKENS>
__device__ __forceinline__ void screen_tiles_body(const ScreenArgs& a) {
    extern __shared__ __align__(1024) char stages[];
    __shared__ u64 full[STAGES_MAX], empty[STAGES_MAX];
    __shared__ ScreenFacts<TOKENS> facts;
    const ScreenTiles<TOKENS> tiles{
        a, (u32)__cvta_generic_to_shared(stages), (u32)__cvta_generic_to_shared(full), (u32)__cvta_generic_to_shared(empty), a.n_stages, a.screen_stride / BLOCK_COLUMNS, facts,
    };
    if (threadIdx.x == 0) {
        for (u32 slot = 0; slot < a.n_stages; slot++) {
            make_barrier(tiles.full + slot * 8, 1);
            make_barrier(tiles.empty + slot * 8, WARPGROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    admit_successor();
    __syncthreads();
    tiles.run();
}

#define SCREEN_TILES(tokens, blocks) \
    extern "C" __global__ void __launch_bounds__(THREADS, blocks) screen_tiles_##tokens(const ScreenArgs a) { screen_tiles_body<tokens>(a); }
#else
// No wgmma here: the host does not ask for these kernels.
#define SCREEN_TILES(tokens, blocks) \
    extern "C" __global__ void screen_tiles_##tokens(const ScreenArgs a) {}
#endif

SCREEN_TILES(16, 2)
SCREEN_TILES(32, 2)
SCREEN_TILES(64, 2)
SCREEN_TILES(128, 1)
SCREEN_TILES(256, 1)
