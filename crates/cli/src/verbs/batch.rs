//! `bitnet batch`: answers all lines of a file in OpenAI's batch notation, without a server. Whatever ends it, starting it again goes
//! on where it was.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bitnet_engine::{Priority, TenantSalt};
use bitnet_server::admission::Caller;
use bitnet_server::{BatchEnd, BatchRunner, Config, LineResult, ResultFile, router};
use clap::Args;

use crate::arguments::GlobalArguments;
use crate::interrupt::Interrupt;
use crate::terminal::Terminal;
use crate::verbs::serve::models::ServedArguments;
use crate::verbs::serve::{app, runtime};

/// Answer all requests of a file
#[derive(Debug, Args)]
#[command(
    after_help = "Each line of IN is {\"custom_id\": …, \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {…}}.\nStarted again after it was ended, it answers only what OUT lacks."
)]
pub(crate) struct BatchArguments {
    /// Requests, one a line
    #[arg(value_name = "IN.jsonl")]
    input: PathBuf,
    /// Where answers go, one a line, in the order in which they are ready
    #[arg(value_name = "OUT.jsonl")]
    output: PathBuf,
    #[command(flatten)]
    served: ServedArguments,
}

/// Answers what has no answer yet.
pub(crate) fn perform(arguments: &BatchArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    // Before models are loaded, which may take a download.
    let n_lines = count_lines(&arguments.input)?;
    let mut results = ResultFile::open(&arguments.output).with_context(|| format!("cannot write {}", arguments.output.display()))?;
    let done = results.done.clone();
    if !done.is_empty() {
        terminal.note(&format!("{} of {n_lines} lines are answered already", done.len()));
    }
    let app = app(Config::default(), None)?;
    for model in arguments.served.load(global, terminal)? {
        app.models().insert(model);
    }
    let caller = Caller { name: "batch".into(), tenant: TenantSalt([0; 32]), priority_best: Priority::Normal, api_key: None };
    let runner = BatchRunner { service: router(app), caller, url: None };
    let bar = terminal.steps_bar(n_lines as u64, "answering");
    bar.set_position(done.len() as u64);
    let (mut n_answered, mut n_failed) = (0, 0);
    let mut keep = |result: LineResult| {
        results.push(&result)?;
        if result.answered {
            n_answered += 1
        } else {
            n_failed += 1
        }
        bar.inc(1);
        Ok(())
    };
    let interrupt = Interrupt::install();
    interrupt.listen();
    let input = BufReader::new(open(&arguments.input)?);
    let end = runtime(2)?.block_on(runner.run(input, &done, &mut keep, &|| interrupt.is_pressed()))?;
    bar.finish_and_clear();
    results.sync()?;
    let ending = if end == BatchEnd::Stopped { " · interrupted: start it again to go on" } else { "" };
    terminal.note(&format!("{n_answered} answered, {n_failed} failed{ending}"));
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

fn count_lines(path: &Path) -> anyhow::Result<usize> {
    let mut n_lines = 0;
    for line in BufReader::new(open(path)?).lines() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        n_lines += usize::from(!line.trim().is_empty());
    }
    Ok(n_lines)
}
