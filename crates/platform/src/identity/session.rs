//! Sessions: who has proven who they are, until when, from where. A cookie holds a token, the database its hash; whoever signs out,
//! or sets a new password, ends them at once, everywhere.

use serde_json::Value;
use sqlx::any::AnyRow;

use crate::audit::By;
use crate::error::PlatformError;
use crate::identity::person::{Person, personal};
use crate::ids::PersonId;
use crate::limits::{SESSION_AGE_MAX, SESSION_IDLE_MAX, SESSION_SEEN_EVERY, SUBMISSION_AGE_MAX};
use crate::store::{Store, Write, get, get_parsed, get_time};
use crate::time::Timestamp;

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The password was right, and a code is still to come.
    SecondFactor,
    /// It opens what its person may.
    Open,
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::SecondFactor => "second_factor",
            Self::Open => "open",
        }
    }
}

/// A session, for a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub(crate) hash: Vec<u8>,
    /// How far it is.
    pub stage: Stage,
    /// Since when.
    pub created_at: Timestamp,
    /// When it was last used, to some minutes.
    pub seen_at: Timestamp,
    /// Until when at most.
    pub expires_at: Timestamp,
    /// From where.
    pub address: String,
    /// With what.
    pub agent: String,
}

/// Whoever a request is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visitor {
    /// Who.
    pub person: Person,
    /// By which session.
    pub session: Session,
}

fn read_session(row: &AnyRow) -> Result<Session, PlatformError> {
    Ok(Session {
        hash: get(row, "hash")?,
        stage: if get::<String>(row, "stage")? == "open" { Stage::Open } else { Stage::SecondFactor },
        created_at: get_time(row, "created_at")?,
        seen_at: get_time(row, "seen_at")?,
        expires_at: get_time(row, "expires_at")?,
        address: get(row, "address")?,
        agent: get(row, "agent")?,
    })
}

/// A session to be.
pub(crate) struct NewSession {
    pub(crate) hash: Vec<u8>,
    pub(crate) person: PersonId,
    pub(crate) stage: Stage,
    pub(crate) expires_at: Timestamp,
    pub(crate) agent: String,
}

impl Store {
    /// Begins a session, and forgets those that are over.
    pub(crate) async fn begin_session(&self, session: NewSession, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("beginning a session");
        let delete = sqlx::query("DELETE FROM session WHERE expires_at <= $1 OR seen_at <= $2");
        let delete = delete.bind(by.at.0).bind(by.at.minus(SESSION_IDLE_MAX).0);
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        let delete = sqlx::query("DELETE FROM submission WHERE at <= $1").bind(by.at.minus(SUBMISSION_AGE_MAX).0);
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        let is_open = session.stage == Stage::Open;
        let person = session.person;
        self.insert_session(&mut write, session, by).await?;
        if is_open {
            let by = By { actor: person.to_string(), ..by.clone() };
            self.audit(&mut write, &by, personal("person.signed_in", person, None, Value::Null)).await?;
        }
        write.commit("beginning a session").await
    }

    async fn insert_session(&self, write: &mut Write<'_>, session: NewSession, by: &By) -> Result<(), PlatformError> {
        let insert = sqlx::query(
            "INSERT INTO session (hash, person_id, stage, created_at, seen_at, expires_at, address, agent) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        );
        let insert = insert.bind(session.hash).bind(session.person.to_string()).bind(session.stage.name()).bind(by.at.0);
        let insert = insert.bind(by.at.0).bind(session.expires_at.0).bind(by.address.clone()).bind(session.agent);
        insert.execute(&mut *write.transaction).await.map_err(PlatformError::database("beginning a session"))?;
        Ok(())
    }

    /// The code was right too: what waited for it ends, and a new session opens, with another token.
    pub(crate) async fn pass_second_factor(
        &self,
        waiting: &[u8],
        session: NewSession,
        (proof, by): (Proof, &By),
    ) -> Result<bool, PlatformError> {
        let mut write = self.begin().await?;
        let person = session.person;
        let (is_taken, action) = match proof {
            Proof::Step(step) => (self.take_totp_step(&mut write, person, step).await?, "person.signed_in"),
            Proof::Recovery(hash) => {
                (self.take_recovery_code(&mut write, person, (hash, by.at)).await?, "person.signed_in_by_recovery_code")
            }
        };
        if !is_taken {
            return Ok(false);
        }
        let delete = sqlx::query("DELETE FROM session WHERE hash = $1 AND stage = 'second_factor'").bind(waiting.to_vec());
        let deleted = delete.execute(&mut *write.transaction).await.map_err(PlatformError::database("opening a session"))?;
        if deleted.rows_affected() == 0 {
            return Ok(false);
        }
        self.insert_session(&mut write, session, by).await?;
        let by = By { actor: person.to_string(), ..by.clone() };
        self.audit(&mut write, &by, personal(action, person, None, Value::Null)).await?;
        write.commit("opening a session").await?;
        Ok(true)
    }

    /// Whose a session is, if it is not over.
    pub(crate) async fn visitor(&self, hash: &[u8], now: Timestamp) -> Result<Option<Visitor>, PlatformError> {
        let failed = || PlatformError::database("reading a session");
        let query = sqlx::query("SELECT * FROM session WHERE hash = $1 AND expires_at > $2 AND seen_at > $3");
        let query = query.bind(hash.to_vec()).bind(now.0).bind(now.minus(SESSION_IDLE_MAX).0);
        let Some(row) = query.fetch_optional(self.pool()).await.map_err(failed())? else { return Ok(None) };
        let session = read_session(&row)?;
        let Some(person) = self.person(get_parsed(&row, "person_id")?).await? else { return Ok(None) };
        if now.since(session.seen_at) > SESSION_SEEN_EVERY {
            let update = sqlx::query("UPDATE session SET seen_at = $1 WHERE hash = $2").bind(now.0).bind(hash.to_vec());
            update.execute(self.pool()).await.map_err(failed())?;
        }
        Ok(Some(Visitor { person, session }))
    }

    /// All of somebody's sessions that are not over.
    pub(crate) async fn sessions(&self, person: PersonId, now: Timestamp) -> Result<Vec<Session>, PlatformError> {
        let query = sqlx::query(
            "SELECT * FROM session WHERE person_id = $1 AND stage = 'open' AND expires_at > $2 AND seen_at > $3 ORDER BY seen_at DESC",
        );
        let query = query.bind(person.to_string()).bind(now.0).bind(now.minus(SESSION_IDLE_MAX).0);
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading sessions"))?;
        rows.iter().map(read_session).collect()
    }

    /// Ends one session.
    pub(crate) async fn end_session(&self, (person, hash): (PersonId, &[u8]), by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let delete = sqlx::query("DELETE FROM session WHERE hash = $1").bind(hash.to_vec());
        delete.execute(&mut *write.transaction).await.map_err(PlatformError::database("ending a session"))?;
        self.audit(&mut write, by, personal("person.signed_out", person, None, Value::Null)).await?;
        write.commit("ending a session").await
    }

    /// Ends all of somebody's sessions.
    pub(crate) async fn end_all_sessions(&self, person: PersonId, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        self.forget_sessions(&mut write, person, None).await?;
        self.audit(&mut write, by, personal("person.signed_out_everywhere", person, None, Value::Null)).await?;
        write.commit("ending sessions").await
    }

    /// Somebody's sessions are over, but for one.
    pub(crate) async fn forget_sessions(&self, write: &mut Write<'_>, person: PersonId, kept: Option<&[u8]>) -> Result<(), PlatformError> {
        let delete = sqlx::query("DELETE FROM session WHERE person_id = $1 AND hash <> $2");
        let delete = delete.bind(person.to_string()).bind(kept.unwrap_or_default().to_vec());
        delete.execute(&mut *write.transaction).await.map_err(PlatformError::database("ending sessions"))?;
        Ok(())
    }
}

/// What the second factor was shown by.
pub(crate) enum Proof {
    /// The code of a step of time.
    Step(u64),
    /// The hash of a recovery code.
    Recovery(Vec<u8>),
}

/// Until when a session that begins now lasts at most.
pub(crate) fn end_of_session(now: Timestamp) -> Timestamp {
    now.plus(SESSION_AGE_MAX)
}

/// What became of a form before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Submission {
    /// It was not sent before: it is this time's.
    First,
    /// It was, and led there, if that is known already.
    Again(Option<String>),
}

impl Store {
    /// Takes a form, once.
    pub(crate) async fn submit(&self, hash: &[u8], now: Timestamp) -> Result<Submission, PlatformError> {
        let failed = || PlatformError::database("taking a form");
        let insert = sqlx::query("INSERT INTO submission (hash, location, at) VALUES ($1, NULL, $2) ON CONFLICT (hash) DO NOTHING");
        let mut write = self.begin().await?;
        let inserted = insert.bind(hash.to_vec()).bind(now.0).execute(&mut *write.transaction).await.map_err(failed())?;
        write.commit("taking a form").await?;
        if inserted.rows_affected() == 1 {
            return Ok(Submission::First);
        }
        let query = sqlx::query("SELECT location FROM submission WHERE hash = $1").bind(hash.to_vec());
        let row = query.fetch_optional(self.pool()).await.map_err(failed())?;
        Ok(Submission::Again(row.map(|row| get(&row, "location")).transpose()?.flatten()))
    }

    /// Where a form led; or, if nothing came of it, that it may be sent again.
    pub(crate) async fn submitted(&self, hash: &[u8], location: Option<String>) -> Result<(), PlatformError> {
        let failed = || PlatformError::database("taking a form");
        let mut write = self.begin().await?;
        let query = match location {
            Some(location) => sqlx::query("UPDATE submission SET location = $2 WHERE hash = $1").bind(hash.to_vec()).bind(location),
            None => sqlx::query("DELETE FROM submission WHERE hash = $1").bind(hash.to_vec()),
        };
        query.execute(&mut *write.transaction).await.map_err(failed())?;
        write.commit("taking a form").await
    }
}
