//! Finds the calls in a reply's text, piece by piece: text goes on as text, `<tool_call>…</tool_call>` becomes a call whose
//! arguments stream as they come. The only reader of calls: streamed and unstreamed replies both go through it.
//!
//! Text that turns out to be no call after all is given out as the text it is.

use crate::conversation::{CALL_END, CALL_START};

/// What a piece of text meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReplyPart {
    /// Text to show.
    Text(String),
    /// A call begins; calls are numbered from 0.
    CallStart { call: usize, name: String },
    /// More of a call's arguments, as JSON text.
    Arguments { call: usize, json: String },
    /// A call's arguments are complete.
    CallEnd { call: usize },
}

/// Whether a reply may hold calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallsExpected {
    /// `<tool_call>` means a call.
    Yes,
    /// It is text like any other.
    No,
}

enum State {
    /// Outside calls.
    Text,
    /// After `<tool_call>`, before the arguments.
    Header,
    /// Inside the arguments.
    Arguments(JsonScan),
    /// After the arguments: `}` and `</tool_call>` are to come.
    Trailer,
}

/// Reads one choice.
pub(crate) struct CallReader {
    expected: CallsExpected,
    state: State,
    /// Text that is not decided yet.
    held: String,
    n_calls: usize,
    /// Since the last call there was nothing but white space, which is notation between calls and text before text.
    is_right_after_call: bool,
}

impl CallReader {
    /// At the beginning of a reply.
    pub(crate) fn new(expected: CallsExpected) -> Self {
        Self { expected, state: State::Text, held: String::new(), n_calls: 0, is_right_after_call: false }
    }

    /// Calls begun so far.
    pub(crate) fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// Takes text and adds what is certain to `parts`.
    pub(crate) fn push(&mut self, text: &str, parts: &mut Vec<ReplyPart>) {
        if self.expected == CallsExpected::No {
            push_text(text.to_string(), parts);
            return;
        }
        self.held.push_str(text);
        while self.step(parts) {}
    }

    /// Ends the reply: what is held is text, unless it belongs to a call that was cut off.
    pub(crate) fn finish(&mut self, parts: &mut Vec<ReplyPart>) {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Text if self.is_right_after_call && held.trim().is_empty() => {}
            State::Text => push_text(held, parts),
            State::Header => push_text(format!("{CALL_START}{held}"), parts),
            State::Arguments(_) | State::Trailer => {}
        }
        self.state = State::Text;
    }

    /// One transition; whether there may be another.
    fn step(&mut self, parts: &mut Vec<ReplyPart>) -> bool {
        match &mut self.state {
            State::Text => self.step_text(parts),
            State::Header => self.step_header(parts),
            State::Arguments(scan) => {
                let (taken, done) = scan.advance(&self.held);
                let json: String = self.held.drain(..taken).collect();
                let call = self.n_calls - 1;
                if !json.is_empty() {
                    parts.push(ReplyPart::Arguments { call, json });
                }
                if done {
                    parts.push(ReplyPart::CallEnd { call });
                    self.state = State::Trailer;
                }
                done
            }
            State::Trailer => {
                let Some(at) = self.held.find(CALL_END) else { return false };
                self.held.drain(..at + CALL_END.len());
                self.state = State::Text;
                self.is_right_after_call = true;
                true
            }
        }
    }

    fn step_text(&mut self, parts: &mut Vec<ReplyPart>) -> bool {
        if let Some(at) = self.held.find(CALL_START) {
            let before: String = self.held.drain(..at).collect();
            self.held.drain(..CALL_START.len());
            if !(self.is_right_after_call && before.trim().is_empty()) {
                push_text(before, parts);
            }
            self.is_right_after_call = false;
            self.state = State::Header;
            return true;
        }
        let n_certain = self.held.len() - undecided_tail(&self.held);
        if self.is_right_after_call && self.held[..n_certain].trim().is_empty() {
            return false;
        }
        self.is_right_after_call = false;
        let certain: String = self.held.drain(..n_certain).collect();
        push_text(certain, parts);
        false
    }

    fn step_header(&mut self, parts: &mut Vec<ReplyPart>) -> bool {
        match read_header(&self.held) {
            Header::Complete { name, length } => {
                self.held.drain(..length);
                parts.push(ReplyPart::CallStart { call: self.n_calls, name });
                self.n_calls += 1;
                self.state = State::Arguments(JsonScan::default());
                true
            }
            Header::Incomplete => false,
            Header::NotACall => {
                push_text(CALL_START.to_string(), parts);
                self.is_right_after_call = false;
                self.state = State::Text;
                true
            }
        }
    }
}

fn push_text(text: String, parts: &mut Vec<ReplyPart>) {
    if text.is_empty() {
        return;
    }
    match parts.last_mut() {
        Some(ReplyPart::Text(before)) => before.push_str(&text),
        _ => parts.push(ReplyPart::Text(text)),
    }
}

/// Bytes at the end of `text` that may be the beginning of `<tool_call>`.
fn undecided_tail(text: &str) -> usize {
    (1..CALL_START.len()).rev().find(|&length| text.ends_with(&CALL_START[..length])).unwrap_or(0)
}

enum Header {
    Complete { name: String, length: usize },
    Incomplete,
    NotACall,
}

/// Reads `{"name": "f", "arguments": `, with whatever spaces.
fn read_header(text: &str) -> Header {
    let mut rest = text;
    let mut name = None;
    for piece in ["{", "\"name\"", ":", "NAME", ",", "\"arguments\"", ":"] {
        rest = rest.trim_start();
        if piece == "NAME" {
            match read_string(rest) {
                Ok((text, after)) => (name, rest) = (Some(text), after),
                Err(header) => return header,
            }
            continue;
        }
        match rest.strip_prefix(piece) {
            Some(after) => rest = after,
            None if piece.starts_with(rest) => return Header::Incomplete,
            None => return Header::NotACall,
        }
    }
    let rest = rest.trim_start();
    match (name, rest.is_empty()) {
        (Some(name), false) => Header::Complete { name, length: text.len() - rest.len() },
        _ => Header::Incomplete,
    }
}

/// A JSON string at the start of `text`, and what follows.
fn read_string(text: &str) -> Result<(String, &str), Header> {
    if text.is_empty() {
        return Err(Header::Incomplete);
    }
    if !text.starts_with('"') {
        return Err(Header::NotACall);
    }
    let mut strings = serde_json::Deserializer::from_str(text).into_iter::<String>();
    match strings.next() {
        Some(Ok(string)) => Ok((string, &text[strings.byte_offset()..])),
        Some(Err(error)) if error.is_eof() => Err(Header::Incomplete),
        _ => Err(Header::NotACall),
    }
}

/// Follows one JSON value to its end, without reading it.
#[derive(Debug, Default)]
struct JsonScan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonScan {
    /// How many bytes of `text` belong to the value, and whether it ends there.
    fn advance(&mut self, text: &str) -> (usize, bool) {
        for (index, byte) in text.bytes().enumerate() {
            if self.in_string {
                self.inside_string(byte);
                if !self.in_string && self.depth == 0 {
                    return (index + 1, true);
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                // A bare number or word ends where the call's own brace closes.
                b'}' | b']' if self.depth == 0 => return (index, true),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (index + 1, true);
                    }
                }
                _ => {}
            }
        }
        (text.len(), false)
    }

    fn inside_string(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_string = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(pieces: &[&str]) -> Vec<ReplyPart> {
        let mut reader = CallReader::new(CallsExpected::Yes);
        let mut parts = Vec::new();
        for piece in pieces {
            reader.push(piece, &mut parts);
        }
        reader.finish(&mut parts);
        joined(parts)
    }

    /// Neighbouring parts of one kind put together: how a text was cut must not matter.
    fn joined(parts: Vec<ReplyPart>) -> Vec<ReplyPart> {
        let mut all: Vec<ReplyPart> = Vec::new();
        for part in parts {
            match (all.last_mut(), part) {
                (Some(ReplyPart::Text(before)), ReplyPart::Text(text)) => before.push_str(&text),
                (Some(ReplyPart::Arguments { json: before, .. }), ReplyPart::Arguments { json, .. }) => before.push_str(&json),
                (_, part) => all.push(part),
            }
        }
        all
    }

    const TWO: &str = "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"}\\\"</tool_call>\", \"y\": [1, {}]}}\n</tool_call>\n\
                       <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

    #[test]
    fn calls_in_text_are_found() {
        let arguments = |call, json: &str| ReplyPart::Arguments { call, json: json.into() };
        let expected = [
            ReplyPart::Text("I look.\n".into()),
            ReplyPart::CallStart { call: 0, name: "f".into() },
            arguments(0, "{\"x\": \"}\\\"</tool_call>\", \"y\": [1, {}]}"),
            ReplyPart::CallEnd { call: 0 },
            ReplyPart::CallStart { call: 1, name: "g".into() },
            arguments(1, "{}"),
            ReplyPart::CallEnd { call: 1 },
        ];
        assert_eq!(read_all(&[TWO]), expected);
        let characters: Vec<String> = TWO.chars().map(String::from).collect();
        assert_eq!(read_all(&characters.iter().map(String::as_str).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn text_that_is_no_call_stays_text() {
        for text in ["a <tool", "<tool_call> hello", "<tool_call>{\"other\": 1}</tool_call>", "<<tool_call", "<tool_call>{\"name\": 3"] {
            assert_eq!(read_all(&[text]), [ReplyPart::Text(text.into())], "{text}");
        }
    }

    #[test]
    fn call_that_is_cut_off_keeps_what_came() {
        let parts = read_all(&["<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": "]);
        let arguments = ReplyPart::Arguments { call: 0, json: "{\"x\": ".into() };
        assert_eq!(parts, [ReplyPart::CallStart { call: 0, name: "f".into() }, arguments]);
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_read_the_same(cuts in proptest::collection::vec(0usize..TWO.len(), 0..12)) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| TWO.is_char_boundary(cut)).chain([0, TWO.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &TWO[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read_all(&pieces), read_all(&[TWO]));
        }

        #[test]
        fn reader_on_any_text_loses_nothing(text in "[<>a-z_{}\":, \n]{0,60}") {
            let mut shown = String::new();
            for part in read_all(&[&text]) {
                if let ReplyPart::Text(text) = part { shown.push_str(&text) }
            }
            prop_assert!(text.contains("<tool_call>") || shown == text);
        }
    }
}
