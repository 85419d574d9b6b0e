//! A response as it grows: items open and close, and every step is an event in OpenAI's exact sequence. An unstreamed response is the
//! same growth with nobody listening.

use bitnet_engine::FinishReason;
use serde_json::{Value, json};

use crate::conversation::{PastCall, Turn};
use crate::error::{Dialect, ServerError};
use crate::ids::new_id;
use crate::openai::response_wire::ResponseObject;
use crate::reply::calls::ReplyPart;
use crate::reply::{Ending, ReplyEvent};

/// Hears of events: a name and what it says.
pub(crate) type Listener<'a> = &'a mut dyn FnMut(&'static str, Value);

/// The item that is being written.
enum OpenItem {
    None,
    Message { id: String, text: String },
    Call { id: String, call: PastCall },
}

/// See the module.
pub(crate) struct Progress {
    object: ResponseObject,
    open: OpenItem,
    ending: Option<Ending>,
    n_events: u64,
    /// What the model said, for whoever goes on from here.
    turn: (String, Vec<PastCall>),
}

impl Progress {
    /// Of a response with no output yet.
    pub(crate) fn new(object: ResponseObject) -> Self {
        Self { object, open: OpenItem::None, ending: None, n_events: 0, turn: Default::default() }
    }

    /// The response so far.
    pub(crate) fn object(&self) -> &ResponseObject {
        &self.object
    }

    /// What the model said, as a turn.
    pub(crate) fn turn(&self) -> Turn {
        Turn::Assistant { text: self.turn.0.clone(), calls: self.turn.1.clone() }
    }

    /// The response exists.
    pub(crate) fn begin(&mut self, listener: Listener<'_>) {
        for name in ["response.created", "response.in_progress"] {
            let response = json!({ "response": self.object });
            self.emit(name, response, listener);
        }
    }

    /// Takes an event; the outcome comes with the last.
    pub(crate) fn push(&mut self, event: ReplyEvent, listener: Listener<'_>) -> Option<Result<(), ServerError>> {
        match event {
            ReplyEvent::Started { .. } => None,
            ReplyEvent::Part { part, .. } => {
                self.part(part, listener);
                None
            }
            ReplyEvent::ChoiceFinished { ending, .. } => {
                self.ending = Some(ending);
                None
            }
            ReplyEvent::Finished(usage) => {
                self.object.usage = Some(usage.into());
                self.finish(listener);
                Some(Ok(()))
            }
            ReplyEvent::Failed(error) => {
                self.fail(&error, listener);
                Some(Err(error))
            }
        }
    }

    fn part(&mut self, part: ReplyPart, listener: Listener<'_>) {
        match part {
            ReplyPart::Text(text) if text.is_empty() => {}
            ReplyPart::Text(text) => {
                if !matches!(self.open, OpenItem::Message { .. }) {
                    self.open_message(listener);
                }
                self.text(&text, listener);
            }
            ReplyPart::CallStart { name, .. } => self.open_call(name, listener),
            ReplyPart::Arguments { json, .. } => self.arguments(&json, listener),
            ReplyPart::CallEnd { .. } => self.close("completed", listener),
        }
    }

    fn open_message(&mut self, listener: Listener<'_>) {
        self.close("completed", listener);
        let id = new_id("msg_");
        self.open = OpenItem::Message { id: id.clone(), text: String::new() };
        let item = json!({ "id": id, "type": "message", "status": "in_progress", "role": "assistant", "content": [] });
        self.emit("response.output_item.added", json!({ "output_index": self.index(), "item": item }), listener);
        let added = json!({ "item_id": id, "output_index": self.index(), "content_index": 0, "part": text_part("") });
        self.emit("response.content_part.added", added, listener);
    }

    fn text(&mut self, delta: &str, listener: Listener<'_>) {
        let index = self.index();
        let OpenItem::Message { id, text } = &mut self.open else { return };
        text.push_str(delta);
        self.turn.0.push_str(delta);
        let event = json!({ "item_id": id, "output_index": index, "content_index": 0, "delta": delta, "logprobs": [] });
        self.emit("response.output_text.delta", event, listener);
    }

    fn open_call(&mut self, name: String, listener: Listener<'_>) {
        self.close("completed", listener);
        let (id, call_id) = (new_id("fc_"), new_id("call_"));
        let call = PastCall { id: call_id, name, arguments: String::new() };
        let item = call_item(&id, &call, "in_progress");
        self.open = OpenItem::Call { id, call };
        self.emit("response.output_item.added", json!({ "output_index": self.index(), "item": item }), listener);
    }

    fn arguments(&mut self, delta: &str, listener: Listener<'_>) {
        let index = self.index();
        let OpenItem::Call { id, call } = &mut self.open else { return };
        call.arguments.push_str(delta);
        let event = json!({ "item_id": id, "output_index": index, "delta": delta });
        self.emit("response.function_call_arguments.delta", event, listener);
    }

    /// Ends the item that is open.
    fn close(&mut self, status: &'static str, listener: Listener<'_>) {
        let index = self.index();
        let item = match std::mem::replace(&mut self.open, OpenItem::None) {
            OpenItem::None => return,
            OpenItem::Message { id, text } => {
                let done = json!({ "item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": [] });
                self.emit("response.output_text.done", done, listener);
                let part = text_part(&text);
                let done = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part });
                self.emit("response.content_part.done", done, listener);
                json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": [part] })
            }
            OpenItem::Call { id, call } => {
                let done = json!({ "item_id": id, "output_index": index, "name": call.name, "arguments": call.arguments });
                self.emit("response.function_call_arguments.done", done, listener);
                let item = call_item(&id, &call, status);
                self.turn.1.push(call);
                item
            }
        };
        self.emit("response.output_item.done", json!({ "output_index": index, "item": item }), listener);
        self.object.output.push(item);
    }

    fn finish(&mut self, listener: Listener<'_>) {
        let cut_short = matches!(&self.ending, Some(Ending { reason: FinishReason::Length | FinishReason::ContextFull, .. }));
        if self.object.output.is_empty() && matches!(self.open, OpenItem::None) {
            // A model that said nothing has still answered.
            self.open_message(listener);
        }
        let status = if cut_short { "incomplete" } else { "completed" };
        self.close(status, listener);
        self.object.status = status;
        let name = if cut_short {
            self.object.incomplete_details = Some(json!({ "reason": "max_output_tokens" }));
            "response.incomplete"
        } else {
            "response.completed"
        };
        let response = json!({ "response": self.object });
        self.emit(name, response, listener);
    }

    fn fail(&mut self, error: &ServerError, listener: Listener<'_>) {
        self.object.status = "failed";
        let body = error.body(Dialect::OpenAi, None);
        self.object.error = Some(json!({ "code": error.code(), "message": body["error"]["message"] }));
        let response = json!({ "response": self.object });
        self.emit("response.failed", response, listener);
    }

    /// Where the open item will stand.
    fn index(&self) -> usize {
        self.object.output.len()
    }

    fn emit(&mut self, name: &'static str, mut event: Value, listener: Listener<'_>) {
        if let Some(members) = event.as_object_mut() {
            members.insert("type".into(), name.into());
            members.insert("sequence_number".into(), self.n_events.into());
        }
        self.n_events += 1;
        listener(name, event);
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn call_item(id: &str, call: &PastCall, status: &str) -> Value {
    json!({
        "id": id,
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    })
}
