//! Log messages as entries of systemd's journal, with fields (systemd.io, "Native Journal Protocol").
//!
//! The crate tracing-journald writes the same entries, but through a blocking socket of its own: a journal that does not read
//! would block every task that logs.

use std::fmt::{self, Write};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::sink::Sink;

/// Writes an entry for each log message, with the fields of the spans around it.
pub(super) struct Journal(Arc<Sink>);

/// The encoded fields of a span.
struct SpanFields(Entry);

/// An encoded entry, or a part of one.
#[derive(Default)]
struct Entry(Vec<u8>);

impl Journal {
    pub(super) fn new(sink: Arc<Sink>) -> Journal {
        Journal(sink)
    }
}

impl Entry {
    /// Appends a field in the form that allows any bytes in the value: the name, the value's length, and the value.
    fn field(&mut self, name: &str, value: &[u8]) {
        let letters = name.bytes().map(|byte| if byte == b'.' { b'_' } else { byte }).skip_while(|byte| *byte == b'_');
        let letters = letters.filter(|byte| *byte == b'_' || byte.is_ascii_alphanumeric());
        self.0.extend(letters.map(|byte| byte.to_ascii_uppercase()));
        self.0.push(b'\n');
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    /// Appends the crate and the line of the source from which a message comes.
    fn place(&mut self, prefix: &str, metadata: &Metadata<'_>) {
        let name = |name: &str| format!("{prefix}{name}");
        self.field(&name("TARGET"), metadata.target().as_bytes());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            self.field(&name("CODE_FILE"), file.as_bytes());
            self.field(&name("CODE_LINE"), line.to_string().as_bytes());
        }
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field.name(), value.as_bytes());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = write!(text, "{value:?}");
        self.field(field.name(), text.as_bytes());
    }
}

/// A level as a syslog priority (syslog(3)). `info` maps to "notice", since it means that a state has changed.
fn priority(level: &Level) -> &'static [u8] {
    match *level {
        Level::ERROR => b"3",
        Level::WARN => b"4",
        Level::INFO => b"5",
        Level::DEBUG => b"6",
        Level::TRACE => b"7",
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut entry = Entry::default();
        entry.field("SPAN_NAME", span.name().as_bytes());
        entry.place("SPAN_", span.metadata());
        attributes.record(&mut entry);
        span.extensions_mut().insert(SpanFields(entry));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(entry)) = span.extensions_mut().get_mut() {
            values.record(entry);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut entry = Entry::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(SpanFields(fields)) = span.extensions().get() {
                entry.0.extend_from_slice(&fields.0);
            }
        }
        entry.field("PRIORITY", priority(event.metadata().level()));
        entry.place("", event.metadata());
        entry.field("SYSLOG_IDENTIFIER", b"containerd");
        event.record(&mut entry);
        self.0.line(&entry.0);
    }
}
