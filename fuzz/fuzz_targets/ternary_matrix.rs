//! Fuzz target: `TernaryMatrix` from codes of any shape. What is accepted must hold trits only, survive a round trip, and count
//! its own zeros; what is refused must be refused without a panic. Packed layouts are fuzzed in `ternary_layouts`.
#![no_main]

use bitnet_fuzz::{Reader, within_budget};
use bitnet_ternary::{Scales, TernaryMatrix};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| within_budget(input, 64, || {
    let mut reader = Reader::new(input);
    let (mut n_rows, mut n_cols) = (usize::from(reader.byte()), usize::from(reader.byte()));
    if reader.byte() == 255 {
        // Shapes whose product wraps.
        (n_rows, n_cols) = (n_rows << 56 | reader.u32() as usize, n_cols << 40 | reader.u32() as usize);
    }
    let scale = f32::from_bits(reader.u32());
    let scales = match reader.byte() % 3 {
        0 => Scales::Tensor(scale),
        1 => Scales::Row(vec![scale; usize::from(reader.byte())]),
        _ => Scales::Group { group_size: usize::from(reader.byte()), scales: vec![scale; usize::from(reader.byte())] },
    };
    let Ok(matrix) = TernaryMatrix::from_codes(n_rows, n_cols, reader.rest().to_vec(), scales.clone()) else { return };
    let trits = matrix.to_trits();
    assert!(trits.iter().all(|trit| (-1..=1).contains(trit)));
    assert_eq!(matrix.n_zeros(), trits.iter().filter(|&&trit| trit == 0).count());
    assert_eq!(TernaryMatrix::from_trits(n_rows, n_cols, &trits, scales).expect("its own trits and scales"), matrix);
    let stacked = TernaryMatrix::stack(&[matrix.clone(), matrix.clone()]).expect("equal widths stack");
    assert_eq!(stacked.n_zeros(), 2 * matrix.n_zeros());
}));
