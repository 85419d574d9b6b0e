//! Tokens that are almost right, by the million: keys, cookies, links and signatures with a character changed, moved, cut, added, put into
//! other case, or halves of two that are good. None of them opens anything. `cargo xtask endure` tries a million of each, the tests a
//! million in all, most of which need no database.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::mail::{MailRoute, mailer};
use super::person::LinkPurpose;
use super::session::{NewSession, Stage};
use super::{Identity, Token};
use crate::audit::By;
use crate::directory::{Directory, KeyAccess, KeyScope, NewAccount, NewApiKey};
use crate::ids::{EndpointId, PersonId};
use crate::ledger::Overage;
use crate::ledger::scope::ScopeLimits;
use crate::ledger::service::LedgerService;
use crate::money::Micros;
use crate::payment::{HookError, HookSecret};
use crate::secret_file::InstallationSecret;
use crate::store::{MIGRATIONS, Store};
use crate::time::Timestamp;
use crate::webhooks::{EndpointSecrets, signature, verify};

const NOW: Timestamp = Timestamp(1_767_225_600_000_000);
/// Characters that tokens have, and some that they have not.
const CHARACTERS: &[u8] = b"0123456789abcdefABCDEFghzZ+/=-_.,% \0\n'\"";

/// As many as this test is to try: fewer in the tests than in `cargo xtask endure`.
fn n_mutants(short: u32) -> u32 {
    if std::env::var_os("BITNET_ENDURE").is_some() { 1_000_000 } else { short }
}

/// Makes mutants, the same ones each time.
struct Mutation(u64);

impl Mutation {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64*, by Marsaglia and Vigna.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).expect("31 bits") % bound
    }

    fn character(&mut self) -> u8 {
        CHARACTERS[self.below(CHARACTERS.len())]
    }

    /// One that is neither of two tokens of the same length.
    fn of(&mut self, token: &str, other: &str) -> String {
        loop {
            let mutant = self.change(token.as_bytes().to_vec(), other.as_bytes());
            let mutant = String::from_utf8(mutant).expect("all of these are ASCII");
            if mutant != token && mutant != other {
                return mutant;
            }
        }
    }

    fn change(&mut self, mut token: Vec<u8>, other: &[u8]) -> Vec<u8> {
        let (at, to) = (self.below(token.len()), self.below(token.len()));
        match self.below(9) {
            // What is most like it comes most often: a digit for a digit.
            0..3 => token[at] = b"0123456789abcdef"[self.below(16)],
            3 => token[at] = self.character(),
            4 => token.swap(at, to),
            5 => token.truncate(at),
            6 => token.insert(at, self.character()),
            7 => token[at] = if token[at].is_ascii_lowercase() { token[at].to_ascii_uppercase() } else { token[at].to_ascii_lowercase() },
            _ => token[at..].copy_from_slice(&other[at..]),
        }
        token
    }
}

async fn store(folder: &tempfile::TempDir) -> Arc<Store> {
    let store = Store::connect(&format!("sqlite:{}", folder.path().join("p.db").display())).await.expect("it opens");
    store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
    Arc::new(store)
}

fn by() -> By {
    By::operator("test", NOW)
}

#[tokio::test]
async fn api_key_that_is_almost_right_opens_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(&folder).await;
    let secret = InstallationSecret::new([5; 32]);
    let new = NewAccount { name: "Ann".into(), plan: "payg".into(), overage: Overage::Refuse, spending_cap: Micros::ZERO };
    let account = store.create_account(new, &by()).await.expect("created");
    let project = store.create_project(account, "default", ScopeLimits::default(), &by()).await.expect("created");
    let mut keys = Vec::new();
    for _ in 0..2 {
        let (scope, limits) = (KeyScope::default(), ScopeLimits::default());
        let key = NewApiKey { account, project, name: "k".into(), access: KeyAccess::Inference, scope, limits, expires_at: None };
        keys.push(store.create_api_key(key, &secret.key_hasher(), &by()).await.expect("created").1);
    }
    let ledger = Arc::new(LedgerService::open(Box::new(store.clone()), NOW).await.expect("it opens"));
    let directory = Directory::open(store, ledger, secret.key_hasher()).await.expect("it opens");
    let mut mutation = Mutation(1);
    for _ in 0..n_mutants(550_000) {
        let mutant = mutation.of(keys[0].reveal(), keys[1].reveal());
        assert!(directory.find(&mutant, NOW).is_none(), "{mutant:?} opens something");
    }
    assert!(keys.iter().all(|key| directory.find(key.reveal(), NOW).is_some()), "and what is right does");
}

#[tokio::test]
async fn cookie_or_link_that_is_almost_right_opens_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(&folder).await;
    let (mailer, _sender) = mailer(&MailRoute::Terminal, |_| {}).expect("a mailer");
    let identity =
        Identity::new(store.clone(), &InstallationSecret::new([5; 32]), mailer, "http://localhost".into()).expect("a public URL");
    let person = store.put_person(("ann@example.com", "Ann", "no hash".into()), true, &by()).await.expect("kept").expect("new").id;
    let other: PersonId = store.put_person(("bob@example.com", "Bob", "no hash".into()), true, &by()).await.expect("kept").expect("new").id;
    let tokens: Vec<Token> = (0..4).map(|_| Token::random().expect("random")).collect();
    let later = NOW.plus(std::time::Duration::from_secs(3600));
    for (token, person) in tokens.iter().zip([person, other]) {
        let hash = identity.hash_of("session", token.reveal());
        let session = NewSession { hash, person, stage: Stage::Open, expires_at: later, agent: String::new() };
        store.begin_session(session, &by()).await.expect("begun");
    }
    for (token, person) in tokens[2..].iter().zip([person, other]) {
        let hash = identity.hash_of("reset", token.reveal());
        store.put_link(hash, (person, LinkPurpose::Reset), (NOW, later)).await.expect("kept");
    }
    let mut mutation = Mutation(2);
    for _ in 0..n_mutants(10_000) {
        let mutant = mutation.of(tokens[0].reveal(), tokens[1].reveal());
        assert!(identity.visitor(&mutant, NOW).await.expect("asked").is_none(), "{mutant:?} is a session");
        let mutant = mutation.of(tokens[2].reveal(), tokens[3].reveal());
        assert!(!identity.is_reset_link(&mutant, NOW).await.expect("asked"), "{mutant:?} sets a password");
    }
    for (index, token) in tokens.iter().enumerate() {
        let (session, link) = (identity.visitor(token.reveal(), NOW).await, identity.is_reset_link(token.reveal(), NOW).await);
        assert_eq!((session.expect("asked").is_some(), link.expect("asked")), (index < 2, index >= 2), "each is good for one thing");
        assert!(store.link(&identity.hash_of("confirm", token.reveal()), LinkPurpose::Confirm, NOW).await.expect("asked").is_none());
    }
}

#[test]
fn signature_that_is_almost_right_is_refused() {
    let secrets = EndpointSecrets::new([7; 32]);
    let (own, other) = (secrets.secret(EndpointId::from_u128(1), 1), secrets.secret(EndpointId::from_u128(2), 1));
    let (message, body) = (("msg_1", NOW.0 / 1_000_000), br#"{"type":"invoice.paid"}"#);
    let [good, foreign] = [own, other].map(|secret| signature(&secret, message, body));
    let mut mutation = Mutation(3);
    for _ in 0..n_mutants(220_000) {
        // Behind a good one of another's, so that a header has two.
        let mutant = mutation.of(&good, &foreign);
        assert!(!verify(&own, message, body, &format!("{mutant} {foreign}")) || mutant.contains(&good), "{mutant:?} signs");
    }
    assert!(verify(&own, message, body, &good));

    let stripe = HookSecret::new("whsec_1");
    let sign = |key: &[u8]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key");
        mac.update(format!("{}.", NOW.0 / 1_000_000).as_bytes());
        mac.update(body);
        format!("t={},v1={}", NOW.0 / 1_000_000, mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let (good, foreign) = (sign(b"whsec_1"), sign(b"whsec_2"));
    // Other spellings of the same time and the same bytes are no other signature: digits in other case, a nought in front, a comma behind.
    let spells_good = |header: &str| {
        let fields = || header.split(',').filter_map(|field| field.trim().split_once('='));
        let (_, digits) = good.split_once("v1=").expect("a signature");
        let has_digits = fields().any(|(name, value)| name == "v1" && value.eq_ignore_ascii_case(digits));
        has_digits && fields().any(|(name, value)| name == "t" && value.parse() == Ok(NOW.0 / 1_000_000))
    };
    for _ in 0..n_mutants(220_000) {
        let mutant = mutation.of(&good, &foreign);
        let verified = stripe.verify(&mutant, body, NOW);
        assert!(verified.is_err() || spells_good(&mutant), "{mutant:?} signs");
    }
    assert_eq!((stripe.verify(&good, body, NOW), stripe.verify(&foreign, body, NOW)), (Ok(()), Err(HookError::Forged)));
}
