// embed: x[i] = table[token_ids[i]]. A thread a value.
struct EmbedArgs {
    const void* rows;       // dense [n_vocab, stride], or packed trits (pack.cu, pack_f32)
    const float* scales;    // of packed trits
    const u32* token_ids;   // [m]
    float* x;               // [m, k]
    u32 k;
    u32 stride;             // elements of a dense row, blocks of 256 columns of a packed one
    u32 kind;               // 0 f32, 1 f16, 2 bf16, 3 trits
    u32 group_size;         // columns that share a scale
    u32 n_groups;           // scales of a row; 0: one for the matrix
    u32 unused;
};

__device__ __forceinline__ float trit_at(const u32* words, u32 column) {
    // pack_f32: a block of 256 columns is four threads' words; thread t holds lanes 4t..4t+4 of 16 chunks.
    const u32 chunk = (column & 255) / LANES, lane = column & (LANES - 1);
    const u32 word = words[(column / 256) * 16 + (lane / 4) * 4 + chunk / 4];
    const u32 code = (word >> (((chunk & 3) * 4 + (lane & 3)) * 2)) & 3;
    return code == 0 ? 0.0f : code == 1 ? 1.0f : -1.0f;
}

extern "C" __global__ void __launch_bounds__(256) embed(const EmbedArgs a) {
    await_predecessors();
    admit_successor();
    const u64 row = a.token_ids[blockIdx.x];
    float* out = a.x + (u64)blockIdx.x * a.k;
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column < a.k) {
        float value;
        if (a.kind == 0) {
            value = ((const float*)a.rows)[row * a.stride + column];
        } else if (a.kind == 1) {
            value = as_float(((const Half*)a.rows)[row * a.stride + column]);
        } else if (a.kind == 2) {
            value = as_float(((const u16*)a.rows)[row * a.stride + column]);
        } else {
            const float scale = a.n_groups == 0 ? a.scales[0] : a.scales[row * a.n_groups + column / a.group_size];
            value = trit_at((const u32*)a.rows + row * a.stride * 16, column) * scale;
        }
        out[column] = value;
    }
}
