//! `bitnet bench-server`: what a server gives its clients, measured as one of them over HTTP: tokens a second of several streams at once,
//! the time to the first token and between tokens, what a remembered prefix saves, what drafting gains where a text copies. Other
//! OpenAI-compatible servers are measured in turn with ours, so that what else the machine does falls on all of them. How fast the
//! model itself is, `bench` says.

mod client;
mod report;
mod served;
mod workload;

use std::num::NonZeroUsize;

use anyhow::Context;
use clap::Args;

use crate::failure::Misuse;
use crate::terminal::Terminal;
use client::Endpoint;
use report::{Measurement, Report};
use served::ServedProcess;
use workload::Workload;

/// Tokens drafted by the server that the test of copying starts beside the other.
const N_DRAFTS: &str = "8";

/// Measure a server as its clients see it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet bench-server --shape 2b4t\n  bitnet bench-server --shape 2b4t --peer llama-server=http://127.0.0.1:9000\n  bitnet bench-server -- --drafts 4 --threads 2"
)]
pub(crate) struct BenchServerArguments {
    /// Serve this model: folder, .gguf file or hf:owner/name; without it, the embedded model
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// Serve a random model of a published shape instead: 0.7b, 2b4t, 3b or 8b
    #[arg(long, conflicts_with = "model")]
    shape: Option<String>,
    /// Another OpenAI-compatible server to measure in turn; may be given several times
    #[arg(long = "peer", value_name = "NAME=URL")]
    peers: Vec<String>,
    /// Measure peers only
    #[arg(long, requires = "peers", conflicts_with_all = ["model", "shape", "serve_flags"])]
    peers_only: bool,
    /// Numbers of streams at once
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,8")]
    streams: Vec<usize>,
    /// Tokens of each prompt
    #[arg(short = 'p', long, value_name = "N", default_value = "64")]
    n_prompt: NonZeroUsize,
    /// Tokens that each stream writes
    #[arg(short = 'n', long, value_name = "N", default_value = "64")]
    n_generate: NonZeroUsize,
    /// Tokens of the prefix that is sent again; 0 leaves the test out
    #[arg(long, value_name = "N", default_value_t = 1000)]
    prefix: usize,
    /// Tokens that a text which copies is long, on a server that drafts beside one that does not; 0 leaves the test out
    #[arg(long, value_name = "N", default_value_t = 0)]
    copy: usize,
    /// Measured runs of each test
    #[arg(short, long, value_name = "N", default_value = "3")]
    repetitions: NonZeroUsize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Flags for `bitnet serve`, after --
    #[arg(last = true, value_name = "FLAGS")]
    serve_flags: Vec<String>,
}

/// Measures and prints.
pub(crate) fn perform(arguments: &BenchServerArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let mut processes = Vec::new();
    let mut endpoints = Vec::new();
    if !arguments.peers_only {
        processes.push(arguments.serve(&[])?);
        endpoints.push(Endpoint::find("bitnet", &processes[0].url)?);
        if arguments.copy > 0 {
            processes.push(arguments.serve(&["--drafts", N_DRAFTS])?);
            endpoints.push(Endpoint::find("bitnet, drafting", &processes[1].url)?);
        }
    }
    for peer in &arguments.peers {
        let Some((name, url)) = peer.split_once('=') else {
            return Err(Misuse::new(format!("`{peer}` is no NAME=URL"), "write, say, --peer other=http://127.0.0.1:9000").into());
        };
        endpoints.push(Endpoint::find(name, url)?);
    }
    let measurements = arguments.measure(&endpoints, terminal)?;
    Report::new(measurements).print(arguments.json, terminal)
}

impl BenchServerArguments {
    fn serve(&self, more: &[&str]) -> anyhow::Result<ServedProcess> {
        let mut flags: Vec<&str> = Vec::new();
        if let Some(shape) = &self.shape {
            flags.extend(["--shape", shape]);
        }
        if let Some(model) = &self.model {
            flags.extend(["--model", model]);
        }
        flags.extend(self.serve_flags.iter().map(String::as_str));
        flags.extend(more);
        ServedProcess::start(&flags)
    }

    fn workloads(&self) -> Vec<Workload> {
        let (n_prompt, n_generate) = (self.n_prompt.get(), self.n_generate.get());
        let streams = self.streams.iter().filter(|&&n_streams| n_streams > 0);
        let mut workloads: Vec<Workload> = streams.map(|&n_streams| Workload::Streams { n_streams, n_prompt, n_generate }).collect();
        if self.prefix > 0 {
            workloads.push(Workload::Prefix { n_shared: self.prefix });
        }
        if self.copy > 0 {
            workloads.push(Workload::Copy { n_generate: self.copy });
        }
        workloads
    }

    /// Every test on every server in turn, once unmeasured and then as often as asked.
    fn measure(&self, endpoints: &[Endpoint], terminal: &Terminal) -> anyhow::Result<Vec<Measurement>> {
        let workloads = self.workloads();
        let pairs = || workloads.iter().flat_map(|workload| endpoints.iter().map(move |endpoint| (workload, endpoint)));
        let mut measurements: Vec<Measurement> =
            pairs().map(|(workload, endpoint)| Measurement::new(&endpoint.name, workload.name())).collect();
        let bar = terminal.steps_bar(((1 + self.repetitions.get()) * measurements.len()) as u64, "measuring");
        for repetition in 0..=self.repetitions.get() {
            for ((workload, endpoint), measurement) in pairs().zip(&mut measurements) {
                // Prompts are new in each run, so that nothing is remembered but what a test repeats itself.
                let runs = if repetition == 0 { workload.warm_up(endpoint) } else { workload.run(endpoint, repetition as u64) };
                let runs = runs.with_context(|| format!("{} failed at {}", endpoint.name, workload.name()))?;
                if repetition > 0 {
                    measurement.add(runs);
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(measurements)
    }
}
