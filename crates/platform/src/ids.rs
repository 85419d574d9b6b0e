//! Identifiers that cannot be mixed up and cannot be guessed: 128 random bits, written as a prefix that says what they name and 32
//! hexadecimal digits. They are no secrets, but nobody finds a neighbour's by counting.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::PlatformError;

/// What an id names.
pub trait Named {
    /// Stands before the digits, with an underscore.
    const PREFIX: &'static str;
}

/// An id of a `K`.
pub struct Id<K>(u128, PhantomData<fn() -> K>);

/// Names accounts.
pub enum Account {}
/// Names projects.
pub enum Project {}
/// Names API keys.
pub enum Key {}
/// Names grants of credit.
pub enum CreditGrant {}
/// Names invoices and credit notes.
pub enum FinalInvoice {}
/// Names amounts that wait for the next invoice.
pub enum Item {}
/// Names payments.
pub enum Pay {}
/// Names refunds.
pub enum Return {}
/// Names endpoints of webhooks.
pub enum Endpoint {}
/// Names messages to endpoints.
pub enum Message {}
/// Names people.
pub enum Human {}
/// Names invitations.
pub enum Invite {}
/// Names passkeys.
pub enum Device {}

impl Named for Account {
    const PREFIX: &'static str = "acct";
}
impl Named for Project {
    const PREFIX: &'static str = "proj";
}
impl Named for Key {
    const PREFIX: &'static str = "key";
}
impl Named for CreditGrant {
    const PREFIX: &'static str = "grant";
}
impl Named for FinalInvoice {
    const PREFIX: &'static str = "inv";
}
impl Named for Item {
    const PREFIX: &'static str = "item";
}
impl Named for Pay {
    const PREFIX: &'static str = "pay";
}
impl Named for Return {
    const PREFIX: &'static str = "ref";
}
impl Named for Endpoint {
    const PREFIX: &'static str = "we";
}
impl Named for Message {
    const PREFIX: &'static str = "msg";
}
impl Named for Human {
    const PREFIX: &'static str = "user";
}
impl Named for Device {
    const PREFIX: &'static str = "passkey";
}
impl Named for Invite {
    const PREFIX: &'static str = "invite";
}

/// Who pays.
pub type AccountId = Id<Account>;
/// A part of an account with keys and a cap of its own.
pub type ProjectId = Id<Project>;
/// An API key; not the key itself.
pub type ApiKeyId = Id<Key>;
/// Money that an account may use up before it owes any.
pub type GrantId = Id<CreditGrant>;
/// A final invoice, or a credit note.
pub type InvoiceId = Id<FinalInvoice>;
/// An amount that waits for the next invoice.
pub type ItemId = Id<Item>;
/// An attempt to be paid.
pub type PaymentId = Id<Pay>;
/// Money that went back of a payment.
pub type RefundId = Id<Return>;
/// Where an account wants to hear of events.
pub type EndpointId = Id<Endpoint>;
/// What it hears.
pub type MessageId = Id<Message>;
/// Somebody who signs in.
pub type PersonId = Id<Human>;
/// Something that somebody signs in by.
pub type PasskeyId = Id<Device>;
/// An invitation to be a member of an account.
pub type InvitationId = Id<Invite>;

impl<K> Id<K> {
    /// A new one, from the system's randomness.
    pub fn random() -> Result<Self, PlatformError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| PlatformError::Randomness { reason: error.to_string() })?;
        Ok(Self::from_u128(u128::from_be_bytes(bytes)))
    }

    /// Of the number that it is.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits, PhantomData)
    }

    /// The number that it is.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl<K: Named> fmt::Display for Id<K> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}_{:032x}", K::PREFIX, self.0)
    }
}

impl<K: Named> fmt::Debug for Id<K> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl<K: Named> FromStr for Id<K> {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let digits = text.strip_prefix(K::PREFIX).and_then(|rest| rest.strip_prefix('_'));
        // One spelling for one id: 32 lower-case digits, no sign.
        let digits = digits.filter(|digits| digits.len() == 32 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        let bits = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        bits.map(Self::from_u128).ok_or(PlatformError::MalformedId { expected: K::PREFIX })
    }
}

// By hand, since a derive would ask the same of `K`.
impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<K> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_be_bytes().serialize(serializer)
    }
}
impl<'de, K> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_u128(u128::from_be_bytes(Deserialize::deserialize(deserializer)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_as_text_reads_back() {
        let id = AccountId::random().expect("random");
        assert_eq!(id.to_string().parse::<AccountId>().expect("its own text"), id);
        assert_ne!(AccountId::random().expect("random"), id);
    }

    #[test]
    fn text_of_another_kind_or_spelling_is_refused() {
        let id = AccountId::from_u128(0xabc).to_string();
        assert!(id.parse::<ProjectId>().is_err());
        let upper = id.to_uppercase().replace("ACCT", "acct");
        let signed = format!("acct_+{}", &id["acct_0".len()..]);
        for wrong in ["", "acct", "acct_", "acct_12", upper.as_str(), signed.as_str(), "acct_' OR 1=1 --", &format!("{id}0")] {
            assert!(wrong.parse::<AccountId>().is_err(), "{wrong}");
        }
    }
}
