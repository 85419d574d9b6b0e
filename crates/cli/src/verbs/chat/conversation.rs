//! The messages of a conversation and the prompt that a chat template makes of them.

use bitnet_model::text::{ChatTemplate, Message, RenderOptions, TextError};
use serde_json::json;

use crate::clock;

/// A system message, if any, and turns: a question and its answer each.
pub(super) struct Conversation {
    template: ChatTemplate,
    system: Option<Message>,
    turns: Vec<Turn>,
    n_forgotten: usize,
}

struct Turn {
    question: Message,
    answer: Option<Message>,
}

impl Conversation {
    /// An empty conversation.
    pub(super) fn new(template: ChatTemplate, system: Option<&str>) -> Self {
        Self { template, system: system.map(|text| Message::new("system", text)), turns: Vec::new(), n_forgotten: 0 }
    }

    /// Forgets everything but the system message.
    pub(super) fn reset(&mut self) {
        self.turns.clear();
        self.n_forgotten = 0;
    }

    /// The user's next message.
    pub(super) fn ask(&mut self, text: &str) {
        self.turns.push(Turn { question: Message::new("user", text), answer: None });
    }

    /// The model's reply to the last question.
    pub(super) fn answer(&mut self, text: &str) {
        if let Some(turn) = self.turns.last_mut() {
            turn.answer = Some(Message::new("assistant", text));
        }
    }

    /// Takes the last question back if it has no reply.
    pub(super) fn drop_unanswered(&mut self) {
        self.turns.pop_if(|turn| turn.answer.is_none());
    }

    /// Turns that later prompts do without; they stay in what is saved.
    pub(super) fn n_forgotten(&self) -> usize {
        self.n_forgotten
    }

    /// Later prompts do without the first `n_turns`.
    pub(super) fn forget(&mut self, n_turns: usize) {
        self.n_forgotten = n_turns;
    }

    /// Questions so far.
    pub(super) fn n_turns(&self) -> usize {
        self.turns.len()
    }

    /// The prompt for the last question, without the first `n_forgotten` turns.
    pub(super) fn render(&self, n_forgotten: usize) -> Result<String, TextError> {
        let messages: Vec<Message> = self.messages(n_forgotten).cloned().collect();
        let now_unix_seconds = clock::now_unix_seconds();
        self.template.render(&messages, &RenderOptions { add_generation_prompt: true, now_unix_seconds, ..RenderOptions::default() })
    }

    /// `[{"role": …, "content": …}, …]`.
    pub(super) fn to_json(&self) -> serde_json::Value {
        self.messages(0).map(|message| json!({ "role": message.role, "content": message.content })).collect()
    }

    fn messages(&self, n_forgotten: usize) -> impl Iterator<Item = &Message> {
        let turns = self.turns.iter().skip(n_forgotten);
        self.system.iter().chain(turns.flat_map(|turn| std::iter::once(&turn.question).chain(&turn.answer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}";

    fn conversation(system: Option<&str>) -> Conversation {
        Conversation::new(ChatTemplate::compile(TEMPLATE, None, None).expect("valid"), system)
    }

    #[test]
    fn conversation_forgets_whole_turns_and_never_the_system() {
        let mut conversation = conversation(Some("be brief"));
        conversation.ask("one");
        conversation.answer("1");
        conversation.ask("two");
        assert_eq!(conversation.render(0).expect("renders"), "s:be brief;u:one;a:1;u:two;a:");
        assert_eq!(conversation.render(1).expect("renders"), "s:be brief;u:two;a:");
        conversation.reset();
        assert_eq!(
            (conversation.n_turns(), conversation.to_json().to_string().as_str()),
            (0, r#"[{"role":"system","content":"be brief"}]"#)
        );
    }
}
