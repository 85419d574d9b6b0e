//! Identifiers of objects and requests: a prefix that says what it is, and random hexadecimal digits that nobody can guess.

use std::fmt::Write;

/// A new identifier such as `chatcmpl-9f86d081884c7d659a2feaa0`.
pub(crate) fn new_id(prefix: &str) -> String {
    let mut bytes = [0u8; 12];
    // Without randomness there is no key material either; the server has checked at its start that there is.
    getrandom::fill(&mut bytes).expect("the system gave random bytes at the start and does so for ever");
    let mut id = String::with_capacity(prefix.len() + 24);
    id.push_str(prefix);
    for byte in bytes {
        let _ = write!(id, "{byte:02x}");
    }
    id
}

/// Random bytes for keyed hashes of this process.
pub fn new_secret() -> [u8; 32] {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("a system without random bytes cannot keep secrets, and the server does not start on it");
    bytes
}

/// A seed for a request that names none. Short enough to survive as a JSON number everywhere.
pub(crate) fn new_seed() -> u64 {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).expect("the system gave random bytes at the start and does so for ever");
    u64::from_le_bytes(bytes) >> 11
}
