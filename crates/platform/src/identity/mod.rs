//! Who people are and how they prove it: signing up, confirming an address, passwords, second factors, sessions, members of accounts
//! and invitations. What anybody may then do is the policy's to say.
//!
//! Nothing here tells a stranger whether an address is known: answers and their times are the same, and what differs goes by mail.

pub mod mail;
mod member;
#[cfg(test)]
mod mutants;
mod passkey;
mod password;
mod person;
mod second_factor;
mod session;
mod throttle;
mod token;
mod webauthn;

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::audit::By;
use crate::directory::NewAccount;
use crate::error::PlatformError;
use crate::identity::mail::{Mail, Mailer};
use crate::identity::password::{Passwords, check_password};
use crate::identity::person::LinkPurpose;
use crate::identity::second_factor::{SecondFactor, recovery_code_as_hashed, recovery_codes};
use crate::identity::session::{NewSession, Proof, end_of_session};
use crate::identity::throttle::{BY_ADDRESS, BY_PERSON, BY_PERSON_AND_ADDRESS, CODES, INVITATIONS, MAILS, Throttle};
use crate::identity::token::TokenHasher;
use crate::identity::webauthn::Party;
use crate::ids::{AccountId, InvitationId, PersonId};
use crate::ledger::Overage;
use crate::limits::{CONFIRM_LINK_AGE_MAX, RESET_LINK_AGE_MAX, SECOND_FACTOR_WAIT_MAX};
use crate::money::Micros;
use crate::policy::Role;
use crate::secret_file::InstallationSecret;
use crate::store::Store;

pub use member::{Invitation, Member, OwnersRight};
pub(crate) use passkey::Answered;
pub use passkey::Passkey;
pub(crate) use person::personal;
pub use person::{OperatorRight, Person, email_of};
pub(crate) use session::Submission;
pub use session::{Session, Stage, Visitor};
pub use token::Token;

/// Somebody who signs up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPerson {
    /// As it was typed.
    pub email: String,
    /// As they call themselves.
    pub name: String,
    /// As it was typed.
    pub password: String,
    /// What the terminal's link holds for whoever is first; nothing for everybody else.
    pub first: String,
}

/// From where somebody asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whence {
    /// Who, where, when, for the audit log.
    pub by: By,
    /// The program, as it names itself.
    pub agent: String,
    /// Whether this looks like the machine itself, asked by its own name. A proxy on the machine may look so, too: it proves nothing
    /// by itself.
    pub is_local: bool,
}

impl Whence {
    /// The place that attempts are counted by: half of an IPv6 address belongs to whoever has the other half.
    fn place(&self) -> String {
        match self.by.address.parse() {
            Ok(IpAddr::V6(address)) => address.segments()[..4].iter().map(|part| format!("{part:x}:")).collect(),
            _ => self.by.address.clone(),
        }
    }
}

/// What signing up or in came to.
#[derive(Debug)]
pub enum SignedIn {
    /// The session is open.
    Open(Token),
    /// A code is still to come.
    SecondFactor(Token),
    /// The address is still to be confirmed, in this browser or another.
    Unconfirmed(Token),
}

/// Where an address was confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confirmed {
    /// In the browser that signed up, whose session is open now.
    SameBrowser,
    /// In another, which signs in.
    Elsewhere,
}

/// See the module.
pub struct Identity {
    store: Arc<Store>,
    passwords: Passwords,
    hasher: TokenHasher,
    totp_secret: [u8; 32],
    /// What whoever started the program was told: with it, at the machine, whoever is first is the operator.
    first: Token,
    throttle: Throttle,
    mailer: Mailer,
    /// What passkeys are bound to; nothing where browsers give none.
    party: Option<Party>,
    /// Where links lead, without a slash at the end. Never what a request calls the server.
    public_url: String,
}

/// A link to set a new password, for an operator at the command line to hand over: its path. It also confirms the address.
pub async fn reset_link(store: &Store, secret: &InstallationSecret, email: &str, by: &By) -> Result<String, PlatformError> {
    let person = store.person_by_email(&email_of(email)?).await?.ok_or(PlatformError::NotFound { what: "person" })?;
    let token = Token::random()?;
    let purpose = LinkPurpose::Reset;
    let hash = hasher(secret).hash_any(purpose.name(), token.reveal());
    store.put_link(hash, (person.id, purpose), (by.at, by.at.plus(RESET_LINK_AGE_MAX))).await?;
    store.note(by, personal("person.password_reset_asked", person.id, None, Value::Null)).await?;
    Ok(format!("/reset/{}", token.reveal()))
}

fn hasher(secret: &InstallationSecret) -> TokenHasher {
    TokenHasher(secret.derive("bitnet platform 2026 hashes of sessions and links"))
}

/// Longest name of a program that is kept, in characters.
const AGENT_CHARS_MAX: usize = 120;

impl Identity {
    pub(crate) fn new(store: Arc<Store>, secret: &InstallationSecret, mailer: Mailer, public_url: String) -> Result<Self, PlatformError> {
        let derive = |context| secret.derive(context);
        Ok(Self {
            store,
            passwords: Passwords::new(derive("bitnet platform 2026 pepper of passwords")),
            hasher: hasher(secret),
            totp_secret: derive("bitnet platform 2026 secrets of second factors"),
            first: Token::random()?,
            throttle: Throttle::default(),
            mailer,
            party: Party::of(&public_url),
            public_url,
        })
    }

    /// The path by which whoever started the program signs up first.
    pub(crate) fn first_path(&self) -> String {
        format!("/sign-up?first={}", self.first.reveal())
    }

    /// Whether somebody at the machine has what the terminal shows: that they are its own, and no stranger behind a proxy on it.
    pub(crate) fn is_of_terminal(&self, first: &str, whence: &Whence) -> bool {
        whence.is_local && self.hash_of("first", first) == self.hash_of("first", self.first.reveal())
    }

    /// Counts an attempt at something. What strangers may ask for, such as a link to set a password, uses up none of the attempts that
    /// signing in has.
    fn throttle(&self, (what, email): (&'static str, &str), whence: &Whence) -> Result<(), PlatformError> {
        let place = whence.place();
        self.throttle.count(format!("{what} place {place}"), BY_ADDRESS, whence.by.at)?;
        self.throttle.count(format!("{what} pair {place} {email}"), BY_PERSON_AND_ADDRESS, whence.by.at)?;
        self.throttle.count(format!("{what} person {email}"), BY_PERSON, whence.by.at)
    }

    /// The hash of anything that is presented once, for a purpose.
    pub(crate) fn hash_of(&self, purpose: &'static str, text: &str) -> Vec<u8> {
        self.hasher.hash_any(purpose, text)
    }

    /// Signs somebody up. Whoever is first, by the terminal's link on the machine itself, is the operator and needs no mail; everybody else gets one,
    /// whether the address is known or not, and hears nothing before that, so that no time tells the one from the other.
    pub(crate) async fn sign_up(self: &Arc<Self>, new: NewPerson, whence: &Whence) -> Result<SignedIn, PlatformError> {
        let email = email_of(&new.email)?;
        let is_of_terminal = self.is_of_terminal(&new.first, whence);
        let name = new.name.trim().to_string();
        crate::directory::check_label(&name)?;
        check_password(&new.password, &email)?;
        self.throttle(("sign-up", &email), whence)?;
        let password_hash = self.passwords.hash(new.password).await?;
        // A database that is away is said at once.
        self.store.person_by_email(&email).await?;
        let token = Token::random()?;
        let (own, later, shown) = (self.clone(), whence.clone(), token.clone());
        let enrolling = async move { own.enrol((&email, &name, password_hash), (token, is_of_terminal), &later).await };
        if is_of_terminal {
            return enrolling.await;
        }
        tokio::spawn(async move {
            if let Err(error) = enrolling.await {
                tracing::error!(%error, "somebody could not be signed up");
            }
        });
        Ok(SignedIn::Unconfirmed(shown))
    }

    async fn enrol(
        &self,
        new: (&str, &str, String),
        (token, is_of_terminal): (Token, bool),
        whence: &Whence,
    ) -> Result<SignedIn, PlatformError> {
        let email = new.0;
        let Some(person) = self.store.put_person(new, is_of_terminal, &whence.by).await? else {
            self.mail_about_known_address(email, whence);
            return Ok(SignedIn::Unconfirmed(token));
        };
        let session = self.new_session(&token, person.id, (Stage::Open, end_of_session(whence.by.at)), whence);
        self.store.begin_session(session, &whence.by).await?;
        if person.verified_at.is_some() {
            self.first_account(&person, whence).await?;
            return Ok(SignedIn::Open(token));
        }
        self.mail_link((person.id, email), LinkPurpose::Confirm, whence).await?;
        Ok(SignedIn::Unconfirmed(token))
    }

    /// Notes a failure, and lets nobody wait for it: only an address that is known has one.
    fn note_failure(&self, person: PersonId, wrong: &'static str, whence: &Whence) {
        let (store, by) = (self.store.clone(), whence.by.clone());
        tokio::spawn(async move {
            let deed = personal("person.sign_in_failed", person, None, json!({ "wrong": wrong }));
            if let Err(error) = store.note(&by, deed).await {
                tracing::error!(%error, "a failure could not be noted");
            }
        });
    }

    async fn begin(&self, person: PersonId, stage: Stage, whence: &Whence) -> Result<Token, PlatformError> {
        let token = Token::random()?;
        let expires_at = match stage {
            Stage::Open => end_of_session(whence.by.at),
            Stage::SecondFactor => whence.by.at.plus(SECOND_FACTOR_WAIT_MAX),
        };
        let session = self.new_session(&token, person, (stage, expires_at), whence);
        self.store.begin_session(session, &whence.by).await?;
        Ok(token)
    }

    fn new_session(
        &self,
        token: &Token,
        person: PersonId,
        (stage, expires_at): (Stage, crate::time::Timestamp),
        whence: &Whence,
    ) -> NewSession {
        let agent = whence.agent.chars().filter(|c| !c.is_control()).take(AGENT_CHARS_MAX).collect();
        NewSession { hash: self.hasher.hash_any("session", token.reveal()), person, stage, expires_at, agent }
    }

    /// An account for somebody who has none.
    async fn first_account(&self, person: &Person, whence: &Whence) -> Result<(), PlatformError> {
        if self.store.accounts_of(person.id, whence.by.at).await?.is_empty() {
            self.create_account(person, &person.name, &By { actor: person.id.to_string(), ..whence.by.clone() }).await?;
        }
        Ok(())
    }

    /// An account of somebody's own, on the plan that costs nothing.
    pub(crate) async fn create_account(&self, owner: &Person, name: &str, by: &By) -> Result<AccountId, PlatformError> {
        let account = NewAccount { name: name.trim().into(), plan: "free".into(), overage: Overage::Refuse, spending_cap: Micros::ZERO };
        self.store.create_owned_account(account, owner.id, by).await
    }

    async fn mail_link(&self, (person, email): (PersonId, &str), purpose: LinkPurpose, whence: &Whence) -> Result<(), PlatformError> {
        self.throttle.count(format!("mail {email}"), MAILS, whence.by.at)?;
        let (age, path, subject, what) = match purpose {
            LinkPurpose::Confirm => (CONFIRM_LINK_AGE_MAX, "confirm", "Confirm your address", "confirm that this is your address"),
            LinkPurpose::Reset => (RESET_LINK_AGE_MAX, "reset", "Set a new password", "set a new password"),
        };
        let token = Token::random()?;
        let hash = self.hasher.hash_any(purpose.name(), token.reveal());
        self.store.put_link(hash, (person, purpose), (whence.by.at, whence.by.at.plus(age))).await?;
        let text = format!(
            "Hello,\n\nto {what}, open\n\n{}/{path}/{}\n\nThe link is good for {} hours. If you did not ask for it, there is nothing to do.\n",
            self.public_url,
            token.reveal(),
            age.as_secs() / 3600
        );
        self.mailer.send(Mail { to: email.into(), subject: format!("bitnet: {subject}"), text })
    }

    fn mail_about_known_address(&self, email: &str, whence: &Whence) {
        if self.throttle.count(format!("mail {email}"), MAILS, whence.by.at).is_err() {
            return;
        }
        let text = format!(
            "Hello,\n\nsomebody, perhaps you, wanted to sign up with this address. It has signed up already: sign in at\n\n{0}/log-in\n\nor set a new password at\n\n{0}/forgot\n",
            self.public_url
        );
        let mail = Mail { to: email.into(), subject: "bitnet: You have signed up already".into(), text };
        if let Err(error) = self.mailer.send(mail) {
            tracing::warn!(%error, "a mail was left out");
        }
    }

    /// Whether a browser is the one that signed up the person of a link, and nobody has signed up with the address since: its session
    /// would be gone. A link that is not good any more is nobody's.
    pub(crate) async fn is_browser_of_link(&self, link: &str, waiting: Option<&Visitor>, whence: &Whence) -> Result<bool, PlatformError> {
        let (Some(hash), Some(waiting)) = (self.hasher.hash("confirm", link), waiting) else { return Ok(false) };
        let owner = self.store.link(&hash, LinkPurpose::Confirm, whence.by.at).await?;
        Ok(owner == Some(waiting.person.id) && waiting.session.stage == Stage::Open)
    }

    /// Confirms an address by its link. Whoever has the mail has not thereby chosen the password that the address was signed up with,
    /// perhaps by somebody else: that they know it is shown by the session of the browser that signed up, or by typing it.
    pub(crate) async fn confirm(
        &self,
        link: &str,
        (waiting, password): (Option<&Visitor>, String),
        whence: &Whence,
    ) -> Result<Confirmed, PlatformError> {
        let hash = self.hasher.hash("confirm", link).ok_or(PlatformError::Credentials)?;
        let is_same_browser = self.is_browser_of_link(link, waiting, whence).await?;
        if !is_same_browser {
            self.throttle.count(format!("confirm place {}", whence.place()), BY_ADDRESS, whence.by.at)?;
            let owner = self.store.link(&hash, LinkPurpose::Confirm, whence.by.at).await?.ok_or(PlatformError::Credentials)?;
            self.throttle.count(format!("confirm {owner}"), BY_PERSON_AND_ADDRESS, whence.by.at)?;
            let owner = self.store.person(owner).await?.ok_or(PlatformError::Credentials)?;
            if !self.passwords.is_right(Some(owner.password_hash), password).await? {
                let reason = "this is not the password that the address was signed up with: if it was not you, set a new one instead";
                return Err(PlatformError::Invalid { field: "password", reason: reason.into() });
            }
        }
        let id = self.store.confirm_person(&hash, &whence.by).await?;
        let person = self.store.person(id).await?.ok_or(PlatformError::NotFound { what: "person" })?;
        if self.store.invitations_of(&person.email, whence.by.at).await? == 0 {
            self.first_account(&person, whence).await?;
        }
        Ok(if is_same_browser { Confirmed::SameBrowser } else { Confirmed::Elsewhere })
    }

    /// Signs somebody in, as far as a password goes. An address that is still to be confirmed is answered as a wrong password is, or
    /// signing up and then in would tell whether somebody had it before; the mail tells more.
    pub(crate) async fn log_in(self: &Arc<Self>, email: &str, password: String, whence: &Whence) -> Result<SignedIn, PlatformError> {
        // What is no address is counted as well, and takes as long.
        let email = email_of(email).unwrap_or_else(|_| "none".into());
        self.throttle(("log-in", &email), whence)?;
        let person = self.store.person_by_email(&email).await?;
        let hash = person.as_ref().map(|person| person.password_hash.clone());
        let is_right = self.passwords.is_right(hash, password).await?;
        let Some(person) = person else { return Err(PlatformError::Credentials) };
        if !is_right {
            self.note_failure(person.id, "password", whence);
            return Err(PlatformError::Credentials);
        }
        if person.verified_at.is_none() {
            let (own, whence) = (self.clone(), whence.clone());
            tokio::spawn(async move {
                if let Err(error) = own.mail_link((person.id, &email), LinkPurpose::Confirm, &whence).await {
                    tracing::warn!(%error, "a link to confirm an address was left out");
                }
            });
            return Err(PlatformError::Credentials);
        }
        if person.totp_since.is_some() {
            return Ok(SignedIn::SecondFactor(self.begin(person.id, Stage::SecondFactor, whence).await?));
        }
        Ok(SignedIn::Open(self.begin(person.id, Stage::Open, whence).await?))
    }

    /// Signs somebody in whose password was right, by a code of the second factor or of the paper.
    pub(crate) async fn second_factor(&self, waiting: &Visitor, code: &str, whence: &Whence) -> Result<Token, PlatformError> {
        let person = &waiting.person;
        self.throttle.count(format!("code of {}", person.id), CODES, whence.by.at)?;
        let proof = match self.factor_of(person)?.step_of(code, unix_seconds(&whence.by), person.totp_last_step) {
            Some(step) => Some(Proof::Step(step)),
            None => recovery_code_as_hashed(code).map(|code| Proof::Recovery(self.hasher.hash_any("recovery code", &code))),
        };
        let token = Token::random()?;
        let session = self.new_session(&token, person.id, (Stage::Open, end_of_session(whence.by.at)), whence);
        let passed = match proof {
            Some(proof) => self.store.pass_second_factor(&waiting.session.hash, session, (proof, &whence.by)).await?,
            None => false,
        };
        if passed {
            return Ok(token);
        }
        self.note_failure(person.id, "code", whence);
        Err(PlatformError::Credentials)
    }

    fn factor_of(&self, person: &Person) -> Result<SecondFactor, PlatformError> {
        let salt = person.totp_salt.as_deref().ok_or(PlatformError::Credentials)?;
        SecondFactor::new(&self.totp_secret, salt, &person.email)
    }

    /// Whose a cookie is, if its session is not over.
    pub(crate) async fn visitor(&self, cookie: &str, now: crate::time::Timestamp) -> Result<Option<Visitor>, PlatformError> {
        match self.hasher.hash("session", cookie) {
            Some(hash) => self.store.visitor(&hash, now).await,
            None => Ok(None),
        }
    }

    /// Mails a link to set a new password, if there is somebody of that address; nobody waits for it.
    pub(crate) async fn forgot(self: &Arc<Self>, email: &str, whence: &Whence) -> Result<(), PlatformError> {
        let email = email_of(email)?;
        self.throttle(("forgot", &email), whence)?;
        let Some(person) = self.store.person_by_email(&email).await? else { return Ok(()) };
        let (own, whence) = (self.clone(), whence.clone());
        tokio::spawn(async move {
            let asked = personal("person.password_reset_asked", person.id, None, Value::Null);
            let noted = own.store.note(&whence.by, asked).await;
            let sent = own.mail_link((person.id, &email), LinkPurpose::Reset, &whence).await;
            if let Err(error) = noted.and(sent) {
                tracing::warn!(%error, "a link to set a password was left out");
            }
        });
        Ok(())
    }

    /// Whether a link to set a new password is good.
    pub(crate) async fn is_reset_link(&self, link: &str, now: crate::time::Timestamp) -> Result<bool, PlatformError> {
        let Some(hash) = self.hasher.hash("reset", link) else { return Ok(false) };
        Ok(self.store.link(&hash, LinkPurpose::Reset, now).await?.is_some())
    }

    /// Sets a new password by a link; all sessions end.
    pub(crate) async fn reset(&self, link: &str, password: String, whence: &Whence) -> Result<(), PlatformError> {
        let hash = self.hasher.hash("reset", link).ok_or(PlatformError::Credentials)?;
        self.throttle.count(format!("reset place {}", whence.place()), BY_ADDRESS, whence.by.at)?;
        let owner = self.store.link(&hash, LinkPurpose::Reset, whence.by.at).await?.ok_or(PlatformError::Credentials)?;
        let owner = self.store.person(owner).await?.ok_or(PlatformError::Credentials)?;
        check_password(&password, &owner.email)?;
        let password_hash = self.passwords.hash(password).await?;
        self.store.reset_password(&hash, password_hash, &whence.by).await?;
        self.tell_of_reset(&owner).await
    }

    async fn check_own_password(&self, person: &Person, password: String, whence: &Whence) -> Result<(), PlatformError> {
        self.throttle(("own password", &person.id.to_string()), whence)?;
        let is_right = self.passwords.is_right(Some(person.password_hash.clone()), password).await?;
        if is_right { Ok(()) } else { Err(PlatformError::Invalid { field: "password", reason: "this is not your password".into() }) }
    }

    /// Sets a new password, by the old one.
    pub(crate) async fn change_password(
        &self,
        visitor: &Visitor,
        (old, new): (String, String),
        whence: &Whence,
    ) -> Result<(), PlatformError> {
        self.check_own_password(&visitor.person, old, whence).await?;
        check_password(&new, &visitor.person.email).map_err(|error| match error {
            PlatformError::Invalid { reason, .. } => PlatformError::Invalid { field: "new_password", reason },
            other => other,
        })?;
        let hash = self.passwords.hash(new).await?;
        self.store.set_password(visitor.person.id, hash, (&visitor.session.hash, &whence.by)).await
    }

    /// A second factor to be: what an app needs to show codes. `None` if there is one in use.
    pub(crate) async fn prepare_second_factor(&self, person: &Person) -> Result<Option<Prepared>, PlatformError> {
        if person.totp_since.is_some() {
            return Ok(None);
        }
        let mut person = person.clone();
        if person.totp_salt.is_none() {
            let mut salt = vec![0; 16];
            getrandom::fill(&mut salt).map_err(|error| PlatformError::Randomness { reason: error.to_string() })?;
            self.store.set_totp_salt(person.id, salt.clone()).await?;
            person.totp_salt = Some(salt);
        }
        let factor = self.factor_of(&person)?;
        let (path, side) = factor.picture()?;
        Ok(Some(Prepared { path, side, secret: factor.secret_text() }))
    }

    /// Uses the second factor from now on, if its code is right; returns the codes for paper.
    pub(crate) async fn enable_second_factor(&self, person: &Person, code: &str, whence: &Whence) -> Result<Vec<String>, PlatformError> {
        self.throttle(("first code", &person.id.to_string()), whence)?;
        let step = self.factor_of(person)?.step_of(code, unix_seconds(&whence.by), 0);
        let wrong = || PlatformError::Invalid { field: "code", reason: "this is not the code of now: is the device's clock right?".into() };
        let step = step.ok_or_else(wrong)?;
        let codes = recovery_codes()?;
        let hash = |code: &String| self.hasher.hash_any("recovery code", &recovery_code_as_hashed(code).unwrap_or_default());
        self.store.enable_totp(person.id, (step, codes.iter().map(hash).collect()), &whence.by).await?;
        Ok(codes)
    }

    /// Does without a second factor, by the password.
    pub(crate) async fn disable_second_factor(&self, person: &Person, password: String, whence: &Whence) -> Result<(), PlatformError> {
        self.check_own_password(person, password, whence).await?;
        self.store.disable_totp(person.id, &whence.by).await
    }

    /// Invites somebody by mail.
    pub(crate) async fn invite(
        &self,
        (account, name): (AccountId, &str),
        (email, role): (&str, Role),
        by: &By,
    ) -> Result<InvitationId, PlatformError> {
        let email = email_of(email)?;
        self.throttle.count(format!("invitations by {}", by.actor), INVITATIONS, by.at)?;
        self.throttle.count(format!("invitations into {account}"), INVITATIONS, by.at)?;
        // Counted by themselves: how many of the other mails an address gets tells whether it is known.
        self.throttle.count(format!("invitation to {email}"), MAILS, by.at)?;
        let token = Token::random()?;
        let hash = self.hasher.hash_any("invitation", token.reveal());
        let id = self.store.put_invitation(account, (&email, role, hash), by).await?;
        let text = format!(
            "Hello,\n\nyou are invited to the account “{name}” as {}. To accept, open\n\n{}/invitations/{}\n\nThe link is good for seven days.\n",
            role.name(),
            self.public_url,
            token.reveal()
        );
        self.mailer.send(Mail { to: email, subject: format!("bitnet: An invitation to {name}"), text })?;
        Ok(id)
    }

    /// The invitation of a link.
    pub(crate) async fn invitation(&self, link: &str, now: crate::time::Timestamp) -> Result<Invitation, PlatformError> {
        let hash = self.hasher.hash("invitation", link).ok_or(PlatformError::Credentials)?;
        self.store.invitation(&hash, now).await
    }

    /// Accepts the invitation of a link.
    pub(crate) async fn accept(&self, link: &str, person: &Person, by: &By) -> Result<AccountId, PlatformError> {
        let hash = self.hasher.hash("invitation", link).ok_or(PlatformError::Credentials)?;
        self.store.accept_invitation(&hash, person, by).await
    }
}

/// What an app needs to show codes.
pub(crate) struct Prepared {
    /// The picture, as the path of an SVG.
    pub(crate) path: String,
    /// The length of its side.
    pub(crate) side: i32,
    /// The same, to be typed.
    pub(crate) secret: String,
}

fn unix_seconds(by: &By) -> u64 {
    u64::try_from(by.at.0 / 1_000_000).unwrap_or(0)
}
