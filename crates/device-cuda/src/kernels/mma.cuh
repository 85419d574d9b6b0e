// What the int8 kernels on the tensor cores share. Every file is compiled behind this one.

// bit_linear_few and bit_linear_many.
struct BitLinearMmaArgs {
    const i8* x;           // [m, n_blocks · 256]
    const float* x_inverse_scales; // [m]
    const int* x_sums;     // [m]
    const uint4* words;    // pack_int8: [n, n_blocks, 4]
    const float* scales;   // [1] or [n]
    float* out;            // [m, width], first column
    u32 m;
    u32 n;
    u32 n_blocks;
    u32 width;
    u32 row_scales;
    u32 add;
};

// sums[16 rows, 8 tokens] += codes[16, 32] · activations[32, 8], a warp together.
__device__ __forceinline__ void multiply_codes(int (&sums)[4], const u32 (&weights)[4], u32 x0, u32 x1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(x0), "r"(x1));
}

__device__ __forceinline__ u32 word_of(uint4 words, int index) {
    return index == 0 ? words.x : index == 1 ? words.y : index == 2 ? words.z : words.w;
}

// Quantised activations of several tokens as wgmma reads them (128-byte swizzle): tiles of 32 tokens × 128 columns, a row of 128 bytes for each
// token, whose pieces of 16 bytes are exchanged by the token's number, so that eight tokens' pieces lie in different banks. Columns stand in
// the order in which packed weights (pack_int8) give them to a product of 32. All tokens' tiles of 128 columns lie together, so that one copy fetches
// those of a product.
#define TILE_TOKENS 32
#define TILE_BYTES (TILE_TOKENS * 128)

__device__ __forceinline__ u32 n_tiles_of(u32 n_tokens) { return (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS; }

// Where four columns, the first a multiple of four, of a token of `n_tokens` lie.
__device__ __forceinline__ u64 place_in_tiles(u32 token, u32 column, u32 n_tokens) {
    const u32 four = column % 64 / 4, place = (four & 2) * 4 + (four & 1) * 4 + four / 4;
    const u64 tile = (u64)(column / 128) * n_tiles_of(n_tokens) + token / TILE_TOKENS;
    const u32 piece = column % 128 / 64 * 4 + place / 4;
    return tile * TILE_BYTES + token % TILE_TOKENS * 128 + (piece ^ (token & 7)) * 16 + place % 4 * 4;
}

// Where scale and sum of a segment of 128 columns of a token lie.
__device__ __forceinline__ u64 segment_in_tiles(u32 token, u32 segment, u32 n_tokens) {
    return (u64)segment * n_tiles_of(n_tokens) * TILE_TOKENS + token;
}
