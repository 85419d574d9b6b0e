// bit_linear for one token, int8: norms, quantisation, product and epilogue in one kernel, and the gate behind it where there is one.
//
// Every block norms and quantises the row for itself, while its weights are on their way: they do not depend on the kernels before,
// so they are asked for before these have finished. No two blocks could share the norm without a barrier over the grid.
#define WARPS 8
#define PREFETCHED 4

struct BitLinearOneArgs {
    const float* x;        // [k], to be normed and quantised; null: `quantized`, `x_inverse_scale` and `x_sum` are given
    Norms norms;
    i8* quantized;         // [n_blocks · 256], zero beyond k: written by the first block if x is given
    float* x_inverse_scale; // [1], likewise
    int* x_sum;            // [1], Σ quantized, likewise
    const uint4* words;    // pack_int8: [n, n_blocks, 4]
    const float* scales;   // [1] or [n]
    float* out;            // row to write to, its first column
    float* gate_out;       // [n / 2]; where not null, rows r and n/2 + r are gate and up
    u32 n;
    u32 k;
    u32 n_blocks;          // blocks of 256 columns
    u32 row_scales;        // scales are one a row
    u32 add;               // out += instead of out =
    u32 activation;        // of the gate
};

// Bytes from one block of 256 activations to the next in shared memory: two neighbouring blocks lie in different banks.
#define X_BLOCK_BYTES 320

// Σ x · code over 16 columns of a word, by slots whose results are 1, 4, 16 and 64 times too large.
__device__ __forceinline__ void dot_word(u32 word, int4 x, int (&sums)[4]) {
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sums[0]) : "r"(word & 0x03030303u), "r"(x.x));
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sums[1]) : "r"(word & 0x0c0c0c0cu), "r"(x.y));
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sums[2]) : "r"(word & 0x30303030u), "r"(x.z));
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sums[3]) : "r"(word & 0xc0c0c0c0u), "r"(x.w));
}

__device__ __forceinline__ void dot_words(uint4 words, const i8* x, int (&sums)[4]) {
    dot_word(words.x, *(const int4*)x, sums);
    dot_word(words.y, *(const int4*)(x + 64), sums);
    dot_word(words.z, *(const int4*)(x + 128), sums);
    dot_word(words.w, *(const int4*)(x + 192), sums);
}

// What quantising the row gave.
struct Row {
    float inverse_scale;
    int sum;
};

// Norms and quantises x[k] into `quantized` (blocks of X_BLOCK_BYTES), by all threads.
__device__ __forceinline__ Row quantise_row(const BitLinearOneArgs& a, float* row, i8* quantized, float* scratch, float* chunks, int* integer_scratch) {
    if (a.x == nullptr) {
        for (u32 four = threadIdx.x; four < a.n_blocks * 64; four += blockDim.x)
            *(u32*)(quantized + (four / 64) * X_BLOCK_BYTES + (four % 64) * 4) = ((const u32*)a.quantized)[four];
        __syncthreads();
        return Row{*a.x_inverse_scale, *a.x_sum};
    }
    copy_row<WARPS * 32>(row, a.x, a.k);
    norm_block<WARPS * 32>(row, a.k, a.norms, chunks);
    const float largest = larger(1e-5f, largest_of_block(largest_of_thread<WARPS * 32>(row, a.k), scratch));
    const float inverse_scale = inverse_absmax_scale(largest);
    int sum = 0;
    const int n = n_turns(threadIdx.x, a.n_blocks * 64, WARPS * 32);
#pragma unroll 1
    for (int turn = 0; turn < n; turn++) {
        const u32 four = turn * WARPS * 32 + threadIdx.x;
        u32 packed = 0;
        const float4 values = four_of_row(row, four * 4, a.k);
        const float parts[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
        for (u32 part = 0; part < 4; part++) {
            const int q = quantise_one(parts[part], inverse_scale);
            sum += q;
            packed |= (u32)(q & 255) << (8 * part);
        }
        *(u32*)(quantized + (four / 64) * X_BLOCK_BYTES + (four % 64) * 4) = packed;
        if (blockIdx.x == 0) ((u32*)a.quantized)[four] = packed;
    }
    // Its barriers also publish `quantized`.
    sum = sum_of_block(sum, integer_scratch);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        *a.x_inverse_scale = inverse_scale;
        *a.x_sum = sum;
    }
    return Row{inverse_scale, sum};
}

// GROUPS × 4 threads share a row; PARTS is 2 where each row of a gate comes with its row of up.
template <int GROUPS, int PARTS>
__device__ __forceinline__ void bit_linear_one_body(const BitLinearOneArgs& a) {
    extern __shared__ float shared[];
    __shared__ float scratch[32];
    __shared__ __align__(16) float chunks[CHUNKS_MAX];
    __shared__ int integer_scratch[32];
    float* row = shared;
    i8* quantized = (i8*)(shared + (a.k + 3) / 4 * 4);
    const u32 lane = threadIdx.x & 31, thread = lane & 3, group = (lane >> 2) % GROUPS;
    const u32 rows_of_part = a.n / PARTS;
    const u32 out_row = (blockIdx.x * WARPS + threadIdx.x / 32) * (8 / GROUPS) + lane / (4 * GROUPS);
    const u32 read_row = out_row < rows_of_part ? out_row : rows_of_part - 1;
    const uint4* words[PARTS];
    uint4 held[PARTS][PREFETCHED];
    float weight_scales[PARTS], before[PARTS];
    admit_successor();
    if (a.x != nullptr) prefetch_norms(a.norms, a.k);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        words[part] = a.words + (u64)(part * rows_of_part + read_row) * a.n_blocks * 4 + thread;
#pragma unroll
        for (int step = 0; step < PREFETCHED; step++) {
            const u32 block = group + step * GROUPS;
            held[part][step] = block < a.n_blocks ? __ldg(words[part] + block * 4) : make_uint4(0, 0, 0, 0);
        }
    }
#pragma unroll
    for (int part = 0; part < PARTS; part++) weight_scales[part] = __ldg(a.scales + (a.row_scales ? part * rows_of_part + read_row : 0));
    await_predecessors();
#pragma unroll
    for (int part = 0; part < PARTS; part++) before[part] = a.add ? a.out[part * rows_of_part + read_row] : 0.0f;
    const Row quantised = quantise_row(a, row, quantized, scratch, chunks, integer_scratch);

    int sums[PARTS][4] = {};
    for (u32 first = group; first < a.n_blocks; first += PREFETCHED * GROUPS) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            uint4 next[PREFETCHED];
#pragma unroll
            for (int step = 0; step < PREFETCHED; step++) {
                const u32 block = first + (PREFETCHED + step) * GROUPS;
                next[step] = block < a.n_blocks ? __ldg(words[part] + block * 4) : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (int step = 0; step < PREFETCHED; step++) {
                const u32 block = first + step * GROUPS;
                if (block < a.n_blocks) dot_words(held[part][step], quantized + block * X_BLOCK_BYTES + thread * 16, sums[part]);
                held[part][step] = next[step];
            }
        }
    }
    float y[PARTS];
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int sum = sums[part][0] + (sums[part][1] >> 2) + (sums[part][2] >> 4) + (sums[part][3] >> 6);
#pragma unroll
        for (int step = 2 * GROUPS; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, step);
        const u32 row_index = part * rows_of_part + read_row;
        y[part] = dequantise(sum - quantised.sum, weight_scales[part], quantised.inverse_scale);
        if (lane % (4 * GROUPS) == 0 && out_row < rows_of_part) a.out[row_index] = a.add ? before[part] + y[part] : y[part];
    }
    if (PARTS == 2 && lane % (4 * GROUPS) == 0 && out_row < rows_of_part) {
        a.gate_out[out_row] = gated(a.activation, y[0], y[PARTS - 1]);
    }
}

#define BIT_LINEAR_ONE(name, groups, parts) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) name(const BitLinearOneArgs a) { bit_linear_one_body<groups, parts>(a); }

BIT_LINEAR_ONE(bit_linear_one_1, 1, 1)
BIT_LINEAR_ONE(bit_linear_one_2, 2, 1)
BIT_LINEAR_ONE(bit_linear_one_4, 4, 1)
BIT_LINEAR_ONE(bit_linear_one_8, 8, 1)
BIT_LINEAR_ONE(bit_linear_gate_one_1, 1, 2)
BIT_LINEAR_ONE(bit_linear_gate_one_2, 2, 2)
BIT_LINEAR_ONE(bit_linear_gate_one_4, 4, 2)
BIT_LINEAR_ONE(bit_linear_gate_one_8, 8, 2)
