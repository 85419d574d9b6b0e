// Of bit_linear_tiles: what it is called with, and what becomes of scales.

// Where a block's rows have one scale, as those of one projection do, and all scales are ordinary, a product is an integer over its token's divisor, by
// a reciprocal that is found once (BlockScales); threads then keep the places that wgmma gives them, from the sums to the result. Otherwise results
// go through shared memory, and each is divided by itself.
struct BitLinearTilesArgs {
    const i8* x;           // tiles (mma.cuh): [2 · n_blocks, n_tiles]; a block of tokens may read beyond the last of them
    const float* x_scales; // inverse, [m]; or of groups, tiled [2 · n_blocks, n_tiles, 32]
    const int* x_sums;     // likewise
    const uint4* words;    // pack_int8: [n, n_blocks, 4]
    const float* scales;   // [1], [n] or [n, n_groups]
    float* out;            // [m, width], first column
    u32 m;
    u32 n;
    u32 n_blocks;
    u32 width;
    u32 n_groups;          // weight scales of a row; 0: one for the matrix
    u32 group_segments;    // segments of 128 columns that share a weight scale
    u32 add;
    u32 activation;        // of the gate
    u32 n_splits;          // blocks of a cluster
    u32 unused;
};

// Scales of a block, and what becomes of them: of gate and up apart.
template <int TOKENS, int BLOCK_ROWS, int KINDS>
struct BlockScales {
    float of_rows[BLOCK_ROWS];
    float x_inverse[TOKENS];
    int x_sums[TOKENS];
    // By which a token's integers are divided, the reciprocal, and what makes a float of an integer less the token's sum.
    float divisors[KINDS][TOKENS];
    float reciprocals[KINDS][TOKENS];
    int biases[TOKENS];
};
