//! `GET /metrics`: the counters as Prometheus' text format (prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4).

use std::fmt::{Display, Write};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bitnet_engine::{EngineStats, STEP_BUCKETS_US};
use bitnet_model::limits::BLOCK_TOKENS;

use crate::app::{App, Context};
use crate::metrics::ModelMetrics;
use crate::metrics::histogram::Histogram;

/// Writes the page.
pub(crate) async fn exposition(State(app): State<App>, _: Context) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page(&app)).into_response()
}

/// A model with all that is counted of it.
struct Row {
    label: String,
    metrics: std::sync::Arc<ModelMetrics>,
    engine: EngineStats,
    n_replicas: usize,
    n_broken_replicas: usize,
}

fn page(app: &App) -> String {
    let mut page = Page::default();
    let row = |model: std::sync::Arc<crate::models::ServedModel>| Row {
        label: format!("model_name=\"{}\"", escaped(&model.name)),
        metrics: app.metrics().model(&model.name),
        engine: model.engine.stats(),
        n_replicas: model.engine.n_replicas(),
        n_broken_replicas: model.engine.n_broken_replicas(),
    };
    let rows: Vec<Row> = app.models().all().into_iter().map(row).collect();
    of_server(app, &mut page);
    of_requests(&rows, &mut page);
    of_engines(&rows, &mut page);
    of_vllm(&rows, &mut page);
    page.0
}

/// Text that is put together.
#[derive(Default)]
struct Page(String);

impl Page {
    /// A family of one kind, a line for each of `samples`.
    fn family<V: Display>(&mut self, name: &str, (kind, help): (&str, &str), samples: impl IntoIterator<Item = (String, V)>) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            self.sample(name, &labels, value);
        }
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = if labels.is_empty() { writeln!(self.0, "{name} {value}") } else { writeln!(self.0, "{name}{{{labels}}} {value}") };
    }

    fn gauge<V: Display>(&mut self, name: &str, help: &str, rows: &[Row], value: impl Fn(&Row) -> V) {
        self.family(name, ("gauge", help), rows.iter().map(|row| (row.label.clone(), value(row))));
    }

    fn counter<V: Display>(&mut self, name: &str, help: &str, rows: &[Row], value: impl Fn(&Row) -> V) {
        self.family(name, ("counter", help), rows.iter().map(|row| (row.label.clone(), value(row))));
    }

    fn histogram(&mut self, name: &str, help: &str, rows: &[Row], of: impl Fn(&ModelMetrics) -> &Histogram) {
        self.family(name, ("histogram", help), Vec::<(String, u64)>::new());
        for row in rows {
            let (buckets, count, sum) = of(&row.metrics).read();
            self.buckets(name, &row.label, &buckets, (count, sum));
        }
    }

    fn buckets(&mut self, name: &str, label: &str, buckets: &[(f64, u64)], (count, sum): (u64, f64)) {
        for (bound, n) in buckets {
            self.sample(&format!("{name}_bucket"), &format!("{label},le=\"{bound}\""), n);
        }
        self.sample(&format!("{name}_bucket"), &format!("{label},le=\"+Inf\""), count);
        self.sample(&format!("{name}_sum"), label, sum);
        self.sample(&format!("{name}_count"), label, count);
    }
}

fn of_server(app: &App, page: &mut Page) {
    let metrics = app.metrics();
    let one = |value: u64| [(String::new(), value)];
    page.family("bitnet_info", ("gauge", "Which build this is."), [(format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1)]);
    page.family("bitnet_ready", ("gauge", "1 where requests are welcome."), one(app.is_ready().into()));
    page.family("bitnet_requests_in_flight", ("gauge", "Requests at work."), one(app.lifecycle().n_in_flight() as u64));
    page.family("bitnet_connections", ("gauge", "Open connections."), one(metrics.n_connections() as u64));
    let refused = metrics.n_connections_refused.load(Ordering::Relaxed);
    page.family("bitnet_connections_refused_total", ("counter", "Connections above the limit."), one(refused));
    let responses = metrics.responses.lock().unwrap_or_else(PoisonError::into_inner);
    let responses = responses.iter().flat_map(|(route, by_status)| {
        by_status.iter().map(move |(status, n)| (format!("route=\"{}\",status=\"{status}\"", escaped(route)), *n))
    });
    page.family("bitnet_http_responses_total", ("counter", "Responses by route and status."), responses);
    let refusals = metrics.refusals.lock().unwrap_or_else(PoisonError::into_inner);
    let refusals = refusals.iter().map(|(code, n)| (format!("code=\"{code}\""), *n));
    page.family("bitnet_refusals_total", ("counter", "Refused and failed requests by error code."), refusals);
}

fn of_requests(rows: &[Row], page: &mut Page) {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let outcomes = rows.iter().flat_map(|row| {
        let of = |outcome: &str, n| (format!("{},outcome=\"{outcome}\"", row.label), n);
        let metrics = &row.metrics;
        [of("succeeded", load(&metrics.n_succeeded)), of("failed", load(&metrics.n_failed)), of("cancelled", load(&metrics.n_cancelled))]
    });
    page.family("bitnet_generations_total", ("counter", "Generations by what became of them."), outcomes);
    page.histogram("bitnet_time_to_first_token_seconds", "From submission to the first token.", rows, |m| &m.first_token_seconds);
    page.histogram("bitnet_inter_token_seconds", "Between tokens.", rows, |m| &m.next_token_seconds);
    page.histogram("bitnet_generation_seconds", "From submission to the last token.", rows, |m| &m.request_seconds);
}

fn of_engines(rows: &[Row], page: &mut Page) {
    page.gauge("bitnet_replicas", "Engines of the model, each on a device.", rows, |row| row.n_replicas);
    page.gauge("bitnet_replicas_broken", "Engines of the model that have broken down.", rows, |row| row.n_broken_replicas);
    page.gauge("bitnet_sequences_running", "Sequences in the batch.", rows, |row| row.engine.n_running);
    page.gauge("bitnet_sequences_waiting", "Sequences that wait.", rows, |row| row.engine.n_waiting);
    page.gauge("bitnet_kv_blocks", "Blocks of the KV cache.", rows, |row| row.engine.n_blocks);
    page.gauge("bitnet_kv_blocks_used", "Blocks that sequences hold.", rows, |row| row.engine.n_used_blocks);
    page.gauge("bitnet_kv_blocks_remembered", "Blocks that hold prefixes only.", rows, |row| row.engine.n_idle_blocks);
    page.counter("bitnet_prompt_tokens_total", "Prompt tokens of accepted requests.", rows, |row| row.engine.n_prompt_tokens);
    page.counter("bitnet_completion_tokens_total", "Tokens drawn.", rows, |row| row.engine.n_completion_tokens);
    page.counter("bitnet_prefix_hit_tokens_total", "Prompt tokens taken from the cache.", rows, |row| row.engine.n_prefix_hit_tokens);
    page.counter("bitnet_preemptions_total", "Sequences that lost their blocks.", rows, |row| row.engine.n_preemptions);
    page.counter("bitnet_drafted_tokens_total", "Tokens drafted.", rows, |row| row.engine.n_drafted_tokens);
    page.counter("bitnet_accepted_tokens_total", "Drafted tokens accepted.", rows, |row| row.engine.n_accepted_tokens);
    page.family("bitnet_step_seconds", ("histogram", "Time of an engine's step."), Vec::<(String, u64)>::new());
    for row in rows {
        let mut total = 0;
        let cumulative = STEP_BUCKETS_US.iter().zip(&row.engine.step_histogram).map(|(&bound_us, n)| {
            total += n;
            (bound_us as f64 / 1e6, total)
        });
        let buckets: Vec<(f64, u64)> = cumulative.collect();
        page.buckets("bitnet_step_seconds", &row.label, &buckets, (row.engine.n_steps, row.engine.step_time.as_secs_f64()));
    }
}

/// vLLM's names for the same, which load balancers for inference look for.
fn of_vllm(rows: &[Row], page: &mut Page) {
    let used = |row: &Row| row.engine.n_used_blocks as f64 / row.engine.n_blocks.max(1) as f64;
    page.gauge("vllm:num_requests_running", "Requests in the batch.", rows, |row| row.engine.n_running);
    page.gauge("vllm:num_requests_waiting", "Requests that wait.", rows, |row| row.engine.n_waiting);
    page.gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 1 for all.", rows, used);
    page.gauge("vllm:gpu_cache_usage_perc", "The older name of kv_cache_usage_perc.", rows, used);
    let info = rows.iter().map(|row| {
        let n_blocks = row.engine.n_blocks;
        (format!("{},block_size=\"{BLOCK_TOKENS}\",num_gpu_blocks=\"{n_blocks}\",num_cpu_blocks=\"{n_blocks}\"", row.label), 1)
    });
    page.family("vllm:cache_config_info", ("gauge", "Shape of the KV cache."), info);
    page.counter("vllm:prompt_tokens_total", "Prompt tokens.", rows, |row| row.engine.n_prompt_tokens);
    page.counter("vllm:generation_tokens_total", "Tokens drawn.", rows, |row| row.engine.n_completion_tokens);
    page.counter("vllm:num_preemptions_total", "Sequences that lost their blocks.", rows, |row| row.engine.n_preemptions);
    page.counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up.", rows, |row| row.engine.n_prefix_queried_tokens);
    page.counter("vllm:prefix_cache_hits_total", "Prompt tokens found.", rows, |row| row.engine.n_prefix_hit_tokens);
    let finished = rows.iter().flat_map(|row| {
        let of = |reason: &str, n: &std::sync::atomic::AtomicU64| {
            (format!("{},finished_reason=\"{reason}\"", row.label), n.load(Ordering::Relaxed))
        };
        let metrics = &row.metrics;
        [of("stop", &metrics.n_stopped), of("length", &metrics.n_length), of("abort", &metrics.n_cancelled)]
    });
    page.family("vllm:request_success_total", ("counter", "Texts by why they ended."), finished);
    page.histogram("vllm:time_to_first_token_seconds", "Time to the first token.", rows, |m| &m.first_token_seconds);
    page.histogram("vllm:inter_token_latency_seconds", "Between tokens.", rows, |m| &m.next_token_seconds);
    page.histogram("vllm:time_per_output_token_seconds", "The older name of inter_token_latency.", rows, |m| &m.next_token_seconds);
    page.histogram("vllm:e2e_request_latency_seconds", "Whole requests.", rows, |m| &m.request_seconds);
    page.histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", rows, |m| &m.prompt_tokens);
    page.histogram("vllm:request_generation_tokens", "Tokens drawn for a request.", rows, |m| &m.completion_tokens);
}

/// As label values need it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
