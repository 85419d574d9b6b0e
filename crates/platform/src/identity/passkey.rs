//! Passkeys of people: registering one, signing in by one, taking one away. A device asks whoever holds it for a finger or a PIN before it
//! signs, so a passkey stands for password and second factor together. What it signs is used once, and soon.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sqlx::any::AnyRow;

use super::mail::Mail;
use super::person::personal;
use super::session::{Stage, end_of_session};
use super::throttle::BY_ADDRESS;
use super::webauthn::{ALGORITHMS, Ceremony, Made};
use super::{Identity, Person, SignedIn, Token, Whence};
use crate::audit::By;
use crate::error::PlatformError;
use crate::ids::{PasskeyId, PersonId};
use crate::limits::{CHALLENGE_AGE_MAX, CHALLENGE_WAIT_MS, N_PASSKEYS_MAX};
use crate::store::{Store, Write, get, get_count, get_optional_time, get_parsed, get_time};
use crate::time::Timestamp;

/// A passkey, for a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passkey {
    /// Which.
    pub id: PasskeyId,
    /// Whose.
    pub person: PersonId,
    /// As they call it.
    pub name: String,
    /// Since when.
    pub created_at: Timestamp,
    /// When it was last used.
    pub used_at: Option<Timestamp>,
    credential_id: Vec<u8>,
    public_key: Vec<u8>,
    sign_count: u64,
}

/// What a browser brings back: texts of a form, in base64url.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered<'a> {
    pub(crate) client_data: &'a str,
    pub(crate) device_data: &'a str,
    /// Where somebody signs in: with which, whose, and the signature.
    pub(crate) credential: &'a str,
    pub(crate) person: &'a str,
    pub(crate) signature: &'a str,
}

fn read_passkey(row: &AnyRow) -> Result<Passkey, PlatformError> {
    Ok(Passkey {
        id: get_parsed(row, "id")?,
        person: get_parsed(row, "person_id")?,
        name: get(row, "name")?,
        created_at: get_time(row, "created_at")?,
        used_at: get_optional_time(row, "used_at")?,
        credential_id: get(row, "credential_id")?,
        public_key: get(row, "public_key")?,
        sign_count: get_count(row, "sign_count")?,
    })
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

fn refused(reason: &str) -> PlatformError {
    PlatformError::Invalid { field: "passkey", reason: reason.into() }
}

impl Identity {
    /// Where passkeys work: the origin of our pages; nothing where browsers give none.
    pub(crate) fn passkey_origin(&self) -> Option<&str> {
        self.party.as_ref().map(|party| party.origin.as_str())
    }

    async fn ask(&self, person: Option<PersonId>, whence: &Whence) -> Result<String, PlatformError> {
        let challenge = Token::random()?;
        let hash = self.hash_of("passkey", challenge.reveal());
        self.store.put_challenge((hash, person), whence.by.at).await?;
        Ok(URL_SAFE_NO_PAD.encode(challenge.reveal()))
    }

    fn party(&self) -> Result<&super::webauthn::Party, PlatformError> {
        self.party.as_ref().ok_or_else(|| refused("passkeys need a name and an encrypted connection, and this site has none"))
    }

    /// What a browser needs to have a passkey made, for whoever knows the password.
    pub(crate) async fn begin_passkey(&self, person: &Person, password: String, whence: &Whence) -> Result<Value, PlatformError> {
        let party = self.party()?;
        self.check_own_password(person, password, whence).await?;
        let known = self.store.passkeys(person.id).await?;
        let descriptor = |passkey: &Passkey| json!({ "type": "public-key", "id": URL_SAFE_NO_PAD.encode(&passkey.credential_id) });
        Ok(json!({
            "rp": { "id": party.rp_id, "name": "bitnet" },
            "user": { "id": URL_SAFE_NO_PAD.encode(person.id.to_string()), "name": person.email, "displayName": person.name },
            "challenge": self.ask(Some(person.id), whence).await?,
            "pubKeyCredParams": ALGORITHMS.map(|alg| json!({ "type": "public-key", "alg": alg })),
            "excludeCredentials": known.iter().map(descriptor).collect::<Vec<_>>(),
            "authenticatorSelection": { "residentKey": "required", "requireResidentKey": true, "userVerification": "required" },
            "attestation": "none",
            "timeout": CHALLENGE_WAIT_MS,
        }))
    }

    /// Keeps a passkey that a browser has had made.
    pub(crate) async fn add_passkey(
        &self,
        person: &Person,
        (name, answered): (&str, Answered<'_>),
        whence: &Whence,
    ) -> Result<(), PlatformError> {
        let party = self.party()?;
        let unreadable = || refused("what the browser brought back cannot be read");
        let client_data = bytes(answered.client_data).ok_or_else(unreadable)?;
        let challenge = party.challenge(&client_data, Ceremony::Create).map_err(refused)?;
        let made = party.made(&bytes(answered.device_data).ok_or_else(unreadable)?).map_err(refused)?;
        let name = name.trim();
        let name = if name.is_empty() { "passkey" } else { name };
        crate::directory::check_label(name)?;
        let hash = self.hash_of("passkey", &challenge);
        self.store.put_passkey((person.id, &hash), (name, made), &whence.by).await?;
        // Whoever did not do this hears of it. That there are too many mails is no reason to fail.
        let text = format!(
            "Hello,\n\na passkey called “{name}” was added to your account, and opens it from now on. If it was not you, remove it and set a new password:\n\n{}/profile\n",
            self.public_url
        );
        let mail = Mail { to: person.email.clone(), subject: "bitnet: A passkey was added".into(), text };
        if let Err(error) = self.mailer.send(mail) {
            tracing::warn!(%error, "a mail was left out");
        }
        Ok(())
    }

    /// What a browser needs to have a passkey sign; whose, nobody has said yet.
    /// Mails that a password was set by a link, and what else opens the account: passkeys are no password, and stay.
    pub(super) async fn tell_of_reset(&self, person: &Person) -> Result<(), PlatformError> {
        let passkeys = self.store.passkeys(person.id).await?;
        let names: String = passkeys.iter().map(|passkey| format!("- {}\n", passkey.name)).collect();
        let left = match names.as_str() {
            "" => "No passkey opens it.".to_string(),
            names => format!("These passkeys still open it; remove those that you do not know:\n\n{names}"),
        };
        let text = format!(
            "Hello,\n\na new password was set for your account, by a link that was sent to this address. All sessions have ended. {left}\n\n{}/profile\n",
            self.public_url
        );
        let mail = Mail { to: person.email.clone(), subject: "bitnet: Your password was set anew".into(), text };
        if let Err(error) = self.mailer.send(mail) {
            tracing::warn!(%error, "a mail was left out");
        }
        Ok(())
    }

    pub(crate) async fn begin_passkey_sign_in(&self, whence: &Whence) -> Result<Value, PlatformError> {
        let party = self.party()?;
        self.throttle.count(format!("passkey place {}", whence.place()), BY_ADDRESS, whence.by.at)?;
        let challenge = self.ask(None, whence).await?;
        Ok(json!({ "challenge": challenge, "rpId": party.rp_id, "userVerification": "required", "timeout": CHALLENGE_WAIT_MS }))
    }

    /// Signs somebody in by a passkey.
    pub(crate) async fn passkey_sign_in(self: &Arc<Self>, answered: Answered<'_>, whence: &Whence) -> Result<SignedIn, PlatformError> {
        let party = self.party()?;
        self.throttle.count(format!("passkey place {}", whence.place()), BY_ADDRESS, whence.by.at)?;
        let wrong = || PlatformError::Credentials;
        let [client_data, data, credential, signature] =
            [answered.client_data, answered.device_data, answered.credential, answered.signature].map(bytes);
        let (Some(client_data), Some(data), Some(credential), Some(signature)) = (client_data, data, credential, signature) else {
            return Err(wrong());
        };
        let challenge = party.challenge(&client_data, Ceremony::Get).map_err(|_| wrong())?;
        // Used up whatever comes of it.
        let hash = self.hash_of("passkey", &challenge);
        self.store.take_challenge((&hash, None), whence.by.at).await?;
        let passkey = self.store.passkey_by_credential(&credential).await?.ok_or_else(wrong)?;
        let person = self.store.person(passkey.person).await?.filter(|person| person.verified_at.is_some()).ok_or_else(wrong)?;
        let handle = bytes(answered.person).unwrap_or_default();
        if !handle.is_empty() && handle != person.id.to_string().as_bytes() {
            return Err(wrong());
        }
        let signed = party.signed(&passkey.public_key, (&data, &client_data), &signature);
        let Ok(sign_count) = signed else {
            self.note_failure(person.id, "passkey", whence);
            return Err(wrong());
        };
        let token = Token::random()?;
        let session = self.new_session(&token, person.id, (Stage::Open, end_of_session(whence.by.at)), whence);
        if !self.store.use_passkey(&passkey, u64::from(sign_count), whence.by.at).await? {
            // Two devices that hold the same key count for themselves: one of them is a copy.
            self.note_failure(person.id, "passkey counter", whence);
            return Err(wrong());
        }
        self.store.begin_session(session, &whence.by).await?;
        Ok(SignedIn::Open(token))
    }
}

impl Store {
    /// Keeps a question's hash for a while; old ones are forgotten.
    async fn put_challenge(&self, (hash, person): (Vec<u8>, Option<PersonId>), now: Timestamp) -> Result<(), PlatformError> {
        let failed = || PlatformError::database("asking for a passkey");
        let mut write = self.begin().await?;
        let delete = sqlx::query("DELETE FROM passkey_challenge WHERE expires_at <= $1").bind(now.0);
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        let insert = sqlx::query("INSERT INTO passkey_challenge (hash, person_id, expires_at) VALUES ($1, $2, $3)");
        let insert = insert.bind(hash).bind(person.map(|id| id.to_string())).bind(now.plus(CHALLENGE_AGE_MAX).0);
        insert.execute(&mut *write.transaction).await.map_err(failed())?;
        write.commit("asking for a passkey").await
    }

    /// Uses a question up, if it is open and was put to that person.
    async fn take_challenge(&self, question: (&[u8], Option<PersonId>), now: Timestamp) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        take_challenge(&mut write, question, now).await?;
        write.commit("answering for a passkey").await
    }

    /// The passkeys of somebody.
    pub async fn passkeys(&self, person: PersonId) -> Result<Vec<Passkey>, PlatformError> {
        let query = sqlx::query("SELECT * FROM passkey WHERE person_id = $1 ORDER BY created_at, id").bind(person.to_string());
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading passkeys"))?;
        rows.iter().map(read_passkey).collect()
    }

    async fn passkey_by_credential(&self, credential: &[u8]) -> Result<Option<Passkey>, PlatformError> {
        let query = sqlx::query("SELECT * FROM passkey WHERE credential_id = $1").bind(credential.to_vec());
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading a passkey"))?;
        row.as_ref().map(read_passkey).transpose()
    }

    async fn put_passkey(&self, (person, question): (PersonId, &[u8]), (name, made): (&str, Made), by: &By) -> Result<(), PlatformError> {
        let failed = || PlatformError::database("adding a passkey");
        let mut write = self.begin().await?;
        take_challenge(&mut write, (question, Some(person)), by.at).await.map_err(|error| match error {
            PlatformError::Credentials => refused("that took too long, or was done already: begin again"),
            other => other,
        })?;
        // The lock of the person's row keeps two from being the last at once.
        let lock = sqlx::query("UPDATE person SET name = name WHERE id = $1").bind(person.to_string());
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        let count = sqlx::query("SELECT COUNT(*) AS n FROM passkey WHERE person_id = $1").bind(person.to_string());
        if get::<i64>(&count.fetch_one(&mut *write.transaction).await.map_err(failed())?, "n")? >= N_PASSKEYS_MAX {
            return Err(refused(&format!("there are {N_PASSKEYS_MAX} already: remove one first")));
        }
        let id = PasskeyId::random()?;
        let insert = sqlx::query(
            "INSERT INTO passkey (id, person_id, credential_id, public_key, sign_count, name, created_at, used_at) VALUES ($1, $2, $3, $4, $5, $6, $7, NULL) ON CONFLICT (credential_id) DO NOTHING",
        );
        let insert = insert.bind(id.to_string()).bind(person.to_string()).bind(made.credential_id).bind(made.public_key);
        let insert = insert.bind(i64::from(made.sign_count)).bind(name.to_string()).bind(by.at.0);
        if insert.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 0 {
            return Err(refused("this passkey is known already"));
        }
        let after = json!({ "passkey": id.to_string(), "name": name });
        self.audit(&mut write, by, personal("person.passkey_added", person, None, after)).await?;
        write.commit("adding a passkey").await
    }

    /// Notes that a passkey has signed, unless its counter says that it has before: a device that counts never says the same twice.
    async fn use_passkey(&self, passkey: &Passkey, sign_count: u64, now: Timestamp) -> Result<bool, PlatformError> {
        let mut write = self.begin().await?;
        let update = sqlx::query(
            "UPDATE passkey SET sign_count = $1, used_at = $2 WHERE id = $3 AND (sign_count < $1 OR (sign_count = 0 AND $1 = 0))",
        );
        let update = update.bind(crate::store::as_i64(sign_count)).bind(now.0).bind(passkey.id.to_string());
        let updated = update.execute(&mut *write.transaction).await.map_err(PlatformError::database("using a passkey"))?;
        write.commit("using a passkey").await?;
        Ok(updated.rows_affected() == 1)
    }

    /// Takes a passkey away.
    pub async fn remove_passkey(&self, (person, id): (PersonId, PasskeyId), by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let delete = sqlx::query("DELETE FROM passkey WHERE id = $1 AND person_id = $2").bind(id.to_string()).bind(person.to_string());
        let deleted = delete.execute(&mut *write.transaction).await.map_err(PlatformError::database("removing a passkey"))?;
        if deleted.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "passkey" });
        }
        let after = json!({ "passkey": id.to_string() });
        self.audit(&mut write, by, personal("person.passkey_removed", person, None, after)).await?;
        write.commit("removing a passkey").await
    }
}

async fn take_challenge(write: &mut Write<'_>, (hash, person): (&[u8], Option<PersonId>), now: Timestamp) -> Result<(), PlatformError> {
    let delete = sqlx::query("DELETE FROM passkey_challenge WHERE hash = $1 AND expires_at > $2 AND COALESCE(person_id, '') = $3");
    let delete = delete.bind(hash.to_vec()).bind(now.0).bind(person.map_or_else(String::new, |id| id.to_string()));
    let deleted = delete.execute(&mut *write.transaction).await.map_err(PlatformError::database("answering for a passkey"))?;
    if deleted.rows_affected() == 1 { Ok(()) } else { Err(PlatformError::Credentials) }
}
