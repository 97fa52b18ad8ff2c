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
    pub fn texts(&mut self, field: u32, texts: impl IntoIterator<Item = impl AsRef<str>>) {
        texts.into_iter().for_each(|text| self.bytes(field, text.as_ref().as_bytes()));
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

    /// An entry of a map with a number as its value. Key and value are always written, also when they are empty or zero:
    /// decoders of 2016 refuse an entry without them.
    pub fn map_number(&mut self, field: u32, key: &str, value: u64) {
        self.message(field, |entry| {
            entry.bytes(1, key.as_bytes());
            entry.varint(u64::from(2_u32 << 3 | VARINT));
            entry.varint(value);
        });
    }

    /// An entry of a map with a message as its value, like [`Writer::map_number`].
    pub fn map_message(&mut self, field: u32, key: &str, value: &impl prost::Message) {
        self.message(field, |entry| {
            entry.bytes(1, key.as_bytes());
            entry.encoded(2, value);
        });
    }

    /// A field that is a message of the generated code.
    pub fn encoded(&mut self, field: u32, message: &impl prost::Message) {
        self.message(field, |writer| writer.fields_of(message));
    }

    /// All fields of a message of the generated code, as fields of this one.
    pub fn fields_of(&mut self, message: &impl prost::Message) {
        message.encode_raw(self.0);
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
