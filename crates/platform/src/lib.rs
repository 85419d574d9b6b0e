//! The business around the engine: accounts with projects and keys; admission of requests against plan, credit, caps and
//! rates; the ledger in which everything that was used is booked once; the database that keeps it.
#![forbid(unsafe_code)]

pub mod catalog;
pub mod directory;
pub mod error;
pub mod ids;
pub mod ledger;
pub mod limits;
pub mod money;
pub mod reconcile;
pub mod store;
pub mod time;

pub use error::PlatformError;
