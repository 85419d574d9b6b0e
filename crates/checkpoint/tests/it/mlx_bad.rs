//! MLX folders that are not ternary, or lie about their shapes.

use bitnet_checkpoint::{Checkpoint, CheckpointError, Tensor};
use bitnet_ternary::Scales;
use serde_json::json;

use crate::hf_models::open;
use crate::small_model::{HIDDEN, SmallModel, bf16};

const UP: &str = "model.layers.0.mlp.up_proj";

/// A model whose up projection is 2-bit affine, one group a row, all codes `code`; the others are dense numbers.
fn model(code: u8, scale: f32, bias: f32) -> SmallModel {
    let mut model = SmallModel::fake_quantised();
    model.config["quantization"] = json!({ "group_size": 32, "bits": 2 });
    let weight = model.tensor(&format!("{UP}.weight"));
    (weight.dtype, weight.shape, weight.bytes) = ("U32", vec![4, HIDDEN / 16], vec![code * 0x55; 4 * HIDDEN / 4]);
    model.push(&format!("{UP}.scales"), "BF16", vec![4, 1], bf16([scale; 4]));
    model.push(&format!("{UP}.biases"), "BF16", vec![4, 1], bf16([bias; 4]));
    model
}

fn load_up(model: &SmallModel) -> Result<Tensor, CheckpointError> {
    open(model).and_then(|checkpoint: Checkpoint| checkpoint.load(&format!("{UP}.weight")))
}

#[test]
fn symmetric_groups_load_beside_dense_ternary_numbers() {
    let checkpoint = open(&model(2, 0.25, -0.25)).expect("opens");
    assert_eq!(checkpoint.format_name(), "MLX");
    for tensor in checkpoint.tensors() {
        checkpoint.load(&tensor.name).expect("loads");
    }
    let Ok(Tensor::Ternary(matrix)) = load_up(&model(2, 0.25, -0.25)) else { panic!("ternary") };
    assert_eq!((matrix.scales(), matrix.n_zeros()), (&Scales::Tensor(0.25), 0));
}

#[test]
fn groups_that_are_not_ternary_are_refused() {
    for (code, scale, bias) in [(2, 0.25, -0.5), (2, 0.25, 0.0), (2, -0.25, 0.25), (3, 0.25, -0.25)] {
        assert!(load_up(&model(code, scale, bias)).is_err(), "{code} {scale} {bias}");
    }
    assert!(matches!(load_up(&model(2, 0.25, -0.5)), Err(CheckpointError::NotTernary { .. })));
}

#[test]
fn shapes_and_parts_that_do_not_fit_are_found_when_opening() {
    type Change = fn(&mut SmallModel);
    let cases: [(&str, Change); 7] = [
        ("scales", |model| drop(model.remove(&format!("{UP}.scales")))),
        ("biases", |model| drop(model.remove(&format!("{UP}.biases")))),
        ("bits", |model| model.tensor(&format!("{UP}.weight")).shape = vec![8, 1]),
        ("rows", |model| model.tensor(&format!("{UP}.scales")).shape = vec![1, 4]),
        ("matrices", |model| model.tensor(&format!("{UP}.scales")).shape = vec![4]),
        ("no meaning", |model| model.config["quantization"] = json!(null)),
        ("4 bits", |model| {
            let weight = model.tensor(&format!("{UP}.weight"));
            (weight.shape, weight.bytes) = (vec![4, HIDDEN / 8], vec![0x55; 2 * HIDDEN]);
        }),
    ];
    for (expected, change) in cases {
        let mut model = model(2, 0.25, -0.25);
        change(&mut model);
        let error = open(&model).expect_err("refused").to_string();
        assert!(error.contains(expected) || (expected == "bits" && error.contains("rows")), "{expected}: {error}");
    }
}
