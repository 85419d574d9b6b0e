// final_norm: out[r] = rms_norm(x[rows[r]]). One block an output row.
#define THREADS 512

struct FinalNormArgs {
    const float* x;    // [m, k]
    const u32* rows;   // [n_rows]
    float* out;        // [n_rows, k]
    Norms norms;
    u32 k;
    u32 unused;
};

extern "C" __global__ void __launch_bounds__(THREADS) final_norm(const FinalNormArgs a) {
    extern __shared__ float row[];
    __shared__ __align__(16) float chunks[CHUNKS_MAX];
    prefetch_norms(a.norms, a.k);
    await_predecessors();
    admit_successor();
    const float* x = a.x + (u64)a.rows[blockIdx.x] * a.k;
    copy_row<THREADS>(row, x, a.k);
    norm_block<THREADS>(row, a.k, a.norms, chunks);
    float* out = a.out + (u64)blockIdx.x * a.k;
    for (u32 index = threadIdx.x; index < a.k; index += blockDim.x) out[index] = row[index];
}
