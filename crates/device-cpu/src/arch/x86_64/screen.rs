//! The planes of a head's screen × int8 tokens. Codes are unsigned, so `maddubs` takes them as they are; 16-bit lanes are widened
//! before they can overflow (const asserts).

use std::arch::x86_64::*;

use super::vector::*;
use crate::arch::portable;
use crate::kernels::{PANEL_BYTES, Scratch};
use crate::screen::{COARSE_BYTES, FINE_BYTES, RowBound, ScreenRowMut};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS};

/// Quarters in a block.
const QUARTERS: usize = BLOCK_COLUMNS / QUARTER_COLUMNS;
/// Blocks of the coarse plane whose sums fit 16-bit lanes: each adds four pairs of codes 0..=15.
const COARSE_BLOCKS: usize = 2;
const _: () = assert!(COARSE_BLOCKS * 4 * 2 * 15 * 127 <= i16::MAX as usize);
/// The same for the fine plane: four pairs of codes 0..=3.
const FINE_BLOCKS: usize = 8;
const _: () = assert!(FINE_BLOCKS * 4 * 2 * 3 * 127 <= i16::MAX as usize);

/// `portable::screen_row`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn screen_row(row: &[f32], out: ScreenRowMut<'_>, codes: &mut Vec<u8>) -> RowBound {
    portable::screen_row(row, out, codes)
}

/// Σ code·q of four rows of the coarse plane, for each token.
#[target_feature(enable = "avx2")]
pub(super) fn coarse_sums(tile: &[[u8; COARSE_BYTES]], tokens: &[&[[i8; BLOCK_COLUMNS]]], sums: &mut [[i32; TILE_ROWS]]) {
    let (pairs, rest) = tokens.as_chunks::<2>();
    let (pair_sums, rest_sums) = sums.split_at_mut(2 * pairs.len());
    for (pair, sums) in pairs.iter().zip(pair_sums.as_chunks_mut::<2>().0) {
        coarse_sums_of(tile, *pair, sums);
    }
    for (token, sums) in rest.iter().zip(rest_sums) {
        coarse_sums_of(tile, [token], std::array::from_mut(sums));
    }
}

/// T tokens share what is unpacked.
#[inline]
#[target_feature(enable = "avx2")]
fn coarse_sums_of<const T: usize>(tile: &[[u8; COARSE_BYTES]], tokens: [&[[i8; BLOCK_COLUMNS]]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
    let mut wide = [[_mm256_setzero_si256(); TILE_ROWS]; T];
    let blocks = tile.as_chunks::<2>().0;
    for (index, blocks) in blocks.chunks(COARSE_BLOCKS).enumerate() {
        let mut narrow = [[_mm256_setzero_si256(); TILE_ROWS]; T];
        for (within, units) in blocks.iter().enumerate() {
            prefetch_behind(&units[0]);
            prefetch_behind(&units[1]);
            let block = index * COARSE_BLOCKS + within;
            add_unit(&mut narrow, &units[0], load_quarters(tokens, block, 0), load_quarters(tokens, block, 1));
            add_unit(&mut narrow, &units[1], load_quarters(tokens, block, 2), load_quarters(tokens, block, 3));
        }
        for (wide, narrow) in wide.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
            *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(*narrow, _mm256_set1_epi16(1)));
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        store_sums(sums, sum_rows(wide));
    }
}

/// sums += codes · (low | high), for 64 columns of four rows.
#[inline]
#[target_feature(enable = "avx2")]
fn add_unit<const T: usize>(sums: &mut [[__m256i; TILE_ROWS]; T], unit: &[u8; COARSE_BYTES], low: [__m256i; T], high: [__m256i; T]) {
    let mask = _mm256_set1_epi8(15);
    for (row, bytes) in unit.as_chunks().0.iter().enumerate() {
        let codes = load_u8(bytes);
        let (first, second) = (_mm256_and_si256(codes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask));
        for (token, sums) in sums.iter_mut().enumerate() {
            let products = _mm256_add_epi16(_mm256_maddubs_epi16(first, low[token]), _mm256_maddubs_epi16(second, high[token]));
            sums[row] = _mm256_add_epi16(sums[row], products);
        }
    }
}

/// Σ code·q of one row of the fine plane.
#[target_feature(enable = "avx2")]
pub(super) fn fine_sum(row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
    let activations = &activations[..row.len()];
    let mut wide = _mm256_setzero_si256();
    for (blocks, activations) in row.chunks(FINE_BLOCKS).zip(activations.chunks(FINE_BLOCKS)) {
        let mut narrow = _mm256_setzero_si256();
        for (bytes, activations) in blocks.iter().zip(activations) {
            let mut packed = load_u8(bytes);
            for x in activations.as_chunks().0 {
                let codes = _mm256_and_si256(packed, _mm256_set1_epi8(3));
                packed = _mm256_srli_epi16::<2>(packed);
                narrow = _mm256_add_epi16(narrow, _mm256_maddubs_epi16(codes, load_i8(x)));
            }
        }
        wide = _mm256_add_epi32(wide, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
    }
    let four = _mm_add_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
}

/// Codes 0..=63 of a block of four rows: quarter, row, column.
type JoinedBlock = [[[u8; QUARTER_COLUMNS]; TILE_ROWS]; QUARTERS];
/// Blocks whose planes are joined at a time, into 5 KiB. Joining asks for what comes later, and of more at once processors would lose track.
const JOINED_BLOCKS: usize = 10;
const _: () = assert!(JOINED_BLOCKS * size_of::<JoinedBlock>() <= PANEL_BYTES);
/// Tokens that share joined codes in registers.
const QUAD: usize = 4;
/// Two pairs of codes 0..=63 fit a 16-bit lane.
const _: () = assert!(2 * 2 * 63 * 127 <= i16::MAX as usize);

/// Σ code·q of four rows of both planes, for each token. Several tokens share codes that are joined again from both planes, so that one
/// product does for both.
#[target_feature(enable = "avx2")]
pub(super) fn plane_sums(
    (tile, fine): (&[[u8; COARSE_BYTES]], [&[[u8; FINE_BYTES]]; TILE_ROWS]),
    tokens: &[&[[i8; BLOCK_COLUMNS]]],
    sums: &mut [[i32; TILE_ROWS]],
    scratch: &mut Scratch,
) {
    if let ([token], [sums]) = (tokens, &mut *sums) {
        return plane_sums_of_one((tile, fine), token, sums);
    }
    let buffer: &mut [JoinedBlock] = scratch.panel.as_chunks_mut().0.as_chunks_mut().0.as_chunks_mut().0;
    let units = tile.as_chunks::<2>().0;
    let n_joined = units.len().div_ceil(units.len().div_ceil(JOINED_BLOCKS));
    sums.fill([0; TILE_ROWS]);
    for first in (0..units.len()).step_by(n_joined) {
        let blocks = first..units.len().min(first + n_joined);
        let joined = &mut buffer[..blocks.len()];
        for (joined, block) in joined.iter_mut().zip(blocks.clone()) {
            join(&units[block], fine, block, joined);
        }
        for (tokens, sums) in tokens.chunks(QUAD).zip(sums.chunks_mut(QUAD)) {
            match *tokens {
                [a] => add_joined(joined, within([a], blocks.clone()), sums),
                [a, b] => add_joined(joined, within([a, b], blocks.clone()), sums),
                [a, b, c] => add_joined(joined, within([a, b, c], blocks.clone()), sums),
                [a, b, c, d] => add_joined_quad(joined, within([a, b, c, d], blocks.clone()), sums),
                _ => unreachable!("chunks of 1..=QUAD tokens"),
            }
        }
    }
}

/// Codes of a block of four rows from both planes.
#[inline]
#[target_feature(enable = "avx2")]
fn join(units: &[[u8; COARSE_BYTES]; 2], fine: [&[[u8; FINE_BYTES]]; TILE_ROWS], block: usize, joined: &mut JoinedBlock) {
    prefetch_behind(&units[0]);
    prefetch_behind(&units[1]);
    for (row, fine) in fine.into_iter().enumerate() {
        prefetch_line_behind(&fine[block]);
        for (joined, codes) in joined.iter_mut().zip(join_row(units, row, &fine[block])) {
            store_u8(&mut joined[row], codes);
        }
    }
}

/// The four quarters of a block of one row: codes of the coarse plane, four times, and those of the fine one.
#[inline]
#[target_feature(enable = "avx2")]
fn join_row(units: &[[u8; COARSE_BYTES]; 2], row: usize, fine: &[u8; FINE_BYTES]) -> [__m256i; QUARTERS] {
    let (upper, lower) = (_mm256_set1_epi8(0b11_1100), _mm256_set1_epi8(0b11));
    let (first, second, mut two_bits) = (load_u8(&units[0].as_chunks().0[row]), load_u8(&units[1].as_chunks().0[row]), load_u8(fine));
    // A lower code of a byte goes two bits up, an upper one two bits down.
    let mut codes =
        [_mm256_slli_epi16::<2>(first), _mm256_srli_epi16::<2>(first), _mm256_slli_epi16::<2>(second), _mm256_srli_epi16::<2>(second)];
    for four_bits in &mut codes {
        *four_bits = _mm256_or_si256(_mm256_and_si256(*four_bits, upper), _mm256_and_si256(two_bits, lower));
        two_bits = _mm256_srli_epi16::<2>(two_bits);
    }
    codes
}

/// `plane_sums` of one token, whose codes stay in registers.
#[inline]
#[target_feature(enable = "avx2")]
fn plane_sums_of_one(
    (tile, fine): (&[[u8; COARSE_BYTES]], [&[[u8; FINE_BYTES]]; TILE_ROWS]),
    token: &[[i8; BLOCK_COLUMNS]],
    sums: &mut [i32; TILE_ROWS],
) {
    let ones = _mm256_set1_epi16(1);
    let mut wide = [_mm256_setzero_si256(); TILE_ROWS];
    for (block, (units, activations)) in tile.as_chunks::<2>().0.iter().zip(token).enumerate() {
        prefetch_behind(&units[0]);
        prefetch_behind(&units[1]);
        let x = activations.as_chunks::<QUARTER_COLUMNS>().0;
        for (row, wide) in wide.iter_mut().enumerate() {
            prefetch_line_behind(&fine[row][block]);
            let codes = join_row(units, row, &fine[row][block]);
            let first = _mm256_add_epi16(_mm256_maddubs_epi16(codes[0], load_i8(&x[0])), _mm256_maddubs_epi16(codes[1], load_i8(&x[1])));
            let second = _mm256_add_epi16(_mm256_maddubs_epi16(codes[2], load_i8(&x[2])), _mm256_maddubs_epi16(codes[3], load_i8(&x[3])));
            *wide = _mm256_add_epi32(*wide, _mm256_add_epi32(_mm256_madd_epi16(first, ones), _mm256_madd_epi16(second, ones)));
        }
    }
    store_sums(sums, sum_rows(wide));
}

/// Adds Σ code·q of some joined blocks.
#[inline]
#[target_feature(enable = "avx2")]
fn add_joined<const T: usize>(joined: &[JoinedBlock], tokens: [&[[i8; BLOCK_COLUMNS]]; T], sums: &mut [[i32; TILE_ROWS]]) {
    let mut wide = [[_mm256_setzero_si256(); TILE_ROWS]; T];
    for (block, codes) in joined.iter().enumerate() {
        for (half, codes) in codes.as_chunks::<2>().0.iter().enumerate() {
            add_half(&mut wide, codes, load_quarters(tokens, block, 2 * half), load_quarters(tokens, block, 2 * half + 1));
        }
    }
    add_sums(wide, sums);
}

/// sums += codes · (low | high), for two quarters of four rows.
#[inline]
#[target_feature(enable = "avx2")]
fn add_half<const T: usize>(
    sums: &mut [[__m256i; TILE_ROWS]; T],
    [low_codes, high_codes]: &[[[u8; QUARTER_COLUMNS]; TILE_ROWS]; 2],
    low: [__m256i; T],
    high: [__m256i; T],
) {
    for (row, (low_codes, high_codes)) in low_codes.iter().zip(high_codes).enumerate() {
        let (low_codes, high_codes) = (load_u8(low_codes), load_u8(high_codes));
        for (token, sums) in sums.iter_mut().enumerate() {
            let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low_codes, low[token]), _mm256_maddubs_epi16(high_codes, high[token]));
            sums[row] = _mm256_add_epi32(sums[row], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
    }
}

/// Adds up registers.
#[inline]
#[target_feature(enable = "avx2")]
fn add_sums<const T: usize>(wide: [[__m256i; TILE_ROWS]; T], sums: &mut [[i32; TILE_ROWS]]) {
    for (sums, wide) in sums.iter_mut().zip(wide) {
        for (sum, more) in sums.iter_mut().zip(sums_array(sum_rows(wide))) {
            *sum += more;
        }
    }
}

/// `add_joined` of four tokens, two rows at a time.
#[inline]
#[target_feature(enable = "avx2")]
fn add_joined_quad(joined: &[JoinedBlock], tokens: [&[[i8; BLOCK_COLUMNS]]; QUAD], sums: &mut [[i32; TILE_ROWS]]) {
    let mut wide = [[_mm256_setzero_si256(); TILE_ROWS]; QUAD];
    let (first, second) = (sum_joined_quad::<0>(joined, tokens), sum_joined_quad::<2>(joined, tokens));
    for (wide, (first, second)) in wide.iter_mut().zip(first.into_iter().zip(second)) {
        *wide = [first[0], first[1], second[0], second[1]];
    }
    add_sums(wide, sums);
}

/// Two rows × four tokens of half a block: four codes, eight sums, sixteen registers.
#[rustfmt::skip]
macro_rules! half_of_quad {
    ($low:literal, $high:literal, $low_x:literal, $high_x:literal) => {
        concat!(
            "vmovdqu {l0}, ymmword ptr [{codes} + {first} + ", $low, "]\n",
            "vmovdqu {l1}, ymmword ptr [{codes} + {first} + ", $low, " + 32]\n",
            "vmovdqu {h0}, ymmword ptr [{codes} + {first} + ", $high, "]\n",
            "vmovdqu {h1}, ymmword ptr [{codes} + {first} + ", $high, " + 32]\n",
            token_of_quad!("{a}", $low_x, $high_x, "{s00}", "{s01}"),
            token_of_quad!("{b}", $low_x, $high_x, "{s10}", "{s11}"),
            token_of_quad!("{c}", $low_x, $high_x, "{s20}", "{s21}"),
            token_of_quad!("{d}", $low_x, $high_x, "{s30}", "{s31}"),
        )
    };
}

/// One token of it meets both rows' codes.
#[rustfmt::skip]
macro_rules! token_of_quad {
    ($token:literal, $low_x:literal, $high_x:literal, $first:literal, $second:literal) => {
        concat!(
            "vpmaddubsw {t0}, {l0}, ymmword ptr [", $token, " + ", $low_x, "]\n",
            "vpmaddubsw {t1}, {h0}, ymmword ptr [", $token, " + ", $high_x, "]\n",
            "vpaddw {t0}, {t0}, {t1}\n",
            "vpmaddubsw {t1}, {l1}, ymmword ptr [", $token, " + ", $low_x, "]\n",
            "vpmaddubsw {t2}, {h1}, ymmword ptr [", $token, " + ", $high_x, "]\n",
            "vpmaddwd {t0}, {t0}, {ones}\n",
            "vpaddw {t1}, {t1}, {t2}\n",
            "vpmaddwd {t1}, {t1}, {ones}\n",
            "vpaddd ", $first, ", ", $first, ", {t0}\n",
            "vpaddd ", $second, ", ", $second, ", {t1}\n",
        )
    };
}

/// Σ code·q of rows `FIRST` and `FIRST + 1` for four tokens. In assembly for the reason that `int8::sum_blocks_of_panel` gives.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_joined_quad<const FIRST: usize>(joined: &[JoinedBlock], tokens: [&[[i8; BLOCK_COLUMNS]]; QUAD]) -> [[__m256i; 2]; QUAD] {
    const { assert!(FIRST + 2 <= TILE_ROWS) };
    let [a, b, c, d] = within(tokens, 0..joined.len());
    let mut sums = [[_mm256_setzero_si256(); 2]; QUAD];
    if joined.is_empty() {
        return sums;
    }
    let [[s00, s01], [s10, s11], [s20, s21], [s30, s31]] = &mut sums;
    let ones = _mm256_set1_epi16(1);
    // SAFETY: the loop reads `joined.len()` > 0 blocks of 512 bytes (of each quarter two rows of 32 bytes, `FIRST` + 2 <= 4) and of 128
    // bytes from each token, which is what the slices hold (`within` cut them to one length). It writes registers only.
    unsafe {
        std::arch::asm!(
            "2:",
            half_of_quad!("0", "128", "0", "32"),
            half_of_quad!("256", "384", "64", "96"),
            "add {codes}, 512",
            "add {a}, 128",
            "add {b}, 128",
            "add {c}, 128",
            "add {d}, 128",
            "dec {n}",
            "jnz 2b",
            first = const FIRST * QUARTER_COLUMNS,
            codes = inout(reg) joined.as_ptr() => _,
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            c = inout(reg) c.as_ptr() => _,
            d = inout(reg) d.as_ptr() => _,
            n = inout(reg) joined.len() => _,
            s00 = inout(ymm_reg) *s00,
            s01 = inout(ymm_reg) *s01,
            s10 = inout(ymm_reg) *s10,
            s11 = inout(ymm_reg) *s11,
            s20 = inout(ymm_reg) *s20,
            s21 = inout(ymm_reg) *s21,
            s30 = inout(ymm_reg) *s30,
            s31 = inout(ymm_reg) *s31,
            ones = in(ymm_reg) ones,
            l0 = out(ymm_reg) _,
            l1 = out(ymm_reg) _,
            h0 = out(ymm_reg) _,
            h1 = out(ymm_reg) _,
            t0 = out(ymm_reg) _,
            t1 = out(ymm_reg) _,
            t2 = out(ymm_reg) _,
            options(nostack, readonly),
        );
    }
    sums
}
