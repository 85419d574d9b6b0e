//! Who belongs to which account, as what. An account always has an owner; invitations are links that only their address gets.

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::directory::{AccountRow, NewAccount};
use crate::error::PlatformError;
use crate::identity::person::Person;
use crate::ids::{AccountId, InvitationId, PersonId};
use crate::ledger::scope::ScopeLimits;
use crate::limits::{INVITATION_AGE_MAX, N_ACCOUNTS_OWNED_MAX, N_INVITATIONS_MAX};
use crate::policy::Role;
use crate::store::{Store, Write, get, get_optional_u32, get_parsed, get_time};
use crate::time::Timestamp;

/// Somebody in an account, for a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub person: PersonId,
    /// Where to write to them.
    pub email: String,
    /// As they call themselves.
    pub name: String,
    /// As what.
    pub role: Role,
    /// Since when.
    pub created_at: Timestamp,
    /// Whether a second factor protects them.
    pub has_second_factor: bool,
}

/// Whether somebody may make owners, and unmake them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnersRight {
    /// They may.
    Granted,
    /// They may not.
    Withheld,
}

/// An invitation that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Which.
    pub id: InvitationId,
    /// Into which account.
    pub account: AccountId,
    /// To whom.
    pub email: String,
    /// As what.
    pub role: Role,
    /// Until when.
    pub expires_at: Timestamp,
    /// When it was sent.
    pub created_at: Timestamp,
}

fn read_invitation(row: &AnyRow) -> Result<Invitation, PlatformError> {
    Ok(Invitation {
        id: get_parsed(row, "id")?,
        account: get_parsed(row, "account_id")?,
        email: get(row, "email")?,
        role: get_parsed(row, "role")?,
        created_at: get_time(row, "created_at")?,
        expires_at: get_time(row, "expires_at")?,
    })
}

const MEMBERS: &str = "SELECT m.person_id, m.role, m.created_at, p.email, p.name, p.totp_since FROM member m JOIN person p ON p.id = m.person_id WHERE m.account_id = $1 ORDER BY m.created_at, m.person_id";
const MEMBER_LIMIT: &str = "SELECT p.n_members_max AS most FROM account_plan a JOIN plan p ON p.id = a.plan_id WHERE a.account_id = $1 AND a.valid_from <= $2 AND (a.valid_until IS NULL OR a.valid_until > $2) AND p.valid_from <= $2 AND (p.valid_until IS NULL OR p.valid_until > $2)";

fn member_deed(action: &'static str, (account, target): (AccountId, String), before: Value, after: Value) -> Deed {
    Deed { action, account: Some(account), target, before, after }
}

impl Store {
    /// Makes an account with a first project, owned by somebody, in one step.
    pub async fn create_owned_account(&self, account: NewAccount, owner: PersonId, by: &By) -> Result<AccountId, PlatformError> {
        let catalog = self.catalog().await?;
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("creating an account");
        let lock = sqlx::query("UPDATE directory_revision SET revision = revision");
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        let query = sqlx::query("SELECT COUNT(*) AS n FROM member WHERE person_id = $1 AND role = 'owner'").bind(owner.to_string());
        let n_owned: i64 = get(&query.fetch_one(&mut *write.transaction).await.map_err(failed())?, "n")?;
        if n_owned >= N_ACCOUNTS_OWNED_MAX {
            return Err(PlatformError::Invalid {
                field: "name",
                reason: format!("nobody may own more than {N_ACCOUNTS_OWNED_MAX} accounts"),
            });
        }
        let id = self.insert_account(&mut write, account, &catalog, by).await?;
        self.insert_project(&mut write, id, ("default", ScopeLimits::default()), by).await?;
        self.put_member(&mut write, id, (owner, Role::Owner), by).await?;
        write.commit("creating an account").await?;
        Ok(id)
    }

    async fn put_member(
        &self,
        write: &mut Write<'_>,
        account: AccountId,
        (person, role): (PersonId, Role),
        by: &By,
    ) -> Result<(), PlatformError> {
        let insert = sqlx::query(
            "INSERT INTO member (account_id, person_id, role, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT (account_id, person_id) DO NOTHING",
        );
        let insert = insert.bind(account.to_string()).bind(person.to_string()).bind(role.name()).bind(by.at.0);
        insert.execute(&mut *write.transaction).await.map_err(PlatformError::database("adding a member"))?;
        let deed = member_deed("member.added", (account, person.to_string()), Value::Null, json!({ "role": role.name() }));
        self.audit(write, by, deed).await
    }

    /// The members of an account.
    pub async fn members(&self, account: AccountId) -> Result<Vec<Member>, PlatformError> {
        let rows = sqlx::query(MEMBERS).bind(account.to_string()).fetch_all(self.pool()).await;
        let read = |row: &AnyRow| {
            Ok(Member {
                person: get_parsed(row, "person_id")?,
                email: get(row, "email")?,
                name: get(row, "name")?,
                role: get_parsed(row, "role")?,
                created_at: get_time(row, "created_at")?,
                has_second_factor: get::<Option<i64>>(row, "totp_since")?.is_some(),
            })
        };
        rows.map_err(PlatformError::database("reading members"))?.iter().map(read).collect()
    }

    /// What somebody is in an account.
    pub async fn role_in(&self, account: AccountId, person: PersonId) -> Result<Option<Role>, PlatformError> {
        let query = sqlx::query("SELECT role FROM member WHERE account_id = $1 AND person_id = $2");
        let query = query.bind(account.to_string()).bind(person.to_string());
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading a member"))?;
        row.map(|row| get_parsed(&row, "role")).transpose()
    }

    /// The accounts that somebody belongs to.
    pub async fn accounts_of(&self, person: PersonId, now: Timestamp) -> Result<Vec<(AccountRow, Role)>, PlatformError> {
        let query = sqlx::query("SELECT account_id, role FROM member WHERE person_id = $1 ORDER BY created_at, account_id");
        let rows = query.bind(person.to_string()).fetch_all(self.pool()).await.map_err(PlatformError::database("reading members"))?;
        let mut accounts = Vec::with_capacity(rows.len());
        for row in &rows {
            accounts.push((self.account(get_parsed(row, "account_id")?, now).await?, get_parsed(row, "role")?));
        }
        Ok(accounts)
    }

    /// Gives a member another role, or none. The last owner stays one, and only who may make owners changes what an owner is: asked of
    /// what they are at this moment, whatever they were when the page was written. Invitations that they sent end with the role that let
    /// them.
    pub async fn set_role(
        &self,
        account: AccountId,
        (person, role): (PersonId, Option<Role>),
        (owners, by): (OwnersRight, &By),
    ) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("changing a member");
        let lock = sqlx::query("UPDATE directory_revision SET revision = revision");
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        let query = sqlx::query("SELECT person_id, role FROM member WHERE account_id = $1").bind(account.to_string());
        let rows = query.fetch_all(&mut *write.transaction).await.map_err(failed())?;
        let roles = rows.iter().map(|row| Ok((get_parsed::<PersonId>(row, "person_id")?, get_parsed::<Role>(row, "role")?)));
        let roles = roles.collect::<Result<Vec<_>, PlatformError>>()?;
        let before = roles.iter().find(|(id, _)| *id == person).map(|(_, role)| *role).ok_or(PlatformError::NotFound { what: "member" })?;
        if owners == OwnersRight::Withheld && (before == Role::Owner || role == Some(Role::Owner)) {
            return Err(PlatformError::Forbidden);
        }
        let n_owners = roles.iter().filter(|(_, role)| *role == Role::Owner).count();
        if before == Role::Owner && role != Some(Role::Owner) && n_owners == 1 {
            return Err(PlatformError::Invalid { field: "role", reason: "an account has an owner: make somebody else one first".into() });
        }
        let query = match role {
            Some(role) => sqlx::query("UPDATE member SET role = $3 WHERE account_id = $1 AND person_id = $2")
                .bind(account.to_string())
                .bind(person.to_string())
                .bind(role.name()),
            None => sqlx::query("DELETE FROM member WHERE account_id = $1 AND person_id = $2")
                .bind(account.to_string())
                .bind(person.to_string()),
        };
        query.execute(&mut *write.transaction).await.map_err(failed())?;
        if role.is_none_or(|role| role < before) {
            let delete = sqlx::query("DELETE FROM invitation WHERE account_id = $1 AND invited_by = $2");
            let delete = delete.bind(account.to_string()).bind(person.to_string());
            delete.execute(&mut *write.transaction).await.map_err(failed())?;
        }
        let action = if role.is_some() { "member.role_changed" } else { "member.removed" };
        let after = role.map_or(Value::Null, |role| json!({ "role": role.name() }));
        let deed = member_deed(action, (account, person.to_string()), json!({ "role": before.name() }), after);
        self.audit(&mut write, by, deed).await?;
        write.commit("changing a member").await
    }

    /// Whether an account's plan has room for one more, those who are invited counted.
    async fn check_room_for_member(
        &self,
        write: &mut Write<'_>,
        account: AccountId,
        (email, now): (&str, Timestamp),
    ) -> Result<(), PlatformError> {
        let failed = || PlatformError::database("counting members");
        let lock = sqlx::query("UPDATE directory_revision SET revision = revision");
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        let count = |text: &'static str| sqlx::query(text).bind(account.to_string());
        let members = count("SELECT COUNT(*) AS n FROM member WHERE account_id = $1");
        let n_members: i64 = get(&members.fetch_one(&mut *write.transaction).await.map_err(failed())?, "n")?;
        let invited = count("SELECT COUNT(*) AS n FROM invitation WHERE account_id = $1 AND expires_at > $2 AND email <> $3").bind(now.0);
        let invited = invited.bind(email.to_string()).fetch_one(&mut *write.transaction).await.map_err(failed())?;
        let n_invited: i64 = get(&invited, "n")?;
        if n_invited >= N_INVITATIONS_MAX {
            return Err(PlatformError::Invalid { field: "email", reason: format!("{N_INVITATIONS_MAX} invitations are open already") });
        }
        let row = sqlx::query(MEMBER_LIMIT)
            .bind(account.to_string())
            .bind(now.0)
            .fetch_optional(&mut *write.transaction)
            .await
            .map_err(failed())?;
        let limit = row.map(|row| get_optional_u32(&row, "most")).transpose()?.flatten();
        match limit {
            Some(limit) if n_members + n_invited >= i64::from(limit) => Err(PlatformError::PlanLimit { what: "members", limit }),
            _ => Ok(()),
        }
    }

    /// Invites an address, anew if it is invited already.
    pub(crate) async fn put_invitation(
        &self,
        account: AccountId,
        (email, role, hash): (&str, Role, Vec<u8>),
        by: &By,
    ) -> Result<InvitationId, PlatformError> {
        let id = InvitationId::random()?;
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("inviting a member");
        self.check_room_for_member(&mut write, account, (email, by.at)).await?;
        let known = sqlx::query("SELECT p.id FROM person p JOIN member m ON m.person_id = p.id WHERE p.email = $1 AND m.account_id = $2");
        let known = known.bind(email.to_string()).bind(account.to_string());
        if known.fetch_optional(&mut *write.transaction).await.map_err(failed())?.is_some() {
            return Err(PlatformError::Invalid { field: "email", reason: "this is a member already".into() });
        }
        let delete =
            sqlx::query("DELETE FROM invitation WHERE account_id = $1 AND email = $2").bind(account.to_string()).bind(email.to_string());
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        let insert = sqlx::query(
            "INSERT INTO invitation (id, account_id, email, role, hash, invited_by, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        );
        let insert = insert.bind(id.to_string()).bind(account.to_string()).bind(email.to_string()).bind(role.name()).bind(hash);
        let insert = insert.bind(by.actor.clone()).bind(by.at.0).bind(by.at.plus(INVITATION_AGE_MAX).0);
        insert.execute(&mut *write.transaction).await.map_err(failed())?;
        let after = json!({ "email": email, "role": role.name() });
        self.audit(&mut write, by, member_deed("invitation.created", (account, id.to_string()), Value::Null, after)).await?;
        write.commit("inviting a member").await?;
        Ok(id)
    }

    /// Invitations of an account that are open.
    pub async fn invitations(&self, account: AccountId, now: Timestamp) -> Result<Vec<Invitation>, PlatformError> {
        let query = sqlx::query("SELECT * FROM invitation WHERE account_id = $1 AND expires_at > $2 ORDER BY created_at, id");
        let rows = query.bind(account.to_string()).bind(now.0).fetch_all(self.pool()).await;
        rows.map_err(PlatformError::database("reading invitations"))?.iter().map(read_invitation).collect()
    }

    /// The invitation of a link, if it is open.
    pub(crate) async fn invitation(&self, hash: &[u8], now: Timestamp) -> Result<Invitation, PlatformError> {
        let query = sqlx::query("SELECT * FROM invitation WHERE hash = $1 AND expires_at > $2").bind(hash.to_vec()).bind(now.0);
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading an invitation"))?;
        read_invitation(&row.ok_or(PlatformError::Credentials)?)
    }

    /// Takes an invitation back.
    pub async fn revoke_invitation(&self, account: AccountId, id: InvitationId, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let delete = sqlx::query("DELETE FROM invitation WHERE id = $1 AND account_id = $2").bind(id.to_string()).bind(account.to_string());
        let deleted = delete.execute(&mut *write.transaction).await.map_err(PlatformError::database("revoking an invitation"))?;
        if deleted.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "invitation" });
        }
        self.audit(&mut write, by, member_deed("invitation.revoked", (account, id.to_string()), Value::Null, Value::Null)).await?;
        write.commit("revoking an invitation").await
    }

    /// Whether an account is at work: nobody joins one that is suspended.
    async fn check_takes_members(&self, write: &mut Write<'_>, account: AccountId) -> Result<(), PlatformError> {
        let query = sqlx::query("SELECT status FROM account WHERE id = $1").bind(account.to_string());
        let row = query.fetch_one(&mut *write.transaction).await.map_err(PlatformError::database("accepting an invitation"))?;
        let is_active = get::<String>(&row, "status")? == "active";
        let reason = || "this account is suspended: the invitation can be accepted when it works again".to_string();
        if is_active { Ok(()) } else { Err(PlatformError::Invalid { field: "account", reason: reason() }) }
    }

    /// Accepts an invitation: for whom it was sent to, and for nobody else who has the link.
    pub(crate) async fn accept_invitation(&self, hash: &[u8], person: &Person, by: &By) -> Result<AccountId, PlatformError> {
        let mut write = self.begin().await?;
        let delete = sqlx::query("DELETE FROM invitation WHERE hash = $1 AND email = $2 AND expires_at > $3 RETURNING *");
        let delete = delete.bind(hash.to_vec()).bind(person.email.clone()).bind(by.at.0);
        let row = delete.fetch_optional(&mut *write.transaction).await.map_err(PlatformError::database("accepting an invitation"))?;
        let invitation = read_invitation(&row.ok_or(PlatformError::Credentials)?)?;
        self.check_takes_members(&mut write, invitation.account).await?;
        self.put_member(&mut write, invitation.account, (person.id, invitation.role), by).await?;
        let after = json!({ "email": invitation.email });
        let deed = member_deed("invitation.accepted", (invitation.account, invitation.id.to_string()), Value::Null, after);
        self.audit(&mut write, by, deed).await?;
        write.commit("accepting an invitation").await?;
        Ok(invitation.account)
    }
}

impl Store {
    /// How many invitations an address has: who was invited needs no account of their own.
    pub(crate) async fn invitations_of(&self, email: &str, now: Timestamp) -> Result<i64, PlatformError> {
        let query =
            sqlx::query("SELECT COUNT(*) AS n FROM invitation WHERE email = $1 AND expires_at > $2").bind(email.to_string()).bind(now.0);
        get(&query.fetch_one(self.pool()).await.map_err(PlatformError::database("counting invitations"))?, "n")
    }
}
