//! The suite that every [`Device`](crate::device::Device) must pass, bit for bit against the
//! [`ReferenceDevice`](crate::reference::ReferenceDevice): single operations ([`check_operations`]) and whole models
//! ([`check_models`]). Called from each device's tests; a difference panics with what was computed and where it differs.

mod models;
mod operations;
#[cfg(test)]
mod planted_bugs;

pub use models::check_models;
pub use operations::check_operations;
