//! What somebody presents to be recognised: 256 random bits in hexadecimal digits, of which the database has a keyed hash only. So who
//! has the database can open no session and follow no link.

use std::fmt;

use crate::error::PlatformError;

const TOKEN_LEN: usize = 64;

/// A session's cookie, or the secret part of a link.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A new one.
    pub(crate) fn random() -> Result<Self, PlatformError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| PlatformError::Randomness { reason: error.to_string() })?;
        Ok(Self(blake3::Hash::from_bytes(bytes).to_hex().to_string()))
    }

    /// All of it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// Hashes tokens, under a secret of the installation.
#[derive(Clone)]
pub(crate) struct TokenHasher(pub(crate) [u8; 32]);

impl TokenHasher {
    /// The hash of a text that has the form of a token; `purpose` keeps those for one thing from being taken for another.
    pub(crate) fn hash(&self, purpose: &str, text: &str) -> Option<Vec<u8>> {
        let is_token = text.len() == TOKEN_LEN && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_token.then(|| self.hash_any(purpose, text))
    }

    /// The same of any text: a purpose has no zero byte, so nothing can move from one part to the other.
    pub(crate) fn hash_any(&self, purpose: &str, text: &str) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(purpose.as_bytes()).update(&[0]).update(text.as_bytes());
        hasher.finalize().as_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_depends_on_purpose_and_secret() {
        let token = Token::random().expect("random");
        let hash = |secret: u8, purpose: &str| TokenHasher([secret; 32]).hash(purpose, token.reveal());
        assert_eq!(hash(1, "session"), hash(1, "session"));
        assert_ne!(hash(1, "session"), hash(1, "reset"));
        assert_ne!(hash(1, "session"), hash(2, "session"));
        assert!(!format!("{token:?}").contains(token.reveal()));
    }

    #[test]
    fn text_that_is_no_token_is_not_hashed() {
        let hasher = TokenHasher([1; 32]);
        for wrong in ["", "abc", &"A".repeat(64), &"g".repeat(64), &"0".repeat(65), "' OR 1=1 --"] {
            assert_eq!(hasher.hash("session", wrong), None, "{wrong}");
        }
    }
}
