// Weights from rows of natural 2-bit codes (code = trit + 1, four a byte) to the layouts of the products, once, at load.
struct PackArgs {
    const u8* codes;   // [n, row_bytes]
    u32* words;        // [n, n_blocks, 16]
    u32 n;
    u32 k;
    u32 row_bytes;
    u32 n_blocks;      // blocks of 256 columns, the last filled with zeros
};

__device__ __forceinline__ u32 code_at(const PackArgs& a, u64 row, u32 column) {
    return column < a.k ? (a.codes[row * a.row_bytes + column / 4] >> (2 * (column & 3))) & 3 : 0;
}

// For int8: word i of thread t (of four) of a block holds the 16 columns of chunk 4i + t: slot s of byte b is column 4s + b, so that a
// mask gives four neighbouring codes as bytes. A filling code is 0; its activation is 0, too.
extern "C" __global__ void __launch_bounds__(256) pack_int8(const PackArgs a) {
    const u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (u64)a.n * a.n_blocks * 16) return;
    const u64 row = index / (a.n_blocks * 16);
    const u32 place = index % (a.n_blocks * 16);
    const u32 thread = (place & 15) / 4, word_index = place & 3;
    const u32 first = (place / 16) * 256 + (word_index * 4 + thread) * 16;
    u32 word = 0;
    for (u32 slot = 0; slot < 4; slot++)
        for (u32 byte = 0; byte < 4; byte++) word |= code_at(a, row, first + 4 * slot + byte) << (8 * byte + 2 * slot);
    a.words[index] = word;
}

// For f32: word i of thread t holds lanes 4t..4t+4 of chunks 4i..4i+4, lowest bits first, as 0 (0), 1 (+1) and 3 (−1): the two bits at the
// top of a float are then 0, 2.0 and −2.0.
extern "C" __global__ void __launch_bounds__(256) pack_f32(const PackArgs a) {
    const u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (u64)a.n * a.n_blocks * 16) return;
    const u64 row = index / (a.n_blocks * 16);
    const u32 place = index % (a.n_blocks * 16);
    const u32 thread = (place & 15) / 4, word_index = place & 3;
    u32 word = 0;
    for (u32 part = 0; part < 16; part++) {
        const u32 column = (place / 16) * 256 + (word_index * 4 + part / 4) * 16 + thread * 4 + (part & 3);
        const u32 code = column < a.k ? code_at(a, row, column) : 1;
        word |= (code == 0 ? 3u : code == 1 ? 0u : 1u) << (2 * part);
    }
    a.words[index] = word;
}
