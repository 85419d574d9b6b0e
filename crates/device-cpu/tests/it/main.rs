//! Every operation of `CpuDevice` equals `ReferenceDevice` bit for bit, on every instruction set and number of threads.

mod attention;
mod conformance;
mod file_changes;
mod golden;
mod groups;
mod linear;
mod parity;
mod rows;
mod support;
mod table;
