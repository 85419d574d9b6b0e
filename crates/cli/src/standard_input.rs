//! Text from standard input, bounded: what `run` and `embed` read when they are piped into. What the text means is theirs to say.

use std::io::Read;

use anyhow::Context;
use bitnet_model::limits::TEXT_BYTES_MAX;

use crate::failure::Misuse;

/// All of standard input.
pub(crate) fn read_text() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    // One byte more, to tell a text of the greatest length from a longer one; decoded after that, since the cut may split a character.
    let limit = TEXT_BYTES_MAX as u64 + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut bytes).context("cannot read standard input")?;
    if bytes.len() > TEXT_BYTES_MAX {
        let what = format!("standard input is longer than {TEXT_BYTES_MAX} bytes");
        return Err(Misuse::new(what, "split it into several parts").into());
    }
    String::from_utf8(bytes).context("standard input is not UTF-8 text")
}
