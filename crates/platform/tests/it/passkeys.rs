//! Passkeys as a browser's form brings them, from a device of the test's own: what opens, and what does not that somebody has made up,
//! kept, copied or got from elsewhere.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bitnet_platform::portal::Reach;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::store::on_both;
use super::visitor::{PASSWORD, Page, Site, Visitor, link_in};

const ORIGIN: &str = "http://localhost:8080";
/// Somebody is there, and was verified.
const VERIFIED: u8 = 0x05;

fn text(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A device with one credential.
struct Device {
    pair: EcdsaKeyPair,
    id: [u8; 16],
    random: SystemRandom,
}

/// How an answer differs from a right one.
#[derive(Clone, Copy)]
struct Twist<'a> {
    origin: &'a str,
    rp_id: &'a str,
    flags: u8,
    count: u32,
}

const RIGHT: Twist<'static> = Twist { origin: ORIGIN, rp_id: "localhost", flags: VERIFIED, count: 0 };

impl Device {
    fn new(id: u8) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).expect("a key");
        Self { pair, id: [id; 16], random }
    }

    fn client_data(options: &Value, (kind, origin): (&str, &str)) -> String {
        json!({ "type": kind, "challenge": options["challenge"], "origin": origin, "crossOrigin": false }).to_string()
    }

    fn data(twist: Twist<'_>, flags: u8, rest: &[u8]) -> Vec<u8> {
        [Sha256::digest(twist.rp_id.as_bytes()).as_slice(), &[flags], &twist.count.to_be_bytes(), rest].concat()
    }

    /// The fields that a form gets when a credential is made.
    fn made(&self, options: &Value, twist: Twist<'_>) -> Vec<(&'static str, String)> {
        let point = self.pair.public_key().as_ref();
        let key = [&[0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32][..], &point[1..33], &[0x22, 0x58, 32], &point[33..]].concat();
        let credential = [&[0; 16][..], &[0, 16], &self.id, &key].concat();
        let client = Self::client_data(options, ("webauthn.create", twist.origin));
        vec![("client_data", text(client)), ("device_data", text(Self::data(twist, twist.flags | 0x40, &credential)))]
    }

    /// The fields that a form gets when it signs.
    fn signed(&self, options: &Value, twist: Twist<'_>) -> Vec<(&'static str, String)> {
        let client = Self::client_data(options, ("webauthn.get", twist.origin));
        let data = Self::data(twist, twist.flags, &[]);
        let message = [data.as_slice(), Sha256::digest(client.as_bytes()).as_slice()].concat();
        let signature = self.pair.sign(&self.random, &message).expect("signed");
        vec![
            ("client_data", text(client)),
            ("device_data", text(data)),
            ("signature", text(signature)),
            ("credential", text(self.id)),
            ("person", String::new()),
        ]
    }
}

fn borrowed<'a>(fields: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    fields.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// What the server asks for.
async fn asked(visitor: &Visitor, path: &str, fields: &[(&str, &str)]) -> Value {
    let page = visitor.send_form(path, fields).await;
    assert_eq!(page.status, StatusCode::OK, "{}", page.body);
    serde_json::from_str(&page.body).expect("JSON")
}

async fn add(visitor: &Visitor, device: &Device, twist: Twist<'_>) -> Page {
    let options = asked(visitor, "/profile/passkeys/begin", &[("password", PASSWORD)]).await;
    visitor.send_form("/profile/passkeys", &borrowed(&device.made(&options, twist))).await
}

async fn sign_in(visitor: &Visitor, device: &Device, twist: Twist<'_>) -> Page {
    let options = asked(visitor, "/log-in/passkey/begin", &[]).await;
    visitor.post("/log-in/passkey", &borrowed(&device.signed(&options, twist))).await
}

#[test]
fn passkey_is_added_signs_in_and_is_removed() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@passkey.example").await;
        let device = Device::new(1);
        let wrong = ann.send_form("/profile/passkeys/begin", &[("password", "not the right one")]).await;
        assert!(wrong.body.contains("This is not your password.") && !wrong.body.contains("challenge"), "{}", wrong.body);
        assert_eq!(sign_in(&site.visitor(), &device, RIGHT).await.status, StatusCode::UNAUTHORIZED, "nobody knows it yet");
        let added = add(&ann, &device, RIGHT).await;
        assert_eq!(added.location(), "/profile?said=passkey", "{}", added.body);
        assert!(site.mail_to("ann@passkey.example", 2).await.subject.contains("passkey was added"));
        assert_eq!(add(&ann, &device, RIGHT).await.status, StatusCode::UNPROCESSABLE_ENTITY, "the same again");
        let phone = site.visitor();
        let page = sign_in(&phone, &device, RIGHT).await;
        assert_eq!(page.location(), "/accounts", "{}", page.body);
        let profile = phone.get("/profile").await;
        assert!(profile.body.contains("Add a passkey") && profile.body.contains("ann@passkey.example"));
        let path =
            format!("/profile/passkeys/passkey_{}/remove", &profile.body.split("/profile/passkeys/passkey_").nth(1).expect("one")[..32]);
        let eve = site.person("eve@passkey.example").await;
        assert_eq!(eve.send_form(&path, &[]).await.status, StatusCode::NOT_FOUND, "somebody else's");
        // A new password by mail ends sessions and leaves passkeys; their owner is told which.
        eve.post("/forgot", &[("email", "ann@passkey.example")]).await;
        let link = link_in(&site.mail_to("ann@passkey.example", 3).await, "/reset/");
        assert_eq!(eve.post(&link, &[("password", PASSWORD)]).await.location(), "/log-in?said=reset");
        let told = site.mail_to("ann@passkey.example", 4).await;
        assert!(told.subject.contains("set anew") && told.text.contains("still open it"), "{}", told.text);
        assert_eq!(ann.get("/profile").await.location(), "/log-in?next=/profile", "sessions have ended");
        assert_eq!(sign_in(&ann, &device, RIGHT).await.location(), "/accounts");
        assert_eq!(ann.send_form(&path, &[]).await.location(), "/profile?said=passkey-gone");
        assert_eq!(sign_in(&site.visitor(), &device, RIGHT).await.status, StatusCode::UNAUTHORIZED, "gone");
        site.end().await;
    });
}

#[test]
fn answers_that_are_forged_replayed_or_of_another_site_open_nothing() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@forged.example").await;
        let device = Device::new(2);
        for (twist, why) in [
            (Twist { origin: "https://evil.example", ..RIGHT }, "another site"),
            (Twist { rp_id: "evil.example", ..RIGHT }, "for another site"),
            (Twist { flags: 0x01, ..RIGHT }, "nobody was verified"),
        ] {
            assert_eq!(add(&ann, &device, twist).await.status, StatusCode::UNPROCESSABLE_ENTITY, "{why}");
        }
        let options = asked(&ann, "/profile/passkeys/begin", &[("password", PASSWORD)]).await;
        let eve = site.person("eve@forged.example").await;
        let fields = device.made(&options, RIGHT);
        assert_eq!(
            eve.send_form("/profile/passkeys", &borrowed(&fields)).await.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "asked of another"
        );
        assert_eq!(ann.send_form("/profile/passkeys", &borrowed(&fields)).await.location(), "/profile?said=passkey");
        let thief = site.visitor();
        for (twist, why) in [
            (Twist { origin: "https://evil.example", ..RIGHT }, "a page that looks like ours"),
            (Twist { origin: "http://localhost:8081", ..RIGHT }, "another port"),
            (Twist { rp_id: "evil.example", ..RIGHT }, "signed for another site"),
            (Twist { flags: 0x01, ..RIGHT }, "nobody was verified"),
        ] {
            assert_eq!(sign_in(&thief, &device, twist).await.status, StatusCode::UNAUTHORIZED, "{why}");
        }
        // Signed by another key under the same name, signed over something else, with a challenge of the registration, and twice.
        let other = Device { id: [2; 16], ..Device::new(3) };
        assert_eq!(sign_in(&thief, &other, RIGHT).await.status, StatusCode::UNAUTHORIZED);
        let options = asked(&thief, "/log-in/passkey/begin", &[]).await;
        let mut fields = device.signed(&options, RIGHT);
        fields[1].1 = text(Device::data(Twist { count: 9, ..RIGHT }, VERIFIED, &[]));
        assert_eq!(thief.post("/log-in/passkey", &borrowed(&fields)).await.status, StatusCode::UNAUTHORIZED);
        let fields = device.signed(&options, RIGHT);
        assert_eq!(thief.post("/log-in/passkey", &borrowed(&fields)).await.status, StatusCode::UNAUTHORIZED, "its challenge was used up");
        let registering = asked(&ann, "/profile/passkeys/begin", &[("password", PASSWORD)]).await;
        let fields = device.signed(&registering, RIGHT);
        assert_eq!(thief.post("/log-in/passkey", &borrowed(&fields)).await.status, StatusCode::UNAUTHORIZED, "asked for something else");
        let made_up = json!({ "challenge": text("0".repeat(64)) });
        assert_eq!(thief.post("/log-in/passkey", &borrowed(&device.signed(&made_up, RIGHT))).await.status, StatusCode::UNAUTHORIZED);
        let options = asked(&thief, "/log-in/passkey/begin", &[]).await;
        let fields = device.signed(&options, RIGHT);
        assert_eq!(site.visitor().post("/log-in/passkey", &borrowed(&fields)).await.location(), "/accounts");
        assert_eq!(thief.post("/log-in/passkey", &borrowed(&fields)).await.status, StatusCode::UNAUTHORIZED, "replayed");
        // A question is open for some minutes only.
        let options = asked(&thief, "/log-in/passkey/begin", &[]).await;
        let pool = sqlx::AnyPool::connect(&url).await.expect("it connects");
        sqlx::query("UPDATE passkey_challenge SET expires_at = 1").execute(&pool).await.expect("it writes");
        pool.close().await;
        assert_eq!(
            thief.post("/log-in/passkey", &borrowed(&device.signed(&options, RIGHT))).await.status,
            StatusCode::UNAUTHORIZED,
            "late"
        );
        for nonsense in ["", "%%%", "AAAA"] {
            let fields = ["client_data", "device_data", "signature", "credential", "person"].map(|name| (name, nonsense));
            assert_eq!(thief.post("/log-in/passkey", &fields).await.status, StatusCode::UNAUTHORIZED, "{nonsense:?}");
        }
        assert_eq!(thief.get("/accounts").await.location(), "/log-in?next=/accounts");
        site.end().await;
    });
}

#[test]
fn copy_of_a_device_is_noticed_by_its_counter() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@copied.example").await;
        let device = Device::new(4);
        let at = |count| Twist { count, ..RIGHT };
        assert_eq!(add(&ann, &device, at(3)).await.location(), "/profile?said=passkey");
        for (count, opens) in [(4, true), (4, false), (2, false), (0, false), (7, true), (6, false)] {
            let page = sign_in(&site.visitor(), &device, at(count)).await;
            assert_eq!(page.status == StatusCode::SEE_OTHER, opens, "{count}: {}", page.body);
        }
        site.end().await;
    });
}
