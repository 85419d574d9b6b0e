//! `tokenizer.model` of SentencePiece, as folders without `tokenizer.json` have it, to [`GgufVocabulary`], whose scores and token
//! types are SentencePiece's own. Reads the fields that matter of the protobuf message and steps over the rest; the numbers of fields
//! are those of google/sentencepiece:src/sentencepiece_model.proto, the wire format that of protobuf.dev, "Encoding".
//!
//! Deliberately not here: Unigram models (they are carried under ggml's name for them, `t5`, and refused by whoever would run them)
//! and normalizers with a table of their own, which are refused.

use crate::error::CheckpointError;
use crate::limits;
use crate::tokenizer_files::GgufVocabulary;

/// What `tokenizer.model` says, by the defaults of its format where it says nothing.
struct Settings {
    model_type: u64,
    add_dummy_prefix: bool,
    /// Unknown, beginning, end, padding; negative for none.
    ids: [i32; 4],
}

/// The value of a field.
enum Value<'b> {
    Number(u64),
    Fixed32([u8; 4]),
    Bytes(&'b [u8]),
    /// A 64-bit number; none matters here.
    Skipped,
}

/// Reads the file. A beginning-of-sequence token goes before a text and no end after it, as LlamaTokenizer has it by default.
///
/// # Errors
/// `Malformed` if it is not such a message, `Unsupported` for a normalizer with a table.
pub fn read(bytes: &[u8]) -> Result<GgufVocabulary, CheckpointError> {
    let mut vocabulary = GgufVocabulary { add_bos: Some(true), add_eos: Some(false), ..GgufVocabulary::default() };
    let mut settings = Settings { model_type: 1, add_dummy_prefix: true, ids: [0, 1, 2, -1] };
    each_field("message", bytes, |field, value| match (field, value) {
        (1, Value::Bytes(piece)) => read_piece(piece, &mut vocabulary),
        (2, Value::Bytes(trainer)) => each_field("trainer_spec", trainer, |field, value| {
            match (field, value) {
                (3, Value::Number(model_type)) => settings.model_type = model_type,
                // Negative numbers are written as 64 bits; the lower half is the number.
                (40..=43, Value::Number(id)) => settings.ids[field as usize - 40] = id as i32,
                _ => {}
            }
            Ok(())
        }),
        (3, Value::Bytes(normalizer)) => each_field("normalizer_spec", normalizer, |field, value| match (field, value) {
            (2, Value::Bytes(table)) if !table.is_empty() => {
                let reason = "a table of character replacements is not applied".to_string();
                Err(CheckpointError::Unsupported { feature: "tokenizer.model normalizer_spec".into(), reason })
            }
            (3, Value::Number(flag)) => {
                settings.add_dummy_prefix = flag != 0;
                Ok(())
            }
            _ => Ok(()),
        }),
        _ => Ok(()),
    })?;
    if vocabulary.tokens.is_empty() {
        return Err(malformed("pieces", "there are none"));
    }
    let n_tokens = vocabulary.tokens.len();
    let id = |id: i32| u32::try_from(id).ok().filter(|&id| (id as usize) < n_tokens);
    let [unknown, bos, eos, padding] = settings.ids.map(id);
    vocabulary.model = if settings.model_type == 2 { "llama".into() } else { "t5".into() };
    vocabulary.add_space_prefix = Some(settings.add_dummy_prefix);
    (vocabulary.unknown_token_id, vocabulary.bos_token_id, vocabulary.eos_token_id) = (unknown, bos, eos);
    vocabulary.padding_token_id = padding;
    vocabulary.add_bos = Some(bos.is_some());
    Ok(vocabulary)
}

fn malformed(field: &str, reason: &str) -> CheckpointError {
    CheckpointError::malformed("SentencePiece", format!("tokenizer.model {field}"), reason)
}

fn read_piece(piece: &[u8], vocabulary: &mut GgufVocabulary) -> Result<(), CheckpointError> {
    if vocabulary.tokens.len() >= limits::N_VOCAB_MAX {
        return Err(malformed("pieces", "more than the largest vocabulary"));
    }
    let (mut text, mut score, mut kind) = (String::new(), 0.0, 1);
    each_field("piece", piece, |field, value| {
        match (field, value) {
            (1, Value::Bytes(bytes)) => {
                text = std::str::from_utf8(bytes).map_err(|_| malformed("piece", "not UTF-8"))?.to_owned();
            }
            (2, Value::Fixed32(bytes)) => score = f32::from_le_bytes(bytes),
            (3, Value::Number(number @ 1..=6)) => kind = number as i32,
            (3, Value::Number(_)) => return Err(malformed("type", "not in 1..=6")),
            _ => {}
        }
        Ok(())
    })?;
    vocabulary.tokens.push(text);
    vocabulary.scores.push(score);
    vocabulary.token_types.push(kind);
    Ok(())
}

/// Hands every field of a message to `then`.
fn each_field<'b>(
    message: &str,
    mut bytes: &'b [u8],
    mut then: impl FnMut(u64, Value<'b>) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let cut = || malformed(message, "ends inside a field");
    while !bytes.is_empty() {
        let key = take_number(&mut bytes).ok_or_else(cut)?;
        let value = match key & 7 {
            0 => Value::Number(take_number(&mut bytes).ok_or_else(cut)?),
            1 => {
                bytes.split_off(..8).ok_or_else(cut)?;
                Value::Skipped
            }
            2 => {
                let n_bytes = take_number(&mut bytes).and_then(|n_bytes| usize::try_from(n_bytes).ok()).ok_or_else(cut)?;
                Value::Bytes(bytes.split_off(..n_bytes).ok_or_else(cut)?)
            }
            5 => {
                let fixed = bytes.split_off(..4).and_then(|fixed| fixed.try_into().ok());
                Value::Fixed32(fixed.ok_or_else(cut)?)
            }
            _ => return Err(malformed(message, "a field of unknown wire type")),
        };
        then(key >> 3, value)?;
    }
    Ok(())
}

/// A variable-length number: seven bits a byte, lowest first, ten bytes at most.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.split_off_first()?;
        number |= u64::from(byte & 0x7F).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(number: u8, contents: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, contents.len() as u8], contents].concat()
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        field(1, &[field(1, text.as_bytes()), [&[0x15], &score.to_le_bytes()[..]].concat(), vec![0x18, kind]].concat())
    }

    fn model() -> Vec<u8> {
        let minus_one = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01];
        let trainer = [&[0x18, 2][..], &[0xC0, 0x02, 0], &[0xC8, 0x02, 1], &[0xD0, 0x02, 2], &[0xD8, 0x02], &minus_one].concat();
        let pieces = [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("</s>", 0.0, 3), piece("▁a", -1.5, 1)].concat();
        [pieces, field(2, &trainer), field(3, &[0x18, 0])].concat()
    }

    #[test]
    fn sentencepiece_model_becomes_a_vocabulary() {
        let vocabulary = read(&model()).expect("valid");
        assert_eq!(
            (vocabulary.model.as_str(), vocabulary.tokens.as_slice()),
            ("llama", &["<unk>", "<s>", "</s>", "▁a"].map(String::from)[..])
        );
        assert_eq!((vocabulary.scores.as_slice(), vocabulary.token_types.as_slice()), (&[0.0, 0.0, 0.0, -1.5][..], &[2, 3, 3, 1][..]));
        assert_eq!((vocabulary.unknown_token_id, vocabulary.bos_token_id, vocabulary.eos_token_id), (Some(0), Some(1), Some(2)));
        assert_eq!((vocabulary.padding_token_id, vocabulary.add_bos, vocabulary.add_space_prefix), (None, Some(true), Some(false)));
        assert_eq!(read(&piece("a", 0.0, 1)).expect("defaults").model, "t5", "Unigram is the format's default");
        for n_bytes in 0..model().len() {
            let _ = read(&model()[..n_bytes]);
        }
        let with_table = [model(), field(3, &field(2, b"x"))].concat();
        assert!(matches!(read(&with_table), Err(CheckpointError::Unsupported { .. })));
        for wrong in [&b""[..], &[0x0A, 5, 1], &[0x0B], &[0xFF; 12], &piece("a", 0.0, 7), &field(1, &field(1, b"\xff"))] {
            assert!(matches!(read(wrong), Err(CheckpointError::Malformed { .. })), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
        }
    }
}
