//! The second factor: codes of six digits that change every thirty seconds (RFC 6238), and codes on paper for who has lost it. The
//! secret is not stored but made of a random salt and the installation's secret, so that there is nothing in the database to steal.

use qrcodegen::{QrCode, QrCodeEcc};
use totp_rs::{Algorithm, Builder, Totp};

use crate::error::PlatformError;
use crate::limits::N_RECOVERY_CODES;

const STEP_S: u64 = 30;
const ISSUER: &str = "bitnet";
/// Letters and digits that are not taken for each other.
const RECOVERY_ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
const RECOVERY_LEN: usize = 16;

/// Somebody's second factor.
pub(crate) struct SecondFactor(Totp);

impl SecondFactor {
    /// Of a salt of the database, under a secret of the installation.
    pub(crate) fn new(secret: &[u8; 32], salt: &[u8], email: &str) -> Result<Self, PlatformError> {
        let made = blake3::keyed_hash(secret, salt);
        // A colon would end the account's name in the link that an app reads.
        let builder = Builder::new().with_algorithm(Algorithm::SHA1).with_digits(6).with_skew(1).with_step_duration(STEP_S);
        let builder = builder.with_secret(made.as_bytes()[..20].to_vec()).with_account_name(email.replace(':', " "));
        let totp = builder.with_issuer(Some(ISSUER)).build();
        totp.map(Self).map_err(|error| PlatformError::Corrupt { what: "a second factor", reason: error.to_string() })
    }

    /// The step of a code, if it is one of now that is later than the last one taken.
    pub(crate) fn step_of(&self, code: &str, unix_seconds: u64, last_step: u64) -> Option<u64> {
        let code: String = code.chars().filter(|c| !c.is_whitespace()).collect();
        let now = unix_seconds / STEP_S;
        let steps = (now.saturating_sub(1)..=now + 1).filter(|step| *step > last_step);
        let is_code = code.len() == 6 && self.0.check(&code, unix_seconds).is_some();
        // Which of the three it was: a code is as good as its step.
        steps.filter(|_| is_code).find(|step| self.0.generate(step * STEP_S).to_string() == code)
    }

    /// What is typed into an app that cannot read the picture.
    pub(crate) fn secret_text(&self) -> String {
        let url = self.url();
        let secret = url.split(['?', '&']).find_map(|part| part.strip_prefix("secret=")).unwrap_or_default().to_string();
        let groups: Vec<String> = secret.as_bytes().chunks(4).map(|group| String::from_utf8_lossy(group).into_owned()).collect();
        groups.join(" ")
    }

    fn url(&self) -> String {
        self.0.to_url().unwrap_or_default()
    }

    /// The picture that apps read, as the path of an SVG and the length of its side.
    pub(crate) fn picture(&self) -> Result<(String, i32), PlatformError> {
        let failed = |error: &dyn std::fmt::Display| PlatformError::Corrupt { what: "a second factor", reason: error.to_string() };
        let code = QrCode::encode_text(&self.url(), QrCodeEcc::Medium).map_err(|error| failed(&error))?;
        let mut path = String::new();
        for y in 0..code.size() {
            for x in (0..code.size()).filter(|&x| code.get_module(x, y)) {
                path.push_str(&format!("M{},{}h1v1h-1z", x + 2, y + 2));
            }
        }
        Ok((path, code.size() + 4))
    }

    #[cfg(test)]
    fn code_at(&self, unix_seconds: u64) -> String {
        self.0.generate(unix_seconds).to_string()
    }
}

/// Codes for paper, such as `abcd-efgh-jkmn-pqrs`: 80 random bits each.
pub(crate) fn recovery_codes() -> Result<Vec<String>, PlatformError> {
    let mut codes = Vec::with_capacity(N_RECOVERY_CODES);
    for _ in 0..N_RECOVERY_CODES {
        let mut bytes = [0; RECOVERY_LEN];
        getrandom::fill(&mut bytes).map_err(|error| PlatformError::Randomness { reason: error.to_string() })?;
        let letters: Vec<u8> = bytes.iter().map(|byte| RECOVERY_ALPHABET[usize::from(byte % 32)]).collect();
        let groups: Vec<String> = letters.chunks(4).map(|group| String::from_utf8_lossy(group).into_owned()).collect();
        codes.push(groups.join("-"));
    }
    Ok(codes)
}

/// As it is hashed, however it was typed.
pub(crate) fn recovery_code_as_hashed(text: &str) -> Option<String> {
    let code: String = text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    (code.len() == RECOVERY_LEN).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_good_once_and_near_its_time() {
        let factor = SecondFactor::new(&[1; 32], b"salt", "ann@example.com").expect("made");
        let now = 1_767_225_610;
        let step = factor.step_of(&factor.code_at(now), now, 0).expect("its time");
        assert_eq!(step, now / STEP_S);
        assert_eq!(factor.step_of(&factor.code_at(now), now, step), None, "taken already");
        assert!(factor.step_of(&factor.code_at(now - 30), now, 0).is_some(), "a slow clock");
        assert_eq!(factor.step_of(&factor.code_at(now - 90), now, 0), None);
        for wrong in ["", "12345", "1234567", "abcdef", "' OR 1"] {
            assert_eq!(factor.step_of(wrong, now, 0), None, "{wrong}");
        }
        let other = SecondFactor::new(&[2; 32], b"salt", "ann@example.com").expect("made");
        assert_eq!(other.step_of(&factor.code_at(now), now, 0), None, "another installation's");
        let spaced = format!("{} {}", &factor.code_at(now)[..3], &factor.code_at(now)[3..]);
        assert!(factor.step_of(&spaced, now, 0).is_some(), "as apps show it");
    }

    #[test]
    fn picture_and_text_hold_the_same_secret() {
        let factor = SecondFactor::new(&[1; 32], b"salt", "ann@example.com").expect("made");
        assert!(factor.url().starts_with("otpauth://totp/bitnet:ann%40example.com?"), "{}", factor.url());
        assert_eq!(factor.secret_text().replace(' ', "").len(), 32);
        assert!(factor.picture().is_ok_and(|(path, side)| path.len() > 500 && side > 30));
    }

    #[test]
    fn recovery_code_is_read_however_it_is_typed() {
        let codes = recovery_codes().expect("random");
        assert_eq!(codes.len(), N_RECOVERY_CODES);
        let plain = codes[0].replace('-', "");
        assert_eq!(recovery_code_as_hashed(&codes[0].to_uppercase().replace('-', " ")), Some(plain));
        assert_eq!(recovery_code_as_hashed("too-short"), None);
    }
}
