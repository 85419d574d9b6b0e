//! Fuzz target: a GGUF file that is the input, opened through the file system and loaded whole under each order of I2_S codes, or
//! refused; memory in proportion to the file. What its vocabulary says is run in `gguf_vocabulary`.
#![no_main]

use bitnet_checkpoint::gguf::{GgufOptions, GgufSource, I2sChoice, I2sLayout};
use bitnet_fuzz::{models, within_budget};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let file = models::write(&[("model.gguf", input)]).join("model.gguf");
    // A one-bit type makes 32 times its bytes in decoded weights, held while they are packed.
    within_budget(input, 128, || {
        for i2s_layout in [I2sChoice::Detect, I2sChoice::Is(I2sLayout::Blocks64), I2sChoice::Is(I2sLayout::Rows4)] {
            let Ok(source) = GgufSource::open(&file, GgufOptions { i2s_layout }) else { return };
            source.config().validate().expect("an opened file has a valid configuration");
            for info in source.tensors() {
                let Ok(tensor) = source.load(&info.name) else { break };
                assert_eq!(tensor.shape(), info.shape, "{}", info.name);
            }
        }
    });
});
