//! A conversation as the server understands it, whichever API it came in by: messages, tools, what shape the reply must have.
//! Here it becomes what the model's chat template reads. Models whose template knows no tools are told of them in the notation of
//! Hermes (NousResearch/Hermes-Function-Calling), which most open models were trained on; replies come back in it, too.

use bitnet_model::text::{ChatTemplate, Message, RenderOptions};
use serde_json::{Map, Value, json};

use crate::error::ServerError;
use crate::limits;

/// What a model writes before a call.
pub(crate) const CALL_START: &str = "<tool_call>";
/// And after it.
pub(crate) const CALL_END: &str = "</tool_call>";

/// A function that the model may ask the client to call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON schema of the arguments.
    pub(crate) parameters: Value,
}

/// Whether the model calls.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It does not.
    Forbidden,
    /// It calls something.
    Required,
    /// It calls this.
    Named(String),
}

/// How many calls one reply may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum CallCount {
    /// Any number.
    #[default]
    Many,
    /// One at most.
    One,
}

/// What the reply's text must be.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum ReplyFormat {
    /// Anything.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Value),
    /// Of another formal language.
    Constrained(bitnet_engine::Constraint),
}

/// A call that the model made earlier.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PastCall {
    pub(crate) id: String,
    pub(crate) name: String,
    /// As the model wrote them.
    pub(crate) arguments: String,
}

/// One turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Turn {
    /// What the model is told beforehand.
    System(String),
    /// The person.
    User(String),
    /// The model.
    Assistant { text: String, calls: Vec<PastCall> },
    /// What a called function returned.
    ToolResult { call_id: String, text: String },
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Conversation {
    pub(crate) turns: Vec<Turn>,
    /// Who speaks in each turn, where that was said; as long as `turns` or empty.
    pub(crate) names: Vec<Option<String>>,
    pub(crate) tools: Vec<Tool>,
    pub(crate) tool_choice: ToolChoice,
    pub(crate) call_count: CallCount,
    pub(crate) format: ReplyFormat,
    /// Further arguments of the template.
    pub(crate) template_arguments: Map<String, Value>,
    /// The last turn is the model's own beginning, to be continued.
    pub(crate) continues: Continuation,
}

/// Whether the reply begins a turn or goes on with the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Continuation {
    /// A turn of its own.
    #[default]
    NewTurn,
    /// It goes on where the last message ends (Anthropic's prefill).
    LastTurn,
}

impl Conversation {
    /// Tools that the model may call in this reply.
    pub(crate) fn callable(&self) -> &[Tool] {
        if self.tool_choice == ToolChoice::Forbidden { &[] } else { &self.tools }
    }

    /// Checks what types cannot say; `prefix` is the name of the parameter that holds the messages.
    pub(crate) fn check(&self, messages_param: &str) -> Result<(), ServerError> {
        if self.turns.is_empty() {
            return Err(ServerError::invalid(messages_param, "there is no message"));
        }
        if self.turns.len() > limits::N_MESSAGES_MAX {
            let reason = format!("{} messages, more than {}", self.turns.len(), limits::N_MESSAGES_MAX);
            return Err(ServerError::invalid(messages_param, reason));
        }
        check_tools(&self.tools)?;
        match &self.tool_choice {
            ToolChoice::Required if self.tools.is_empty() => {
                Err(ServerError::invalid("tool_choice", "there are no `tools` to choose from"))
            }
            ToolChoice::Named(name) if !self.tools.iter().any(|tool| &tool.name == name) => {
                Err(ServerError::invalid("tool_choice", format!("`{name}` is not among `tools`")))
            }
            _ => Ok(()),
        }
    }

    /// Writes the prompt.
    pub(crate) fn render(&self, template: &ChatTemplate, now_unix_seconds: i64) -> Result<String, bitnet_model::text::TextError> {
        let knows_tools = template.reads("tools");
        let messages = self.messages(knows_tools);
        let tools = knows_tools.then(|| self.tool_descriptions()).flatten();
        let mut options = RenderOptions {
            add_generation_prompt: true,
            now_unix_seconds: Some(now_unix_seconds),
            tools,
            arguments: self.template_arguments.clone(),
        };
        let Some((Turn::Assistant { text, .. }, Continuation::LastTurn)) = self.turns.last().map(|turn| (turn, self.continues)) else {
            return template.render(&messages, &options);
        };
        // The prompt of the turns before it opens the model's turn; the beginning that was given follows.
        options.add_generation_prompt = true;
        let mut prompt = template.render(&messages[..messages.len() - 1], &options)?;
        prompt.push_str(text);
        Ok(prompt)
    }

    fn tool_descriptions(&self) -> Option<Value> {
        let tools = self.callable();
        (!tools.is_empty()).then(|| tools.iter().map(describe_tool).collect())
    }

    fn messages(&self, knows_tools: bool) -> Vec<Message> {
        let mut messages: Vec<Message> = self.turns.iter().map(|turn| message(turn, knows_tools)).collect();
        for (message, name) in messages.iter_mut().zip(&self.names) {
            message.fields.extend(name.clone().map(|name| ("name".to_string(), Value::from(name))));
        }
        if !knows_tools && let Some(tools) = self.tool_descriptions() {
            let instructions = tool_instructions(&tools);
            match messages.first_mut() {
                Some(first) if first.role == "system" => first.content = format!("{}\n\n{instructions}", first.content),
                _ => messages.insert(0, Message::new("system", instructions)),
            }
        }
        messages
    }
}

fn check_tools(tools: &[Tool]) -> Result<(), ServerError> {
    if tools.len() > limits::N_TOOLS_MAX {
        return Err(ServerError::invalid("tools", format!("{} tools, more than {}", tools.len(), limits::N_TOOLS_MAX)));
    }
    for (index, tool) in tools.iter().enumerate() {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
        let is_valid = (1..=limits::TOOL_NAME_BYTES_MAX).contains(&tool.name.len()) && tool.name.chars().all(is_name);
        if !is_valid {
            let reason = format!("a name is 1 to {} of a-z, A-Z, 0-9, `_`, `-` and `.`", limits::TOOL_NAME_BYTES_MAX);
            return Err(ServerError::invalid(format!("tools[{index}].name"), reason));
        }
        if tools[..index].iter().any(|other| other.name == tool.name) {
            return Err(ServerError::invalid(format!("tools[{index}].name"), format!("`{}` is there twice", tool.name)));
        }
        if !tool.parameters.is_object() {
            return Err(ServerError::invalid(format!("tools[{index}].parameters"), "a JSON schema is an object"));
        }
    }
    Ok(())
}

fn describe_tool(tool: &Tool) -> Value {
    let mut function = Map::new();
    function.insert("name".into(), tool.name.clone().into());
    if let Some(description) = &tool.description {
        function.insert("description".into(), description.clone().into());
    }
    function.insert("parameters".into(), tool.parameters.clone());
    json!({ "type": "function", "function": function })
}

/// What a template that knows no tools says of them, in the words that Hermes models were trained with.
fn tool_instructions(tools: &Value) -> String {
    let list: Vec<String> = tools.as_array().into_iter().flatten().map(Value::to_string).collect();
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
         You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\n\
         For each function call, return a json object with function name and arguments within {CALL_START}{CALL_END} XML tags:\n\
         {CALL_START}\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n{CALL_END}",
        list.join("\n")
    )
}

/// A call as models write it.
fn written_call(call: &PastCall) -> String {
    let name = Value::from(call.name.as_str());
    format!("{CALL_START}\n{{\"name\": {name}, \"arguments\": {}}}\n{CALL_END}", call.arguments)
}

fn message(turn: &Turn, knows_tools: bool) -> Message {
    match turn {
        Turn::System(text) => Message::new("system", text),
        Turn::User(text) => Message::new("user", text),
        Turn::Assistant { text, calls } if knows_tools => {
            let mut message = Message::new("assistant", text);
            if !calls.is_empty() {
                message.fields.insert("tool_calls".into(), calls.iter().map(call_field).collect());
            }
            message
        }
        Turn::Assistant { text, calls } => {
            let written = calls.iter().map(written_call);
            let parts: Vec<String> = (!text.is_empty()).then(|| text.clone()).into_iter().chain(written).collect();
            Message::new("assistant", parts.join("\n"))
        }
        Turn::ToolResult { call_id, text } if knows_tools => {
            let mut message = Message::new("tool", text);
            message.fields.insert("tool_call_id".into(), call_id.clone().into());
            message
        }
        Turn::ToolResult { text, .. } => Message::new("user", format!("<tool_response>\n{text}\n</tool_response>")),
    }
}

/// A past call as templates read it: arguments as a value, which they write as JSON themselves.
fn call_field(call: &PastCall) -> Value {
    let arguments = serde_json::from_str::<Value>(&call.arguments).unwrap_or_else(|_| call.arguments.clone().into());
    json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str =
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    const KNOWING: &str = "{% if tools %}T{{ tools | length }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}\
                           {% for c in m.tool_calls or [] %}!{{ c.function.arguments.x }}{% endfor %}{% endfor %}";

    fn conversation() -> Conversation {
        let call = PastCall { id: "c1".into(), name: "f".into(), arguments: "{\"x\": 7}".into() };
        Conversation {
            turns: vec![
                Turn::User("hi".into()),
                Turn::Assistant { text: String::new(), calls: vec![call] },
                Turn::ToolResult { call_id: "c1".into(), text: "42".into() },
            ],
            tools: vec![Tool { name: "f".into(), description: None, parameters: json!({"type": "object"}) }],
            ..Conversation::default()
        }
    }

    fn render(source: &str, conversation: &Conversation) -> String {
        let template = ChatTemplate::compile(source, None, None).expect("valid");
        conversation.render(&template, 0).expect("renders")
    }

    #[test]
    fn template_without_tools_gets_them_as_text() {
        let prompt = render(PLAIN, &conversation());
        assert!(prompt.starts_with("[system]# Tools"), "{prompt}");
        let end = "[assistant]<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 7}}\n</tool_call>[user]<tool_response>\n42\n</tool_response>[assistant]";
        assert!(prompt.ends_with(end), "{prompt}");
    }

    #[test]
    fn template_with_tools_gets_them_as_values() {
        assert_eq!(render(KNOWING, &conversation()), "T1[user]hi[assistant]!7[tool]42");
        let forbidden = Conversation { tool_choice: ToolChoice::Forbidden, ..conversation() };
        assert_eq!(render(KNOWING, &forbidden), "[user]hi[assistant]!7[tool]42");
    }

    #[test]
    fn beginning_of_the_reply_is_continued() {
        let turns = vec![Turn::User("hi".into()), Turn::Assistant { text: "Well".into(), calls: vec![] }];
        let continued = Conversation { turns, continues: Continuation::LastTurn, ..Conversation::default() };
        assert_eq!(render(PLAIN, &continued), "[user]hi[assistant]Well");
    }

    #[test]
    fn tools_that_cannot_be_are_refused() {
        let refusal = |change: &dyn Fn(&mut Conversation)| {
            let mut conversation = conversation();
            change(&mut conversation);
            conversation.check("messages").expect_err("refused").to_string()
        };
        assert!(conversation().check("messages").is_ok());
        assert!(refusal(&|c| c.turns.clear()).starts_with("`messages`"));
        assert!(refusal(&|c| c.tools[0].name = "a b".into()).starts_with("`tools[0].name`"));
        assert!(refusal(&|c| c.tools.push(c.tools[0].clone())).contains("twice"));
        assert!(refusal(&|c| c.tools[0].parameters = json!(1)).starts_with("`tools[0].parameters`"));
        assert!(refusal(&|c| c.tool_choice = ToolChoice::Named("g".into())).starts_with("`tool_choice`"));
    }
}
