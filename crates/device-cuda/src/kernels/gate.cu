// gate: out[m, f] = activation(gate_up[:, ..f]) · gate_up[:, f..].
struct GateArgs {
    const float* gate_up;   // [m, 2·width]
    float* out;             // [m, width]
    u32 width;
    u32 activation;
};

extern "C" __global__ void __launch_bounds__(256) gate(const GateArgs a) {
    await_predecessors();
    admit_successor();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= a.width) return;
    const float* row = a.gate_up + (u64)blockIdx.y * 2 * a.width;
    a.out[(u64)blockIdx.y * a.width + column] = gated(a.activation, row[column], row[a.width + column]);
}
