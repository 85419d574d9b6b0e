// bit_linear, int8, where no faster kernel fits the scales: weight scales for groups of columns, activation scales for the row
// (numerics::dequantise_groups) or for each 128 columns (numerics::dequantise_segments). Integers of a segment, the columns that share both scales, are
// exact; segments are added up ascending. One thread an output.
#define ACTIVATION_CHUNKS 8

struct BitLinearGroupedArgs {
    const i8* x;           // [m, n_blocks · 256]
    const float* x_scales; // [m, n_activation_groups]; inverse where there is one a row
    const u32* words;      // pack_int8: [n, n_blocks, 16]
    const float* scales;   // [n, n_groups]
    float* out;            // [m, width], first column
    u32 m;
    u32 n;
    u32 n_blocks;
    u32 n_groups;
    u32 group_chunks;        // chunks of 16 columns in a group of weights
    u32 n_activation_groups; // 0: one scale a row
    u32 width;
    u32 add;
    u32 in_tiles;            // x lies in tiles (mma.cuh), and so do scales of groups
    u32 unused;
};

// Sixteen columns of a token.
__device__ __forceinline__ int4 chunk_of(const BitLinearGroupedArgs& a, u32 token, u32 chunk) {
    if (!a.in_tiles) return *((const int4*)(a.x + (u64)token * a.n_blocks * 256) + chunk);
    int parts[4];
#pragma unroll
    for (u32 part = 0; part < 4; part++) parts[part] = *(const int*)(a.x + place_in_tiles(token, chunk * 16 + part * 4, a.m));
    return make_int4(parts[0], parts[1], parts[2], parts[3]);
}

extern "C" __global__ void __launch_bounds__(128) bit_linear_grouped(const BitLinearGroupedArgs a) {
    await_predecessors();
    admit_successor();
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x, token = blockIdx.y;
    if (row >= a.n) return;
    const u32* words = a.words + (u64)row * a.n_blocks * 16;
    const bool has_row_scale = a.n_activation_groups == 0;
    const u32 n_chunks = a.n_groups * a.group_chunks;
    float y = 0.0f;
    int sum = 0;
    for (u32 chunk = 0; chunk < n_chunks; chunk++) {
        const u32 inside = chunk & 15;
        const u32 word = words[(chunk / 16) * 16 + (inside & 3) * 4 + inside / 4];
        const int4 values = chunk_of(a, token, chunk);
        const int parts[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
        for (int slot = 0; slot < 4; slot++) {
            // Bytes 0, 1, 2 to -1, 0, 1 without a borrow between them.
            const u32 trits = ((((word >> (2 * slot)) & 0x03030303u) | 0x80808080u) - 0x01010101u) ^ 0x80808080u;
            sum = __dp4a((int)trits, parts[slot], sum);
        }
        const u32 next = chunk + 1;
        const bool ends = next % a.group_chunks == 0 || next == n_chunks || (!has_row_scale && next % ACTIVATION_CHUNKS == 0);
        if (!ends) continue;
        const float weight_scale = a.scales[(u64)row * a.n_groups + chunk / a.group_chunks];
        const u32 segment = chunk / ACTIVATION_CHUNKS;
        const u64 place = a.in_tiles ? segment_in_tiles(token, segment, a.m) : (u64)token * a.n_activation_groups + segment;
        y += (float)sum * (has_row_scale ? weight_scale : weight_scale * a.x_scales[place]);
        sum = 0;
    }
    if (has_row_scale) y = y / a.x_scales[token];
    float* out = a.out + (u64)token * a.width + row;
    *out = a.add ? *out + y : y;
}
