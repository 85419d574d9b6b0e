//! The published models, run by us, give what an independent implementation gives; and a model with a planted bug does not.

use bitnet_checkpoint::config::Activation;
use bitnet_checkpoint::{Checkpoint, CheckpointError, ModelConfig, StoredTable, Tensor};
use bitnet_device_cpu::{CpuDevice, CpuOptions};
use bitnet_model::{RunnerOptions, Session, TransformerRunner, WeightSource};
use bitnet_ternary::TernaryMatrix;

use crate::golden::{Golden, Parity, fixture};

fn session(source: &dyn WeightSource) -> Session {
    let device = CpuDevice::new(CpuOptions::default()).expect("a CPU");
    let options = RunnerOptions::single_sequence(512);
    Session::new(Box::new(TransformerRunner::load(device, source, options, &mut |_| {}).expect("the model loads")))
}

fn parity_of(name: &str) -> Parity {
    let checkpoint = Checkpoint::open(&fixture(name)).expect("the fixture opens");
    let parity = Parity::measure(&mut session(&checkpoint), &Golden::read(name));
    println!("{name}: {parity:?}");
    parity
}

#[test]
fn tiny_llama_with_inverse_scales_matches_its_golden() {
    assert!(parity_of("tiny-llama-bitlinear").passes());
}

#[test]
fn tiny_qwen3_with_group_scales_matches_its_golden() {
    assert!(parity_of("tiny-qwen3-group128").passes());
}

#[test]
fn tiny_bitnet_with_online_weights_matches_its_golden() {
    assert!(parity_of("tiny-bitnet-online").passes());
}

#[test]
fn tales_42m_matches_its_golden() {
    let checkpoint = Checkpoint::open(&fixture("../crates/cli/assets/tales-42m.gguf")).expect("the embedded model opens");
    let parity = Parity::measure(&mut session(&checkpoint), &Golden::read("tales-42m"));
    println!("tales-42m: {parity:?}");
    assert!(parity.passes());
}

#[derive(Debug, Clone, Copy)]
enum Bug {
    SwappedCodes,
    SiluForRelu2,
    RopeTheta,
    DroppedLastBlock,
    InverseScale,
}

/// A checkpoint read by a loader with one bug.
struct Planted<'a> {
    checkpoint: &'a Checkpoint,
    config: ModelConfig,
    bug: Bug,
}

impl<'a> Planted<'a> {
    fn new(checkpoint: &'a Checkpoint, bug: Bug) -> Self {
        let mut config = checkpoint.config().clone();
        match bug {
            Bug::SiluForRelu2 => config.activation = Activation::Silu,
            Bug::RopeTheta => config.rope.theta /= 2.0,
            _ => {}
        }
        Self { checkpoint, config, bug }
    }

    fn misread(&self, matrix: TernaryMatrix) -> TernaryMatrix {
        let (n, k) = (matrix.n_rows(), matrix.n_cols());
        let mut trits = matrix.to_trits();
        match self.bug {
            Bug::SwappedCodes => trits.iter_mut().for_each(|trit| *trit = -*trit),
            Bug::DroppedLastBlock => trits.chunks_mut(k).for_each(|row| row[k - 128..].fill(0)),
            _ => {}
        }
        let scale = matrix.scale_at(0, 0);
        let scales = match self.bug {
            Bug::InverseScale => bitnet_ternary::Scales::Tensor(1.0 / scale),
            _ => matrix.scales().clone(),
        };
        TernaryMatrix::from_trits(n, k, &trits, scales).expect("still ternary")
    }
}

impl WeightSource for Planted<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn load(&self, name: &str) -> Result<Tensor, CheckpointError> {
        Ok(match self.checkpoint.load(name)? {
            Tensor::Ternary(matrix) => Tensor::Ternary(self.misread(matrix)),
            dense => dense,
        })
    }

    fn table(&self, name: &str) -> Result<StoredTable, CheckpointError> {
        self.load(name).map(StoredTable::from)
    }
}

#[test]
fn parity_gate_catches_each_planted_bug() {
    let checkpoint = Checkpoint::open(&fixture("tiny-bitnet-online")).expect("the fixture opens");
    let golden = Golden::read("tiny-bitnet-online");
    for bug in [Bug::SwappedCodes, Bug::SiluForRelu2, Bug::RopeTheta, Bug::DroppedLastBlock, Bug::InverseScale] {
        let parity = Parity::measure(&mut session(&Planted::new(&checkpoint, bug)), &golden);
        assert!(!parity.passes(), "{bug:?} passed: {parity:?}");
    }
}

#[test]
fn perplexity_gate_catches_silu_for_relu2() {
    let checkpoint = Checkpoint::open(&fixture("../crates/cli/assets/tales-42m.gguf")).expect("the embedded model opens");
    let golden = Golden::read("tales-42m");
    let ours = crate::golden::perplexity(&mut session(&Planted::new(&checkpoint, Bug::SiluForRelu2)), &golden.chunks[..1]);
    let right = crate::golden::perplexity(&mut session(&checkpoint), &golden.chunks[..1]);
    assert!(ours > right * 1.003, "SiLU gives {ours}, ReLU² gives {right}");
}
