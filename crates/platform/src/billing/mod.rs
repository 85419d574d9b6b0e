//! What an account owes for a month: fees of plans by the time that they held, usage by model and price, less credit; what else was
//! agreed; taxes. A draft shows what the month has come to so far; when the month is over it is closed and becomes an invoice with a
//! number. Lines are sums of entries and can be walked back to requests. All amounts are integers.

pub(crate) mod close;
pub(crate) mod covered;
mod eu_tax_id;
pub mod invoice;
mod issued;
pub mod line;
mod page;
mod pdf;
pub mod settings;
pub mod statement;

pub use close::Closed;
pub use invoice::{DocumentKind, Invoice, InvoiceStatus, Issued, Parties, Party};
pub use line::{InvoiceLine, LineId, LineKind, LineOf, RequestLine, Rounding};
pub use settings::{Issuer, NewCoupon, NewTax, Profile};
