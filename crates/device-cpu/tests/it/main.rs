//! Every operation of `CpuDevice` equals `ReferenceDevice` bit for bit, on every instruction set and number of threads.

mod attention;
mod conformance;
mod linear;
mod rows;
mod support;
mod table;
