//! Numbers for value added tax in the European Union: whether a text is built as its country builds them, and who owes the tax. Whether a
//! number is given to somebody, and to whom, only the Commission's VIES knows, which is not asked: who keeps the books checks that.
//! Formats: VIES, "What is the format of a VAT number?" (ec.europa.eu/taxation_customs/vies); Germany's check digit: ISO 7064, MOD 11,10.

/// What stands behind a country's letters: 9 is a digit, A a letter, X either; everything else is itself.
const FORMATS: &[(&str, &[&str])] = &[
    ("AT", &["U99999999"]),
    ("BE", &["0999999999", "1999999999"]),
    ("BG", &["999999999", "9999999999"]),
    ("CY", &["99999999A"]),
    ("CZ", &["99999999", "999999999", "9999999999"]),
    ("DE", &["999999999"]),
    ("DK", &["99999999"]),
    ("EE", &["999999999"]),
    ("EL", &["999999999"]),
    ("ES", &["X9999999X"]),
    ("FI", &["99999999"]),
    ("FR", &["XX999999999"]),
    ("HR", &["99999999999"]),
    ("HU", &["99999999"]),
    ("IE", &["9X99999A", "9999999AA"]),
    ("IT", &["99999999999"]),
    ("LT", &["999999999", "999999999999"]),
    ("LU", &["99999999"]),
    ("LV", &["99999999999"]),
    ("MT", &["99999999"]),
    ("NL", &["999999999B99"]),
    ("PL", &["9999999999"]),
    ("PT", &["999999999"]),
    ("RO", &["99", "999", "9999", "99999", "999999", "9999999", "99999999", "999999999", "9999999999"]),
    ("SE", &["999999999999"]),
    ("SI", &["99999999"]),
    ("SK", &["9999999999"]),
];

/// Whether a customer owes the tax to the state (reverse charge): issuer and customer are of two countries of the Union, and the customer
/// has a number of its own country. Who does not say where it is, or has another number, pays the tax here.
pub(super) fn is_owed_by_customer(issuer_country: &str, (country, tax_id): (&str, &str)) -> bool {
    issuer_country != country && is_of_union(issuer_country) && is_valid(country, tax_id)
}

/// A country's letters in front of its numbers: those of ISO 3166-1, but for Greece.
fn letters(country: &str) -> &str {
    if country == "GR" { "EL" } else { country }
}

fn formats(country: &str) -> Option<&'static [&'static str]> {
    FORMATS.iter().find(|(known, _)| *known == letters(country)).map(|(_, formats)| *formats)
}

fn is_of_union(country: &str) -> bool {
    formats(country).is_some()
}

/// Whether a text is built as a number of that country, with or without spaces, points and dashes in it.
fn is_valid(country: &str, text: &str) -> bool {
    let plain: String = text.chars().filter(|c| !matches!(c, ' ' | '.' | '-')).map(|c| c.to_ascii_uppercase()).collect();
    let (Some(formats), Some(number)) = (formats(country), plain.strip_prefix(letters(country))) else { return false };
    let fits =
        |format: &&str| format.len() == number.len() && format.bytes().zip(number.bytes()).all(|(form, byte)| fits_place(form, byte));
    let is_zero = number.bytes().all(|byte| byte == b'0');
    formats.iter().any(fits) && !is_zero && (country != "DE" || has_german_check_digit(number))
}

fn fits_place(form: u8, byte: u8) -> bool {
    match form {
        b'9' => byte.is_ascii_digit(),
        b'A' => byte.is_ascii_uppercase(),
        b'X' => byte.is_ascii_digit() || byte.is_ascii_uppercase(),
        own => own == byte,
    }
}

fn has_german_check_digit(number: &str) -> bool {
    let mut digits = number.bytes().map(|byte| u32::from(byte - b'0'));
    let check = digits.by_ref().take(8).fold(10, |product, digit| {
        let sum = (digit + product) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    digits.next() == Some((11 - check) % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tax_is_owed_by_who_has_a_number_of_another_country_of_the_union() {
        assert!(is_owed_by_customer("FR", ("DE", "DE136695976")));
        assert!(is_owed_by_customer("DE", ("GR", "EL 123456789")), "Greece has its own letters");
        assert!(is_owed_by_customer("DE", ("AT", "ATU-1234.5678")));
        for (issuer, country, tax_id, why) in [
            ("DE", "DE", "DE136695976", "it is the same country"),
            ("", "DE", "DE136695976", "nobody knows where the issuer is"),
            ("US", "DE", "DE136695976", "the issuer is not of the Union"),
            ("DE", "US", "US123456789", "the customer is not"),
            ("FR", "DE", "", "there is no number"),
            ("FR", "DE", "x", "any text is no number"),
            ("FR", "DE", "DE123", "it is too short"),
            ("FR", "DE", "DE136695975", "its check digit is wrong"),
            ("FR", "DE", "136695976", "it has no letters in front"),
            ("FR", "DE", "ATU12345678", "it is another country's"),
            ("DE", "AT", "AT12345678", "it is not built so"),
            ("DE", "DK", "DK00000000", "nobody has nothing"),
        ] {
            assert!(!is_owed_by_customer(issuer, (country, tax_id)), "{why}");
        }
    }

    #[test]
    fn table_of_formats_has_each_country_once() {
        assert_eq!(FORMATS.len(), 27);
        assert!(FORMATS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
