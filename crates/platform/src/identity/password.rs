//! Passwords: Argon2id with the first of RFC 9106's weaker settings that OWASP recommends (19 MiB, two passes), peppered with the
//! installation's secret, so that a stolen database cannot be tried against a dictionary. Hashing takes a core for some hundredths of
//! a second: it runs off the reactor, a bounded number at a time.

use std::sync::Arc;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::PlatformError;
use crate::limits::{N_PASSWORD_HASHES_MAX, PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN, PASSWORD_WAIT_MAX};

/// Hashes passwords.
#[derive(Clone)]
pub(crate) struct Passwords {
    pepper: [u8; 32],
    turns: Arc<Semaphore>,
}

/// What a wait that is too long asks for.
const BUSY_RETRY_AFTER_S: u64 = 5;
/// Words that are no passwords, whatever stands around them.
const COMMON: [&str; 8] = ["password", "passwort", "1234567890", "qwertyuiop", "letmein", "iloveyou", "abcdefghij", "bitnet"];

impl Passwords {
    pub(crate) fn new(pepper: [u8; 32]) -> Self {
        Self { pepper, turns: Arc::new(Semaphore::new(N_PASSWORD_HASHES_MAX)) }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&[u8]) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, PlatformError> {
        let busy = PlatformError::Throttled { retry_after_s: BUSY_RETRY_AFTER_S };
        let Ok(Ok(turn)) = timeout(PASSWORD_WAIT_MAX, self.turns.clone().acquire_owned()).await else { return Err(busy) };
        let pepper = self.pepper;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&pepper)
        });
        done.await.map_err(|error| failed(&error))?
    }

    /// The hash of a new password.
    pub(crate) async fn hash(&self, password: String) -> Result<String, PlatformError> {
        self.run(move |pepper| {
            let mut salt = [0; 16];
            getrandom::fill(&mut salt).map_err(|error| PlatformError::Randomness { reason: error.to_string() })?;
            let salt = SaltString::encode_b64(&salt).map_err(|error| failed(&error))?;
            let hash = argon2id(pepper)?.hash_password(password.as_bytes(), &salt).map_err(|error| failed(&error))?;
            Ok(hash.to_string())
        })
        .await
    }

    /// Whether it is the password of a hash. Without a hash it is not, which takes as long.
    pub(crate) async fn is_right(&self, hash: Option<String>, password: String) -> Result<bool, PlatformError> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        self.run(move |pepper| {
            let argon2 = argon2id(pepper)?;
            let Some(hash) = hash else {
                let salt = SaltString::encode_b64(&[0; 16]).map_err(|error| failed(&error))?;
                argon2.hash_password(password.as_bytes(), &salt).map_err(|error| failed(&error))?;
                return Ok(false);
            };
            let hash = PasswordHash::new(&hash).map_err(|error| failed(&error))?;
            Ok(argon2.verify_password(password.as_bytes(), &hash).is_ok())
        })
        .await
    }
}

fn argon2id(pepper: &[u8]) -> Result<Argon2<'_>, PlatformError> {
    Argon2::new_with_secret(pepper, Algorithm::Argon2id, Version::V0x13, Params::default()).map_err(|error| failed(&error))
}

fn failed(error: &dyn std::fmt::Display) -> PlatformError {
    PlatformError::Corrupt { what: "a password's hash", reason: error.to_string() }
}

/// Whether a password may be one: long enough, and not what is tried first.
pub(crate) fn check_password(password: &str, email: &str) -> Result<(), PlatformError> {
    let wrong = |reason: String| Err(PlatformError::Invalid { field: "password", reason });
    let n_chars = password.chars().count();
    if n_chars < PASSWORD_CHARS_MIN || password.len() > PASSWORD_BYTES_MAX {
        return wrong(format!("use {PASSWORD_CHARS_MIN} characters or more, and at most {PASSWORD_BYTES_MAX} bytes"));
    }
    let small = password.to_lowercase();
    let first = small.chars().next();
    let rest = COMMON.iter().fold(small.clone(), |rest, word| rest.replace(word, ""));
    if small.chars().all(|c| Some(c) == first) || small == email || rest.chars().count() < PASSWORD_CHARS_MIN / 2 {
        return wrong("this one is among the first that are tried: use another, such as four words".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn password_is_known_again_and_no_other_is() {
        let passwords = Passwords::new([1; 32]);
        let hash = passwords.hash("correct horse battery".into()).await.expect("hashed");
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        let is_right = |passwords: &Passwords, hash: Option<&String>, text: &str| {
            let (passwords, hash, text) = (passwords.clone(), hash.cloned(), text.to_string());
            async move { passwords.is_right(hash, text).await.expect("it can be said") }
        };
        assert!(is_right(&passwords, Some(&hash), "correct horse battery").await);
        assert!(!is_right(&passwords, Some(&hash), "correct horse batterz").await);
        assert!(!is_right(&passwords, None, "correct horse battery").await);
        assert!(!is_right(&Passwords::new([2; 32]), Some(&hash), "correct horse battery").await, "another installation's");
        assert!(!is_right(&passwords, Some(&hash), &"x".repeat(1 << 20)).await);
    }

    #[test]
    fn password_that_is_tried_first_is_refused() {
        for wrong in ["", "short", "aaaaaaaaaaaaaaaa", "password12", "1234567890", "ann@example.com", &"x".repeat(257)] {
            assert!(check_password(wrong, "ann@example.com").is_err(), "{wrong}");
        }
        for fine in ["correct horse battery", "zwölf Boxkämpfer", "x9-Fqq22-vB"] {
            assert!(check_password(fine, "ann@example.com").is_ok(), "{fine}");
        }
    }
}
