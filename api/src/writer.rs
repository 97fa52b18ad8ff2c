//! Encoding a message without making it first (protobuf's "Encoding" guide).

/// Appends fields to a message. What is empty or zero is left out, as proto3 has it; the numbers of the fields are those of
/// `proto/api.proto`.
#[derive(Debug)]
pub struct Writer<'a>(pub &'a mut Vec<u8>);

/// A number of seven bits a byte.
const VARINT: u32 = 0;

/// A length, and so many bytes.
const BYTES: u32 = 2;

impl Writer<'_> {
    /// A field of text.
    pub fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    /// A repeated field of texts, of which none is left out.
    pub fn texts(&mut self, field: u32, texts: &[impl AsRef<str>]) {
        texts.iter().for_each(|text| self.bytes(field, text.as_ref().as_bytes()));
    }

    /// A field that is a number, or true or false.
    pub fn number(&mut self, field: u32, number: impl Into<u64>) {
        let number = number.into();
        if number != 0 {
            self.varint(u64::from(field << 3 | VARINT));
            self.varint(number);
        }
    }

    /// A repeated field of numbers, packed.
    pub fn numbers(&mut self, field: u32, numbers: &[u32]) {
        if !numbers.is_empty() {
            self.message(field, |writer| numbers.iter().for_each(|number| writer.varint(u64::from(*number))));
        }
    }

    /// A field that is a message, which `fill` writes. It is there even if it is empty.
    pub fn message(&mut self, field: u32, fill: impl FnOnce(&mut Writer<'_>)) {
        self.varint(u64::from(field << 3 | BYTES));
        let start = self.0.len();
        fill(self);
        // Its length comes before it, and is known only now.
        let end = self.0.len();
        self.varint((end - start) as u64);
        let header = self.0.len() - end;
        self.0[start..].rotate_right(header);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field << 3 | BYTES));
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}
