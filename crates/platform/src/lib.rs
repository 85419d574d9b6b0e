//! The business around the engine: accounts with projects and keys; admission of requests against plan, credit, caps and
//! rates; the ledger in which everything that was used is booked once; the database that keeps it.
#![forbid(unsafe_code)]

pub mod audit;
pub mod billing;
mod books;
pub mod catalog;
pub mod directory;
pub mod error;
mod forget;
pub mod gateway;
pub mod identity;
pub mod ids;
pub mod ledger;
pub mod licence;
pub mod limits;
pub mod money;
pub mod notices;
mod organization;
pub mod outbound;
pub mod payment;
pub mod platform;
pub mod policy;
pub mod portal;
pub mod reconcile;
pub mod rights;
pub mod secret_file;
pub mod service_level;
pub mod store;
mod thresholds;
pub mod time;
pub mod webhooks;

pub use error::PlatformError;
pub use platform::Platform;
pub use secret_file::InstallationSecret;
