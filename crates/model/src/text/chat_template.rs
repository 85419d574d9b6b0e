//! Chat templates: messages into a prompt, by the Jinja source that a model's authors published.
//!
//! The source is untrusted (CVE-2024-34359 and CVE-2026-5760 ran code from it). minijinja has no host objects to escape to; we also
//! leave out its loaders, `include`, `import` and `extends`, and bound source, nesting, work (fuel) and output. What recursion remains
//! unbounded in minijinja (operator chains when compiling, nested values when dropping) gets a stack that holds its worst case. The
//! environment follows huggingface/transformers `utils/chat_template_utils.py`: `trim_blocks`, `lstrip_blocks`, Python's methods,
//! `tojson` as `json.dumps`, `raise_exception`, `strftime_now`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use bitnet_checkpoint::TokenizerFiles;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig};
use serde::Serialize;
use serde_json::Value as Json;

use crate::limits;
use crate::text::TextError;
use crate::text::template_json::tojson;
use crate::text::template_tags::without_generation_tags;
use crate::text::template_time::strftime;

const NAME: &str = "chat";

/// Names that a request may not pass: ours, and the environment's functions.
const RESERVED: [&str; 15] = [
    "messages",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "tools",
    "documents",
    "chat_template",
    "tokenize",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "loop",
    "self",
];

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Further fields that templates read, such as `tool_calls` or `name`.
    pub fields: serde_json::Map<String, Json>,
}

impl Message {
    /// A turn without further fields.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), fields: serde_json::Map::new() }
    }
}

/// What a rendering depends on besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// End with what introduces the assistant's turn.
    pub add_generation_prompt: bool,
    /// The time that `strftime_now` tells, in seconds since 1970, UTC (transformers: local time). Without it, templates see no such function.
    pub now_unix_seconds: Option<i64>,
    /// Tool descriptions, as the request gave them.
    pub tools: Option<Json>,
    /// Further arguments of the template, such as `enable_thinking`. Reserved names and names that the template never reads are
    /// refused.
    pub arguments: serde_json::Map<String, Json>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens as templates name them: `bos_token`, `pad_token`.
    special_tokens: BTreeMap<String, String>,
    /// Names that the template reads from outside.
    reads: Vec<String>,
}

/// `raise_exception` was called.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatTemplate {
    /// Compiles a template and renders a short chat as a probe, so that a template that cannot work is refused when the model is
    /// loaded. A probe that the template itself refuses (`raise_exception`) is fine.
    ///
    /// # Errors
    /// `TemplateTooLong`, `Template`, `TemplateFuel`, `TemplateOutput`.
    pub fn compile(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self, TextError> {
        let owned = |token: Option<&str>| token.unwrap_or_default().to_string();
        Self::with_tokens(source, [("bos_token".into(), owned(bos_token)), ("eos_token".into(), owned(eos_token))].into())
    }

    /// [`Self::compile`]s the template of a checkpoint, if it has one, with all the special tokens that it names.
    ///
    /// # Errors
    /// Those of [`Self::compile`].
    pub fn load(files: &TokenizerFiles) -> Result<Option<Self>, TextError> {
        let Some(source) = &files.chat_template else { return Ok(None) };
        let mut tokens = files.special_tokens.clone();
        tokens.insert("bos_token".into(), files.bos_token.clone().unwrap_or_default());
        tokens.insert("eos_token".into(), files.eos_token.clone().unwrap_or_default());
        Self::with_tokens(source, tokens).map(Some)
    }

    fn with_tokens(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self, TextError> {
        if source.len() > limits::TEMPLATE_SOURCE_BYTES_MAX {
            return Err(TextError::TemplateTooLong { got: source.len(), limit: limits::TEMPLATE_SOURCE_BYTES_MAX });
        }
        let source = without_generation_tags(source);
        check_operators(&source)?;
        let (environment, reads) = on_large_stack(limits::TEMPLATE_COMPILE_STACK_BYTES, || {
            let mut environment = environment();
            environment.add_template_owned(NAME, source.to_string()).map_err(|error| text_error(&error, 0))?;
            let template = environment.get_template(NAME).map_err(|error| text_error(&error, 0))?;
            let reads = template.undeclared_variables(false).into_iter().collect();
            Ok((environment, reads))
        })?;
        let compiled = Self { environment, special_tokens, reads };
        let options = RenderOptions { add_generation_prompt: true, now_unix_seconds: Some(0), ..RenderOptions::default() };
        match compiled.render(&[Message::new("user", "Hello")], &options) {
            Ok(_) | Err(TextError::TemplateRefused { .. }) => Ok(compiled),
            Err(error) => Err(error),
        }
    }

    /// Whether the template looks at a name from outside, such as `tools`.
    pub fn reads(&self, name: &str) -> bool {
        self.reads.iter().any(|read| read == name)
    }

    /// Writes the prompt. It holds the special tokens, so it is to be encoded with [`Tokenizer::encode_chat`].
    ///
    /// [`Tokenizer::encode_chat`]: crate::text::Tokenizer::encode_chat
    ///
    /// # Errors
    /// `TooManyMessages`, `ReservedArgument`, `UnknownArgument`, `TemplateRefused`, `Template`, `TemplateFuel`, `TemplateOutput`.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TextError> {
        if messages.len() > limits::N_MESSAGES_MAX {
            return Err(TextError::TooManyMessages { got: messages.len(), limit: limits::N_MESSAGES_MAX });
        }
        self.check_arguments(&options.arguments)?;
        let context = self.context(messages, options)?;
        let fuel = fuel_for(messages, options);
        let stack_bytes = limits::TEMPLATE_STACK_BYTES + fuel as usize * limits::TEMPLATE_STACK_BYTES_PER_FUEL;
        on_large_stack(stack_bytes, || self.render_context(&context, fuel, options.now_unix_seconds))
    }

    fn render_context(&self, context: &serde_json::Map<String, Json>, fuel: u64, now: Option<i64>) -> Result<String, TextError> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        if let Some(now) = now {
            environment.add_function("strftime_now", move |format: &str| {
                strftime(format, now).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "strftime_now: unknown conversion"))
            });
        }
        let template = environment.get_template(NAME).map_err(|error| text_error(&error, fuel))?;
        let mut output = BoundedOutput { bytes: vec![], is_full: false };
        let outcome = template.render_captured_to(Value::from(Serde(context)), &mut output).map(|_| ());
        match outcome {
            Ok(()) => String::from_utf8(output.bytes).map_err(|_| TextError::Template { reason: "the output is not UTF-8".into() }),
            Err(_) if output.is_full => Err(TextError::TemplateOutput { limit: limits::TEMPLATE_OUTPUT_BYTES_MAX }),
            Err(error) => Err(text_error(&error, fuel)),
        }
    }

    fn check_arguments(&self, arguments: &serde_json::Map<String, Json>) -> Result<(), TextError> {
        for name in arguments.keys() {
            if RESERVED.contains(&name.as_str()) {
                return Err(TextError::ReservedArgument { name: name.clone() });
            }
            if !self.reads.contains(name) {
                return Err(TextError::UnknownArgument { name: name.clone() });
            }
        }
        Ok(())
    }

    fn context(&self, messages: &[Message], options: &RenderOptions) -> Result<serde_json::Map<String, Json>, TextError> {
        let mut context: serde_json::Map<String, Json> =
            self.special_tokens.iter().map(|(name, text)| (name.clone(), text.clone().into())).collect();
        context.extend(options.arguments.clone());
        let mut turns = Vec::with_capacity(messages.len());
        for message in messages {
            if let Some(name) = message.fields.keys().find(|name| ["role", "content"].contains(&name.as_str())) {
                return Err(TextError::ReservedArgument { name: name.clone() });
            }
            let mut turn = serde_json::Map::new();
            turn.insert("role".into(), message.role.clone().into());
            turn.insert("content".into(), message.content.clone().into());
            turn.extend(message.fields.clone());
            turns.push(Json::Object(turn));
        }
        context.insert("messages".into(), turns.into());
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        // As transformers passes them: templates ask `tools is none` or `tools is not none`.
        context.insert("tools".into(), options.tools.clone().unwrap_or_default());
        context.insert("documents".into(), Json::Null);
        Ok(context)
    }
}

/// Refuses sources whose operator chains could take long to compile. Operators are counted wherever they stand, prose and strings
/// included, since a count that followed the tags could be led astray by the template.
fn check_operators(source: &str) -> Result<(), TextError> {
    let bytes = source.as_bytes();
    let is_tag_sign = |index: usize| {
        let before = index.checked_sub(2).map(|start| &bytes[start..index]);
        let after = bytes.get(index + 1..index + 3);
        matches!(before, Some(b"{%" | b"{{" | b"{#")) || matches!(after, Some(b"%}" | b"}}" | b"#}"))
    };
    let is_tag_percent =
        |index: usize| index.checked_sub(1).is_some_and(|before| bytes[before] == b'{') || bytes.get(index + 1) == Some(&b'}');
    let n_operators = (0..bytes.len()).filter(|&index| match bytes[index] {
        b'+' | b'-' => !is_tag_sign(index),
        b'%' => !is_tag_percent(index),
        b'*' | b'/' => true,
        _ => false,
    });
    let n_words = source.split(|character: char| !character.is_alphanumeric()).filter(|word| ["and", "or", "not"].contains(word)).count();
    let n_concatenations = bytes.iter().filter(|&&byte| byte == b'~').count();
    let counts = [
        ("operators", n_operators.count() + n_words, limits::N_TEMPLATE_OPERATORS_MAX),
        ("`~`", n_concatenations, limits::N_TEMPLATE_CONCATENATIONS_MAX),
    ];
    match counts.into_iter().find(|&(_, got, limit)| got > limit) {
        Some((what, got, limit)) => Err(TextError::Template { reason: format!("{got} {what}, more than {limit}") }),
        None => Ok(()),
    }
}

/// Runs `work` on a thread of its own with room for the recursion that a template can cause; a panic there is an error here. The
/// stack is address space: only what is used takes memory.
fn on_large_stack<R: Send>(stack_bytes: usize, work: impl FnOnce() -> Result<R, TextError> + Send) -> Result<R, TextError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(stack_bytes).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| TextError::Template { reason: format!("no thread for it: {error}") })?;
        thread.join().unwrap_or_else(|_| Err(TextError::Template { reason: "it made the template engine panic".into() }))
    })
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(limits::TEMPLATE_FUEL));
    environment.set_recursion_limit(limits::TEMPLATE_RECURSION_MAX);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.remove_global("debug");
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message.to_string())))
    });
    environment.add_filter("tojson", tojson);
    environment
}

/// A buffer that refuses to grow beyond the bound.
struct BoundedOutput {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > limits::TEMPLATE_OUTPUT_BYTES_MAX {
            self.is_full = true;
            return Err(io::Error::other("output bound"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Work allowed: a base, and some in proportion to what the template has to go through.
fn fuel_for(messages: &[Message], options: &RenderOptions) -> u64 {
    let of_messages = messages.iter().map(|message| message.role.len() + message.content.len() + json_bytes_of(&message.fields));
    let n_bytes = of_messages.sum::<usize>() + json_bytes_of(&options.tools) + json_bytes_of(&options.arguments);
    limits::TEMPLATE_FUEL + limits::TEMPLATE_FUEL_PER_MESSAGE * messages.len() as u64 + n_bytes as u64 / limits::TEMPLATE_BYTES_PER_FUEL
}

fn json_bytes_of(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |json| json.len())
}

fn text_error(error: &Error, fuel: u64) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(reason)) = current.downcast_ref() {
            return TextError::TemplateRefused { reason: reason.clone() };
        }
        if current.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TextError::TemplateFuel { limit: fuel };
        }
        cause = current.source();
    }
    TextError::Template { reason: error.to_string() }
}
