//! The installation's secret: 32 random bytes in a file beside the database, never in it. Of it are made the keys for hashes of API
//! keys, for salts of cached prefixes, and for signatures; the database knows its fingerprint, so that a wrong file is noticed
//! before every key is refused.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::error::PlatformError;

/// See the module.
#[derive(Clone)]
pub struct InstallationSecret([u8; 32]);

impl InstallationSecret {
    /// Of 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The one in a file, which is made if it is not there.
    pub fn load_or_create(path: &Path) -> Result<Self, PlatformError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(text.trim()).ok_or_else(|| unreadable(path, "it has not 64 hexadecimal digits".into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::create(path),
            Err(error) => Err(unreadable(path, error.to_string())),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }

    fn create(path: &Path) -> Result<Self, PlatformError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| PlatformError::Randomness { reason: error.to_string() })?;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let text = format!("{}\n", blake3::Hash::from_bytes(bytes).to_hex());
        // Another process that starts at the same time may have made it: then that one is the secret.
        match options.open(path) {
            Ok(mut file) => match file.write_all(text.as_bytes()).and_then(|()| file.sync_all()) {
                Ok(()) => Ok(Self(bytes)),
                Err(error) => Err(unreadable(path, error.to_string())),
            },
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::load_or_create(path),
            Err(error) => Err(unreadable(path, error.to_string())),
        }
    }

    /// A key for one purpose; `context` names it and is never reused for another.
    pub(crate) fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }

    /// By which two are told apart; says nothing about the secret.
    pub(crate) fn fingerprint(&self) -> String {
        blake3::Hash::from_bytes(self.derive("bitnet platform 2026 fingerprint of the installation")).to_hex().to_string()
    }
}

impl fmt::Debug for InstallationSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("InstallationSecret(…)")
    }
}

fn unreadable(path: &Path, reason: String) -> PlatformError {
    PlatformError::SecretFile { path: path.display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_made_once_and_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let made = InstallationSecret::load_or_create(&path).expect("it is made");
        let read = InstallationSecret::load_or_create(&path).expect("it is read");
        assert_eq!(made.0, read.0);
        assert_ne!(made.fingerprint(), InstallationSecret::load_or_create(&folder.path().join("other")).expect("made").fingerprint());
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("there").permissions());
            assert_eq!(mode & 0o777, 0o600, "nobody else may read it");
        }
        std::fs::write(&path, "short").expect("written");
        assert!(matches!(InstallationSecret::load_or_create(&path), Err(PlatformError::SecretFile { .. })));
    }
}
