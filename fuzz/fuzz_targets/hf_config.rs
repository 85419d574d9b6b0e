//! Fuzz target: a folder whose `config.json` is the input, beside the valid tensors that the first byte picks. A configuration that
//! is accepted must describe tensors that load; absurd shapes must be refused before anything of their size is allocated.
#![no_main]

use bitnet_checkpoint::Checkpoint;
use bitnet_fuzz::models::{self, MODELS};
use bitnet_fuzz::within_budget;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, config)) = input.split_first() else { return };
    let model = &MODELS[usize::from(choice) % MODELS.len()];
    let folder = models::write(&[("config.json", config), ("model.safetensors", model.tensors)]);
    // Both files count: the tensors are valid and may be loaded.
    within_budget(&[config, model.tensors].concat(), 64, || {
        let Ok(checkpoint) = Checkpoint::open(&folder) else { return };
        checkpoint.config().validate().expect("an opened checkpoint has a valid configuration");
        let _refusal = models::load_all(&checkpoint);
    });
});
