//! The `{% generation %}` tag of chat templates, taken out before compiling. It marks what the model said, for training; rendering
//! ignores it (huggingface/transformers: src/transformers/utils/chat_template_utils.py, `AssistantTracker`). minijinja has no such
//! tag and takes no new ones, so its word is replaced by `with`, which like the tag makes a scope and nothing else.
//!
//! What is not a tag is stepped over as the template engine's lexer does: texts, comments, `raw` blocks, strings, and brackets inside
//! expressions. A source that ends inside one of them is left to the engine, whose error says where.

use std::borrow::Cow;

/// The tags of the block and what they become.
const REPLACED: [(&str, &str); 2] = [("generation", "with"), ("endgeneration", "endwith")];

/// `source` with the tags of generation blocks replaced.
pub(super) fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains(REPLACED[0].0) {
        return Cow::Borrowed(source);
    }
    let mut replaced = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{").filter(|start| start + 1 < rest.len()) {
        let (before, tag) = rest.split_at(start);
        replaced.push_str(before);
        let n_bytes = match tag.as_bytes()[1] {
            b'#' => end_after(tag, "#}"),
            b'{' => n_expression_bytes(tag, "}}"),
            b'%' => match replacement(tag) {
                Some((word, new)) => {
                    replaced.push_str(&tag[..word.start]);
                    replaced.push_str(new);
                    rest = &tag[word.end..];
                    continue;
                }
                None if is_tag(tag, "raw") => n_raw_bytes(tag),
                None => n_expression_bytes(tag, "%}"),
            },
            _ => 1,
        };
        let (step, behind) = tag.split_at(n_bytes);
        replaced.push_str(step);
        rest = behind;
    }
    replaced.push_str(rest);
    Cow::Owned(replaced)
}

/// Where the word of a tag stands, if it is one to replace, and by what.
fn replacement(tag: &str) -> Option<(std::ops::Range<usize>, &'static str)> {
    let (word, new) = REPLACED.into_iter().find(|(word, _)| is_tag(tag, word))?;
    let start = tag.find(word)?;
    Some((start..start + word.len(), new))
}

/// Whether `tag` begins with a tag of just this word.
fn is_tag(tag: &str, word: &str) -> bool {
    let Some(inside) = tag.strip_prefix("{%") else { return false };
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_start();
    let Some(behind) = inside.strip_prefix(word) else { return false };
    let behind = behind.trim_start();
    behind.strip_prefix(['-', '+']).unwrap_or(behind).starts_with("%}")
}

/// Bytes up to and with the first `end`, or all.
fn end_after(text: &str, end: &str) -> usize {
    text.find(end).map_or(text.len(), |start| start + end.len())
}

/// Bytes of a `raw` block.
fn n_raw_bytes(block: &str) -> usize {
    let mut starts = block.match_indices("{%").map(|(start, _)| start);
    starts.find(|&start| is_tag(&block[start..], "endraw")).map_or(block.len(), |start| start + end_after(&block[start..], "%}"))
}

/// Bytes of a tag or printed expression that `end` closes, outside of strings and brackets.
fn n_expression_bytes(tag: &str, end: &str) -> usize {
    let bytes = tag.as_bytes();
    let mut index = 2;
    let mut n_open = 0usize;
    while index < bytes.len() {
        if n_open == 0 && bytes[index..].starts_with(end.as_bytes()) {
            return index + end.len();
        }
        index += match bytes[index] {
            quote @ (b'"' | b'\'') => n_string_bytes(&bytes[index..], quote),
            byte => {
                match byte {
                    b'(' | b'[' | b'{' => n_open += 1,
                    b')' | b']' | b'}' => n_open = n_open.saturating_sub(1),
                    _ => {}
                }
                1
            }
        };
    }
    tag.len()
}

/// Bytes of a string with its quotes.
fn n_string_bytes(bytes: &[u8], quote: u8) -> usize {
    let mut index = 1;
    while index < bytes.len() {
        match bytes[index] {
            b'\\' => index += 2,
            byte if byte == quote => return index + 1,
            _ => index += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn generation_tags_keep_their_whitespace_signs() {
        let source = "a {%- generation -%}\n{{ x }}{%+ endgeneration%} b {%generation+%}{% set generation = 1 %}";
        let expected = "a {%- with -%}\n{{ x }}{%+ endwith%} b {%with+%}{% set generation = 1 %}";
        assert_eq!(without_generation_tags(source), expected);
    }

    proptest! {
        #[test]
        fn any_source_is_stepped_through(parts in prop::collection::vec(prop::sample::select(vec![
            "{", "%", "}", "{{", "}}", "{%", "%}", "{#", "#}", "'", "\"", "\\", "é", " ", "-", "raw", "endraw", "generation", "endgeneration", "(", "]",
        ]), 0..40)) {
            let source = parts.concat();
            let replaced = without_generation_tags(&source);
            prop_assert_eq!(replaced.replace("endwith", "endgeneration").replace("with", "generation"), source);
        }
    }
}
