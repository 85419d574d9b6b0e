//! The filter `tojson` of chat templates: `json.dumps` of Python, with the arguments that huggingface/transformers gives it
//! (src/transformers/utils/chat_template_utils.py, `tojson`) and none of the HTML escapes of Jinja's own. Models were trained on
//! tool descriptions in exactly this notation. Not here: what Python cannot serialise either.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting. Python gives up at about a thousand.
const DEPTH_MAX: usize = 256;
/// Longest indent and separator, in bytes.
const NOTATION_BYTES_MAX: usize = 16;

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, by position or by name.
pub(super) fn tojson(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > NAMES.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut arguments = positional.0.into_iter();
    let mut next = |name| -> Result<Option<Value>, Error> {
        let given = match arguments.next() {
            Some(value) => Some(value),
            None => named.get(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let [ensure_ascii, indent, separators, sort_keys] = [next(NAMES[0])?, next(NAMES[1])?, next(NAMES[2])?, next(NAMES[3])?];
    named.assert_all_used()?;
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (item_separator, key_separator) = match separators {
        Some(pair) => (notation(&pair.get_item_by_index(0)?)?, notation(&pair.get_item_by_index(1)?)?),
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
    };
    let indent = indent.map(|value| indent_text(&value)).transpose()?;
    let (ascii_only, sort_keys) = (is_true(ensure_ascii), is_true(sort_keys));
    let mut writer =
        Writer { state, json: String::new(), depth: 0, n_charged: 0, indent, item_separator, key_separator, ascii_only, sort_keys };
    writer.value(value)?;
    writer.charge()?;
    Ok(writer.json)
}

fn wrong(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", reason.into()))
}

/// A number of spaces, or the text itself.
fn indent_text(indent: &Value) -> Result<String, Error> {
    match indent.kind() {
        ValueKind::String => notation(indent),
        ValueKind::Bool => Ok(" ".repeat(usize::from(indent.is_true()))),
        _ => i64::try_from(indent.clone()).map(|n_spaces| " ".repeat(n_spaces.clamp(0, NOTATION_BYTES_MAX as i64) as usize)),
    }
}

fn notation(text: &Value) -> Result<String, Error> {
    match text.as_str() {
        Some(text) if text.len() <= NOTATION_BYTES_MAX => Ok(text.to_string()),
        _ => Err(wrong(format!("an indent or separator is not a text of at most {NOTATION_BYTES_MAX} bytes"))),
    }
}

struct Writer<'s, 't, 'e> {
    state: &'s State<'t, 'e>,
    json: String,
    depth: usize,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ascii_only: bool,
    sort_keys: bool,
    /// Bytes for which fuel was taken.
    n_charged: usize,
}

impl Writer<'_, '_, '_> {
    /// Takes fuel for what was written since.
    fn charge(&mut self) -> Result<(), Error> {
        self.state.consume_fuel((self.json.len() - self.n_charged) as u64 / 64)?;
        self.n_charged = self.json.len();
        Ok(())
    }

    fn value(&mut self, value: &Value) -> Result<(), Error> {
        if self.depth > DEPTH_MAX {
            return Err(wrong(format!("nested deeper than {DEPTH_MAX}")));
        }
        if self.json.len() - self.n_charged >= 4096 {
            self.charge()?;
        }
        match value.kind() {
            ValueKind::None | ValueKind::Undefined => self.json.push_str("null"),
            ValueKind::Bool => self.json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.json.push_str(&value.to_string()),
            ValueKind::Number => self.json.push_str(&float_text(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.container(("[", "]"), items, |writer, item| writer.value(&item))?;
            }
            ValueKind::Map => self.map(value)?,
            other => return Err(wrong(format!("a {other} is not JSON"))),
        }
        Ok(())
    }

    fn map(&mut self, value: &Value) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.container(("{", "}"), keys.into_iter(), |writer, key| {
            match key.kind() {
                ValueKind::String => writer.string(key.as_str().unwrap_or_default()),
                // Python writes keys that are numbers or constants as texts.
                ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                    writer.json.push('"');
                    writer.value(&key)?;
                    writer.json.push('"');
                }
                other => return Err(wrong(format!("a {other} is no key"))),
            }
            let separator = writer.key_separator.clone();
            writer.json.push_str(&separator);
            writer.value(&value.get_item(&key)?)
        })
    }

    fn container(
        &mut self,
        (open, close): (&str, &str),
        items: impl Iterator<Item = Value>,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.json.push_str(open);
        self.depth += 1;
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                let separator = self.item_separator.clone();
                self.json.push_str(&separator);
            }
            is_empty = false;
            self.line_break();
            write(self, item)?;
        }
        self.depth -= 1;
        if !is_empty {
            self.line_break();
        }
        self.json.push_str(close);
        Ok(())
    }

    fn line_break(&mut self) {
        if let Some(indent) = &self.indent {
            self.json.push('\n');
            (0..self.depth).for_each(|_| self.json.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) {
        self.json.push('"');
        for character in text.chars() {
            match character {
                '"' => self.json.push_str("\\\""),
                '\\' => self.json.push_str("\\\\"),
                '\n' => self.json.push_str("\\n"),
                '\r' => self.json.push_str("\\r"),
                '\t' => self.json.push_str("\\t"),
                '\u{8}' => self.json.push_str("\\b"),
                '\u{c}' => self.json.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(character),
                ' '..='~' => self.json.push(character),
                _ if self.ascii_only => self.escape(character),
                _ => self.json.push(character),
            }
        }
        self.json.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing into a String cannot fail.
            let _ = write!(self.json, "\\u{unit:04x}");
        }
    }
}

/// A float as Python's `repr` writes it: shortest digits, an exponent of two digits below 1e-4 and from 1e16.
fn float_text(number: f64) -> String {
    if !number.is_finite() {
        let sign = if number.is_sign_negative() && !number.is_nan() { "-" } else { "" };
        return format!("{sign}{}", if number.is_nan() { "NaN" } else { "Infinity" });
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if number != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => format!("{number:?}"),
    }
}
