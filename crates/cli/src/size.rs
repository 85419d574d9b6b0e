//! Sizes of models, counted and written for people.

use bitnet_checkpoint::ModelConfig;
use bitnet_checkpoint::config::TensorRole;

/// Numbers in the tensors that `config` calls for.
pub(crate) fn n_parameters(config: &ModelConfig) -> u64 {
    config.expected_tensors().iter().map(|tensor| tensor.shape.iter().map(|&dim| dim as u64).product::<u64>()).sum()
}

/// Multiply-adds with ternary weights that one token takes in the linear layers.
pub(crate) fn linear_macs_per_token(config: &ModelConfig) -> u64 {
    let tensors = config.expected_tensors();
    let linear = tensors.iter().filter(|tensor| tensor.role == TensorRole::Linear);
    linear.map(|tensor| tensor.shape.iter().map(|&dim| dim as u64).product::<u64>()).sum()
}

/// Bytes of f32 keys and values that one token takes in the cache.
pub(crate) fn kv_bytes_per_token(config: &ModelConfig) -> u64 {
    (2 * config.n_layers * config.kv_size() * size_of::<f32>()) as u64
}

/// `1.18 GiB`.
pub(crate) fn bytes(size_bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if size_bytes < 1024 {
        return format!("{size_bytes} B");
    }
    let mut value = size_bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// `2.41 B`, `42.0 M`, `815`.
pub(crate) fn count(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{:.1} k", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!([bytes(0), bytes(1023), bytes(1 << 20), bytes(1_268_000_000)], ["0 B", "1023 B", "1.00 MiB", "1.18 GiB"]);
        assert_eq!([count(815), count(42_040_832), count(2_412_820_480)], ["815", "42.0 M", "2.41 B"]);
    }
}
