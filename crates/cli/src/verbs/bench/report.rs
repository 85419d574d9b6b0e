//! What a bench found, as a table, JSON or CSV.

use std::io::Write;

use bitnet_device_cpu::Roofs;
use bitnet_model::Runner;
use bitnet_model::device::DeviceMemory;
use serde::Serialize;

use super::Format;
use super::workload::{Kind, Workload};
use crate::size;
use crate::table::Table;
use crate::terminal::{Output, Terminal};

/// The model that was measured.
pub(super) struct Model<'a> {
    pub(super) name: &'a str,
    pub(super) size_bytes: u64,
    pub(super) runner: &'a dyn Runner,
}

/// The machine it was measured on, in the same minutes.
pub(super) struct Machine {
    pub(super) roofs: Option<Roofs>,
    pub(super) peak_memory_bytes: Option<u64>,
    pub(super) device_memory: Option<DeviceMemory>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub(super) struct Measurement {
    model: String,
    size_bytes: u64,
    n_parameters: u64,
    activations: &'static str,
    device: &'static str,
    isa: &'static str,
    n_threads: usize,
    n_sequences: usize,
    test: String,
    tokens_per_second_mean: f64,
    tokens_per_second_deviation: f64,
    tokens_per_second: Vec<f64>,
    /// Weights that one token of one sequence reads at least; tokens of a prompt and sequences at once share them.
    weight_bytes_per_token: f64,
    /// Multiply-adds of one token in the linear layers.
    linear_macs_per_token: u64,
    /// What the threads could read and multiply a second.
    roofs: Option<RoofLine>,
    /// The share of the roof that limits the test: of memory for one sequence that writes, of arithmetic for a prompt.
    roof_share: Option<f64>,
    /// The share of each.
    memory_roof_share: Option<f64>,
    int8_roof_share: Option<f64>,
    /// Energy that the GPU took for a token.
    joules_per_token: Option<f64>,
    pub(super) peak_memory_bytes: Option<u64>,
    /// Memory of the GPU that the model and its buffers take, without keys and values, and these.
    device_memory_bytes: Option<u64>,
    kv_cache_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct RoofLine {
    read_bytes_per_second: f64,
    int8_macs_per_second: Option<f64>,
}

impl Measurement {
    pub(super) fn new(
        model: &Model<'_>,
        machine: &Machine,
        (workload, (rates, joules_per_token)): (Workload, (Vec<f64>, Option<f64>)),
    ) -> Self {
        let (description, config) = (model.runner.device(), model.runner.config());
        let (mean, deviation) = mean_and_deviation(&rates);
        let n_sharing = match workload.kind {
            Kind::Prompt(n_tokens) => n_tokens.min(model.runner.limits().n_tokens_max),
            Kind::Generate(_) => workload.n_sequences,
        };
        let weight_bytes_per_token = model.runner.decode_bytes() as f64 / n_sharing as f64;
        let linear_macs_per_token = size::linear_macs_per_token(config);
        let roofs = machine
            .roofs
            .map(|roofs| RoofLine { read_bytes_per_second: roofs.read_bytes_per_s, int8_macs_per_second: roofs.int8_macs_per_s });
        let of_memory = roofs.map(|roofs| mean * weight_bytes_per_token / roofs.read_bytes_per_second);
        let of_arithmetic = roofs.and_then(|roofs| roofs.int8_macs_per_second).map(|macs| mean * linear_macs_per_token as f64 / macs);
        Self {
            model: model.name.to_string(),
            size_bytes: model.size_bytes,
            n_parameters: size::n_parameters(config),
            activations: config.activation_policy.name(),
            device: description.name,
            isa: description.isa,
            n_threads: description.n_threads,
            n_sequences: workload.n_sequences,
            test: workload.name(),
            tokens_per_second_mean: mean,
            tokens_per_second_deviation: deviation,
            tokens_per_second: rates,
            weight_bytes_per_token,
            linear_macs_per_token,
            roofs,
            roof_share: of_memory.into_iter().chain(of_arithmetic).reduce(f64::max),
            memory_roof_share: of_memory,
            int8_roof_share: of_arithmetic,
            joules_per_token,
            peak_memory_bytes: machine.peak_memory_bytes,
            device_memory_bytes: machine.device_memory.map(|memory| memory.used_bytes - memory.kv_cache_bytes),
            kv_cache_bytes: machine.device_memory.map(|memory| memory.kv_cache_bytes),
        }
    }

    fn cells(&self) -> Vec<String> {
        let percent = |share: f64| format!("{:.0}%", 100.0 * share);
        vec![
            self.model.clone(),
            size::bytes(self.size_bytes),
            size::count(self.n_parameters),
            format!("{} {}", self.device, self.isa),
            self.n_threads.to_string(),
            self.test.clone(),
            format!("{:.2} ± {:.2}", self.tokens_per_second_mean, self.tokens_per_second_deviation),
            size::bytes(self.weight_bytes_per_token as u64),
            self.roof_share.map_or("–".into(), percent),
        ]
    }

    fn csv(&self) -> String {
        let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        let bytes = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
        let cells = [
            quoted(&self.model),
            self.size_bytes.to_string(),
            self.n_parameters.to_string(),
            self.activations.to_string(),
            self.device.to_string(),
            self.isa.to_string(),
            self.n_threads.to_string(),
            self.n_sequences.to_string(),
            quoted(&self.test),
            self.tokens_per_second_mean.to_string(),
            self.tokens_per_second_deviation.to_string(),
            self.weight_bytes_per_token.to_string(),
            self.linear_macs_per_token.to_string(),
            number(self.roofs.map(|roofs| roofs.read_bytes_per_second)),
            number(self.roofs.and_then(|roofs| roofs.int8_macs_per_second)),
            number(self.roof_share),
            number(self.memory_roof_share),
            number(self.int8_roof_share),
            number(self.joules_per_token),
            bytes(self.peak_memory_bytes),
            bytes(self.device_memory_bytes),
            bytes(self.kv_cache_bytes),
        ];
        cells.join(",")
    }
}

const CSV_HEADING: &str = "model,size_bytes,n_parameters,activations,device,isa,n_threads,n_sequences,test,tokens_per_second_mean,\
    tokens_per_second_deviation,weight_bytes_per_token,linear_macs_per_token,read_bytes_per_second,int8_macs_per_second,roof_share,\
    memory_roof_share,int8_roof_share,joules_per_token,peak_memory_bytes,device_memory_bytes,kv_cache_bytes";

/// A text as one CSV cell (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}

/// Prints all measurements.
pub(super) fn print(measurements: &[Measurement], format: Format, terminal: &Terminal) -> anyhow::Result<()> {
    match format {
        Format::Json => writeln!(Output, "{}", serde_json::to_string_pretty(measurements)?)?,
        Format::Csv => {
            writeln!(Output, "{CSV_HEADING}")?;
            measurements.iter().try_for_each(|measurement| writeln!(Output, "{}", measurement.csv()))?;
        }
        Format::Markdown => print_table(measurements, terminal)?,
    }
    Ok(())
}

fn print_table(measurements: &[Measurement], terminal: &Terminal) -> anyhow::Result<()> {
    let has_energy = measurements.iter().any(|measurement| measurement.joules_per_token.is_some());
    let mut headings = vec!["model", "size", "params", "device", "threads", "test", "t/s", "weights/token", "of roof"];
    headings.extend(has_energy.then_some("J/token"));
    let mut table = Table::new(&headings);
    for measurement in measurements {
        let joules = || measurement.joules_per_token.map_or("–".into(), |joules| format!("{joules:.4}"));
        table.row(measurement.cells().into_iter().chain(has_energy.then(joules)).collect());
    }
    table.align_right(&(1..headings.len()).filter(|&column| column != 3).collect::<Vec<_>>());
    table.write(&mut Output, terminal)?;
    let mut notes = Vec::new();
    for measurement in measurements {
        let note = measurement.roofs.map(|roofs| {
            let arithmetic = roofs.int8_macs_per_second.map_or(String::new(), |macs| format!(", {:.0} GMAC/s of int8", macs / 1e9));
            format!("roofs at {} threads: {:.1} GB/s of memory{arithmetic}", measurement.n_threads, roofs.read_bytes_per_second / 1e9)
        });
        if let Some(note) = note
            && !notes.contains(&note)
        {
            notes.push(note);
        }
    }
    notes.extend(
        measurements
            .iter()
            .filter_map(|measurement| measurement.peak_memory_bytes)
            .max()
            .map(|peak| format!("peak memory {}", size::bytes(peak))),
    );
    let in_device = measurements.iter().find_map(|measurement| measurement.device_memory_bytes.zip(measurement.kv_cache_bytes));
    notes.extend(in_device.map(|(model, cache)| {
        format!("GPU memory {} for the model and its buffers, {} for keys and values", size::bytes(model), size::bytes(cache))
    }));
    if !notes.is_empty() {
        writeln!(Output, "\n{}", notes.join("\n"))?;
    }
    Ok(())
}

/// Most memory that this process ever had resident, where the system says so.
pub(super) fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(kibibytes * 1024)
}

/// Mean and sample standard deviation; the deviation of one value is 0.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_of_known_values_is_the_sample_deviation() {
        assert_eq!(mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 6.0]), (4.0, 2f64.sqrt()));
        assert_eq!(mean_and_deviation(&[3.0]), (3.0, 0.0));
    }

    #[test]
    fn csv_cells_are_quoted_where_they_must_be() {
        assert_eq!([quoted("plain"), quoted("a,b"), quoted("say \"x\"")], ["plain", "\"a,b\"", "\"say \"\"x\"\"\""]);
    }
}
