//! Lines of invoices: what each is for, how it was rounded, and the id by which its requests are asked for.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::PlatformError;
use crate::money::Micros;
use crate::time::Period;

/// What a line is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LineKind {
    /// A plan's monthly price, for the part of the month in which the account had it.
    Fee {
        /// Which plan.
        plan: String,
        /// From.
        from_micros: i64,
        /// Until.
        until_micros: i64,
    },
    /// Requests that the plan's operations paid.
    Included {
        /// Operations.
        n_operations: u64,
    },
    /// Tokens of a model, at one version of its price.
    Usage {
        /// Which model.
        model: String,
        /// Priced as.
        class: String,
        /// By the version that began then.
        price_from_micros: i64,
        /// Tokens computed of prompts.
        n_input: u64,
        /// Tokens of prompts that the cache had.
        n_cached: u64,
        /// Tokens written.
        n_output: u64,
        /// For a million of each.
        price_per_million_micros: [i64; 3],
    },
    /// What credit paid.
    Credit {
        /// Which grant.
        grant: String,
    },
    /// A part off.
    Coupon {
        /// Which.
        code: String,
        /// Parts in a million.
        part_off: u32,
    },
    /// What had been promised and was not spent.
    Commitment {
        /// What was promised.
        promised_micros: i64,
        /// What counts towards it.
        spent_micros: i64,
    },
    /// Something that had waited for this invoice.
    Item {
        /// Which.
        item: String,
    },
    /// What is left to the next invoice, since an invoice is not negative.
    Carried,
    /// Something that was paid before, tax and all.
    Overpaid {
        /// Which.
        item: String,
    },
    /// What of that is left to the next invoice.
    OverpaidCarried,
    /// What an earlier invoice has left to be paid, tax and all.
    Brought {
        /// Which.
        item: String,
    },
    /// To whole cents.
    Rounding,
    /// A tax.
    Tax {
        /// Of this country, or a region of it.
        country: String,
        /// Which region.
        region: String,
        /// Parts in a million.
        rate: u32,
        /// The customer owes it to the state.
        reverse_charge: bool,
    },
    /// A correction, on a credit note.
    Correction,
}

impl LineKind {
    /// Whether it is one of those that add up to what the ledger says is owed.
    pub fn is_of_ledger(&self) -> bool {
        matches!(self, Self::Included { .. } | Self::Usage { .. } | Self::Credit { .. })
    }
}

/// How an amount came to be a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// It is a sum or difference of whole numbers.
    Exact,
    /// Each request was rounded to a micro, half a micro up; their sum is exact.
    EachRequest,
    /// Once, to a micro, half a micro up.
    OnceToMicro,
    /// Once, to a cent, half a cent up.
    OnceToCent,
}

impl Rounding {
    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::EachRequest => "each_request",
            Self::OnceToMicro => "once_to_micro",
            Self::OnceToCent => "once_to_cent",
        }
    }

    /// For people.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::EachRequest => "each request to a millionth, half up",
            Self::OnceToMicro => "once to a millionth, half up",
            Self::OnceToCent => "once to a cent, half up",
        }
    }
}

impl FromStr for Rounding {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let all = [Self::Exact, Self::EachRequest, Self::OnceToMicro, Self::OnceToCent];
        let wrong = || PlatformError::Invalid { field: "rounding", reason: format!("there is no {text:?}") };
        all.into_iter().find(|rounding| rounding.name() == text).ok_or_else(wrong)
    }
}

/// A line of an invoice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InvoiceLine {
    /// By which its requests are asked for.
    pub id: String,
    /// For people.
    pub text: String,
    /// What it is for.
    #[serde(flatten)]
    pub kind: LineKind,
    /// How its amount was rounded.
    pub rounding: Rounding,
    /// Requests in it.
    pub n_requests: u64,
    /// What it adds to the total; credit is negative.
    #[serde(rename = "amount_micros")]
    pub amount: Micros,
}

/// Names a line whose requests are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineId {
    /// The month that its requests are of, if that is an earlier one.
    pub late_of: Option<Period>,
    /// Which requests.
    pub of: LineOf,
}

/// Which requests a line has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineOf {
    /// Of the plan's operations.
    Included,
    /// Of a model at a price.
    Usage { model: String, class: String, price_from: i64 },
    /// Of those that a grant paid for.
    Credit { grant: String },
}

impl FromStr for LineId {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError::Invalid { field: "line", reason: "expected the id of a line with requests".into() };
        if let Some(rest) = text.strip_prefix("late:") {
            let (period, rest) = rest.split_once(':').ok_or_else(wrong)?;
            return Ok(Self { late_of: Some(period.parse().map_err(|_| wrong())?), of: rest.parse()? });
        }
        Ok(Self { late_of: None, of: text.parse()? })
    }
}

impl FromStr for LineOf {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError::Invalid { field: "line", reason: "expected the id of a line with requests".into() };
        match text.split_once(':') {
            None if text == "included" => Ok(Self::Included),
            Some(("credit", grant)) => Ok(Self::Credit { grant: grant.into() }),
            // A model's name may have colons, so it comes last.
            Some(("usage", rest)) => {
                let mut parts = rest.splitn(3, ':');
                let (from, class, model) = (parts.next(), parts.next(), parts.next());
                let price_from = from.and_then(|from| from.parse().ok()).ok_or_else(wrong)?;
                Ok(Self::Usage { price_from, class: class.ok_or_else(wrong)?.into(), model: model.ok_or_else(wrong)?.into() })
            }
            _ => Err(wrong()),
        }
    }
}

/// A request in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestLine {
    /// Its entry's place in the ledger.
    pub seq: u64,
    /// As the client saw it.
    pub request_id: String,
    /// When, in microseconds since 1970.
    pub occurred_at_micros: i64,
    /// How it ended.
    pub outcome: String,
    /// Tokens: computed, cached, written.
    pub tokens: [u64; 3],
    /// What it cost.
    pub charge_micros: i64,
    /// Of this, what no credit paid.
    pub due_micros: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_id_reads_back() {
        let of = LineOf::Usage { model: "hf:a/b".into(), class: "small".into(), price_from: 7 };
        let read = |text: &str| text.parse::<LineId>().expect("an id");
        assert_eq!(read("usage:7:small:hf:a/b"), LineId { late_of: None, of: of.clone() });
        assert_eq!(read("late:2026-01:usage:7:small:hf:a/b"), LineId { late_of: Some("2026-01".parse().expect("a month")), of });
        for wrong in ["", "usage", "usage:x:small:m", "usage:7:small", "fee:1:team", "late:", "late:2026-01", "late:x:included"] {
            assert!(wrong.parse::<LineId>().is_err(), "{wrong}");
        }
    }
}
