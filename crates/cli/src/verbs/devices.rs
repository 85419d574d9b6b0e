//! `bitnet devices`: what could compute here, which of it `--device auto` takes, and why the rest is not used.

use bitnet_device_cpu::{CpuDevice, CpuOptions};
use bitnet_device_cuda::{CudaDevice, CudaError, check_gpu, compiler_version, driver_version, gpus};
use bitnet_model::device::Device;
use clap::Args;

use crate::open::FIRST_GPU;
use crate::size;
use crate::table::Table;
use crate::terminal::{Output, Terminal};

/// List what can compute here, and why something is not used
#[derive(Debug, Args)]
pub(crate) struct DevicesArguments {}

/// Looks and prints.
pub(crate) fn perform(_arguments: &DevicesArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let mut table = Table::new(&["device", "what", "state"]);
    let gpu_rows = gpu_rows();
    let is_gpu_used = gpu_rows.iter().any(|row| row.is_used);
    for row in gpu_rows {
        table.row(vec!["cuda".into(), row.what, row.state]);
    }
    let cpu = CpuDevice::new(CpuOptions::default())?.describe();
    let state = if is_gpu_used { "works; --device cpu takes it" } else { "works; --device auto takes it" };
    table.row(vec!["cpu".into(), format!("{} with {} threads", cpu.isa, cpu.n_threads), state.into()]);
    table.row(vec!["reference".into(), "plain scalar code".into(), "works; slow, for checking".into()]);
    table.write(&mut Output, terminal)?;
    Ok(())
}

/// A GPU, or the one reason why there is none.
struct GpuRow {
    what: String,
    state: String,
    is_used: bool,
}

fn gpu_rows() -> Vec<GpuRow> {
    let gpus = match gpus() {
        Ok(gpus) => gpus,
        Err(error) => return vec![GpuRow { what: "no GPU".into(), state: format!("not used: {error}"), is_used: false }],
    };
    let driver = driver_version().map_or_else(|error| error.to_string(), |(major, minor)| format!("driver for CUDA {major}.{minor}"));
    let compiler = compiler_version().map_or_else(|error| error.to_string(), |(major, minor)| format!("compiler {major}.{minor}"));
    let row = |gpu: bitnet_device_cuda::GpuDescription| {
        let (major, minor) = gpu.capability;
        let memory = size::bytes(gpu.memory_bytes as u64);
        let what = format!("{}: {}, {memory}, compute capability {major}.{minor}; {driver}; {compiler}", gpu.ordinal, gpu.name);
        let (state, is_used) = match check_gpu(&gpu).and_then(|()| CudaDevice::new(gpu.ordinal)) {
            Ok(_) if gpu.ordinal == FIRST_GPU => ("works; --device auto takes it".into(), true),
            Ok(_) => (format!("works; --device cuda:{} takes it", gpu.ordinal), false),
            Err(error) => (format!("not used: {}", short(&error)), false),
        };
        GpuRow { what, state, is_used }
    };
    gpus.into_iter().map(row).collect()
}

/// A compiler's log is no cell of a table.
fn short(error: &CudaError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}
