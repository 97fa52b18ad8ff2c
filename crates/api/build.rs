//! Generates the crate's code from the proto file, without `protoc`.
//!
//! Two things differ from what prost generates by itself: the JSON name of each field is the contract's spelling, and a map
//! field becomes a list of entries. The module `map` explains the latter.

use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto};

const PROTO: &str = "proto/api.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    let mut descriptors = protox::compile([PROTO], ["proto"])?;
    let mut builder = tonic_prost_build::configure().type_attribute(".types", "#[derive(serde::Serialize)]");
    let mut entries = Vec::new();
    for file in descriptors.file.iter_mut().filter(|file| file.package() == "types") {
        for message in &mut file.message_type {
            let of_message = turn_maps_into_entries(message);
            for field in &message.field {
                let path = format!(".types.{}.{}", message.name(), field.name());
                builder = builder.field_attribute(path, json_attribute(field, &of_message));
            }
            entries.extend(of_message);
        }
    }
    let mut config = prost_build::Config::new();
    // prost looks for the comments of a message in the proto file, which has none for these.
    config.disable_comments(entries);
    builder.compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// Declares each map of a message as what it is on the wire: a repeated message with an optional key and an optional value.
/// Returns the names of these messages.
fn turn_maps_into_entries(message: &mut DescriptorProto) -> Vec<String> {
    let mut names = Vec::new();
    for entry in &mut message.nested_type {
        if entry.options.take_if(|options| options.map_entry()).is_some() {
            entry.field.iter_mut().for_each(|field| field.proto3_optional = Some(true));
            names.push(format!(".types.{}.{}", message.name.as_deref().unwrap_or_default(), entry.name()));
        }
    }
    names
}

/// How serde writes a field.
fn json_attribute(field: &FieldDescriptorProto, entries: &[String]) -> String {
    let with = match field.type_name() {
        ".google.protobuf.Timestamp" if field.r#type() == Type::Message => {
            r#", serialize_with = "crate::json::timestamp""#
        }
        name if entries.iter().any(|entry| entry == name) => r#", serialize_with = "crate::json::map""#,
        _ => "",
    };
    format!(r#"#[serde(rename = "{}"{with})]"#, field.name())
}
