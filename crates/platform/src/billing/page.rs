//! An invoice as a page that can be read, printed and sent; needs no script and no other file.

use askama::Template;

use crate::billing::invoice::{Invoice, InvoiceStatus, Party};
use crate::error::PlatformError;

#[derive(Template)]
#[template(path = "invoice.html")]
struct InvoicePage<'a> {
    invoice: &'a Invoice,
    title: String,
    badge: &'static str,
    facts: Vec<(&'static str, String)>,
    parties: Vec<&'a Party>,
    total: String,
}

impl Invoice {
    /// As a page.
    pub fn to_html(&self, currency: &str) -> Result<String, PlatformError> {
        let badge = self.issued.as_ref().map_or("Draft", |issued| match issued.status {
            InvoiceStatus::Open => "To be paid",
            InvoiceStatus::Paid => "Settled",
            InvoiceStatus::Uncollectible => "Given up",
        });
        let (title, total, facts) = (self.title(), self.total().to_string(), self.facts(currency));
        let parties = self.issued.iter().flat_map(|issued| [&issued.parties.issuer, &issued.parties.customer]).collect();
        let page = InvoicePage { invoice: self, title, badge, facts, parties, total };
        page.render().map_err(|error| PlatformError::Corrupt { what: "a page", reason: error.to_string() })
    }

    /// What stands at its head.
    pub(super) fn title(&self) -> String {
        match &self.issued {
            Some(issued) => format!("{} {}", issued.kind.title(), issued.number),
            None => format!("Draft of the invoice for {}", self.period),
        }
    }

    /// What is to be known of it besides its lines.
    pub(super) fn facts(&self, currency: &str) -> Vec<(&'static str, String)> {
        let mut facts = vec![
            ("Account", self.account_name.clone()),
            ("Account id", self.account.to_string()),
            ("Month", self.period.to_string()),
            (if self.issued.is_some() { "Issued" } else { "Drawn up" }, self.at.to_date()),
        ];
        if let Some(issued) = &self.issued {
            facts.push(("To be paid by", issued.due_at.to_date()));
            facts.push(("Still to be paid", format!("{} {}", self.outstanding(), currency.to_uppercase())));
            facts.extend(issued.corrects.map(|id| ("Corrects", id.to_string())));
        }
        facts.push(("Currency", currency.to_uppercase()));
        facts
    }
}
