//! The text of an API key: random, shown once, kept as a keyed hash only. Who has the database but not the hashing secret can
//! neither use the hashes nor try keys against them.

use std::fmt;

use crate::error::PlatformError;

const PREFIX: &str = "sk-bitnet-";
/// Characters of a key that people may see again.
const SHOWN_LEN: usize = PREFIX.len() + 8;
const KEY_LEN: usize = PREFIX.len() + 64;

/// A key as it is given to its owner, once.
pub struct KeyText(String);

impl KeyText {
    /// A new one: 256 random bits.
    pub(crate) fn random() -> Result<Self, PlatformError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| PlatformError::Randomness { reason: error.to_string() })?;
        // A hash's hexadecimal form is at hand; the bytes themselves are what is random.
        Ok(Self(format!("{PREFIX}{}", blake3::Hash::from_bytes(bytes).to_hex())))
    }

    /// All of it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Its beginning, by which people tell keys apart.
    pub fn shown(&self) -> &str {
        &self.0[..SHOWN_LEN]
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "KeyText({}…)", self.shown())
    }
}

/// Hashes keys under a secret of the installation.
#[derive(Clone)]
pub struct KeyHasher([u8; 32]);

impl KeyHasher {
    /// With 32 random bytes that are kept outside of the database.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// The hash of a text that has the form of a key.
    pub(crate) fn hash(&self, text: &str) -> Option<blake3::Hash> {
        (text.len() == KEY_LEN && text.starts_with(PREFIX)).then(|| blake3::keyed_hash(&self.0, text.as_bytes()))
    }
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeyHasher(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_random_and_hides_itself() {
        let (one, other) = (KeyText::random().expect("random"), KeyText::random().expect("random"));
        assert_ne!(one.reveal(), other.reveal());
        assert_eq!(one.reveal().len(), KEY_LEN);
        assert!(!format!("{one:?}").contains(&one.reveal()[SHOWN_LEN..]));
    }

    #[test]
    fn hash_depends_on_key_and_secret() {
        let text = KeyText::random().expect("random");
        let hash = |secret: u8, text: &str| KeyHasher::new([secret; 32]).hash(text);
        assert_eq!(hash(1, text.reveal()), hash(1, text.reveal()));
        assert_ne!(hash(1, text.reveal()), hash(2, text.reveal()));
        assert_eq!(hash(1, &text.reveal()[1..]), None, "what is no key is not hashed");
    }
}
