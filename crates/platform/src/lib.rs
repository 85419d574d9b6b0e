//! The business around the engine: accounts with projects and keys; admission of requests against plan, credit, caps and
//! rates; the ledger in which everything that was used is booked once; the database that keeps it.
#![forbid(unsafe_code)]

pub mod audit;
pub mod billing;
pub mod catalog;
pub mod directory;
pub mod error;
pub mod gateway;
pub mod ids;
pub mod ledger;
pub mod licence;
pub mod limits;
pub mod money;
mod organization;
pub mod platform;
pub mod reconcile;
pub mod secret_file;
pub mod store;
pub mod time;

pub use error::PlatformError;
pub use platform::Platform;
pub use secret_file::InstallationSecret;
