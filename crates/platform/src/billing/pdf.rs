//! An issued invoice as a PDF file, on the fourteen fonts that every reader has, so that none is embedded: they have the letters of
//! Western Europe, and others are spelled with these as `deunicode` does, which the file says (the page has all letters). The same
//! invoice makes the same bytes.

use pdf_writer::{Content, Finish, Name, Pdf, Rect, Ref, Str};

use crate::billing::invoice::{Invoice, Party};

/// A4, in points.
const PAGE: (f32, f32) = (595.0, 842.0);
const MARGIN: f32 = 56.0;
const SIZE: f32 = 9.5;
const LEADING: f32 = 13.0;
/// Where the columns of requests and amounts end, and how wide the first one is.
const REQUESTS_END: f32 = 430.0;
const AMOUNT_END: f32 = PAGE.0 - MARGIN;
const TEXT_WIDTH: f32 = 310.0;

/// Widths of Helvetica's characters from space to tilde, in thousandths of its size (Adobe's font metrics).
const WIDTHS: [u16; 95] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556, 556, 556, 556, 556, 278,
    278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722,
    667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556,
    556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
];

/// What the encoding of the fonts (Windows 1252) has between 0x80 and 0x9f.
const BETWEEN: [(char, u8); 27] = [
    ('€', 0x80),
    ('‚', 0x82),
    ('ƒ', 0x83),
    ('„', 0x84),
    ('…', 0x85),
    ('†', 0x86),
    ('‡', 0x87),
    ('ˆ', 0x88),
    ('‰', 0x89),
    ('Š', 0x8a),
    ('‹', 0x8b),
    ('Œ', 0x8c),
    ('Ž', 0x8e),
    ('‘', 0x91),
    ('’', 0x92),
    ('“', 0x93),
    ('”', 0x94),
    ('•', 0x95),
    ('–', 0x96),
    ('—', 0x97),
    ('˜', 0x98),
    ('™', 0x99),
    ('š', 0x9a),
    ('›', 0x9b),
    ('œ', 0x9c),
    ('ž', 0x9e),
    ('Ÿ', 0x9f),
];

fn byte_of(character: char) -> Option<u8> {
    match character {
        ' '..='~' | '\u{a0}'..='\u{ff}' => u8::try_from(u32::from(character)).ok(),
        _ => BETWEEN.iter().find(|(other, _)| *other == character).map(|(_, byte)| *byte),
    }
}

/// In the encoding of the fonts. What is not in there is spelled with what is; what has no spelling is a question mark.
fn encoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None if character.is_control() => bytes.push(b' '),
            None => bytes.extend(deunicode::deunicode_char(character).unwrap_or("?").bytes()),
        }
    }
    bytes
}

/// Whether all of a text is in the encoding.
fn is_whole(text: &str) -> bool {
    text.chars().all(|character| byte_of(character).is_some() || character.is_control())
}

fn width(text: &str, size: f32) -> f32 {
    let of = |byte: u8| WIDTHS.get(usize::from(byte.wrapping_sub(b' '))).copied().unwrap_or(556);
    encoded(text).into_iter().map(|byte| f32::from(of(byte))).sum::<f32>() * size / 1000.0
}

/// Lines no wider than that; a word that is wider is cut.
fn wrapped(text: &str, most: f32) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut pieces = vec![String::new()];
        for c in word.chars() {
            if width(&format!("{}{c}", pieces[pieces.len() - 1]), SIZE) > most {
                pieces.push(String::new());
            }
            let last = pieces.len() - 1;
            pieces[last].push(c);
        }
        for piece in pieces {
            let last = lines.len() - 1;
            let longer = if lines[last].is_empty() { piece.clone() } else { format!("{} {piece}", lines[last]) };
            if width(&longer, SIZE) <= most {
                lines[last] = longer;
            } else {
                lines.push(piece);
            }
        }
    }
    lines
}

/// Pages that are being written, from the top.
struct Pages {
    done: Vec<Content>,
    page: Content,
    y: f32,
}

impl Pages {
    fn new() -> Self {
        Self { done: Vec::new(), page: Content::new(), y: PAGE.1 - MARGIN }
    }

    fn text(&mut self, x: f32, text: &str, (font, size): (&'static [u8], f32)) {
        self.page.begin_text().set_font(Name(font), size).next_line(x, self.y).show(Str(&encoded(text))).end_text();
    }

    fn right(&mut self, end: f32, text: &str, font: (&'static [u8], f32)) {
        self.text(end - width(text, font.1), text, font);
    }

    fn down(&mut self, by: f32) {
        self.y -= by;
    }

    /// Begins another page if that much is not left.
    fn room(&mut self, height: f32) {
        if self.y - height < MARGIN {
            self.done.push(std::mem::replace(&mut self.page, Content::new()));
            self.y = PAGE.1 - MARGIN;
        }
    }

    fn rule(&mut self) {
        self.page.set_line_width(0.5).move_to(MARGIN, self.y).line_to(AMOUNT_END, self.y).stroke();
    }

    /// The file.
    fn finish(mut self, title: &str) -> Vec<u8> {
        self.done.push(self.page);
        let mut pdf = Pdf::new();
        let (catalog, tree, plain, bold, info) = (Ref::new(1), Ref::new(2), Ref::new(3), Ref::new(4), Ref::new(5));
        let n_pages = i32::try_from(self.done.len()).unwrap_or(i32::MAX);
        let page_id = |index: i32| Ref::new(6 + 2 * index);
        pdf.catalog(catalog).pages(tree);
        pdf.pages(tree).kids((0..n_pages).map(page_id)).count(n_pages);
        for (id, name) in [(plain, "Helvetica"), (bold, "Helvetica-Bold")] {
            pdf.type1_font(id).base_font(Name(name.as_bytes())).encoding_predefined(Name(b"WinAnsiEncoding"));
        }
        pdf.document_info(info).title(pdf_writer::TextStr(title));
        for (index, content) in (0..n_pages).zip(self.done) {
            let content_id = Ref::new(7 + 2 * index);
            let mut page = pdf.page(page_id(index));
            page.parent(tree).media_box(Rect::new(0.0, 0.0, PAGE.0, PAGE.1)).contents(content_id);
            page.resources().fonts().pair(Name(b"R"), plain).pair(Name(b"B"), bold);
            page.finish();
            pdf.stream(content_id, &content.finish());
        }
        pdf.finish()
    }
}

const PLAIN: (&[u8], f32) = (b"R", SIZE);
const BOLD: (&[u8], f32) = (b"B", SIZE);

impl Invoice {
    /// As a file to be sent and kept.
    pub fn to_pdf(&self, currency: &str) -> Vec<u8> {
        let mut pages = Pages::new();
        let title = self.title();
        pages.text(MARGIN, &title, (b"B", 18.0));
        pages.down(2.0 * LEADING);
        for (name, value) in self.facts(currency) {
            pages.text(MARGIN, name, PLAIN);
            pages.text(MARGIN + 110.0, &value, PLAIN);
            pages.down(LEADING);
        }
        if let Some(issued) = &self.issued {
            for (what, party) in [("From", &issued.parties.issuer), ("To", &issued.parties.customer)] {
                pages.down(LEADING / 2.0);
                party_lines(&mut pages, what, party);
            }
        }
        pages.down(LEADING);
        self.table(&mut pages, currency);
        if !self.is_whole() {
            pages.room(2.0 * LEADING);
            pages.down(2.0 * LEADING);
            pages.text(MARGIN, "Spelled with Latin letters here; the page of this invoice has the letters themselves.", (b"R", 7.5));
        }
        pages.finish(&title)
    }

    fn is_whole(&self) -> bool {
        let parties = self.issued.iter().flat_map(|issued| [&issued.parties.issuer, &issued.parties.customer]);
        let mut texts = parties.flat_map(|party| [&party.name, &party.address, &party.tax_id]);
        let lines = self.lines.iter().all(|line| is_whole(&line.text));
        lines && is_whole(&self.account_name) && texts.all(|text| is_whole(text))
    }

    fn table(&self, pages: &mut Pages, currency: &str) {
        pages.text(MARGIN, "What", BOLD);
        pages.right(REQUESTS_END, "Requests", BOLD);
        pages.right(AMOUNT_END, &format!("Amount, {}", currency.to_uppercase()), BOLD);
        pages.down(LEADING / 2.0);
        pages.rule();
        for line in &self.lines {
            let texts = wrapped(&line.text, TEXT_WIDTH);
            pages.room(LEADING * (texts.len() + 2) as f32);
            pages.down(LEADING);
            if line.n_requests > 0 {
                pages.right(REQUESTS_END, &line.n_requests.to_string(), PLAIN);
            }
            pages.right(AMOUNT_END, &line.amount.to_string(), PLAIN);
            for text in texts {
                pages.text(MARGIN, &text, PLAIN);
                pages.down(LEADING);
            }
            pages.text(MARGIN, &format!("rounded: {}", line.rounding.in_words()), (b"R", 7.5));
            pages.down(LEADING / 2.0);
        }
        pages.room(3.0 * LEADING);
        pages.rule();
        pages.down(LEADING);
        pages.text(MARGIN, "Total", BOLD);
        pages.right(AMOUNT_END, &self.total().to_string(), BOLD);
    }
}

fn party_lines(pages: &mut Pages, what: &str, party: &Party) {
    pages.text(MARGIN, what, PLAIN);
    let tax_id = Some(&party.tax_id).filter(|id| !id.is_empty()).map(|id| format!("Tax id {id}"));
    let address = party.address.lines().map(str::to_string);
    for text in std::iter::once(party.name.clone()).chain(address).chain(tax_id) {
        pages.room(LEADING);
        pages.text(MARGIN + 110.0, &text, PLAIN);
        pages.down(LEADING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::line::{InvoiceLine, LineKind, Rounding};
    use crate::ids::AccountId;
    use crate::money::Micros;
    use crate::time::{Period, Timestamp};

    #[test]
    fn long_invoice_fills_pages_that_a_reader_finds() {
        let line = |index: i64| InvoiceLine {
            id: "x".into(),
            text: format!("line {index} (with \\ and ü and 日) {}", "w".repeat(200)),
            kind: LineKind::Rounding,
            rounding: Rounding::OnceToCent,
            n_requests: 7,
            amount: Micros(index),
        };
        let lines = (0..60).map(line).collect();
        let account_name = "Ann".into();
        let invoice =
            Invoice { account: AccountId::from_u128(1), account_name, period: Period(24_312), at: Timestamp(0), lines, issued: None };
        let file = invoice.to_pdf("usd");
        let text = String::from_utf8_lossy(&file);
        assert!(file.starts_with(b"%PDF-") && text.trim_end().ends_with("%%EOF"));
        assert!(text.matches("/Type /Page\n").count() >= 5, "{}", text.matches("/Type /Page").count());
        assert_eq!(file, invoice.to_pdf("usd"), "the same bytes");
    }

    #[test]
    fn letters_that_the_fonts_have_not_are_spelled_with_others() {
        assert_eq!(encoded("Žižka & Œuvre, 5 €"), b"\x8ei\x9eka & \x8cuvre, 5 \x80");
        for (text, spelled) in [("Łódź", "L\u{f3}dz"), ("Αθήνα", "Athena"), ("Чехов", "Chekhov"), ("a\u{0}b", "a b")] {
            let bytes: Vec<u8> = spelled.chars().map(|character| byte_of(character).expect("Latin")).collect();
            assert_eq!(encoded(text), bytes, "{text}");
        }
        assert!(!encoded("株式会社").contains(&b'?') && is_whole("Zoë™") && !is_whole("Ελλάς"));
        assert_eq!(encoded("\u{10fffd}"), b"?", "nobody can spell that");
    }

    #[test]
    fn text_is_cut_to_its_column() {
        let lines = wrapped(&format!("a b {} c", "W".repeat(100)), 100.0);
        assert!(lines.iter().all(|line| width(line, SIZE) <= 100.0) && lines.len() > 5, "{lines:?}");
        assert_eq!(lines.concat().replace(' ', ""), format!("ab{}c", "W".repeat(100)));
    }
}
