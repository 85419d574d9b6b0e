// bit_linear for many tokens, int8, on the tensor cores: tiles of 128 out features × 128 tokens, activations and 2-bit weights staged by
// cp.async in shared memory, weights decoded in registers, four warps of 64 × 64.
#define TILE_ROWS 128
#define TILE_TOKENS 128
#define THREADS 128
#define X_BYTES (TILE_TOKENS * 256)
#define STAGE_BYTES (X_BYTES + TILE_ROWS * 64)

__device__ __forceinline__ void copy_async(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) bit_linear_many(const BitLinearMmaArgs a) {
    extern __shared__ char stages[];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, thread = lane & 3, line = lane >> 2;
    const u32 first_row = blockIdx.x * TILE_ROWS, first_token = blockIdx.y * TILE_TOKENS;
    const u32 shared = (u32)__cvta_generic_to_shared(stages);
    await_predecessors();
    admit_successor();

    // 16 bytes a thread: half a token row's blocks in turn. Odd tokens swap the halves of their row, so that two tokens fill all banks.
    auto load = [&](u32 block) {
        const u32 stage = shared + (block & 1) * STAGE_BYTES;
#pragma unroll
        for (int step = 0; step < X_BYTES / 16 / THREADS; step++) {
            const u32 index = step * THREADS + threadIdx.x, token = index / 16, piece = index % 16;
            const u32 read = first_token + token < a.m ? first_token + token : a.m - 1;
            copy_async(stage + token * 256 + ((piece ^ ((token & 1) << 2)) * 16), a.x + ((u64)read * a.n_blocks + block) * 256 + piece * 16);
        }
#pragma unroll
        for (int step = 0; step < TILE_ROWS * 4 / THREADS; step++) {
            const u32 index = step * THREADS + threadIdx.x, row = index / 4, piece = index % 4;
            const u32 read = first_row + row < a.n ? first_row + row : a.n - 1;
            copy_async(stage + X_BYTES + index * 16, a.words + ((u64)read * a.n_blocks + block) * 4 + piece);
        }
        asm volatile("cp.async.commit_group;");
    };

    const u32 warp_row = (warp & 1) * 64, warp_token = (warp >> 1) * 64;
    int sums[4][8][4] = {};
    load(0);
    for (u32 block = 0; block < a.n_blocks; block++) {
        asm volatile("cp.async.wait_group 0;");
        __syncthreads();
        if (block + 1 < a.n_blocks) load(block + 1);
        const char* stage = stages + (block & 1) * STAGE_BYTES;
        uint4 words[4][2];
#pragma unroll
        for (int tile = 0; tile < 4; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                words[tile][half] = *(const uint4*)(stage + X_BYTES + ((warp_row + tile * 16 + half * 8 + line) * 4 + thread) * 16);
#pragma unroll
        for (int chunk = 0; chunk < 4; chunk++) {
            u32 weights[2][4][4];
#pragma unroll
            for (int step = 0; step < 2; step++)
#pragma unroll
                for (int tile = 0; tile < 4; tile++) {
                    const u32 low = word_of(words[tile][0], chunk), high = word_of(words[tile][1], chunk);
                    weights[step][tile][0] = (low >> (4 * step)) & 0x03030303u;
                    weights[step][tile][1] = (high >> (4 * step)) & 0x03030303u;
                    weights[step][tile][2] = (low >> (4 * step + 2)) & 0x03030303u;
                    weights[step][tile][3] = (high >> (4 * step + 2)) & 0x03030303u;
                }
#pragma unroll
            for (int tokens = 0; tokens < 8; tokens++) {
                const u32 token = warp_token + tokens * 8 + line;
                const uint4 x = *(const uint4*)(stage + token * 256 + (((chunk * 4 + thread) ^ ((token & 1) << 2)) * 16));
#pragma unroll
                for (int tile = 0; tile < 4; tile++) {
                    multiply_codes(sums[tile][tokens], weights[0][tile], x.x, x.y);
                    multiply_codes(sums[tile][tokens], weights[1][tile], x.z, x.w);
                }
            }
        }
    }
#pragma unroll
    for (int tokens = 0; tokens < 8; tokens++)
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            const u32 token = first_token + warp_token + tokens * 8 + thread * 2 + odd;
            if (token >= a.m) continue;
            const float x_inverse_scale = a.x_inverse_scales[token];
            const int x_sum = a.x_sums[token];
#pragma unroll
            for (int tile = 0; tile < 4; tile++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const u32 row = first_row + warp_row + tile * 16 + half * 8 + line;
                    if (row >= a.n) continue;
                    // numerics::dequantise
                    const float y = dequantise(sums[tile][tokens][half * 2 + odd] - x_sum, a.scales[a.row_scales ? row : 0], x_inverse_scale);
                    float* out = a.out + (u64)token * a.width + row;
                    *out = a.add ? *out + y : y;
                }
        }
}
