//! What a GPU cannot do is an error that names it, and no more than that: memory that is not there leaves the device as it was.

use bitnet_device_cuda::{CudaDevice, CudaOptions, TablePlace};
use bitnet_model::batch::{Batch, BatchSequence, BlockId, Rows};
use bitnet_model::device::{Device, DeviceError, KvLayout, KvType};
use bitnet_model::random::{RandomWeights, small_config};
use bitnet_model::{LoadError, Runner, RunnerOptions, TokenId, TransformerRunner};

use crate::gpu::device;

fn options(n_cached_tokens: usize) -> RunnerOptions {
    RunnerOptions { n_tokens_max: 64, n_cached_tokens, kv_type: KvType::F16 }
}

fn batch() -> Batch {
    let sequence = BatchSequence { n_tokens: 3, first_position: 0, block_table: vec![BlockId(0)], rows: Rows::Last };
    Batch { token_ids: [1, 2, 3].map(TokenId).to_vec(), sequences: vec![sequence] }
}

#[test]
fn cache_that_is_larger_than_the_gpu_is_refused_and_the_gpu_works_on() {
    let Some(mut device) = device() else { return };
    let memory_bytes = device.gpu().memory_bytes;
    let layout = KvLayout { n_layers: 64, n_kv_heads: 64, head_dim: 128, n_blocks: 200_000, kv_type: KvType::F32 };
    match device.kv_cache(layout).map(|_| ()) {
        Err(DeviceError::OutOfMemory { size_bytes, .. }) => assert!(size_bytes > memory_bytes, "{size_bytes} of {memory_bytes}"),
        other => panic!("{other:?}"),
    }
    let weights = RandomWeights::new(small_config(), 5);
    let mut runner = TransformerRunner::load(device, &weights, options(256), &mut |_| {}).expect("there is room for a small one");
    assert!(runner.step(&batch()).is_ok());
}

#[test]
fn model_whose_cache_does_not_fit_is_not_loaded() {
    let Some(device) = device() else { return };
    let n_bytes_each = small_config().n_layers * 2 * small_config().kv_size() * 2;
    let n_cached_tokens = 2 * device.gpu().memory_bytes / n_bytes_each;
    let loaded = TransformerRunner::load(device, &RandomWeights::new(small_config(), 5), options(n_cached_tokens), &mut |_| {});
    assert!(matches!(loaded.err(), Some(LoadError::Device(DeviceError::OutOfMemory { .. }))));
}

#[test]
fn table_on_the_host_changes_where_the_memory_is_and_no_logit() {
    let Some(on_gpu) = device() else { return };
    // Above 64 MiB, so that it is one of those that may stay on the host.
    let config = bitnet_checkpoint::ModelConfig { n_vocab: 600_000, ..small_config() };
    let weights = RandomWeights::new(config.clone(), 5);
    let on_host = CudaDevice::with_options(0, CudaOptions { table_place: TablePlace::Host }).expect("the GPU works");
    let load = |device| TransformerRunner::load(device, &weights, options(256), &mut |_| {}).expect("it fits");
    let (mut near, mut far) = (load(on_gpu), load(on_host));
    let (before, after) = (near.memory().expect("a GPU counts"), far.memory().expect("a GPU counts"));
    let table_bytes = (config.n_vocab * config.hidden_size * 2) as u64;
    assert!(table_bytes > 64 << 20, "{table_bytes} bytes");
    assert_eq!(before.used_bytes - after.used_bytes, table_bytes);
    assert_eq!(after.host_bytes - before.host_bytes, table_bytes);
    for rows in [Rows::Last, Rows::LastGreedy, Rows::All] {
        let mut batch = batch();
        batch.sequences[0].rows = rows;
        let (near, far) = (near.step(&batch).expect("valid"), far.step(&batch).expect("valid"));
        assert_eq!(near, far, "{rows:?}");
    }
}
