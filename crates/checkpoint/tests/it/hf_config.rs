//! The corpus of `config.json` files: every key × every wrong type, absent keys, limits, and features that are not computed.

use bitnet_checkpoint::config::{ActivationPolicy, RopeScaling};
use bitnet_checkpoint::{Checkpoint, CheckpointError, read_config_json};
use serde_json::{Value, json};

use crate::hf_models::open;
use crate::small_model::SmallModel;

fn opened(change: impl FnOnce(&mut Value)) -> Result<Checkpoint, CheckpointError> {
    let mut model = SmallModel::packed(None);
    change(&mut model.config);
    open(&model)
}

fn refusal(change: impl FnOnce(&mut Value)) -> String {
    opened(change).expect_err("refused").to_string()
}

#[test]
fn every_key_with_every_wrong_type_is_refused_by_name() {
    let wrong =
        [json!("8x"), json!(true), json!([1]), json!({ "a": 1 }), json!(-1), json!(1.5), json!(1e300), json!(18446744073709551615u64)];
    let counts = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ];
    for key in counts {
        for value in &wrong {
            let error = refusal(|config| config[key] = value.clone());
            assert!(error.contains(key), "{key} = {value}: {error}");
        }
    }
    let not_numbers = [json!("1e-5"), json!(true), json!([1.0]), json!({})];
    for key in ["rms_norm_eps", "rope_theta", "partial_rotary_factor"] {
        for value in &not_numbers {
            assert!(refusal(|config| config[key] = value.clone()).contains(key), "{key} = {value}");
        }
    }
    let not_flags = [json!("true"), json!(1), json!([]), json!({})];
    for key in ["tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"] {
        for value in &not_flags {
            assert!(refusal(|config| config[key] = value.clone()).contains(key), "{key} = {value}");
        }
    }
    let not_texts = [json!(1), json!(true), json!(["silu"]), json!({})];
    for key in ["model_type", "hidden_act", "bitnet_activation_policy"] {
        for value in &not_texts {
            assert!(refusal(|config| config[key] = value.clone()).contains(key), "{key} = {value}");
        }
    }
    for key in ["rope_scaling", "rope_parameters", "quantization_config", "quantization"] {
        for value in [json!(1), json!("yarn"), json!([]), json!(false)] {
            assert!(refusal(|config| config[key] = value.clone()).contains(key), "{key} = {value}");
        }
    }
    for key in ["bos_token_id", "eos_token_id"] {
        for value in [json!(-2), json!(4294967296u64), json!("2"), json!(1.5), json!({})] {
            assert!(refusal(|config| config[key] = value.clone()).contains(key), "{key} = {value}");
        }
    }
    for (key, value) in [("architectures", json!("LlamaForCausalLM")), ("layer_types", json!([1])), ("architectures", json!([1]))] {
        assert!(refusal(|config| config[key] = value.clone()).contains(key), "{key} = {value}");
    }
}

#[test]
fn keys_that_decide_the_arithmetic_may_not_be_absent() {
    for key in [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
    ] {
        let removed = refusal(|config| drop(config.as_object_mut().expect("object").remove(key)));
        let null = refusal(|config| config[key] = Value::Null);
        assert!(removed.contains(key) && removed.contains("absent") && removed == null, "{key}: {removed}");
    }
}

#[test]
fn head_dim_that_is_absent_is_as_the_class_defaults() {
    let head_dim = |model_type: &str| {
        let mut config = SmallModel::packed(None).config;
        config["model_type"] = json!(model_type);
        config.as_object_mut().expect("object").remove("head_dim");
        read_config_json(config.to_string().as_bytes()).expect("reads").head_dim
    };
    assert_eq!((head_dim("llama"), head_dim("bitnet"), head_dim("qwen3")), (16, 16, 128));
}

#[test]
fn numbers_at_and_past_their_limits_are_refused_by_name() {
    for (key, value) in [
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1025)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_attention_heads", json!(0)),
        ("head_dim", json!(5)),
        ("head_dim", json!(0)),
        ("vocab_size", json!(1u64 << 40)),
        ("max_position_embeddings", json!(1u64 << 40)),
        ("rms_norm_eps", json!(0.0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rms_norm_eps", json!(1e300)),
        ("rope_theta", json!(0.0)),
        ("rope_theta", json!(-1)),
    ] {
        let error = refusal(|config| config[key] = value.clone());
        assert!(error.contains(key) || key == "num_attention_heads", "{key} = {value}: {error}");
    }
}

#[test]
fn text_that_is_not_json_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    SmallModel::packed(None).write(folder.path());
    let deep = "[".repeat(1_000_000);
    for text in ["", "{", "[]", "null", "{\"rms_norm_eps\": NaN}", "{\"rms_norm_eps\": 1e999}", "\u{feff}{}", deep.as_str()] {
        std::fs::write(folder.path().join("config.json"), text).expect("written");
        let error = Checkpoint::open(folder.path()).expect_err("refused");
        assert!(matches!(error, CheckpointError::Malformed { .. }), "{error}");
    }
}

#[test]
fn features_that_are_not_computed_are_refused_by_name() {
    let cases = [
        ("model_type", json!("gemma3_text"), "gemma3_text"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("sliding_window", json!(4096), "sliding_window"),
        ("use_sliding_window", json!(true), "sliding_window"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "sliding_attention"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("architectures", json!(["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
        ("rope_scaling", json!({ "rope_type": "dynamic", "factor": 2.0 }), "dynamic"),
        ("rope_scaling", json!({ "rope_type": "longrope", "factor": 2.0 }), "longrope"),
        ("rope_scaling", json!({ "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "mscale": 1.0 }), "mscale"),
        (
            "rope_scaling",
            json!({ "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "truncate": false }),
            "truncate",
        ),
        ("quantization_config", json!({ "quant_method": "gptq" }), "gptq"),
        ("quantization_config", json!({ "quant_method": "bitnet", "linear_class": "other" }), "linear_class"),
        ("quantization_config", json!({ "quant_method": "bitnet", "quantization_mode": "later" }), "quantization_mode"),
        ("quantization_config", json!({ "quant_method": "bitnet", "quantization_mode": "online" }), "online"),
        ("quantization_config", json!({ "quant_method": "bitnet", "modules_to_not_convert": ["model.layers.0.mlp.up_proj"] }), "up_proj"),
        ("quantization_config", json!({ "linear_class": "bitlinear" }), "quant_method"),
        ("quantization", json!({ "group_size": 128, "bits": 4 }), "bits"),
        ("quantization", json!({ "group_size": 100, "bits": 2 }), "group_size"),
        ("quantization", json!({ "group_size": 64, "bits": 2, "mode": "mxfp4" }), "mode"),
        ("weight_bits", json!(2), "weight_bits"),
    ];
    for (key, value, expected) in cases {
        let error = refusal(|config| {
            // The key is looked at only where no other quantisation is stated.
            if key == "weight_bits" {
                config["quantization_config"] = Value::Null;
            }
            config[key] = value.clone();
        });
        assert!(error.contains(expected), "{key} = {value}: {error}");
    }
    let harmless = opened(|config| {
        config["use_sliding_window"] = json!(false);
        config["sliding_window"] = json!(4096);
        config["attention_bias"] = json!(false);
        config["quantization_config"]["modules_to_not_convert"] = json!(["lm_head"]);
    });
    assert!(harmless.is_ok(), "{harmless:?}");
}

#[test]
fn hostile_text_in_messages_is_escaped_and_cut() {
    let error = refusal(|config| config["model_type"] = json!("\u{1b}[2J".repeat(1000)));
    assert!(!error.contains('\u{1b}') && error.len() < 400, "{error}");
}

#[test]
fn rope_keys_of_both_generations_are_read_and_must_agree() {
    let scaling = |change: &dyn Fn(&mut Value)| opened(change).map(|checkpoint| checkpoint.config().rope);
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    let expected = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    assert_eq!(scaling(&|config| config["rope_scaling"] = llama3.clone()).expect("opens").scaling, expected);
    let in_parameters = |config: &mut Value| {
        config["rope_parameters"] = llama3.clone();
        config["rope_parameters"]["rope_theta"] = json!(5.0);
        config["rope_theta"] = Value::Null;
    };
    let rope = scaling(&in_parameters).expect("opens");
    assert_eq!((rope.theta, rope.scaling), (5.0, expected));
    let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192 });
    let attention_factor = 0.1 * 4.0f64.ln() + 1.0;
    let expected = RopeScaling::Yarn { factor: 4.0, original_context: 8192, beta_fast: 32.0, beta_slow: 1.0, attention_factor };
    assert_eq!(scaling(&|config| config["rope_scaling"] = yarn.clone()).expect("opens").scaling, expected);
    let linear = json!({ "type": "linear", "factor": 2 });
    assert_eq!(scaling(&|config| config["rope_scaling"] = linear.clone()).expect("opens").scaling, RopeScaling::Linear { factor: 2.0 });
    for change in [
        json!({ "rope_parameters": { "rope_theta": 10001.0, "rope_type": "default" } }),
        json!({ "rope_parameters": { "rope_type": "default" }, "rope_scaling": linear }),
        json!({ "rope_scaling": { "factor": 2.0 } }),
        json!({ "rope_scaling": { "rope_type": "linear" } }),
        json!({ "rope_scaling": { "rope_type": "linear", "type": "yarn", "factor": 2.0 } }),
        json!({ "rope_scaling": { "rope_type": "linear", "factor": -2.0 } }),
        json!({ "rope_scaling": { "rope_type": "yarn", "factor": 0.0, "original_max_position_embeddings": 8 } }),
        json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } }),
        json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0 } }),
        json!({ "rope_scaling": { "rope_type": 3, "factor": 8.0 } }),
    ] {
        let error = refusal(|config| change.as_object().expect("object").iter().for_each(|(key, value)| config[key] = value.clone()));
        assert!(error.contains("rope"), "{change}: {error}");
    }
}

#[test]
fn activation_policy_key_wins_over_what_the_format_implies() {
    let policy = |change: &dyn Fn(&mut Value)| opened(change).expect("opens").config().activation_policy;
    assert_eq!(policy(&|_| {}), ActivationPolicy::Int8PerToken);
    assert_eq!(policy(&|config| config["bitnet_activation_policy"] = json!("unquantised")), ActivationPolicy::Unquantised);
    assert!(refusal(|config| config["bitnet_activation_policy"] = json!("fp8")).contains("bitnet_activation_policy"));
}

#[test]
fn end_of_sequence_may_be_one_several_or_none() {
    let ids =
        |value: Value| opened(|config| config["eos_token_id"] = value).expect("opens").tokenizer_files().generation.eos_token_ids.clone();
    assert_eq!(ids(json!(3)), [3]);
    assert_eq!(ids(json!([2, 3])), [2, 3]);
    assert_eq!(ids(json!([2, 4])), [2], "token 4 does not exist");
    assert!(ids(Value::Null).is_empty() && ids(json!(-1)).is_empty());
}
