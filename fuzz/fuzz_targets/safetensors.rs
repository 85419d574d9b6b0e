//! Fuzz target: a folder whose `model.safetensors` is the input, beside one of the valid `config.json` files that the first byte
//! picks. Opened and loaded whole, or refused; memory in proportion to the file.
#![no_main]

use bitnet_checkpoint::Checkpoint;
use bitnet_fuzz::models::{self, MODELS};
use bitnet_fuzz::within_budget;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, tensors)) = input.split_first() else { return };
    let model = &MODELS[usize::from(choice) % MODELS.len()];
    let folder = models::write(&[("config.json", model.config), ("model.safetensors", tensors)]);
    within_budget(input, 64, || {
        let _refusal = Checkpoint::open(&folder).and_then(|checkpoint| models::load_all(&checkpoint));
    });
});
