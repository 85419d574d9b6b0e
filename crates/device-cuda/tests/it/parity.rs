//! The published models, run on the GPU, give what an independent implementation gives, and the bits that the reference gives.

use bitnet_checkpoint::Checkpoint;
use bitnet_model::device::Device;
use bitnet_model::reference::ReferenceDevice;
use bitnet_model::{RunnerOptions, Session, TokenId, TransformerRunner};

use crate::golden::{Golden, Parity, fixture};
use crate::gpu::device;

fn session(device: impl Device + 'static, checkpoint: &Checkpoint) -> Session {
    let runner = TransformerRunner::load(device, checkpoint, RunnerOptions::single_sequence(512), &mut |_| {});
    Session::new(Box::new(runner.expect("the model loads")))
}

fn check(name: &str, path: &str) {
    let Some(device) = device() else { return };
    let checkpoint = Checkpoint::open(&fixture(path)).expect("the fixture opens");
    let mut session = session(device, &checkpoint);
    let parity = Parity::measure(&mut session, &Golden::read(name));
    println!("{name}: {parity:?}");
    assert!(parity.passes());
}

#[test]
fn tiny_llama_with_inverse_scales_matches_its_golden() {
    check("tiny-llama-bitlinear", "tiny-llama-bitlinear");
}

#[test]
fn tiny_qwen3_with_group_scales_matches_its_golden() {
    check("tiny-qwen3-group128", "tiny-qwen3-group128");
}

#[test]
fn tiny_bitnet_with_online_weights_matches_its_golden() {
    check("tiny-bitnet-online", "tiny-bitnet-online");
}

#[test]
fn tales_42m_matches_its_golden() {
    check("tales-42m", "../crates/cli/assets/tales-42m.gguf");
}

#[test]
fn tales_42m_gives_the_bits_of_the_reference() {
    let Some(device) = device() else { return };
    let checkpoint = Checkpoint::open(&fixture("../crates/cli/assets/tales-42m.gguf")).expect("the embedded model opens");
    let (mut ours, mut reference) = (session(device, &checkpoint), session(ReferenceDevice, &checkpoint));
    let prompt: Vec<TokenId> = (1..70).map(|index| TokenId(index * 37 % 4000)).collect();
    let equal = |ours: &[f32], reference: &[f32]| ours.iter().zip(reference).all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(equal(ours.prefill(&prompt).expect("fits"), reference.prefill(&prompt).expect("fits")), "prefill");
    for step in 0..6 {
        let token_id = TokenId(step * 101 + 5);
        assert!(equal(ours.decode(token_id).expect("fits"), reference.decode(token_id).expect("fits")), "decode {step}");
    }
}
