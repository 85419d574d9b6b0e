//! From a prompt's tokens to text, token by token: what `run` and `chat` share. The model is a [`Session`], drawing is a
//! [`Sampler`]; here they meet the detokeniser, stop strings, Ctrl-C and the clock. One sequence; many at once are the engine's.

use std::io;
use std::time::{Duration, Instant};

use bitnet_model::sampler::{Sampler, SamplingParams};
use bitnet_model::text::{Detokenizer, SpecialTokens, StopOutcome, StopStrings, TextError, Tokenizer};
use bitnet_model::{Session, TokenId};
use serde::Serialize;
use serde_json::json;

use crate::failure::Misuse;
use crate::interrupt::Interrupt;
use crate::terminal::Terminal;

/// Prompt tokens read between two looks at Ctrl-C.
const PREFILL_CHUNK: usize = 128;

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finish {
    /// The model ended it.
    EndOfText,
    /// A stop string came.
    StopString,
    /// As many tokens as were asked for.
    Length,
    /// The model's context is full.
    ContextFull,
    /// Ctrl-C.
    Interrupted,
}

/// Tokens in some time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Rate {
    pub(crate) n_tokens: usize,
    pub(crate) duration: Duration,
}

impl Rate {
    /// Tokens a second; 0 for none.
    pub(crate) fn tokens_per_second(self) -> f64 {
        if self.n_tokens == 0 { 0.0 } else { self.n_tokens as f64 / self.duration.as_secs_f64().max(1e-9) }
    }

    /// For programs.
    pub(crate) fn json(self) -> serde_json::Value {
        json!({
            "n_tokens": self.n_tokens,
            "seconds": self.duration.as_secs_f64(),
            "tokens_per_second": self.tokens_per_second(),
        })
    }
}

/// What came of a generation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Generated {
    /// Tokens drawn; the one that ended the text not among them.
    pub(crate) token_ids: Vec<TokenId>,
    /// Their text.
    pub(crate) text: String,
    /// Why it ended.
    pub(crate) finish: Finish,
    /// Prompt tokens read; those still cached from before are not counted.
    pub(crate) prefill: Rate,
    /// Tokens written.
    pub(crate) decode: Rate,
}

/// What a generation depends on besides the prompt.
pub(crate) struct GenerationOptions<'a> {
    /// Absent for checkpoints without vocabulary: tokens then have no text.
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    /// Tokens that end the text.
    pub(crate) eos: &'a [TokenId],
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: &'a [String],
    /// Most tokens to draw.
    pub(crate) n_tokens_max: usize,
    pub(crate) interrupt: &'a Interrupt,
}

/// Reads `prompt` after whatever beginning of it `session` still has, and writes on, handing every piece of text to `show` as soon
/// as it is certain.
pub(crate) fn generate(
    session: &mut Session,
    prompt: &[TokenId],
    options: &GenerationOptions<'_>,
    terminal: &Terminal,
    show: &mut dyn FnMut(&str) -> io::Result<()>,
) -> anyhow::Result<Generated> {
    let n_context = session.runner().limits().context_length;
    if prompt.len() > n_context {
        let what = format!("the prompt is {} tokens long, the context {n_context}", prompt.len());
        return Err(Misuse::new(what, "shorten the prompt; `bitnet inspect` shows how long the model's context is").into());
    }
    let text = TextStream::new(options)?;
    let sampler = Sampler::new(options.sampling.clone())?.with_prompt(prompt.len());
    let writer = Writer { session, options, sampler, text, history: prompt.to_vec(), n_prompt_tokens: prompt.len() };
    options.interrupt.listen();
    let generated = writer.write(terminal, show);
    options.interrupt.ignore();
    generated
}

struct Writer<'a> {
    session: &'a mut Session,
    options: &'a GenerationOptions<'a>,
    sampler: Sampler,
    text: TextStream<'a>,
    history: Vec<TokenId>,
    n_prompt_tokens: usize,
}

impl Writer<'_> {
    fn write(mut self, terminal: &Terminal, show: &mut dyn FnMut(&str) -> io::Result<()>) -> anyhow::Result<Generated> {
        let mut logits = Vec::new();
        let prefill = self.read_prompt(&mut logits, terminal)?;
        let mut decode = Rate::default();
        let mut text = String::new();
        let finish = loop {
            if self.options.interrupt.is_pressed() {
                break Finish::Interrupted;
            }
            if self.history.len() - self.n_prompt_tokens >= self.options.n_tokens_max {
                break Finish::Length;
            }
            let token = self.sampler.sample(&mut logits, &self.history)?;
            if self.options.eos.contains(&token) {
                break Finish::EndOfText;
            }
            if self.text.stop_tokens.contains(&token) {
                emit(self.text.finish(), &mut text, show)?;
                break Finish::StopString;
            }
            self.history.push(token);
            let stopped = emit(self.text.push(token), &mut text, show)?;
            if stopped {
                break Finish::StopString;
            }
            if self.session.n_tokens_left() == 0 {
                break Finish::ContextFull;
            }
            if self.history.len() - self.n_prompt_tokens < self.options.n_tokens_max {
                let start = Instant::now();
                self.session.want(self.sampler.reach(self.history.len()));
                replace(&mut logits, self.session.decode(token)?);
                decode = Rate { n_tokens: decode.n_tokens + 1, duration: decode.duration + start.elapsed() };
            }
        };
        if finish != Finish::StopString {
            emit(self.text.finish(), &mut text, show)?;
        }
        let token_ids = self.history.split_off(self.n_prompt_tokens);
        Ok(Generated { token_ids, text, finish, prefill, decode })
    }

    /// Reads what `session` does not have of the prompt. The last token is always read: its logits are needed.
    fn read_prompt(&mut self, logits: &mut Vec<f32>, terminal: &Terminal) -> anyhow::Result<Rate> {
        let prompt = &self.history;
        let n_same = self.session.history().iter().zip(prompt).take_while(|(cached, wanted)| cached == wanted).count();
        self.session.truncate(n_same.min(prompt.len().saturating_sub(1)));
        let missing = &prompt[self.session.history().len()..];
        let bar = if missing.len() > PREFILL_CHUNK {
            terminal.steps_bar(missing.len() as u64, "reading")
        } else {
            indicatif::ProgressBar::hidden()
        };
        self.session.want(self.sampler.reach(self.history.len()));
        let start = Instant::now();
        let mut n_tokens = 0;
        // An empty prompt goes to the session as well, whose error names it.
        let chunks = if missing.is_empty() { vec![missing] } else { missing.chunks(PREFILL_CHUNK).collect() };
        for chunk in chunks {
            if self.options.interrupt.is_pressed() {
                break;
            }
            replace(logits, self.session.prefill(chunk)?);
            n_tokens += chunk.len();
            bar.inc(chunk.len() as u64);
        }
        bar.finish_and_clear();
        Ok(Rate { n_tokens, duration: start.elapsed() })
    }
}

fn replace(logits: &mut Vec<f32>, new: &[f32]) {
    logits.clear();
    logits.extend_from_slice(new);
}

/// Shows a piece of text and keeps it. Whether a stop string came.
fn emit(outcome: StopOutcome, kept: &mut String, show: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<bool> {
    let (text, stopped) = match outcome {
        StopOutcome::Text(text) => (text, false),
        StopOutcome::Stopped { text, .. } => (text, true),
    };
    if !text.is_empty() {
        kept.push_str(&text);
        show(&text)?;
    }
    Ok(stopped)
}

/// Tokens to text that is certain: whole characters, and no beginning of a stop string.
struct TextStream<'a> {
    detokenizer: Option<Detokenizer<&'a Tokenizer>>,
    stops: StopStrings,
    /// Special tokens that are stop strings themselves. They have no text in which those could be found.
    stop_tokens: Vec<TokenId>,
}

impl<'a> TextStream<'a> {
    fn new(options: &GenerationOptions<'a>) -> Result<Self, TextError> {
        let detokenizer = options.tokenizer.map(|tokenizer| Detokenizer::after_prompt(tokenizer, SpecialTokens::Skip));
        let special = |stop: &String| {
            options.tokenizer?.special_token(stop).filter(|&token| options.tokenizer.is_some_and(|tokenizer| tokenizer.is_special(token)))
        };
        let stop_tokens = options.stop.iter().filter_map(special).collect();
        Ok(Self { detokenizer, stops: StopStrings::new(options.stop)?, stop_tokens })
    }

    fn push(&mut self, token: TokenId) -> StopOutcome {
        let text = self.detokenizer.as_mut().map_or("", |detokenizer| detokenizer.push(token));
        self.stops.push(text)
    }

    fn finish(&mut self) -> StopOutcome {
        let rest = self.detokenizer.as_mut().map_or("", |detokenizer| detokenizer.finish());
        match self.stops.push(rest) {
            StopOutcome::Text(text) => StopOutcome::Text(text + &self.stops.finish()),
            stopped => stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_model::random::{RandomWeights, small_config};
    use bitnet_model::reference::ReferenceDevice;
    use bitnet_model::{RunnerOptions, TransformerRunner};

    use super::*;

    fn session(n_context: usize) -> Session {
        let weights = RandomWeights::new(small_config(), 3);
        let runner = TransformerRunner::load(ReferenceDevice, &weights, RunnerOptions::single_sequence(n_context), &mut |_| {});
        Session::new(Box::new(runner.expect("a small model loads")))
    }

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    fn run(session: &mut Session, prompt: &[u32], n_tokens_max: usize, (eos, interrupt): (&[TokenId], &Interrupt)) -> Generated {
        let sampling = SamplingParams::greedy();
        let options = GenerationOptions { tokenizer: None, eos, sampling, stop: &[], n_tokens_max, interrupt };
        generate(session, &ids(prompt), &options, &Terminal::plain(), &mut |_| Ok(())).expect("generates")
    }

    #[test]
    fn generation_on_a_cached_beginning_gives_the_same_tokens() {
        let interrupt = Interrupt::default();
        let never: (&[TokenId], &Interrupt) = (&[], &interrupt);
        let prompt: Vec<u32> = (0..40).map(|index| index * 7 % 50).collect();
        let fresh = run(&mut session(128), &prompt, 10, never);
        assert_eq!((fresh.token_ids.len(), fresh.finish, fresh.prefill.n_tokens), (10, Finish::Length, 40));
        let mut cached = session(128);
        run(&mut cached, &[&prompt[..30], &[1, 2, 3]].concat(), 5, never);
        let again = run(&mut cached, &prompt, 10, never);
        assert_eq!((again.token_ids, again.prefill.n_tokens), (fresh.token_ids.clone(), 10));
        let same = run(&mut cached, &prompt, 10, never);
        assert_eq!((same.token_ids, same.prefill.n_tokens), (fresh.token_ids, 1), "only the last token is read again");
    }

    #[test]
    fn generation_ends_where_it_must() {
        let interrupt = Interrupt::default();
        let endless = run(&mut session(64), &[1, 2, 3], 10, (&[], &interrupt));
        let eos = [endless.token_ids[4]];
        let first = endless.token_ids.iter().position(|&token| token == eos[0]).expect("it is there");
        let ended = run(&mut session(64), &[1, 2, 3], 10, (&eos, &interrupt));
        assert_eq!((ended.finish, ended.token_ids.as_slice()), (Finish::EndOfText, &endless.token_ids[..first]));
        let full = run(&mut session(16), &[1, 2, 3], 100, (&[], &interrupt));
        assert_eq!(
            (full.finish, full.token_ids.len()),
            (Finish::ContextFull, 14),
            "13 cached after the prompt, and one drawn from the last"
        );
        assert_eq!(run(&mut session(16), &[1, 2, 3], 0, (&[], &interrupt)).finish, Finish::Length);
    }

    #[test]
    fn stop_string_that_is_a_special_token_ends_the_text() {
        let free = run(&mut session(64), &[1, 2, 3], 10, (&[], &Interrupt::default()));
        let stop_id = free.token_ids[4];
        let n_before = free.token_ids.iter().position(|&token| token == stop_id).expect("it is there");
        let vocabulary: serde_json::Map<_, _> = (0..small_config().n_vocab).map(|id| (format!("t{id}"), id.into())).collect();
        let file = json!({
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
            "added_tokens": [{"id": stop_id.0, "content": format!("t{stop_id}"), "special": true}],
        });
        let tokenizer = Tokenizer::from_json(file.to_string().as_bytes()).expect("valid");
        let (interrupt, stop) = (Interrupt::default(), [format!("t{stop_id}")]);
        let sampling = SamplingParams::greedy();
        let options =
            GenerationOptions { tokenizer: Some(&tokenizer), eos: &[], sampling, stop: &stop, n_tokens_max: 10, interrupt: &interrupt };
        let stopped = generate(&mut session(64), &ids(&[1, 2, 3]), &options, &Terminal::plain(), &mut |_| Ok(())).expect("generates");
        assert_eq!((stopped.finish, stopped.token_ids.as_slice()), (Finish::StopString, &free.token_ids[..n_before]));
        let text: String = stopped.token_ids.iter().map(|id| format!("t{id}")).collect();
        assert_eq!(stopped.text, text, "what might have become the stop string is shown");
    }

    #[test]
    fn interrupt_between_tokens_keeps_what_was_written() {
        let interrupt = Interrupt::default();
        let mut session = session(64);
        let sampling = SamplingParams::greedy();
        let tokenizer = None;
        let options = GenerationOptions { tokenizer, eos: &[], sampling, stop: &[], n_tokens_max: 10, interrupt: &interrupt };
        let sampler = Sampler::new(options.sampling.clone()).expect("valid");
        let text = TextStream::new(&options).expect("valid");
        let writer = Writer { session: &mut session, options: &options, sampler, text, history: ids(&[1, 2]), n_prompt_tokens: 2 };
        interrupt.press();
        let generated = writer.write(&Terminal::plain(), &mut |_| Ok(())).expect("generates");
        assert_eq!((generated.finish, generated.token_ids.len()), (Finish::Interrupted, 0));
    }

    #[test]
    fn empty_prompt_is_an_error() {
        let interrupt = Interrupt::default();
        let sampling = SamplingParams::greedy();
        let options = GenerationOptions { tokenizer: None, eos: &[], sampling, stop: &[], n_tokens_max: 1, interrupt: &interrupt };
        assert!(generate(&mut session(16), &[], &options, &Terminal::plain(), &mut |_| Ok(())).is_err());
    }
}
