//! Packed layouts of the public formats: one file each, `pack` and `unpack` between a format's blocks and trits with scales.

pub mod hf_u8;
pub mod mlx;
