//! What an account owes for a month: fees of plans by the time that they held, usage by model and price, less credit. A draft shows
//! what the month has come to so far; its lines are sums of entries and can be walked back to requests. All amounts are integers.

pub mod invoice;
mod page;

pub use invoice::{Invoice, InvoiceLine, LineKind, RequestLine};
