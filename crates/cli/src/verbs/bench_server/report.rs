//! What was measured, as a table or JSON, and how it compares.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;

use super::client::Run;
use super::workload::Runs;
use crate::table::Table;
use crate::terminal::{Output, Terminal};

/// One test on one server.
#[derive(Debug, Serialize)]
pub(super) struct Measurement {
    server: String,
    test: String,
    /// Tokens of all streams over the time from the first request to the last token, run by run.
    tokens_per_second: Vec<f64>,
    /// The same without the time in which prompts were read: from the last stream's first token to the first stream's last, run by run.
    writing_tokens_per_second: Vec<f64>,
    first_token_ms: Vec<f64>,
    /// The same where the beginning of the prompt had been sent before.
    first_token_after_prefix_ms: Vec<f64>,
    between_tokens_ms: Vec<f64>,
    /// What the first stream wrote in the last run; not the numbers' business, but whoever measures nonsense should see it.
    text: String,
}

impl Measurement {
    pub(super) fn new(server: &str, test: String) -> Self {
        Self {
            server: server.into(),
            test,
            tokens_per_second: Vec::new(),
            writing_tokens_per_second: Vec::new(),
            first_token_ms: Vec::new(),
            first_token_after_prefix_ms: Vec::new(),
            between_tokens_ms: Vec::new(),
            text: String::new(),
        }
    }

    /// Takes a run's figures.
    pub(super) fn add(&mut self, measured: Runs) {
        let Runs { runs, finders } = measured;
        let (start, end) = (runs.iter().map(|run| run.start).min(), runs.iter().map(|run| run.end).max());
        if let (Some(start), Some(end)) = (start, end) {
            let n_tokens: usize = runs.iter().map(|run| run.n_tokens).sum();
            self.tokens_per_second.push(n_tokens as f64 / (end - start).as_secs_f64());
        }
        self.writing_tokens_per_second.extend(writing_rate(&runs));
        self.first_token_ms.extend(runs.iter().map(|run| ms(run.first_token)));
        self.first_token_after_prefix_ms.extend(finders.iter().map(|run| ms(run.first_token)));
        self.between_tokens_ms.extend(runs.iter().flat_map(|run| run.gaps.iter().map(|&gap| ms(gap))));
        if let Some(first) = runs.into_iter().next() {
            self.text = first.text;
        }
    }

    fn rate(&self) -> f64 {
        mean(&self.tokens_per_second)
    }

    fn cells(&self) -> Vec<String> {
        let quantiles = |values: &[f64]| match values {
            [] => ["–".to_string(), "–".to_string()],
            _ => [format!("{:.1}", quantile(values, 0.5)), format!("{:.1}", quantile(values, 0.95))],
        };
        let [first_p50, first_p95] = quantiles(&self.first_token_ms);
        let [found_p50, _] = quantiles(&self.first_token_after_prefix_ms);
        let [gap_p50, gap_p95] = quantiles(&self.between_tokens_ms);
        // A prefix test writes too little for a rate.
        let rate = |rates: &[f64]| match self.first_token_after_prefix_ms.is_empty() && !rates.is_empty() {
            true => format!("{:.2}", mean(rates)),
            false => "–".into(),
        };
        let (all, writing) = (rate(&self.tokens_per_second), rate(&self.writing_tokens_per_second));
        vec![self.server.clone(), self.test.clone(), all, writing, first_p50, first_p95, found_p50, gap_p50, gap_p95]
    }
}

/// Pieces of text a second while every stream writes; nothing if one ended before another began.
fn writing_rate(runs: &[Run]) -> Option<f64> {
    let times = |run: &Run| {
        let first = run.start + run.first_token;
        run.gaps
            .iter()
            .scan(first, |time, &gap| {
                *time += gap;
                Some(*time)
            })
            .collect::<Vec<_>>()
    };
    let begin = runs.iter().map(|run| run.start + run.first_token).max()?;
    let end = runs.iter().map(|run| run.end).min()?;
    let n_pieces = runs.iter().flat_map(times).filter(|time| (begin..=end).contains(time)).count();
    // A piece may be several tokens, of which a server that drafts sends many at once.
    let (n_tokens, n_all) = runs.iter().fold((0, 0), |(tokens, pieces), run| (tokens + run.n_tokens, pieces + 1 + run.gaps.len()));
    let tokens_of_a_piece = n_tokens as f64 / n_all as f64;
    (end > begin).then(|| n_pieces as f64 * tokens_of_a_piece / (end - begin).as_secs_f64())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The least value that at least this share of `values` (not empty) does not exceed.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((share * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1]
}

/// All measurements, test by test.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Report {
    measurements: Vec<Measurement>,
}

impl Report {
    pub(super) fn new(measurements: Vec<Measurement>) -> Self {
        Self { measurements }
    }

    /// Prints all of it.
    pub(super) fn print(&self, as_json: bool, terminal: &Terminal) -> anyhow::Result<()> {
        if as_json {
            writeln!(Output, "{}", serde_json::to_string_pretty(self)?)?;
            return Ok(());
        }
        let headings = ["server", "test", "t/s", "writing", "TTFT p50", "p95", "after prefix", "ITL p50", "p95"];
        let mut table = Table::new(&headings);
        self.measurements.iter().for_each(|measurement| table.row(measurement.cells()));
        table.align_right(&[2, 3, 4, 5, 6, 7, 8]);
        table.write(&mut Output, terminal)?;
        let comparisons = self.comparisons();
        if !comparisons.is_empty() {
            writeln!(Output, "\nTimes in ms.\n{}", comparisons.join("\n"))?;
        }
        Ok(())
    }

    /// The first server beside the others, its streams beside its first test, and what prefixes save.
    fn comparisons(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(first) = self.measurements.first() else { return lines };
        for measurement in &self.measurements {
            let same_test = self.measurements.iter().find(|other| other.test == measurement.test && other.server == first.server);
            if let Some(ours) =
                same_test.filter(|ours| ours.server != measurement.server && measurement.first_token_after_prefix_ms.is_empty())
            {
                let rates = ours.rate() / measurement.rate();
                let first_tokens = quantile(&ours.first_token_ms, 0.95) / quantile(&measurement.first_token_ms, 0.95);
                lines.push(format!(
                    "{}: {} has {rates:.2} × the t/s of {} ({:.2} × while all write), and {first_tokens:.2} × its TTFT p95",
                    measurement.test,
                    ours.server,
                    measurement.server,
                    mean(&ours.writing_tokens_per_second) / mean(&measurement.writing_tokens_per_second)
                ));
            }
            if !measurement.first_token_after_prefix_ms.is_empty() {
                let saved = quantile(&measurement.first_token_ms, 0.5) / quantile(&measurement.first_token_after_prefix_ms, 0.5);
                lines.push(format!("{}: {} is {saved:.1} × as fast to the first token", measurement.test, measurement.server));
            }
            if measurement.server == first.server && measurement.test != first.test && measurement.test.contains("streams") {
                let writing = mean(&measurement.writing_tokens_per_second) / mean(&first.writing_tokens_per_second);
                let all = measurement.rate() / first.rate();
                lines.push(format!("{}: {all:.2} × the t/s of {}, {writing:.2} × while all write", measurement.test, first.test));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_while_writing_leaves_out_prompts_and_stragglers() {
        let start = std::time::Instant::now();
        let run = |first_ms, n_gaps: usize| {
            let (first_token, gap) = (Duration::from_millis(first_ms), Duration::from_millis(100));
            let end = start + first_token + gap * n_gaps as u32;
            Run { start, first_token, gaps: vec![gap; n_gaps], end, n_tokens: 1 + n_gaps, text: String::new() }
        };
        // Both write from 300 ms to 1100 ms: eight tokens each.
        let rate = writing_rate(&[run(100, 10), run(300, 20)]).expect("they overlap");
        assert!((rate - 20.0).abs() < 2.0, "{rate}");
        assert_eq!(writing_rate(&[run(100, 1), run(300, 1)]), None);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!([0.5, 0.95, 0.0, 1.0].map(|share| quantile(&values, share)), [2.0, 4.0, 1.0, 4.0]);
    }
}
