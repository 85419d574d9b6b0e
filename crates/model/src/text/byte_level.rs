//! The byte-level alphabet: every byte as one printable character, so that a vocabulary of strings can hold any bytes.
//! From GPT-2 (openai/gpt-2:src/encoder.py `bytes_to_unicode`): printable Latin-1 stands for itself, the other 68 bytes, in
//! order, for U+0100 and following.

/// The character that stands for each byte.
pub(super) const CHARACTERS: [char; 256] = characters();

/// One more than the largest character of the alphabet.
const ALPHABET_END: usize = 256 + 68;

const BYTES: [Option<u8>; ALPHABET_END] = bytes();

const fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

const fn characters() -> [char; 256] {
    let mut table = ['\0'; 256];
    let mut byte = 0;
    let mut next = 256u32;
    while byte < 256 {
        let code = if stands_for_itself(byte as u8) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        table[byte] = match char::from_u32(code) {
            Some(character) => character,
            None => panic!("below the surrogates"),
        };
        byte += 1;
    }
    assert!(next as usize == ALPHABET_END);
    table
}

const fn bytes() -> [Option<u8>; ALPHABET_END] {
    let mut table = [None; ALPHABET_END];
    let mut byte = 0;
    while byte < 256 {
        table[CHARACTERS[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    table
}

/// The byte that a character stands for.
pub(super) fn byte_of(character: char) -> Option<u8> {
    BYTES.get(character as usize).copied().flatten()
}

/// Appends `text` in the byte-level alphabet.
pub(super) fn push_encoded(text: &str, encoded: &mut String) {
    encoded.extend(text.bytes().map(|byte| CHARACTERS[usize::from(byte)]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_maps_every_byte_there_and_back() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of(CHARACTERS[usize::from(byte)]), Some(byte));
        }
        assert_eq!(CHARACTERS[usize::from(b' ')], 'Ġ');
        assert_eq!(CHARACTERS[usize::from(b'\n')], 'Ċ');
        assert_eq!(byte_of('▁'), None);
        assert_eq!(byte_of('\u{AD}'), None);
    }
}
