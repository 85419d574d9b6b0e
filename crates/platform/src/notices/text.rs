//! What the mails say: a subject and a paragraph for each kind of event, in plain text, with a link to where more is.

use serde_json::Value;

use crate::money::Micros;
use crate::portal::dollars;

/// What there is to tell.
pub(super) struct Told<'a> {
    pub(super) kind: &'a str,
    pub(super) data: &'a Value,
    pub(super) account_name: &'a str,
    /// Where the account's pages are.
    pub(super) at: &'a str,
    /// The key that it is about, for people.
    pub(super) key: &'a str,
}

impl Told<'_> {
    fn text(&self, field: &str) -> &str {
        self.data[field].as_str().unwrap_or_default()
    }

    fn amount(&self, field: &str) -> String {
        dollars(Micros(self.data[field].as_i64().unwrap_or(0)))
    }

    /// A date of a time as it is written in messages.
    fn date(&self, field: &str) -> &str {
        let time = self.text(field);
        time.get(..10).unwrap_or(time)
    }
}

/// Subject and text; nothing for a kind that nobody is told of by mail.
pub(super) fn written(told: &Told<'_>) -> Option<(String, String)> {
    let (name, at) = (told.account_name, told.at);
    let (subject, text) = match told.kind {
        "usage.threshold_reached" => usage(told),
        kind if kind.starts_with("invoice.") || kind.starts_with("credit_note.") => return of_invoices(told),
        "account.restricted" => (
            format!("“{name}” is suspended"),
            format!(
                "an invoice of “{name}” stays unpaid, and so its keys open nothing until it is paid. Nothing is deleted.\n\n{at}/invoices"
            ),
        ),
        "account.restored" => (format!("“{name}” works again"), format!("all is paid, and the keys of “{name}” work again.\n\n{at}")),
        "api_key.created" => (format!("A new key of “{name}”"), format!("the key {} was made.{}\n\n{at}/keys", told.key, UNEXPECTED)),
        "api_key.rotated" => {
            (format!("A key of “{name}” was rotated"), format!("the key {} is replaced by another.{}\n\n{at}/keys", told.key, UNEXPECTED))
        }
        "api_key.revoked" => {
            (format!("A key of “{name}” was revoked"), format!("the key {} opens nothing any more.{}\n\n{at}/keys", told.key, UNEXPECTED))
        }
        "api_key.expiring" => (
            format!("A key of “{name}” ends soon"),
            format!("the key {} ends on {}. Rotate it, and the new one may do the same.\n\n{at}/keys", told.key, told.date("expires_at")),
        ),
        "service_level.missed" => (
            "A service level was missed".to_string(),
            format!(
                "in the month before, “{name}” did not get the service that its plan promises. The credit for it is on the next invoice.\n\n{at}/invoices"
            ),
        ),
        _ => return None,
    };
    Some((subject, text))
}

/// The same of an invoice, a credit note or a payment.
fn of_invoices(told: &Told<'_>) -> Option<(String, String)> {
    let (name, at) = (told.account_name, told.at);
    Some(match told.kind {
        "invoice.issued" => (
            format!("Invoice {} over {}", told.text("number"), told.amount("total_micros")),
            format!("the invoice of “{name}” for {} is there: {}.\n\n{at}/invoices", told.text("period"), told.amount("total_micros")),
        ),
        "credit_note.issued" => (
            format!("Credit note {}", told.text("number")),
            format!("a credit note for “{name}” is there: {}.\n\n{at}/invoices", told.amount("total_micros")),
        ),
        "invoice.paid" => (
            format!("Invoice {} is paid", told.text("number")),
            format!(
                "thank you: invoice {} of “{name}” over {} is paid.\n\n{at}/invoices",
                told.text("number"),
                told.amount("total_micros")
            ),
        ),
        "invoice.overdue" => (
            format!("Invoice {} is overdue", told.text("number")),
            format!(
                "invoice {} of “{name}” was due on {}, and {} of it is open.\n\n{at}/invoices",
                told.text("number"),
                told.date("due_at"),
                told.amount("outstanding_micros")
            ),
        ),
        "invoice.payment_failed" => (
            "A payment failed".to_string(),
            format!(
                "an invoice of “{name}” could not be collected: {}. It is tried again some days later; until then you can use another card.\n\n{at}/invoices",
                told.text("reason")
            ),
        ),
        "invoice.refunded" => (
            format!("{} go back to you", told.amount("amount_micros")),
            format!(
                "{} that “{name}” had paid are on their way back to its card. The credit note is with the invoices.\n\n{at}/invoices",
                told.amount("amount_micros")
            ),
        ),
        "invoice.payment_disputed" => (
            "A payment is disputed".to_string(),
            format!(
                "the bank of “{name}” disputes a payment of {}. Until that is decided its invoice counts as unpaid.\n\n{at}/invoices",
                told.amount("amount_micros")
            ),
        ),
        _ => return None,
    })
}

const UNEXPECTED: &str = " If you did not expect this, look at the audit log and revoke it.";

fn usage(told: &Told<'_>) -> (String, String) {
    let (name, at) = (told.account_name, told.at);
    let percent = told.data["percent"].as_u64().unwrap_or(0);
    let what = if told.text("meter") == "operations" { "the operations of its plan" } else { "its spending cap" };
    let next = match (percent >= 100, told.text("meter")) {
        (false, _) => "There is time to raise it, or to change the plan.",
        (true, "operations") => "Further requests are refused, or charged by the token where the account allows that.",
        (true, _) => "Further requests are refused until it is raised, or until the next month.",
    };
    (
        format!("{percent}% of {what}: “{name}”"),
        format!("“{name}” has used {percent}% of {what} for {}. {next}\n\n{at}/usage", told.text("period")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_that_can_be_heard_of_has_a_text_that_says_where() {
        for kind in crate::webhooks::KINDS {
            let data = json!({ "number": "INV-1", "total_micros": 99_000_000, "percent": 80, "meter": "operations", "period": "2026-01" });
            let told = Told { kind, data: &data, account_name: "Ann", at: "https://x.example/accounts/a", key: "“k” (sk-bitnet-…)" };
            let (subject, text) = written(&told).unwrap_or_else(|| panic!("{kind} has no text"));
            assert!(!subject.contains('\n') && text.contains("https://x.example/accounts/a"), "{kind}: {subject}: {text}");
        }
        assert_eq!(written(&Told { kind: "other", data: &json!({}), account_name: "", at: "", key: "" }), None);
    }
}
