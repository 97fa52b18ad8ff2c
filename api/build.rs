//! Compiles the proto file without protoc, and gives every field its JSON name: the contract's own
//! spelling, with zeros left out.

use prost_types::field_descriptor_proto::Type;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "proto/api.proto";
    println!("cargo::rerun-if-changed={proto}");
    let fds = protox::compile([proto], ["proto"])?;
    let mut config =
        tonic_prost_build::configure().type_attribute(".types", "#[derive(serde::Serialize)]").btree_map(".types");
    for file in fds.file.iter().filter(|f| f.package() == "types") {
        for message in &file.message_type {
            for field in &message.field {
                let path = format!(".types.{}.{}", message.name(), field.name());
                let mut attribute =
                    format!(r#"#[serde(rename = "{}", skip_serializing_if = "crate::json::is_default""#, field.name());
                if field.r#type() == Type::Message && field.type_name() == ".google.protobuf.Timestamp" {
                    attribute.push_str(r#", serialize_with = "crate::json::timestamp""#);
                }
                attribute.push_str(")]");
                config = config.field_attribute(path, attribute);
            }
        }
    }
    config.compile_fds(fds)?;
    Ok(())
}
