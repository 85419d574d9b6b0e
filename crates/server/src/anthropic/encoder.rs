//! The events of a streamed message, in Anthropic's sequence: `message_start`, then for each block `content_block_start`, deltas and
//! `content_block_stop`, then `message_delta` with why it ended, and `message_stop`.

use bitnet_engine::Usage;
use serde_json::{Value, json};

use crate::anthropic::messages::stop;
use crate::anthropic::wire::MessageUsage;
use crate::error::Dialect;
use crate::ids::new_id;
use crate::reply::calls::ReplyPart;
use crate::reply::{Ending, ReplyEvent};
use crate::sse::{Encoder, Frames};

/// Which kind of block is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    ToolUse,
}

/// See the module.
pub(crate) struct MessageEncoder {
    id: String,
    model: String,
    n_prompt_tokens: usize,
    open: Option<Block>,
    /// Blocks begun.
    n_blocks: usize,
    ending: Option<Ending>,
}

impl MessageEncoder {
    /// Of a message with this id.
    pub(crate) fn new(id: String, model: String, n_prompt_tokens: usize) -> Self {
        Self { id, model, n_prompt_tokens, open: None, n_blocks: 0, ending: None }
    }

    fn start(&mut self, kind: Block, block: Value, frames: &mut Frames) {
        self.stop(frames);
        frames.event("content_block_start", &json!({ "type": "content_block_start", "index": self.n_blocks, "content_block": block }));
        self.n_blocks += 1;
        self.open = Some(kind);
    }

    fn stop(&mut self, frames: &mut Frames) {
        if self.open.take().is_some() {
            frames.event("content_block_stop", &json!({ "type": "content_block_stop", "index": self.n_blocks - 1 }));
        }
    }

    fn delta(&self, delta: Value, frames: &mut Frames) {
        frames.event("content_block_delta", &json!({ "type": "content_block_delta", "index": self.n_blocks - 1, "delta": delta }));
    }

    fn part(&mut self, part: ReplyPart, frames: &mut Frames) {
        match part {
            ReplyPart::Text(text) if text.is_empty() => {}
            ReplyPart::Text(text) => {
                if self.open != Some(Block::Text) {
                    self.start(Block::Text, json!({ "type": "text", "text": "" }), frames);
                }
                self.delta(json!({ "type": "text_delta", "text": text }), frames);
            }
            ReplyPart::CallStart { name, .. } => {
                let block = json!({ "type": "tool_use", "id": new_id("toolu_"), "name": name, "input": {} });
                self.start(Block::ToolUse, block, frames);
            }
            ReplyPart::Arguments { json: partial, .. } => {
                self.delta(json!({ "type": "input_json_delta", "partial_json": partial }), frames);
            }
            ReplyPart::CallEnd { .. } => self.stop(frames),
        }
    }

    fn finish(&mut self, usage: Usage, frames: &mut Frames) {
        self.stop(frames);
        let (stop_reason, stop_sequence) = match &self.ending {
            Some(ending) => {
                let (reason, sequence) = stop(ending);
                (Some(reason), sequence)
            }
            None => (None, None),
        };
        let delta = json!({ "stop_reason": stop_reason, "stop_sequence": stop_sequence });
        frames.event("message_delta", &json!({ "type": "message_delta", "delta": delta, "usage": MessageUsage::from(usage) }));
        frames.event("message_stop", &json!({ "type": "message_stop" }));
    }
}

impl Encoder for MessageEncoder {
    fn begin(&mut self, frames: &mut Frames) {
        // How much of the prompt was cached is told at the end.
        let usage = Usage { n_prompt_tokens: self.n_prompt_tokens, ..Usage::default() };
        let message = json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": MessageUsage::from(usage),
        });
        frames.event("message_start", &json!({ "type": "message_start", "message": message }));
    }

    fn encode(&mut self, event: ReplyEvent, frames: &mut Frames) {
        match event {
            ReplyEvent::Started { .. } => {}
            ReplyEvent::Part { part, .. } => self.part(part, frames),
            ReplyEvent::ChoiceFinished { ending, .. } => self.ending = Some(ending),
            ReplyEvent::Finished(usage) => self.finish(usage, frames),
            ReplyEvent::Failed(error) => frames.event("error", &error.body(Dialect::Anthropic, None)),
        }
    }

    fn heartbeat(&mut self, frames: &mut Frames) {
        frames.event("ping", &json!({ "type": "ping" }));
    }
}
