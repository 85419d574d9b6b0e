//! Money: integer millionths of the account's currency, and the one rounding that turns tokens into it. No floats, no hidden
//! conversions. Amounts of a ledger all have one currency, which the platform's configuration names; rate cards are in it.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::PlatformError;

/// Millionths of one unit of the currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Micros(pub i64);

impl Micros {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// More than any account has or owes.
    pub const MAX: Self = Self(i64::MAX);

    /// Of whole units.
    pub const fn units(units: i32) -> Self {
        Self(units as i64 * 1_000_000)
    }

    /// The sum, or the largest amount there is. A balance that saturates only ever refuses.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or the smallest amount there is.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// This, but not less than nothing.
    #[must_use]
    pub fn or_zero(self) -> Self {
        self.max(Self::ZERO)
    }
}

impl Sum for Micros {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Self::plus)
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let amount = self.0.unsigned_abs();
        write!(formatter, "{sign}{}.{:06}", amount / 1_000_000, amount % 1_000_000)
    }
}

/// Tokens of one event, by how they are priced. Cached ones are not among the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Of the prompt, computed.
    pub n_input: u64,
    /// Of the prompt, found in the cache.
    pub n_cached: u64,
    /// Written.
    pub n_output: u64,
}

impl TokenCounts {
    /// All of them.
    pub const fn total(self) -> u64 {
        self.n_input.saturating_add(self.n_cached).saturating_add(self.n_output)
    }
}

/// What tokens cost, for a million of each kind: fine enough that a tenth of a micro a token is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TokenPrice {
    /// A million input tokens.
    pub input_per_million: Micros,
    /// A million cached ones.
    pub cached_per_million: Micros,
    /// A million written ones.
    pub output_per_million: Micros,
}

impl TokenPrice {
    /// The charge for one event. Rounding: the products of the three kinds are added exactly and the sum is rounded once, half a
    /// micro up. Prices are not negative, so more tokens never cost less, and a ceiling's price bounds the price of what it covers.
    pub fn charge(&self, tokens: TokenCounts) -> Micros {
        let product = |n_tokens: u64, price: Micros| u128::from(n_tokens) * u128::from(price.0.max(0) as u64);
        let sum = product(tokens.n_input, self.input_per_million)
            + product(tokens.n_cached, self.cached_per_million)
            + product(tokens.n_output, self.output_per_million);
        Micros(i64::try_from((sum + 500_000) / 1_000_000).unwrap_or(i64::MAX))
    }
}

impl FromStr for Micros {
    type Err = PlatformError;

    /// An amount such as `12`, `12.5` or `-0.000001`.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError::Invalid { field: "amount", reason: format!("expected one such as 12.50, got {text:?}") };
        let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
        let (units, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(units) || !is_number(fraction) || fraction.len() > 6 {
            return Err(wrong());
        }
        let micros = format!("{units}{fraction:0<6}").parse::<i64>().map_err(|_| wrong())?;
        Ok(Self(if is_negative { -micros } else { micros }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: TokenPrice =
        TokenPrice { input_per_million: Micros(1_000_000), cached_per_million: Micros(100_000), output_per_million: Micros(1_000_000) };

    #[test]
    fn charge_is_rounded_once_half_up() {
        let charge = |n_input, n_cached, n_output| SMALL.charge(TokenCounts { n_input, n_cached, n_output }).0;
        assert_eq!(charge(1000, 0, 0), 1000, "a thousand tokens cost a thousandth of a unit");
        assert_eq!((charge(0, 4, 0), charge(0, 5, 0), charge(0, 14, 0), charge(0, 15, 0)), (0, 1, 1, 2));
        assert_eq!(charge(3, 5, 4), 8, "7.5 micros in all");
        assert_eq!(charge(u64::MAX, u64::MAX, u64::MAX), i64::MAX, "saturates");
    }

    #[test]
    fn amount_shows_sign_and_six_digits() {
        assert_eq!(Micros(-1_500_000).to_string(), "-1.500000");
        assert_eq!(Micros(i64::MIN).to_string(), "-9223372036854.775808");
        assert_eq!(Micros::units(99).to_string(), "99.000000");
    }

    #[test]
    fn amount_that_is_none_is_refused() {
        let read = |text: &str| text.parse::<Micros>().ok().map(|amount| amount.0);
        assert_eq!(["12", "12.5", "0.000001", "-3.07"].map(read), [Some(12_000_000), Some(12_500_000), Some(1), Some(-3_070_000)]);
        for wrong in ["", ".", "1.", ".5", "1e3", "1.0000001", "--1", "+1", "1 ", "99999999999999", "NaN"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn amount_as_text_reads_back(amount in -1i64 << 60..1 << 60) {
            prop_assert_eq!(Micros(amount).to_string().parse::<Micros>().expect("its own text"), Micros(amount));
        }

        #[test]
        fn charge_of_more_tokens_is_never_less(a in 0u64..1 << 40, b in 0u64..1 << 40, more in 0u64..1 << 20) {
            let charge = |n_input, n_cached| SMALL.charge(TokenCounts { n_input, n_cached, n_output: b });
            prop_assert!(charge(a, b) <= charge(a + more, b));
            prop_assert!(charge(a, b) <= charge(a + b, 0), "a cached token costs at most what a computed one does");
        }
    }
}
