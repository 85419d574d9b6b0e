//! Every operation of `CudaDevice` equals `ReferenceDevice` bit for bit, and published models give their golden outputs. Where there is
//! no GPU these tests say so and prove only that the kernels compile (`compile`).

mod compile;
mod conformance;
mod faults;
#[path = "../../../device-cpu/tests/it/golden.rs"]
mod golden;
mod gpu;
mod greedy;
mod long;
mod many;
mod parity;
