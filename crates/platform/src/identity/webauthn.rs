//! What a browser brings back from a passkey, checked: [Web Authentication, level 2](https://www.w3.org/TR/webauthn-2/), §7.1 and §7.2,
//! as far as a site needs it that asks for no attestation. Everything that comes in is bounded and untrusted.
//!
//! What it deliberately does not do: judge makers of devices, read extensions, or take algorithms besides the three that browsers offer.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::limits::{CREDENTIAL_ID_BYTES_MAX, PASSKEY_BYTES_MAX};

/// Why an answer is none.
pub(super) type Refused = &'static str;

/// As COSE numbers them: ES256, EdDSA, RS256.
pub(super) const ALGORITHMS: [i64; 3] = [ES256, EDDSA, RS256];
const ES256: i64 = -7;
const EDDSA: i64 = -8;
const RS256: i64 = -257;

const USER_PRESENT: u8 = 0x01;
const USER_VERIFIED: u8 = 0x04;
const HAS_CREDENTIAL: u8 = 0x40;
const HAS_EXTENSIONS: u8 = 0x80;

/// What passkeys are for: this site and no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Party {
    /// The name that passkeys are bound to.
    pub(crate) rp_id: String,
    /// Where its pages are, as browsers say it.
    pub(crate) origin: String,
}

/// What somebody is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ceremony {
    Create,
    Get,
}

/// A credential that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) credential_id: Vec<u8>,
    pub(super) public_key: Vec<u8>,
    pub(super) sign_count: u32,
}

#[derive(Deserialize)]
struct ClientData {
    r#type: String,
    challenge: String,
    origin: String,
    #[serde(rename = "crossOrigin", default)]
    cross_origin: bool,
}

impl Party {
    /// Of the URL where the site is reached. Passkeys are bound to names, so an address has none; this machine's has: `localhost`.
    pub(crate) fn of(public_url: &str) -> Option<Self> {
        let (scheme, rest) = public_url.split_once("://")?;
        let authority = rest.split('/').next().unwrap_or_default();
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| is_port(port)) {
            Some((host, port)) => (host, format!(":{port}")),
            None => (authority, String::new()),
        };
        let rp_id = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) if address.is_loopback() => "localhost".to_string(),
            Ok(_) => return None,
            Err(_) => host.to_lowercase(),
        };
        // Browsers offer none on pages that come unencrypted, but for this machine's own.
        let is_secure = scheme == "https" || rp_id == "localhost" || rp_id.ends_with(".localhost");
        let origin = format!("{scheme}://{rp_id}{port}");
        (is_secure && !rp_id.is_empty()).then_some(Self { rp_id, origin })
    }

    /// The challenge that an answer is to, if it is of that ceremony and from our own pages.
    pub(super) fn challenge(&self, client_data: &[u8], ceremony: Ceremony) -> Result<String, Refused> {
        if client_data.len() > PASSKEY_BYTES_MAX {
            return Err("what the browser says is too long");
        }
        let data: ClientData = serde_json::from_slice(client_data).map_err(|_| "what the browser says cannot be read")?;
        let expected = if ceremony == Ceremony::Create { "webauthn.create" } else { "webauthn.get" };
        if data.r#type != expected {
            return Err("this answers another question");
        }
        if data.origin != self.origin || data.cross_origin {
            return Err("this passkey was asked for by another site");
        }
        let challenge = URL_SAFE_NO_PAD.decode(&data.challenge).map_err(|_| "the challenge cannot be read")?;
        String::from_utf8(challenge).map_err(|_| "the challenge is none of ours")
    }

    /// Flags and counter of an authenticator's data, and what follows them; only if it is for us, and somebody was there and was verified.
    fn opened<'a>(&self, data: &'a [u8]) -> Result<(u8, u32, &'a [u8]), Refused> {
        let short = "what the device says is cut off";
        if data.len() > PASSKEY_BYTES_MAX {
            return Err("what the device says is too long");
        }
        let (hash, rest) = data.split_at_checked(32).ok_or(short)?;
        let (&flags, rest) = rest.split_first().ok_or(short)?;
        let (count, rest) = rest.split_first_chunk::<4>().ok_or(short)?;
        if hash != Sha256::digest(self.rp_id.as_bytes()).as_slice() {
            return Err("this passkey is for another site");
        }
        if flags & USER_PRESENT == 0 || flags & USER_VERIFIED == 0 {
            return Err("the device has not checked who is there: set a PIN or a fingerprint on it");
        }
        Ok((flags, u32::from_be_bytes(*count), rest))
    }

    /// The credential that a device has made.
    pub(super) fn made(&self, data: &[u8]) -> Result<Made, Refused> {
        let short = "what the device says is cut off";
        let (flags, sign_count, rest) = self.opened(data)?;
        if flags & HAS_CREDENTIAL == 0 {
            return Err("there is no credential in it");
        }
        // 16 bytes say of which make the device is, which is not asked.
        let (_, rest) = rest.split_at_checked(16).ok_or(short)?;
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(short)?;
        let length = usize::from(u16::from_be_bytes(*length));
        if length == 0 || length > CREDENTIAL_ID_BYTES_MAX {
            return Err("the credential has a name of a wrong length");
        }
        let (credential_id, key) = rest.split_at_checked(length).ok_or(short)?;
        let (_, after) = CoseKey::read(key)?;
        if flags & HAS_EXTENSIONS == 0 && !after.is_empty() {
            return Err("there is something behind the key");
        }
        let public_key = key[..key.len() - after.len()].to_vec();
        Ok(Made { credential_id: credential_id.to_vec(), public_key, sign_count })
    }

    /// The counter of a device that has signed with a key; only if it has.
    pub(super) fn signed(&self, public_key: &[u8], (data, client_data): (&[u8], &[u8]), signature: &[u8]) -> Result<u32, Refused> {
        let (_, sign_count, _) = self.opened(data)?;
        let message = [data, Sha256::digest(client_data).as_slice()].concat();
        CoseKey::read(public_key)?.0.verify(&message, signature)?;
        Ok(sign_count)
    }
}

/// A public key as COSE writes it: a map of small numbers.
enum CoseKey<'a> {
    Es256([u8; 65]),
    EdDsa(&'a [u8]),
    Rs256 { n: &'a [u8], e: &'a [u8] },
}

/// Most entries of a key's map.
const N_KEY_FIELDS_MAX: u64 = 8;

/// A value of the map.
enum Cbor<'a> {
    Int(i64),
    Bytes(&'a [u8]),
}

/// Reads a head (RFC 8949, §3): its major type and its argument, of definite length only.
fn head(bytes: &[u8]) -> Result<(u8, u64, &[u8]), Refused> {
    let broken = "the key cannot be read";
    let (&first, rest) = bytes.split_first().ok_or(broken)?;
    let (length, rest) = match first & 0x1f {
        small @ 0..24 => (u64::from(small), rest),
        24 => rest.split_first().map(|(byte, rest)| (u64::from(*byte), rest)).ok_or(broken)?,
        25 => rest.split_first_chunk::<2>().map(|(bytes, rest)| (u64::from(u16::from_be_bytes(*bytes)), rest)).ok_or(broken)?,
        _ => return Err(broken),
    };
    Ok((first >> 5, length, rest))
}

fn value(bytes: &[u8]) -> Result<(Cbor<'_>, &[u8]), Refused> {
    let broken = "the key cannot be read";
    let (kind, number, rest) = head(bytes)?;
    let signed = i64::try_from(number).map_err(|_| broken)?;
    match kind {
        0 => Ok((Cbor::Int(signed), rest)),
        1 => Ok((Cbor::Int(-1 - signed), rest)),
        2 => {
            let length = usize::try_from(number).map_err(|_| broken)?;
            let (bytes, rest) = rest.split_at_checked(length).ok_or(broken)?;
            Ok((Cbor::Bytes(bytes), rest))
        }
        _ => Err(broken),
    }
}

impl<'a> CoseKey<'a> {
    /// A key, and what is behind it.
    fn read(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Refused> {
        let (kind, n_fields, mut rest) = head(bytes)?;
        if kind != 5 || n_fields > N_KEY_FIELDS_MAX {
            return Err("the key cannot be read");
        }
        let (mut ints, mut texts) = (Vec::new(), Vec::new());
        for _ in 0..n_fields {
            let (name, behind) = value(rest)?;
            let (content, behind) = value(behind)?;
            rest = behind;
            match (name, content) {
                (Cbor::Int(name), Cbor::Int(number)) => ints.push((name, number)),
                (Cbor::Int(name), Cbor::Bytes(bytes)) => texts.push((name, bytes)),
                _ => return Err("the key cannot be read"),
            }
        }
        let int = |wanted: i64| ints.iter().find(|(name, _)| *name == wanted).map(|(_, number)| *number);
        let text = |wanted: i64| texts.iter().find(|(name, _)| *name == wanted).map(|(_, bytes)| *bytes);
        let key = match (int(1), int(3), int(-1), text(-2), text(-3)) {
            (Some(2), Some(ES256), Some(1), Some(x), Some(y)) if x.len() == 32 && y.len() == 32 => {
                let mut point = [4; 65];
                point[1..33].copy_from_slice(x);
                point[33..].copy_from_slice(y);
                Self::Es256(point)
            }
            (Some(1), Some(EDDSA), Some(6), Some(x), None) if x.len() == 32 => Self::EdDsa(x),
            (Some(3), Some(RS256), None, Some(e), None) => Self::Rs256 { n: text(-1).ok_or("the key has no modulus")?, e },
            _ => return Err("the key is of a kind that is not taken"),
        };
        Ok((key, rest))
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), Refused> {
        let verified = match self {
            Self::Es256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(message, signature),
            Self::EdDsa(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
            Self::Rs256 { n, e } => RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature),
        };
        verified.map_err(|_| "the signature is wrong")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};

    fn party() -> Party {
        Party::of("https://ai.example.com").expect("a name")
    }

    /// What a device says: for whom, flags, counter, and what follows.
    fn said(rp_id: &str, flags: u8, count: u32, rest: &[u8]) -> Vec<u8> {
        [Sha256::digest(rp_id.as_bytes()).as_slice(), &[flags], &count.to_be_bytes(), rest].concat()
    }

    fn es256(point: &[u8]) -> Vec<u8> {
        [&[0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32][..], &point[1..33], &[0x22, 0x58, 32], &point[33..]].concat()
    }

    fn credential(id: &[u8], key: &[u8]) -> Vec<u8> {
        [&[0; 16][..], &u16::try_from(id.len()).expect("short").to_be_bytes(), id, key].concat()
    }

    #[test]
    fn site_has_passkeys_where_browsers_give_them() {
        let of = |url: &str| Party::of(url).map(|party| (party.rp_id, party.origin));
        let is = |rp_id: &str, origin: &str| Some((rp_id.to_string(), origin.to_string()));
        assert_eq!(of("https://AI.example.com:8443/portal"), is("ai.example.com", "https://ai.example.com:8443"));
        for own in ["http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost:8080"] {
            assert_eq!(of(own), is("localhost", "http://localhost:8080"), "{own}");
        }
        for none in ["http://ai.example.com", "https://10.0.0.1", "https://[2001:db8::1]:443", "https://", "nonsense"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn challenge_is_read_from_an_answer_to_our_own_question_only() {
        let answer = |kind: &str, origin: &str, cross: bool| {
            let challenge = URL_SAFE_NO_PAD.encode("abc");
            format!(r#"{{"type":"{kind}","challenge":"{challenge}","origin":"{origin}","crossOrigin":{cross},"other":[1]}}"#)
        };
        let read = |text: String| party().challenge(text.as_bytes(), Ceremony::Get);
        assert_eq!(read(answer("webauthn.get", "https://ai.example.com", false)), Ok("abc".into()));
        assert!(read(answer("webauthn.create", "https://ai.example.com", false)).is_err(), "another ceremony");
        assert!(read(answer("webauthn.get", "https://ai.example.com", true)).is_err(), "in another's frame");
        for origin in ["https://evil.example", "http://ai.example.com", "https://ai.example.com:444", "https://ai.example.com.evil.example"]
        {
            assert!(read(answer("webauthn.get", origin, false)).is_err(), "{origin}");
        }
        for wrong in ["", "{}", "[]", r#"{"type":"webauthn.get"}"#] {
            assert!(read(wrong.into()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn signature_opens_only_over_what_was_signed() {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).expect("a key");
        let made = party().made(&said("ai.example.com", 0x45, 0, &credential(b"id", &es256(pair.public_key().as_ref())))).expect("made");
        assert_eq!((made.credential_id.as_slice(), made.sign_count), (&b"id"[..], 0));
        let (data, client) = (said("ai.example.com", 0x05, 7, &[]), b"{}".to_vec());
        let signature = |data: &[u8], client: &[u8]| {
            pair.sign(&random, &[data, Sha256::digest(client).as_slice()].concat()).expect("signed").as_ref().to_vec()
        };
        let good = signature(&data, &client);
        let open = |data: &[u8], client: &[u8], signature: &[u8]| party().signed(&made.public_key, (data, client), signature);
        assert_eq!(open(&data, &client, &good), Ok(7));
        assert!(open(&data, b"{ }", &good).is_err(), "another answer");
        assert!(open(&said("ai.example.com", 0x05, 8, &[]), &client, &good).is_err(), "another counter");
        assert!(open(&data, &client, &good[1..]).is_err() && open(&data, &client, &[]).is_err());
        for (rp_id, flags) in [("evil.example", 0x05), ("ai.example.com", 0x01), ("ai.example.com", 0x04)] {
            let data = said(rp_id, flags, 9, &[]);
            assert!(open(&data, &client, &signature(&data, &client)).is_err(), "{rp_id} {flags:#x}, though rightly signed");
        }
    }

    #[test]
    fn other_kinds_of_keys_are_taken_as_browsers_offer_them() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a key");
        let key = [&[0xa4, 1, 1, 3, 0x27, 0x20, 6, 0x21, 0x58, 32][..], pair.public_key().as_ref()].concat();
        let made = party().made(&said("ai.example.com", 0x45, 1, &credential(b"id", &key))).expect("made");
        let (data, client) = (said("ai.example.com", 0x05, 0, &[]), b"{}");
        let message = [data.as_slice(), Sha256::digest(client).as_slice()].concat();
        assert_eq!(party().signed(&made.public_key, (&data, client), pair.sign(&message).as_ref()), Ok(0));
        // A P-256 key that calls itself EdDSA, one of another curve, and one with something behind it.
        for wrong in [&[0xa4, 1, 2, 3, 0x27, 0x20, 6, 0x21, 0x58, 32][..], &[0xa4, 1, 1, 3, 0x27, 0x20, 4, 0x21, 0x58, 32]] {
            assert!(party().made(&said("ai.example.com", 0x45, 1, &credential(b"id", &[wrong, &[0; 32]].concat()))).is_err());
        }
        assert!(party().made(&said("ai.example.com", 0x45, 1, &credential(b"id", &[&key[..], &[0]].concat()))).is_err());
        assert!(party().made(&said("ai.example.com", 0x05, 1, &credential(b"id", &key))).is_err(), "it says that there is none");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(rest in proptest::collection::vec(any::<u8>(), 0..200), flags in any::<u8>()) {
            let data = said("ai.example.com", flags | 0x45, 1, &rest);
            if let Ok(made) = party().made(&data) {
                prop_assert!(made.credential_id.len() + made.public_key.len() <= rest.len());
            }
            let _ = party().made(&rest);
            let _ = party().signed(&rest, (&data, b"{}"), &rest);
            let _ = party().challenge(&rest, Ceremony::Get);
        }
    }
}
