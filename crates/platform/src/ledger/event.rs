//! What happened and what it cost: usage events, entries of the ledger, and the records of the journal that say so durably. An
//! entry is a decision, not a question: what reads the journal rates nothing anew, so that reading it twice gives the same.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::PlatformError;
use crate::ids::{AccountId, ApiKeyId, GrantId, ProjectId};
use crate::money::{Micros, TokenCounts};
use crate::time::Timestamp;

/// The source of events that this program makes itself; nobody may send events under that name.
pub const GATEWAY: &str = "gateway";

/// Whose a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// Who pays.
    pub account: AccountId,
    /// For what.
    pub project: ProjectId,
    /// With which key; events from elsewhere have none.
    pub api_key: Option<ApiKeyId>,
}

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Text from a conversation.
    Chat,
    /// Text from a prompt.
    Completion,
    /// Vectors.
    Embedding,
    /// Something that another system measured.
    External,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// As it should.
    Completed,
    /// The client left; what was produced until then is used.
    Cancelled,
    /// Our fault. Tokens that were produced are used, but it is no operation.
    Failed,
    /// We crashed; what was recorded until then counts as used.
    Interrupted,
}

impl Purpose {
    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Embedding => "embedding",
            Self::External => "external",
        }
    }
}

impl Outcome {
    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether the request counts as a successful one: an operation.
    pub const fn is_operation(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled)
    }
}

/// What makes an event the same as another. Three fields, never joined into one string: `a:b` and `c` are not `a` and `b:c`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventKey {
    /// Whose.
    pub account: AccountId,
    /// Who says so.
    pub source: Arc<str>,
    /// Unique within the two.
    pub event_id: Arc<str>,
}

/// The hash of what an event says.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PayloadHash(pub [u8; 32]);

impl fmt::Debug for PayloadHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PayloadHash({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// Something was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageEvent {
    /// Whose.
    pub owner: Owner,
    /// Who says so.
    pub source: Arc<str>,
    /// Unique within account and source.
    pub event_id: Arc<str>,
    /// As the client saw it.
    pub request_id: Arc<str>,
    /// Of which model.
    pub model: Arc<str>,
    /// For what.
    pub purpose: Purpose,
    /// How it ended.
    pub outcome: Outcome,
    /// When it began: the time whose prices and quota hold.
    pub occurred_at: Timestamp,
    /// How much, in tokens.
    pub tokens: TokenCounts,
    /// How much, in operations.
    pub n_operations: u64,
}

impl UsageEvent {
    /// What it is told apart by.
    pub fn key(&self) -> EventKey {
        EventKey { account: self.owner.account, source: self.source.clone(), event_id: self.event_id.clone() }
    }

    /// Of all that it says. Every field has its length or a fixed one in what is hashed.
    pub fn payload_hash(&self) -> PayloadHash {
        let mut bytes = Vec::with_capacity(256);
        append(&mut bytes, self);
        PayloadHash(*blake3::hash(&bytes).as_bytes())
    }
}

/// Who pays for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Funding {
    /// The plan's operations.
    Included,
    /// Its tokens are charged.
    Metered,
    /// Nobody: it came from elsewhere when nothing was left and more was not agreed on.
    Waived,
}

impl Funding {
    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Included => "included",
            Self::Metered => "metered",
            Self::Waived => "waived",
        }
    }
}

/// Money that a grant paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draw {
    /// Which.
    pub grant: GrantId,
    /// How much.
    pub amount: Micros,
}

/// An event and what it cost. Never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the ledger.
    pub seq: u64,
    /// When it was put there.
    pub posted_at: Timestamp,
    /// What happened.
    pub event: UsageEvent,
    /// Under which plan.
    pub plan: Arc<str>,
    /// Priced as which class.
    pub class: Arc<str>,
    /// By the version that began then.
    pub price_from: Timestamp,
    /// Who pays.
    pub funding: Funding,
    /// How much.
    pub charge: Micros,
    /// Of this, paid by grants.
    pub draws: Vec<Draw>,
}

impl Entry {
    /// What the account owes for it.
    pub fn due(&self) -> Micros {
        self.charge.minus(self.from_credit())
    }

    /// What grants paid.
    pub fn from_credit(&self) -> Micros {
        self.draws.iter().map(|draw| draw.amount).sum()
    }
}

/// Money given to an account, to be used until a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its name. The same one again is no second grant.
    pub id: GrantId,
    /// To whom.
    pub account: AccountId,
    /// How much.
    pub amount: Micros,
    /// When.
    pub granted_at: Timestamp,
    /// From when on it pays nothing.
    pub expires_at: Option<Timestamp>,
    /// Why.
    pub reason: String,
}

/// A request in flight: the writer that admitted it, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HoldId {
    /// The writer.
    pub epoch: u64,
    /// Counted by it.
    pub number: u64,
}

impl HoldId {
    /// The id of the event that the request will be. No two writers have the same epoch, so it is unique.
    pub fn event_id(self) -> Arc<str> {
        format!("{:x}-{:x}", self.epoch, self.number).into()
    }
}

/// What a request has produced so far, in all; saying it twice changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Produced {
    /// Tokens of the prompt that the cache had.
    pub n_cached: u64,
    /// Tokens written.
    pub n_output: u64,
}

/// All that is needed to bill a request if nothing more is heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// Its name.
    pub id: HoldId,
    /// Whose.
    pub owner: Owner,
    /// As the client saw it.
    pub request_id: Arc<str>,
    /// Of which model.
    pub model: Arc<str>,
    /// For what.
    pub purpose: Purpose,
    /// When it began.
    pub occurred_at: Timestamp,
    /// Tokens of its prompts.
    pub n_prompt: u64,
    /// Under which plan.
    pub plan: Arc<str>,
    /// Who pays.
    pub funding: Funding,
    /// What has been produced.
    pub produced: Produced,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A request is about to show its first tokens.
    Opened(Box<OpenRequest>),
    /// And more of them.
    Progress { id: HoldId, produced: Produced },
    /// An event with its cost; a request of that id is in flight no more.
    Entry { closes: Option<HoldId>, entry: Box<Entry> },
    /// A request that was opened came to nothing.
    Closed { id: HoldId },
    /// An account has got credit.
    Granted(Box<Grant>),
}

/// The form of the records that follow, at the beginning of a row of the journal.
const JOURNAL_FORM: u8 = 1;

/// The beginning of a row of the journal.
pub(crate) fn new_row() -> Vec<u8> {
    vec![JOURNAL_FORM]
}

/// Writes something behind what is there.
pub(crate) fn append<T: Serialize>(bytes: &mut Vec<u8>, value: &T) {
    // Vec's writer never fails, and no type above has a length unknown beforehand, which is postcard's only other error.
    *bytes = postcard::to_extend(value, std::mem::take(bytes)).expect("records have known lengths and a vector takes all of them");
}

/// The records of a row of the journal.
pub fn read_row(row: &[u8]) -> Result<Vec<Record>, PlatformError> {
    let mut rest = after_form(row)?;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (record, after) = postcard::take_from_bytes(rest).map_err(|error| corrupt(error.to_string()))?;
        records.push(record);
        rest = after;
    }
    Ok(records)
}

/// The one value behind the form.
pub(crate) fn read_one<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, PlatformError> {
    postcard::from_bytes(after_form(bytes)?).map_err(|error| corrupt(error.to_string()))
}

fn after_form(bytes: &[u8]) -> Result<&[u8], PlatformError> {
    match bytes.split_first() {
        Some((&JOURNAL_FORM, rest)) => Ok(rest),
        Some((form, _)) => Err(corrupt(format!("expected form {JOURNAL_FORM}, got {form}"))),
        None => Err(corrupt("it is empty".into())),
    }
}

fn corrupt(reason: String) -> PlatformError {
    PlatformError::Corrupt { what: "a row of the journal", reason }
}
