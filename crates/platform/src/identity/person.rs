//! People in the database: who there is, and the links that were sent to them. Every change is in the audit log.

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::directory::Search;
use crate::error::PlatformError;
use crate::ids::{AccountId, PersonId};
use crate::limits::{EMAIL_BYTES_MAX, N_FORGOTTEN_AT_ONCE, UNCONFIRMED_AGE_MAX};
use crate::store::{Store, Write, get, get_count, get_optional_time, get_parsed, get_time};
use crate::time::Timestamp;

/// Somebody who signs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Who.
    pub id: PersonId,
    /// In small letters.
    pub email: String,
    /// As they call themselves.
    pub name: String,
    /// Since when.
    pub created_at: Timestamp,
    /// Since when the address is known to be theirs.
    pub verified_at: Option<Timestamp>,
    /// Since when they run this installation.
    pub operator_since: Option<Timestamp>,
    /// Since when there is a second factor.
    pub totp_since: Option<Timestamp>,
    pub(crate) password_hash: String,
    pub(crate) totp_salt: Option<Vec<u8>>,
    pub(crate) totp_last_step: u64,
}

/// What a link that is sent by mail is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkPurpose {
    /// The address is theirs.
    Confirm,
    /// A new password.
    Reset,
}

impl LinkPurpose {
    /// As it is stored and hashed.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Confirm => "confirm",
            Self::Reset => "reset",
        }
    }
}

/// An address as it is stored, if it is one.
pub fn email_of(text: &str) -> Result<String, PlatformError> {
    let email = text.trim().to_lowercase();
    let is_fine = email.len() <= EMAIL_BYTES_MAX && email.is_ascii() && email.parse::<lettre::Address>().is_ok();
    let reason = || "this is no e-mail address such as ann@example.com".to_string();
    if is_fine { Ok(email) } else { Err(PlatformError::Invalid { field: "email", reason: reason() }) }
}

fn read_person(row: &AnyRow) -> Result<Person, PlatformError> {
    Ok(Person {
        id: get_parsed(row, "id")?,
        email: get(row, "email")?,
        name: get(row, "name")?,
        created_at: get_time(row, "created_at")?,
        verified_at: get_optional_time(row, "verified_at")?,
        operator_since: get_optional_time(row, "operator_since")?,
        totp_since: get_optional_time(row, "totp_since")?,
        password_hash: get(row, "password_hash")?,
        totp_salt: get(row, "totp_salt")?,
        totp_last_step: get_count(row, "totp_last_step")?,
    })
}

/// Somebody's own deed, or one that is done to them.
pub(crate) fn personal(action: &'static str, person: PersonId, account: Option<AccountId>, after: Value) -> Deed {
    Deed { action, account, target: person.to_string(), before: Value::Null, after }
}

const FOUND_PEOPLE: &str = "SELECT p.* FROM person p WHERE (p.email LIKE $1 ESCAPE '!' OR LOWER(p.name) LIKE $1 ESCAPE '!' OR p.id = $2) AND ($3 = '' OR (p.created_at, p.id) > (SELECT b.created_at, b.id FROM person b WHERE b.id = $3)) ORDER BY p.created_at, p.id LIMIT $4";
/// Who has not confirmed an address for long, and has no link by which to.
const FORGOTTEN: &str = "SELECT p.id FROM person p WHERE p.verified_at IS NULL AND p.created_at <= $1 AND NOT EXISTS (SELECT 1 FROM mail_link l WHERE l.person_id = p.id AND l.expires_at > $2) ORDER BY p.created_at LIMIT $3";

impl Store {
    /// Everybody.
    pub async fn people(&self) -> Result<Vec<Person>, PlatformError> {
        let rows = sqlx::query("SELECT * FROM person ORDER BY created_at, id").fetch_all(self.pool()).await;
        rows.map_err(PlatformError::database("reading people"))?.iter().map(read_person).collect()
    }

    /// Some people, the oldest first.
    pub async fn find_people(&self, search: Search<'_>) -> Result<Vec<Person>, PlatformError> {
        let query = sqlx::query(FOUND_PEOPLE).bind(search.pattern()).bind(search.text.to_string()).bind(search.after.to_string());
        let rows = query.bind(i64::from(search.n_max)).fetch_all(self.pool()).await;
        rows.map_err(PlatformError::database("reading people"))?.iter().map(read_person).collect()
    }

    /// How many people there are.
    pub async fn n_people(&self) -> Result<u64, PlatformError> {
        let row = sqlx::query("SELECT COUNT(*) AS n FROM person").fetch_one(self.pool()).await;
        get_count(&row.map_err(PlatformError::database("counting people"))?, "n")
    }

    /// Somebody by address.
    pub async fn person_by_email(&self, email: &str) -> Result<Option<Person>, PlatformError> {
        let query = sqlx::query("SELECT * FROM person WHERE email = $1").bind(email.to_string());
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading a person"))?;
        row.as_ref().map(read_person).transpose()
    }

    /// Somebody by id.
    pub(crate) async fn person(&self, id: PersonId) -> Result<Option<Person>, PlatformError> {
        let query = sqlx::query("SELECT * FROM person WHERE id = $1").bind(id.to_string());
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading a person"))?;
        row.as_ref().map(read_person).transpose()
    }

    /// Whether nobody has signed up yet.
    pub async fn has_no_people(&self) -> Result<bool, PlatformError> {
        let query = sqlx::query("SELECT id FROM person LIMIT 1");
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading people"))?;
        Ok(row.is_none())
    }

    /// Somebody new; or again who has not confirmed the address, with the name and password given last. `None` where somebody has
    /// confirmed it.
    pub(crate) async fn put_person(
        &self,
        (email, name, password_hash): (&str, &str, String),
        is_of_terminal: bool,
        by: &By,
    ) -> Result<Option<Person>, PlatformError> {
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("signing somebody up");
        // One after another: two who are first at once cannot both be.
        let lock = sqlx::query("UPDATE directory_revision SET revision = revision");
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        self.forget_unconfirmed(&mut write, by.at).await?;
        let first = sqlx::query("SELECT id FROM person LIMIT 1").fetch_optional(&mut *write.transaction).await.map_err(failed())?.is_none();
        let known = sqlx::query("SELECT * FROM person WHERE email = $1").bind(email.to_string());
        let known = known.fetch_optional(&mut *write.transaction).await.map_err(failed())?;
        let known = known.as_ref().map(read_person).transpose()?;
        if known.as_ref().is_some_and(|person| person.verified_at.is_some()) {
            return Ok(None);
        }
        let id = known.map_or_else(PersonId::random, |person| Ok(person.id))?;
        let now = (first && is_of_terminal).then_some(by.at.0);
        // Whoever signed up before with this address loses what they got for it.
        self.forget_sessions(&mut write, id, None).await?;
        let delete = sqlx::query("DELETE FROM mail_link WHERE person_id = $1").bind(id.to_string());
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        let insert = sqlx::query(
            "INSERT INTO person (id, email, name, password_hash, created_at, verified_at, operator_since) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET name = excluded.name, password_hash = excluded.password_hash",
        );
        let insert = insert.bind(id.to_string()).bind(email.to_string()).bind(name.to_string()).bind(password_hash);
        insert.bind(by.at.0).bind(now).bind(now).execute(&mut *write.transaction).await.map_err(failed())?;
        let by = By { actor: id.to_string(), ..by.clone() };
        let after = json!({ "email": email, "operator": now.is_some() });
        self.audit(&mut write, &by, personal("person.signed_up", id, None, after)).await?;
        write.commit("signing somebody up").await?;
        self.person(id).await
    }

    /// Forgets some of those who have not confirmed their address for long: anybody can make them, and they have nothing.
    async fn forget_unconfirmed(&self, write: &mut Write<'_>, now: Timestamp) -> Result<(), PlatformError> {
        let failed = || PlatformError::database("forgetting who never confirmed an address");
        let query = sqlx::query(FORGOTTEN).bind(now.minus(UNCONFIRMED_AGE_MAX).0).bind(now.0).bind(N_FORGOTTEN_AT_ONCE);
        for row in query.fetch_all(&mut *write.transaction).await.map_err(failed())? {
            let id: PersonId = get_parsed(&row, "id")?;
            for of_theirs in [
                "DELETE FROM session WHERE person_id = $1",
                "DELETE FROM mail_link WHERE person_id = $1",
                "DELETE FROM person WHERE id = $1",
            ] {
                sqlx::query(of_theirs).bind(id.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
            }
            self.audit(write, &By::job("identity", now), personal("person.forgotten", id, None, Value::Null)).await?;
        }
        Ok(())
    }

    /// Keeps a link's hash.
    pub(crate) async fn put_link(
        &self,
        hash: Vec<u8>,
        (person, purpose): (PersonId, LinkPurpose),
        ends: (Timestamp, Timestamp),
    ) -> Result<(), PlatformError> {
        let (now, expires_at) = ends;
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("making a link");
        let delete = sqlx::query("DELETE FROM mail_link WHERE expires_at <= $1 OR (person_id = $2 AND purpose = $3)");
        let delete = delete.bind(now.0).bind(person.to_string()).bind(purpose.name());
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        let insert = sqlx::query("INSERT INTO mail_link (hash, person_id, purpose, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)");
        let insert = insert.bind(hash).bind(person.to_string()).bind(purpose.name()).bind(now.0).bind(expires_at.0);
        insert.execute(&mut *write.transaction).await.map_err(failed())?;
        write.commit("making a link").await
    }

    /// Whose a link is, if it is good.
    pub(crate) async fn link(&self, hash: &[u8], purpose: LinkPurpose, now: Timestamp) -> Result<Option<PersonId>, PlatformError> {
        let query = sqlx::query("SELECT person_id FROM mail_link WHERE hash = $1 AND purpose = $2 AND expires_at > $3");
        let query = query.bind(hash.to_vec()).bind(purpose.name()).bind(now.0);
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading a link"))?;
        row.map(|row| get_parsed(&row, "person_id")).transpose()
    }

    /// Uses a link up: once, whoever else tries at the same time.
    async fn take_link(
        &self,
        write: &mut Write<'_>,
        hash: &[u8],
        (purpose, now): (LinkPurpose, Timestamp),
    ) -> Result<PersonId, PlatformError> {
        let query = sqlx::query("DELETE FROM mail_link WHERE hash = $1 AND purpose = $2 AND expires_at > $3 RETURNING person_id");
        let query = query.bind(hash.to_vec()).bind(purpose.name()).bind(now.0);
        let row = query.fetch_optional(&mut *write.transaction).await.map_err(PlatformError::database("using a link"))?;
        get_parsed(&row.ok_or(PlatformError::Credentials)?, "person_id")
    }

    /// The address is theirs.
    pub(crate) async fn confirm_person(&self, link: &[u8], by: &By) -> Result<PersonId, PlatformError> {
        let mut write = self.begin().await?;
        let id = self.take_link(&mut write, link, (LinkPurpose::Confirm, by.at)).await?;
        let update =
            sqlx::query("UPDATE person SET verified_at = COALESCE(verified_at, $1) WHERE id = $2").bind(by.at.0).bind(id.to_string());
        update.execute(&mut *write.transaction).await.map_err(PlatformError::database("confirming an address"))?;
        let by = By { actor: id.to_string(), ..by.clone() };
        self.audit(&mut write, &by, personal("person.address_confirmed", id, None, Value::Null)).await?;
        write.commit("confirming an address").await?;
        Ok(id)
    }

    /// A new password by a link, which also shows that the address is theirs; all sessions end.
    pub(crate) async fn reset_password(&self, link: &[u8], password_hash: String, by: &By) -> Result<PersonId, PlatformError> {
        let mut write = self.begin().await?;
        let id = self.take_link(&mut write, link, (LinkPurpose::Reset, by.at)).await?;
        let update = sqlx::query("UPDATE person SET password_hash = $1, verified_at = COALESCE(verified_at, $2) WHERE id = $3");
        let update = update.bind(password_hash).bind(by.at.0).bind(id.to_string());
        update.execute(&mut *write.transaction).await.map_err(PlatformError::database("setting a password"))?;
        self.forget_sessions(&mut write, id, None).await?;
        let by = By { actor: id.to_string(), ..by.clone() };
        self.audit(&mut write, &by, personal("person.password_reset", id, None, Value::Null)).await?;
        write.commit("setting a password").await?;
        Ok(id)
    }

    /// A new password by its owner; all other sessions end.
    pub(crate) async fn set_password(&self, id: PersonId, password_hash: String, (kept, by): (&[u8], &By)) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let update = sqlx::query("UPDATE person SET password_hash = $1 WHERE id = $2").bind(password_hash).bind(id.to_string());
        update.execute(&mut *write.transaction).await.map_err(PlatformError::database("setting a password"))?;
        self.forget_sessions(&mut write, id, Some(kept)).await?;
        self.audit(&mut write, by, personal("person.password_changed", id, None, Value::Null)).await?;
        write.commit("setting a password").await
    }

    /// Makes somebody an operator, or not any more.
    pub async fn set_operator(&self, id: PersonId, is_operator: OperatorRight, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let since = (is_operator == OperatorRight::Granted).then_some(by.at.0);
        let update = sqlx::query("UPDATE person SET operator_since = $1 WHERE id = $2").bind(since).bind(id.to_string());
        let updated = update.execute(&mut *write.transaction).await.map_err(PlatformError::database("changing an operator"))?;
        if updated.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "person" });
        }
        let deed = personal("person.operator_changed", id, None, json!({ "operator": since.is_some() }));
        self.audit(&mut write, by, deed).await?;
        write.commit("changing an operator").await
    }

    /// Notes something that changes nothing else.
    pub(crate) async fn note(&self, by: &By, deed: Deed) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        self.audit(&mut write, by, deed).await?;
        write.commit("writing the audit log").await
    }
}

/// Whether somebody runs the installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorRight {
    /// They do.
    Granted,
    /// They do not.
    Withdrawn,
}

impl Store {
    /// A second factor to be, whose first code is still to come.
    pub(crate) async fn set_totp_salt(&self, id: PersonId, salt: Vec<u8>) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let update = sqlx::query("UPDATE person SET totp_salt = $1, totp_last_step = 0 WHERE id = $2 AND totp_since IS NULL");
        let update = update.bind(salt).bind(id.to_string());
        update.execute(&mut *write.transaction).await.map_err(PlatformError::database("setting a second factor"))?;
        write.commit("setting a second factor").await
    }

    /// The second factor is needed from now on; these are its recovery codes.
    pub(crate) async fn enable_totp(&self, id: PersonId, (step, codes): (u64, Vec<Vec<u8>>), by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("setting a second factor");
        let update = sqlx::query("UPDATE person SET totp_since = $1, totp_last_step = $2 WHERE id = $3 AND totp_since IS NULL");
        let update = update.bind(by.at.0).bind(crate::store::as_i64(step)).bind(id.to_string());
        if update.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 0 {
            return Err(PlatformError::Credentials);
        }
        let delete = sqlx::query("DELETE FROM recovery_code WHERE person_id = $1").bind(id.to_string());
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        for code in codes {
            let insert = sqlx::query("INSERT INTO recovery_code (hash, person_id, used_at) VALUES ($1, $2, NULL)");
            insert.bind(code).bind(id.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
        }
        self.audit(&mut write, by, personal("person.second_factor_on", id, None, Value::Null)).await?;
        write.commit("setting a second factor").await
    }

    /// No second factor any more.
    pub(crate) async fn disable_totp(&self, id: PersonId, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("removing a second factor");
        let update =
            sqlx::query("UPDATE person SET totp_since = NULL, totp_salt = NULL, totp_last_step = 0 WHERE id = $1").bind(id.to_string());
        update.execute(&mut *write.transaction).await.map_err(failed())?;
        let delete = sqlx::query("DELETE FROM recovery_code WHERE person_id = $1").bind(id.to_string());
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        self.audit(&mut write, by, personal("person.second_factor_off", id, None, Value::Null)).await?;
        write.commit("removing a second factor").await
    }

    /// Takes a step's code; `false` if it was taken before.
    pub(crate) async fn take_totp_step(&self, write: &mut Write<'_>, id: PersonId, step: u64) -> Result<bool, PlatformError> {
        let update = sqlx::query("UPDATE person SET totp_last_step = $1 WHERE id = $2 AND totp_last_step < $3");
        let update = update.bind(crate::store::as_i64(step)).bind(id.to_string()).bind(crate::store::as_i64(step));
        let updated = update.execute(&mut *write.transaction).await.map_err(PlatformError::database("taking a code"))?;
        Ok(updated.rows_affected() == 1)
    }

    /// Takes a recovery code; `false` if there is none such, or it was used.
    pub(crate) async fn take_recovery_code(
        &self,
        write: &mut Write<'_>,
        id: PersonId,
        (hash, now): (Vec<u8>, Timestamp),
    ) -> Result<bool, PlatformError> {
        let update = sqlx::query("UPDATE recovery_code SET used_at = $1 WHERE hash = $2 AND person_id = $3 AND used_at IS NULL");
        let update = update.bind(now.0).bind(hash).bind(id.to_string());
        let updated = update.execute(&mut *write.transaction).await.map_err(PlatformError::database("taking a code"))?;
        Ok(updated.rows_affected() == 1)
    }

    /// Recovery codes that are left.
    pub(crate) async fn n_recovery_codes(&self, id: PersonId) -> Result<i64, PlatformError> {
        let query = sqlx::query("SELECT COUNT(*) AS n FROM recovery_code WHERE person_id = $1 AND used_at IS NULL").bind(id.to_string());
        get(&query.fetch_one(self.pool()).await.map_err(PlatformError::database("counting codes"))?, "n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_one_or_is_refused() {
        assert_eq!(email_of(" Ann@Example.COM ").expect("an address"), "ann@example.com");
        for wrong in
            ["", "ann", "@example.com", "ann@", "a b@example.com", "ann@example.com\nBcc: x@y.z", &format!("{}@b.c", "a".repeat(254))]
        {
            assert!(email_of(wrong).is_err(), "{wrong}");
        }
    }
}
