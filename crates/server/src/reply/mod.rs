//! What a generation says, read once for all APIs: text, calls, log-probabilities, why it ended. A streamed reply encodes these
//! parts one by one, an unstreamed one collects them, so the two cannot differ.

pub(crate) mod calls;
pub(crate) mod grammar;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bitnet_engine::{FinishReason, TokenLogprob, Usage};
use bitnet_model::TokenId;

use crate::admission::RateLimits;
use crate::error::ServerError;
use crate::generation::{Generation, GenerationEvent};
use crate::reply::calls::{CallReader, CallsExpected, ReplyPart};

/// What comes of a generation.
#[derive(Debug)]
pub(crate) enum ReplyEvent {
    /// A prompt is read.
    Started { prompt: usize, prompt_logprobs: Option<Vec<Option<TokenLogprob>>> },
    /// Something was said.
    Part { choice: usize, part: ReplyPart, tokens: Vec<SaidToken> },
    /// A choice is complete.
    ChoiceFinished { choice: usize, ending: Ending },
    /// The last event: all is there.
    Finished(Usage),
    /// The last event: it came to nothing.
    Failed(ServerError),
}

/// A token, for who wants to know.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SaidToken {
    pub(crate) token_id: TokenId,
    pub(crate) logprob: Option<TokenLogprob>,
}

/// Why a choice ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ending {
    pub(crate) reason: FinishReason,
    /// Calls that the choice holds.
    pub(crate) n_calls: usize,
}

/// One choice as it is read.
struct Voice {
    reader: CallReader,
    /// Tokens whose text is not out yet.
    tokens: Vec<SaidToken>,
}

/// See the module.
pub(crate) struct Reply {
    generation: Generation,
    voices: Vec<Voice>,
    ready: VecDeque<ReplyEvent>,
    parts: Vec<ReplyPart>,
}

impl Reply {
    /// Of a generation that was just started.
    pub(crate) fn new(generation: Generation, expected: CallsExpected) -> Self {
        let voice = |_| Voice { reader: CallReader::new(expected), tokens: Vec::new() };
        let voices = (0..generation.n_choices()).map(voice).collect();
        Self { generation, voices, ready: VecDeque::new(), parts: Vec::new() }
    }

    /// What the caller has left of its rate.
    pub(crate) fn rate_limits(&self) -> Option<RateLimits> {
        self.generation.rate_limits()
    }

    /// Tokens of all prompts.
    pub(crate) fn n_prompt_tokens(&self) -> usize {
        self.generation.n_prompt_tokens()
    }

    /// Choices over all prompts.
    pub(crate) fn n_choices(&self) -> usize {
        self.voices.len()
    }

    /// The next event; `None` after the last one.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<ReplyEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            match self.generation.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(event)) => self.read(event),
            }
        }
    }

    /// The same, awaited.
    pub(crate) async fn next(&mut self) -> Option<ReplyEvent> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn read(&mut self, event: GenerationEvent) {
        match event {
            GenerationEvent::Started { prompt, prompt_logprobs, .. } => {
                self.ready.push_back(ReplyEvent::Started { prompt, prompt_logprobs });
            }
            GenerationEvent::Token { choice, token_id, text, logprob } => {
                let voice = &mut self.voices[choice];
                voice.tokens.push(SaidToken { token_id, logprob });
                voice.reader.push(&text, &mut self.parts);
                self.say(choice);
            }
            GenerationEvent::ChoiceFinished { choice, reason, text } => {
                let voice = &mut self.voices[choice];
                voice.reader.push(&text, &mut self.parts);
                voice.reader.finish(&mut self.parts);
                let n_calls = voice.reader.n_calls();
                if self.parts.is_empty() && !voice.tokens.is_empty() {
                    self.parts.push(ReplyPart::Text(String::new()));
                }
                self.say(choice);
                self.ready.push_back(ReplyEvent::ChoiceFinished { choice, ending: Ending { reason, n_calls } });
            }
            GenerationEvent::Finished(usage) => self.ready.push_back(ReplyEvent::Finished(usage)),
            GenerationEvent::Failed(error) => self.ready.push_back(ReplyEvent::Failed(error)),
            // Vectors are read by the embeddings route alone, which reads the generation itself.
            GenerationEvent::Embedding { .. } => {}
        }
    }

    fn say(&mut self, choice: usize) {
        for part in self.parts.drain(..) {
            let tokens = std::mem::take(&mut self.voices[choice].tokens);
            self.ready.push_back(ReplyEvent::Part { choice, part, tokens });
        }
    }
}

/// A call that the model made.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct SaidCall {
    pub(crate) name: String,
    pub(crate) arguments: String,
}

/// A whole choice.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct SaidChoice {
    pub(crate) text: String,
    pub(crate) calls: Vec<SaidCall>,
    pub(crate) tokens: Vec<SaidToken>,
    pub(crate) ending: Option<Ending>,
}

/// A whole reply.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Said {
    pub(crate) choices: Vec<SaidChoice>,
    /// For each prompt.
    pub(crate) prompt_logprobs: Vec<Option<Vec<Option<TokenLogprob>>>>,
    pub(crate) usage: Usage,
}

impl SaidChoice {
    /// Adds a part.
    pub(crate) fn push(&mut self, part: ReplyPart, tokens: Vec<SaidToken>) {
        self.tokens.extend(tokens);
        match part {
            ReplyPart::Text(text) => self.text.push_str(&text),
            ReplyPart::CallStart { name, .. } => self.calls.push(SaidCall { name, arguments: String::new() }),
            ReplyPart::Arguments { call, json } => self.calls[call].arguments.push_str(&json),
            ReplyPart::CallEnd { .. } => {}
        }
    }
}

/// Waits for the whole reply.
pub(crate) async fn collect(mut reply: Reply) -> Result<Said, ServerError> {
    let mut said = Said { choices: vec![SaidChoice::default(); reply.n_choices()], ..Said::default() };
    while let Some(event) = reply.next().await {
        match event {
            ReplyEvent::Started { prompt, prompt_logprobs } => {
                if said.prompt_logprobs.len() <= prompt {
                    said.prompt_logprobs.resize(prompt + 1, None);
                }
                said.prompt_logprobs[prompt] = prompt_logprobs;
            }
            ReplyEvent::Part { choice, part, tokens } => said.choices[choice].push(part, tokens),
            ReplyEvent::ChoiceFinished { choice, ending } => said.choices[choice].ending = Some(ending),
            ReplyEvent::Finished(usage) => said.usage = usage,
            ReplyEvent::Failed(error) => return Err(error),
        }
    }
    Ok(said)
}
