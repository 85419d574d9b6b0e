//! Typed reading of JSON objects that others wrote: every key is absent (or `null`), right, or an error that names it.
//!
//! It converts nothing silently: `"8"` is not a number, `8.5` is not a count, `1` is not a boolean. An id of −1 is no id.

use serde_json::{Map, Value};

use crate::error::CheckpointError;

/// Longest piece of a file's own text that an error message repeats.
const SHOWN_CHARS_MAX: usize = 60;

/// Text from a file as an error may show it: quoted, control characters escaped, cut short.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if cut.len() < text.len() { format!("{cut:?}…") } else { format!("{cut:?}") }
}

/// An object of a JSON file, and its place in the file for error messages.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    prefix: String,
    map: &'a Map<String, Value>,
}

/// Parses a whole file that must hold one object.
pub(crate) fn parse_object(file_name: &'static str, bytes: &[u8]) -> Result<Map<String, Value>, CheckpointError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(CheckpointError::malformed("JSON", file_name, format!("expected an object, got {}", kind(&other)))),
        Err(error) => Err(CheckpointError::malformed("JSON", file_name, error.to_string())),
    }
}

impl<'a> Fields<'a> {
    /// The object of a whole file.
    pub(crate) fn of_file(map: &'a Map<String, Value>) -> Self {
        Self { prefix: String::new(), map }
    }

    /// The full name of a key.
    pub(crate) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// A value that is there and not `null`.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An object under `key`.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, CheckpointError> {
        let object = self.typed(key, "an object", Value::as_object)?;
        Ok(object.map(|map| Fields { prefix: format!("{}{key}.", self.prefix), map }))
    }

    /// A count: an integer of at least 0.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        self.typed(key, "a non-negative integer", |value| value.as_u64().and_then(|count| usize::try_from(count).ok()))
    }

    /// A token id or another 32-bit number. −1 is a way to write that there is none.
    pub(crate) fn id(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        self.typed(key, "an integer from 0 to 4294967295, or -1 for none", as_id).map(Option::flatten)
    }

    /// Token ids: one, several or none.
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<u32>, CheckpointError> {
        let ids = self.typed(key, "a token id or a list of token ids", |value| match value {
            Value::Array(items) => items.iter().map(as_id).collect(),
            one => as_id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default().into_iter().flatten().collect())
    }

    /// A finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.typed(key, "a finite number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// A boolean.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, CheckpointError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of strings.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, CheckpointError> {
        self.typed(key, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// The value of a key that may not be absent.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, CheckpointError> {
        value.ok_or_else(|| CheckpointError::config(self.name(key), "absent; it decides the arithmetic and is not guessed"))
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong = || CheckpointError::config(self.name(key), format!("expected {expected}, got {}", kind(value)));
        read(value).map(Some).ok_or_else(wrong)
    }
}

/// `Some(None)` for −1.
fn as_id(value: &Value) -> Option<Option<u32>> {
    if value.as_i64() == Some(-1) {
        return Some(None);
    }
    value.as_u64().and_then(|id| u32::try_from(id).ok()).map(Some)
}

/// What a value is, as an error says it.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("the string {}", shown(text)),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
    }
}
