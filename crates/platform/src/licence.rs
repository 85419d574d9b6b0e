//! Licence files for installations that nobody else watches: what a customer may use, until when, signed with Ed25519 and verified
//! without a network. What is signed is the text of the payload itself, so that no parser stands before the signature.
//!
//! A licence never stops inference and never loses data: after its end it goes on for a grace of 14 days, then paid features can be
//! read but not changed. A clock that was set back is noticed by the latest time that was ever seen, which is what counts then.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::hex;
use crate::error::PlatformError;
use crate::limits::LICENCE_BYTES_MAX;
use crate::secret_file::InstallationSecret;
use crate::time::Timestamp;

/// How long a licence goes on after its end.
pub const GRACE: Duration = Duration::from_secs(14 * 86_400);
/// How far a clock may go back without anybody having set it.
pub const CLOCK_BACK_MAX: Duration = Duration::from_secs(5 * 60);

const FORMAT: &str = "bitnet-licence-1";

/// What a licence says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LicenceTerms {
    /// To whom.
    pub customer: String,
    /// Which plan.
    pub plan: String,
    /// What it opens besides, such as `sso` or `audit_export`.
    pub entitlements: Vec<String>,
    /// Members; without a number, any.
    pub seats: Option<u32>,
    /// From when on, in microseconds since 1970.
    pub valid_from_micros: i64,
    /// Until when.
    pub expires_at_micros: i64,
    /// The one machine that it is for; without it, any.
    pub machine: Option<String>,
}

/// A licence as it is in a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LicenceFile {
    format: String,
    /// The terms, as JSON in a text: exactly what was signed.
    payload: String,
    /// Which key signed it, in hexadecimal digits.
    public_key: String,
    signature: String,
}

/// Why a file is no licence.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LicenceError {
    /// It cannot be read.
    #[error("the licence file {path} cannot be used: {reason}")]
    File { path: String, reason: String },
    /// It is not of the form that this release reads.
    #[error("this is not a licence that this release reads: {reason}")]
    Malformed { reason: String },
    /// Nobody who is trusted has signed it.
    #[error("the licence is signed by {got}, which is not a key that is trusted")]
    UnknownKey { got: String },
    /// It is not what was signed.
    #[error("the licence is not as it was signed")]
    Forged,
}

/// What a licence allows at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LicenceState {
    /// All that it says.
    Valid,
    /// It has not begun: nothing yet, but inference.
    NotYet,
    /// It has ended, and all goes on until this.
    Grace { until: Timestamp },
    /// Paid features can be read, and not changed.
    ReadOnly,
    /// It is another machine's: as read-only.
    OtherMachine,
}

/// Signs licences.
pub struct LicenceKey(SigningKey);

impl LicenceKey {
    /// Of 32 random bytes.
    pub fn new(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The one in a file, which is made if it is not there.
    pub fn load_or_create(path: &Path) -> Result<Self, PlatformError> {
        Ok(Self::new(InstallationSecret::load_or_create(path)?.derive("bitnet 2026 licences of a vendor")))
    }

    /// By which its licences are verified, in hexadecimal digits.
    pub fn public_key(&self) -> String {
        hex(self.0.verifying_key().as_bytes())
    }

    /// The text of a licence file.
    pub fn issue(&self, terms: &LicenceTerms) -> Result<String, LicenceError> {
        check(terms)?;
        let malformed = |error: serde_json::Error| LicenceError::Malformed { reason: error.to_string() };
        let payload = serde_json::to_string(terms).map_err(malformed)?;
        let signature = self.0.sign(&message(&payload)).to_string().to_lowercase();
        let file = LicenceFile { format: FORMAT.into(), payload, public_key: self.public_key(), signature };
        serde_json::to_string_pretty(&file).map_err(malformed)
    }
}

fn message(payload: &str) -> Vec<u8> {
    [FORMAT.as_bytes(), b"\n", payload.as_bytes()].concat()
}

fn check(terms: &LicenceTerms) -> Result<(), LicenceError> {
    let malformed = |reason: &str| Err(LicenceError::Malformed { reason: reason.into() });
    match terms {
        terms if terms.customer.trim().is_empty() => malformed("it names no customer"),
        terms if terms.expires_at_micros <= terms.valid_from_micros => malformed("it ends before it begins"),
        _ => Ok(()),
    }
}

/// Reads a licence from a file, if one of these keys has signed it.
pub fn verify_file(path: &Path, trusted: &[String]) -> Result<LicenceTerms, LicenceError> {
    let failed = |reason: String| LicenceError::File { path: path.display().to_string(), reason };
    let length = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if length > LICENCE_BYTES_MAX {
        return Err(failed(format!("it has {length} bytes, at most {LICENCE_BYTES_MAX}")));
    }
    verify(&std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?, trusted)
}

/// Reads a licence, if one of these keys has signed it. The signature is checked before the terms are looked at.
pub fn verify(text: &str, trusted: &[String]) -> Result<LicenceTerms, LicenceError> {
    let malformed = |error: serde_json::Error| LicenceError::Malformed { reason: error.to_string() };
    let file: LicenceFile = serde_json::from_str(text).map_err(malformed)?;
    if file.format != FORMAT {
        return Err(LicenceError::Malformed { reason: format!("expected format {FORMAT}, got {:?}", file.format) });
    }
    if !trusted.contains(&file.public_key) {
        return Err(LicenceError::UnknownKey { got: file.public_key });
    }
    let bytes = blake3::Hash::from_hex(&file.public_key).map_err(|_| LicenceError::Forged)?;
    let key = VerifyingKey::from_bytes(bytes.as_bytes()).map_err(|_| LicenceError::Forged)?;
    let signature: Signature = file.signature.parse().map_err(|_| LicenceError::Forged)?;
    key.verify_strict(&message(&file.payload), &signature).map_err(|_| LicenceError::Forged)?;
    let terms: LicenceTerms = serde_json::from_str(&file.payload).map_err(malformed)?;
    check(&terms)?;
    Ok(terms)
}

impl LicenceTerms {
    /// What it allows then, on this machine.
    pub fn state_at(&self, time: Timestamp, machine: Option<&str>) -> LicenceState {
        let grace_until = Timestamp(self.expires_at_micros).plus(GRACE);
        match self.machine.as_deref() {
            Some(only) if machine != Some(only) => LicenceState::OtherMachine,
            _ if time.0 < self.valid_from_micros => LicenceState::NotYet,
            _ if time.0 < self.expires_at_micros => LicenceState::Valid,
            _ if time < grace_until => LicenceState::Grace { until: grace_until },
            _ => LicenceState::ReadOnly,
        }
    }

    /// Whether it opens something.
    pub fn entitles_to(&self, entitlement: &str) -> bool {
        self.entitlements.iter().any(|other| other == entitlement)
    }
}

/// The latest time that was ever seen, in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockCheck {
    /// The time that counts: the clock's, or the latest that was seen.
    pub time: Timestamp,
    /// By how much the clock was set back, if it was.
    pub set_back: Option<Duration>,
}

/// Compares the clock with the latest time that was seen, and notes a later one.
pub fn check_clock(path: &Path, now: Timestamp) -> Result<ClockCheck, LicenceError> {
    let failed = |reason: String| LicenceError::File { path: path.display().to_string(), reason };
    let latest = match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map(Timestamp).map_err(|_| failed("it does not hold a time".into()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => now,
        Err(error) => return Err(failed(error.to_string())),
    };
    if latest.since(now) > CLOCK_BACK_MAX {
        return Ok(ClockCheck { time: latest, set_back: Some(latest.since(now)) });
    }
    let time = latest.max(now);
    // Beside its place and renamed: half a file would be a clock that cannot be read.
    let beside = path.with_extension("part");
    std::fs::write(&beside, format!("{}\n", time.0))
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|error| failed(error.to_string()))?;
    Ok(ClockCheck { time, set_back: None })
}

/// What names this machine, where the system has such a thing.
pub fn machine_id() -> Option<String> {
    let text = std::fs::read_to_string("/etc/machine-id").ok()?;
    let id = text.trim();
    // Hashed, as its manual asks: the id itself is not to be given to others.
    (!id.is_empty()).then(|| hex(&blake3::derive_key("bitnet platform 2026 machine of a licence", id.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: i64 = 86_400_000_000;

    fn terms() -> LicenceTerms {
        LicenceTerms {
            customer: "Ann & Co".into(),
            plan: "enterprise".into(),
            entitlements: vec!["sso".into()],
            seats: Some(5),
            valid_from_micros: 10 * DAY,
            expires_at_micros: 20 * DAY,
            machine: None,
        }
    }

    fn key() -> LicenceKey {
        LicenceKey::new([7; 32])
    }

    #[test]
    fn licence_reads_back_and_ends_with_grace() {
        let text = key().issue(&terms()).expect("issued");
        let read = verify(&text, &[key().public_key()]).expect("verified");
        assert_eq!(read, terms());
        let state = |day: i64| read.state_at(Timestamp(day * DAY), None);
        let grace = LicenceState::Grace { until: Timestamp(34 * DAY) };
        assert_eq!(
            [9, 10, 19, 20, 33, 34].map(state),
            [LicenceState::NotYet, LicenceState::Valid, LicenceState::Valid, grace, grace, LicenceState::ReadOnly]
        );
        let bound = LicenceTerms { machine: Some("m".into()), ..terms() };
        assert_eq!(bound.state_at(Timestamp(11 * DAY), Some("n")), LicenceState::OtherMachine);
        assert_eq!(bound.state_at(Timestamp(11 * DAY), Some("m")), LicenceState::Valid);
        assert!(read.entitles_to("sso") && !read.entitles_to("SSO"));
    }

    #[test]
    fn licence_of_somebody_else_is_refused() {
        let text = LicenceKey::new([8; 32]).issue(&terms()).expect("issued");
        assert!(matches!(verify(&text, &[key().public_key()]), Err(LicenceError::UnknownKey { .. })));
        let claimed = text.replace(&LicenceKey::new([8; 32]).public_key(), &key().public_key());
        assert_eq!(verify(&claimed, &[key().public_key()]), Err(LicenceError::Forged));
        assert!(key().issue(&LicenceTerms { customer: " ".into(), ..terms() }).is_err());
        assert!(key().issue(&LicenceTerms { expires_at_micros: 0, ..terms() }).is_err());
    }

    #[test]
    fn clock_that_was_set_back_is_noticed_and_does_not_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("clock");
        let check = |day: i64| check_clock(&path, Timestamp(day * DAY)).expect("it reads");
        assert_eq!(check(10), ClockCheck { time: Timestamp(10 * DAY), set_back: None });
        assert_eq!(check(12).time, Timestamp(12 * DAY));
        assert_eq!(check(11), ClockCheck { time: Timestamp(12 * DAY), set_back: Some(Duration::from_secs(86_400)) });
        assert_eq!(check(13), ClockCheck { time: Timestamp(13 * DAY), set_back: None });
        std::fs::write(&path, "yesterday").expect("written");
        assert!(check_clock(&path, Timestamp(0)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]
        #[test]
        fn licence_with_any_bit_changed_is_refused(place in 0usize..2000, bit in 0u8..8) {
            let text = key().issue(&terms()).expect("issued");
            let mut bytes = text.clone().into_bytes();
            let place = place % bytes.len();
            bytes[place] ^= 1 << bit;
            let changed = String::from_utf8_lossy(&bytes);
            // Space between fields and the case of hexadecimal digits say nothing.
            if let Ok(read) = verify(&changed, &[key().public_key()]) {
                prop_assert_eq!(read, terms());
            }
        }
    }
}
