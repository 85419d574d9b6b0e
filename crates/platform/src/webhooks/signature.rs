//! Signatures of standard-webhooks: `v1,` and the HMAC-SHA256 of id, time and body, under a secret of the endpoint that is derived from
//! the installation's: none stands in the database.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::ids::EndpointId;

/// Makes secrets of endpoints.
#[derive(Clone)]
pub struct EndpointSecrets([u8; 32]);

impl EndpointSecrets {
    /// Under a key of the installation.
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The secret of an endpoint, in one of its versions.
    pub fn secret(&self, endpoint: EndpointId, version: u64) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&endpoint.as_u128().to_le_bytes()).update(&version.to_le_bytes());
        *hasher.finalize().as_bytes()
    }

    /// As its owner is told it.
    pub fn shown(&self, endpoint: EndpointId, version: u64) -> String {
        format!("whsec_{}", STANDARD.encode(self.secret(endpoint, version)))
    }
}

fn mac(secret: &[u8], (id, unix_seconds): (&str, i64), body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{unix_seconds}.").as_bytes());
    mac.update(body);
    mac
}

/// The signature of a message.
pub fn signature(secret: &[u8], message: (&str, i64), body: &[u8]) -> String {
    format!("v1,{}", STANDARD.encode(mac(secret, message, body).finalize().into_bytes()))
}

/// Whether one of the signatures in a header is a message's.
pub fn verify(secret: &[u8], message: (&str, i64), body: &[u8], header: &str) -> bool {
    let signatures = header.split(' ').filter_map(|part| part.strip_prefix("v1,"));
    let mut decoded = signatures.filter_map(|signature| STANDARD.decode(signature).ok());
    decoded.any(|signature| mac(secret, message, body).verify_slice(&signature).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_that_of_the_specification() {
        // From the specification's own test vectors (standard-webhooks/standard-webhooks, libraries/*/test).
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("base64");
        let message = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330);
        let body = br#"{"test": 2432232314}"#;
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signature(&secret, message, body), expected);
        assert!(verify(&secret, message, body, &format!("v1,AAAA v2,x {expected}")));
        assert!(!verify(&secret, (message.0, message.1 + 1), body, expected) && !verify(&secret, message, b"{}", expected));
    }

    #[test]
    fn secret_differs_by_endpoint_and_version() {
        let secrets = EndpointSecrets::new([3; 32]);
        let secret = |id, version| secrets.shown(EndpointId::from_u128(id), version);
        assert_eq!(secret(1, 1), secret(1, 1));
        assert!(secret(1, 1) != secret(1, 2) && secret(1, 1) != secret(2, 1) && secret(1, 1).starts_with("whsec_"));
    }
}
