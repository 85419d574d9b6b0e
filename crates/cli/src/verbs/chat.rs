//! `bitnet chat`: a conversation in the terminal, or line by line through a pipe. Each turn reads only what the model has not read
//! before. The conversation is kept whole; where it outgrows the context, its oldest turns are left out of the prompt.

mod conversation;
mod line_input;

use std::io::Write;

use anyhow::Context;
use bitnet_model::text::{TextError, Tokenizer};
use bitnet_model::{Session, TokenId};
use clap::Args;
use serde_json::json;

use self::conversation::Conversation;
use self::line_input::{Line, LineInput};
use super::run::{load_template, note_rates};
use crate::arguments::{DeviceArguments, GlobalArguments, ModelArguments, SamplingArguments};
use crate::failure::Misuse;
use crate::generation::{GenerationOptions, generate};
use crate::interrupt::Interrupt;
use crate::open::{load_session, open_to_write, require_text_model};
use crate::terminal::{Output, Terminal, is_reader_left};

const HELP: &str = "\
/help        this list
/reset       forget the conversation
/save FILE   write the conversation as JSON
/exit        leave; Ctrl-D does too
Ctrl-C       stop a reply";

/// Talk with a model
#[derive(Debug, Args)]
#[command(
    after_help = "In a conversation, /help lists the commands. Without a terminal, each line of standard input is a turn, unless it is one of the commands."
)]
pub(crate) struct ChatArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of a reply
    #[arg(short, long = "n-tokens", visible_alias = "max-tokens", value_name = "N", default_value_t = 1024)]
    n_tokens: usize,
    /// Tokens of the conversation that are kept in memory, at most the model's context
    #[arg(short, long, value_name = "N", default_value_t = 4096)]
    context: usize,
    /// Print each reply as a line of JSON when done
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Talks until the input ends.
pub(crate) fn perform(arguments: &ChatArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let checkpoint = open_to_write(&arguments.model, global, terminal)?;
    require_text_model(&checkpoint)?;
    let files = checkpoint.tokenizer_files();
    let sampling = arguments.sampling.params(&files.generation);
    sampling.validate()?;
    let tokenizer = Tokenizer::load(files)?;
    let conversation = Conversation::new(load_template(&checkpoint, terminal)?, arguments.system.as_deref());
    let interrupt = Interrupt::install();
    let session = load_session(&checkpoint, &arguments.device.for_sampling(&sampling)?, arguments.context, terminal)?;
    let options = GenerationOptions {
        tokenizer: Some(&tokenizer),
        eos: tokenizer.eos(),
        sampling,
        stop: &arguments.sampling.stop,
        n_tokens_max: arguments.n_tokens,
        interrupt: &interrupt,
    };
    let input = LineInput::open(terminal)?;
    Chat { tokenizer: &tokenizer, options, conversation, session, json: arguments.json, terminal }.talk(input)
}

/// A conversation with its model.
struct Chat<'a> {
    tokenizer: &'a Tokenizer,
    options: GenerationOptions<'a>,
    conversation: Conversation,
    session: Session,
    json: bool,
    terminal: &'a Terminal,
}

/// A line that is no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command<'l> {
    Help,
    Reset,
    Save(&'l str),
    Exit,
}

impl<'l> Command<'l> {
    fn of(line: &'l str) -> Option<Self> {
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (name, argument.trim()) {
            ("/help", "") => Some(Self::Help),
            ("/reset", "") => Some(Self::Reset),
            ("/save", path) => Some(Self::Save(path)),
            ("/exit" | "/quit", "") => Some(Self::Exit),
            _ => None,
        }
    }
}

/// What a line led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    Leave,
}

impl Chat<'_> {
    fn talk(mut self, mut input: LineInput) -> anyhow::Result<()> {
        if input.is_terminal() {
            self.terminal.note("/help lists the commands, Ctrl-D leaves");
        }
        loop {
            let line = match input.read()? {
                Line::Text(line) => line,
                Line::Interrupted => {
                    self.terminal.note("Ctrl-D or /exit leaves");
                    continue;
                }
                Line::End => break,
            };
            if self.take(line.trim(), input.is_terminal())? == Next::Leave {
                break;
            }
        }
        input.close();
        Ok(())
    }

    /// Does what a line says. What goes wrong is told to a person, who can go on; in a pipe, where nobody would see it, it is an error.
    fn take(&mut self, line: &str, is_terminal: bool) -> anyhow::Result<Next> {
        let outcome = match Command::of(line) {
            Some(command) => self.command(command),
            None if line.is_empty() => Ok(Next::Continue),
            // A person has mistyped. A pipe has texts, and some begin with a slash.
            None if is_terminal && line.starts_with('/') => Err(anyhow::anyhow!("there is no such command; /help lists them")),
            None => self.reply(line),
        };
        match outcome {
            Err(error) if is_terminal && !is_reader_left(&error) => {
                self.conversation.drop_unanswered();
                crate::failure::report(&error, self.terminal, &mut std::io::stderr().lock())?;
                Ok(Next::Continue)
            }
            other => other,
        }
    }

    fn command(&mut self, command: Command<'_>) -> anyhow::Result<Next> {
        match command {
            Command::Exit => return Ok(Next::Leave),
            Command::Help => writeln!(Output, "{HELP}")?,
            Command::Reset => {
                self.conversation.reset();
                self.terminal.note("the conversation is forgotten");
            }
            Command::Save("") => anyhow::bail!("/save needs the name of a file"),
            Command::Save(path) => self.save(path)?,
        }
        Ok(Next::Continue)
    }

    fn save(&self, path: &str) -> anyhow::Result<()> {
        let context = || format!("cannot save {path}");
        let mut file = std::fs::File::options().write(true).create_new(true).open(path).with_context(context)?;
        writeln!(file, "{}", serde_json::to_string_pretty(&self.conversation.to_json())?).with_context(context)?;
        self.terminal.note(&format!("saved {path}"));
        Ok(())
    }

    fn reply(&mut self, text: &str) -> anyhow::Result<Next> {
        self.conversation.ask(text);
        let prompt = self.prompt()?;
        let json = self.json;
        let mut has_begun = false;
        let mut show = |text: &str| {
            // Templates end with a colon, and models then begin with a space or a line break.
            let text = if has_begun { text } else { text.trim_start() };
            has_begun |= !text.is_empty();
            if json { Ok(()) } else { Output.write_all(text.as_bytes()).and_then(|()| Output.flush()) }
        };
        let generated = generate(&mut self.session, &prompt, &self.options, self.terminal, &mut show)?;
        self.conversation.answer(generated.text.trim());
        // Another draw for the next turn, and the same conversation for the same seed.
        self.options.sampling.seed = self.options.sampling.seed.wrapping_add(1);
        if self.json {
            let line = json!({
                "role": "assistant", "content": generated.text.trim(), "finish": generated.finish,
                "prefill": generated.prefill.json(), "decode": generated.decode.json(),
            });
            writeln!(Output, "{line}")?;
        } else {
            writeln!(Output)?;
            note_rates(&generated, None, self.terminal);
        }
        Ok(Next::Continue)
    }

    /// The conversation's tokens, without its oldest turns if they do not fit.
    fn prompt(&mut self) -> anyhow::Result<Vec<TokenId>> {
        let capacity = self.session.runner().limits().context_length;
        // What did not fit before does not fit now, since a conversation only grows.
        let mut n_too_few = self.conversation.n_forgotten();
        if let Some(prompt) = self.prompt_without(n_too_few, capacity)? {
            return Ok(prompt);
        }
        // The fewest turns to forget, found by halving: rendering and encoding a long conversation takes time.
        let mut n_enough = self.conversation.n_turns().saturating_sub(1);
        let Some(mut prompt) = self.prompt_without(n_enough, capacity)? else {
            let what = format!("the message is longer than the context of {capacity} tokens");
            return Err(Misuse::new(what, "a shorter message, or a larger --context if the model has one").into());
        };
        while n_too_few + 1 < n_enough {
            let n_forgotten = n_too_few.midpoint(n_enough);
            match self.prompt_without(n_forgotten, capacity)? {
                Some(longer) => (prompt, n_enough) = (longer, n_forgotten),
                None => n_too_few = n_forgotten,
            }
        }
        self.conversation.forget(n_enough);
        self.terminal.note(&format!("the conversation outgrows the context: {n_enough} oldest turns are left out"));
        Ok(prompt)
    }

    /// The prompt without the first `n_forgotten` turns, if it fits.
    fn prompt_without(&self, n_forgotten: usize, capacity: usize) -> anyhow::Result<Option<Vec<TokenId>>> {
        let encoded = self.conversation.render(n_forgotten).and_then(|prompt| self.tokenizer.encode_chat(&prompt));
        let is_last = n_forgotten + 1 == self.conversation.n_turns();
        let prompt = match encoded {
            Err(TextError::TooManyMessages { .. } | TextError::TemplateOutput { .. } | TextError::TextTooLong { .. }) if !is_last => {
                return Ok(None);
            }
            other => other?,
        };
        // Room for a short reply at least.
        let room = (capacity / 4).min(self.options.n_tokens_max).max(1);
        Ok((prompt.len().saturating_add(room) <= capacity).then_some(prompt))
    }
}

#[cfg(test)]
mod tests {
    use bitnet_checkpoint::ModelConfig;
    use bitnet_model::random::{RandomWeights, small_config};
    use bitnet_model::reference::ReferenceDevice;
    use bitnet_model::sampler::SamplingParams;
    use bitnet_model::text::ChatTemplate;
    use bitnet_model::{RunnerOptions, TransformerRunner};

    use super::*;

    const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}.{% endfor %}";

    fn tokenizer() -> Tokenizer {
        let letters: serde_json::Map<_, _> =
            ('a'..='z').chain(['.']).zip(0..).map(|(letter, id)| (letter.to_string(), json!(id))).collect();
        Tokenizer::from_json(json!({"model": {"type": "BPE", "vocab": letters, "merges": []}}).to_string().as_bytes()).expect("valid")
    }

    /// A chat of a random model of 27 letters with `n_context` tokens.
    fn with_chat(n_context: usize, test: impl FnOnce(&mut Chat<'_>)) {
        let (tokenizer, interrupt, terminal) = (tokenizer(), Interrupt::default(), Terminal::plain());
        let weights = RandomWeights::new(ModelConfig { n_vocab: 27, ..small_config() }, 3);
        let runner = TransformerRunner::load(ReferenceDevice, &weights, RunnerOptions::single_sequence(n_context), &mut |_| {});
        let sampling = SamplingParams::greedy();
        let options =
            GenerationOptions { tokenizer: Some(&tokenizer), eos: &[], sampling, stop: &[], n_tokens_max: 2, interrupt: &interrupt };
        let conversation = Conversation::new(ChatTemplate::compile(TEMPLATE, None, None).expect("valid"), None);
        let session = Session::new(Box::new(runner.expect("a small model loads")));
        test(&mut Chat { tokenizer: &tokenizer, options, conversation, session, json: true, terminal: &terminal });
    }

    #[test]
    fn bad_turn_in_a_terminal_is_dropped_and_the_chat_goes_on() {
        with_chat(32, |chat| {
            let too_long = "x".repeat(100);
            assert!(chat.take(&too_long, false).is_err(), "a pipe ends");
            chat.conversation.drop_unanswered();
            for (line, n_turns) in [("hello", 1), (too_long.as_str(), 1), ("no token for 7", 1), ("/nothing", 1), ("again", 2)] {
                assert_eq!(chat.take(line, true).expect("goes on"), Next::Continue, "{line}");
                assert_eq!(chat.conversation.n_turns(), n_turns, "{line}");
            }
        });
    }

    #[test]
    fn conversation_of_more_turns_than_a_template_takes_goes_on() {
        with_chat(32, |chat| {
            let n_turns = bitnet_model::limits::N_MESSAGES_MAX / 2 + 2;
            for _ in 0..n_turns {
                chat.conversation.ask("");
                chat.conversation.answer("");
            }
            chat.take("hello", false).expect("forgets");
            let n_forgotten = chat.conversation.n_forgotten();
            assert!(n_forgotten > 2 && n_forgotten < n_turns, "{n_forgotten}");
            assert!(chat.take(&"x".repeat(100), false).is_err());
            chat.conversation.drop_unanswered();
            assert_eq!(chat.conversation.n_forgotten(), n_forgotten, "a message that fits nowhere makes nothing forgotten");
            chat.take("/reset", false).expect("resets");
            assert_eq!(chat.conversation.n_forgotten(), 0);
        });
    }
}
