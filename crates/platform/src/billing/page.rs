//! The draft as a page that can be read, printed and sent; needs no script and no other file.

use askama::Template;

use crate::billing::invoice::Invoice;
use crate::error::PlatformError;

#[derive(Template)]
#[template(path = "invoice.html")]
struct InvoicePage<'a> {
    invoice: &'a Invoice,
    currency: String,
    total: String,
}

impl Invoice {
    /// As a page.
    pub fn to_html(&self, currency: &str) -> Result<String, PlatformError> {
        let page = InvoicePage { invoice: self, currency: currency.to_uppercase(), total: self.total().to_string() };
        page.render().map_err(|error| PlatformError::Corrupt { what: "a page", reason: error.to_string() })
    }
}
