// bit_linear, int8 with a scale for each group of columns: integers of a group are exact, groups are added up ascending
// (numerics::dequantise). One thread an output.
struct BitLinearGroupedArgs {
    const i8* x;           // [m, n_blocks · 256]
    const float* x_scales; // [m]
    const u32* words;      // pack_int8: [n, n_blocks, 16]
    const float* scales;   // [n, n_groups]
    float* out;            // [m, width], first column
    u32 m;
    u32 n;
    u32 n_blocks;
    u32 n_groups;
    u32 group_chunks;      // chunks of 16 columns in a group
    u32 width;
    u32 add;
    u32 unused;
};

extern "C" __global__ void __launch_bounds__(128) bit_linear_grouped(const BitLinearGroupedArgs a) {
    await_predecessors();
    admit_successor();
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x, token = blockIdx.y;
    if (row >= a.n) return;
    const u32* words = a.words + (u64)row * a.n_blocks * 16;
    const int4* x = (const int4*)(a.x + (u64)token * a.n_blocks * 256);
    float y = 0.0f;
    for (u32 group = 0; group < a.n_groups; group++) {
        int sum = 0;
        for (u32 chunk = group * a.group_chunks; chunk < (group + 1) * a.group_chunks; chunk++) {
            const u32 inside = chunk & 15;
            const u32 word = words[(chunk / 16) * 16 + (inside & 3) * 4 + inside / 4];
            const int4 values = x[chunk];
            const int parts[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
            for (int slot = 0; slot < 4; slot++) {
                // Bytes 0, 1, 2 to -1, 0, 1 without a borrow between them.
                const u32 trits = ((((word >> (2 * slot)) & 0x03030303u) | 0x80808080u) - 0x01010101u) ^ 0x80808080u;
                sum = __dp4a((int)trits, parts[slot], sum);
            }
        }
        y += (float)sum * a.scales[(u64)row * a.n_groups + group];
    }
    y = y * a.x_scales[token];
    float* out = a.out + (u64)token * a.width + row;
    *out = a.add ? *out + y : y;
}
