//! Token ids from the command line: `1,2,3`, or a JSON file with one list or a list of lists.

use std::path::Path;

use anyhow::Context;
use bitnet_model::TokenId;
use serde::Deserialize;

use crate::failure::Misuse;

/// Largest file of ids that is read, in bytes.
const IDS_FILE_BYTES_MAX: u64 = 1 << 30;

/// `1,2,3`; blanks around numbers are allowed.
pub(crate) fn parse_ids(text: &str) -> anyhow::Result<Vec<TokenId>> {
    let wrong = |part: &str| Misuse::new(format!("`{part}` is not a token id"), "write ids as 1,2,3");
    text.split(',').map(|part| part.trim().parse().map(TokenId).map_err(|_| wrong(part).into())).collect()
}

/// One sequence, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum IdsFile {
    Several(Vec<Vec<u32>>),
    One(Vec<u32>),
}

/// A JSON file `[[1, 2], [3, 4]]`, or `[1, 2]`.
pub(crate) fn read_ids_file(path: &Path) -> anyhow::Result<Vec<Vec<TokenId>>> {
    let context = || path.display().to_string();
    let length = std::fs::metadata(path).with_context(context)?.len();
    if length > IDS_FILE_BYTES_MAX {
        let what = format!("{} is {length} bytes long, more than {IDS_FILE_BYTES_MAX}", path.display());
        return Err(Misuse::new(what, "split it into several files").into());
    }
    let bytes = std::fs::read(path).with_context(context)?;
    let file: IdsFile = serde_json::from_slice(&bytes)
        .map_err(|_| Misuse::new(format!("{} holds no token ids", path.display()), "write a JSON file like [[1, 2, 3], [4, 5]]"))?;
    let sequences = match file {
        IdsFile::Several(sequences) => sequences,
        IdsFile::One(sequence) => vec![sequence],
    };
    Ok(sequences.into_iter().map(|sequence| sequence.into_iter().map(TokenId).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_on_the_command_line_are_numbers() {
        assert_eq!(parse_ids("1, 2,3").expect("valid"), [TokenId(1), TokenId(2), TokenId(3)]);
        for text in ["", "1,", "-1", "x", "4294967296"] {
            assert!(parse_ids(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn ids_file_of_one_or_several_sequences_is_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("ids.json");
        for (text, n_sequences) in [("[[1,2],[3]]", Some(2)), ("[1,2]", Some(1)), ("[]", Some(0)), ("{}", None), ("[[-1]]", None)] {
            std::fs::write(&path, text).expect("written");
            assert_eq!(read_ids_file(&path).ok().map(|sequences| sequences.len()), n_sequences, "{text}");
        }
        assert!(read_ids_file(&folder.path().join("absent")).is_err());
    }
}
